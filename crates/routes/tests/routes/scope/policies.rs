//! AuthorizationPolicies with targetRefs: which hosts they are judged for.

use super::{REVIEWS, world};
use crate::world::{World, document};

const RATINGS: &str = "ratings.shop.svc.cluster.local";

fn bound(w: &World, host: &str) -> Vec<String> {
    let all = w.table(host).policies.into_iter();
    all.map(|p| format!("{}/{}", p.namespace, p.name)).collect()
}

fn target(w: &mut World, name: &str, group: &str, kind: &str, of: &str) {
    let spec = format!("{{targetRefs: [{{group: '{group}', kind: {kind}, name: {of}}}]}}");
    w.put(&document("AuthorizationPolicy", name, &spec));
}

const GATEWAY: &str = "gateway.networking.k8s.io";

#[test]
fn a_policy_of_a_service_is_of_its_namespace_and_for_it_alone() {
    let mut w = world();
    target(&mut w, "shop/a", "", "Service", "reviews");
    target(&mut w, "shop/b", "core", "Service", "reviews");
    target(&mut w, "infra/c", "", "Service", "reviews");
    target(&mut w, "shop/d", "networking.istio.io", "ServiceEntry", "reviews");
    assert_eq!(bound(&w, REVIEWS), ["shop/a", "shop/b"]);
    assert!(bound(&w, RATINGS).is_empty());
    // It moves with what it names.
    target(&mut w, "shop/a", "", "Service", "ratings");
    assert_eq!(
        (bound(&w, REVIEWS), bound(&w, RATINGS)),
        (vec!["shop/b".into()], vec!["shop/a".into()])
    );
}

#[test]
fn a_policy_of_a_service_entry_is_for_its_hosts() {
    let mut w = world();
    let ports = "ports: [{number: 9080, name: http, protocol: HTTP}]";
    w.put(&document(
        "ServiceEntry",
        "shop/e",
        &format!("{{hosts: [a.example, b.example], {ports}}}"),
    ));
    target(&mut w, "shop/p", "networking.istio.io", "ServiceEntry", "e");
    assert_eq!(bound(&w, "a.example"), ["shop/p"]);
    assert_eq!(bound(&w, "b.example"), ["shop/p"]);
    assert!(bound(&w, REVIEWS).is_empty());
}

#[test]
fn a_policy_of_a_gateway_is_of_its_namespace_and_for_all_that_it_serves() {
    let mut w = world();
    target(&mut w, "infra/p", GATEWAY, "Gateway", "wp");
    target(&mut w, "shop/p", GATEWAY, "Gateway", "wp");
    assert_eq!(bound(&w, REVIEWS), ["infra/p"]);
    assert_eq!(bound(&w, RATINGS), ["infra/p"]);
}

#[test]
fn a_policy_of_a_class_is_of_the_root_namespace_and_follows_the_gateways_class() {
    let mut w = world();
    let of_class = |class: &str| {
        let listener =
            "{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}";
        document(
            "Gateway",
            "infra/wp",
            &format!("{{gatewayClassName: {class}, listeners: [{listener}]}}"),
        )
    };
    target(&mut w, "istio-system/p", GATEWAY, "GatewayClass", "culvert-waypoint");
    target(&mut w, "infra/p", GATEWAY, "GatewayClass", "culvert-waypoint");
    assert!(bound(&w, REVIEWS).is_empty());
    w.put(&of_class("culvert-waypoint"));
    assert_eq!(bound(&w, REVIEWS), ["istio-system/p"]);
    w.put(&of_class("istio-waypoint"));
    assert!(bound(&w, REVIEWS).is_empty());
}
