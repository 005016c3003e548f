//! HTTP policies of a host, judged.

use super::{Ask, get};
use http::Method;
use policy::{Match, Request};
use proptest::prelude::*;
use routes::{
    execute::{HttpPolicies, HttpVerdict},
    proto::{
        self, PathMatch, PolicyAction, PolicyMatch, StringMatch, path_match, string_match::Kind,
    },
};

/// A connection is asked for its destination's port, in text.
fn connection(bytes: &[u8]) -> Result<Match, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    let port = text.parse().map_err(|_| format!("{text:?} is no port"))?;
    Ok(Match { destination_ports: vec![port], ..Match::default() })
}

fn request() -> Request {
    Request {
        peer: None,
        source: "10.0.0.1:40000".parse().unwrap(),
        destination: "10.0.0.2:9080".parse().unwrap(),
        trust_domains: ["cluster.local".into()].into(),
    }
}

/// One rule per match.
fn policy(name: &str, action: PolicyAction, rules: &[PolicyMatch]) -> proto::HttpPolicy {
    let rule = |m: &PolicyMatch| proto::PolicyRule {
        clauses: vec![proto::PolicyClause { matches: vec![m.clone()] }],
    };
    proto::HttpPolicy {
        namespace: "shop".into(),
        name: name.into(),
        action: action as i32,
        dry_run: false,
        rules: rules.iter().map(rule).collect(),
    }
}

fn judged(all: &[proto::HttpPolicy], ask: &Ask) -> String {
    let policies = HttpPolicies::load(all, &connection).unwrap();
    policies.judge(&ask.view(), &request()).to_string()
}

fn exact(s: &str) -> StringMatch {
    StringMatch { kind: Some(Kind::Exact(s.into())) }
}

fn suffix(s: &str) -> StringMatch {
    StringMatch { kind: Some(Kind::Suffix(s.into())) }
}

fn prefix(s: &str) -> StringMatch {
    StringMatch { kind: Some(Kind::Prefix(s.into())) }
}

fn path(s: StringMatch) -> PathMatch {
    PathMatch { kind: Some(path_match::Kind::Text(s)) }
}

fn template(s: &str) -> PathMatch {
    PathMatch { kind: Some(path_match::Kind::Template(s.into())) }
}

fn m() -> PolicyMatch {
    PolicyMatch::default()
}

fn methods(all: &[&str]) -> PolicyMatch {
    PolicyMatch { methods: all.iter().map(|m| (*m).to_owned()).collect(), ..m() }
}

/// Whether one match holds of a request.
fn holds(m: PolicyMatch, ask: &Ask) -> bool {
    judged(&[policy("p", PolicyAction::Allow, &[m])], ask) == "allowed"
}

use PolicyAction::{Allow, Deny};

#[test]
fn without_policies_everything_is_allowed() {
    assert_eq!(judged(&[], &get("/")), "allowed");
    assert!(HttpPolicies::default().is_empty());
}

#[test]
fn where_allow_policies_apply_one_of_them_must_match() {
    let all = [policy("a", Allow, &[methods(&["GET"])]), policy("b", Allow, &[methods(&["PUT"])])];
    assert_eq!(judged(&all, &get("/")), "allowed");
    let put = Ask { method: Method::PUT, ..get("/") };
    assert_eq!(judged(&all, &put), "allowed");
    let post = Ask { method: Method::POST, ..get("/") };
    let why = "no allow policy matched (applied: shop/a and any others)";
    assert_eq!(judged(&all, &post), why);
    // Allow-nothing: no rule matches ever.
    assert!(judged(&[policy("a", Allow, &[])], &get("/")).starts_with("no allow policy"));
}

#[test]
fn a_rule_that_asks_nothing_matches_everything() {
    let mut p = policy("a", Allow, &[]);
    p.rules.push(proto::PolicyRule::default());
    assert_eq!(judged(&[p.clone()], &get("/")), "allowed");
    p.action = Deny as i32;
    assert_eq!(judged(&[p], &get("/")), "deny policy shop/a, rule 0");
}

