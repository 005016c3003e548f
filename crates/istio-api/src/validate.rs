//! What the types alone cannot say: addresses, ports, names, and what is valid Istio but not
//! served here.

use crate::{
    destination_rule::destination_rule,
    diagnostic::Code,
    gateway::gateway,
    gateway_api::{
        gateway::GatewaySpec,
        validate::{grpc_route, http_route, kubernetes_gateway},
    },
    kinds::{Object, Spec},
    kubernetes::{LabelSelector, Labels},
    parse::Found,
    security::{AuthorizationAction, AuthorizationPolicy, PeerAuthentication, Source},
    service_entry::{service_entry, workload_entry},
    telemetry::telemetry,
    virtual_service::virtual_service,
};
use ipnet::IpNet;
use std::net::IpAddr;

pub(crate) fn object(object: &Object, found: &mut Found<'_>) {
    match &object.spec {
        Spec::AuthorizationPolicy(p) => authorization(p, found),
        Spec::PeerAuthentication(p) => peer_authentication(p, found),
        Spec::WorkloadEntry(w) => workload_entry(w, "spec", found),
        Spec::ServiceEntry(s) => service_entry(s, found),
        Spec::Service(s) => {
            same_node(&object.meta.annotations, found);
            for (i, p) in s.spec.ports.iter().enumerate() {
                if p.port == 0 {
                    port(found, &format!("spec.ports[{i}].port"), "0");
                }
            }
        }
        Spec::VirtualService(v) => virtual_service(v, found),
        Spec::DestinationRule(d) => destination_rule(d, &object.key.namespace, found),
        Spec::Gateway(g) => gateway(g, &object.key.name, found),
        Spec::KubernetesGateway(g) => waypoint(g, &object.meta.labels, found),
        Spec::HttpRoute(r) => http_route(r, found),
        Spec::GrpcRoute(r) => grpc_route(r, found),
        Spec::Telemetry(t) => telemetry(t, found),
        Spec::Pod(_) => {
            same_node(&object.meta.annotations, found);
            other_protocols(&object.meta.annotations, found);
        }
        Spec::Namespace(_) => same_node(&object.meta.annotations, found),
        // Judged where it is read whole.
        Spec::MeshConfig(_)
        | Spec::ReferenceGrant(_)
        | Spec::Secret(_)
        | Spec::EndpointSlice(_)
        | Spec::Node(_)
        | Spec::ServiceAccount(_) => {}
    }
}

/// A waypoint has one listener, of HBONE.
fn waypoint(g: &GatewaySpec, labels: &Labels, found: &mut Found<'_>) {
    if !matches!(g.gateway_class_name.as_str(), "istio-waypoint" | "culvert-waypoint") {
        return kubernetes_gateway(g, found);
    }
    match labels.get("istio.io/waypoint-for").map(String::as_str) {
        None | Some("service" | "none") => {}
        Some(kind @ ("workload" | "all")) => found.push(
            Code::Warning,
            "metadata.labels[istio.io/waypoint-for]",
            format!("{kind:?}"),
            "only traffic to services goes through a waypoint here: say service",
        ),
        Some(other) => found.invalid(
            "metadata.labels[istio.io/waypoint-for]",
            format!("{other:?}"),
            "service, workload, all or none",
        ),
    }
    if g.listeners.is_empty() {
        found.push(
            Code::MissingValue,
            "spec.listeners",
            "none",
            "a waypoint has one: name mesh, port 15008, protocol HBONE",
        );
    }
    for (i, l) in g.listeners.iter().enumerate() {
        if l.protocol != "HBONE" || l.port != Some(15008) {
            found.invalid(
                format!("spec.listeners[{i}]"),
                format!("protocol {:?}, port {}", l.protocol, l.port.unwrap_or(0)),
                "a waypoint takes HBONE on port 15008",
            );
        }
    }
}

/// How connections between pods of one node travel: an annotation of a pod, of a Service that selects it, or of its
/// namespace.
pub const SAME_NODE: &str = "culvert.io/same-node";

fn same_node(annotations: &Labels, found: &mut Found<'_>) {
    let words = "direct (past the agent) or hbone (encrypted within the node, too); anything else is \
                 read as hbone";
    one_of(annotations, SAME_NODE, &["direct", "hbone"], words, found);
}

/// What an annotation may say; something else is read as `words` tell.
fn one_of(annotations: &Labels, name: &str, may: &[&str], words: &str, found: &mut Found<'_>) {
    if let Some(value) = annotations.get(name).filter(|v| !may.contains(&v.as_str())) {
        let path = format!("metadata.annotations[{name}]");
        found.push(Code::Warning, path, format!("{value:?}"), words);
    }
}

