//! Which policies bind a workload: in doubt, more than it would like.

use crate::feed::{Feed as _, deliver, mesh, workload};
use mesh::{Mesh, Workload};
use policy::{Decision, Request};
use prost::Message as _;
use xds::{
    AUTHORIZATION_TYPE,
    client::Apply as _,
    proto::{
        security::{
            Action, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match::MatchType,
        },
        workload as pb,
    },
};

const FRIEND: &str = "cluster.local/ns/a/sa/friend";
const STRANGER: &str = "cluster.local/ns/a/sa/stranger";

/// Of the friend.
fn policy(name: &str, scope: Scope, action: Action) -> Authorization {
    let principal = StringMatch { match_type: Some(MatchType::Exact(FRIEND.to_owned())) };
    let matches = vec![Match { principals: vec![principal], ..Default::default() }];
    let (namespace, name) = name.split_once('/').unwrap();
    Authorization {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: scope as i32,
        action: action as i32,
        rules: vec![Rule { clauses: vec![Clause { matches }] }],
        ..Default::default()
    }
}

fn naming(names: &[&str]) -> pb::Workload {
    pb::Workload {
        // On this node: only what runs here is judged here.
        node: "here".to_owned(),
        authorization_policies: names.iter().map(|n| (*n).to_owned()).collect(),
        ..workload("w", "10.0.0.1")
    }
}

fn held(m: &Mesh) -> std::sync::Arc<Workload> {
    m.workload("w").unwrap()
}

fn judge(m: &Mesh, peer: &str) -> (bool, Decision) {
    let request = Request {
        peer: Some(format!("spiffe://{peer}").parse().unwrap()),
        source: ([10, 0, 0, 9], 40_000).into(),
        destination: ([10, 0, 0, 1], 80).into(),
        trust_domains: ["cluster.local".into()].into(),
    };
    let verdict = m.policies_for(&held(m)).evaluate(&request);
    (verdict.allowed, verdict.decision)
}

fn allows(m: &Mesh, peer: &str) -> bool {
    judge(m, peer).0
}

#[test]
fn scope_decides_whom_a_policy_binds() {
    for (name, scope, named, binds) in [
        ("root/p", Scope::Global, false, true),
        ("ns/p", Scope::Namespace, false, true),
        ("other/p", Scope::Namespace, false, false),
        ("ns/p", Scope::WorkloadSelector, false, false),
        ("ns/p", Scope::WorkloadSelector, true, true),
    ] {
        let m = mesh();
        m.policy(&policy(name, scope, Action::Allow));
        m.put(naming(if named { &["ns/p"] } else { &[] }));
        assert!(allows(&m, FRIEND), "{name} {scope:?}");
        assert_eq!(allows(&m, STRANGER), !binds, "{name} {scope:?}");
    }
}

#[test]
fn a_policy_that_is_named_and_not_known_denies_until_it_comes() {
    let m = mesh();
    m.put(naming(&["ns/p"]));
    assert!(matches!(judge(&m, FRIEND), (false, Decision::Unknown { .. })));
    m.policy(&policy("ns/p", Scope::WorkloadSelector, Action::Allow));
    assert!(allows(&m, FRIEND) && !allows(&m, STRANGER));
    deliver(&m, AUTHORIZATION_TYPE, &[], &["ns/p"]);
    assert!(!allows(&m, FRIEND), "removed, and still named");
    m.put(naming(&[]));
    assert!(allows(&m, FRIEND) && allows(&m, STRANGER));
}

#[test]
fn policies_may_come_before_or_after_what_they_bind() {
    for policy_first in [true, false] {
        let m = mesh();
        let p = policy("ns/p", Scope::WorkloadSelector, Action::Deny);
        if policy_first {
            m.policy(&p);
        }
        m.put(naming(&["ns/p"]));
        m.policy(&p);
        assert!(!allows(&m, FRIEND) && allows(&m, STRANGER));
    }
}

#[test]
fn a_policy_that_cannot_be_understood_denies_where_it_would_have_judged() {
    for scope in [Scope::Global, Scope::Namespace, Scope::WorkloadSelector] {
        let m = mesh();
        m.put(naming(if scope == Scope::WorkloadSelector { &["ns/p"] } else { &[] }));
        let unknown = Authorization { action: 7, ..policy("ns/p", scope, Action::Allow) };
        let rejected = m.try_policy(&unknown);
        assert_eq!(rejected[0].name, "ns/p");
        assert!(rejected[0].reason.contains("unknown action 7"), "{}", rejected[0].reason);
        assert!(!allows(&m, FRIEND) && !allows(&m, STRANGER), "{scope:?}");
        m.policy(&policy("ns/p", scope, Action::Allow));
        assert!(allows(&m, FRIEND), "{scope:?}: the good version takes the place");
        assert!(!allows(&m, STRANGER));
    }
}

