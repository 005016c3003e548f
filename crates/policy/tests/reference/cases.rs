//! Cases by hand, against `evaluate` and the reference both: they must not be wrong together.

use crate::{generate::name, judge, meaning, meaning::Entry};
use policy::{
    Action, Clause, Decision, Match, Policy, Request, Rule, Scope, ServiceAccountMatch,
    StringMatch::{self, Exact, Prefix, Presence, Suffix},
    Verdict,
};

const PLAINTEXT: &str = "";
const PEER: &str = "spiffe://td/ns/shop/sa/web";
const ALIAS: &str = "spiffe://old.td/ns/shop/sa/web";
const FOREIGN: &str = "spiffe://other/ns/shop/sa/web";

fn request(peer: &str, source: &str, destination: &str) -> Request {
    Request {
        peer: (peer != PLAINTEXT).then(|| peer.parse().unwrap()),
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        trust_domains: ["td".into(), "old.td".into()].into(),
    }
}

fn from_peer(peer: &str) -> Request {
    request(peer, "10.1.2.3:4000", "10.9.0.1:80")
}

fn from_ip(ip: &str) -> Request {
    request(PLAINTEXT, ip, "10.9.0.1:80")
}

fn to(destination: &str) -> Request {
    request(PEER, "10.1.2.3:4000", destination)
}

fn policy(action: Action, rules: Vec<Rule>) -> Policy {
    Policy { name: name("policy"), scope: Scope::Namespace, action, rules, dry_run: false }
}

fn one(m: Match) -> Rule {
    all_of([vec![m]])
}

fn all_of<const N: usize>(clauses: [Vec<Match>; N]) -> Rule {
    Rule { clauses: clauses.into_iter().map(|matches| Clause { matches }).collect() }
}

fn strings<const N: usize>(list: [fn(String) -> StringMatch; N], s: &str) -> Vec<StringMatch> {
    list.into_iter().map(|of| of(s.to_owned())).collect()
}

fn namespace(of: fn(String) -> StringMatch, s: &str) -> Match {
    Match { namespaces: strings([of], s), ..Match::default() }
}

fn not_namespace(of: fn(String) -> StringMatch, s: &str) -> Match {
    Match { not_namespaces: strings([of], s), ..Match::default() }
}

fn principal(of: fn(String) -> StringMatch, s: &str) -> Match {
    Match { principals: strings([of], s), ..Match::default() }
}

fn not_principal(of: fn(String) -> StringMatch, s: &str) -> Match {
    Match { not_principals: strings([of], s), ..Match::default() }
}

fn presence(_: String) -> StringMatch {
    Presence
}

fn accounts(namespace: &str, service_account: &str) -> Vec<ServiceAccountMatch> {
    vec![ServiceAccountMatch {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
    }]
}

fn account(namespace: &str, name: &str) -> Match {
    Match { service_accounts: accounts(namespace, name), ..Match::default() }
}

fn not_account(namespace: &str, name: &str) -> Match {
    Match { not_service_accounts: accounts(namespace, name), ..Match::default() }
}

fn source(net: &str) -> Match {
    Match { source_ips: vec![net.parse().unwrap()], ..Match::default() }
}

fn not_source(net: &str) -> Match {
    Match { not_source_ips: vec![net.parse().unwrap()], ..Match::default() }
}

fn destination(net: &str) -> Match {
    Match { destination_ips: vec![net.parse().unwrap()], ..Match::default() }
}

fn not_destination(net: &str) -> Match {
    Match { not_destination_ips: vec![net.parse().unwrap()], ..Match::default() }
}

fn port(port: u16) -> Match {
    Match { destination_ports: vec![port], ..Match::default() }
}

fn not_port(port: u16) -> Match {
    Match { not_destination_ports: vec![port], ..Match::default() }
}

fn nothing() -> Match {
    Match::default()
}

