//! A waypoint as somebody installs one: a Gateway, a Service of its name, and a pod with the proxy.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testbed::{Pod, Proc, eventually};

use crate::control::DISCOVERY;
use crate::{Mesh, MeshPod, SOON, Service, Spec, binary, http, https, manifest, names};

/// `culvert-waypoint` in a pod that is not captured itself.
pub struct Waypoint {
    pub pod: MeshPod,
    pub service: Service,
    /// More arguments for the program.
    pub(crate) args: Vec<String>,
    pub(crate) process: Option<Proc>,
}

impl Mesh {
    /// A waypoint of the namespace `default`, ready to serve. Nothing names it yet.
    pub fn waypoint(&self, node: usize, name: &str) -> Waypoint {
        self.waypoint_for(node, name, "service")
    }

    /// `kind`: what it is for, as its label `istio.io/waypoint-for` says.
    pub fn waypoint_for(&self, node: usize, name: &str, kind: &str) -> Waypoint {
        self.apply_object(
            &manifest::file_name("gateway", "default", name),
            &json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": {
                    "namespace": "default", "name": name,
                    "labels": { "istio.io/waypoint-for": kind },
                },
                "spec": {
                    "gatewayClassName": "istio-waypoint",
                    "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
                },
            }),
        );
        let token = format!("token-of-waypoint-{name}-in-{}", self.bed.id());
        self.add_token(&format!("default/{name}"), &token);
        let spec = Spec::named(name)
            .label("gateway.networking.k8s.io/gateway-name", name)
            .label("istio.io/dataplane-mode", "none");
        let pod = self.pod(node, spec);
        let service = self.service_of(name, "hbone", 15008, 15008, &[&pod]);
        let mut waypoint = Waypoint { pod, service, args: Vec::new(), process: None };
        waypoint.start(self, &token);
        waypoint
    }

    /// Puts a label on the namespace `default` or takes it off, as `kubectl label` does.
    pub fn use_waypoint(&self, name: Option<&str>) {
        let mut namespace = manifest::namespace("default");
        if let Some(name) = name {
            namespace["metadata"]["labels"]["istio.io/use-waypoint"] = name.into();
        }
        self.apply_object("namespace-default", &namespace);
    }

    /// Waits until every agent sends what is for the service to a waypoint, or to none.
    pub fn bound(&self, service: &Service, waypoint: Option<&str>) {
        let wanted = waypoint.map(|name| format!("default/{name}.default.svc.cluster.local"));
        for agent in self.agents() {
            eventually(SOON, || {
                let all = agent.rows("services")?;
                let row = all.iter().find(|s| s["hostname"] == service.hostname());
                let row = row.context("the service is not known")?;
                ensure!(row["waypoint"].as_str() == wanted.as_deref(), "{row}");
                Ok(())
            })
            .unwrap();
        }
    }
}

impl Waypoint {
    pub(crate) fn start(&mut self, mesh: &Mesh, token: &str) {
        let file = mesh.bed.dir().join(format!("token-{}", self.pod.name()));
        std::fs::write(&file, token).unwrap();
        let mut command = Command::new(binary("culvert-waypoint"));
        let text = |p: &std::path::Path| p.display().to_string();
        command.args(["--gateway", self.pod.name(), "--namespace", "default"]);
        command.args(["--pod", self.pod.name(), "--service-account", &self.pod.account()]);
        command.args(["--control", &format!("https://{DISCOVERY}")]);
        command.args(["--root-cert", &text(&mesh.control.root_cert()), "--token", &text(&file)]);
        command.args(["--name-server", &names::server_of(&self.pod).to_string()]);
        command.args(&self.args);
        let process = self.pod.spawn(command).unwrap();
        self.process = Some(process);
        self.wait_until_ready();
    }

    fn process(&self) -> &Proc {
        self.process.as_ref().unwrap()
    }

    pub fn pid(&self) -> i32 {
        self.process().pid()
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        crate::agent::resident_kib(self.pid())
    }

    pub fn wait_until_ready(&self) {
        eventually(SOON, || {
            if let Some(status) = self.process().try_wait()? {
                panic!("culvert-waypoint ended: {status}\n{}", self.log());
            }
            ensure!(self.get("/healthz/ready")?.0 == 200, "not ready: {}", self.log());
            Ok(())
        })
        .unwrap();
    }

