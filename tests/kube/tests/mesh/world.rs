//! The cluster with its pods, and how to look at it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kubebed::{Cluster, chart};
use oci_image::Image;
use testbed::{Capture, LeakCheck, LeakVerdict, Token, binary, eventually};

pub const SOON: Duration = Duration::from_secs(120);
pub const SYSTEM: &str = "culvert-system";
pub const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
pub const WEB: &str = "spiffe://cluster.local/ns/default/sa/web";

pub struct Mesh {
    pub cluster: Cluster,
    image: String,
    /// What the servers' page has in it.
    token: Token,
}

impl Mesh {
    pub fn new(cluster: Cluster) -> Self {
        let image = cluster.busybox().name().to_owned();
        Self { cluster, image, token: Token::new() }
    }

    pub fn kubectl(&self, args: &[&str]) -> String {
        self.cluster.api().kubectl(args).unwrap_or_else(|e| panic!("{e}\n{}", self.state()))
    }

    pub fn helm(&self, args: &[&str]) -> String {
        let of_ours = ["--namespace", SYSTEM];
        let args = [args, &of_ours].concat();
        self.cluster.api().helm(&args).unwrap_or_else(|e| panic!("{e}\n{}", self.state()))
    }

    pub fn apply(&self, yaml: &str) {
        self.cluster.api().apply(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}\n{}", self.state()));
    }

    /// What there is to see when something fails.
    pub fn state(&self) -> String {
        let say =
            |args: &[&str]| self.cluster.api().kubectl(args).unwrap_or_else(|e| e.to_string());
        let pods = say(&["get", "pods", "-A", "-o", "wide"]);
        let events = say(&["get", "events", "-A", "--sort-by=.lastTimestamp"]);
        let last = |text: String| the_end_of(&text);
        let logs = |what: &str| last(say(&["logs", "-n", SYSTEM, what, "--tail=40", "--prefix"]));
        format!(
            "{pods}\n{}\n== culvertd\n{}\n== agents\n{}",
            last(events),
            logs("deployment/culvertd"),
            last(say(&["logs", "-n", SYSTEM, "-l", AGENTS, "--tail=40", "--prefix"])),
        )
    }

    pub fn install(&self) {
        let version = env!("CARGO_PKG_VERSION");
        let mut image = Image::new(&format!("localhost/culvert:{version}"));
        for program in
            ["culvertd", "culvert-agent", "culvert-waypoint", "culvert-cni", "culvertctl"]
        {
            image = image.program_in("/usr/local/bin", &binary(program).unwrap()).unwrap();
        }
        self.cluster.load(&image).unwrap();
        let chart = chart::dir();
        self.helm(&["install", "culvert", chart.to_str().unwrap(), "--create-namespace"]);
        self.rolled_out();
    }

    pub fn rolled_out(&self) {
        for what in ["deployment/culvertd", "daemonset/culvert-agent"] {
            self.kubectl(&["rollout", "status", what, "-n", SYSTEM, "--timeout=300s"]);
        }
    }

    /// Two servers and a client, which stay.
    pub fn pods(&self) {
        self.server("web-1", "web", "n1");
        self.server("web-2", "web", "n2");
        self.client("client", "n1");
        self.running();
        self.service("web", "10.96.0.80", "app: web", "");
    }

