//! HTTP rules of a VirtualService that Istio would refuse.

use super::{destination, port_number, source, span, weights};
use crate::{
    diagnostic::Code,
    form,
    istio::virtual_service::{
        CorsPolicy, Delegate, HeaderOperations, Headers, HttpDirectResponse, HttpFaultInjection,
        HttpMatchRequest, HttpRedirect, HttpRetry, HttpRewrite, HttpRoute, Percent, StringMatch,
    },
    parse::Found,
    schema::Span,
};

/// gRPC's names of statuses, by number.
pub const GRPC_STATUS: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

const RETRY_ON: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// Of those, what Envoy needs more for than VirtualService says, or that nothing here speaks.
const NEVER_MET: [&str; 3] =
    ["retriable-headers", "envoy-ratelimited", "http3-post-connect-failure"];

const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"];

/// Largest body of a direct response, in bytes.
const LARGEST_BODY: usize = 1024 * 1024;

pub(super) fn http(r: &HttpRoute, path: &str, in_delegate: bool, found: &mut Found<'_>) {
    actions(r, path, in_delegate, found);
    for (i, m) in r.r#match.iter().enumerate() {
        http_match(m, &format!("{path}.match[{i}]"), found);
    }
    if let Some(h) = &r.headers {
        headers(h, &format!("{path}.headers"), found);
    }
    span(r.timeout, &format!("{path}.timeout"), found);
    if let Some(p) = r.mirror_percent {
        let at = format!("{path}.mirrorPercent");
        if p > 100 {
            found.invalid(at, p.to_string(), "at most 100");
        } else {
            found.push(Code::Warning, at, p.to_string(), "deprecated: use mirrorPercentage");
        }
    }
    percent(r.mirror_percentage.as_ref(), &format!("{path}.mirrorPercentage"), found);
    if let Some(d) = &r.mirror {
        destination(Some(d), &format!("{path}.mirror"), found);
        if !r.mirrors.is_empty() {
            found.invalid(format!("{path}.mirror"), "together with mirrors", "give one of them");
        }
    }
    for (i, m) in r.mirrors.iter().enumerate() {
        let at = format!("{path}.mirrors[{i}]");
        destination(m.destination.as_ref(), &format!("{at}.destination"), found);
        percent(m.percentage.as_ref(), &format!("{at}.percentage"), found);
    }
    if let Some(c) = &r.cors_policy {
        cors(c, &format!("{path}.corsPolicy"), found);
    }
    if let Some(f) = &r.fault {
        fault(f, &format!("{path}.fault"), found);
    }
    if let Some(x) = &r.redirect {
        redirect(x, &r.r#match, &format!("{path}.redirect"), found);
    }
    if let Some(d) = &r.direct_response {
        direct_response(d, &format!("{path}.directResponse"), found);
    }
    if let Some(x) = &r.retries {
        retries(x, &format!("{path}.retries"), found);
    }
    if let Some(x) = &r.rewrite {
        rewrite(x, r.headers.as_ref(), &format!("{path}.rewrite"), found);
    }
    for (i, d) in r.route.iter().enumerate() {
        let at = format!("{path}.route[{i}]");
        destination(d.destination.as_ref(), &format!("{at}.destination"), found);
        if let Some(h) = &d.headers {
            headers(h, &format!("{at}.headers"), found);
        }
    }
    let all: Vec<i32> = r.route.iter().map(|d| d.weight).collect();
    weights(&all, &format!("{path}.route"), found);
}

