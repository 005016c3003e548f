//! Objects of a small world, so that they meet often.

use crate::world::{Edit, object};
use proptest::{prelude::*, sample::subsequence};
use serde_json::{Value, json};

const NAMESPACES: [&str; 3] = ["shop", "infra", "istio-system"];

/// As rules write them.
const HOSTS: [&str; 9] = [
    "reviews",
    "ratings",
    "reviews.shop.svc.cluster.local",
    "ratings.infra.svc.cluster.local",
    "api.example.com",
    "*.example.com",
    "*.shop.svc.cluster.local",
    "*views.shop.svc.cluster.local",
    "*",
];

/// A namespace whose services go through a waypoint, so that most worlds have tables.
pub fn ground() -> Vec<Edit> {
    let namespace = meta("", "shop", json!({"istio.io/use-waypoint": "wp"}));
    let all = [
        json!({"kind": "Namespace", "metadata": namespace}),
        json!({"kind": "Gateway", "metadata": meta("shop", "wp", json!({})),
               "spec": {"gatewayClassName": "istio-waypoint"}}),
        json!({"kind": "Service", "metadata": meta("shop", "reviews", json!({})),
               "spec": {"ports": [{"name": "http", "port": 80}]}}),
    ];
    all.into_iter().map(edit).collect()
}

fn edit(document: Value) -> Edit {
    let o = object(document);
    (o.key.clone(), Some(o))
}

fn meta(namespace: &str, name: &str, labels: Value) -> Value {
    json!({"namespace": namespace, "name": name, "labels": labels})
}

fn one_of(all: &'static [&'static str]) -> BoxedStrategy<&'static str> {
    prop::sample::select(all).boxed()
}

fn some_of(all: &'static [&'static str], most: usize) -> BoxedStrategy<Vec<&'static str>> {
    subsequence(all, 0..=most).boxed()
}

fn namespace() -> BoxedStrategy<&'static str> {
    // Most in one, where most of the others look.
    prop_oneof![2 => Just("shop"), 1 => one_of(&NAMESPACES)].boxed()
}

/// Every kind, put or taken away.
pub fn edits() -> impl Strategy<Value = Edit> {
    let any = prop_oneof![
        3 => services(),
        2 => entries(),
        8 => virtual_services(),
        3 => delegates(),
        4 => destination_rules(),
        2 => gateways(),
        2 => namespaces(),
        2 => policies(),
        3 => pods(),
        3 => istio_gateways(),
        1 => secrets(),
        4 => http_routes(),
        1 => grants(),
        1 => telemetries(),
        1 => mesh_config(),
    ];
    (any, prop::bool::weighted(0.75)).prop_map(|(document, put)| {
        let (key, o) = edit(document);
        (key, o.filter(|_| put))
    })
}

/// `istio.io/use-waypoint` and what belongs to it.
fn waypoint_labels() -> impl Strategy<Value = Value> {
    let name = prop_oneof![
        2 => Just(None), 3 => Just(Some("wp")), 1 => Just(Some("wp2")), 1 => Just(Some("none"))
    ];
    (name, prop::option::weighted(0.3, namespace())).prop_map(|(name, of)| {
        let mut labels = json!({});
        if let Some(name) = name {
            labels["istio.io/use-waypoint"] = json!(name);
        }
        if let Some(of) = of {
            labels["istio.io/use-waypoint-namespace"] = json!(of);
        }
        labels
    })
}

fn namespaces() -> BoxedStrategy<Value> {
    (namespace(), waypoint_labels())
        .prop_map(|(n, labels)| json!({"kind": "Namespace", "metadata": meta("", n, labels)}))
        .boxed()
}

