//! The control plane on a real API server: what it reads, whom it trusts, and what it writes.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::process::Command;

use anyhow::{Context as _, ensure};
use common::{Culvertd, SOON, SYSTEM, apply, becomes, field, installed, pod, token};
use kubebed::ApiServer;
use testbed::{Bed, binary, eventually};

#[test]
fn the_control_plane_on_an_api_server() {
    let bed = Bed::new("kube-culvertd").unwrap();
    let mut api = installed(&bed);
    {
        let culvertd = Culvertd::start(&bed, &api);
        // Until its turn comes: what it would refuse is to be written.
        api.kubectl(&["delete", "validatingwebhookconfiguration", "culvert-validator"]).unwrap();
        the_root_is_in_a_secret_and_in_every_namespace(&api);
        objects_become_resources(&api, &culvertd);
        identities_go_to_live_pods_of_the_agents_node(&api, &culvertd);
        an_agents_report_becomes_an_annotation(&api, &culvertd);
        what_is_refused_says_so_in_its_status(&api);
        a_gateway_becomes_a_waypoint(&api);
        a_gateway_takes_over_nothing_of_its_name(&api, &culvertd);
        routes_say_what_became_of_them(&api);
        the_webhook_refuses_with_field_and_remedy(&api);
        the_lease_is_held(&api);
        an_authority_that_could_not_be_read_is_read_again(&api, &culvertd);
    }
    changes_arrive_after_the_api_server_was_away(&bed, &mut api);
    drop(api);
    bed.close().unwrap();
}

fn the_root_is_in_a_secret_and_in_every_namespace(api: &ApiServer) {
    let secret = field(api, "secret/culvert-ca", SYSTEM, ".data.root-cert\\.pem").unwrap();
    assert!(!secret.is_empty());
    let root = |namespace: &str| {
        becomes(
            api,
            "configmap/istio-ca-root-cert",
            namespace,
            ".data.root-cert\\.pem",
            "BEGIN CERTIFICATE",
        );
    };
    root("default");
    apply(
        api,
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}",
    );
    root("shop");
    api.kubectl(&["delete", "configmap", "istio-ca-root-cert", "-n", "shop"]).unwrap();
    root("shop");
}

fn objects_become_resources(api: &ApiServer, culvertd: &Culvertd<'_>) {
    for node in ["n1", "n2"] {
        apply(api, &format!("{{apiVersion: v1, kind: Node, metadata: {{name: {node}}}}}"));
    }
    let before = culvertd.resources("address").unwrap();
    pod(api, "shop", "web-1", "web", "n1", "10.1.0.1", "app: web");
    apply(
        api,
        "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop},
          spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: nobody, namespace: shop}, spec: {}}",
    );
    eventually(SOON, || {
        let now = culvertd.resources("address")?;
        ensure!(now == before + 2, "{now} addresses after {before}");
        let policies = culvertd.resources("authorization")?;
        ensure!(policies == 1, "{policies} policies");
        Ok(())
    })
    .unwrap();
    api.kubectl(&["delete", "authorizationpolicy", "nobody", "-n", "shop"]).unwrap();
    eventually(SOON, || {
        ensure!(culvertd.resources("authorization")? == 0, "the policy is served still");
        Ok(())
    })
    .unwrap();
}