/// Exactly one of route, redirect, directResponse and delegate, and what does not go with it.
fn actions(r: &HttpRoute, path: &str, in_delegate: bool, found: &mut Found<'_>) {
    let mut exclusive = |with: &str, others: &[(&str, bool)]| {
        for (field, _) in others.iter().filter(|(_, given)| *given) {
            found.invalid(
                format!("{path}.{field}"),
                format!("together with {with}"),
                "they exclude each other",
            );
        }
    };
    let routed = !r.route.is_empty();
    if r.delegate.is_some() {
        exclusive("delegate", &[("route", routed), ("redirect", r.redirect.is_some())]);
    } else if r.redirect.is_some() {
        exclusive(
            "redirect",
            &[
                ("route", routed),
                ("fault", r.fault.is_some()),
                ("rewrite", r.rewrite.is_some()),
                ("directResponse", r.direct_response.is_some()),
            ],
        );
    } else if r.direct_response.is_some() {
        exclusive(
            "directResponse",
            &[("route", routed), ("fault", r.fault.is_some()), ("rewrite", r.rewrite.is_some())],
        );
    } else if !routed {
        found.push(
            Code::MissingValue,
            path,
            "nothing to do",
            "give one of route, redirect, directResponse and delegate",
        );
    }
    if let Some(Delegate { name, namespace }) = &r.delegate {
        let at = format!("{path}.delegate");
        if in_delegate {
            found.invalid(
                &at,
                "in a VirtualService without hosts",
                "delegation goes one level deep",
            );
        }
        if !form::is_label(name) || !(namespace.is_empty() || form::is_label(namespace)) {
            found.invalid(
                &at,
                format!("{namespace:?}, {name:?}"),
                "the name of a VirtualService without hosts, and its namespace",
            );
        }
    }
}

fn http_match(m: &HttpMatchRequest, path: &str, found: &mut Found<'_>) {
    for (field, s) in [("scheme", &m.scheme), ("method", &m.method), ("authority", &m.authority)] {
        if let Some(s) = s {
            string_match(s, &format!("{path}.{field}"), false, found);
        }
    }
    if let Some(s) = &m.uri {
        string_match(s, &format!("{path}.uri"), true, found);
    }
    for (field, all) in [("headers", &m.headers), ("withoutHeaders", &m.without_headers)] {
        for (name, s) in all {
            let at = format!("{path}.{field}.{name}");
            let pseudo = [":method", ":scheme", ":authority", ":path", ":status"];
            let known = pseudo.contains(&name.as_str())
                || name.to_lowercase().starts_with("@request.auth.claims");
            if !known && !form::is_token(name) {
                found.invalid(&at, format!("{name:?}"), "no header has such a name");
            }
            // As presence.
            if s.regex.as_deref() != Some("*") {
                string_match(s, &at, false, found);
            }
        }
    }
    for (name, s) in &m.query_params {
        if s.regex.as_deref() != Some("*") {
            string_match(s, &format!("{path}.queryParams.{name}"), false, found);
        }
    }
    source(m.port, &m.source_labels, &m.gateways, &m.source_namespace, path, found);
}

fn string_match(s: &StringMatch, path: &str, empty_prefix: bool, found: &mut Found<'_>) {
    if s.prefix.as_deref() == Some("") && !empty_prefix {
        found.invalid(
            format!("{path}.prefix"),
            "empty",
            "every value begins so: leave it out, or write {} for presence",
        );
    }
    if let Some(r) = &s.regex {
        regex(r, &format!("{path}.regex"), found);
    }
}

fn regex(r: &str, path: &str, found: &mut Found<'_>) {
    if let Some(why) = form::regex_error(r) {
        found.invalid(path, format!("{r:?}: {why}"), "a regular expression in RE2's syntax");
    }
}

fn headers(h: &Headers, path: &str, found: &mut Found<'_>) {
    if let Some(o) = &h.request {
        operations(o, true, &format!("{path}.request"), found);
    }
    if let Some(o) = &h.response {
        operations(o, false, &format!("{path}.response"), found);
    }
}

fn operations(o: &HeaderOperations, request: bool, path: &str, found: &mut Found<'_>) {
    let is_authority = |n: &str| n.eq_ignore_ascii_case("host") || n == ":authority";
    for (field, all) in [("set", &o.set), ("add", &o.add)] {
        for (name, value) in all {
            let at = format!("{path}.{field}.{name}");
            let writable = match is_authority(name) {
                true => request,
                false => form::is_token(name),
            };
            if !writable {
                found.invalid(&at, format!("{name:?}"), "no header that can be written");
            }
            if let Some(why) = form::header_value_error(value) {
                found.invalid(&at, format!("{value:?}"), why);
            } else if value.replace("%%", "").contains('%') {
                found.push(
                    Code::Warning,
                    &at,
                    format!("{value:?}"),
                    "it is sent as it is written: no variable is put in here",
                );
            }
        }
    }
    for (i, name) in o.remove.iter().enumerate() {
        if !form::is_token(name) || is_authority(name) {
            found.invalid(
                format!("{path}.remove[{i}]"),
                format!("{name:?}"),
                "no header that can be removed",
            );
        }
    }
    let authorities = o.set.keys().chain(o.add.keys()).filter(|n| is_authority(n)).count();
    if authorities > 1 {
        found.invalid(
            path,
            "more than one authority",
            "host and :authority are the same: give one",
        );
    }
}