fn services() -> BoxedStrategy<Value> {
    let name = one_of(&["reviews", "ratings", "wp"]);
    let export = one_of(&["", "", "", ".", "*", "shop", "infra", "~"]);
    let ports = some_of(&["80", "81", "9080"], 2);
    let kind = one_of(&["ClusterIP", "ClusterIP", "ClusterIP", "ExternalName"]);
    (namespace(), name, waypoint_labels(), export, ports, kind)
        .prop_map(|(ns, name, labels, export, ports, kind)| {
            let mut meta = meta(ns, name, labels);
            if !export.is_empty() {
                meta["annotations"] = json!({"networking.istio.io/exportTo": export});
            }
            let port = |p: &&str| json!({"name": "http", "port": p.parse::<u16>().unwrap()});
            let ports: Vec<Value> = ports.iter().map(port).collect();
            json!({"kind": "Service", "metadata": meta, "spec": {"ports": ports, "type": kind}})
        })
        .boxed()
}

fn entries() -> BoxedStrategy<Value> {
    let hosts = some_of(
        &["api.example.com", "*.example.com", "reviews.shop.svc.cluster.local", "API.example.com"],
        2,
    );
    let port = prop::sample::select(&[80_u16, 9080][..]);
    (namespace(), one_of(&["e1", "e2"]), waypoint_labels(), hosts, export_to(), port)
        .prop_map(|(ns, name, labels, hosts, export_to, port)| {
            json!({"kind": "ServiceEntry", "metadata": meta(ns, name, labels), "spec": {
                "hosts": hosts, "exportTo": export_to, "resolution": "DNS",
                "ports": [{"number": port, "name": "http", "protocol": "HTTP"}]}})
        })
        .boxed()
}

fn export_to() -> BoxedStrategy<Vec<&'static str>> {
    prop_oneof![3 => Just(vec![]), 1 => some_of(&["*", ".", "shop", "infra"], 2)].boxed()
}

fn created() -> BoxedStrategy<Option<&'static str>> {
    prop::option::of(one_of(&["2021-01-01T00:00:00Z", "2022-01-01T00:00:00Z"])).boxed()
}

fn destination() -> BoxedStrategy<Value> {
    let subset = prop_oneof![3 => Just(""), 1 => Just("v1"), 1 => Just("v2")];
    let port = prop_oneof![3 => Just(0), 1 => Just(80), 1 => Just(81)];
    (one_of(&HOSTS[..5]), subset, port)
        .prop_map(|(host, subset, port)| {
            let mut to = json!({"host": host, "subset": subset});
            if port > 0 {
                to["port"] = json!({"number": port});
            }
            to
        })
        .boxed()
}

/// Of HTTP, without what is done.
fn a_match() -> BoxedStrategy<Value> {
    prop_oneof![
        4 => Just(json!([])),
        1 => Just(json!([{"port": 80}])),
        1 => Just(json!([{"gateways": ["mesh"], "uri": {"prefix": "/a"}}])),
        1 => Just(json!([{"uri": {"prefix": "/a/b"}}, {"uri": {"exact": "/c"}}])),
        1 => Just(json!([{"gateways": ["shop/ingress"]}])),
    ]
    .boxed()
}

fn http() -> BoxedStrategy<Value> {
    let forward = (a_match(), prop::collection::vec(destination(), 1..3), destination(), 0..4)
        .prop_map(|(matches, to, mirror, mirrored)| {
            let route: Vec<Value> =
                to.into_iter().map(|d| json!({"destination": d, "weight": 1})).collect();
            let mut out = json!({"match": matches, "route": route});
            if mirrored == 0 {
                out["mirror"] = mirror;
            }
            out
        });
    let elsewhere = Just(json!({"directResponse": {"status": 404}}));
    prop_oneof![4 => forward, 2 => delegating(), 1 => elsewhere].boxed()
}

fn delegating() -> BoxedStrategy<Value> {
    let of = one_of(&["", "shop", "infra"]);
    let mirror = prop::option::weighted(0.3, destination());
    (a_match(), one_of(&["d1", "d2"]), of, mirror)
        .prop_map(|(matches, name, namespace, mirror)| {
            let delegate = json!({"name": name, "namespace": namespace});
            json!({"match": matches, "delegate": delegate, "mirror": mirror})
        })
        .boxed()
}