fn identities_go_to_live_pods_of_the_agents_node(api: &ApiServer, culvertd: &Culvertd<'_>) {
    for (name, node, ip) in [("agent-n1", "n1", "10.0.0.1"), ("agent-n2", "n2", "10.0.0.2")] {
        pod(api, SYSTEM, name, "culvert-agent", node, ip, "app: culvert-agent");
    }
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let agent =
        |pod: Option<&str>, audience: &str| token(api, SYSTEM, "culvert-agent", audience, pod);
    let chain = culvertd.certify(&agent(Some("agent-n1"), "istio-ca"), web).unwrap();
    assert!(chain[0].contains("BEGIN CERTIFICATE"), "{chain:?}");
    let refused = |token: &str, identity: &str, code: &str| {
        let error = format!("{:#}", culvertd.certify(token, identity).unwrap_err());
        assert!(error.contains(code), "{error}");
    };
    refused(&agent(Some("agent-n2"), "istio-ca"), web, "PermissionDenied");
    refused(&agent(None, "istio-ca"), web, "bound to no pod");
    refused(&agent(Some("agent-n1"), "another"), web, "Unauthenticated");
    refused("nonsense", web, "Unauthenticated");
    let other = "spiffe://cluster.local/ns/shop/sa/other";
    refused(&agent(Some("agent-n1"), "istio-ca"), other, "PermissionDenied");
    // A pod's own token is for itself alone.
    let own = token(api, "shop", "web", "istio-ca", Some("web-1"));
    culvertd.certify(&own, web).unwrap();
    refused(&own, "spiffe://cluster.local/ns/culvert-system/sa/culvert-agent", "PermissionDenied");
    made_up_tokens_cost_little(api, culvertd, &own, web);
}

/// Who makes them up has few reviewed; who was let in before from the same address is let in still, and a
/// new token as soon as a second has passed.
fn made_up_tokens_cost_little(api: &ApiServer, culvertd: &Culvertd<'_>, known: &str, own: &str) {
    let answers: Vec<String> = (0..60)
        .map(|n| format!("{:#}", culvertd.certify(&format!("made-up-{n}"), own).unwrap_err()))
        .collect();
    let unseen = answers.iter().filter(|a| a.contains("ResourceExhausted")).count();
    let seen = answers.iter().filter(|a| a.contains("Unauthenticated")).count();
    assert_eq!(seen + unseen, 60, "{answers:?}");
    assert!(unseen > 10, "{seen} of 60 were reviewed");
    culvertd.certify(known, own).unwrap();
    let another = token(api, "shop", "web", "istio-ca", Some("web-1"));
    eventually(SOON, || culvertd.certify(&another, own).map(drop)).unwrap();
}

fn an_agents_report_becomes_an_annotation(api: &ApiServer, culvertd: &Culvertd<'_>) {
    let uid = field(api, "pod/web-1", "shop", ".metadata.uid").unwrap();
    let report = |agent: &str, pod_uid: &str, enrolled: bool| {
        let token = token(api, SYSTEM, "culvert-agent", "istio-ca", Some(agent));
        culvertd.report(&token, pod_uid, "shop", "web-1", enrolled)
    };
    let annotation = ".metadata.annotations.ambient\\.istio\\.io/redirection";
    report("agent-n1", &uid, true).unwrap();
    assert_eq!(field(api, "pod/web-1", "shop", annotation).unwrap(), "enabled");
    let error = report("agent-n2", &uid, false).unwrap_err().to_string();
    assert!(error.contains("NotFound"), "{error}");
    let error = report("agent-n1", "another", false).unwrap_err().to_string();
    assert!(error.contains("NotFound"), "{error}");
    assert_eq!(field(api, "pod/web-1", "shop", annotation).unwrap(), "enabled");
    report("agent-n1", &uid, false).unwrap();
    assert_eq!(field(api, "pod/web-1", "shop", annotation).unwrap(), "");
    report("agent-n1", &uid, true).unwrap();
    // A workload's token says nothing of pods.
    let own = token(api, "shop", "web", "istio-ca", Some("web-1"));
    let error = culvertd.report(&own, &uid, "shop", "web-1", false).unwrap_err().to_string();
    assert!(error.contains("PermissionDenied"), "{error}");
}

