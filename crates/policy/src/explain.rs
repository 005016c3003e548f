//! A verdict in words: what decided it, what nearly did, and what would change it. Not for the data
//! path: this looks at every rule.

use crate::{
    evaluate::{Decision, Verdict, clause_matches, match_matches},
    model::{Action, Clause, Match, PolicyName, Request, Rule, Scope, StringMatch},
    set::PolicySet,
};
use std::fmt::Display;

/// Why a connection is judged as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    pub verdict: Verdict,
    /// The policies that apply, in the order in which they are asked.
    pub applied: Vec<Applied>,
    /// How each clause of the deciding rule is met.
    pub because: Vec<String>,
    /// Rules that would decide otherwise and do not match, the nearest first.
    pub nearly: Vec<Near>,
    /// What would change the answer.
    pub change: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    pub policy: PolicyName,
    pub scope: Scope,
    pub action: Action,
    pub dry_run: bool,
    pub matched: bool,
}

/// A rule that does not match, and what it lacks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Near {
    pub policy: PolicyName,
    pub action: Action,
    pub rule: usize,
    pub unmet: Vec<String>,
}

/// How many near misses are told.
const NEAREST: usize = 3;

/// Rules that a log line's near miss is looked for among: it is written on the data path.
const LOOKED_AT: usize = 64;

pub fn explain(set: &PolicySet, request: &Request) -> Explanation {
    let verdict = set.evaluate(request);
    let applied = set
        .policies()
        .iter()
        .map(|p| Applied {
            policy: p.name.clone(),
            scope: p.scope,
            action: p.action,
            dry_run: p.dry_run,
            matched: p.rules.iter().any(|r| unmet(r, request).is_empty()),
        })
        .collect();
    let other = if verdict.allowed { Action::Deny } else { Action::Allow };
    let mut nearly = near_misses(set, request, other, usize::MAX);
    // Far from matching is not near, and a mere opposite tells nobody anything.
    nearly.truncate(NEAREST);
    let because =
        deciding_rule(set, &verdict.decision).map(|r| met(r, request)).unwrap_or_default();
    let change = what_would_change(&verdict.decision, &nearly);
    Explanation { verdict, applied, because, nearly, change }
}

/// The decision, with what met it, or with the nearest rule that would have allowed; for a log.
pub fn in_words(set: &PolicySet, request: &Request, verdict: &Verdict) -> String {
    let decision = verdict.decision.to_string();
    match &verdict.decision {
        Decision::Matched { .. } => {
            let met = deciding_rule(set, &verdict.decision).map(|r| met(r, request));
            match met.filter(|m| !m.is_empty()) {
                Some(met) => format!("{decision} ({})", met.join("; ")),
                None => decision,
            }
        }
        Decision::NoAllowMatched { .. } => {
            match near_misses(set, request, Action::Allow, LOOKED_AT).first() {
                Some(n) => format!(
                    "{decision}; nearest is {}, rule {}: {}",
                    n.policy,
                    n.rule,
                    n.unmet.join("; ")
                ),
                None => decision,
            }
        }
        Decision::NoPolicy
        | Decision::Unknown { .. }
        | Decision::ThroughWaypoint
        | Decision::AroundWaypoint(_)
        | Decision::Kubelet => decision,
    }
}

fn deciding_rule<'a>(set: &'a PolicySet, decision: &Decision) -> Option<&'a Rule> {
    let Decision::Matched { policy, rule, .. } = decision else { return None };
    set.policies().iter().find(|p| p.name == *policy)?.rules.get(*rule)
}

fn near_misses(set: &PolicySet, request: &Request, action: Action, most: usize) -> Vec<Near> {
    let rules = set
        .policies()
        .iter()
        .filter(|p| p.action == action && !p.dry_run)
        .flat_map(|p| p.rules.iter().enumerate().map(move |(number, rule)| (p, number, rule)));
    let mut near: Vec<Near> = rules
        .take(most)
        .map(|(p, rule, r)| Near { policy: p.name.clone(), action, rule, unmet: unmet(r, request) })
        .filter(|n| !n.unmet.is_empty())
        .collect();
    near.sort_by_key(|n| n.unmet.len());
    near
}

/// In words, of a decision that was not policies' too.
pub fn what_would_change(decision: &Decision, nearly: &[Near]) -> String {
    match decision {
        Decision::Matched { policy, action: Action::Deny, rule } => format!(
            "rule {rule} of {policy} must not match: narrow it, or exempt this source with one of \
             its not-fields; no ALLOW policy overrides a DENY"
        ),
        Decision::ThroughWaypoint => "a policy for the waypoint".to_owned(),
        Decision::Kubelet => "nothing: no policy counts for the node's own kubelet".to_owned(),
        Decision::AroundWaypoint(names) => format!(
            "connect to the service, so that the connection goes through {names}; or take the \
             label istio.io/use-waypoint away"
        ),
        Decision::Unknown { policy } => format!(
            "{policy} must arrive: check that it exists, and culvertd's diagnostics for why it was \
             not accepted"
        ),
        Decision::NoAllowMatched { nearest } => match nearly.first() {
            Some(n) => format!(
                "rule {} of {} would allow it, were it not that {}",
                n.rule,
                n.policy,
                n.unmet.join(", and ")
            ),
            None => {
                format!("{nearest} has no rules, so it allows nothing: add a rule that matches")
            }
        },
        Decision::Matched { policy, action: Action::Allow, .. } => match nearly.first() {
            Some(n) => format!(
                "without {policy} it would be denied if no other ALLOW policy matched; {} would \
                 deny it, were it not that {}",
                n.policy,
                n.unmet.join(", and ")
            ),
            None => format!(
                "without {policy} it would be denied, unless no ALLOW policy were left or another \
                 one matched"
            ),
        },
        Decision::NoPolicy => match nearly.first() {
            Some(n) => {
                format!("{} would deny it, were it not that {}", n.policy, n.unmet.join(", and "))
            }
            None => {
                "the first ALLOW policy that applies to the destination denies all that it does \
                     not allow"
                    .to_owned()
            }
        },
    }
}