/// Whether protocols other than TCP, UDP and ICMP leave a pod: an annotation of the pod.
pub const OTHER_PROTOCOLS: &str = "culvert.io/other-protocols";

fn other_protocols(annotations: &Labels, found: &mut Found<'_>) {
    let words = "allow, or deny as where nothing is said; anything else is read as deny";
    one_of(annotations, OTHER_PROTOCOLS, &["allow", "deny"], words, found);
}

pub(crate) fn port(found: &mut Found<'_>, path: &str, value: &str) {
    found.push(
        Code::InvalidValue,
        path,
        format!("{value:?}"),
        "a port is a number from 1 to 65535",
    );
}

fn is_port(s: &str) -> bool {
    s.parse::<u16>().is_ok_and(|p| p != 0) && s.bytes().all(|b| b.is_ascii_digit())
}

pub(crate) fn is_block(s: &str) -> bool {
    s.parse::<IpNet>().is_ok() || s.parse::<IpAddr>().is_ok()
}

fn authorization(p: &AuthorizationPolicy, found: &mut Found<'_>) {
    match p.action {
        AuthorizationAction::Custom => found.push(
            Code::NotServed,
            "spec.action",
            "CUSTOM",
            "no external authorization is asked here; the policy is refused rather than ignored",
        ),
        AuthorizationAction::Audit => found.push(
            Code::Warning,
            "spec.action",
            "AUDIT",
            "it decides nothing; what it would log is not logged at L4",
        ),
        AuthorizationAction::Deny if p.rules.is_empty() => found.push(
            Code::Idle,
            "spec.rules",
            "DENY without rules",
            "nothing would ever be denied: use rules: [{}] for everything",
        ),
        AuthorizationAction::Allow | AuthorizationAction::Deny => {}
    }
    targets(p, found);
    selector(p.selector.as_ref(), found);
    if p.provider.is_some() && p.action != AuthorizationAction::Custom {
        found.push(Code::InvalidValue, "spec.provider", "set", "it goes with action CUSTOM only");
    }
    for (i, rule) in p.rules.iter().enumerate() {
        for (j, from) in rule.from.iter().enumerate() {
            source(&from.source, &format!("spec.rules[{i}].from[{j}].source"), found);
        }
        for (j, to) in rule.to.iter().enumerate() {
            let path = format!("spec.rules[{i}].to[{j}].operation");
            let o = &to.operation;
            for (field, list) in [("ports", &o.ports), ("notPorts", &o.not_ports)] {
                for (k, value) in list.iter().enumerate().filter(|(_, v)| !is_port(v)) {
                    port(found, &format!("{path}.{field}[{k}]"), value);
                }
            }
            if o.has_l7() && !p.has_targets() {
                l7(p.action, &path, found);
            }
            let lists = [
                ("hosts", &o.hosts),
                ("notHosts", &o.not_hosts),
                ("methods", &o.methods),
                ("notMethods", &o.not_methods),
            ];
            no_empty(&lists, &path, found);
            for (field, list) in [("paths", &o.paths), ("notPaths", &o.not_paths)] {
                for (k, value) in list.iter().enumerate() {
                    path_pattern(value, &format!("{path}.{field}[{k}]"), found);
                }
            }
            if *o == Default::default() {
                found.push(Code::InvalidValue, path, "empty", "name at least one attribute");
            }
        }
        for (j, when) in rule.when.iter().enumerate() {
            let path = format!("spec.rules[{i}].when[{j}]");
            condition(when, p.action, p.has_targets(), &path, found);
        }
    }
}

/// Items that say nothing match nothing that anybody means.
fn no_empty(lists: &[(&str, &Vec<String>)], path: &str, found: &mut Found<'_>) {
    for (field, list) in lists {
        for (k, _) in list.iter().enumerate().filter(|(_, v)| v.is_empty()) {
            found.invalid(
                format!("{path}.{field}[{k}]"),
                "\"\"",
                "a value: an empty one matches nothing",
            );
        }
    }
}

/// Labels are compared whole.
fn selector(selector: Option<&LabelSelector>, found: &mut Found<'_>) {
    for (key, value) in selector.iter().flat_map(|s| &s.match_labels) {
        if key.is_empty() || key.contains('*') || value.contains('*') {
            found.push(
                Code::Idle,
                "spec.selector.matchLabels",
                format!("{key:?}: {value:?}"),
                "a label and its value as they are: there are no wildcards here",
            );
        }
    }
}