/// Each row is held against an ALLOW, a DENY and a dry-run policy of that one match.
#[test]
fn a_match_matches_what_it_says() {
    let rows: Vec<(Match, Request, bool)> = vec![
        // By principal: without the scheme, trust domain included.
        (principal(Exact, "td/ns/shop/sa/web"), from_peer(PEER), true),
        (principal(Exact, "td/ns/shop/sa/web"), from_peer(ALIAS), false),
        (principal(Exact, "td/ns/shop/sa/we"), from_peer(PEER), false),
        (principal(Exact, "TD/ns/shop/sa/web"), from_peer(PEER), false),
        (principal(Exact, PEER), from_peer(PEER), false),
        (principal(Exact, ""), from_peer(PLAINTEXT), false),
        (principal(Prefix, "td/ns/shop/"), from_peer(PEER), true),
        (principal(Prefix, "spiffe://td/"), from_peer(PEER), false),
        (principal(Prefix, ""), from_peer(PLAINTEXT), false),
        (principal(Suffix, "/sa/web"), from_peer(PEER), true),
        (principal(Suffix, "/sa/we"), from_peer(PEER), false),
        (principal(Suffix, ""), from_peer(PLAINTEXT), false),
        (principal(presence, ""), from_peer(PEER), true),
        (principal(presence, ""), from_peer(PLAINTEXT), false),
        (not_principal(Exact, "td/ns/shop/sa/web"), from_peer(PEER), false),
        (not_principal(Exact, "td/ns/shop/sa/web"), from_peer(ALIAS), true),
        (not_principal(Exact, "td/ns/shop/sa/web"), from_peer(PLAINTEXT), true),
        (not_principal(presence, ""), from_peer(PEER), false),
        (not_principal(presence, ""), from_peer(PLAINTEXT), true),
        // By namespace: of whatever trust domain.
        (namespace(Exact, "shop"), from_peer(PEER), true),
        (namespace(Exact, "shop"), from_peer(FOREIGN), true),
        (namespace(Exact, "sho"), from_peer(PEER), false),
        (namespace(Exact, "shop"), from_peer(PLAINTEXT), false),
        (namespace(Prefix, "sh"), from_peer(PEER), true),
        (namespace(Prefix, "shopping"), from_peer(PEER), false),
        (namespace(Suffix, "op"), from_peer(PEER), true),
        (namespace(Suffix, "web"), from_peer(PEER), false),
        (namespace(presence, ""), from_peer(PEER), true),
        (namespace(presence, ""), from_peer(PLAINTEXT), false),
        (not_namespace(Exact, "shop"), from_peer(PEER), false),
        (not_namespace(Exact, "bank"), from_peer(PEER), true),
        (not_namespace(Exact, "shop"), from_peer(PLAINTEXT), true),
        (not_namespace(presence, ""), from_peer(PLAINTEXT), true),
        (not_namespace(presence, ""), from_peer(PEER), false),
        // By service account: of the workload's trust domain or its aliases.
        (account("shop", "web"), from_peer(PEER), true),
        (account("shop", "web"), from_peer(ALIAS), true),
        (account("shop", "web"), from_peer(FOREIGN), false),
        (account("shop", "db"), from_peer(PEER), false),
        (account("bank", "web"), from_peer(PEER), false),
        (account("shop", "web"), from_peer(PLAINTEXT), false),
        (not_account("shop", "web"), from_peer(PEER), false),
        (not_account("shop", "web"), from_peer(ALIAS), false),
        (not_account("shop", "web"), from_peer(FOREIGN), true),
        (not_account("shop", "db"), from_peer(PEER), true),
        (not_account("shop", "web"), from_peer(PLAINTEXT), true),
        // By address.
        (source("10.1.0.0/16"), from_ip("10.1.2.3:1"), true),
        (source("10.1.0.0/16"), from_ip("10.2.2.3:1"), false),
        (source("10.1.2.3/32"), from_ip("10.1.2.3:1"), true),
        (source("10.1.2.3/32"), from_ip("10.1.2.2:1"), false),
        (source("10.9.0.0/16"), from_ip("10.1.2.3:1"), false),
        (source("fd00::/8"), from_ip("[fd00::1]:1"), true),
        (source("fd00::/8"), from_ip("[fe80::1]:1"), false),
        (not_source("10.1.0.0/16"), from_ip("10.1.2.3:1"), false),
        (not_source("10.1.0.0/16"), from_ip("10.2.2.3:1"), true),
        (not_source("10.1.0.0/16"), from_ip("[fd00::1]:1"), true),
        (destination("10.9.0.1/32"), to("10.9.0.1:80"), true),
        (destination("10.9.0.1/32"), to("10.9.0.2:80"), false),
        (destination("10.1.2.3/32"), to("10.9.0.1:80"), false),
        (not_destination("10.9.0.1/32"), to("10.9.0.1:80"), false),
        (not_destination("10.9.0.1/32"), to("10.9.0.2:80"), true),
        // /0 is all of one family, and only of that one.
        (source("0.0.0.0/0"), from_ip("203.0.113.9:1"), true),
        (source("0.0.0.0/0"), from_ip("[fd00::1]:1"), false),
        (source("::/0"), from_ip("[fd00::1]:1"), true),
        (source("::/0"), from_ip("203.0.113.9:1"), false),
        (not_source("0.0.0.0/0"), from_ip("203.0.113.9:1"), false),
        // v4-mapped is IPv4.
        (source("10.1.0.0/16"), from_ip("[::ffff:10.1.2.3]:1"), true),
        (source("10.1.0.0/16"), from_ip("[::ffff:10.2.2.3]:1"), false),
        (source("0.0.0.0/0"), from_ip("[::ffff:10.1.2.3]:1"), true),
        (source("::/0"), from_ip("[::ffff:10.1.2.3]:1"), false),
        (source("10.1.0.0/16"), from_ip("[::10.1.2.3]:1"), false),
        (not_source("10.1.0.0/16"), from_ip("[::ffff:10.1.2.3]:1"), false),
        (destination("10.9.0.0/16"), to("[::ffff:10.9.0.1]:80"), true),
        (not_destination("10.9.0.0/16"), to("[::ffff:10.9.0.1]:80"), false),
        // By port: the destination's.
        (port(80), to("10.9.0.1:80"), true),
        (port(443), to("10.9.0.1:80"), false),
        (port(4000), to("10.9.0.1:80"), false),
        (not_port(80), to("10.9.0.1:80"), false),
        (not_port(443), to("10.9.0.1:80"), true),
        (not_port(4000), to("10.9.0.1:80"), true),
        // Kinds are ANDed, values of a kind ORed, a negative spoils it all.
        (Match { destination_ports: vec![443, 80], ..nothing() }, to("10.9.0.1:80"), true),
        (Match { destination_ports: vec![80], ..namespace(Exact, "shop") }, from_peer(PEER), true),
        (Match { destination_ports: vec![80], ..namespace(Exact, "x") }, from_peer(PEER), false),
        (Match { destination_ports: vec![1], ..namespace(Exact, "shop") }, from_peer(PEER), false),
        (Match { not_destination_ports: vec![80], ..port(80) }, to("10.9.0.1:80"), false),
        (Match { not_destination_ports: vec![1, 80], ..nothing() }, to("10.9.0.1:80"), false),
        // An empty match matches nothing.
        (nothing(), from_peer(PEER), false),
        (nothing(), from_peer(PLAINTEXT), false),
    ];
    for (m, request, matches) in rows {
        matches_in_every_kind_of_policy(&request, one(m), matches);
    }
}

