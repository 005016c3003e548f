//! A VirtualService without hosts, and those that delegate to it.

use super::{REVIEWS, service, world};
use crate::world::{World, refers};
use istio_api::Kind;
use routes::proto::{self, http_route::Action, string_match};

/// A rule of `reviews` that delegates what `matches` to `team/inner`.
fn delegates(matches: &str) -> String {
    format!(
        "{{hosts: [reviews], http: [
           {{match: {matches}, delegate: {{name: inner, namespace: team}}}},
           {{name: rest, route: [{{destination: {{host: reviews}}}}]}}]}}"
    )
}

/// A delegate of one route, to `ratings`.
fn inner(matches: &str) -> String {
    format!("{{http: [{{match: {matches}, route: [{{destination: {{host: ratings}}}}]}}]}}")
}

fn team() -> World {
    let mut w = world();
    w.put(&service("team", "ratings"));
    w
}

const OF_DELEGATE: &str = "team/inner to ratings.team:9080";
const REST: &str = "shop/r to reviews.shop:9080";

/// The matches of the first route.
fn matches(w: &World) -> Vec<proto::HttpMatch> {
    w.table(REVIEWS).ports[0].http[0].matches.clone()
}

#[test]
fn what_is_delegated_is_as_the_delegate_says_in_its_own_namespace() {
    let mut w = team();
    w.route("shop/r", &delegates("[]"));
    w.route("team/inner", &inner("[]"));
    assert_eq!(w.http(REVIEWS), [OF_DELEGATE, REST]);
}

#[test]
fn without_a_namespace_a_delegate_is_of_the_same() {
    let mut w = world();
    w.route("shop/r", "{hosts: [reviews], http: [{delegate: {name: inner}}]}");
    w.route("shop/inner", &inner("[]"));
    assert_eq!(w.http(REVIEWS), ["shop/inner to ratings.shop:9080"]);
}

#[test]
fn a_delegate_that_appears_later_comes_into_effect_and_goes_again() {
    let mut w = team();
    w.route("shop/r", &delegates("[]"));
    assert_eq!(w.http(REVIEWS), [REST]);
    w.route("team/inner", &inner("[]"));
    assert_eq!(w.http(REVIEWS), [OF_DELEGATE, REST]);
    w.route("team/inner", &inner("[{uri: {exact: /x}}]"));
    assert_eq!(matches(&w).len(), 1);
    w.delete(Kind::VirtualService, "team/inner");
    assert_eq!(w.http(REVIEWS), [REST]);
}

#[test]
fn a_virtual_service_with_hosts_is_no_delegate() {
    let mut w = team();
    w.route("shop/r", &delegates("[]"));
    w.route("team/inner", &inner("[]").replacen('{', "{hosts: [ratings], ", 1));
    assert_eq!(w.http(REVIEWS), [REST]);
}

#[test]
fn a_delegates_delegate_is_not_asked() {
    let mut w = team();
    w.route("shop/r", &delegates("[]"));
    w.route(
        "team/inner",
        "{http: [{match: [{uri: {exact: /x}}], delegate: {name: more}},
                 {route: [{destination: {host: ratings}}]}]}",
    );
    w.route("team/more", &inner("[]"));
    assert_eq!(w.http(REVIEWS), [OF_DELEGATE, REST]);
}

#[test]
fn a_delegate_counts_for_the_namespaces_that_it_is_exported_to() {
    for (export_to, seen) in
        [("[]", true), ("['*']", true), ("[shop]", true), ("['.']", false), ("[infra]", false)]
    {
        let mut w = team();
        w.route("shop/r", &delegates("[]"));
        let more = format!("{{exportTo: {export_to}, ");
        w.route("team/inner", &inner("[]").replacen('{', &more, 1));
        let expected: &[&str] = if seen { &[OF_DELEGATE, REST] } else { &[REST] };
        assert_eq!(w.http(REVIEWS), expected, "{export_to}");
    }
}

fn prefix(path: &str) -> Option<proto::StringMatch> {
    Some(proto::StringMatch { kind: Some(string_match::Kind::Prefix(path.to_owned())) })
}

fn exact(text: &str) -> proto::StringMatch {
    proto::StringMatch { kind: Some(string_match::Kind::Exact(text.to_owned())) }
}

#[test]
fn what_both_ask_for_must_match() {
    let mut w = team();
    w.route("shop/r", &delegates("[{uri: {prefix: /a}, headers: {x: {exact: '1'}}}]"));
    w.route(
        "team/inner",
        &inner(
            "[{uri: {prefix: /a/b}, headers: {y: {exact: '2'}}}, {queryParams: {q: {exact: z}}}]",
        ),
    );
    let all = matches(&w);
    assert_eq!(all.len(), 2);
    assert_eq!(all[0].uri, prefix("/a/b"));
    let header = |name: &str, value: &str| (name.to_owned(), exact(value));
    assert_eq!(all[0].headers, [header("x", "1"), header("y", "2")].into());
    assert_eq!(all[1].uri, prefix("/a"));
    assert_eq!(all[1].headers, [header("x", "1")].into());
    assert_eq!(all[1].query, [header("q", "z")].into());
}