#[test]
fn deny_comes_first_wherever_it_stands() {
    let allow = policy("a", Allow, &[m()]);
    let deny = policy("d", Deny, &[methods(&["PUT"]), methods(&["GET"])]);
    let why = "deny policy shop/d, rule 1";
    assert_eq!(judged(&[allow.clone(), deny.clone()], &get("/")), why);
    assert_eq!(judged(&[deny.clone(), allow], &get("/")), why);
    // A deny policy that does not match allows, where no allow policy applies.
    let post = Ask { method: Method::POST, ..get("/") };
    assert_eq!(judged(&[deny], &post), "allowed");
}

#[test]
fn a_policy_on_trial_never_decides_and_is_told_of() {
    let mut deny = policy("d", Deny, &[m()]);
    let mut allow = policy("a", Allow, &[methods(&["PUT"])]);
    (deny.dry_run, allow.dry_run) = (true, true);
    let policies = HttpPolicies::load(&[deny, allow], &connection).unwrap();
    let (ask, connection) = (get("/"), request());
    let view = ask.view();
    assert_eq!(policies.judge(&view, &connection), HttpVerdict::Allowed);
    let told: Vec<String> =
        policies.on_trial(&view, &connection).map(ToString::to_string).collect();
    assert_eq!(told, ["shop/d"]);
    assert!(!policies.is_empty());
}

#[test]
fn hosts_are_with_and_without_their_port_and_of_any_case() {
    let host = |m: StringMatch| PolicyMatch { hosts: vec![m], ..PolicyMatch::default() };
    let to = |authority| Ask { authority, ..get("/") };
    assert!(holds(host(exact("reviews")), &to("reviews:9080")));
    assert!(holds(host(exact("Reviews")), &to("reviews")));
    assert!(holds(host(exact("reviews:9080")), &to("reviews:9080")));
    assert!(!holds(host(exact("reviews:9081")), &to("reviews:9080")));
    assert!(holds(host(suffix(".example.com")), &to("a.example.com:80")));
    assert!(!holds(host(suffix(".example.com")), &to("example.com")));
    assert!(holds(host(prefix("a.")), &to("a.example.com")));
    let not = PolicyMatch { not_hosts: vec![exact("reviews")], ..m() };
    assert!(!holds(not.clone(), &to("reviews:9080")));
    assert!(holds(not, &to("ratings")));
}

#[test]
fn methods_and_paths_are_matched() {
    assert!(holds(methods(&["POST", "GET"]), &get("/")));
    assert!(!holds(methods(&["POST"]), &get("/")));
    assert!(holds(methods(&["*"]), &get("/")) && holds(methods(&["G*"]), &get("/")));
    let not = PolicyMatch { not_methods: vec!["GET".into()], ..m() };
    assert!(!holds(not, &get("/")));
    let of = |p: PathMatch| PolicyMatch { paths: vec![p], ..m() };
    assert!(holds(of(path(exact("/a"))), &get("/a?q=1")));
    assert!(!holds(of(path(exact("/a"))), &get("/a/")));
    assert!(!holds(of(path(exact("/a"))), &get("/A")));
    assert!(holds(of(path(prefix("/a/"))), &get("/a/b")));
    assert!(holds(of(path(suffix(".txt"))), &get("/a/b.txt?q")));
    assert!(holds(of(template("/a/{*}/c")), &get("/a/b/c")));
    assert!(!holds(of(template("/a/{*}/c")), &get("/a/b/b/c")));
    let not = PolicyMatch {
        paths: vec![path(prefix("/a"))],
        not_paths: vec![path(exact("/a/x"))],
        ..m()
    };
    assert!(holds(not.clone(), &get("/a/y")));
    assert!(!holds(not, &get("/a/x")));
}

#[test]
fn headers_are_matched_by_any_of_their_values() {
    let of = |values: &[StringMatch], not: &[StringMatch]| PolicyMatch {
        headers: vec![proto::HeaderValues {
            name: "X-Token".into(),
            values: values.to_vec(),
            not_values: not.to_vec(),
        }],
        ..PolicyMatch::default()
    };
    let with = |value| get("/").with("x-token", value);
    assert!(holds(of(&[exact("a"), prefix("b")], &[]), &with("bb")));
    assert!(!holds(of(&[exact("a"), prefix("b")], &[]), &with("c")));
    assert!(!holds(of(&[exact("a")], &[]), &get("/")));
    // What must not be is not where nothing is.
    assert!(holds(of(&[], &[exact("a")]), &get("/")));
    assert!(!holds(of(&[], &[exact("a")]), &with("a")));
    assert!(holds(of(&[prefix("a")], &[exact("ab")]), &with("aa")));
    assert!(!holds(of(&[prefix("a")], &[exact("ab")]), &with("ab")));
}