fn virtual_services() -> BoxedStrategy<Value> {
    let hosts = prop_oneof![3 => Just(vec!["reviews"]), 3 => some_of(&HOSTS, 3)];
    let gateways = prop_oneof![
        4 => Just(json!([])),
        1 => Just(json!(["mesh"])),
        1 => Just(json!(["shop/ingress"])),
        1 => Just(json!(["shop/ingress", "mesh"])),
    ];
    let tcp = prop::option::weighted(0.3, destination());
    let http = prop::collection::vec(http(), 0..3);
    let name = one_of(&["v1", "v2", "d2"]);
    (namespace(), name, created(), hosts, gateways, export_to(), http, tcp)
        .prop_map(|(ns, name, created, hosts, gateways, export_to, http, tcp)| {
            let mut meta = meta(ns, name, json!({}));
            meta["creationTimestamp"] = json!(created);
            let tcp: Vec<Value> =
                tcp.into_iter().map(|d| json!({"route": [{"destination": d}]})).collect();
            json!({"kind": "VirtualService", "metadata": meta, "spec": {
                "hosts": hosts, "gateways": gateways, "exportTo": export_to,
                "http": http, "tcp": tcp}})
        })
        .boxed()
}

fn delegates() -> BoxedStrategy<Value> {
    let http = prop::collection::vec(http(), 1..3);
    (namespace(), one_of(&["d1", "d2"]), export_to(), http)
        .prop_map(|(ns, name, export_to, http)| {
            json!({"kind": "VirtualService", "metadata": meta(ns, name, json!({})),
                   "spec": {"exportTo": export_to, "http": http}})
        })
        .boxed()
}

fn destination_rules() -> BoxedStrategy<Value> {
    let host = one_of(&HOSTS);
    let subsets = some_of(&["v1", "v2"], 2);
    let selector = prop::option::weighted(0.15, Just(json!({"matchLabels": {"app": "a"}})));
    let limit = 0..3;
    (
        namespace(),
        one_of(&["r1", "r2", "r3"]),
        created(),
        host,
        subsets,
        export_to(),
        selector,
        limit,
    )
        .prop_map(|(ns, name, created, host, subsets, export_to, selector, limit)| {
            let mut meta = meta(ns, name, json!({}));
            meta["creationTimestamp"] = json!(created);
            let subsets: Vec<Value> =
                subsets.iter().map(|s| json!({"name": s, "labels": {"v": s}})).collect();
            let mut spec = json!({"host": host, "subsets": subsets, "exportTo": export_to,
                                  "workloadSelector": selector});
            if limit > 0 {
                spec["trafficPolicy"] =
                    json!({"connectionPool": {"tcp": {"maxConnections": limit}}});
            }
            if limit > 1 {
                spec["trafficPolicy"]["tls"] = json!({"mode": "MUTUAL", "credentialName": "s1"});
            }
            json!({"kind": "DestinationRule", "metadata": meta, "spec": spec})
        })
        .boxed()
}

fn gateways() -> BoxedStrategy<Value> {
    let class = one_of(&["istio-waypoint", "istio-waypoint", "culvert-waypoint", "istio"]);
    let serves = one_of(&["", "", "service", "workload", "all", "none"]);
    let listeners = prop_oneof![
        1 => Just(json!([])),
        2 => Just(json!([{"name": "mesh", "port": 15008, "protocol": "HBONE",
            "allowedRoutes": {"namespaces": {"from": "All"}}}])),
        1 => Just(json!([{"name": "mesh", "port": 15008, "protocol": "HBONE",
            "allowedRoutes": {"namespaces": {"from": "Selector", "selector":
                {"matchLabels": {"istio.io/use-waypoint": "wp"}}}}}])),
        2 => Just(json!([{"name": "web", "port": 80, "protocol": "HTTP"}])),
        1 => Just(json!([{"name": "safe", "port": 8443, "protocol": "HTTPS", "hostname": "*.com",
            "tls": {"certificateRefs": [{"name": "s1", "namespace": "infra"}]},
            "allowedRoutes": {"namespaces": {"from": "Selector", "selector":
                {"matchExpressions": [{"key": "istio.io/use-waypoint", "operator": "Exists"}]}}}}])),
    ];
    (namespace(), one_of(&["wp", "wp", "wp2", "ingress"]), class, serves, listeners)
        .prop_map(|(ns, name, class, serves, listeners)| {
            let labels = match serves {
                "" => json!({}),
                serves => json!({"istio.io/waypoint-for": serves}),
            };
            json!({"kind": "Gateway", "metadata": meta(ns, name, labels),
                   "spec": {"gatewayClassName": class, "listeners": listeners}})
        })
        .boxed()
}

