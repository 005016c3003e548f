//! What policies mean at their edges, in the words of the wire.

use crate::scene::{PORT, Scene, allow, block, deny, exact, rule, scene, scene_with};
use culvert_tests::stage::record;
use culvert_tests::{at, attempt};
use scripted::messages::{policy, response, workload};
use testbed::eventually;
use xds::proto::{security, workload as pb};
use xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

fn match_of(m: security::Match) -> Vec<security::Rule> {
    vec![rule(m)]
}

/// Each policy alone, and whether alice gets in under it.
#[track_caller]
fn judged(s: &mut Scene, cases: Vec<(&str, security::Authorization, bool)>) {
    for (what, p, passes) in cases {
        s.put_policy(&p);
        match passes {
            true => s.passes(what),
            false => s.denied(what),
        }
        s.remove_policy(&format!("{}/{}", p.namespace, p.name));
    }
    s.passes("without a policy");
    s.undisturbed();
}

#[test]
fn policies_without_rules_and_rules_without_conditions() {
    let mut s = scene("empty-rules");
    let all = || vec![security::Rule::default()];
    let no_clause_matches = || vec![security::Rule { clauses: vec![security::Clause::default()] }];
    let empty_match = || match_of(security::Match::default());
    judged(
        &mut s,
        vec![
            ("ALLOW without rules lets nobody in", allow("a", vec![]), false),
            ("DENY without rules keeps nobody out", deny("a", vec![]), true),
            ("ALLOW for all", allow("a", all()), true),
            ("DENY for all", deny("a", all()), false),
            ("a clause without matches is true", deny("a", no_clause_matches()), false),
            ("an empty match is not", deny("a", empty_match()), true),
            ("nor does it allow", allow("a", empty_match()), false),
        ],
    );
}

/// IPv4-mapped IPv6 is how some control planes write IPv4.
#[test]
fn address_blocks_at_their_limits() {
    let mut s = scene("blocks");
    let alice = s.alice.ipv4().octets();
    let mapped = |ip: [u8; 4]| [&[0; 10][..], &[0xff, 0xff], &ip].concat();
    let source = |b| match_of(security::Match { source_ips: vec![b], ..Default::default() });
    let not_source =
        |b| match_of(security::Match { not_source_ips: vec![b], ..Default::default() });
    judged(
        &mut s,
        vec![
            ("0.0.0.0/0 is all of IPv4", deny("a", source(block(&[0; 4], 0))), false),
            ("::/0 is none of it", deny("a", source(block(&[0; 16], 0))), true),
            ("alice mapped", deny("a", source(block(&mapped(alice), 128))), false),
            ("alice's block, mapped", deny("a", source(block(&mapped(alice), 120))), false),
            ("all of IPv4, mapped", deny("a", source(block(&mapped([0; 4]), 96))), false),
            ("another, mapped", deny("a", source(block(&mapped([192, 0, 2, 1]), 128))), true),
            ("not in 0.0.0.0/0 is nobody", allow("a", not_source(block(&[0; 4], 0))), false),
            ("not alice, mapped", allow("a", not_source(block(&mapped(alice), 128))), false),
        ],
    );
}

