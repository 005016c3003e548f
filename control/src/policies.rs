//! AuthorizationPolicy and PeerAuthentication, as an agent reads them.

mod requests;

use crate::snapshot::Snapshot;
use ipnet::IpNet;
use istio_api::{
    AuthorizationAction, AuthorizationPolicy, Condition, Labels, MeshConfig, MutualTlsMode, Object,
    ObjectKey, Operation, PeerAuthentication, Source, Spec,
};
use routes::proto::{HttpPolicy, PolicyAction};
use std::net::IpAddr;
use xds::proto::security::{
    Action, Address, Authorization, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch,
    string_match::MatchType,
};

/// Named by every workload that is under STRICT, in the root namespace.
pub const STATIC_STRICT: &str = "istio_converted_static_strict";

/// The L4 part of a policy. What only HTTP can know makes a DENY rule wider and an ALLOW rule
/// match nothing: never the other way.
pub fn authorization(
    key: &ObjectKey,
    p: &AuthorizationPolicy,
    dry_run: bool,
    mesh: &MeshConfig,
) -> Option<Authorization> {
    // Those bind waypoints and gateways, and nobody's pods.
    if p.has_targets() {
        return None;
    }
    let action = match p.action {
        AuthorizationAction::Allow => Action::Allow,
        AuthorizationAction::Deny => Action::Deny,
        AuthorizationAction::Audit | AuthorizationAction::Custom => return None,
    };
    let rules = p.rules.iter().filter_map(|r| rule(r, action, &key.namespace, mesh)).collect();
    let scope = match (&p.selector, key.namespace == mesh.root_namespace) {
        (Some(s), _) if !s.match_labels.is_empty() => Scope::WorkloadSelector,
        (_, true) => Scope::Global,
        (_, false) => Scope::Namespace,
    };
    Some(Authorization {
        name: key.name.clone(),
        namespace: key.namespace.clone(),
        scope: scope as i32,
        action: action as i32,
        rules,
        dry_run,
        extensions: Vec::new(),
    })
}

/// The policy as a waypoint judges it, where it binds one by its targetRefs.
pub fn of_requests(o: &Object, mesh: &MeshConfig) -> Option<HttpPolicy> {
    let Spec::AuthorizationPolicy(p) = &o.spec else { return None };
    let action = match p.action {
        AuthorizationAction::Allow => PolicyAction::Allow,
        AuthorizationAction::Deny => PolicyAction::Deny,
        AuthorizationAction::Audit | AuthorizationAction::Custom => return None,
    };
    let namespace = &o.key.namespace;
    Some(HttpPolicy {
        namespace: namespace.clone(),
        name: o.key.name.clone(),
        action: action as i32,
        dry_run: is_dry_run(o),
        rules: p.rules.iter().map(|r| requests::rule(r, namespace, mesh)).collect(),
    })
}

pub fn is_dry_run(o: &Object) -> bool {
    o.meta.annotations.get("istio.io/dry-run").is_some_and(|v| v == "true")
}

/// Whether agents get policies of this action: a workload must name no other.
pub fn is_served(action: AuthorizationAction) -> bool {
    matches!(action, AuthorizationAction::Allow | AuthorizationAction::Deny)
}

fn rule(r: &istio_api::Rule, action: Action, namespace: &str, mesh: &MeshConfig) -> Option<Rule> {
    let mut clauses = Vec::new();
    if !r.from.is_empty() {
        let matches = alternatives(
            r.from.iter().map(|f| (source(&f.source, namespace, mesh), f.source.has_l7())),
            action,
        )?;
        clauses.extend(matches);
    }
    if !r.to.is_empty() {
        let matches = alternatives(
            r.to.iter().map(|t| (operation(&t.operation), t.operation.has_l7())),
            action,
        )?;
        clauses.extend(matches);
    }
    for c in &r.when {
        match condition(c, namespace, mesh) {
            Some(m) => clauses.push(Clause { matches: vec![m] }),
            None if action == Action::Allow => return None,
            // A condition that cannot be seen is taken as met.
            None => {}
        }
    }
    Some(Rule { clauses })
}

/// One clause of alternatives, some of which say things that cannot be seen at L4. None: the rule
/// can match nothing. An empty answer: the clause is always met.
fn alternatives(
    all: impl Iterator<Item = (Match, bool)>,
    action: Action,
) -> Option<Option<Clause>> {
    let mut matches = Vec::new();
    let mut any = false;
    for (m, l7) in all {
        match (action, l7) {
            (Action::Allow, true) => {}
            // Its L4 part alone; without one, everything.
            (Action::Deny, true) if m == Match::default() => any = true,
            _ => matches.push(m),
        }
    }
    if any {
        return Some(None);
    }
    if matches.is_empty() { None } else { Some(Some(Clause { matches })) }
}

