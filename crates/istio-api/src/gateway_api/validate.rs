//! What Gateway API's own rules would refuse of a route or a Gateway, and what is not served.

use crate::{
    diagnostic::Code,
    form,
    gateway_api::{
        gateway::{GatewaySpec, Listener, TlsModeType},
        grpc_route::{GrpcMethodMatchType, GrpcRouteFilterType, GrpcRouteSpec},
        http_route::{
            HeaderMatchType, HttpHeader, HttpHeaderFilter, HttpPathMatch, HttpPathModifier,
            HttpPathModifierType, HttpRequestMirrorFilter, HttpRouteFilter, HttpRouteFilterType,
            HttpRouteRule, HttpRouteSpec, ParentReference, PathMatchType, QueryParamMatchType,
        },
    },
    parse::Found,
    schema::Span,
};
use std::collections::BTreeSet;

const STATUSES: [i32; 5] = [301, 302, 303, 307, 308];

pub(crate) fn http_route(r: &HttpRouteSpec, found: &mut Found<'_>) {
    parents(&r.parent_refs, found);
    hostnames(&r.hostnames, found);
    for (i, rule) in r.rules.iter().enumerate() {
        http_rule(rule, &format!("spec.rules[{i}]"), found);
    }
}

pub(crate) fn grpc_route(r: &GrpcRouteSpec, found: &mut Found<'_>) {
    parents(&r.parent_refs, found);
    hostnames(&r.hostnames, found);
    for (i, rule) in r.rules.iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        for (j, m) in rule.matches.iter().enumerate() {
            let path = format!("{path}.matches[{j}]");
            if let Some(method) = &m.method {
                let regular = method.r#type == Some(GrpcMethodMatchType::RegularExpression);
                for (field, value) in [("service", &method.service), ("method", &method.method)] {
                    let at = format!("{path}.method.{field}");
                    if regular {
                        regex_or_empty(value, &at, found);
                    } else if value.contains('/') {
                        found.invalid(at, format!("{value:?}"), "a name without slashes");
                    }
                }
                if method.service.is_empty() && method.method.is_empty() {
                    let at = format!("{path}.method");
                    found.push(Code::MissingValue, at, "empty", "give service or method");
                }
            }
            for (k, h) in m.headers.iter().enumerate() {
                header_name(&h.name, &format!("{path}.headers[{k}].name"), found);
            }
        }
        for (j, f) in rule.filters.iter().enumerate() {
            let at = format!("{path}.filters[{j}]");
            let given = match f.r#type {
                Some(GrpcRouteFilterType::RequestHeaderModifier) => {
                    f.request_header_modifier.is_some()
                }
                Some(GrpcRouteFilterType::ResponseHeaderModifier) => {
                    f.response_header_modifier.is_some()
                }
                Some(GrpcRouteFilterType::RequestMirror) => f.request_mirror.is_some(),
                Some(GrpcRouteFilterType::ExtensionRef) | None => true,
            };
            a_filter(f.r#type.is_some(), given, &at, found);
        }
        for (j, b) in rule.backend_refs.iter().enumerate() {
            let path = format!("{path}.backendRefs[{j}]");
            backend(&b.group, &b.kind, &b.name, b.port, &path, found);
            weight(b.weight, &path, found);
        }
    }
}

fn parents(all: &[ParentReference], found: &mut Found<'_>) {
    if all.is_empty() {
        let remedy = "name the Gateway or the Service that it is for";
        found.push(Code::MissingValue, "spec.parentRefs", "none", remedy);
    }
    for (i, p) in all.iter().enumerate() {
        let path = format!("spec.parentRefs[{i}]");
        if p.name.is_empty() {
            found.push(Code::MissingValue, format!("{path}.name"), "none", "name it");
        }
        if p.port.is_some_and(|p| !is_port(p)) {
            found.invalid(format!("{path}.port"), format!("{:?}", p.port), PORT);
        }
        match (p.group.as_str(), p.kind.as_str()) {
            ("" | "gateway.networking.k8s.io", "" | "Gateway") | ("" | "core", "Service") => {}
            (group, kind) => found.push(
                Code::NotServed,
                format!("{path}.kind"),
                format!("{kind:?} of {group:?}"),
                "routes attach to a Gateway, or to a Service with group \"\"",
            ),
        }
    }
}

