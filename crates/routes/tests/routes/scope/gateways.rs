//! Who may be on a gateway's port, and for which hosts.

use super::service;
use crate::world::{World, document};
use istio_api::Kind;
use prost::Message as _;
use routes::{LISTENER_TYPE, proto};

/// A proxy of `shop/ingress`, which Istio's Gateways select by `istio: ingressgateway`, and services
/// `a` and `b` in `shop`, `c` in `other`.
fn world() -> World {
    let mut w = World::default();
    w.put(
        "kind: Pod
metadata:
  name: p
  namespace: shop
  labels: {istio: ingressgateway, gateway.networking.k8s.io/gateway-name: ingress}
",
    );
    for (namespace, name) in [("shop", "a"), ("shop", "b"), ("other", "c")] {
        w.put(&service(namespace, name));
    }
    w
}

fn gateway(w: &mut World, name: &str, servers: &str) {
    let spec = format!("{{selector: {{istio: ingressgateway}}, servers: [{servers}]}}");
    w.put(&document("IstioGateway", name, &spec));
}

/// A VirtualService of a gateway that sends HTTP to a service.
fn rule(w: &mut World, name: &str, gateway: &str, hosts: &str, to: &str) {
    w.route(
        name,
        &format!(
            "{{hosts: {hosts}, gateways: [{gateway}], http: [{{route: [{{destination: {{host: {to}}}}}]}}]}}"
        ),
    );
}

/// A host's routes at a port; none where it has no table.
fn routes(w: &World, port: u32, host: &str) -> Vec<String> {
    let is_there = w
        .tables()
        .iter()
        .any(|(_, t)| t.hostname == host && t.ports.iter().any(|p| p.port == port));
    if is_there { w.http_at(host, port) } else { Vec::new() }
}

fn listener(w: &World, port: u32) -> proto::Listener {
    let of = |((kind, name), bytes): (&(&str, String), &Vec<u8>)| {
        let is_it = *kind == LISTENER_TYPE && name.ends_with(&format!("/gateway/{port}"));
        is_it.then(|| proto::Listener::decode(&**bytes).unwrap())
    };
    w.resources.iter().find_map(of).unwrap()
}

const HTTP: &str = "port: {number: 80, name: h, protocol: HTTP}";

#[test]
fn a_rule_for_all_hosts_counts_for_each_of_a_server() {
    let mut w = world();
    gateway(&mut w, "shop/g", &format!("{{{HTTP}, hosts: [a.example.com, b.example.com]}}"));
    rule(&mut w, "shop/all", "g", "[\"*\"]", "a");
    for host in ["a.example.com", "b.example.com"] {
        assert_eq!(routes(&w, 80, host), ["shop/all to a.shop:9080"]);
    }
    // And of what a server takes itself and by a pattern.
    gateway(&mut w, "shop/g", &format!("{{{HTTP}, hosts: [x.example.com, \"*.example.com\"]}}"));
    rule(&mut w, "shop/all", "g", "[\"*.example.com\"]", "a");
    for host in ["x.example.com", "*.example.com"] {
        assert_eq!(routes(&w, 80, host), ["shop/all to a.shop:9080"]);
    }
}

/// Rules are found by whole labels of their hosts, and these have a part of one.
#[test]
fn a_host_with_a_part_of_a_label_is_there_after_a_change() {
    let mut w = world();
    gateway(&mut w, "shop/g", &format!("{{{HTTP}, hosts: [\"*\"]}}"));
    for (name, host) in [("shop/part", "*shop.example.com"), ("shop/whole", "a.example.com")] {
        rule(&mut w, name, "g", &format!("[\"{host}\"]"), "a");
    }
    for to in ["b", "a"] {
        rule(&mut w, "shop/part", "g", "[\"*shop.example.com\"]", to);
        let led = format!("shop/part to {to}.shop:9080");
        assert_eq!(routes(&w, 80, "*shop.example.com"), [led]);
        assert_eq!(routes(&w, 80, "a.example.com"), ["shop/whole to a.shop:9080"]);
    }
}

#[test]
fn a_port_takes_what_its_oldest_server_says_and_others_are_told() {
    let mut w = world();
    gateway(&mut w, "shop/g@2024-01-01T00:00:00Z", &format!("{{{HTTP}, hosts: [a.example.com]}}"));
    rule(&mut w, "shop/r", "g", "[a.example.com]", "a");
    let tcp = "{port: {number: 80, name: t, protocol: TCP}, hosts: [\"*\"]}";
    let tls = "{port: {number: 80, name: s, protocol: HTTPS}, hosts: [\"*\"], \
               tls: {mode: SIMPLE, credentialName: s}}";
    for (name, server) in [("other/t", tcp), ("other/s", tls)] {
        gateway(&mut w, &format!("{name}@2025-01-01T00:00:00Z"), server);
        w.route(
            "other/t",
            "{hosts: [\"*\"], gateways: [t], tcp: [{route: [{destination: {host: c}}]}]}",
        );
        let l = listener(&w, 80);
        assert!(!l.bytes && l.certificates.is_empty(), "{name}: {l:?}");
        assert_eq!(routes(&w, 80, "a.example.com"), ["shop/r to a.shop:9080"]);
        let told = ("Gateway other/t", "Gateway other/s");
        let told = if name == "other/t" { told.0 } else { told.1 };
        let idle = w.idle();
        assert!(idle.iter().any(|(o, why)| o == told && why.contains("port 80")), "{idle:?}");
    }
    // Whoever comes next gets the port: of the same age, by name.
    w.delete(Kind::Gateway, "shop/g");
    assert_eq!(listener(&w, 80).certificates.len(), 1);
    w.delete(Kind::Gateway, "other/s");
    assert!(listener(&w, 80).bytes);
}

