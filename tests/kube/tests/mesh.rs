//! Culvert on a cluster, as its users have it: the manifests are applied, a namespace is labelled, and running pods are of
//! the mesh; what is seen is what kubectl shows and what is on the wire.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kubebed::{Cluster, chart};
use oci_image::Image;
use testbed::{Bed, Capture, LeakCheck, LeakVerdict, Token, binary, eventually};

const SOON: Duration = Duration::from_secs(120);
const SYSTEM: &str = "culvert-system";

struct Mesh<'a> {
    cluster: &'a Cluster,
    image: String,
    /// What the servers' page has in it.
    token: Token,
}

#[test]
fn running_pods_join_by_a_label_and_leave_by_it() {
    let bed = Bed::new("kube-mesh").unwrap();
    let cluster = Cluster::start(&bed, &["n1", "n2"]).unwrap();
    let image = cluster.busybox().name().to_owned();
    let mesh = Mesh { cluster: &cluster, image, token: Token::new() };
    mesh.install();
    for (name, node) in [("web-1", "n1"), ("web-2", "n2")] {
        mesh.server(name, "web", node);
    }
    mesh.client("client", "n1");
    mesh.running();
    mesh.service();

    // The proof that it would be found.
    let capture = mesh.link();
    mesh.gets("client", "web-2");
    let verdict = mesh.judge(capture);
    assert!(!verdict.tokens.is_empty(), "the page crosses in the clear: {verdict}");

    mesh.kubectl(&["label", "namespace", "default", "istio.io/dataplane-mode=ambient"]);
    for pod in ["web-1", "web-2", "client"] {
        mesh.becomes(pod, "enabled");
    }
    let capture = mesh.link();
    for _ in 0..5 {
        mesh.gets("client", "web-2");
        mesh.gets("client", "web-1");
    }
    mesh.policies();
    mesh.a_pod_that_starts_is_captured_from_the_start();
    mesh.probes_work_under_strict();
    let verdict = mesh.judge(capture);
    assert!(verdict.is_clean() && verdict.hbone_streams > 0, "{verdict}");
    mesh.the_log_has_both_identities();
    mesh.agents_are_exchanged_under_load();

    mesh.kubectl(&["label", "namespace", "default", "istio.io/dataplane-mode-"]);
    for pod in ["web-1", "web-2", "client"] {
        mesh.becomes(pod, "");
    }
    mesh.gets("client", "web-2");
    cluster.check().unwrap();
    drop(cluster);
    bed.close().unwrap();
}