fn what_is_refused_says_so_in_its_status(api: &ApiServer) {
    let conditions = "[?(@.type==\"ZtunnelAccepted\")]";
    let policy = |cidr: &str| {
        apply(
            api,
            &format!(
                "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: shop}},
                  spec: {{rules: [{{from: [{{source: {{ipBlocks: ['{cidr}']}}}}]}}]}}}}"
            ),
        );
    };
    let says = |path: &str, wanted: &str| {
        let path = format!(".status.conditions{conditions}{path}");
        becomes(api, "authorizationpolicy/p", "shop", &path, wanted);
    };
    policy("10.0.0.0/8");
    says(".status", "True");
    policy("10.0.0.0/99");
    says(".status", "False");
    says(".message", "spec.rules[0].from[0].source.ipBlocks[0]");
    says(".observedGeneration", "2");
    policy("10.0.0.0/8");
    says(".status", "True");
    api.kubectl(&["delete", "authorizationpolicy", "p", "-n", "shop"]).unwrap();
    apply(
        api,
        "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: v, namespace: shop},
          spec: {hosts: [web], http: [{route: [{destination: {host: web}, weight: -1}]}]}}",
    );
    becomes(api, "virtualservice/v", "shop", ".status.conditions[0].status", "False");
    api.kubectl(&["delete", "virtualservice", "v", "-n", "shop"]).unwrap();
}

fn a_gateway_becomes_a_waypoint(api: &ApiServer) {
    apply(
        api,
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: waypoint, namespace: shop},
          spec: {gatewayClassName: culvert-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}",
    );
    becomes(
        api,
        "deployment/waypoint",
        "shop",
        ".spec.template.spec.containers[0].image",
        "culvert:test",
    );
    becomes(api, "service/waypoint", "shop", ".spec.ports[0].port", "15008");
    becomes(api, "serviceaccount/waypoint", "shop", ".metadata.ownerReferences[0].kind", "Gateway");
    let control = field(api, "service/culvertd", SYSTEM, ".spec.clusterIP").unwrap();
    let args = ".spec.template.spec.containers[0].args";
    becomes(api, "deployment/waypoint", "shop", args, &format!("https://{control}:15012"));
    becomes(
        api,
        "gateway.gateway.networking.k8s.io/waypoint",
        "shop",
        ".status.conditions[?(@.type==\"Accepted\")].status",
        "True",
    );
    becomes(
        api,
        "gateway.gateway.networking.k8s.io/waypoint",
        "shop",
        ".status.conditions[?(@.type==\"Programmed\")].status",
        "False",
    );
    pod(
        api,
        "shop",
        "waypoint-1",
        "waypoint",
        "n1",
        "10.1.0.9",
        "gateway.networking.k8s.io/gateway-name: waypoint",
    );
    becomes(
        api,
        "gateway.gateway.networking.k8s.io/waypoint",
        "shop",
        ".status.conditions[?(@.type==\"Programmed\")].status",
        "True",
    );
    becomes(
        api,
        "gatewayclass/culvert-waypoint",
        SYSTEM,
        ".status.conditions[?(@.type==\"Accepted\")].status",
        "True",
    );
    api.kubectl(&["label", "service", "web", "-n", "shop", "istio.io/use-waypoint=waypoint"])
        .unwrap();
    becomes(
        api,
        "service/web",
        "shop",
        ".status.conditions[0].message",
        "bound to waypoint shop/waypoint",
    );
    api.kubectl(&[
        "label",
        "--overwrite",
        "service",
        "web",
        "-n",
        "shop",
        "istio.io/use-waypoint=absent",
    ])
    .unwrap();
    becomes(api, "service/web", "shop", ".status.conditions[0].reason", "WaypointMissing");
    // Nothing is said of a Service that asks for none.
    api.kubectl(&["label", "service", "web", "-n", "shop", "istio.io/use-waypoint-"]).unwrap();
    eventually(SOON, || {
        let all = field(api, "service/web", "shop", ".status")?;
        ensure!(!all.contains("WaypointBound"), "{all}");
        Ok(())
    })
    .unwrap();
    api.kubectl(&[
        "label",
        "--overwrite",
        "service",
        "web",
        "-n",
        "shop",
        "istio.io/use-waypoint=waypoint",
    ])
    .unwrap();
}

