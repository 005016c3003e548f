//! What Istio would refuse of a VirtualService, and more of what cannot be meant.

mod http;

use crate::{
    diagnostic::Code,
    form,
    istio::virtual_service::{
        Destination, HttpMatchRequest, RouteDestination, TcpRoute, TlsRoute, VirtualService,
    },
    kubernetes::Labels,
    parse::Found,
    schema::Span,
};
pub use http::GRPC_STATUS;
use http::http;
use std::{
    collections::{BTreeMap, HashSet},
    hash::Hash,
    time::Duration,
};

pub(crate) fn virtual_service(v: &VirtualService, found: &mut Found<'_>) {
    let delegate = v.hosts.is_empty();
    let for_mesh = v.gateways.is_empty() || v.gateways.iter().any(|g| g == "mesh");
    if delegate {
        for (field, given) in [
            ("gateways", !v.gateways.is_empty()),
            ("tls", !v.tls.is_empty()),
            ("tcp", !v.tcp.is_empty()),
        ] {
            if given {
                found.invalid(
                    format!("spec.{field}"),
                    "without hosts",
                    "one that others delegate to has http alone",
                );
            }
        }
    }
    hosts(&v.hosts, for_mesh, found);
    gateways(&v.gateways, "spec.gateways", found);
    export_to(&v.export_to, "spec.exportTo", found);
    if v.http.is_empty() && v.tls.is_empty() && v.tcp.is_empty() {
        found.push(Code::MissingValue, "spec", "no rule", "give at least one of http, tls and tcp");
    }
    for (i, r) in v.http.iter().enumerate() {
        http(r, &format!("spec.http[{i}]"), delegate, found);
    }
    for (i, r) in v.tls.iter().enumerate() {
        tls(r, &format!("spec.tls[{i}]"), &v.hosts, found);
    }
    for (i, r) in v.tcp.iter().enumerate() {
        tcp(r, &format!("spec.tcp[{i}]"), found);
    }
    unreachable("spec.http", v.http.iter().map(|r| &*r.r#match), asked_for, found);
    unreachable("spec.tls", v.tls.iter().map(|r| &*r.r#match), |m| m, found);
    unreachable("spec.tcp", v.tcp.iter().map(|r| &*r.r#match), |m| m, found);
}

/// All that a match asks of a request: what it is called is beside the point.
fn asked_for(m: &HttpMatchRequest) -> impl Hash + Eq {
    let HttpMatchRequest {
        name: _,
        stat_prefix: _,
        uri,
        scheme,
        method,
        authority,
        headers,
        port,
        source_labels,
        gateways,
        query_params,
        ignore_uri_case,
        without_headers,
        source_namespace,
    } = m;
    let source = (source_labels, source_namespace, gateways, port);
    (
        uri,
        ignore_uri_case,
        scheme,
        method,
        authority,
        headers,
        without_headers,
        query_params,
        source,
    )
}

fn hosts(hosts: &[String], for_mesh: bool, found: &mut Found<'_>) {
    for (i, h) in hosts.iter().enumerate() {
        let path = format!("spec.hosts[{i}]");
        if !form::is_wildcard_host(h) && !form::is_ip(h) {
            found.invalid(
                path,
                format!("{h:?}"),
                "a host, a wildcard such as *.example.com, or an address",
            );
        } else if h == "*" && for_mesh {
            found.invalid(path, "\"*\"", "within the mesh every host would be meant: name hosts, or bind it to a gateway alone");
        } else if let Some(other) = hosts.iter().take(i).find(|o| form::overlap(o, h)) {
            found.invalid(path, format!("{h:?}"), format!("{other:?} means it already"));
        }
    }
}

fn gateways(all: &[String], path: &str, found: &mut Found<'_>) {
    for (i, g) in all.iter().enumerate() {
        let good = match g.split_once('/') {
            Some((namespace, name)) => form::is_label(namespace) && form::is_label(name),
            None => form::is_host(g),
        };
        if !good {
            found.invalid(format!("{path}[{i}]"), format!("{g:?}"), "<namespace>/<name>, or mesh");
        } else if g.contains('.') {
            found.push(
                Code::Warning,
                format!("{path}[{i}]"),
                format!("{g:?}"),
                "the old form: write <namespace>/<name>",
            );
        }
    }
}

pub(crate) fn export_to(all: &[String], path: &str, found: &mut Found<'_>) {
    for (i, e) in all.iter().enumerate() {
        let at = format!("{path}[{i}]");
        if e != "." && e != "*" && !form::is_label(e) {
            found.invalid(at, format!("{e:?}"), "a namespace, . for this one, or * for all");
        } else if e == "*" && all.len() > 1 {
            found.invalid(at, "* beside others", "* means all namespaces: it stands alone");
        } else if all.iter().take(i).any(|o| o == e) {
            found.invalid(at, format!("{e:?} twice"), "once is enough");
        }
    }
}

/// What matches of every protocol have.
fn source(
    port: u32,
    labels: &Labels,
    of_gateways: &[String],
    namespace: &str,
    path: &str,
    found: &mut Found<'_>,
) {
    port_number(port, true, &format!("{path}.port"), found);
    label_map(labels, &format!("{path}.sourceLabels"), found);
    gateways(of_gateways, &format!("{path}.gateways"), found);
    if !namespace.is_empty() && !form::is_label(namespace) {
        found.invalid(format!("{path}.sourceNamespace"), format!("{namespace:?}"), "a namespace");
    }
}

pub(crate) fn port_number(port: u32, may_be_zero: bool, path: &str, found: &mut Found<'_>) {
    if port > u32::from(u16::MAX) || port == 0 && !may_be_zero {
        found.invalid(path, port.to_string(), "a port is a number from 1 to 65535");
    }
}

pub(crate) fn label_map(labels: &BTreeMap<String, String>, path: &str, found: &mut Found<'_>) {
    for (key, value) in labels {
        if !form::is_label_key(key) || !form::is_label_value(value) {
            found.invalid(format!("{path}.{key}"), format!("{value:?}"), "no label can be so");
        }
    }
}

/// A length of time: a millisecond at least, and whole ones.
pub(crate) fn span(s: Option<Span>, path: &str, found: &mut Found<'_>) {
    if let Some(Span(d)) = s
        && (d < Duration::from_millis(1) || d.subsec_nanos() % 1_000_000 != 0)
    {
        found.invalid(
            path,
            format!("{d:?}"),
            "at least 1ms, in whole milliseconds; leave it out for none",
        );
    }
}

fn destination(d: Option<&Destination>, path: &str, found: &mut Found<'_>) {
    let Some(d) = d else {
        found.push(Code::MissingValue, path, "none", "say where to");
        return;
    };
    if d.host.is_empty() || d.host == "*" || !form::is_wildcard_host(&d.host) {
        found.invalid(format!("{path}.host"), format!("{:?}", d.host), "a service's host");
    }
    if !d.subset.is_empty() && !form::is_label(&d.subset) {
        found.invalid(
            format!("{path}.subset"),
            format!("{:?}", d.subset),
            "the name of a DestinationRule's subset",
        );
    }
    if let Some(p) = &d.port {
        port_number(p.number, false, &format!("{path}.port.number"), found);
    }
}

fn weights(all: &[i32], path: &str, found: &mut Found<'_>) {
    for (i, w) in all.iter().enumerate().filter(|(_, w)| **w < 0) {
        found.invalid(format!("{path}[{i}].weight"), w.to_string(), "0 or more");
    }
    let sum: i64 = all.iter().map(|w| i64::from(*w)).sum();
    if all.len() > 1 && sum == 0 {
        found.invalid(
            path,
            "weights that sum to 0",
            "nothing would go anywhere: give at least one a weight",
        );
    }
}

fn tls(r: &TlsRoute, path: &str, hosts: &[String], found: &mut Found<'_>) {
    if r.r#match.is_empty() {
        found.push(
            Code::MissingValue,
            format!("{path}.match"),
            "none",
            "match at least one of sniHosts",
        );
    }
    for (i, m) in r.r#match.iter().enumerate() {
        let at = format!("{path}.match[{i}]");
        if m.sni_hosts.is_empty() {
            found.push(Code::MissingValue, format!("{at}.sniHosts"), "none", "name at least one");
        }
        for (j, h) in m.sni_hosts.iter().enumerate() {
            let at = format!("{at}.sniHosts[{j}]");
            if !form::is_wildcard_host(h) && !form::is_ip(h) {
                found.invalid(at, format!("{h:?}"), "a host, or a wildcard");
            } else if !hosts.iter().any(|o| covers(o, h)) {
                found.invalid(at, format!("{h:?}"), "none of spec.hosts covers it");
            }
        }
        subnets(&m.destination_subnets, &format!("{at}.destinationSubnets"), found);
        source(m.port, &m.source_labels, &m.gateways, &m.source_namespace, &at, found);
    }
    routes(&r.route, path, found);
}

/// Whether every host that `inner` means is one of `outer`.
fn covers(outer: &str, inner: &str) -> bool {
    match outer.strip_prefix('*') {
        Some(tail) => {
            inner.trim_start_matches('*').to_ascii_lowercase().ends_with(&tail.to_ascii_lowercase())
        }
        None => outer.eq_ignore_ascii_case(inner),
    }
}

fn tcp(r: &TcpRoute, path: &str, found: &mut Found<'_>) {
    for (i, m) in r.r#match.iter().enumerate() {
        let at = format!("{path}.match[{i}]");
        subnets(&m.destination_subnets, &format!("{at}.destinationSubnets"), found);
        source(m.port, &m.source_labels, &m.gateways, &m.source_namespace, &at, found);
    }
    routes(&r.route, path, found);
}

fn subnets(all: &[String], path: &str, found: &mut Found<'_>) {
    for (i, s) in all.iter().enumerate() {
        if s.parse::<ipnet::IpNet>().is_err() && !form::is_ip(s) {
            found.invalid(format!("{path}[{i}]"), format!("{s:?}"), "an address or a block");
        }
    }
}

fn routes(all: &[RouteDestination], path: &str, found: &mut Found<'_>) {
    if all.is_empty() {
        found.push(Code::MissingValue, format!("{path}.route"), "none", "say where to");
    }
    for (i, d) in all.iter().enumerate() {
        destination(d.destination.as_ref(), &format!("{path}.route[{i}].destination"), found);
    }
    let of_each: Vec<i32> = all.iter().map(|d| d.weight).collect();
    weights(&of_each, &format!("{path}.route"), found);
}

/// Rules that nothing reaches: after one that matches everything, or with what was matched before.
fn unreachable<'a, M: 'a, K: Hash + Eq>(
    path: &str,
    rules: impl Iterator<Item = &'a [M]>,
    asked_for: impl Fn(&'a M) -> K,
    found: &mut Found<'_>,
) {
    // Of thousands each is compared with none.
    let mut seen = HashSet::new();
    let mut all_taken = None;
    for (i, matches) in rules.enumerate() {
        if let Some(by) = all_taken {
            found.push(
                Code::Warning,
                format!("{path}[{i}]"),
                "never reached",
                format!("{path}[{by}] matches everything: put it last"),
            );
        }
        if matches.is_empty() {
            all_taken.get_or_insert(i);
        }
        for (j, m) in matches.iter().enumerate() {
            if !seen.insert(asked_for(m)) {
                found.push(
                    Code::Warning,
                    format!("{path}[{i}].match[{j}]"),
                    "never met",
                    "an earlier match is the same",
                );
            }
        }
    }
}
