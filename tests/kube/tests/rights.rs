//! The control plane's rights are the least: without any one of them it says that it lacks just that.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use anyhow::ensure;
use common::{Culvertd, SOON, SYSTEM, apply, becomes, installed, pod, token};
use kubebed::ApiServer;
use serde_json::{Value, json};
use testbed::{Bed, eventually};

/// A rule of a role, and a verb of it.
struct Right {
    role: &'static str,
    rule: usize,
    resource: String,
    verb: String,
}

const CLUSTER_ROLE: &str = "clusterrole/culvertd-culvert-system";
const ROLE: &str = "role/culvertd";

#[test]
fn without_any_one_right_something_is_missing() {
    let bed = Bed::new("kube-rights").unwrap();
    let api = installed(&bed);
    everything_to_do(&api);
    {
        // With all of them nothing is.
        let culvertd = Culvertd::start(&bed, &api);
        everything_done(&api, &culvertd);
        let log = culvertd.log();
        assert!(!log.contains("forbidden"), "{log}");
    }
    let mut unneeded = Vec::new();
    for right in rights(&api) {
        let whole = role(&api, right.role);
        undo(&api);
        replace(&api, &without(&whole, &right));
        let missed = is_missed(&bed, &api, &right);
        println!("{} {} of {}: missed: {missed}", right.verb, right.resource, right.role);
        if !missed {
            unneeded.push(format!("{} {} of {}", right.verb, right.resource, right.role));
        }
        replace(&api, &whole);
    }
    assert_eq!(unneeded, Vec::<String>::new(), "rights that nobody would miss");
    drop(api);
    bed.close().unwrap();
}

fn role(api: &ApiServer, name: &str) -> Value {
    let json = api.kubectl(&["get", name, "-n", SYSTEM, "-o", "json"]).unwrap();
    serde_json::from_str(&json).unwrap()
}

fn replace(api: &ApiServer, role: &Value) {
    let mut role = role.clone();
    for field in ["resourceVersion", "uid", "creationTimestamp", "managedFields"] {
        role["metadata"].as_object_mut().unwrap().remove(field);
    }
    api.kubectl_as(api.admin_kubeconfig(), &["replace", "-f", "-"], &role.to_string()).unwrap();
}

/// One for each resource and verb of each rule.
fn rights(api: &ApiServer) -> Vec<Right> {
    let mut all = Vec::new();
    for name in [CLUSTER_ROLE, ROLE] {
        let role = role(api, name);
        for (i, rule) in role["rules"].as_array().unwrap().iter().enumerate() {
            for resource in rule["resources"].as_array().unwrap() {
                for verb in rule["verbs"].as_array().unwrap() {
                    all.push(Right {
                        role: name,
                        rule: i,
                        resource: resource.as_str().unwrap().to_owned(),
                        verb: verb.as_str().unwrap().to_owned(),
                    });
                }
            }
        }
    }
    all
}

/// The role with that resource in a rule of its own, which lacks the verb.
fn without(role: &Value, right: &Right) -> Value {
    let mut role = role.clone();
    let rules = role["rules"].as_array_mut().unwrap();
    let mut own = rules[right.rule].clone();
    own["resources"] = json!([right.resource]);
    own["verbs"].as_array_mut().unwrap().retain(|v| *v != right.verb.as_str());
    rules[right.rule]["resources"]
        .as_array_mut()
        .unwrap()
        .retain(|r| *r != right.resource.as_str());
    if !own["verbs"].as_array().unwrap().is_empty() {
        rules.push(own);
    }
    rules.retain(|r| !r["resources"].as_array().unwrap().is_empty());
    role
}

/// Objects of every kind that something is written about.
fn everything_to_do(api: &ApiServer) {
    apply(api, "{apiVersion: v1, kind: Node, metadata: {name: n1}}");
    apply(api, "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}");
    pod(api, "shop", "web-1", "web", "n1", "10.1.0.1", "app: web");
    pod(api, SYSTEM, "agent-n1", "culvert-agent", "n1", "10.0.0.1", "app: culvert-agent");
}

const JUDGED: [(&str, &str); 11] = [
    (
        "service/web",
        "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}, spec: {selector: {app: web}, ports: [{port: 80}]}}",
    ),
    (
        "virtualservice/v",
        "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: v, namespace: shop}, spec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}}",
    ),
    (
        "destinationrule/d",
        "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: d, namespace: shop}, spec: {host: web}}",
    ),
    (
        "gateways.networking.istio.io/g",
        "{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {name: g, namespace: shop}, spec: {selector: {a: b}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}}",
    ),
    (
        "serviceentry/s",
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: s, namespace: shop}, spec: {hosts: [s.example.com], location: MESH_EXTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 192.0.2.1}]}}",
    ),
    (
        "workloadentry/w",
        "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: w, namespace: shop}, spec: {address: 192.0.2.2}}",
    ),
    (
        "authorizationpolicy/a",
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a, namespace: shop}, spec: {}}",
    ),
    (
        "peerauthentication/p",
        "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p, namespace: shop}, spec: {}}",
    ),
    (
        "telemetry/t",
        "{apiVersion: telemetry.istio.io/v1, kind: Telemetry, metadata: {name: t, namespace: shop}, spec: {}}",
    ),
    (
        "httproute/h",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: h, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}}",
    ),
    (
        "grpcroute/r",
        "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: r, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}}",
    ),
];