/// An identity is its whole name: the same namespace and account of another trust domain is somebody else.
#[test]
fn a_trust_domain_is_part_of_who_somebody_is() {
    let mut s = scene("trust-domains");
    let principal = |p: &str| security::Match { principals: vec![exact(p)], ..Default::default() };
    let account = security::Match {
        service_accounts: vec![security::ServiceAccountMatch {
            namespace: "default".into(),
            service_account: "alice".into(),
        }],
        ..Default::default()
    };
    let namespace = |n: &str| security::Match { namespaces: vec![exact(n)], ..Default::default() };
    let not_namespace =
        |n: &str| security::Match { not_namespaces: vec![exact(n)], ..Default::default() };
    let with_domain = security::Match {
        namespaces: vec![exact("default")],
        principals: vec![exact("elsewhere.local/ns/default/sa/alice")],
        ..Default::default()
    };
    judged(
        &mut s,
        vec![
            ("her own", allow("a", match_of(principal("cluster.local/ns/default/sa/alice"))), true),
            (
                "the same of another domain",
                allow("a", match_of(principal("elsewhere.local/ns/default/sa/alice"))),
                false,
            ),
            (
                "with the scheme, which no principal has",
                allow("a", match_of(principal("spiffe://cluster.local/ns/default/sa/alice"))),
                false,
            ),
            ("her account", allow("a", match_of(account)), true),
            ("another domain and her namespace", allow("a", match_of(with_domain)), false),
            ("her namespace", allow("a", match_of(namespace("default"))), true),
            ("not her namespace", allow("a", match_of(not_namespace("default"))), false),
        ],
    );
    // A peer of another domain, of the same names: not the one that is meant.
    let foreign = pb::Workload { trust_domain: "elsewhere.local".into(), ..record(&s.alice) };
    let nonce = s.nonce();
    let all = vec![workload("2", &foreign)];
    s.stream.exchange(&response(ADDRESS_TYPE, &nonce, all, &[]));
    // What her certificate says is what counts, and not what discovery says of her address.
    let mine = match_of(principal("cluster.local/ns/default/sa/alice"));
    s.put_policy(&allow("a", mine));
    s.passes("by her certificate");
    s.undisturbed();
}

/// A peer in plaintext has no namespace; a policy that says "not from there" lets it pass, as it does in Istio, and
/// one that says "from there" does not.
#[test]
fn a_plaintext_peer_has_no_name_to_be_matched() {
    let mut s = scene("plaintext-peer");
    let plain = s.stage.pod("plain");
    let mut unmeshed = record(&plain);
    unmeshed.tunnel_protocol = pb::TunnelProtocol::None.into();
    s.put_workload(&unmeshed);
    let namespaces =
        |n: &str| match_of(security::Match { namespaces: vec![exact(n)], ..Default::default() });
    let not_namespaces = |n: &str| {
        match_of(security::Match { not_namespaces: vec![exact(n)], ..Default::default() })
    };
    let presence =
        security::StringMatch { match_type: Some(security::string_match::MatchType::Presence(())) };
    let nameless = || {
        match_of(security::Match { not_principals: vec![presence.clone()], ..Default::default() })
    };
    for (what, p, passes) in [
        ("allowed from default", allow("a", namespaces("default")), false),
        ("denied from default", deny("a", namespaces("default")), true),
        ("allowed from elsewhere than quiet", allow("a", not_namespaces("quiet")), true),
        ("denied from elsewhere than quiet", deny("a", not_namespaces("quiet")), false),
        ("denied without a principal: STRICT", deny("a", nameless()), false),
    ] {
        s.put_policy(&p);
        assert_eq!(attempt(&plain, &s.target()).is_ok(), passes, "{what}");
        s.remove_policy("default/a");
    }
    attempt(&plain, &s.target()).unwrap();
    s.undisturbed();
}

/// The order of the two types is the control plane's to choose; in neither is there a moment in which too much passes.
#[test]
fn addresses_may_come_before_policies_and_the_other_way_round() {
    let guard = security::Authorization {
        scope: security::Scope::WorkloadSelector.into(),
        ..deny("guard", vec![security::Rule::default()])
    };
    let mut s = scene("order");
    let bound =
        pb::Workload { authorization_policies: vec!["default/guard".into()], ..record(&s.server) };
    // The workload first: what it names is not there.
    s.put_workload(&bound);
    s.denied("named and not known");
    s.put_policy(&security::Authorization { rules: vec![], ..guard.clone() });
    s.passes("known, and keeps nobody out");
    // Gone while it is named.
    s.remove_policy("default/guard");
    s.denied("removed while in use");
    s.stage.agent.logged(&["default/guard", "not known"]);
    s.put_workload(&record(&s.server));
    s.passes("no longer named");
    // The policy first: it binds nobody before it is named.
    s.put_policy(&guard);
    s.passes("known and not named");
    s.put_workload(&bound);
    s.denied("named");
    s.undisturbed();
}