#[test]
fn a_match_is_all_of_its_kinds_a_clause_any_of_its_matches_and_a_rule_all_of_its_clauses() {
    let both = PolicyMatch { paths: vec![path(prefix("/a"))], ..methods(&["GET"]) };
    assert!(holds(both.clone(), &get("/a")));
    assert!(!holds(both, &get("/b")));
    let mut p = policy("p", Allow, &[]);
    p.rules.push(proto::PolicyRule {
        clauses: vec![
            proto::PolicyClause { matches: vec![methods(&["PUT"]), methods(&["GET"])] },
            proto::PolicyClause {
                matches: vec![PolicyMatch { paths: vec![path(exact("/a"))], ..m() }],
            },
            // Of nothing, which holds.
            proto::PolicyClause::default(),
        ],
    });
    assert_eq!(judged(&[p.clone()], &get("/a")), "allowed");
    assert!(judged(&[p], &get("/b")).starts_with("no allow"));
}

#[test]
fn what_a_connection_has_is_asked_with_the_rest() {
    let of = |port: &str| PolicyMatch { connection: port.into(), ..methods(&["GET"]) };
    assert!(holds(of("9080"), &get("/")));
    assert!(!holds(of("9081"), &get("/")));
    assert!(!holds(of("9080"), &Ask { method: Method::PUT, ..get("/") }));
}

#[test]
fn what_cannot_be_known_never_holds() {
    assert!(!holds(PolicyMatch { unknown: true, ..m() }, &get("/")));
}

#[test]
fn a_policy_that_cannot_be_judged_is_refused_whole() {
    let refused = |p: proto::HttpPolicy| HttpPolicies::load(&[p], &connection).unwrap_err();
    let of = |m| policy("p", Deny, &[m]);
    refused(of(PolicyMatch { connection: "no port".into(), ..m() }));
    refused(of(PolicyMatch { hosts: vec![StringMatch::default()], ..m() }));
    refused(of(PolicyMatch { paths: vec![template("/{x}")], ..m() }));
    refused(of(PolicyMatch { paths: vec![PathMatch::default()], ..m() }));
    refused(proto::HttpPolicy { action: 7, ..of(m()) });
}

/// As the agent has it for connections: a DENY is wider for what it cannot see, an ALLOW narrower.
#[test]
fn of_a_connection_without_requests_what_asks_for_one_denies_and_does_not_allow() {
    let judged = |action, m: PolicyMatch| {
        let policies = HttpPolicies::load(&[policy("p", action, &[m])], &connection).unwrap();
        policies.judge_connection(&request()) == HttpVerdict::Allowed
    };
    let get = || PolicyMatch { methods: vec!["GET".into()], ..m() };
    let port = |p: &str| PolicyMatch { connection: p.into(), ..m() };
    assert!(!judged(Deny, get()) && !judged(Allow, get()));
    assert!(!judged(Deny, port("9080")) && judged(Allow, port("9080")));
    assert!(judged(Deny, port("81")) && !judged(Allow, port("81")));
    let both = |p: &str| PolicyMatch { methods: vec!["GET".into()], ..port(p) };
    assert!(!judged(Deny, both("9080")) && judged(Deny, both("81")));
    assert!(!judged(Allow, both("9080")));
}

fn some_match() -> impl Strategy<Value = PolicyMatch> {
    let method = || prop::collection::vec(prop::sample::select(&["GET", "PUT", "*"][..]), 0..2);
    (method(), method(), any::<bool>()).prop_map(|(yes, no, known)| PolicyMatch {
        not_methods: no.into_iter().map(str::to_owned).collect(),
        unknown: !known,
        ..methods(&yes)
    })
}

fn some_policy() -> impl Strategy<Value = proto::HttpPolicy> {
    let rules = prop::collection::vec(some_match(), 0..3);
    (any::<bool>(), any::<bool>(), rules, "[a-c]").prop_map(|(deny, dry_run, rules, name)| {
        let action = if deny { Deny } else { Allow };
        proto::HttpPolicy { dry_run, ..policy(&name, action, &rules) }
    })
}