fn http_routes() -> BoxedStrategy<Value> {
    let service = |name: &'static str| json!({"group": "", "kind": "Service", "name": name});
    let parents = prop_oneof![
        Just(json!([service("reviews")])),
        Just(json!([service("ratings"), {"name": "ingress"}])),
        Just(json!([{"name": "ingress", "namespace": "shop", "sectionName": "web"}])),
    ];
    let to = (one_of(&["reviews", "ratings"]), one_of(&["", "shop", "infra"]))
        .prop_map(|(name, namespace)| json!({"name": name, "namespace": namespace, "port": 80}));
    let hosts = some_of(&["api.example.com", "*.example.com"], 2);
    let path = prop_oneof![Just(json!([])), Just(json!([{"path": {"value": "/a"}}]))];
    (namespace(), one_of(&["h1", "h2"]), created(), parents, hosts, to, path)
        .prop_map(|(ns, name, created, parents, hosts, to, path)| {
            let mut meta = meta(ns, name, json!({}));
            meta["creationTimestamp"] = json!(created);
            json!({"kind": "HTTPRoute", "metadata": meta, "spec": {"parentRefs": parents,
                   "hostnames": hosts, "rules": [{"matches": path, "backendRefs": [to]}]}})
        })
        .boxed()
}

fn grants() -> BoxedStrategy<Value> {
    (namespace(), one_of(&["HTTPRoute", "Gateway"]), namespace(), one_of(&["Service", "Secret"]))
        .prop_map(|(ns, from, of, to)| {
            let group = "gateway.networking.k8s.io";
            json!({"kind": "ReferenceGrant", "metadata": meta(ns, "g", json!({})), "spec": {
                "from": [{"group": group, "kind": from, "namespace": of}],
                "to": [{"group": "", "kind": to}]}})
        })
        .boxed()
}