/// An agent that has heard of workloads only has not heard who may.
#[test]
fn nothing_passes_before_both_types_have_come() {
    let mut s = scene("half-synced");
    s.stage.agent.kill();
    s.stage.agent.begin();
    s.stream = s.stage.control().stream();
    let all = [&s.server, &s.alice, &s.quiet_client, &s.quiet_server];
    let all = all.iter().map(|p| workload("1", &record(p))).collect();
    s.stream.taken(&response(ADDRESS_TYPE, "a", all, &[]));
    assert!(attempt(&s.alice, &s.target()).is_err(), "without a word about policies");
    s.stream.taken(&response(
        AUTHORIZATION_TYPE,
        "p",
        vec![policy("1", &deny("guard", vec![security::Rule::default()]))],
        &[],
    ));
    s.stage.agent.wait_until_ready();
    s.denied("both have come");
    s.remove_policy("default/guard");
    s.passes("and nothing stands against it");
}

/// A live connection ends when the policy that let it in is taken back, and when its server's record is replaced by
/// one that names a policy nobody knows.
#[test]
fn what_is_taken_back_ends_what_it_allowed() {
    let alice_only = allow(
        "guard",
        match_of(security::Match {
            principals: vec![exact("cluster.local/ns/default/sa/alice")],
            ..Default::default()
        }),
    );
    let nobody = allow("nobody", vec![]);
    let mut s = scene_with("taken-back", &[alice_only, nobody]);
    let open = |s: &Scene| culvert_tests::dialogue::echo_to(&s.alice, &s.target()).unwrap();
    let live = open(&s);
    culvert_tests::echo(&live, 100, 1).unwrap();
    s.remove_policy("default/guard");
    assert_eq!(live.read_exact(1).unwrap_err().kind(), "ECONNRESET");
    s.denied("only an ALLOW for nobody is left");
    s.remove_policy("default/nobody");
    let live = open(&s);
    culvert_tests::echo(&live, 100, 2).unwrap();
    s.put_workload(&pb::Workload {
        authorization_policies: vec!["default/unheard-of".into()],
        ..record(&s.server)
    });
    assert_eq!(live.read_exact(1).unwrap_err().kind(), "ECONNRESET");
    s.denied("it names what nobody knows");
    s.undisturbed();
}

/// The record of a pod is removed while the pod lives: nobody can say who may reach it.
#[test]
fn a_workload_that_is_taken_back_is_reached_by_nobody() {
    let mut s = scene("record-gone");
    s.passes("before");
    let uid = s.server.uid();
    s.taken(ADDRESS_TYPE, vec![], &[&uid, "Kubernetes//Pod/default/never-heard-of"]);
    // By a client that has the address from before, as another node's agent would: in plaintext it is refused.
    let plain = s.stage.pod("plain");
    assert!(attempt(&plain, &at(s.server.ipv4(), PORT)).is_err());
    assert!(attempt(&s.alice, &s.target()).is_err());
    s.put_workload(&record(&s.server));
    eventually(culvert_tests::SOON, || Ok(attempt(&s.alice, &s.target())?)).unwrap();
    s.undisturbed();
}

/// A policy in the root namespace holds for all; one of another namespace for nobody here.
#[test]
fn scope_decides_whom_a_policy_binds() {
    let mut s = scene("scopes");
    let all = || vec![security::Rule::default()];
    let of = |namespace: &str, scope: security::Scope| security::Authorization {
        namespace: namespace.into(),
        scope: scope.into(),
        ..deny("scoped", all())
    };
    judged(
        &mut s,
        vec![
            ("of another namespace", of("elsewhere", security::Scope::Namespace), true),
            ("by selector, and not named", of("default", security::Scope::WorkloadSelector), true),
            ("of its own namespace", of("default", security::Scope::Namespace), false),
        ],
    );
    // Not among the cases above: this one holds for the innocent pair, too.
    let quiet = s.quiet.tally().failed;
    s.put_policy(&of("istio-system", security::Scope::Global));
    s.denied("everybody's");
    s.quiet.fails(quiet + 1);
    s.remove_policy("istio-system/scoped");
    s.passes("removed");
    // Never enforced: reported alone.
    s.put_policy(&security::Authorization { dry_run: true, ..deny("dry", all()) });
    s.passes("a dry run");
}
