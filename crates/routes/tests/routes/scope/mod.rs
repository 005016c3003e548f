//! Which rule counts for whom.

mod delegates;
mod destination_rules;
mod fields;
mod gateways;
mod idle;
mod policies;
mod telemetry;
mod virtual_services;

use crate::world::World;

/// The host that most of these are about.
pub const REVIEWS: &str = "reviews.shop.svc.cluster.local";

/// Services `reviews` and `ratings` in `shop`, behind a waypoint in `infra`: whoever owns a host and
/// whoever serves it are two.
pub fn world() -> World {
    let mut w = World::default();
    w.put(
        "kind: Namespace
metadata:
  name: shop
  labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: infra}
---
kind: Gateway
metadata: {name: wp, namespace: infra}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]
",
    );
    w.put(&service("shop", "reviews"));
    w.put(&service("shop", "ratings"));
    w
}

pub fn service(namespace: &str, name: &str) -> String {
    format!(
        "kind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{ports: [{{name: http, port: 9080}}]}}\n"
    )
}

/// A rule of `reviews` that sends everything somewhere.
pub fn all_to(host: &str) -> String {
    format!("{{hosts: [{REVIEWS}], http: [{{route: [{{destination: {{host: {host}}}}}]}}]}}")
}

/// The same, with more said of it.
pub fn all_to_with(host: &str, more: &str) -> String {
    let rule = all_to(host);
    format!("{}, {more}}}", rule.strip_suffix('}').unwrap())
}
