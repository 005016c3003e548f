//! A real API server takes what `deploy/` has, and gives culvertd the rights that it needs and no others.
#![allow(clippy::unwrap_used)]

use kubebed::{ApiServer, chart};
use std::{process::Command, time::Duration};
use testbed::{Bed, eventually};

const SOON: Duration = Duration::from_secs(60);
const CULVERTD: &str = "--as=system:serviceaccount:culvert-system:culvertd";
const AGENT: &str = "--as=system:serviceaccount:culvert-system:culvert-agent";

#[test]
fn the_manifests_are_what_the_chart_renders_to() {
    let checked_in = std::fs::read_to_string(chart::manifests_file()).unwrap_or_default();
    let same = checked_in == chart::manifests().unwrap();
    assert!(same, "run `cargo xtask manifests`, and commit what it writes");
}

#[test]
fn values_that_cannot_be_are_refused() {
    chart::lint().unwrap();
    for (wrong, field) in [
        ("agent.sameNode=plain", "sameNode"),
        ("agent.drainSecond=3", "drainSecond"),
        ("image.digest=sha256:12", "digest"),
        ("culvertd.replicas=many", "replicas"),
    ] {
        let error = chart::render(&["--set", wrong]).unwrap_err().to_string();
        assert!(error.contains(field), "{wrong}: {error}");
    }
}

#[test]
fn what_is_set_is_rendered() {
    let rendered = chart::render(&[
        "--set=image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "--set=trustDomain=td.example,network=n1,webhook.enabled=false,gatewayClasses.create=false",
        "--set=meshConfig.accessLogFile=/dev/stdout,meshConfig.rootNamespace=elsewhere",
        "--set=agent.excludeNamespaces={storage,culvert-system},agent.drainSeconds=60",
    ])
    .unwrap();
    for line in [
        "image: localhost/culvert@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "trustDomain: td.example",
        "accessLogFile: /dev/stdout",
        // Where the control plane looks for itself.
        "rootNamespace: culvert-system",
        "- --network=n1",
        "- --trust-domain=td.example",
        "- --cni-exclude-namespace=storage",
        "terminationGracePeriodSeconds: 75",
    ] {
        assert!(rendered.lines().any(|l| l.trim() == line), "{line}: {rendered}");
    }
    assert_eq!(rendered.matches("--cni-exclude-namespace=culvert-system").count(), 1);
    let detaching = chart::render(&["--set=agent.detach=true"]).unwrap();
    assert!(detaching.contains("- detach\n") && detaching.contains("maxUnavailable: 100%"));
    // An agent that detaches is ready when it has; it answers nobody.
    assert_eq!(detaching.matches("readinessProbe").count(), 2);
    assert_eq!(detaching.matches("livenessProbe").count(), 1);
    for gone in ["ValidatingWebhookConfiguration", "admissionregistration", "kind: GatewayClass"] {
        assert!(!rendered.contains(gone), "{gone}");
    }
}

#[test]
fn an_api_server_takes_it() {
    let bed = Bed::new("kube-chart").unwrap();
    let api = ApiServer::start(&bed).unwrap();
    let crds = chart::dir().join("crds").display().to_string();
    api.kubectl(&["apply", "--server-side", "-f", &crds]).unwrap();
    let wait = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
    assert_eq!(api.kubectl(&wait).unwrap().lines().count(), 13);
    every_version_is_one_object(&api);
    fields_are_held_to_the_types(&api);
    a_status_is_of_several_writers(&api);

    // Nothing is there yet but the namespace, which a dry run does not make.
    api.kubectl(&["create", "namespace", chart::NAMESPACE]).unwrap();
    let file = chart::manifests_file().display().to_string();
    let dry = ["apply", "--server-side", "--dry-run=server", "-f", &file];
    api.kubectl(&[&dry[..], &["--force-conflicts"]].concat()).unwrap();
    api.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file]).unwrap();
    rights_are_the_contracts(&api);
    bed.close().unwrap();
}

fn virtual_service(version: &str, name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: networking.istio.io/{version}, kind: VirtualService, metadata: {{name: {name}}}, spec: {spec}}}"
    )
}

fn every_version_is_one_object(api: &ApiServer) {
    for version in ["v1alpha3", "v1beta1", "v1"] {
        let spec = "{hosts: [a.example], http: [{timeout: 3s, route: [{destination: {host: b}, weight: 7}]}]}";
        // Discovery of a new kind takes kubectl a moment.
        eventually(SOON, || api.apply(&virtual_service(version, version, spec))).unwrap();
        for other in ["v1alpha3", "v1beta1", "v1"] {
            let resource = format!("virtualservices.{other}.networking.istio.io");
            let path = "jsonpath={.apiVersion} {.spec.http[0].route[0].weight}";
            let said = api.kubectl(&["get", &resource, version, "-o", path]).unwrap();
            assert_eq!(said, format!("networking.istio.io/{other} 7"));
        }
    }
    // By the short name, with the columns.
    let listed = api.kubectl(&["get", "vs", "v1"]).unwrap();
    assert!(listed.contains("HOSTS") && listed.contains("a.example"), "{listed}");
}