/// What stood there before is not written over, and the waypoint comes once it is gone.
fn a_gateway_takes_over_nothing_of_its_name(api: &ApiServer, culvertd: &Culvertd<'_>) {
    apply(
        api,
        "{apiVersion: v1, kind: Service, metadata: {name: taken, namespace: shop},
          spec: {selector: {app: somebody}, ports: [{port: 7000}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: taken, namespace: shop},
          spec: {gatewayClassName: culvert-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}",
    );
    eventually(SOON, || {
        let log = culvertd.log();
        ensure!(log.contains("there is a Service shop/taken already"), "{log}");
        Ok(())
    })
    .unwrap();
    let service = field(api, "service/taken", "shop", ".spec").unwrap();
    assert!(service.contains("somebody") && service.contains("7000"), "{service}");
    assert!(!service.contains("15008"), "{service}");
    field(api, "deployment/taken", "shop", ".spec").unwrap_err();
    api.kubectl(&["delete", "service", "taken", "-n", "shop"]).unwrap();
    becomes(api, "deployment/taken", "shop", ".spec.template.spec.serviceAccountName", "taken");
    becomes(api, "service/taken", "shop", ".spec.ports[0].port", "15008");
    api.kubectl(&["delete", "gateway.gateway.networking.k8s.io", "taken", "-n", "shop"]).unwrap();
}

fn routes_say_what_became_of_them(api: &ApiServer) {
    let route = |backend: &str| {
        apply(
            api,
            &format!(
                "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: r, namespace: shop}},
                  spec: {{parentRefs: [{{group: '', kind: Service, name: web, port: 80}}],
                          rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]}}}}"
            ),
        );
    };
    let says = |condition: &str, wanted: &str| {
        let path = format!(".status.parents[0].conditions[?(@.type==\"{condition}\")].reason");
        becomes(api, "httproute/r", "shop", &path, wanted);
    };
    route("web");
    says("Accepted", "Accepted");
    says("ResolvedRefs", "ResolvedRefs");
    becomes(
        api,
        "gateway.gateway.networking.k8s.io/waypoint",
        "shop",
        ".status.listeners[0].attachedRoutes",
        "1",
    );
    route("absent");
    says("ResolvedRefs", "BackendNotFound");
    api.kubectl(&["delete", "httproute", "r", "-n", "shop"]).unwrap();
}

fn the_webhook_refuses_with_field_and_remedy(api: &ApiServer) {
    common::manifests(api);
    becomes(
        api,
        "validatingwebhookconfiguration/culvert-validator",
        SYSTEM,
        ".webhooks[0].failurePolicy",
        "Fail",
    );
    let bad = "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: v, namespace: shop},
                spec: {hosts: [web], http: [{route: [{destination: {host: web}, weight: -1}]}]}}";
    eventually(SOON, || {
        let error = api.apply(bad).err().context("taken")?.to_string();
        ensure!(error.contains("denied the request"), "{error}");
        ensure!(error.contains("spec.http[0].route[0].weight"), "{error}");
        Ok(())
    })
    .unwrap();
    apply(api, &bad.replace("weight: -1", "weight: 1"));
    // Where Istio's definition is installed, nobody is to believe that it does something.
    apply(
        api,
        "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: envoyfilters.networking.istio.io},
          spec: {group: networking.istio.io, scope: Namespaced, names: {plural: envoyfilters, singular: envoyfilter, kind: EnvoyFilter},
          versions: [{name: v1alpha3, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]}}",
    );
    eventually(SOON, || {
        let filter = "{apiVersion: networking.istio.io/v1alpha3, kind: EnvoyFilter, metadata: {name: f, namespace: shop}, spec: {configPatches: []}}";
        let error = api.apply(filter).err().context("taken")?.to_string();
        ensure!(error.contains("denied the request") && error.contains("no Envoy runs here"), "{error}");
        Ok(())
    })
    .unwrap();
}