    /// An HTTP GET of its monitor: status and body.
    fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        http::get(&self.pod.netns_path(), (self.pod.ipv4(), 15020).into(), path)
    }

    pub fn metrics(&self) -> String {
        self.get("/metrics").unwrap().1
    }

    pub fn log(&self) -> String {
        std::thread::sleep(crate::LOGGED_WITHIN);
        let p = self.process();
        format!("{}{}", p.stdout(), p.stderr())
    }

    /// Lines of its access log.
    pub fn access_log(&self) -> Vec<serde_json::Value> {
        let log = self.log();
        let line = |l: &str| serde_json::from_str(l.get(l.find('{')?..)?).ok();
        log.lines().filter(|l| l.contains("access:")).filter_map(line).collect()
    }

    /// SIGKILL; its pod stays.
    pub fn kill(&mut self) {
        self.process.take().unwrap().kill().unwrap();
    }

    /// Starts it anew in its pod.
    pub fn restart(&mut self, mesh: &Mesh) {
        let file = mesh.bed.dir().join(format!("token-{}", self.pod.name()));
        let token = std::fs::read_to_string(file).unwrap();
        self.start(mesh, &token);
    }

    /// The same with these arguments from now on.
    pub fn restart_with(&mut self, mesh: &Mesh, args: &[&str]) {
        self.args = args.iter().map(|a| (*a).to_owned()).collect();
        self.restart(mesh);
    }

    /// SIGTERM.
    pub fn begin_to_end(&self) {
        self.process().signal(Signal::SIGTERM).unwrap();
    }

    /// SIGTERM, and what it ends with.
    pub fn terminate(&mut self) {
        self.begin_to_end();
        self.ends();
    }

    /// Waits until it has ended, and well.
    pub fn ends(&mut self) {
        let process = self.process.take().unwrap();
        assert!(process.wait(SOON).unwrap().success());
    }
}

/// An application that speaks HTTP, in a pod of its own: says what it was asked, and does what the
/// query says (see the program itself).
pub struct HttpApp {
    pub pod: MeshPod,
    process: Proc,
}

impl HttpApp {
    /// SIGKILL; its pod stays, and nobody is told.
    pub fn kill(&self) {
        self.process.kill().unwrap();
    }

    /// What it has seen with this key, asked directly.
    pub fn seen(&self, port: u16, key: &str) -> Value {
        let at = (Ipv4Addr::LOCALHOST, port).into();
        let (_, body) = http::get(&self.pod.netns_path(), at, &format!("/?peek={key}")).unwrap();
        serde_json::from_str(&body).unwrap()
    }

    /// How many requests with this key it has been asked.
    pub fn count(&self, port: u16, key: &str) -> u64 {
        self.seen(port, key)["count"].as_u64().unwrap()
    }
}

impl Mesh {
    /// Version `version` of `app`, captured.
    pub fn http_app(&self, node: usize, app: &str, version: &str, port: u16) -> HttpApp {
        let spec = Spec::named(&format!("{app}-{version}"))
            .account(app)
            .label("app", app)
            .label("version", version);
        let pod = self.pod(node, spec);
        let mut command = Command::new(binary("http-app"));
        command.args(["serve", "--port", &port.to_string(), "--name", pod.name()]);
        let process = pod.spawn(command).unwrap();
        process.wait_for_output("listens on", SOON).unwrap();
        self.enroll(&pod);
        HttpApp { pod, process }
    }

    /// The same outside the mesh: in plaintext, or with TLS, for clients of an authority or for all.
    pub fn outside_app(
        &self,
        node: usize,
        name: &str,
        port: u16,
        tls: Option<&Tls<'_>>,
    ) -> HttpApp {
        let pod = self.pod(node, Spec::named(name).label("istio.io/dataplane-mode", "none"));
        let mut command = Command::new(binary("http-app"));
        command.args(["serve", "--port", &port.to_string(), "--name", name]);
        if let Some(tls) = tls {
            let dir = self.bed.dir().join(format!("tls-{name}"));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("chain.pem"), tls.own.0.pem()).unwrap();
            std::fs::write(dir.join("key.pem"), tls.own.1.serialize_pem()).unwrap();
            if let Some(clients) = tls.clients {
                std::fs::write(dir.join("roots.pem"), clients.pem()).unwrap();
            }
            command.arg("--tls").arg(&dir);
        }
        let process = pod.spawn(command).unwrap();
        process.wait_for_output("listens on", SOON).unwrap();
        HttpApp { pod, process }
    }
}

/// Who takes spans, in a pod of its own.
pub struct Collector {
    pub pod: MeshPod,
    process: Proc,
}