proptest! {
    #[test]
    fn policies_on_trial_change_no_verdict(
        all in prop::collection::vec(some_policy(), 0..6),
        put in any::<bool>(),
    ) {
        let ask = Ask { method: if put { Method::PUT } else { Method::GET }, ..get("/") };
        let enforced: Vec<_> = all.iter().filter(|p| !p.dry_run).cloned().collect();
        let verdict = judged(&all, &ask);
        prop_assert_eq!(&verdict, &judged(&enforced, &ask));
        // As Istio says it: what any DENY matches is denied; else without an ALLOW it is allowed, and
        // with some only where one matches.
        let matches = |p: &&proto::HttpPolicy| {
            judged(&[proto::HttpPolicy { action: Deny as i32, ..(*p).clone() }], &ask) != "allowed"
        };
        let of = |action: PolicyAction| enforced.iter().filter(move |p| p.action() == action);
        let denied = of(Deny).any(|p| matches(&p));
        let allowed = of(Allow).next().is_none() || of(Allow).any(|p| matches(&p));
        prop_assert_eq!(verdict == "allowed", !denied && allowed);
    }
}

/// A rule's header, by the values that it asks for and those that it does not want.
fn header(name: &str, values: &[&str], not_values: &[&str]) -> PolicyMatch {
    let texts = |all: &[&str]| all.iter().map(|v| exact(v)).collect();
    let asked = proto::HeaderValues {
        name: name.into(),
        values: texts(values),
        not_values: texts(not_values),
    };
    PolicyMatch { headers: vec![asked], ..m() }
}

/// Which of them an application goes by nobody knows.
#[test]
fn of_a_header_that_comes_several_times_one_is_enough_to_deny_and_all_are_needed_to_allow() {
    let sent = |lines: &[&str]| lines.iter().fold(get("/"), |ask, line| ask.with("x-role", line));
    let role = |values: &[&str], not_values: &[&str]| header("x-role", values, not_values);
    let denied = |m: PolicyMatch, lines: &[&str]| {
        judged(&[policy("p", Deny, &[m])], &sent(lines)) != "allowed"
    };
    let allowed = |m: PolicyMatch, lines: &[&str]| holds(m, &sent(lines));
    for lines in [["user", "admin"], ["admin", "user"]] {
        assert!(denied(role(&["admin"], &[]), &lines));
        assert!(!allowed(role(&["admin"], &[]), &lines));
        assert!(allowed(role(&["admin", "user"], &[]), &lines));
        // To have what is not wanted beside something else is to have it, and to be something else.
        assert!(!allowed(role(&[], &["admin"]), &lines));
        assert!(denied(role(&[], &["admin"]), &lines));
    }
    // What they are as one text denies as well, and allows nothing: `admin*` would hold of it.
    assert!(denied(role(&["user,admin"], &[]), &["user", "admin"]));
    assert!(!allowed(role(&["user,admin"], &[]), &["user", "admin"]));
    let begins = proto::HeaderValues {
        name: "x-role".into(),
        values: vec![prefix("admin")],
        not_values: Vec::new(),
    };
    let begins = PolicyMatch { headers: vec![begins], ..m() };
    assert!(allowed(begins.clone(), &["admin", "admin2"]));
    assert!(!allowed(begins, &["admin", "root"]));
    for (lines, is_admin) in [(&["admin"][..], true), (&["user"], false), (&[], false)] {
        let decided = |m: PolicyMatch| [denied(m.clone(), lines), allowed(m, lines)];
        assert_eq!(decided(role(&["admin"], &[])), [is_admin; 2], "{lines:?}");
        assert_eq!(decided(role(&[], &["admin"])), [!is_admin; 2], "{lines:?}");
    }
}

#[test]
fn the_name_that_a_tls_client_asked_for_is_a_value_like_any() {
    let of = |sni| Ask { sni, ..get("/") };
    let sni = |values: &[&str], not: &[&str]| header(routes::execute::SNI, values, not);
    assert!(holds(sni(&["a.example"], &[]), &of(Some("a.example"))));
    assert!(!holds(sni(&["a.example"], &[]), &of(Some("b.example"))));
    assert!(!holds(sni(&["a.example"], &[]), &of(None)));
    assert!(holds(sni(&[], &["a.example"]), &of(None)));
    let deny = [policy("p", Deny, &[sni(&["a.example"], &[])])];
    assert_eq!(judged(&deny, &of(Some("a.example"))), "deny policy shop/p, rule 0");
}