fn fields_are_held_to_the_types(api: &ApiServer) {
    let refused = |spec: &str, words: &str| {
        let error = api.apply(&virtual_service("v1", "wrong", spec)).unwrap_err().to_string();
        assert!(error.contains(words), "{spec}: {error}");
    };
    refused("{hosts: [a], http: [{rout: []}]}", "unknown field \"spec.http[0].rout\"");
    refused("{hosts: a}", "spec.hosts");
    refused("{hosts: [a], http: [{route: [{destination: {host: b}, weight: x}]}]}", "weight");
    // Of a oneof, one.
    refused("{hosts: [a], http: [{match: [{uri: {exact: /a, prefix: /b}}]}]}", "uri");
    let error = api
        .apply(
            "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: p},
              spec: {mtls: {mode: SOMETIMES}}}",
        )
        .unwrap_err()
        .to_string();
    assert!(error.contains("supported values") && error.contains("STRICT"), "{error}");

    // Whoever does not ask for strictness has the field dropped, as with any kind.
    let typo = virtual_service("v1", "pruned", "{hosts: [a], http: [{rout: []}]}");
    let lenient = ["apply", "--validate=ignore", "-f", "-"];
    api.kubectl_as(api.admin_kubeconfig(), &lenient, &typo).unwrap();
    let kept = api.kubectl(&["get", "vs", "pruned", "-o", "jsonpath={.spec}"]).unwrap();
    assert_eq!(kept, r#"{"hosts":["a"],"http":[{}]}"#);
}

/// Conditions are each their writer's: who applies one leaves the others.
fn a_status_is_of_several_writers(api: &ApiServer) {
    let gateway = "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: g},
         spec: {gatewayClassName: c, listeners: [{name: l, port: 80, protocol: HTTP}]}}";
    eventually(SOON, || api.apply(gateway)).unwrap();
    let applied = |manager: &str, kind: &str| {
        let status = format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: g}},
              status: {{conditions: [{{type: {kind}, status: 'True', reason: r, message: m,
                  lastTransitionTime: '2026-01-01T00:00:00Z'}}],
                  listeners: [{{name: {manager}, attachedRoutes: 1, conditions: []}}]}}}}"
        );
        let manager = format!("--field-manager={manager}");
        let args = ["apply", "--server-side", "--subresource=status", &manager, "-f", "-"];
        api.kubectl_as(api.admin_kubeconfig(), &args, &status).unwrap();
    };
    applied("one", "Accepted");
    applied("two", "Programmed");
    applied("one", "Accepted");
    let path = "jsonpath={.status.conditions[*].type} {.status.listeners[*].name}";
    let said =
        api.kubectl(&["get", "gateways.gateway.networking.k8s.io", "g", "-o", path]).unwrap();
    assert_eq!(said, "Accepted Programmed one two");
    // A spec's writer does not touch it.
    api.apply(gateway).unwrap();
    let column = api.kubectl(&["get", "gtw", "g", "--no-headers"]).unwrap();
    assert!(column.contains("True"), "{column}");
}

fn may(api: &ApiServer, who: &str, verb: &str, resource: &str, more: &[&str]) -> bool {
    let args = [&["auth", "can-i", verb, resource, who][..], more].concat();
    // It says no by its exit code, too.
    api.kubectl(&args).is_ok_and(|said| said.trim() == "yes")
}