#[test]
fn every_pair_of_alternatives_that_fit_is_one() {
    let mut w = team();
    w.route("shop/r", &delegates("[{uri: {prefix: /a}}, {headers: {x: {exact: '1'}}}]"));
    w.route("team/inner", &inner("[{uri: {prefix: /a/b}}]"));
    let all = matches(&w);
    assert_eq!(all.len(), 2);
    assert!(all.iter().all(|m| m.uri == prefix("/a/b")));
    assert_eq!(all.iter().filter(|m| m.headers.is_empty()).count(), 1);
}

#[test]
fn a_route_of_a_delegate_that_asks_for_something_else_is_dropped() {
    for (outer, own) in [
        ("{uri: {prefix: /a}}", "{uri: {prefix: /b}}"),
        ("{uri: {prefix: /a/b}}", "{uri: {prefix: /a}}"),
        ("{uri: {exact: /a}}", "{uri: {prefix: /a}}"),
        ("{uri: {prefix: /a}}", "{uri: {regex: /a.*}}"),
        ("{uri: {regex: /a.*}}", "{uri: {exact: /ab}}"),
        ("{method: {exact: GET}}", "{method: {exact: POST}}"),
        ("{headers: {x: {exact: '1'}}}", "{headers: {x: {exact: '2'}}}"),
        ("{queryParams: {x: {exact: '1'}}}", "{queryParams: {x: {exact: '2'}}}"),
        ("{sourceLabels: {app: a}}", "{sourceLabels: {app: b}}"),
        ("{sourceNamespace: a}", "{sourceNamespace: b}"),
        ("{port: 9080}", "{port: 9081}"),
        ("{gateways: [mesh]}", "{gateways: [shop/ingress]}"),
        ("{uri: {prefix: /a}}", "{uri: {prefix: /a}, ignoreUriCase: true}"),
        // One alternative that fits does not save one that does not.
        ("{uri: {prefix: /a}}", "{uri: {prefix: /a/b}}, {uri: {prefix: /c}}"),
    ] {
        let mut w = team();
        w.route("shop/r", &delegates(&format!("[{outer}]")));
        let other =
            "{match: [{headers: {fits: {exact: here}}}], route: [{destination: {host: ratings}}]}";
        w.route(
            "team/inner",
            &inner(&format!("[{own}]")).replacen("http: [", &format!("http: [{other}, "), 1),
        );
        // The delegate's other route stays.
        assert_eq!(w.http(REVIEWS), [OF_DELEGATE, REST], "{outer} {own}");
        assert!(matches(&w)[0].headers.contains_key("fits"));
    }
}

#[test]
fn what_a_delegate_does_not_say_is_as_whoever_delegates_says() {
    let mut w = team();
    w.route(
        "shop/r",
        "{hosts: [reviews], http: [{delegate: {name: inner, namespace: team}, timeout: 7s,
           retries: {attempts: 5}, headers: {request: {set: {a: b}}}}]}",
    );
    let route = "route: [{destination: {host: ratings}}]";
    w.route("team/inner", &format!("{{http: [{{{route}}}, {{timeout: 1s, {route}}}]}}"));
    let routes = &w.table(REVIEWS).ports[0].http;
    let timeouts: Vec<u64> = routes.iter().map(|r| r.timeout_ms).collect();
    assert_eq!(timeouts, [7000, 1000]);
    assert!(routes.iter().all(|r| r.retry.as_ref().unwrap().attempts == 5));
    assert!(routes.iter().all(|r| r.request_headers.as_ref().unwrap().set["a"] == "b"));
}

#[test]
fn an_answer_of_whoever_delegates_is_given_in_place_of_the_delegates_routes() {
    let mut w = team();
    w.route(
        "shop/r",
        "{hosts: [reviews], http: [{delegate: {name: inner, namespace: team},
           directResponse: {status: 503}}]}",
    );
    w.route("team/inner", &inner("[]"));
    let action = w.table(REVIEWS).ports[0].http[0].action.clone();
    assert!(matches!(action, Some(Action::Direct(d)) if d.status == 503));
}

#[test]
fn a_mirror_of_whoever_delegates_is_of_its_namespace() {
    let mut w = team();
    for mirror in ["mirror: {host: ratings}", "mirrors: [{destination: {host: ratings}}]"] {
        w.route(
            "shop/r",
            &format!(
                "{{hosts: [reviews], http: [{{delegate: {{name: inner, namespace: team}}, {mirror}}}]}}"
            ),
        );
        w.route("team/inner", &inner("[]"));
        let to = w.table(REVIEWS).ports[0].http[0].mirrors[0].to.clone().unwrap();
        assert_eq!(refers(&to), "ratings.shop:9080");
        w.route("team/inner", &inner("[]").replacen("match", &format!("{mirror}, match"), 1));
        let to = w.table(REVIEWS).ports[0].http[0].mirrors[0].to.clone().unwrap();
        assert_eq!(refers(&to), "ratings.team:9080");
    }
}