fn source(s: &Source, namespace: &str, mesh: &MeshConfig) -> Match {
    // Of principals and trust domains, validation lets one through.
    let mut of_principals = principals(&s.principals, mesh);
    of_principals.extend(trust_domains(&s.trust_domains, mesh));
    let mut of_no_principals = principals(&s.not_principals, mesh);
    of_no_principals.extend(trust_domains(&s.not_trust_domains, mesh));
    Match {
        namespaces: patterns(&s.namespaces),
        not_namespaces: patterns(&s.not_namespaces),
        principals: of_principals,
        not_principals: of_no_principals,
        service_accounts: accounts(&s.service_accounts, namespace),
        not_service_accounts: accounts(&s.not_service_accounts, namespace),
        source_ips: blocks(&s.ip_blocks),
        not_source_ips: blocks(&s.not_ip_blocks),
        ..Match::default()
    }
}

fn operation(o: &Operation) -> Match {
    Match {
        destination_ports: ports(&o.ports),
        not_destination_ports: ports(&o.not_ports),
        ..Match::default()
    }
}

fn condition(c: &Condition, namespace: &str, mesh: &MeshConfig) -> Option<Match> {
    let mut m = Match::default();
    let (yes, no) = (&c.values, &c.not_values);
    match c.key.as_str() {
        "source.ip" => (m.source_ips, m.not_source_ips) = (blocks(yes), blocks(no)),
        "source.namespace" => (m.namespaces, m.not_namespaces) = (patterns(yes), patterns(no)),
        "source.principal" => {
            (m.principals, m.not_principals) = (principals(yes, mesh), principals(no, mesh));
        }
        "source.trustDomain" => {
            (m.principals, m.not_principals) = (trust_domains(yes, mesh), trust_domains(no, mesh));
        }
        "source.serviceAccount" => {
            (m.service_accounts, m.not_service_accounts) =
                (accounts(yes, namespace), accounts(no, namespace));
        }
        "destination.ip" => (m.destination_ips, m.not_destination_ips) = (blocks(yes), blocks(no)),
        "destination.port" => {
            (m.destination_ports, m.not_destination_ports) = (ports(yes), ports(no));
        }
        _ => return None,
    }
    Some(m)
}

fn pattern(s: &str) -> StringMatch {
    let kind = if s == "*" {
        MatchType::Presence(())
    } else if let Some(suffix) = s.strip_prefix('*') {
        MatchType::Suffix(suffix.to_owned())
    } else if let Some(prefix) = s.strip_suffix('*') {
        MatchType::Prefix(prefix.to_owned())
    } else {
        MatchType::Exact(s.to_owned())
    };
    StringMatch { match_type: Some(kind) }
}

fn patterns(list: &[String]) -> Vec<StringMatch> {
    list.iter().map(|s| pattern(s)).collect()
}

/// `cluster.local` stands for the mesh's own trust domain, and each of its names for all of them.
fn principals(list: &[String], mesh: &MeshConfig) -> Vec<StringMatch> {
    let own = || mesh.trust_domain_aliases.iter().chain([&mesh.trust_domain]);
    let mut out = Vec::new();
    for s in list {
        match s.split_once('/') {
            Some((domain, rest)) if domain == "cluster.local" || own().any(|d| d == domain) => {
                out.extend(own().map(|d| pattern(&format!("{d}/{rest}"))));
            }
            _ => out.push(pattern(s)),
        }
    }
    out
}

/// As principals of any kind within them.
fn trust_domains(list: &[String], mesh: &MeshConfig) -> Vec<StringMatch> {
    let own = || mesh.trust_domain_aliases.iter().chain([&mesh.trust_domain]);
    let mut out = Vec::new();
    for s in list {
        if s == "cluster.local" || own().any(|d| d == s) {
            out.extend(own().map(|d| pattern(&format!("{d}/*"))));
        } else if s.ends_with('*') {
            out.push(pattern(s));
        } else {
            out.push(pattern(&format!("{s}/*")));
        }
    }
    out
}

fn accounts(list: &[String], own_namespace: &str) -> Vec<ServiceAccountMatch> {
    list.iter()
        .map(|s| {
            let (namespace, account) = s.split_once('/').unwrap_or((own_namespace, s));
            ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() }
        })
        .collect()
}

fn nets(list: &[String]) -> Vec<IpNet> {
    let net = |s: &String| s.parse::<IpNet>().or_else(|_| s.parse::<IpAddr>().map(IpNet::from));
    list.iter().filter_map(|s| net(s).ok()).collect()
}

fn block(net: IpNet) -> Address {
    let address = match net.addr() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    Address { address, length: u32::from(net.prefix_len()) }
}

fn blocks(list: &[String]) -> Vec<Address> {
    nets(list).into_iter().map(block).collect()
}

