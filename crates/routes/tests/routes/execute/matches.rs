//! Which route is taken.

use super::{Ask, get, named, port, table, taken};
use http::Method;
use routes::execute::{Action, HostTable};

/// Whether the one route with these matches takes the request.
fn takes(t: &HostTable, ask: &Ask) -> bool {
    taken(t, ask).is_some()
}

#[test]
fn the_first_route_that_matches_is_taken() {
    let order =
        ["[{uri: {prefix: /a}}]", "[{uri: {exact: /a/b}}]", "[{uri: {regex: '/.*'}}]", "[]"];
    let t = named(&[("w", order[0]), ("x", order[1]), ("y", order[2]), ("z", order[3])]);
    assert_eq!(taken(&t, &get("/a/b")).unwrap(), "w");
    assert_eq!(taken(&t, &get("/b")).unwrap(), "y");
    let t = named(&[("z", order[3]), ("y", order[2]), ("x", order[1]), ("w", order[0])]);
    assert_eq!(taken(&t, &get("/a/b")).unwrap(), "z");
    let t = named(&[("x", order[1]), ("w", order[0]), ("z", order[3])]);
    assert_eq!(taken(&t, &get("/a/b")).unwrap(), "x");
    assert_eq!(taken(&t, &get("/a/c")).unwrap(), "w");
    assert_eq!(taken(&t, &get("/c")).unwrap(), "z");
}

#[test]
fn a_request_that_no_route_matches_has_none() {
    let t = named(&[("a", "[{uri: {prefix: /a}}]")]);
    assert_eq!(taken(&t, &get("/b")), None);
}

#[test]
fn alternatives_of_a_route_are_any_of_them_and_what_one_asks_for_is_all_of_it() {
    let t = named(&[("a", "[{uri: {prefix: /a}, method: {exact: POST}}, {uri: {exact: /b}}]")]);
    let post = |target| Ask { method: Method::POST, ..get(target) };
    assert!(takes(&t, &post("/a")) && takes(&t, &post("/b")) && takes(&t, &get("/b")));
    assert!(!takes(&t, &get("/a")) && !takes(&t, &post("/c")));
}

#[test]
fn an_exact_path_is_the_whole_and_a_prefix_its_beginning() {
    for (uri, yes, no) in [
        ("exact: /a", vec!["/a", "/a?q=1"], vec!["/a/", "/a/b", "/ab", "/A", "/"]),
        // Of letters, not of segments.
        ("prefix: /a", vec!["/a", "/a/", "/a/b", "/ab"], vec!["/", "/A", "/b/a"]),
        ("prefix: /a/", vec!["/a/", "/a/b"], vec!["/a", "/ab"]),
        ("prefix: /", vec!["/", "/a"], vec!["*"]),
        ("regex: '/a|/b.'", vec!["/a", "/bc"], vec!["/ab", "/b", "/x/a"]),
    ] {
        let t = named(&[("r", &format!("[{{uri: {{{uri}}}}}]"))]);
        for path in yes {
            assert!(takes(&t, &get(path)), "{uri} {path}");
        }
        for path in no {
            assert!(!takes(&t, &get(path)), "{uri} {path}");
        }
    }
}

#[test]
fn the_case_of_a_path_counts_unless_it_is_said_not_to() {
    for uri in ["exact: /Ab", "prefix: /aB"] {
        let t = named(&[("r", &format!("[{{uri: {{{uri}}}, ignoreUriCase: true}}]"))]);
        assert!(takes(&t, &get("/ab")) && takes(&t, &get("/AB")), "{uri}");
        assert!(!takes(&t, &get("/b")));
    }
}

#[test]
fn headers_are_matched_by_value_or_by_being_there() {
    let t = |m: &str| named(&[("r", &format!("[{{headers: {{X-A: {{{m}}}}}}}]"))]);
    for (m, yes, no) in [
        ("exact: one", vec!["one"], vec!["One", "one,two", ""]),
        ("prefix: on", vec!["on", "one"], vec!["none", ""]),
        ("regex: 'o.+'", vec!["one"], vec!["o", "none"]),
        ("", vec!["", "one"], vec![]),
        ("regex: '*'", vec!["", "one"], vec![]),
    ] {
        let t = t(m);
        for value in yes {
            assert!(takes(&t, &get("/").with("x-a", value)), "{m} {value}");
        }
        for value in no {
            assert!(!takes(&t, &get("/").with("x-a", value)), "{m} {value}");
        }
        // Without the header nothing of it holds.
        assert!(!takes(&t, &get("/").with("x-b", "one")), "{m}");
    }
    // Of several with one name the values are one.
    let twice = get("/").with("x-a", "one").with("x-a", "two");
    assert!(takes(&t("exact: 'one,two'"), &twice));
    assert!(!takes(&t("exact: one"), &twice));
}

