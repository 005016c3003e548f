//! Requests and policies over alphabets so small that they often meet, with neighbours in them
//! that a sloppy comparison would take for each other.

use crate::meaning::Entry;
use identity::SpiffeId;
use ipnet::IpNet;
use policy::{
    Action, Clause, Match, Policy, PolicyName, Request, Rule, Scope, ServiceAccountMatch,
    StringMatch,
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::net::{IpAddr, SocketAddr};

const TRUST_DOMAINS: [&str; 3] = ["td", "td2", "old.td"];
const NAMESPACES: [&str; 4] = ["a", "ab", "b", "A"];
const SERVICE_ACCOUNTS: [&str; 3] = ["x", "xy", "a"];
/// Of the source too, so that taking the wrong one shows.
const PORTS: [u16; 3] = [80, 443, 8080];
/// The last two hold an IPv4 address but are not v4-mapped.
const ADDRESSES: [&str; 9] = [
    "10.0.0.1",
    "10.0.1.1",
    "11.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:10.0.1.1",
    "fd00::1",
    "fd00:0:0:1::1",
    "::10.0.0.1",
    "64:ff9b::10.0.0.1",
];
const NETS: [&str; 10] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/23",
    "10.0.0.0/24",
    "10.0.0.9/24",
    "10.0.0.1/32",
    "::/0",
    "fd00::/48",
    "fd00::/64",
    "fd00::1/128",
];

pub fn request() -> impl Strategy<Value = Request> {
    let part = |part: &'static [&'static str]| select(part);
    let id = (part(&TRUST_DOMAINS), part(&NAMESPACES), part(&SERVICE_ACCOUNTS))
        .prop_map(|(td, ns, sa)| SpiffeId::new(td, ns, sa).unwrap());
    let trust_domains = select(vec![&TRUST_DOMAINS[..0], &TRUST_DOMAINS[..1], &TRUST_DOMAINS[..2]]);
    (option::weighted(0.8, id), socket(), socket(), trust_domains).prop_map(
        |(peer, source, destination, trust_domains)| Request {
            peer,
            source,
            destination,
            trust_domains: trust_domains.iter().map(|&td| td.into()).collect(),
        },
    )
}

fn socket() -> impl Strategy<Value = SocketAddr> {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    (select(&ADDRESSES[..]), select(&PORTS[..]))
        .prop_map(move |(address, port)| SocketAddr::new(ip(address), port))
}

/// Every policy has a name of its own, so that a decision can be held to it.
pub fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = prop_oneof![9 => policy("").prop_map(Some), 1 => Just(None)];
    vec(entry, 0..6).prop_map(|entries| {
        let named = |(i, entry): (usize, Option<Policy>)| {
            let name = name(&format!("p{i}"));
            match entry {
                Some(policy) => Entry::Known(Policy { name, ..policy }),
                None => Entry::Missing(name),
            }
        };
        entries.into_iter().enumerate().map(named).collect()
    })
}

pub fn policy(called: &str) -> impl Strategy<Value = Policy> + use<> {
    let name = name(called);
    let scope = select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    let action = select(vec![Action::Allow, Action::Deny]);
    (scope, action, vec(rule(), 0..4), prop::bool::weighted(0.25)).prop_map(
        move |(scope, action, rules, dry_run)| Policy {
            name: name.clone(),
            scope,
            action,
            rules,
            dry_run,
        },
    )
}

pub fn name(name: &str) -> PolicyName {
    PolicyName { namespace: "ns".into(), name: name.into() }
}

/// Seldom without clauses or matches: those are true and would drown the rest.
fn rule() -> impl Strategy<Value = Rule> {
    let clauses = prop_oneof![1 => Just(0), 20 => 1..3usize];
    clauses.prop_flat_map(|len| vec(clause(), len)).prop_map(|clauses| Rule { clauses })
}

fn clause() -> impl Strategy<Value = Clause> {
    let matches = prop_oneof![1 => Just(0), 20 => 1..3usize];
    matches.prop_flat_map(|len| vec(match_(), len)).prop_map(|matches| Clause { matches })
}

fn match_() -> impl Strategy<Value = Match> {
    let net = || select(&NETS[..]).prop_map(|text| text.parse::<IpNet>().unwrap());
    let port = || select(&PORTS[..]);
    (both(namespace), both(principal), both(service_account), both(net), both(net), both(port))
        .prop_map(|(namespaces, principals, service_accounts, sources, destinations, ports)| {
            Match {
                namespaces: namespaces.0,
                not_namespaces: namespaces.1,
                principals: principals.0,
                not_principals: principals.1,
                service_accounts: service_accounts.0,
                not_service_accounts: service_accounts.1,
                source_ips: sources.0,
                not_source_ips: sources.1,
                destination_ips: destinations.0,
                not_destination_ips: destinations.1,
                destination_ports: ports.0,
                not_destination_ports: ports.1,
            }
        })
}

/// A kind's positives and negatives, mostly absent: a match with everything matches nothing.
fn both<S: Strategy>(of: impl Fn() -> S) -> impl Strategy<Value = (Vec<S::Value>, Vec<S::Value>)>
where
    S::Value: Clone,
{
    let list = |weight| prop_oneof![6 => Just(vec![]), weight => vec(of(), 1..3)];
    (list(2), list(1))
}

fn namespace() -> impl Strategy<Value = StringMatch> {
    let exact = vec!["a", "ab", "b", "A", ""];
    let affix = || vec!["a", "b", "abc", "", "td"];
    string(exact, affix(), affix())
}

/// With the scheme too: an id is compared without it, so these match nobody.
fn principal() -> impl Strategy<Value = StringMatch> {
    let exact =
        vec!["td/ns/a/sa/x", "td/ns/ab/sa/xy", "td2/ns/b/sa/a", "spiffe://td/ns/a/sa/x", "td", ""];
    let prefix = vec!["td/ns/a", "td/ns/a/", "td", "td2/", "spiffe://td", ""];
    let suffix = vec!["/sa/x", "y", "td/ns/a/sa/x", "d/ns/a/sa/x", "/ns/b/sa/xy", ""];
    string(exact, prefix, suffix)
}

fn string(
    exact: Vec<&'static str>,
    prefix: Vec<&'static str>,
    suffix: Vec<&'static str>,
) -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        2 => select(exact).prop_map(|s| StringMatch::Exact(s.to_owned())),
        2 => select(prefix).prop_map(|s| StringMatch::Prefix(s.to_owned())),
        2 => select(suffix).prop_map(|s| StringMatch::Suffix(s.to_owned())),
        1 => Just(StringMatch::Presence),
    ]
}

fn service_account() -> impl Strategy<Value = ServiceAccountMatch> {
    (select(&NAMESPACES[..]), select(&SERVICE_ACCOUNTS[..])).prop_map(|(ns, sa)| {
        ServiceAccountMatch { namespace: ns.to_owned(), service_account: sa.to_owned() }
    })
}