/// What is in a block of each: of two that overlap one is within the other.
fn in_both(a: &[String], b: &[String]) -> Vec<Address> {
    let (a, b) = (nets(a), nets(b));
    let pairs = a.iter().flat_map(|x| b.iter().map(move |y| (x, y)));
    let narrower = pairs.filter_map(|(x, y)| match (x.contains(y), y.contains(x)) {
        (true, _) => Some(*y),
        (_, true) => Some(*x),
        _ => None,
    });
    narrower.map(block).collect()
}

fn ports(list: &[String]) -> Vec<u32> {
    list.iter().filter_map(|s| s.parse().ok()).collect()
}

fn no_principal() -> Clause {
    let presence = StringMatch { match_type: Some(MatchType::Presence(())) };
    Clause { matches: vec![Match { not_principals: vec![presence], ..Match::default() }] }
}

/// Denies plaintext, wherever a workload names it.
pub fn static_strict(mesh: &MeshConfig) -> Authorization {
    Authorization {
        name: STATIC_STRICT.to_owned(),
        namespace: mesh.root_namespace.clone(),
        scope: Scope::WorkloadSelector as i32,
        action: Action::Deny as i32,
        rules: vec![Rule { clauses: vec![no_principal()] }],
        ..Authorization::default()
    }
}

/// A policy of its own for a PeerAuthentication that says different things of different ports.
pub fn converted(
    object: &Object,
    p: &PeerAuthentication,
    snapshot: &Snapshot,
) -> Option<Authorization> {
    if p.port_level_mtls.is_empty() || p.selector.is_none() {
        return None;
    }
    let base = match p.mtls.as_ref().map(|m| m.mode) {
        Some(mode) if mode != MutualTlsMode::Unset => mode,
        _ => inherited(snapshot, &object.key.namespace),
    };
    let of = |strict: bool| -> Vec<u32> {
        p.port_level_mtls
            .iter()
            .filter(|(_, m)| match m.mode {
                MutualTlsMode::Unset => (base == MutualTlsMode::Strict) == strict,
                mode => (mode == MutualTlsMode::Strict) == strict,
            })
            .filter_map(|(port, _)| port.parse().ok())
            .collect()
    };
    let ports = if base == MutualTlsMode::Strict {
        let open = of(false);
        if open.is_empty() {
            return None;
        }
        Match { not_destination_ports: open, ..Match::default() }
    } else {
        let strict = of(true);
        if strict.is_empty() {
            return None;
        }
        Match { destination_ports: strict, ..Match::default() }
    };
    Some(Authorization {
        name: converted_name(&object.key.name),
        namespace: object.key.namespace.clone(),
        scope: Scope::WorkloadSelector as i32,
        action: Action::Deny as i32,
        rules: vec![Rule { clauses: vec![no_principal(), Clause { matches: vec![ports] }] }],
        ..Authorization::default()
    })
}

pub fn converted_name(name: &str) -> String {
    format!("istio_converted_{name}")
}

/// What a workload names because of PeerAuthentication: the most specific scope that says
/// something, the oldest of it.
pub fn mutual_tls_policy(snapshot: &Snapshot, namespace: &str, labels: &Labels) -> Option<String> {
    let own = snapshot.peer_authentications(namespace);
    let selected = own.iter().find(|(_, p)| {
        p.selector.as_ref().is_some_and(|s| s.matches(labels) && !s.match_labels.is_empty())
    });
    let strict = || format!("{}/{STATIC_STRICT}", snapshot.mesh().root_namespace);
    if let Some((object, p)) = selected {
        if converted(object, p, snapshot).is_some() {
            return Some(format!("{namespace}/{}", converted_name(&object.key.name)));
        }
        match p.mtls.as_ref().map(|m| m.mode).unwrap_or_default() {
            MutualTlsMode::Strict => return Some(strict()),
            MutualTlsMode::Permissive | MutualTlsMode::Disable => return None,
            MutualTlsMode::Unset => {}
        }
    }
    (inherited(snapshot, namespace) == MutualTlsMode::Strict).then(strict)
}

/// What the namespace says, or the mesh.
fn inherited(snapshot: &Snapshot, namespace: &str) -> MutualTlsMode {
    let root = snapshot.mesh().root_namespace.clone();
    for ns in [namespace, root.as_str()] {
        let mode = snapshot
            .peer_authentications(ns)
            .into_iter()
            .filter(|(_, p)| p.selector.as_ref().is_none_or(|s| s.match_labels.is_empty()))
            .map(|(_, p)| p.mtls.as_ref().map(|m| m.mode).unwrap_or_default())
            .find(|m| *m != MutualTlsMode::Unset);
        if let Some(mode) = mode {
            return mode;
        }
    }
    MutualTlsMode::Permissive
}
