//! The policies that apply to one destination, indexed, so that a verdict costs what can match and
//! not what exists.
//!
//! Each rule stands in one place of the index: under the values that one of its clauses demands
//! (a principal, a service account, a source, a namespace, a port, in this order of choice), where a
//! clause demands any. A connection has few such values, and only rules that stand under one of
//! them, and those that demand nothing that can be looked up, are evaluated.

use crate::{
    evaluate::{Decision, Verdict, rule_matches},
    model::{
        Action, Clause, Match, Policy, PolicyName, Request, Rule, ServiceAccountMatch, StringMatch,
    },
};
use ipnet::IpNet;
use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// Made once per set of policies, and asked once per connection.
#[derive(Debug, Default)]
pub struct PolicySet {
    policies: Vec<Arc<Policy>>,
    missing: Vec<PolicyName>,
    deny: RuleIndex,
    allow: RuleIndex,
    dry_run: RuleIndex,
    /// The first ALLOW policy: with it, what no policy allows is denied.
    first_allow: Option<usize>,
}

impl PolicySet {
    /// `missing` are policies that the destination names and that are not known: they deny.
    pub fn new(policies: Vec<Arc<Policy>>, missing: Vec<PolicyName>) -> Self {
        let mut set = PolicySet { policies, missing, ..PolicySet::default() };
        for (at, p) in set.policies.iter().enumerate() {
            let index = match (p.dry_run, p.action) {
                (true, _) => &mut set.dry_run,
                (false, Action::Deny) => &mut set.deny,
                (false, Action::Allow) => {
                    set.first_allow = set.first_allow.or(Some(at));
                    &mut set.allow
                }
            };
            for (number, rule) in p.rules.iter().enumerate() {
                index.insert((at, number), rule);
            }
        }
        set
    }

    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    pub fn missing(&self) -> &[PolicyName] {
        &self.missing
    }

    /// The same verdict as [`crate::evaluate`] over these policies in their order.
    pub fn evaluate(&self, request: &Request) -> Verdict {
        let denied = self.first_match(&self.deny, request);
        let mut dry_run = self.matching_policies(&self.dry_run, request);
        if let Some((at, _)) = denied {
            dry_run.retain(|d| *d < at);
        }
        let dry_run = dry_run.iter().filter_map(|at| self.name(*at)).collect();
        let (allowed, decision) = if let Some(decision) = self.matched(denied, Action::Deny) {
            (false, decision)
        } else if let Some(policy) = self.missing.first().cloned() {
            (false, Decision::Unknown { policy })
        } else if let Some(nearest) = self.first_allow.and_then(|at| self.name(at)) {
            match self.matched(self.first_match(&self.allow, request), Action::Allow) {
                Some(decision) => (true, decision),
                None => (false, Decision::NoAllowMatched { nearest }),
            }
        } else {
            (true, Decision::NoPolicy)
        };
        Verdict { allowed, decision, dry_run }
    }

    fn matched(&self, found: Option<RuleId>, action: Action) -> Option<Decision> {
        let (at, rule) = found?;
        Some(Decision::Matched { policy: self.name(at)?, action, rule })
    }

    fn name(&self, at: usize) -> Option<PolicyName> {
        self.policies.get(at).map(|p| p.name.clone())
    }

    fn matches(&self, (at, number): RuleId, request: &Request) -> bool {
        let rule = self.policies.get(at).and_then(|p| p.rules.get(number));
        rule.is_some_and(|rule| rule_matches(rule, request))
    }

    /// The first in the order of policies and rules.
    fn first_match(&self, index: &RuleIndex, request: &Request) -> Option<RuleId> {
        let mut first: Option<RuleId> = None;
        index.candidates(request, |rules| {
            // Each list is in order.
            let before = |id: &&RuleId| first.is_none_or(|f| **id < f);
            let found = rules.iter().take_while(before).find(|id| self.matches(**id, request));
            first = found.copied().or(first);
        });
        first
    }

    fn matching_policies(&self, index: &RuleIndex, request: &Request) -> Vec<usize> {
        let mut found = BTreeSet::new();
        index.candidates(request, |rules| {
            for id in rules {
                if !found.contains(&id.0) && self.matches(*id, request) {
                    found.insert(id.0);
                }
            }
        });
        found.into_iter().collect()
    }
}

/// A policy's place in the set, and a rule's in the policy.
type RuleId = (usize, usize);

#[derive(Debug, Default)]
struct RuleIndex {
    principals: Strings,
    /// By namespace, then service account.
    accounts: HashMap<Box<str>, HashMap<Box<str>, Vec<RuleId>>>,
    sources: Blocks,
    namespaces: Strings,
    ports: HashMap<u16, Vec<RuleId>>,
    /// Rules that demand nothing that could be looked up.
    others: Vec<RuleId>,
}