fn hostnames(all: &[String], found: &mut Found<'_>) {
    for (i, h) in all.iter().enumerate().filter(|(_, h)| !is_hostname(h)) {
        let remedy = "a whole host, or *. and one; no address";
        found.invalid(format!("spec.hostnames[{i}]"), format!("{h:?}"), remedy);
    }
}

fn is_hostname(h: &str) -> bool {
    form::is_host(h.strip_prefix("*.").unwrap_or(h)) && !form::is_ip(h)
}

const PORT: &str = "a port is a number from 1 to 65535";

fn is_port(p: i32) -> bool {
    (1..=65_535).contains(&p)
}

fn http_rule(rule: &HttpRouteRule, path: &str, found: &mut Found<'_>) {
    let mut prefixes_only = !rule.matches.is_empty();
    for (i, m) in rule.matches.iter().enumerate() {
        let path = format!("{path}.matches[{i}]");
        if let Some(p) = &m.path {
            prefixes_only &=
                p.r#type.unwrap_or(PathMatchType::PathPrefix) == PathMatchType::PathPrefix;
            path_match(p, &format!("{path}.path"), found);
        }
        for (j, h) in m.headers.iter().enumerate() {
            let path = format!("{path}.headers[{j}]");
            header_name(&h.name, &format!("{path}.name"), found);
            if h.r#type == Some(HeaderMatchType::RegularExpression) {
                regex(&h.value, &format!("{path}.value"), found);
            }
        }
        for (j, q) in m.query_params.iter().enumerate() {
            let path = format!("{path}.queryParams[{j}]");
            if q.name.is_empty() {
                found.push(Code::MissingValue, format!("{path}.name"), "none", "name it");
            }
            if q.r#type == Some(QueryParamMatchType::RegularExpression) {
                regex(&q.value, &format!("{path}.value"), found);
            }
        }
    }
    for (i, f) in rule.filters.iter().enumerate() {
        filter(f, prefixes_only || rule.matches.is_empty(), &format!("{path}.filters[{i}]"), found);
    }
    let has = |t| rule.filters.iter().position(|f| f.r#type == Some(t));
    if let Some(at) = has(HttpRouteFilterType::RequestRedirect) {
        if !rule.backend_refs.is_empty() {
            let remedy = "a redirect sends nothing on: leave the backends out";
            found.invalid(format!("{path}.backendRefs"), "beside a RequestRedirect", remedy);
        }
        if has(HttpRouteFilterType::URLRewrite).is_some() {
            let remedy = "RequestRedirect and URLRewrite exclude each other";
            found.invalid(format!("{path}.filters[{at}]"), "beside a URLRewrite", remedy);
        }
    }
    for (i, b) in rule.backend_refs.iter().enumerate() {
        let path = format!("{path}.backendRefs[{i}]");
        backend(&b.group, &b.kind, &b.name, b.port, &path, found);
        weight(b.weight, &path, found);
        for (j, f) in b.filters.iter().enumerate() {
            let at = format!("{path}.filters[{j}]");
            filter(f, false, &at, found);
            let served = [
                HttpRouteFilterType::RequestHeaderModifier,
                HttpRouteFilterType::ResponseHeaderModifier,
            ];
            if f.r#type.is_some_and(|t| !served.contains(&t)) {
                let remedy = "of one backend, headers alone can be changed: filter the whole rule";
                found.push(Code::NotServed, at, format!("{:?}", f.r#type), remedy);
            }
        }
    }
    if let Some(t) = &rule.timeouts {
        let path = format!("{path}.timeouts");
        duration(&t.request, &format!("{path}.request"), found);
        duration(&t.backend_request, &format!("{path}.backendRequest"), found);
        let of = |s: &str| s.parse::<Span>().ok().filter(|s| !s.0.is_zero());
        if let (Some(all), Some(one)) = (of(&t.request), of(&t.backend_request))
            && one > all
        {
            let remedy = "one try cannot take longer than all of them";
            found.invalid(format!("{path}.backendRequest"), "above request", remedy);
        }
    }
    if let Some(r) = &rule.retry {
        let path = format!("{path}.retry");
        duration(&r.backoff, &format!("{path}.backoff"), found);
        for (i, c) in r.codes.iter().enumerate().filter(|(_, c)| !(400..=599).contains(*c)) {
            found.invalid(format!("{path}.codes[{i}]"), c.to_string(), "from 400 to 599");
        }
        if r.attempts.is_some_and(|a| a < 0) {
            found.invalid(format!("{path}.attempts"), format!("{:?}", r.attempts), "0 or more");
        }
    }
}

fn path_match(p: &HttpPathMatch, path: &str, found: &mut Found<'_>) {
    let at = format!("{path}.value");
    if p.r#type == Some(PathMatchType::RegularExpression) {
        return regex(&p.value, &at, found);
    }
    let odd = ["//", "/./", "/../", "%2f", "%2F", "#"];
    let ends = ["/..", "/."];
    if p.value.is_empty() {
        return;
    }
    if !p.value.starts_with('/')
        || odd.iter().any(|o| p.value.contains(o))
        || ends.iter().any(|e| p.value.ends_with(e))
    {
        let remedy = "an absolute path in its normal form: no //, no . or .. as a part, no %2F";
        found.invalid(at, format!("{:?}", p.value), remedy);
    }
}