fn the_lease_is_held(api: &ApiServer) {
    becomes(api, "lease/culvertd", SYSTEM, ".spec.holderIdentity", "culvertd-0");
}

/// A Secret is told of once; that it could not be read then is not the end of it.
fn an_authority_that_could_not_be_read_is_read_again(api: &ApiServer, culvertd: &Culvertd<'_>) {
    let role = field(api, "role/culvertd", SYSTEM, ".rules").unwrap();
    let rules: Vec<serde_json::Value> = serde_json::from_str(&role).unwrap();
    let of_secrets = rules.iter().position(|r| r["resourceNames"][1] == "cacerts").unwrap();
    let may_read = |names: &str| {
        let path = format!("/rules/{of_secrets}/resourceNames");
        let patch = format!(r#"[{{"op": "replace", "path": "{path}", "value": {names}}}]"#);
        api.kubectl(&["patch", "role", "culvertd", "-n", SYSTEM, "--type=json", "-p", &patch])
            .unwrap();
    };
    let account = format!("--as=system:serviceaccount:{SYSTEM}:culvertd");
    let reads = || api.kubectl(&["auth", "can-i", "get", "secret/cacerts", "-n", SYSTEM, &account]);
    may_read(r#"["culvert-ca"]"#);
    eventually(SOON, || {
        ensure!(reads().is_err(), "it may still be read");
        Ok(())
    })
    .unwrap();
    let (certificate, key) = root();
    let secret = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": "cacerts", "namespace": SYSTEM },
        "stringData": {
            "ca-cert.pem": certificate, "ca-key.pem": key, "cert-chain.pem": "",
            "root-cert.pem": certificate,
        },
    });
    apply(api, &secret.to_string());
    eventually(SOON, || {
        let log = culvertd.log();
        ensure!(log.contains("reading Secret cacerts"), "{log}");
        Ok(())
    })
    .unwrap();
    let told =
        || field(api, "configmap/istio-ca-root-cert", "shop", ".data.root-cert\\.pem").unwrap();
    assert_ne!(told().trim(), certificate.trim(), "the one before is used on");
    may_read(r#"["culvert-ca", "cacerts"]"#);
    eventually(SOON, || {
        ensure!(told().trim() == certificate.trim(), "{}", told());
        Ok(())
    })
    .unwrap();
}

/// A CA's certificate and key, as PEM.
fn root() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn changes_arrive_after_the_api_server_was_away(bed: &Bed, api: &mut ApiServer) {
    // The process outlives the server that it was started against; the borrow does not.
    let kubeconfig = api.account_kubeconfig(SYSTEM, "culvertd").unwrap();
    let dir = bed.dir().join("culvertd-2");
    std::fs::create_dir_all(&dir).unwrap();
    let mut cmd = Command::new(binary("culvertd").unwrap());
    cmd.args(["run", "--kubernetes", "--namespace", SYSTEM, "--pod", "culvertd-1", "--state-dir"])
        .arg(&dir)
        .env("KUBECONFIG", kubeconfig);
    let proc = bed.spawn_fabric(cmd).unwrap();
    proc.wait_for_output("serving", SOON).unwrap();
    let ask =
        |api: &ApiServer| Culvertd { api, bed, proc: None, dir: dir.clone() }.resources("address");
    let before = ask(api).unwrap();
    api.kill().unwrap();
    assert_eq!(ask(api).unwrap(), before, "what was known stays");
    api.restart(bed).unwrap();
    pod(api, "shop", "web-2", "web", "n2", "10.1.0.2", "app: web");
    eventually(SOON * 2, || {
        let now = ask(api)?;
        ensure!(now == before + 1, "{now} addresses after {before}\n{}", proc.stdout());
        Ok(())
    })
    .unwrap();
    assert!(proc.is_running());
}