/// What a policy may bind by name, and that nothing else binds it as well.
fn targets(p: &AuthorizationPolicy, found: &mut Found<'_>) {
    let all = [("spec.targetRef".to_owned(), p.target_ref.as_ref())];
    let many = p.target_refs.iter().enumerate();
    let many = many.map(|(i, t)| (format!("spec.targetRefs[{i}]"), Some(t)));
    for (path, t) in all.into_iter().chain(many) {
        let Some(t) = t else { continue };
        let known = matches!(
            (t.group.as_str(), t.kind.as_str()),
            ("" | "core", "Service")
                | ("networking.istio.io", "ServiceEntry")
                | ("gateway.networking.k8s.io", "Gateway" | "GatewayClass")
        );
        if !known {
            found.invalid(
                format!("{path}.kind"),
                format!("{:?} of {:?}", t.kind, t.group),
                "a Service, a ServiceEntry of networking.istio.io, or a Gateway or GatewayClass of \
                 gateway.networking.k8s.io",
            );
        }
        if t.name.is_empty() {
            found.push(Code::MissingValue, format!("{path}.name"), "no name", "name the object");
        }
        if !t.namespace.is_empty() {
            found.invalid(
                format!("{path}.namespace"),
                format!("{:?}", t.namespace),
                "a policy binds objects of its own namespace: leave it out",
            );
        }
    }
    if p.has_targets() && p.selector.is_some() {
        found.invalid("spec.selector", "together with targetRefs", "give one of them");
    }
    if p.target_ref.is_some() && !p.target_refs.is_empty() {
        found.invalid("spec.targetRef", "together with targetRefs", "use targetRefs for all");
    }
}

/// `{*}` for one segment and `{**}` at the end, or `*` at one end: not both.
fn path_pattern(value: &str, path: &str, found: &mut Found<'_>) {
    let template = value.contains(['{', '}']);
    let fine = if template {
        let rest = value.strip_suffix("{**}").unwrap_or(value).replace("{*}", "");
        !rest.contains(['{', '}', '*'])
            && value.split('/').all(|s| !s.contains('{') || s == "{*}" || s == "{**}")
    } else {
        !value.is_empty() && pattern(value)
    };
    if !fine {
        found.invalid(
            path,
            format!("{value:?}"),
            "a path, \"prefix*\", \"*suffix\", or segments with {*} for one and {**} as the last",
        );
    }
}

fn source(s: &Source, path: &str, found: &mut Found<'_>) {
    if *s == Source::default() {
        found.push(Code::InvalidValue, path, "empty", "name at least one attribute");
    }
    for (field, list) in [
        ("ipBlocks", &s.ip_blocks),
        ("notIpBlocks", &s.not_ip_blocks),
        ("remoteIpBlocks", &s.remote_ip_blocks),
        ("notRemoteIpBlocks", &s.not_remote_ip_blocks),
    ] {
        for (k, value) in list.iter().enumerate().filter(|(_, v)| !is_block(v)) {
            found.push(
                Code::InvalidValue,
                format!("{path}.{field}[{k}]"),
                format!("{value:?}"),
                "an address or a block, such as 10.0.0.1 or 10.0.0.0/8",
            );
        }
    }
    let lists = [
        ("requestPrincipals", &s.request_principals),
        ("notRequestPrincipals", &s.not_request_principals),
    ];
    no_empty(&lists, path, found);
    let domains = [
        ("trustDomains", &s.trust_domains, &s.principals),
        ("notTrustDomains", &s.not_trust_domains, &Vec::new()),
    ];
    for (field, list, principals) in domains {
        for (k, value) in list.iter().enumerate() {
            trust_domain(value, &format!("{path}.{field}[{k}]"), found);
        }
        if !list.is_empty() && !principals.is_empty() {
            found.push(
                Code::NotServed,
                format!("{path}.{field}"),
                "together with principals",
                "begin the principals with their trust domain",
            );
        }
    }
    let accounts =
        [("serviceAccounts", &s.service_accounts), ("notServiceAccounts", &s.not_service_accounts)];
    for (field, list) in accounts {
        for (k, value) in list.iter().enumerate() {
            let parts = value.split('/').count();
            if value.is_empty() || parts > 2 || value.contains('*') {
                found.push(
                    Code::InvalidValue,
                    format!("{path}.{field}[{k}]"),
                    format!("{value:?}"),
                    "<service account> or <namespace>/<service account>, without wildcards",
                );
            }
        }
        let both = !s.principals.is_empty() || !s.namespaces.is_empty();
        if both && !list.is_empty() {
            found.push(
                Code::InvalidValue,
                format!("{path}.{field}"),
                "together with principals or namespaces",
                "use either: a service account says both",
            );
        }
    }
    let patterns = [
        ("principals", &s.principals),
        ("notPrincipals", &s.not_principals),
        ("namespaces", &s.namespaces),
        ("notNamespaces", &s.not_namespaces),
    ];
    for (field, list) in patterns {
        for (k, value) in list.iter().enumerate() {
            if value.starts_with("spiffe://") {
                found.push(
                    Code::InvalidValue,
                    format!("{path}.{field}[{k}]"),
                    format!("{value:?}"),
                    "leave out spiffe://: principals are written <trust domain>/ns/<ns>/sa/<sa>",
                );
            } else if value.is_empty() || !pattern(value) {
                found.push(
                    Code::InvalidValue,
                    format!("{path}.{field}[{k}]"),
                    format!("{value:?}"),
                    "a value, \"*\", \"prefix*\" or \"*suffix\"",
                );
            }
        }
    }
}