impl Mesh {
    /// A collector behind a service of its name.
    pub fn collector(&self, node: usize, name: &str, port: u16) -> Collector {
        let pod = self.pod(node, Spec::named(name).label("istio.io/dataplane-mode", "none"));
        let mut command = Command::new(binary("http-app"));
        command.args(["collect", "--port", &port.to_string()]);
        let process = pod.spawn(command).unwrap();
        process.wait_for_output("listens on", SOON).unwrap();
        self.service_of(name, "grpc", port, port, &[&pod]);
        Collector { pod, process }
    }
}

impl Collector {
    /// The spans that have come, as it has written them down.
    pub fn spans(&self) -> Vec<Value> {
        self.process.stdout().lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }
}

/// What a server shows, and whom it lets in.
pub struct Tls<'a> {
    pub own: &'a https::Issued,
    pub clients: Option<&'a https::Authority>,
}

/// A request, and what is wanted of it.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    args: Vec<String>,
    url: String,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Value,
    pub trailers: Value,
    /// As far as it is short.
    pub body: String,
    pub length: u64,
    /// Whether the body is what [`Ask::pattern`] sends.
    pub is_pattern: bool,
    /// Seconds.
    pub took: f64,
}

impl Ask {
    pub fn get(url: &str) -> Self {
        Self { args: Vec::new(), url: url.to_owned() }
    }

    pub fn method(self, method: &str) -> Self {
        self.arg("--method", method)
    }

    /// `name: value`
    pub fn header(self, header: &str) -> Self {
        self.arg("--header", header)
    }

    pub fn body(self, text: &str) -> Self {
        self.arg("--body", text)
    }

    /// A body of so many bytes of a pattern.
    pub fn pattern(self, bytes: usize) -> Self {
        self.arg("--pattern", &bytes.to_string())
    }

    /// `name: value`
    pub fn trailer(self, trailer: &str) -> Self {
        self.arg("--trailer", trailer)
    }

    /// WebSocket over HTTP/2 (RFC 8441): the body is said, and what comes back is the answer's.
    pub fn websocket(mut self) -> Self {
        self.args.push("--websocket".to_owned());
        self.http2()
    }

    pub fn http2(mut self) -> Self {
        self.args.push("--http2".to_owned());
        self
    }

    fn arg(mut self, name: &str, value: &str) -> Self {
        // In one word: a value may begin with a dash.
        self.args.push(format!("{name}={value}"));
        self
    }

    /// Asks once.
    pub fn from(&self, pod: &Pod) -> anyhow::Result<Answer> {
        let all = self.times(pod, 1)?;
        all.into_iter().next().context("no answer")
    }

    /// Asks again and again, on one connection as far as it lasts.
    pub fn times(&self, pod: &Pod, times: usize) -> anyhow::Result<Vec<Answer>> {
        self.run(pod, times, 1)
    }

    /// As many at a time as there are.
    pub fn at_once(&self, pod: &Pod, times: usize) -> anyhow::Result<Vec<Answer>> {
        self.run(pod, times, times)
    }

    fn run(&self, pod: &Pod, times: usize, at_once: usize) -> anyhow::Result<Vec<Answer>> {
        let mut command = Command::new(binary("http-app"));
        command.arg("ask").args(&self.args);
        command.args(["--times", &times.to_string(), "--at-once", &at_once.to_string(), &self.url]);
        let process = pod.spawn(command)?;
        let status = process.wait(Duration::from_secs(60))?;
        ensure!(status.success(), "{}: {}{}", self.url, process.stdout(), process.stderr());
        process
            .stdout()
            .lines()
            .map(|line| {
                let v: Value = serde_json::from_str(line)?;
                let status = v["status"].as_u64().and_then(|s| u16::try_from(s).ok());
                Ok(Answer {
                    status: status.with_context(|| format!("no status: {line}"))?,
                    headers: v["headers"].clone(),
                    trailers: v["trailers"].clone(),
                    body: v["body"].as_str().unwrap_or_default().to_owned(),
                    length: v["length"].as_u64().unwrap_or_default(),
                    is_pattern: v["is_pattern"] == true,
                    took: v["took"].as_f64().unwrap_or_default(),
                })
            })
            .collect()
    }
}

impl Answer {
    /// What the application says that it was asked.
    pub fn asked(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// The pod that answered; empty if none did.
    pub fn by(&self) -> String {
        self.asked()["pod"].as_str().unwrap_or_default().to_owned()
    }
}