    /// With an account of the name of its app.
    pub fn pod(&self, name: &str, app: &str, node: &str, script: &str, more: &str) {
        let (account, container) = (account(app), self.container_with("c", script, more));
        self.apply(&format!(
            "{account}\n---\n\
             {{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {app}, pod: {name}}}}}, spec: {{
               nodeSelector: {{kubernetes.io/hostname: {node}}}, terminationGracePeriodSeconds: 1,
               serviceAccountName: {app}, containers: [{container}]}}}}"
        ));
    }

    /// With the cluster's image.
    pub fn container(&self, name: &str, script: &str) -> String {
        self.container_with(name, script, "")
    }

    fn container_with(&self, name: &str, script: &str, more: &str) -> String {
        let image = &self.image;
        format!(
            "{{name: {name}, image: '{image}', imagePullPolicy: Never, command: [bash, -c, '{script}']{more}}}"
        )
    }

    /// It serves a page with the token in it, and its name.
    pub fn server(&self, name: &str, app: &str, node: &str) {
        let probe = ", readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}";
        self.pod(name, app, node, &self.serves(name, 8080), probe);
    }

    pub fn serves(&self, name: &str, port: u16) -> String {
        let token = self.token();
        format!(
            "mkdir -p /www; (echo {token}; echo page of {name}) >/www/index.html; exec httpd -f -p {port} -h /www"
        )
    }

    /// In letters: a request with it is one that servers read to its end.
    pub fn token(&self) -> String {
        self.token.to_string()
    }

    pub fn client(&self, name: &str, node: &str) {
        self.pod(name, "client", node, "exec sleep 10000", "");
    }

    /// From port 80 to 8080 of pods.
    pub fn service(&self, name: &str, address: &str, selector: &str, labels: &str) {
        self.apply(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, labels: {{{labels}}}}}, spec: {{
               clusterIP: {address}, selector: {{{selector}}},
               ports: [{{name: http, port: 80, targetPort: 8080}}]}}}}"
        ));
    }

    pub fn running(&self) {
        self.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=180s"]);
    }

    pub fn ready(&self, pod: &str) {
        let pod = format!("pod/{pod}");
        self.kubectl(&["wait", "--for=condition=Ready", &pod, "--timeout=120s"]);
    }

    pub fn delete(&self, pod: &str) {
        self.kubectl(&["delete", "pod", pod, "--timeout=60s"]);
    }

    pub fn field(&self, what: &str, path: &str) -> String {
        self.kubectl(&["get", what, "-o", &format!("jsonpath={{{path}}}")])
    }

    pub fn has(&self, what: &str, path: &str, wanted: &str) {
        let seen = eventually(SOON, || {
            let path = format!("jsonpath={{{path}}}");
            let is = self.cluster.api().kubectl(&["get", what, "-o", &path])?;
            ensure!(is == wanted, "{path} of {what} is {is:?}, not {wanted:?}");
            Ok(())
        });
        seen.with_context(|| self.state()).unwrap();
    }

    /// The annotation that says how others reach the pod.
    pub fn becomes(&self, pod: &str, wanted: &str) {
        self.has(
            &format!("pod/{pod}"),
            ".metadata.annotations.ambient\\.istio\\.io/redirection",
            wanted,
        );
    }

    pub fn address(&self, pod: &str) -> String {
        self.field(&format!("pod/{pod}"), ".status.podIP")
    }

    /// Of all pods of the namespace.
    pub fn addresses(&self) -> HashSet<IpAddr> {
        let all = self.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.podIP}"]);
        all.split_whitespace().map(|a| a.parse().unwrap()).collect()
    }

    pub fn exec(&self, pod: &str, script: &str) -> Result<String> {
        self.cluster.api().kubectl(&["exec", pod, "-c", "c", "--", "bash", "-c", script])
    }

    /// An HTTP answer, once it has come whole.
    pub fn ask(&self, from: &str, address: &str, port: u16, request: &str) -> Result<String> {
        let script = format!(
            r"exec 3<>/dev/tcp/{address}/{port} && printf '{request}\r\nconnection: close\r\n\r\n' >&3 && cat <&3"
        );
        self.exec(from, &script)
    }

    /// A page of a pod of whoever is at the address.
    pub fn page(&self, from: &str, address: &str, port: u16) -> Result<String> {
        let said = self.ask(from, address, port, r"GET / HTTP/1.1\r\nhost: web")?;
        ensure!(said.starts_with("HTTP/1.1 200"), "{said:?}");
        Ok(said)
    }

    pub fn gets(&self, from: &str, to: &str) {
        let address = self.address(to);
        self.gets_at(from, &address, 8080, to);
    }

    pub fn gets_at(&self, from: &str, address: &str, port: u16, of: &str) {
        let got = eventually(SOON, || {
            let said = self.page(from, address, port)?;
            ensure!(said.contains(&format!("page of {of}\n")), "{said:?}");
            Ok(())
        });
        got.with_context(|| format!("{from} -> {address}:{port}\n{}", self.state())).unwrap();
    }

    pub fn is_refused(&self, from: &str, address: &str, port: u16) {
        let refused = eventually(SOON, || {
            let said = self.page(from, address, port);
            ensure!(said.is_err(), "let through: {said:?}");
            Ok(())
        });
        refused.with_context(|| self.state()).unwrap();
    }

    /// What all agents have logged.
    pub fn log(&self) -> String {
        self.kubectl(&["logs", "-n", SYSTEM, "-l", AGENTS, "--tail=-1"])
    }

    /// Once some line has all of these.
    pub fn logs(&self, words: &[&str]) {
        let seen = eventually(SOON, || {
            let log = self.log();
            let found = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
            ensure!(found, "no line of any agent has {words:?}");
            Ok(())
        });
        seen.with_context(|| the_end_of(&self.log())).unwrap();
    }

    pub fn link(&self) -> Capture {
        // Of the node that is not rebooted.
        self.cluster.nodes()[1].bed().capture_link("link").unwrap()
    }

    pub fn judge(&self, capture: Capture, enrolled: &HashSet<IpAddr>) -> LeakVerdict {
        let report = capture.stop().unwrap();
        let enrolled = enrolled.clone();
        let check = LeakCheck { tokens: vec![self.token], enrolled, ..LeakCheck::default() };
        check.check(&report).unwrap()
    }
}

fn the_end_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

pub const AGENTS: &str = "app.kubernetes.io/name=culvert-agent";

pub fn account(name: &str) -> String {
    format!("{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {name}}}}}")
}