/// How each clause of a rule that matches is met.
fn met(rule: &Rule, request: &Request) -> Vec<String> {
    rule.clauses
        .iter()
        .filter_map(|c| c.matches.iter().find(|m| match_matches(m, request)))
        .map(|m| {
            let fields =
                fields(m, request).into_iter().map(|f| format!("{} is {}", f.what, f.found));
            fields.collect::<Vec<_>>().join(" and ")
        })
        .filter(|s| !s.is_empty())
        .collect()
}

/// What a rule lacks to match; of alternatives, the nearest.
fn unmet(rule: &Rule, request: &Request) -> Vec<String> {
    rule.clauses
        .iter()
        .filter(|c| !clause_matches(c, request))
        .flat_map(|c| lacks(c, request))
        .collect()
}

fn lacks(clause: &Clause, request: &Request) -> Vec<String> {
    let of = |m: &Match| -> Vec<String> {
        if *m == Match::default() {
            return vec!["it has an empty condition, which never holds".to_owned()];
        }
        let failed = fields(m, request).into_iter().filter(|f| !f.holds);
        failed.map(|f| format!("{} is {}, and not {}", f.what, f.found, f.wanted)).collect()
    };
    clause.matches.iter().map(of).min_by_key(Vec::len).unwrap_or_default()
}

/// One field of a match, against the connection.
struct Field {
    what: &'static str,
    found: String,
    wanted: String,
    holds: bool,
}

fn fields(m: &Match, r: &Request) -> Vec<Field> {
    let unknown = || "unknown (no mutual TLS)".to_owned();
    let principal = r.peer.as_ref().map_or_else(unknown, |p| p.principal().to_owned());
    let namespace = r.peer.as_ref().map_or_else(unknown, |p| p.namespace().to_owned());
    let account = r
        .peer
        .as_ref()
        .map_or_else(unknown, |p| format!("{}/{}", p.namespace(), p.service_account()));
    let (source, destination) = (r.source_ip().to_string(), r.destination_ip().to_string());
    let port = r.destination.port().to_string();
    let accounts = |list: &[crate::ServiceAccountMatch]| {
        one_of(list.iter().map(|a| format!("{}/{}", a.namespace, a.service_account)))
    };
    // Each alone, so that what does not hold is what is told.
    let only = |part: Match| match_matches(&part, r);
    let mut fields = Vec::new();
    let mut field = |what, found: &str, wanted: Option<String>, not: bool, holds: bool| {
        if let Some(wanted) = wanted {
            let wanted = if not { format!("other than {wanted}") } else { wanted };
            fields.push(Field { what, found: found.to_owned(), wanted, holds });
        }
    };
    macro_rules! pair {
        ($what:literal, $found:expr, $words:expr, $is:ident, $not:ident) => {
            let part = Match { $is: m.$is.clone(), ..Match::default() };
            field($what, $found, $words(&m.$is), false, only(part));
            let part = Match { $not: m.$not.clone(), ..Match::default() };
            field($what, $found, $words(&m.$not), true, only(part));
        };
    }
    pair!("the source's principal", &principal, strings, principals, not_principals);
    pair!("the source's namespace", &namespace, strings, namespaces, not_namespaces);
    pair!(
        "the source's service account",
        &account,
        accounts,
        service_accounts,
        not_service_accounts
    );
    pair!("the source's address", &source, plain, source_ips, not_source_ips);
    pair!("the destination's address", &destination, plain, destination_ips, not_destination_ips);
    pair!("the destination's port", &port, plain, destination_ports, not_destination_ports);
    fields
}

fn strings(list: &[StringMatch]) -> Option<String> {
    one_of(list.iter().map(|s| match s {
        StringMatch::Exact(s) => s.clone(),
        StringMatch::Prefix(s) => format!("{s}*"),
        StringMatch::Suffix(s) => format!("*{s}"),
        StringMatch::Presence => "*".to_owned(),
    }))
}

fn plain(list: &[impl Display]) -> Option<String> {
    one_of(list.iter().map(ToString::to_string))
}

/// Most alternatives that a sentence names.
const NAMED: usize = 5;

fn one_of(values: impl ExactSizeIterator<Item = String>) -> Option<String> {
    let more = values.len().saturating_sub(NAMED);
    let named: Vec<String> = values.take(NAMED).collect();
    let words = named.join(" or ");
    match (named.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(words),
        (false, more) => Some(format!("{words} or {more} more")),
    }
}