#[test]
fn a_gateways_own_listeners_come_before_what_selects_its_pods() {
    let mut w = world();
    gateway(
        &mut w,
        "other/t@2020-01-01T00:00:00Z",
        "{port: {number: 80, name: t, protocol: TCP}, hosts: [\"*\"]}",
    );
    assert!(listener(&w, 80).bytes);
    w.put(&document(
        "Gateway",
        "shop/ingress",
        "{gatewayClassName: istio, listeners: [{name: h, port: 80, protocol: HTTP}]}",
    ));
    assert!(!listener(&w, 80).bytes);
}

#[test]
fn within_tls_a_host_is_the_most_specific_servers() {
    let mut w = world();
    let server = |host: &str, secret: &str| {
        format!(
            "{{port: {{number: 443, name: s, protocol: HTTPS}}, hosts: [\"{host}\"], \
             tls: {{mode: SIMPLE, credentialName: {secret}}}}}"
        )
    };
    gateway(&mut w, "other/wide@2020-01-01T00:00:00Z", &server("*.example.com", "s1"));
    gateway(&mut w, "shop/own", &server("a.example.com", "s2"));
    rule(&mut w, "other/taken@2020-01-01T00:00:00Z", "wide", "[a.example.com]", "c");
    rule(&mut w, "shop/own", "own", "[a.example.com]", "a");
    assert_eq!(routes(&w, 443, "a.example.com"), ["shop/own to a.shop:9080"]);
    rule(&mut w, "other/taken", "wide", "[b.example.com]", "c");
    assert_eq!(routes(&w, 443, "b.example.com"), ["other/taken to c.other:9080"]);
}

fn ingress(w: &mut World, listeners: &str) {
    let spec = format!("{{gatewayClassName: istio, listeners: [{listeners}]}}");
    w.put(&document("Gateway", "shop/ingress", &spec));
}

fn http_route(w: &mut World, name: &str, hosts: &str, backend: &str) {
    w.put(&document(
        "HTTPRoute",
        name,
        &format!(
            "{{parentRefs: [{{name: ingress, namespace: shop}}], hostnames: {hosts}, \
             rules: [{{backendRefs: [{backend}]}}]}}"
        ),
    ));
}

#[test]
fn a_host_is_the_most_specific_listeners_and_those_it_admits() {
    let mut w = world();
    ingress(
        &mut w,
        "{name: wide, port: 80, protocol: HTTP, hostname: \"*.example.com\", \
          allowedRoutes: {namespaces: {from: All}}}, \
         {name: own, port: 80, protocol: HTTP, hostname: a.example.com}",
    );
    http_route(&mut w, "other/r", "[a.example.com, b.example.com]", "{name: c, port: 9080}");
    assert_eq!(routes(&w, 80, "a.example.com"), [] as [&str; 0]);
    assert_eq!(routes(&w, 80, "b.example.com"), ["other/r to c.other:9080"]);
    http_route(&mut w, "shop/r", "[a.example.com]", "{name: a, port: 9080}");
    assert_eq!(routes(&w, 80, "a.example.com"), ["shop/r to a.shop:9080"]);
}

#[test]
fn of_the_same_age_the_first_by_namespace_and_name_counts() {
    let mut w = world();
    ingress(
        &mut w,
        "{name: h, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}",
    );
    http_route(&mut w, "shop/a", "[x.example.com]", "{name: a, port: 9080}");
    http_route(&mut w, "other/z", "[x.example.com]", "{name: c, port: 9080}");
    assert_eq!(
        routes(&w, 80, "x.example.com"),
        ["other/z to c.other:9080", "shop/a to a.shop:9080"]
    );
}

#[test]
fn another_namespaces_service_takes_a_grant_by_whatever_name() {
    let mut w = world();
    ingress(&mut w, "{name: h, port: 80, protocol: HTTP}");
    for backend in
        ["{name: c, namespace: other, port: 9080}", "{name: c.other.svc.cluster.local, port: 9080}"]
    {
        http_route(&mut w, "shop/r", "[x.example.com]", backend);
        let all = routes(&w, 80, "x.example.com");
        assert!(all.len() == 1 && all[0].contains("to nothing, as "), "{backend}: {all:?}");
    }
    w.put(&document(
        "ReferenceGrant",
        "other/g",
        "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], \
          to: [{group: \"\", kind: Service}]}",
    ));
    http_route(&mut w, "shop/r", "[x.example.com]", "{name: c, namespace: other, port: 9080}");
    assert_eq!(routes(&w, 80, "x.example.com"), ["shop/r to c.other:9080"]);
}