#[test]
fn all_headers_that_are_asked_for_and_none_that_must_not_be() {
    let t = named(&[(
        "r",
        "[{headers: {a: {exact: '1'}, b: {}}, withoutHeaders: {c: {exact: '3'}, d: {}}}]",
    )]);
    let base = || get("/").with("a", "1").with("b", "x");
    assert!(takes(&t, &base()));
    assert!(takes(&t, &base().with("c", "4")));
    assert!(!takes(&t, &base().with("c", "3")));
    assert!(!takes(&t, &base().with("d", "")));
    assert!(!takes(&t, &get("/").with("a", "1")));
    assert!(!takes(&t, &get("/").with("a", "2").with("b", "x")));
}

#[test]
fn query_parameters_are_matched_by_their_first_value() {
    let t = |m: &str| named(&[("r", &format!("[{{queryParams: {{q: {{{m}}}}}}}]"))]);
    for (m, yes, no) in [
        (
            "exact: 'one'",
            vec!["/?q=one", "/?p=1&q=one", "/?q=one&q=two"],
            vec!["/", "/?q=two&q=one"],
        ),
        ("prefix: 'on'", vec!["/?q=one"], vec!["/?q=none", "/?p=one"]),
        ("regex: '[0-9]+'", vec!["/?q=12"], vec!["/?q=1x", "/?q="]),
        ("", vec!["/?q", "/?q=", "/?q=x"], vec!["/", "/?Q=x", "/?p=q"]),
    ] {
        let t = t(m);
        for target in yes {
            assert!(takes(&t, &get(target)), "{m} {target}");
        }
        for target in no {
            assert!(!takes(&t, &get(target)), "{m} {target}");
        }
    }
}

#[test]
fn methods_schemes_and_authorities_are_matched() {
    let t = named(&[
        ("delete", "[{method: {exact: DELETE}}]"),
        ("read", "[{method: {regex: 'GET|HEAD'}, authority: {prefix: reviews}}]"),
        ("secure", "[{scheme: {exact: https}}]"),
    ]);
    let ask = |method| Ask { method, ..get("/") };
    assert_eq!(taken(&t, &ask(Method::DELETE)).unwrap(), "delete");
    assert_eq!(taken(&t, &ask(Method::HEAD)).unwrap(), "read");
    assert_eq!(taken(&t, &ask(Method::PUT)), None);
    let elsewhere = Ask { authority: "ratings", ..get("/") };
    assert_eq!(taken(&t, &elsewhere), None);
    assert_eq!(taken(&t, &Ask { scheme: "https", ..elsewhere }).unwrap(), "secure");
}

#[test]
fn whoever_asks_is_matched_by_labels_and_namespace() {
    let t = named(&[
        ("canary", "[{sourceLabels: {app: web, version: canary}}]"),
        ("web", "[{sourceLabels: {app: web}}]"),
        ("test", "[{sourceNamespace: test}]"),
    ]);
    let web = || get("/").from("app", "web");
    assert_eq!(taken(&t, &web().from("version", "canary")).unwrap(), "canary");
    assert_eq!(taken(&t, &web().from("version", "stable")).unwrap(), "web");
    assert_eq!(taken(&t, &get("/").from("version", "canary")), None);
    assert_eq!(taken(&t, &Ask { namespace: "test", ..get("/") }).unwrap(), "test");
    // Of whom nothing is known, nothing holds.
    assert_eq!(taken(&t, &Ask { namespace: "", ..get("/") }), None);
}

#[test]
fn a_rewrite_replaces_what_matched() {
    let rewritten = |m: &str, target| {
        let t = table(&format!(
            "{{match: [{{uri: {{{m}}}}}], rewrite: {{uri: /new}}, \
             route: [{{destination: {{host: ratings}}}}]}}"
        ));
        let ask = get(target);
        let (route, matched) = port(&t).route(&ask.view()).unwrap();
        route.rewrite.as_ref().unwrap().path(ask.view().path, matched).unwrap()
    };
    assert_eq!(rewritten("prefix: /old", "/old/a"), "/new/a");
    assert_eq!(rewritten("prefix: /old/", "/old/a"), "/new/a");
    assert_eq!(rewritten("exact: /old", "/old"), "/new");
    assert_eq!(rewritten("regex: '/o.*'", "/old/a"), "/new");
}

#[test]
fn where_nothing_can_go_is_said_by_its_route() {
    let t = table("{route: [{destination: {host: nowhere}}]}");
    let ask = get("/");
    let (route, _) = port(&t).route(&ask.view()).unwrap();
    let Action::Forward(f) = &route.action else { panic!("{route:?}") };
    let why = f.pick().unwrap().target.broken.clone().unwrap();
    assert!(why.contains("nowhere.shop.svc.cluster.local"), "{why}");
    // And it is not waited for; where bytes go that are no HTTP is.
    let waited_for: Vec<String> = t.destinations.iter().map(ToString::to_string).collect();
    assert_eq!(waited_for, ["shop/reviews.shop.svc.cluster.local"]);
}