fn rights_are_the_contracts(api: &ApiServer) {
    const OWN: &[&str] = &["-n", "culvert-system"];
    const ELSEWHERE: &[&str] = &["-n", "default"];
    // The authorizer hears of a binding by a watch of its own.
    eventually(SOON, || {
        anyhow::ensure!(may(api, CULVERTD, "get", "leases/culvertd", OWN), "not yet bound");
        anyhow::ensure!(may(api, CULVERTD, "watch", "pods", &["-A"]), "not yet bound");
        Ok(())
    })
    .unwrap();
    for (verb, resource, more) in [
        ("list", "secrets", &["-A"][..]),
        ("watch", "endpointslices.discovery.k8s.io", &["-A"]),
        ("watch", "virtualservices.networking.istio.io", &["-A"]),
        ("watch", "gateways.gateway.networking.k8s.io", &["-A"]),
        ("get", "gatewayclasses.gateway.networking.k8s.io/istio-waypoint", &[]),
        ("patch", "pods", ELSEWHERE),
        ("patch", "configmaps/istio-ca-root-cert", ELSEWHERE),
        ("create", "configmaps/istio-ca-root-cert", ELSEWHERE),
        ("watch", "configmaps/istio", OWN),
        ("create", "configmaps/culvert-vips", OWN),
        ("patch", "services", &["--subresource=status", "-n", "default"]),
        ("create", "secrets", OWN),
        ("create", "leases.coordination.k8s.io", OWN),
        ("update", "leases.coordination.k8s.io/culvertd", OWN),
        ("create", "tokenreviews.authentication.k8s.io", &[]),
        ("patch", "deployments.apps", ELSEWHERE),
        ("create", "serviceaccounts", ELSEWHERE),
        ("patch", "validatingwebhookconfigurations/culvert-validator", &[]),
        ("patch", "virtualservices.networking.istio.io", &["--subresource=status", "-A"]),
        ("patch", "httproutes.gateway.networking.k8s.io", &["--subresource=status", "-A"]),
    ] {
        assert!(may(api, CULVERTD, verb, resource, more), "may not {verb} {resource} {more:?}");
    }
    for (verb, resource, more) in [
        ("create", "pods", OWN),
        ("delete", "pods", ELSEWHERE),
        ("create", "pods", &["--subresource=exec", "-n", "default"]),
        ("create", "secrets", ELSEWHERE),
        ("update", "secrets", OWN),
        ("delete", "secrets", OWN),
        ("get", "configmaps/other", ELSEWHERE),
        ("list", "configmaps", ELSEWHERE),
        ("patch", "configmaps/istio", OWN),
        ("update", "leases.coordination.k8s.io/other", OWN),
        ("patch", "virtualservices.networking.istio.io", ELSEWHERE),
        ("delete", "deployments.apps", ELSEWHERE),
        ("patch", "daemonsets.apps", OWN),
        ("patch", "validatingwebhookconfigurations/other", &[]),
        ("create", "clusterrolebindings.rbac.authorization.k8s.io", &[]),
        ("patch", "namespaces", &[]),
    ] {
        assert!(!may(api, CULVERTD, verb, resource, more), "may {verb} {resource} {more:?}");
    }
    for (verb, resource) in
        [("get", "pods"), ("list", "secrets"), ("get", "configmaps"), ("get", "nodes")]
    {
        assert!(!may(api, AGENT, verb, resource, OWN), "the agent may {verb} {resource}");
    }
}

#[test]
fn helm_installs_it_and_an_upgrade_leaves_what_culvertd_has_set() {
    let bed = Bed::new("kube-helm").unwrap();
    let api = ApiServer::start(&bed).unwrap();
    let dir = chart::dir().display().to_string();
    let release = ["culvert", &dir, "--namespace", chart::NAMESPACE];
    let install = [&["install"][..], &release, &["--create-namespace"]].concat();
    let said = api.helm(&install).unwrap();
    assert!(said.contains("STATUS: deployed"), "{said}");
    assert!(said.contains("istio.io/dataplane-mode=ambient"), "{said}");
    let policy = || {
        let path = "jsonpath={.webhooks[0].failurePolicy} {.webhooks[0].clientConfig.caBundle}";
        api.kubectl(&["get", "validatingwebhookconfiguration", "culvert-validator", "-o", path])
            .unwrap()
    };
    assert_eq!(policy(), "Ignore ");
    let root = Command::new("base64").arg("-w0").arg(api.root_certificate()).output().unwrap();
    let root = String::from_utf8(root.stdout).unwrap();
    let raise = format!(
        "[{{\"op\": \"replace\", \"path\": \"/webhooks/0/failurePolicy\", \"value\": \"Fail\"}},
          {{\"op\": \"add\", \"path\": \"/webhooks/0/clientConfig/caBundle\", \"value\": \"{root}\"}}]"
    );
    let patch = ["patch", "validatingwebhookconfiguration", "culvert-validator", "--type=json"];
    api.kubectl(&[&patch[..], &["-p", &raise]].concat()).unwrap();
    let upgrade = [&["upgrade"][..], &release, &["--set", "culvertd.replicas=3"]].concat();
    api.helm(&upgrade).unwrap();
    assert_eq!(policy(), format!("Fail {root}"));
    let path = ["get", "deployment", "culvertd", "-n", chart::NAMESPACE];
    let replicas =
        api.kubectl(&[&path[..], &["-o", "jsonpath={.spec.replicas}"]].concat()).unwrap();
    assert_eq!(replicas, "3");
    // Nobody runs the Job that comes before it, and there are no nodes.
    api.helm(&["uninstall", "culvert", "--namespace", chart::NAMESPACE, "--no-hooks"]).unwrap();
    let left = ["get", "clusterroles,clusterrolebindings,gatewayclasses", "-o", "name"];
    let left = api.kubectl(&[&left[..], &["-l", "app.kubernetes.io/part-of=culvert"]].concat());
    assert_eq!(left.unwrap(), "");
}