/// A filter has the settings of its type.
fn a_filter(typed: bool, given: bool, path: &str, found: &mut Found<'_>) {
    if !typed {
        found.push(Code::MissingValue, format!("{path}.type"), "none", "say which filter it is");
    } else if !given {
        let remedy = "the field of the filter's type must be given";
        found.push(Code::MissingValue, path, "without its settings", remedy);
    }
}

fn filter(f: &HttpRouteFilter, prefixes: bool, path: &str, found: &mut Found<'_>) {
    let given = match f.r#type {
        Some(HttpRouteFilterType::RequestHeaderModifier) => f.request_header_modifier.is_some(),
        Some(HttpRouteFilterType::ResponseHeaderModifier) => f.response_header_modifier.is_some(),
        Some(HttpRouteFilterType::RequestMirror) => f.request_mirror.is_some(),
        Some(HttpRouteFilterType::RequestRedirect) => f.request_redirect.is_some(),
        Some(HttpRouteFilterType::URLRewrite) => f.url_rewrite.is_some(),
        Some(HttpRouteFilterType::Cors) => f.cors.is_some(),
        Some(HttpRouteFilterType::ExtensionRef) | None => true,
    };
    a_filter(f.r#type.is_some(), given, path, found);
    for (field, change) in [
        ("requestHeaderModifier", &f.request_header_modifier),
        ("responseHeaderModifier", &f.response_header_modifier),
    ] {
        if let Some(c) = change {
            header_change(c, &format!("{path}.{field}"), found);
        }
    }
    if let Some(m) = &f.request_mirror {
        mirror(m, &format!("{path}.requestMirror"), found);
    }
    if let Some(r) = &f.request_redirect {
        let path = format!("{path}.requestRedirect");
        if !["", "http", "https"].contains(&r.scheme.as_str()) {
            found.invalid(format!("{path}.scheme"), format!("{:?}", r.scheme), "http or https");
        }
        if !r.hostname.is_empty() && !form::is_host(&r.hostname) {
            let at = format!("{path}.hostname");
            found.invalid(at, format!("{:?}", r.hostname), "a whole host");
        }
        if let Some(code) = r.status_code.filter(|c| !STATUSES.contains(c)) {
            let remedy = "301, 302, 303, 307 or 308";
            found.invalid(format!("{path}.statusCode"), code.to_string(), remedy);
        }
        if r.port.is_some_and(|p| !is_port(p)) {
            found.invalid(format!("{path}.port"), format!("{:?}", r.port), PORT);
        }
        path_modifier(r.path.as_ref(), prefixes, &path, found);
    }
    if let Some(r) = &f.url_rewrite {
        let path = format!("{path}.urlRewrite");
        if !r.hostname.is_empty() && !form::is_host(&r.hostname) {
            let at = format!("{path}.hostname");
            found.invalid(at, format!("{:?}", r.hostname), "a whole host");
        }
        path_modifier(r.path.as_ref(), prefixes, &path, found);
    }
}