const WAYPOINT: &str = "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: waypoint, namespace: shop}, spec: {gatewayClassName: culvert-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}";

/// As if nothing had ever been written.
fn undo(api: &ApiServer) {
    let gone = |namespace: &str, what: &[&str]| {
        let mut args = vec!["delete", "-n", namespace, "--ignore-not-found", "--wait=false"];
        args.extend(what);
        api.kubectl(&args).unwrap();
    };
    gone(
        "shop",
        &[
            "gateway.gateway.networking.k8s.io/waypoint",
            "deployment/waypoint",
            "service/waypoint",
            "serviceaccount/waypoint",
            "configmap/istio-ca-root-cert",
        ],
    );
    let judged: Vec<&str> = JUDGED.iter().map(|(name, _)| *name).collect();
    gone("shop", &judged);
    gone(SYSTEM, &["secret/culvert-ca", "lease/culvertd", "configmap/culvert-vips"]);
    let fresh =
        "[{\"op\": \"replace\", \"path\": \"/webhooks/0/failurePolicy\", \"value\": \"Ignore\"}]";
    api.kubectl(&[
        "patch",
        "validatingwebhookconfiguration",
        "culvert-validator",
        "--type=json",
        "-p",
        fresh,
    ])
    .unwrap();
    for class in ["istio-waypoint", "culvert-waypoint"] {
        api.kubectl(&[
            "patch",
            "gatewayclass",
            class,
            "--subresource=status",
            "--type=merge",
            "-p",
            "{\"status\": null}",
        ])
        .unwrap();
    }
    create(api);
}

fn create(api: &ApiServer) {
    let all: Vec<&str> = JUDGED.iter().map(|(_, yaml)| *yaml).chain([WAYPOINT]).collect();
    apply(api, &all.join("\n---\n"));
}

fn everything_done(api: &ApiServer, culvertd: &Culvertd<'_>) {
    create(api);
    for (name, _) in JUDGED {
        let path = if name.contains("route/") {
            ".status.parents[0].conditions[0].status"
        } else {
            ".status.conditions[0].status"
        };
        becomes(api, name, "shop", path, "True");
    }
    becomes(
        api,
        "gateway.gateway.networking.k8s.io/waypoint",
        "shop",
        ".status.conditions[0].status",
        "True",
    );
    becomes(
        api,
        "gatewayclass/culvert-waypoint",
        SYSTEM,
        ".status.conditions[?(@.reason==\"Accepted\")].status",
        "True",
    );
    becomes(api, "deployment/waypoint", "shop", ".metadata.name", "waypoint");
    becomes(api, "configmap/istio-ca-root-cert", "shop", ".metadata.name", "istio-ca-root-cert");
    becomes(api, "configmap/culvert-vips", SYSTEM, ".data", "s.example.com");
    becomes(
        api,
        "validatingwebhookconfiguration/culvert-validator",
        SYSTEM,
        ".webhooks[0].failurePolicy",
        "Fail",
    );
    enrolled(api, culvertd).unwrap();
    // Renewed at least once.
    becomes(api, "lease/culvertd", SYSTEM, ".spec.holderIdentity", "culvertd-0");
}

/// What an agent asks for: a certificate, and that its pod is marked.
fn enrolled(api: &ApiServer, culvertd: &Culvertd<'_>) -> anyhow::Result<()> {
    let token = token(api, SYSTEM, "culvert-agent", "istio-ca", Some("agent-n1"));
    culvertd.certify(&token, "spiffe://cluster.local/ns/shop/sa/web")?;
    let uid = common::field(api, "pod/web-1", "shop", ".metadata.uid")?;
    culvertd.report(&token, &uid, "shop", "web-1", true)
}

/// Whether the control plane is told that it lacks that right.
fn is_missed(bed: &Bed, api: &ApiServer, right: &Right) -> bool {
    let culvertd = Culvertd::begin(bed, api);
    // As the API server words it: `services "web" is forbidden: User "..." cannot patch resource "services/status"`.
    let words = format!("cannot {} resource \"{}\"", right.verb, right.resource);
    eventually(SOON, || {
        let mut log = culvertd.log().replace('\\', "");
        if culvertd.ask("/ready").is_ok_and(|a| a.starts_with("HTTP/1.1 200"))
            && let Err(error) = enrolled(api, &culvertd)
        {
            log.push_str(&format!("{error:#}"));
        }
        ensure!(log.contains(&words), "nobody says {words}");
        Ok(())
    })
    .is_ok()
}