#[test]
fn a_rejected_policy_leaves_the_version_before() {
    let m = mesh();
    m.put(naming(&["ns/p"]));
    m.policy(&policy("ns/p", Scope::WorkloadSelector, Action::Allow));
    let unknown =
        Authorization { action: 7, ..policy("ns/p", Scope::WorkloadSelector, Action::Allow) };
    assert_eq!(m.try_policy(&unknown).len(), 1);
    assert!(allows(&m, FRIEND) && !allows(&m, STRANGER));
}

#[test]
fn bytes_that_are_no_policy_deny_in_the_namespace_of_their_name() {
    let m = mesh();
    m.put(naming(&[]));
    let rejected = deliver(&m, AUTHORIZATION_TYPE, &[("ns/p", vec![0xff; 9])], &[]);
    assert_eq!(rejected.len(), 1);
    assert!(!allows(&m, FRIEND));
    deliver(&m, AUTHORIZATION_TYPE, &[], &["ns/p"]);
    assert!(allows(&m, FRIEND));
}

/// The name says one thing and the policy another: it is nobody's, and the name's place denies.
#[test]
fn a_policy_under_another_name_is_rejected_and_denies() {
    let m = mesh();
    m.put(naming(&[]));
    let body = policy("ns/other", Scope::Namespace, Action::Allow).encode_to_vec();
    let rejected = deliver(&m, AUTHORIZATION_TYPE, &[("ns/p", body)], &[]);
    assert_eq!(rejected.len(), 1);
    assert!(!allows(&m, FRIEND));
    assert_eq!(m.policies().len(), 1);
}

#[test]
fn a_change_of_scope_moves_the_policy() {
    let m = mesh();
    m.put(naming(&[]));
    m.policy(&policy("ns/p", Scope::Global, Action::Deny));
    assert!(!allows(&m, FRIEND));
    m.policy(&policy("ns/p", Scope::WorkloadSelector, Action::Deny));
    assert!(allows(&m, FRIEND));
    m.policy(&policy("ns/p", Scope::Namespace, Action::Deny));
    assert!(!allows(&m, FRIEND));
    deliver(&m, AUTHORIZATION_TYPE, &[], &["ns/p"]);
    assert!(allows(&m, FRIEND));
}

#[test]
fn what_comes_twice_counts_once_and_the_last_counts() {
    let m = mesh();
    m.put(naming(&[]));
    let body = |action| policy("ns/p", Scope::Namespace, action).encode_to_vec();
    let twice = [("ns/p", body(Action::Allow)), ("ns/p", body(Action::Deny))];
    assert_eq!(deliver(&m, AUTHORIZATION_TYPE, &twice, &[]), []);
    assert_eq!(m.policies().len(), 1);
    assert!(!allows(&m, FRIEND) && allows(&m, STRANGER));
    // Removed and sent in one response: it is there.
    let again = [("ns/p", body(Action::Deny))];
    assert_eq!(deliver(&m, AUTHORIZATION_TYPE, &again, &["ns/p"]), []);
    assert!(!allows(&m, FRIEND));
}

#[test]
fn a_judgement_is_announced_when_it_may_have_changed() {
    let m = mesh();
    let mut judged = m.judgements();
    let mut moved = || {
        judged.has_changed().unwrap() && {
            judged.mark_unchanged();
            true
        }
    };
    m.put(naming(&[]));
    assert!(moved(), "a workload that is new");
    m.put(naming(&[]));
    assert!(!moved(), "the same again");
    m.put(pb::Workload { status: 1, ..naming(&[]) });
    assert!(!moved(), "health judges nobody");
    m.put(naming(&["ns/p"]));
    assert!(moved(), "another policy");
    m.put(pb::Workload { service_account: "x".to_owned(), ..naming(&["ns/p"]) });
    assert!(moved(), "another identity");
    m.policy(&policy("ns/p", Scope::WorkloadSelector, Action::Allow));
    assert!(moved(), "the policy itself");
    m.put(pb::Workload { uid: "far".to_owned(), node: "there".to_owned(), ..naming(&[]) });
    m.remove("far");
    assert!(!moved(), "another node judges it");
    m.remove("w");
    assert!(moved(), "gone");
}

#[test]
fn nothing_is_judged_before_both_kinds_have_come() {
    let m = mesh();
    let synced = m.synced();
    assert!(!synced.borrow().ready());
    m.put(naming(&[]));
    assert!(!synced.borrow().ready());
    deliver(&m, AUTHORIZATION_TYPE, &[], &[]);
    assert!(synced.borrow().ready());
    assert!(!synced.borrow().connected);
    m.connected(true);
    assert!(synced.borrow().connected);
}