fn path_modifier(p: Option<&HttpPathModifier>, prefixes: bool, path: &str, found: &mut Found<'_>) {
    let Some(p) = p else { return };
    let at = format!("{path}.path");
    match p.r#type {
        None => found.push(Code::MissingValue, format!("{at}.type"), "none", "say which"),
        Some(HttpPathModifierType::ReplaceFullPath) if !p.replace_full_path.starts_with('/') => {
            let value = format!("{:?}", p.replace_full_path);
            found.invalid(format!("{at}.replaceFullPath"), value, "an absolute path");
        }
        Some(HttpPathModifierType::ReplacePrefixMatch) if !prefixes => {
            let remedy = "a prefix is replaced where every match is a PathPrefix";
            found.invalid(format!("{at}.type"), "ReplacePrefixMatch", remedy);
        }
        Some(_) => {}
    }
}

fn mirror(m: &HttpRequestMirrorFilter, path: &str, found: &mut Found<'_>) {
    match &m.backend_ref {
        None => found.push(Code::MissingValue, format!("{path}.backendRef"), "none", "name it"),
        Some(b) => {
            backend(&b.group, &b.kind, &b.name, b.port, &format!("{path}.backendRef"), found);
        }
    }
    if m.percent.is_some() && m.fraction.is_some() {
        found.invalid(format!("{path}.percent"), "together with fraction", "give one of them");
    }
    if m.percent.is_some_and(|p| !(0..=100).contains(&p)) {
        found.invalid(format!("{path}.percent"), format!("{:?}", m.percent), "from 0 to 100");
    }
    if let Some(f) = &m.fraction {
        let (n, d) = (f.numerator.unwrap_or(0), f.denominator.unwrap_or(100));
        if d < 1 || n < 0 || n > d {
            let remedy = "a share of the whole: from 0 to the denominator";
            found.invalid(format!("{path}.fraction"), format!("{n}/{d}"), remedy);
        }
    }
}

fn header_change(c: &HttpHeaderFilter, path: &str, found: &mut Found<'_>) {
    let each = |field: &str, all: &[HttpHeader], found: &mut Found<'_>| {
        for (i, h) in all.iter().enumerate() {
            header_name(&h.name, &format!("{path}.{field}[{i}].name"), found);
        }
    };
    each("set", &c.set, found);
    each("add", &c.add, found);
    for (i, name) in c.remove.iter().enumerate() {
        header_name(name, &format!("{path}.remove[{i}]"), found);
    }
}

fn header_name(name: &str, at: &str, found: &mut Found<'_>) {
    if !form::is_token(name) {
        found.invalid(at, format!("{name:?}"), "a header's name (RFC 9110, section 5.1)");
    }
}

fn regex(text: &str, at: &str, found: &mut Found<'_>) {
    if let Some(why) = form::regex_error(text) {
        found.invalid(at, format!("{text:?}"), format!("a regular expression: {why}"));
    }
}

fn regex_or_empty(text: &str, at: &str, found: &mut Found<'_>) {
    if !text.is_empty() {
        regex(text, at, found);
    }
}

