//! What policies mean, said a second time and as plainly as possible: whole sets of what matches,
//! no early exits, addresses compared bit by bit. Slow, so that it is easy to believe.

use ipnet::IpNet;
use policy::{Action, Clause, Match, Policy, PolicyName, Request, Rule, StringMatch};
use std::net::IpAddr;

/// What applies to a workload: a policy, or the name of one that nobody knows.
#[derive(Clone, Debug)]
pub enum Entry {
    Known(Policy),
    Missing(PolicyName),
}

/// A policy, and the index of a rule of it that matches.
pub type Culprit = (PolicyName, usize);

/// The decision, with everybody who may be named as its cause.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    DeniedBy(Vec<Culprit>),
    Unknown(Vec<PolicyName>),
    NoAllowPolicy,
    AllowedBy(Vec<Culprit>),
    NotAllowed,
}

impl Outcome {
    pub fn allowed(&self) -> bool {
        matches!(self, Outcome::NoAllowPolicy | Outcome::AllowedBy(_))
    }
}

pub fn outcome(request: &Request, entries: &[Entry]) -> Outcome {
    let enforced =
        |action| known(entries).filter(move |policy| !policy.dry_run && policy.action == action);
    let culprits = |action| -> Vec<Culprit> {
        enforced(action)
            .flat_map(|policy| {
                matching_rules(request, policy).into_iter().map(|rule| (policy.name.clone(), rule))
            })
            .collect()
    };
    let deniers = culprits(Action::Deny);
    let allowers = culprits(Action::Allow);
    let missing: Vec<PolicyName> = entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Missing(name) => Some(name.clone()),
            Entry::Known(_) => None,
        })
        .collect();
    if !deniers.is_empty() {
        Outcome::DeniedBy(deniers)
    } else if !missing.is_empty() {
        Outcome::Unknown(missing)
    } else if enforced(Action::Allow).count() == 0 {
        Outcome::NoAllowPolicy
    } else if !allowers.is_empty() {
        Outcome::AllowedBy(allowers)
    } else {
        Outcome::NotAllowed
    }
}

pub fn known(entries: &[Entry]) -> impl Iterator<Item = &Policy> + Clone {
    entries.iter().filter_map(|entry| match entry {
        Entry::Known(policy) => Some(policy),
        Entry::Missing(_) => None,
    })
}

/// The rules of `policy` that match; the policy matches if there is one.
pub fn matching_rules(request: &Request, policy: &Policy) -> Vec<usize> {
    let matches = |rule: &usize| rule_matches(request, &policy.rules[*rule]);
    (0..policy.rules.len()).filter(matches).collect()
}

fn rule_matches(request: &Request, rule: &Rule) -> bool {
    rule.clauses.iter().filter(|clause| !clause_matches(request, clause)).count() == 0
}

fn clause_matches(request: &Request, clause: &Clause) -> bool {
    let matching = clause.matches.iter().filter(|m| match_matches(request, m)).count();
    clause.matches.is_empty() || matching > 0
}

fn match_matches(request: &Request, m: &Match) -> bool {
    let peer = request.peer.as_ref().map(|id| Identity::parse(&id.to_string()));
    let peer = peer.as_ref();
    let string = |part: fn(&Identity) -> &str, patterns: &[StringMatch]| -> Vec<bool> {
        let value = peer.map(part);
        patterns.iter().map(|p| value.is_some_and(|v| string_matches(v, p))).collect()
    };
    let namespace = |patterns| string(|id| &id.namespace, patterns);
    let principal = |patterns| string(|id| &id.principal, patterns);
    let service_account = |wanted: &[policy::ServiceAccountMatch]| -> Vec<bool> {
        let same = |w: &policy::ServiceAccountMatch, id: &Identity| {
            w.namespace == id.namespace
                && w.service_account == id.service_account
                && request.trust_domains.iter().any(|td| **td == *id.trust_domain)
        };
        wanted.iter().map(|w| peer.is_some_and(|id| same(w, id))).collect()
    };
    let ip = |ip: IpAddr, nets: &[IpNet]| -> Vec<bool> {
        nets.iter().map(|net| net_contains(net, ip)).collect()
    };
    let (source, destination) = (request.source.ip(), request.destination.ip());
    let port = |ports: &[u16]| -> Vec<bool> {
        ports.iter().map(|port| *port == request.destination.port()).collect()
    };

    let positives = [
        namespace(&m.namespaces),
        principal(&m.principals),
        service_account(&m.service_accounts),
        ip(source, &m.source_ips),
        ip(destination, &m.destination_ips),
        port(&m.destination_ports),
    ];
    let negatives = [
        namespace(&m.not_namespaces),
        principal(&m.not_principals),
        service_account(&m.not_service_accounts),
        ip(source, &m.not_source_ips),
        ip(destination, &m.not_destination_ips),
        port(&m.not_destination_ports),
    ];
    let empty = positives.iter().chain(&negatives).all(Vec::is_empty);
    let wanted = positives.iter().all(|kind| kind.is_empty() || kind.contains(&true));
    let unwanted = negatives.iter().any(|kind| kind.contains(&true));
    !empty && wanted && !unwanted
}

struct Identity {
    principal: String,
    trust_domain: String,
    namespace: String,
    service_account: String,
}

impl Identity {
    /// From the text, so that a mistake in how `SpiffeId` finds its parts would show.
    fn parse(id: &str) -> Self {
        let principal = id.strip_prefix("spiffe://").unwrap();
        let parts: Vec<&str> = principal.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", service_account] = parts[..] else {
            panic!("{id} is no workload's id")
        };
        Identity {
            principal: principal.to_owned(),
            trust_domain: trust_domain.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        }
    }
}

fn string_matches(value: &str, pattern: &StringMatch) -> bool {
    let value = value.as_bytes();
    match pattern {
        StringMatch::Exact(exact) => value == exact.as_bytes(),
        StringMatch::Prefix(prefix) => value.get(..prefix.len()) == Some(prefix.as_bytes()),
        StringMatch::Suffix(suffix) => {
            let at = value.len().checked_sub(suffix.len());
            at.is_some_and(|at| &value[at..] == suffix.as_bytes())
        }
        StringMatch::Presence => true,
    }
}

fn net_contains(net: &IpNet, ip: IpAddr) -> bool {
    // ::ffff:a.b.c.d is a.b.c.d: what a dual-stack socket says of an IPv4 peer.
    let ip = match ip {
        IpAddr::V6(v6) => match v6.octets() {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => IpAddr::from([a, b, c, d]),
            _ => ip,
        },
        IpAddr::V4(_) => ip,
    };
    match (net, ip) {
        (IpNet::V4(net), IpAddr::V4(ip)) => {
            same_bits(&net.addr().octets(), &ip.octets(), net.prefix_len())
        }
        (IpNet::V6(net), IpAddr::V6(ip)) => {
            same_bits(&net.addr().octets(), &ip.octets(), net.prefix_len())
        }
        _ => false,
    }
}

/// Whether the first `len` bits are the same.
fn same_bits(a: &[u8], b: &[u8], len: u8) -> bool {
    let bit = |octets: &[u8], i: usize| octets[i / 8] >> (7 - i % 8) & 1;
    (0..usize::from(len)).all(|i| bit(a, i) == bit(b, i))
}