impl Mesh<'_> {
    fn kubectl(&self, args: &[&str]) -> String {
        self.cluster.api().kubectl(args).unwrap_or_else(|e| panic!("{e}\n{}", self.state()))
    }

    /// What there is to see when something fails.
    fn state(&self) -> String {
        let say =
            |args: &[&str]| self.cluster.api().kubectl(args).unwrap_or_else(|e| e.to_string());
        let pods = say(&["get", "pods", "-A", "-o", "wide"]);
        let events = say(&["get", "events", "-A", "--sort-by=.lastTimestamp"]);
        let last = |text: String| {
            let lines: Vec<&str> = text.lines().rev().take(25).collect();
            lines.into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        let logs = |what: &str| last(say(&["logs", "-n", SYSTEM, what, "--tail=40", "--prefix"]));
        format!(
            "{pods}\n{}\n== culvertd\n{}\n== agents\n{}",
            last(events),
            logs("deployment/culvertd"),
            last(say(&[
                "logs",
                "-n",
                SYSTEM,
                "-l",
                "app.kubernetes.io/name=culvert-agent",
                "--tail=40",
                "--prefix"
            ])),
        )
    }

    fn install(&self) {
        let version = env!("CARGO_PKG_VERSION");
        let mut image = Image::new(&format!("localhost/culvert:{version}"));
        for program in
            ["culvertd", "culvert-agent", "culvert-waypoint", "culvert-cni", "culvertctl"]
        {
            image = image.program_in("/usr/local/bin", &binary(program).unwrap()).unwrap();
        }
        self.cluster.load(&image).unwrap();
        let crds = chart::dir().join("crds");
        self.kubectl(&["apply", "--server-side", "-f", crds.to_str().unwrap()]);
        let wait = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
        // Of one without any condition yet it thinks nothing good.
        eventually(SOON, || self.cluster.api().kubectl(&wait)).unwrap();
        let manifests = chart::manifests_file();
        self.kubectl(&["apply", "--server-side", "-f", manifests.to_str().unwrap()]);
        for what in ["deployment/culvertd", "daemonset/culvert-agent"] {
            self.kubectl(&["rollout", "status", what, "-n", SYSTEM, "--timeout=180s"]);
        }
    }

    fn pod(&self, name: &str, app: &str, node: &str, script: &str, more: &str) {
        let image = &self.image;
        self.apply(&format!(
            "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {app}}}}}\n---\n\
             {{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {app}}}}}, spec: {{
               nodeSelector: {{kubernetes.io/hostname: {node}}}, terminationGracePeriodSeconds: 1,
               serviceAccountName: {app},
               containers: [{{name: c, image: '{image}', imagePullPolicy: Never,
                 command: [bash, -c, '{script}']{more}}}]}}}}"
        ));
    }

    fn apply(&self, yaml: &str) {
        self.cluster.api().apply(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}\n{}", self.state()));
    }

    /// It serves a page with the token in it.
    fn server(&self, name: &str, app: &str, node: &str) {
        let token: String = self.token.bytes().iter().map(|b| format!("\\x{b:02x}")).collect();
        let script = format!(
            "mkdir /www; printf \"{token}\" >/www/index.html; exec httpd -f -p 8080 -h /www"
        );
        let probe = ", readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}";
        self.pod(name, app, node, &script, probe);
    }

    fn client(&self, name: &str, node: &str) {
        self.pod(name, "client", node, "exec sleep 10000", "");
    }

    fn service(&self) {
        self.apply(
            "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.80,
              selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}",
        );
    }

    fn running(&self) {
        self.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=180s"]);
    }

    fn address(&self, pod: &str) -> String {
        self.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"])
    }

    fn exec(&self, pod: &str, script: &str) -> Result<String> {
        self.cluster.api().kubectl(&["exec", pod, "--", "bash", "-c", script])
    }

    /// The status of an HTTP answer, once it has come whole.
    fn get(&self, from: &str, address: &str, port: u16) -> Result<String> {
        let script = format!(
            r"exec 3<>/dev/tcp/{address}/{port} && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && read -r line <&3 && cat <&3 >/dev/null; echo $line"
        );
        self.exec(from, &script)
    }

    fn gets(&self, from: &str, to: &str) {
        let address = self.address(to);
        let got = eventually(SOON, || {
            let said = self.get(from, &address, 8080)?;
            ensure!(said.contains("200"), "{said:?}");
            Ok(())
        });
        got.with_context(|| self.state()).unwrap();
    }

    /// The annotation that says how others reach the pod.
    fn becomes(&self, pod: &str, wanted: &str) {
        let path = "jsonpath={.metadata.annotations.ambient\\.istio\\.io/redirection}";
        let seen = eventually(SOON, || {
            let is = self.cluster.api().kubectl(&["get", "pod", pod, "-o", path])?;
            ensure!(is == wanted, "{pod} is {is:?}, not {wanted:?}");
            Ok(())
        });
        seen.with_context(|| self.state()).unwrap();
    }

    fn link(&self) -> Capture {
        self.cluster.nodes()[0].bed().capture_link("link").unwrap()
    }

    fn judge(&self, capture: Capture) -> LeakVerdict {
        let report = capture.stop().unwrap();
        let pods = ["web-1", "web-2", "client"].map(|p| self.address(p));
        let enrolled: HashSet<IpAddr> = pods.iter().map(|a| a.parse().unwrap()).collect();
        let check = LeakCheck { tokens: vec![self.token], enrolled, ..LeakCheck::default() };
        check.check(&report).unwrap()
    }

    fn policies(&self) {
        let address = self.address("web-2");
        self.apply(
            "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: nobody},
              spec: {selector: {matchLabels: {app: web}}, action: DENY,
                     rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]}]}}",
        );
        let denied = eventually(SOON, || {
            let said = self.get("client", &address, 8080);
            ensure!(!said.as_ref().is_ok_and(|s| s.contains("200")), "let through: {said:?}");
            Ok(())
        });
        denied.with_context(|| self.state()).unwrap();
        self.kubectl(&["delete", "authorizationpolicy", "nobody"]);
        self.gets("client", "web-2");
    }

    /// The plugin in the node's CNI configuration holds it until it is captured.
    fn a_pod_that_starts_is_captured_from_the_start(&self) {
        let web = self.address("web-2");
        // Its first act is a connection, and its first bytes are the token.
        let token: String = self.token.bytes().iter().map(|b| format!("\\x{b:02x}")).collect();
        let script = format!(
            "exec 3<>/dev/tcp/{web}/8080 && printf \"GET /{token} HTTP/1.0\\r\\n\\r\\n\" >&3; cat <&3; exec sleep 10000"
        );
        self.pod("early", "client", "n1", &script, "");
        self.kubectl(&["wait", "--for=condition=Ready", "pod/early", "--timeout=120s"]);
        self.becomes("early", "enabled");
        self.gets("early", "web-2");
        self.kubectl(&["delete", "pod", "early", "--timeout=60s"]);
    }

    /// The kubelet's, which are plaintext from the node.
    fn probes_work_under_strict(&self) {
        self.apply(
            "{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict},
              spec: {mtls: {mode: STRICT}}}",
        );
        self.server("late", "web", "n2");
        self.kubectl(&["wait", "--for=condition=Ready", "pod/late", "--timeout=120s"]);
        self.becomes("late", "enabled");
        self.gets("client", "late");
        self.kubectl(&["delete", "pod", "late", "--timeout=60s"]);
        self.kubectl(&["delete", "peerauthentication", "strict"]);
    }

    fn the_log_has_both_identities(&self) {
        let logs = self.kubectl(&[
            "logs",
            "-n",
            SYSTEM,
            "-l",
            "app.kubernetes.io/name=culvert-agent",
            "--tail=-1",
        ]);
        let client = "spiffe://cluster.local/ns/default/sa/client";
        let web = "spiffe://cluster.local/ns/default/sa/web";
        assert!(logs.lines().any(|l| l.contains(client) && l.contains(web)), "{logs}");
    }

    /// A rolling restart: one agent takes over from the other, and no connection is refused.
    fn agents_are_exchanged_under_load(&self) {
        let web = self.address("web-2");
        let script = format!(
            r"(while [ ! -e /stop ]; do
                 (exec 3<>/dev/tcp/{web}/8080 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && read -r line <&3 &&
                   cat <&3 >/dev/null && [[ $line == *200* ]]) && echo ok || echo failed
               done >/load 2>/errors) >/dev/null 2>&1 &"
        );
        self.exec("client", &script).unwrap();
        self.kubectl(&["rollout", "restart", "daemonset/culvert-agent", "-n", SYSTEM]);
        self.kubectl(&[
            "rollout",
            "status",
            "daemonset/culvert-agent",
            "-n",
            SYSTEM,
            "--timeout=300s",
        ]);
        self.exec("client", "echo >/stop").unwrap();
        let load = self.exec("client", "cat /load /errors").unwrap();
        let ok = load.lines().filter(|l| *l == "ok").count();
        let failed = load.lines().filter(|l| *l == "failed").count();
        println!("{ok} connections while agents were exchanged, {failed} failed");
        assert!(ok > 50 && failed == 0, "{ok} ok, {failed} failed\n{load}\n{}", self.state());
    }
}
