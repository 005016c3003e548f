//! The verdict: DENY first, then ALLOW, then what their absence means.

use crate::model::{
    Action, Clause, Match, Policy, PolicyName, Request, Rule, ServiceAccountMatch, StringMatch,
};
use ipnet::IpNet;
use std::{fmt, net::IpAddr};

/// A policy that applies to the destination, or the name of one that should and is not known.
#[derive(Clone, Copy, Debug)]
pub enum Applicable<'a> {
    Known(&'a Policy),
    /// Named by the workload, not (yet) delivered: denies until it is known.
    Missing(&'a PolicyName),
}

/// Whether the connection may be, and which object says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    pub allowed: bool,
    pub decision: Decision,
    /// Dry-run policies that would have matched.
    pub dry_run: Vec<PolicyName>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// No ALLOW policy applies, and no DENY policy matched.
    NoPolicy,
    /// This rule of this policy matched.
    Matched { policy: PolicyName, action: Act, rule: usize },
    /// ALLOW policies apply and none matched; the first of them, for the reader of a log.
    NoAllowMatched { nearest: PolicyName },
    /// A workload names this policy, and it is not known.
    Unknown { policy: PolicyName },
    /// It comes from the waypoint that stands before the destination, which has judged it.
    ThroughWaypoint,
    /// It must come through these waypoints, and does not.
    AroundWaypoint(String),
    /// The node's own kubelet looks after the pod.
    Kubelet,
}

/// [`Action`], with the equality that a log wants.
pub type Act = Action;

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Decision::NoPolicy => f.write_str("no policy applies"),
            Decision::Matched { policy, action, rule } => {
                let action = match action {
                    Action::Allow => "allow",
                    Action::Deny => "deny",
                };
                write!(f, "{action} policy {policy}, rule {rule}")
            }
            Decision::NoAllowMatched { nearest } => {
                write!(f, "no allow policy matched (applied: {nearest} and any others)")
            }
            Decision::ThroughWaypoint => f.write_str("judged by the destination's waypoint"),
            Decision::AroundWaypoint(names) => {
                write!(f, "the destination has a waypoint, {names}, and is reached through it only")
            }
            Decision::Kubelet => f.write_str("the node's kubelet may look after its pods"),
            Decision::Unknown { policy } => write!(
                f,
                "policy {policy} is named by the workload but not known here; \
                 denied until the control plane delivers it"
            ),
        }
    }
}

/// Judges `request` by the policies that apply to its destination.
pub fn evaluate<'a>(
    request: &Request,
    policies: impl Iterator<Item = Applicable<'a>> + Clone,
) -> Verdict {
    let mut dry_run = Vec::new();
    let verdict = |allowed, decision, dry_run| Verdict { allowed, decision, dry_run };
    let mut unknown = None;
    for applicable in policies.clone() {
        match applicable {
            Applicable::Missing(name) => unknown = unknown.or(Some(name)),
            Applicable::Known(p) if p.dry_run => {
                if matching_rule(p, request).is_some() {
                    dry_run.push(p.name.clone());
                }
            }
            Applicable::Known(p) if p.action == Action::Deny => {
                if let Some(rule) = matching_rule(p, request) {
                    let decision =
                        Decision::Matched { policy: p.name.clone(), action: Action::Deny, rule };
                    return verdict(false, decision, dry_run);
                }
            }
            Applicable::Known(_) => {}
        }
    }
    if let Some(name) = unknown {
        return verdict(false, Decision::Unknown { policy: name.clone() }, dry_run);
    }
    let mut nearest = None;
    for applicable in policies {
        let Applicable::Known(p) = applicable else { continue };
        if p.action != Action::Allow || p.dry_run {
            continue;
        }
        if let Some(rule) = matching_rule(p, request) {
            let decision =
                Decision::Matched { policy: p.name.clone(), action: Action::Allow, rule };
            return verdict(true, decision, dry_run);
        }
        nearest = nearest.or(Some(&p.name));
    }
    match nearest {
        None => verdict(true, Decision::NoPolicy, dry_run),
        Some(name) => verdict(false, Decision::NoAllowMatched { nearest: name.clone() }, dry_run),
    }
}

fn matching_rule(policy: &Policy, request: &Request) -> Option<usize> {
    policy.rules.iter().position(|rule| rule_matches(rule, request))
}

pub(crate) fn rule_matches(rule: &Rule, request: &Request) -> bool {
    rule.clauses.iter().all(|clause| clause_matches(clause, request))
}

pub(crate) fn clause_matches(clause: &Clause, request: &Request) -> bool {
    clause.matches.is_empty() || clause.matches.iter().any(|m| match_matches(m, request))
}

pub(crate) fn match_matches(m: &Match, r: &Request) -> bool {
    if is_empty(m) {
        return false;
    }
    let namespace = r.peer.as_ref().map(|id| id.namespace());
    let principal = r.peer.as_ref().map(|id| id.principal());
    let source = r.source_ip();
    let destination = r.destination_ip();
    let port = r.destination.port();
    let strings = |list: &[StringMatch], value: Option<&str>| list.iter().any(|s| s.matches(value));
    let account = |list: &[ServiceAccountMatch]| list.iter().any(|s| s.matches(r));
    let within = |list: &[IpNet], ip: IpAddr| list.iter().any(|net| net.contains(&ip));

    (m.namespaces.is_empty() || strings(&m.namespaces, namespace))
        && !strings(&m.not_namespaces, namespace)
        && (m.principals.is_empty() || strings(&m.principals, principal))
        && !strings(&m.not_principals, principal)
        && (m.service_accounts.is_empty() || account(&m.service_accounts))
        && !account(&m.not_service_accounts)
        && (m.source_ips.is_empty() || within(&m.source_ips, source))
        && !within(&m.not_source_ips, source)
        && (m.destination_ips.is_empty() || within(&m.destination_ips, destination))
        && !within(&m.not_destination_ips, destination)
        && (m.destination_ports.is_empty() || m.destination_ports.contains(&port))
        && !m.not_destination_ports.contains(&port)
}

impl Match {
    /// Whether it holds of a connection; an empty match never does.
    pub fn holds(&self, request: &Request) -> bool {
        match_matches(self, request)
    }
}

fn is_empty(m: &Match) -> bool {
    *m == Match::default()
}

impl StringMatch {
    /// A peer without the value matches nothing, `Presence` included.
    fn matches(&self, value: Option<&str>) -> bool {
        let Some(value) = value else { return false };
        match self {
            StringMatch::Exact(s) => value == s,
            StringMatch::Prefix(s) => value.starts_with(s.as_str()),
            StringMatch::Suffix(s) => value.ends_with(s.as_str()),
            StringMatch::Presence => !value.is_empty(),
        }
    }
}

impl ServiceAccountMatch {
    fn matches(&self, r: &Request) -> bool {
        r.peer.as_ref().is_some_and(|id| {
            r.trust_domains.iter().any(|t| **t == *id.trust_domain())
                && id.namespace() == self.namespace
                && id.service_account() == self.service_account
        })
    }
}