#[test]
fn rules_and_clauses() {
    let (yes, no) = (|| port(80), || port(443));
    let rows = [
        (all_of([]), true),
        (all_of([vec![]]), true),
        (all_of([vec![], vec![no()]]), false),
        (all_of([vec![nothing()]]), false),
        (all_of([vec![nothing(), yes()]]), true),
        (all_of([vec![no(), yes()]]), true),
        (all_of([vec![yes()], vec![yes()]]), true),
        (all_of([vec![yes()], vec![no()]]), false),
    ];
    for (rule, matches) in rows {
        matches_in_every_kind_of_policy(&from_peer(PEER), rule, matches);
    }
}

/// The rule comes second, after one that does not match: a decision must name the right one.
fn matches_in_every_kind_of_policy(request: &Request, rule: Rule, matches: bool) {
    let case = format!("{rule:?} and {request:?}");
    let rules = vec![one(nothing()), rule];
    let matched = |action| Decision::Matched { policy: name("policy"), action, rule: 1 };

    let allow = policy(Action::Allow, rules.clone());
    assert_eq!(!meaning::matching_rules(request, &allow).is_empty(), matches, "reference: {case}");
    let decision = match matches {
        true => matched(Action::Allow),
        false => Decision::NoAllowMatched { nearest: name("policy") },
    };
    is_judged(request, vec![Entry::Known(allow)], matches, decision, &case);

    let deny = policy(Action::Deny, rules.clone());
    let decision = if matches { matched(Action::Deny) } else { Decision::NoPolicy };
    is_judged(request, vec![Entry::Known(deny)], !matches, decision, &case);

    for action in [Action::Allow, Action::Deny] {
        let dry_run = Policy { dry_run: true, ..policy(action, rules.clone()) };
        let verdict = judge(request, &[Entry::Known(dry_run)]);
        let reported = if matches { vec![name("policy")] } else { vec![] };
        let expected = Verdict { allowed: true, decision: Decision::NoPolicy, dry_run: reported };
        assert_eq!(verdict, expected, "dry run, {case}");
    }
}