fn percent(p: Option<&Percent>, path: &str, found: &mut Found<'_>) {
    if let Some(p) = p
        && !(0.0..=100.0).contains(&p.value)
    {
        found.invalid(format!("{path}.value"), p.value.to_string(), "from 0 to 100");
    }
}

fn cors(c: &CorsPolicy, path: &str, found: &mut Found<'_>) {
    for (i, s) in c.allow_origins.iter().enumerate() {
        let at = format!("{path}.allowOrigins[{i}]");
        let given = [&s.exact, &s.prefix, &s.regex];
        if given.iter().all(|g| g.as_deref().is_none_or(str::is_empty)) {
            found.invalid(&at, "empty", "give exact, prefix or regex");
        }
        string_match(s, &at, false, found);
    }
    for (i, m) in c.allow_methods.iter().enumerate().filter(|(_, m)| !METHODS.contains(&m.as_str()))
    {
        found.invalid(
            format!("{path}.allowMethods[{i}]"),
            format!("{m:?}"),
            format!("one of {}", METHODS.join(", ")),
        );
    }
    for (field, all) in [("allowHeaders", &c.allow_headers), ("exposeHeaders", &c.expose_headers)] {
        for (i, h) in all.iter().enumerate().filter(|(_, h)| !form::is_token(h)) {
            found.invalid(
                format!("{path}.{field}[{i}]"),
                format!("{h:?}"),
                "a header's name, or *",
            );
        }
    }
    if let Some(Span(d)) = c.max_age
        && d.subsec_nanos() != 0
    {
        found.invalid(format!("{path}.maxAge"), format!("{d:?}"), "in whole seconds");
    }
}

fn fault(f: &HttpFaultInjection, path: &str, found: &mut Found<'_>) {
    if f.delay.is_none() && f.abort.is_none() {
        found.push(Code::MissingValue, path, "empty", "give delay, abort or both");
    }
    let least = |p: Option<&Percent>, path: String, found: &mut Found<'_>| {
        percent(p, &path, found);
        if let Some(p) = p
            && p.value > 0.0
            && p.value < 0.0001
        {
            found.invalid(format!("{path}.value"), p.value.to_string(), "0, or at least 0.0001");
        }
    };
    if let Some(d) = &f.delay {
        span(d.fixed_delay, &format!("{path}.delay.fixedDelay"), found);
        if d.exponential_delay.is_some() {
            found.invalid(
                format!("{path}.delay.exponentialDelay"),
                "set",
                "Istio does not take it: use fixedDelay",
            );
        } else if d.fixed_delay.is_none() {
            found.push(
                Code::MissingValue,
                format!("{path}.delay"),
                "no fixedDelay",
                "say how long",
            );
        }
        least(d.percentage.as_ref(), format!("{path}.delay.percentage"), found);
    }
    if let Some(a) = &f.abort {
        least(a.percentage.as_ref(), format!("{path}.abort.percentage"), found);
        if let Some(status) = a.http_status {
            status_code(status, &format!("{path}.abort.httpStatus"), found);
        }
        if let Some(status) = &a.grpc_status
            && !GRPC_STATUS.contains(&status.as_str())
        {
            found.invalid(
                format!("{path}.abort.grpcStatus"),
                format!("{status:?}"),
                format!("one of {}", GRPC_STATUS.join(", ")),
            );
        }
        if a.http2_error.is_some() {
            found.invalid(
                format!("{path}.abort.http2Error"),
                "set",
                "Istio does not take it: use httpStatus or grpcStatus",
            );
        } else if a.http_status.is_none() && a.grpc_status.is_none() {
            found.push(Code::Warning, format!("{path}.abort"), "no status", "nothing is aborted");
        }
    }
}

fn status_code(status: i32, path: &str, found: &mut Found<'_>) {
    if !(200..=599).contains(&status) {
        found.invalid(path, status.to_string(), "from 200 to 599");
    }
}