/// At most one asterisk, at one end.
fn pattern(s: &str) -> bool {
    match s.matches('*').count() {
        0 => true,
        1 => s.starts_with('*') || s.ends_with('*'),
        _ => false,
    }
}

fn l7(action: AuthorizationAction, path: &str, found: &mut Found<'_>) {
    let meaning = match action {
        AuthorizationAction::Deny => {
            "without a waypoint it cannot be seen, so the rule denies whatever its other parts match"
        }
        _ => "without a waypoint it cannot be seen, so the rule allows nothing",
    };
    found.push(Code::Warning, path, "an attribute of HTTP", meaning);
}

/// Keys of `when` that say something about a connection.
const L4_KEYS: [&str; 7] = [
    "source.trustDomain",
    "source.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "destination.ip",
    "destination.port",
];

fn trust_domain(value: &str, path: &str, found: &mut Found<'_>) {
    let name = value.strip_suffix('*').unwrap_or(value);
    if value.is_empty() || value.contains('/') || value.matches('*').count() > 1 {
        found.push(
            Code::InvalidValue,
            path,
            format!("{value:?}"),
            "a trust domain, or its beginning and *",
        );
    } else if name.contains('*') {
        found.push(
            Code::NotServed,
            path,
            format!("{value:?}"),
            "trust domains are matched whole or by their beginning: name each",
        );
    }
}

fn condition(
    c: &crate::security::Condition,
    action: AuthorizationAction,
    at_waypoint: bool,
    path: &str,
    found: &mut Found<'_>,
) {
    if c.values.is_empty() && c.not_values.is_empty() {
        found.push(Code::MissingValue, path, "neither values nor notValues", "give at least one");
    }
    let of_header = c.key.strip_prefix("request.headers[").and_then(|k| k.strip_suffix(']'));
    let of_request = of_header.is_some_and(|name| !name.is_empty())
        || c.key.strip_prefix("request.auth.").is_some_and(|of| !of.is_empty())
        || matches!(c.key.as_str(), "connection.sni" | "remote.ip");
    if c.key == "remote.ip" {
        for value in c.values.iter().chain(&c.not_values).filter(|v| !is_block(v)) {
            found.push(
                Code::InvalidValue,
                format!("{path}.values"),
                format!("{value:?}"),
                "not a value that remote.ip can have",
            );
        }
    }
    if of_request {
        let why = match c.key.as_str() {
            "connection.sni" => {
                Some("within the mesh no connection has one, only at gateways that end TLS")
            }
            key if key.starts_with("request.auth.") => Some("no token is read here"),
            _ => None,
        };
        if let Some(why) = why.filter(|_| at_waypoint) {
            found.push(
                Code::Warning,
                format!("{path}.key"),
                format!("{:?}", c.key),
                format!("{why}: without it values never match, and notValues always do"),
            );
        } else if !at_waypoint {
            l7(action, path, found);
        }
        return;
    }
    if !L4_KEYS.contains(&c.key.as_str()) {
        found.push(
            Code::InvalidValue,
            format!("{path}.key"),
            format!("{:?}", c.key),
            format!(
                "one of {}, request.headers[<name>], request.auth.*, connection.sni, remote.ip",
                L4_KEYS.join(", ")
            ),
        );
    }
    for value in c.values.iter().chain(&c.not_values) {
        let bad = match c.key.as_str() {
            "source.ip" | "destination.ip" => !is_block(value),
            "destination.port" => !is_port(value),
            "source.trustDomain" => {
                trust_domain(value, &format!("{path}.values"), found);
                false
            }
            _ => false,
        };
        if bad {
            found.push(
                Code::InvalidValue,
                format!("{path}.values"),
                format!("{value:?}"),
                format!("not a value that {} can have", c.key),
            );
        }
    }
}

fn peer_authentication(p: &PeerAuthentication, found: &mut Found<'_>) {
    selector(p.selector.as_ref(), found);
    for name in p.port_level_mtls.keys().filter(|n| !is_port(n)) {
        port(found, "spec.portLevelMtls", name);
    }
    if !p.port_level_mtls.is_empty() && p.selector.is_none() {
        found.push(
            Code::InvalidValue,
            "spec.portLevelMtls",
            "without a selector",
            "ports differ by workload: add spec.selector.matchLabels",
        );
    }
}