fn is_judged(
    request: &Request,
    entries: Vec<Entry>,
    allowed: bool,
    decision: Decision,
    case: &str,
) {
    let verdict = judge(request, &entries);
    assert_eq!(verdict, Verdict { allowed, decision, dry_run: vec![] }, "{case}");
    assert_eq!(meaning::outcome(request, &entries).allowed(), allowed, "reference: {case}");
}

/// STRICT mutual TLS is such a policy.
#[test]
fn strict_denies_plaintext_only() {
    let strict = || Entry::Known(policy(Action::Deny, vec![one(not_principal(presence, ""))]));
    let denied = Decision::Matched { policy: name("policy"), action: Action::Deny, rule: 0 };
    is_judged(&from_peer(PLAINTEXT), vec![strict()], false, denied, "plaintext");
    for peer in [PEER, ALIAS, FOREIGN] {
        is_judged(&from_peer(peer), vec![strict()], true, Decision::NoPolicy, peer);
    }
}

#[test]
fn policies_without_rules_never_match() {
    let request = from_peer(PEER);
    let none = |action| Entry::Known(policy(action, vec![]));
    let nearest = name("policy");
    let decision = Decision::NoAllowMatched { nearest };
    is_judged(&request, vec![none(Action::Allow)], false, decision, "ALLOW nothing");
    is_judged(&request, vec![none(Action::Deny)], true, Decision::NoPolicy, "DENY nothing");
    is_judged(&request, vec![], true, Decision::NoPolicy, "no policy");
}

#[test]
fn deny_then_unknown_then_allow() {
    let request = from_peer(PEER);
    let of = |called: &str, action, m: Match| {
        Entry::Known(Policy { name: name(called), ..policy(action, vec![one(m)]) })
    };
    let deny = || of("deny", Action::Deny, port(80));
    let allow = || of("allow", Action::Allow, port(80));
    let other = || of("other", Action::Allow, port(443));
    let unknown = || Entry::Missing(name("unknown"));
    let by = |called, action| Decision::Matched { policy: name(called), action, rule: 0 };
    let nobody = |nearest| Decision::NoAllowMatched { nearest: name(nearest) };
    let lost = || Decision::Unknown { policy: name("unknown") };

    let rows = [
        (vec![allow(), deny()], false, by("deny", Action::Deny)),
        (vec![unknown(), allow(), deny()], false, by("deny", Action::Deny)),
        (vec![allow(), unknown()], false, lost()),
        (vec![unknown()], false, lost()),
        (vec![other(), unknown()], false, lost()),
        (vec![other(), allow()], true, by("allow", Action::Allow)),
        (vec![other()], false, nobody("other")),
    ];
    for (entries, allowed, decision) in rows {
        let case = format!("{entries:?}");
        is_judged(&request, entries, allowed, decision, &case);
    }
}
