//! Which Telemetry objects a proxy goes by.

use crate::world::{World, document};
use prost::Message as _;
use routes::{
    TELEMETRY_TYPE,
    proto::{self, span_tag::From, telemetry::Log},
};

/// A waypoint's pod and a gateway's in `shop`, a collector, and two formats.
fn world() -> World {
    let mut w = super::world();
    w.put(
        "kind: Gateway
metadata: {name: own, namespace: shop}
spec: {gatewayClassName: istio-waypoint}
---
kind: Pod
metadata: {name: p1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: own}}
---
kind: Pod
metadata:
  name: p2
  namespace: shop
  labels: {app: edge, gateway.networking.k8s.io/gateway-name: edge}
---
kind: MeshConfig
metadata: {name: istio, namespace: istio-system}
spec:
  rootNamespace: istio-system
  accessLogFile: ''
  extensionProviders:
  - {name: otel, opentelemetry: {service: ratings.shop.svc.cluster.local, port: 9080}}
  - {name: short, envoyFileAccessLog: {path: /dev/stdout, logFormat: {text: '%PROTOCOL%'}}}
  - {name: object, envoyFileAccessLog: {logFormat: {labels: {a: '%PROTOCOL%'}}}}
",
    );
    w
}

fn of(w: &World, proxy: &str) -> proto::Telemetry {
    let name = format!("shop/{proxy}/telemetry");
    proto::Telemetry::decode(&*w.resources[&(TELEMETRY_TYPE, name)]).unwrap()
}

fn put(w: &mut World, name: &str, spec: &str) {
    w.put(&document("Telemetry", name, spec));
}

#[test]
fn the_nearest_says_what_is_logged() {
    let mut w = world();
    assert!(of(&w, "own").silent && of(&w, "edge").silent);
    put(&mut w, "istio-system/mesh", "{accessLogging: [{providers: [{name: envoy}]}]}");
    assert!(!of(&w, "own").silent && !of(&w, "edge").silent);
    // Only of servers, which a waypoint is and a gateway is not.
    put(&mut w, "shop/all", "{accessLogging: [{match: {mode: SERVER}, disabled: true}]}");
    assert!(of(&w, "own").silent && !of(&w, "edge").silent);
    put(
        &mut w,
        "shop/edge",
        "{selector: {matchLabels: {app: edge}}, accessLogging: [{providers: [{name: short}]}]}",
    );
    assert_eq!(of(&w, "edge").log, Some(Log::Text("%PROTOCOL%".into())));
    put(
        &mut w,
        "shop/own",
        "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: own}], \
          accessLogging: [{providers: [{name: object}]}]}",
    );
    assert_eq!(of(&w, "own").log, Some(Log::Object(r#"{"a":"%PROTOCOL%"}"#.into())));
    assert!(!of(&w, "own").silent);
    // Another namespace's is not theirs.
    put(&mut w, "infra/theirs", "{accessLogging: [{disabled: true}]}");
    assert!(!of(&w, "own").silent);
    let idle = w.idle();
    assert!(idle.iter().any(|(o, _)| o == "Telemetry infra/theirs"), "{idle:?}");
    assert!(!idle.iter().any(|(o, _)| o == "Telemetry shop/own"), "{idle:?}");
}

#[test]
fn of_several_about_the_same_the_oldest_counts() {
    let mut w = world();
    put(&mut w, "shop/b@2023-01-01T00:00:00Z", "{accessLogging: [{providers: [{name: short}]}]}");
    put(&mut w, "shop/a@2024-01-01T00:00:00Z", "{accessLogging: [{disabled: true}]}");
    assert!(!of(&w, "own").silent);
    assert!(w.idle().iter().any(|(o, _)| o == "Telemetry shop/a"));
}

#[test]
fn spans_are_as_the_nearest_has_them_field_by_field() {
    let mut w = world();
    assert_eq!(of(&w, "own").tracing, None);
    put(
        &mut w,
        "istio-system/mesh",
        "{tracing: [{providers: [{name: otel}], randomSamplingPercentage: 50, \
          customTags: {env: {literal: {value: test}}}}]}",
    );
    let tracing = of(&w, "own").tracing.unwrap();
    assert_eq!(tracing.to.unwrap().hostname, "ratings.shop.svc.cluster.local");
    assert_eq!(tracing.sampled.unwrap().ppm, 500_000);
    assert_eq!(tracing.tags[0].from, Some(From::Literal("test".into())));
    put(
        &mut w,
        "shop/all",
        "{tracing: [{customTags: {user: {header: {name: X-User, defaultValue: nobody}}}}]}",
    );
    let tracing = of(&w, "own").tracing.unwrap();
    assert_eq!(tracing.sampled.unwrap().ppm, 500_000);
    let [tag] = &*tracing.tags else { panic!("{tracing:?}") };
    assert_eq!((tag.name.as_str(), tag.default.as_str()), ("user", "nobody"));
    assert_eq!(tag.from, Some(From::Header("x-user".into())));
    put(&mut w, "shop/all", "{tracing: [{disableSpanReporting: true}]}");
    assert_eq!(of(&w, "own").tracing, None);
}