impl RuleIndex {
    fn insert(&mut self, id: RuleId, rule: &Rule) {
        type Demand = fn(&Match) -> bool;
        let kinds: [Demand; 5] = [
            |m| !m.principals.is_empty(),
            |m| !m.service_accounts.is_empty(),
            |m| !m.source_ips.is_empty(),
            |m| !m.namespaces.is_empty(),
            |m| !m.destination_ports.is_empty(),
        ];
        // A match that is empty never matches: its clause is met by the others alone.
        let alternatives =
            |c: &Clause| c.matches.iter().filter(|m| **m != Match::default()).count();
        let demands = |c: &Clause, demand: Demand| {
            !c.matches.is_empty() && c.matches.iter().all(|m| *m == Match::default() || demand(m))
        };
        let found = kinds.iter().enumerate().find_map(|(kind, demand)| {
            let clause = rule.clauses.iter().find(|c| demands(c, *demand))?;
            Some((kind, clause))
        });
        let Some((kind, clause)) = found else {
            self.others.push(id);
            return;
        };
        if alternatives(clause) == 0 {
            return;
        }
        for m in &clause.matches {
            match kind {
                0 => m.principals.iter().for_each(|s| self.principals.insert(s, id)),
                1 => m.service_accounts.iter().for_each(|a| self.insert_account(a, id)),
                2 => m.source_ips.iter().for_each(|net| self.sources.insert(*net, id)),
                3 => m.namespaces.iter().for_each(|s| self.namespaces.insert(s, id)),
                _ => m.destination_ports.iter().for_each(|port| {
                    push(self.ports.entry(*port).or_default(), id);
                }),
            }
        }
    }

    fn insert_account(&mut self, account: &ServiceAccountMatch, id: RuleId) {
        let of_namespace = self.accounts.entry(account.namespace.as_str().into()).or_default();
        push(of_namespace.entry(account.service_account.as_str().into()).or_default(), id);
    }

    /// Every rule that can match is in one of the lists that `each` is given.
    fn candidates(&self, request: &Request, mut each: impl FnMut(&[RuleId])) {
        each(&self.others);
        if let Some(peer) = &request.peer {
            self.principals.find(peer.principal(), &mut each);
            self.namespaces.find(peer.namespace(), &mut each);
            let of_namespace = self.accounts.get(peer.namespace());
            if let Some(rules) = of_namespace.and_then(|a| a.get(peer.service_account())) {
                each(rules);
            }
        }
        self.sources.find(request.source_ip(), &mut each);
        if let Some(rules) = self.ports.get(&request.destination.port()) {
            each(rules);
        }
    }
}

/// Rules come in order, and one of them may name the same value twice.
fn push(list: &mut Vec<RuleId>, id: RuleId) {
    if list.last() != Some(&id) {
        list.push(id);
    }
}

/// String matches by their values; prefixes and suffixes by each length that occurs.
#[derive(Debug, Default)]
struct Strings {
    exact: HashMap<Box<str>, Vec<RuleId>>,
    prefixes: HashMap<Box<str>, Vec<RuleId>>,
    prefix_lengths: BTreeSet<usize>,
    suffixes: HashMap<Box<str>, Vec<RuleId>>,
    suffix_lengths: BTreeSet<usize>,
    any: Vec<RuleId>,
}

impl Strings {
    fn insert(&mut self, wanted: &StringMatch, id: RuleId) {
        let list = match wanted {
            StringMatch::Exact(s) => self.exact.entry(s.as_str().into()).or_default(),
            StringMatch::Prefix(s) => {
                self.prefix_lengths.insert(s.len());
                self.prefixes.entry(s.as_str().into()).or_default()
            }
            StringMatch::Suffix(s) => {
                self.suffix_lengths.insert(s.len());
                self.suffixes.entry(s.as_str().into()).or_default()
            }
            StringMatch::Presence => &mut self.any,
        };
        push(list, id);
    }

    fn find(&self, value: &str, each: &mut impl FnMut(&[RuleId])) {
        if !value.is_empty() {
            each(&self.any);
        }
        let starts = self.prefix_lengths.iter().filter_map(|l| value.get(..*l));
        let ends =
            self.suffix_lengths.iter().filter_map(|l| value.get(value.len().checked_sub(*l)?..));
        let exact = self.exact.get(value).into_iter();
        let found = exact
            .chain(starts.filter_map(|s| self.prefixes.get(s)))
            .chain(ends.filter_map(|s| self.suffixes.get(s)));
        found.for_each(|rules| each(rules));
    }
}

/// Address blocks, by each length that occurs.
#[derive(Debug, Default)]
struct Blocks {
    rules: HashMap<IpNet, Vec<RuleId>>,
    /// Of IPv4, then of IPv6.
    lengths: [BTreeSet<u8>; 2],
}

impl Blocks {
    fn insert(&mut self, net: IpNet, id: RuleId) {
        let [v4, v6] = &mut self.lengths;
        let lengths = if net.addr().is_ipv4() { v4 } else { v6 };
        lengths.insert(net.prefix_len());
        push(self.rules.entry(net.trunc()).or_default(), id);
    }

    fn find(&self, ip: IpAddr, each: &mut impl FnMut(&[RuleId])) {
        let [v4, v6] = &self.lengths;
        for length in if ip.is_ipv4() { v4 } else { v6 } {
            let block = IpNet::new(ip, *length).map(|b| b.trunc());
            if let Some(rules) = block.ok().and_then(|b| self.rules.get(&b)) {
                each(rules);
            }
        }
    }
}