fn telemetries() -> BoxedStrategy<Value> {
    let about = prop_oneof![
        Just(json!({})),
        Just(json!({"selector": {"matchLabels": {"istio": "ingressgateway"}}})),
        Just(
            json!({"targetRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "wp"}})
        ),
    ];
    let sampled = prop::option::of(0..100_u8);
    (namespace(), one_of(&["t1", "t2"]), about, any::<bool>(), sampled)
        .prop_map(|(ns, name, mut spec, disabled, sampled)| {
            spec["accessLogging"] = json!([{"disabled": disabled}]);
            spec["tracing"] = json!([{
                "providers": [{"name": "otel"}], "randomSamplingPercentage": sampled
            }]);
            json!({"kind": "Telemetry", "metadata": meta(ns, name, json!({})), "spec": spec})
        })
        .boxed()
}

fn policies() -> BoxedStrategy<Value> {
    let target = prop_oneof![
        Just(("", "Service", "reviews")),
        Just(("core", "Service", "ratings")),
        Just(("networking.istio.io", "ServiceEntry", "e1")),
        Just(("gateway.networking.k8s.io", "Gateway", "wp")),
        Just(("gateway.networking.k8s.io", "GatewayClass", "istio-waypoint")),
    ];
    let targets = prop::collection::vec(target, 0..3);
    (namespace(), one_of(&["p1", "p2"]), targets)
        .prop_map(|(ns, name, targets)| {
            let refs: Vec<Value> = targets
                .iter()
                .map(|(group, kind, name)| json!({"group": group, "kind": kind, "name": name}))
                .collect();
            json!({"kind": "AuthorizationPolicy", "metadata": meta(ns, name, json!({})),
                   "spec": {"targetRefs": refs}})
        })
        .boxed()
}

/// Of a gateway, of a waypoint, or of neither.
fn pods() -> BoxedStrategy<Value> {
    let gateway = prop_oneof![Just(None), Just(Some("ingress")), Just(Some("wp"))];
    (namespace(), one_of(&["p1", "p2"]), gateway, one_of(&["ingressgateway", "egressgateway"]))
        .prop_map(|(ns, name, gateway, istio)| {
            let mut labels = json!({"istio": istio});
            if let Some(gateway) = gateway {
                labels["gateway.networking.k8s.io/gateway-name"] = json!(gateway);
            }
            json!({"kind": "Pod", "metadata": meta(ns, name, labels)})
        })
        .boxed()
}

fn istio_gateways() -> BoxedStrategy<Value> {
    let selector = prop_oneof![
        2 => Just(json!({"istio": "ingressgateway"})), 1 => Just(json!({"istio": "egressgateway"})),
        1 => Just(json!({}))
    ];
    let tls = prop_oneof![
        2 => Just(json!(null)),
        1 => Just(json!({"mode": "SIMPLE", "credentialName": "s1"})),
        1 => Just(json!({"mode": "MUTUAL", "credentialName": "s1"})),
        1 => Just(json!({"httpsRedirect": true})),
    ];
    let port = prop::sample::select(&[80_u16, 8443][..]);
    let hosts = some_of(&["*", "reviews.shop.svc.cluster.local", "shop/*.example.com", "./*"], 2);
    let protocol = prop_oneof![
        4 => Just(("HTTP", None)), 1 => Just(("TCP", None)),
        1 => Just(("TLS", Some("PASSTHROUGH"))), 1 => Just(("TLS", Some("SIMPLE"))),
    ];
    let server = (protocol, port, hosts, tls).prop_map(|((protocol, mode), port, hosts, tls)| {
        let tls = mode.map_or(tls, |mode| json!({"mode": mode, "credentialName": "s1"}));
        json!({"port": {"number": port, "name": "p", "protocol": protocol},
               "hosts": hosts, "tls": tls})
    });
    let servers = prop::collection::vec(server, 1..3);
    (namespace(), one_of(&["ingress", "g2"]), selector, servers, created())
        .prop_map(|(ns, name, selector, servers, created)| {
            let mut meta = meta(ns, name, json!({}));
            meta["creationTimestamp"] = json!(created);
            json!({"kind": "IstioGateway", "metadata": meta,
                   "spec": {"selector": selector, "servers": servers}})
        })
        .boxed()
}

fn secrets() -> BoxedStrategy<Value> {
    (namespace(), one_of(&["s1", "s1-cacert"]), one_of(&["a", "b"]))
        .prop_map(|(ns, name, text)| {
            json!({"kind": "Secret", "metadata": meta(ns, name, json!({})),
                   "stringData": {"tls.crt": text, "tls.key": text, "ca.crt": text}})
        })
        .boxed()
}

fn mesh_config() -> BoxedStrategy<Value> {
    let collector = prop::option::of(one_of(&[
        "reviews.shop.svc.cluster.local",
        "shop/ratings.shop.svc.cluster.local",
        "nobody",
    ]));
    (one_of(&NAMESPACES), one_of(&["cluster.local", "other.local"]), collector)
        .prop_map(|(root, trust, collector)| {
            let mut spec = json!({"rootNamespace": root, "trustDomain": trust});
            if let Some(service) = collector {
                spec["enableTracing"] = json!(true);
                spec["defaultProviders"] = json!({"tracing": ["otel"]});
                spec["extensionProviders"] = json!([
                    {"name": "otel", "opentelemetry": {"service": service, "port": 80}}
                ]);
            }
            json!({"kind": "MeshConfig", "metadata": meta("istio-system", "istio", json!({})),
                   "spec": spec})
        })
        .boxed()
}