fn redirect(x: &HttpRedirect, matches: &[HttpMatchRequest], path: &str, found: &mut Found<'_>) {
    let nothing = x.uri.is_empty()
        && x.prefix_rewrite.is_empty()
        && x.authority.is_empty()
        && x.scheme.is_empty()
        && x.port.is_none()
        && x.derive_port.is_none();
    if nothing {
        found.push(
            Code::MissingValue,
            path,
            "nothing changes",
            "give uri, prefixRewrite, authority, port or scheme",
        );
    }
    if !x.prefix_rewrite.is_empty() {
        let at = format!("{path}.prefixRewrite");
        if !x.uri.is_empty() {
            found.invalid(&at, "together with uri", "they exclude each other");
        }
        let other = |m: &&HttpMatchRequest| m.uri.as_ref().is_some_and(|u| u.prefix.is_none());
        if matches.iter().find(other).is_some() {
            found.invalid(&at, "with a match that is no prefix", "match the uri by prefix");
        }
    }
    if ![0, 301, 302, 303, 307, 308].contains(&x.redirect_code) {
        found.invalid(
            format!("{path}.redirectCode"),
            x.redirect_code.to_string(),
            "301, 302, 303, 307 or 308",
        );
    }
    if !["", "http", "https"].contains(&x.scheme.as_str()) {
        found.invalid(format!("{path}.scheme"), format!("{:?}", x.scheme), "http or https");
    }
    port_number(x.port.unwrap_or(0), true, &format!("{path}.port"), found);
}

fn direct_response(d: &HttpDirectResponse, path: &str, found: &mut Found<'_>) {
    status_code(i32::try_from(d.status).unwrap_or(-1), &format!("{path}.status"), found);
    let body = d.body.as_ref().and_then(|b| b.string.as_ref()).map_or(0, String::len);
    if body > LARGEST_BODY {
        found.invalid(format!("{path}.body"), format!("{body} bytes"), "1 MiB at most");
    }
}

fn retries(r: &HttpRetry, path: &str, found: &mut Found<'_>) {
    if r.attempts < 0 {
        found.invalid(format!("{path}.attempts"), r.attempts.to_string(), "0 or more");
    }
    let more = r.per_try_timeout.is_some()
        || !r.retry_on.is_empty()
        || r.retry_remote_localities.is_some();
    if r.attempts == 0 && more {
        found.invalid(
            format!("{path}.attempts"),
            "0 beside other settings",
            "0 turns retries off: give a number",
        );
    }
    span(r.per_try_timeout, &format!("{path}.perTryTimeout"), found);
    span(r.backoff, &format!("{path}.backoff"), found);
    for word in r.retry_on.split(',').filter(|_| !r.retry_on.is_empty()) {
        let status = word.parse::<u16>().is_ok_and(|s| (100..600).contains(&s));
        if !status && !RETRY_ON.contains(&word) {
            found.invalid(
                format!("{path}.retryOn"),
                format!("{word:?}"),
                format!(
                    "status codes, and {}, with commas and without blanks",
                    RETRY_ON.join(", ")
                ),
            );
        } else if NEVER_MET.contains(&word) {
            found.push(
                Code::Warning,
                format!("{path}.retryOn"),
                format!("{word:?}"),
                "no answer meets it here: name statuses, or 5xx",
            );
        }
    }
}

fn rewrite(x: &HttpRewrite, h: Option<&Headers>, path: &str, found: &mut Found<'_>) {
    if x.uri.is_empty() && x.authority.is_empty() && x.uri_regex_rewrite.is_none() {
        found.push(
            Code::MissingValue,
            path,
            "nothing changes",
            "give uri, uriRegexRewrite or authority",
        );
    }
    if let Some(r) = &x.uri_regex_rewrite {
        let at = format!("{path}.uriRegexRewrite");
        if !x.uri.is_empty() {
            found.invalid(&at, "together with uri", "they exclude each other");
        }
        regex(&r.r#match, &format!("{at}.match"), found);
        if r.rewrite.is_empty() {
            found.push(
                Code::MissingValue,
                format!("{at}.rewrite"),
                "empty",
                "say what takes its place",
            );
        }
    }
    let is_authority = |n: &String| n.eq_ignore_ascii_case("host") || n == ":authority";
    let set = h.and_then(|h| h.request.as_ref());
    let twice = set.is_some_and(|o| o.set.keys().chain(o.add.keys()).any(is_authority));
    if !x.authority.is_empty() && twice {
        found.invalid(
            format!("{path}.authority"),
            "together with headers.request",
            "both say the authority: give one",
        );
    }
}
