//! DestinationRules: whose, and which of several.

use super::{REVIEWS, world};
use crate::world::World;
use istio_api::Kind;
use routes::proto;

/// How the waypoint reaches `reviews`.
fn reviews(w: &World) -> proto::Destination {
    w.destinations()[&("infra/wp".to_owned(), format!("shop/{REVIEWS}"))].clone()
}

fn rule(host: &str, subset: &str, more: &str) -> String {
    format!("{{host: '{host}', subsets: [{{name: {subset}, labels: {{v: {subset}}}}}] {more}}}")
}

fn subsets(w: &World) -> Vec<String> {
    reviews(w).subsets.into_iter().map(|s| s.name).collect()
}

#[test]
fn the_clients_namespace_comes_first_then_the_services_then_the_root() {
    let mut w = world();
    assert_eq!(reviews(&w).origin, "");
    w.rule("istio-system/root@2020-01-01T00:00:00Z", &rule(REVIEWS, "root", ""));
    assert_eq!((&*reviews(&w).origin, subsets(&w)), ("istio-system/root", vec!["root".into()]));
    w.rule("shop/service@2021-01-01T00:00:00Z", &rule("reviews", "service", ""));
    assert_eq!((&*reviews(&w).origin, subsets(&w)), ("shop/service", vec!["service".into()]));
    w.rule("infra/client@2022-01-01T00:00:00Z", &rule(REVIEWS, "client", ""));
    assert_eq!((&*reviews(&w).origin, subsets(&w)), ("infra/client", vec!["client".into()]));
    // And of no other namespace, not even of the oldest.
    w.rule("other/x@2019-01-01T00:00:00Z", &rule(REVIEWS, "other", ""));
    assert_eq!(reviews(&w).origin, "infra/client");
    for (gone, next) in [
        ("infra/client", "shop/service"),
        ("shop/service", "istio-system/root"),
        ("istio-system/root", ""),
    ] {
        w.delete(Kind::DestinationRule, gone);
        assert_eq!(reviews(&w).origin, next);
    }
}

#[test]
fn the_nearer_namespace_counts_even_with_a_wildcard() {
    let mut w = world();
    w.rule("shop/exact", &rule("reviews", "exact", ""));
    w.rule("infra/wild", &rule("*.shop.svc.cluster.local", "wild", ""));
    assert_eq!(subsets(&w), ["wild"]);
    // Within a namespace the more specific host does.
    w.rule("infra/wilder", &rule("*", "wilder", ""));
    assert_eq!(subsets(&w), ["wild"]);
    w.rule("infra/exact", &rule(REVIEWS, "own", ""));
    assert_eq!(subsets(&w), ["own"]);
}

#[test]
fn the_root_namespace_is_as_the_mesh_has_it() {
    let mut w = world();
    w.rule("istio-system/d", &rule(REVIEWS, "old", ""));
    w.rule("root/d", &rule(REVIEWS, "new", ""));
    assert_eq!(subsets(&w), ["old"]);
    w.put(
        "kind: MeshConfig\nmetadata: {name: istio, namespace: root}\nspec: {rootNamespace: root}",
    );
    assert_eq!(subsets(&w), ["new"]);
}

#[test]
fn a_destination_rule_counts_for_the_proxies_that_it_is_exported_to() {
    for (export_to, seen) in [
        ("[]", true),
        ("['*']", true),
        ("[infra]", true),
        ("['.']", false),
        ("[shop]", false),
        ("[other]", false),
    ] {
        let mut w = world();
        w.rule("istio-system/d", &rule(REVIEWS, "root", ""));
        w.rule("shop/d", &rule("reviews", "own", &format!(", exportTo: {export_to}")));
        // One that is not seen stands in nobody's way.
        assert_eq!(subsets(&w), [if seen { "own" } else { "root" }], "{export_to}");
    }
    let mut w = world();
    w.rule("infra/d", &rule(REVIEWS, "own", ", exportTo: ['.']"));
    assert_eq!(subsets(&w), ["own"]);
}

#[test]
fn several_of_one_host_are_one() {
    let mut w = world();
    let limit =
        |n: u32| format!(", trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {n}}}}}}}");
    w.rule("shop/b@2022-01-01T00:00:00Z", &rule("reviews", "v2", &limit(2)));
    w.rule("shop/a@2021-01-01T00:00:00Z", &rule(REVIEWS, "v1", ""));
    w.rule("shop/c@2023-01-01T00:00:00Z", &rule("reviews", "v1", &limit(3)));
    let merged = reviews(&w);
    assert_eq!(merged.origin, "shop/a");
    assert_eq!(subsets(&w), ["v1", "v2"]);
    // Whoever speaks first of the whole speaks for all, and for every subset that says nothing.
    let limits =
        |ports: &[proto::DestinationPort]| ports[0].policy.as_ref().unwrap().max_connections;
    assert_eq!(limits(&merged.ports), 2);
    assert!(merged.subsets.iter().all(|s| limits(&s.ports) == 2));
}

#[test]
fn a_subset_of_any_of_them_is_known() {
    let mut w = world();
    w.route(
        "shop/r",
        "{hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v2}}]}]}",
    );
    w.rule("shop/a", &rule("reviews", "v1", ""));
    w.rule("shop/b", &rule("reviews", "v2", ""));
    assert_eq!(w.http(REVIEWS), ["shop/r to reviews.shop:9080 v2"]);
    // What hides them hides their subsets.
    w.rule("infra/hides", &rule(REVIEWS, "v3", ""));
    assert!(w.http(REVIEWS)[0].contains("no DestinationRule has a subset v2"));
}

#[test]
fn one_for_certain_pods_alone_is_not_for_a_proxy() {
    let mut w = world();
    w.rule("infra/d", &rule(REVIEWS, "pods", ", workloadSelector: {matchLabels: {app: a}}"));
    assert_eq!(reviews(&w).origin, "");
    w.rule("shop/d", &rule("reviews", "all", ""));
    assert_eq!(subsets(&w), ["all"]);
}

#[test]
fn settings_of_a_port_stand_in_for_those_of_the_whole() {
    let mut w = world();
    w.rule(
        "shop/d",
        "{host: reviews,
          trafficPolicy: {
            loadBalancer: {simple: RANDOM},
            connectionPool: {tcp: {maxConnections: 5}},
            portLevelSettings: [{port: {number: 9080}, loadBalancer: {simple: ROUND_ROBIN}}]},
          subsets: [{name: v1, trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}}}]}",
    );
    let d = reviews(&w);
    let whole = d.ports[0].policy.as_ref().unwrap();
    assert_eq!(whole.balancer(), proto::Balancer::RoundRobin);
    // Istio: what a port's settings leave out is not taken from the whole.
    assert_eq!(whole.max_connections, 0);
    let subset = d.subsets[0].ports[0].policy.as_ref().unwrap();
    assert_eq!(subset.balancer(), proto::Balancer::LeastRequest);
}