fn duration(text: &str, at: &str, found: &mut Found<'_>) {
    if !text.is_empty()
        && let Err(why) = text.parse::<Span>()
    {
        found.invalid(at, format!("{text:?}"), why);
    }
}

fn backend(
    group: &str,
    kind: &str,
    name: &str,
    port: Option<i32>,
    path: &str,
    found: &mut Found<'_>,
) {
    if name.is_empty() {
        found.push(Code::MissingValue, format!("{path}.name"), "none", "name it");
    }
    match (group, kind) {
        ("" | "core", "" | "Service") | ("networking.istio.io", "Hostname") => {}
        _ => found.push(
            Code::NotServed,
            format!("{path}.kind"),
            format!("{kind:?} of {group:?}"),
            "requests go to a Service, or to a Hostname of networking.istio.io",
        ),
    }
    match port {
        None => found.push(Code::MissingValue, format!("{path}.port"), "none", "say which port"),
        Some(p) if !is_port(p) => found.invalid(format!("{path}.port"), p.to_string(), PORT),
        Some(_) => {}
    }
}

fn weight(w: Option<i32>, path: &str, found: &mut Found<'_>) {
    if let Some(w) = w.filter(|w| !(0..=1_000_000).contains(w)) {
        found.invalid(format!("{path}.weight"), w.to_string(), "from 0 to 1000000");
    }
}

/// Of a Gateway that is no waypoint.
pub(crate) fn kubernetes_gateway(g: &GatewaySpec, found: &mut Found<'_>) {
    if g.listeners.is_empty() {
        found.push(Code::MissingValue, "spec.listeners", "none", "give at least one");
    }
    let mut names = BTreeSet::new();
    for (i, l) in g.listeners.iter().enumerate() {
        let path = format!("spec.listeners[{i}]");
        if !names.insert(&l.name) {
            let found_name = format!("{:?} twice", l.name);
            found.invalid(format!("{path}.name"), found_name, "each listener has its own name");
        }
        if !l.port.is_some_and(is_port) {
            found.invalid(format!("{path}.port"), format!("{:?}", l.port), PORT);
        }
        if !l.hostname.is_empty() && !is_hostname(&l.hostname) {
            let remedy = "a whole host, or *. and one; no address";
            found.invalid(format!("{path}.hostname"), format!("{:?}", l.hostname), remedy);
        }
        listener(l, &path, found);
    }
}

fn listener(l: &Listener, path: &str, found: &mut Found<'_>) {
    match (l.protocol.as_str(), &l.tls) {
        ("HTTP", None) => {}
        ("HTTP", Some(_)) => {
            let remedy = "leave it out, or use HTTPS";
            found.invalid(format!("{path}.tls"), "with plain HTTP", remedy);
        }
        ("HTTPS", None) => {
            let remedy = "HTTPS needs it: name the Secret with the certificate in certificateRefs";
            found.push(Code::MissingValue, format!("{path}.tls"), "none", remedy);
        }
        ("HTTPS", Some(t)) => {
            if t.mode == Some(TlsModeType::Passthrough) {
                let remedy = "HTTPS ends TLS: use Terminate";
                found.invalid(format!("{path}.tls.mode"), "Passthrough", remedy);
            }
            if t.certificate_refs.is_empty() {
                let at = format!("{path}.tls.certificateRefs");
                found.push(Code::MissingValue, at, "none", "name the Secret with the certificate");
            }
            for (i, r) in t.certificate_refs.iter().enumerate() {
                if !matches!((r.group.as_str(), r.kind.as_str()), ("" | "core", "" | "Secret")) {
                    let at = format!("{path}.tls.certificateRefs[{i}].kind");
                    let what = format!("{:?} of {:?}", r.kind, r.group);
                    found.push(Code::NotServed, at, what, "certificates come from Secrets");
                }
            }
        }
        (other, _) => found.push(
            Code::NotServed,
            format!("{path}.protocol"),
            format!("{other:?}"),
            "a Gateway of this API serves HTTP and HTTPS here",
        ),
    }
}
