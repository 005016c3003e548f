//! The agent of one node under test, and its operator's tool.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use testbed::{Node, Proc, Signal, eventually};

use crate::control::DISCOVERY;
use crate::{Clock, MeshPod, SOON, binary, http};

const METRICS: u16 = 15020;
const READINESS: u16 = 15021;

/// Waits for an end by SIGKILL.
pub(crate) fn killed(proc: &Proc) {
    let status = proc.wait(SOON).unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}\n{}", proc.stderr());
}

/// Resident memory of a process in KiB.
pub(crate) fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// `culvert-agent` on one node. It may be killed and started again; what it pinned stays.
pub struct Agent {
    pub node: Node,
    run_dir: PathBuf,
    args: Vec<String>,
    clock: Option<Clock>,
    running: Mutex<Option<Proc>>,
    /// The output of all that have run.
    outputs: Mutex<Vec<PathBuf>>,
}

impl Agent {
    pub(crate) fn start(
        node: Node,
        root_cert: &Path,
        token: &Path,
        more: &[String],
        clock: Option<Clock>,
    ) -> Self {
        let run_dir = node.dir().join("run");
        let mut args = vec!["run".to_owned()];
        let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
        flag("node", node.name().to_owned());
        flag("run-dir", run_dir.display().to_string());
        flag("bpffs", node.bpffs().display().to_string());
        flag("cgroup", node.cgroup().display().to_string());
        flag("control", format!("https://{DISCOVERY}"));
        flag("root-cert", root_cert.display().to_string());
        flag("token", token.display().to_string());
        flag("cluster", "Kubernetes".to_owned());
        args.extend_from_slice(more);
        let agent = Self {
            node,
            run_dir,
            args,
            clock,
            running: Mutex::default(),
            outputs: Mutex::default(),
        };
        agent.begin();
        agent
    }

    /// Starts it, or starts it again after [`Agent::kill`], without waiting.
    pub fn begin(&self) {
        self.begin_to_die_at(None);
    }

    fn begin_to_die_at(&self, fault: Option<&str>) {
        let proc = self.another(fault);
        *self.running.lock().unwrap() = Some(proc);
    }

    /// One more process with the same arguments, which the agent that runs does not make room for in this handle.
    /// It dies at the fault point of this name, if one is given.
    pub(crate) fn another(&self, fault: Option<&str>) -> Proc {
        let mut cmd = Command::new(binary("culvert-agent"));
        cmd.args(&self.args);
        if let Some(point) = fault {
            cmd.env("CULVERT_FAULT", point);
        }
        if let Some(clock) = &self.clock {
            clock.keep(&mut cmd);
        }
        let proc = self.node.spawn(cmd).unwrap();
        self.outputs.lock().unwrap().push(proc.stdout_path().to_owned());
        proc
    }

    /// This process is the agent from now on; gives the one that was.
    pub(crate) fn succeeded_by(&self, proc: Proc) -> Proc {
        self.running.lock().unwrap().replace(proc).expect("the agent is not running")
    }

    pub fn wait_until_ready(&self) {
        let name = self.node.name();
        eventually(SOON, || {
            let running = self.running.lock().unwrap();
            let proc = running.as_ref().context("the agent is not running")?;
            if let Some(status) = proc.try_wait()? {
                // Nothing to wait for.
                panic!("the agent of {name} ended: {status}\n{}{}", proc.stdout(), proc.stderr());
            }
            let (status, body) = self.get(READINESS, "/healthz/ready")?;
            ensure!(status == 200, "the agent of {name} is not ready: {body}");
            Ok(())
        })
        .unwrap();
    }

    /// SIGKILL.
    pub fn kill(&self) {
        let proc = self.running.lock().unwrap().take().expect("the agent is not running");
        proc.kill().unwrap();
    }

    /// Starts it again after [`Agent::kill`], and waits until it is ready.
    pub fn restart(&self) {
        self.begin();
        self.wait_until_ready();
    }

    /// Starts it after [`Agent::kill`], and wants it to end by itself with a failure; gives all that it said.
    pub fn refuses_to_start(&self) -> String {
        self.begin();
        let proc = self.running.lock().unwrap().take().unwrap();
        let status = proc.wait(SOON).unwrap();
        assert!(!status.success(), "the agent of {} ended with {status}", self.node.name());
        proc.stdout() + &proc.stderr()
    }

    /// Starts it after [`Agent::kill`], so that it dies at this fault point, and waits until it is ready.
    pub fn restart_to_die_at(&self, point: &str) {
        self.begin_to_die_at(Some(point));
        self.wait_until_ready();
    }

    /// Starts it after [`Agent::kill`] without waiting.
    pub fn start_again(&self) {
        self.begin();
    }

    /// Whether the process is still there.
    pub fn is_running(&self) -> bool {
        self.running.lock().unwrap().as_ref().is_some_and(Proc::is_running)
    }

    /// Starts it again after [`Agent::kill`], so that it logs into this pipe, and waits until it is ready.
    pub fn restart_logging_into(&self, pipe: &Path) {
        let mut cmd = Command::new("sh");
        cmd.args(["-c", "pipe=$1; shift; exec \"$@\" >\"$pipe\"", "sh"]);
        cmd.arg(pipe).arg(binary("culvert-agent")).args(&self.args);
        *self.running.lock().unwrap() = Some(self.node.spawn(cmd).unwrap());
        self.wait_until_ready();
    }

    /// Waits until it has died by SIGKILL, as at a fault point; then it may be started again.
    pub fn wait_until_killed(&self) {
        let proc = self.running.lock().unwrap().take().expect("the agent is not running");
        killed(&proc);
    }

    /// SIGTERM, without waiting.
    pub fn drain(&self) {
        self.running.lock().unwrap().as_ref().unwrap().signal(Signal::SIGTERM).unwrap();
    }

    /// Waits for its own end.
    pub fn wait_for_exit(&self, deadline: Duration) {
        let proc = self.running.lock().unwrap().take().expect("the agent is not running");
        let status = proc.wait(deadline).unwrap();
        assert!(status.success(), "the agent of {} ended with {status}", self.node.name());
    }

    /// With its sockets.
    pub fn run_dir(&self) -> &std::path::Path {
        &self.run_dir
    }

    pub fn pid(&self) -> i32 {
        self.running.lock().unwrap().as_ref().expect("the agent is not running").pid()
    }

    /// That of its machine, in a mesh that has [`crate::mesh::Builder::clocks`].
    pub fn clock(&self) -> &Clock {
        self.clock.as_ref().expect("this agent goes by the machine's clock")
    }

    /// Its process, unless it has been ended.
    pub fn running_pid(&self) -> Option<i32> {
        self.running.lock().unwrap().as_ref().map(Proc::pid)
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        resident_kib(self.pid())
    }

    /// What all its threads have spent, in the kernel and outside.
    pub fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // proc(5): behind the name, which may hold anything; fields 14 and 15, in hundredths.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks = fields.split(' ').skip(11).take(2).map(|f| f.parse::<u64>().unwrap());
        Duration::from_millis(ticks.sum::<u64>() * 10)
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// What is pinned for enrolled pods.
    pub fn pinned_for_pods(&self) -> Vec<PathBuf> {
        let versions = fs::read_dir(self.node.bpffs()).unwrap().map(|e| e.unwrap().path());
        versions
            .flat_map(|v| fs::read_dir(v.join("pods")).into_iter().flatten())
            .map(|e| e.unwrap().path())
            .collect()
    }

    /// What it remembers of enrolled pods.
    pub fn saved_pods(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(self.run_dir.join("pods")).into_iter().flatten();
        all.map(|e| e.unwrap().path()).collect()
    }

    fn get(&self, port: u16, path: &str) -> Result<(u16, String)> {
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        http::get(&self.node.netns_path(), to, path)
    }

    /// Prometheus' text.
    pub fn metrics(&self) -> String {
        let (status, body) = self.get(METRICS, "/metrics").unwrap();
        assert_eq!(status, 200, "{body}");
        body
    }

    /// The sum over all series of `name` that have all of these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        let text = self.metrics();
        let series = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, labels) = series.split_once('{').unwrap_or((series, ""));
            let fits = found == name && wanted.iter().all(|w| labels.contains(w.as_str()));
            fits.then(|| value.parse::<f64>().unwrap())
        });
        series.sum()
    }

    /// The lines of its access log, the oldest first.
    pub fn access_log(&self) -> Vec<String> {
        self.log().lines().filter(|l| l.contains(" access: ")).map(str::to_owned).collect()
    }

    /// All that it and its predecessors have logged.
    pub fn log(&self) -> String {
        std::thread::sleep(crate::LOGGED_WITHIN);
        let read = |p: &PathBuf| String::from_utf8_lossy(&fs::read(p).unwrap()).into_owned();
        self.outputs.lock().unwrap().iter().map(read).collect()
    }

    /// Waits for a line of the access log that holds all of these.
    pub fn logged(&self, parts: &[&str]) -> String {
        eventually(SOON, || {
            let log = self.access_log();
            let line = log.iter().find(|l| parts.iter().all(|p| l.contains(p))).cloned();
            line.with_context(|| {
                format!("no access log line with {parts:?} in\n{}", log.join("\n"))
            })
        })
        .unwrap()
    }

    /// Runs `culvertctl` for this agent.
    pub fn ctl(&self, args: &[&str]) -> Output {
        let mut cmd = Command::new(binary("culvertctl"));
        cmd.arg("--run-dir").arg(&self.run_dir).args(args);
        cmd.output().unwrap()
    }

    /// Enrols a pod of this node: the node's part, as a CNI plugin does it.
    pub fn enroll(&self, pod: &MeshPod) {
        self.try_enroll(pod).unwrap();
    }

    /// As [`Agent::enroll`], which fails while the agent is away.
    pub fn try_enroll(&self, pod: &MeshPod) -> Result<()> {
        self.enroll_with(pod, &[])
    }

    /// With more arguments for `culvertctl enroll`.
    pub fn enroll_with(&self, pod: &MeshPod, more: &[&str]) -> Result<()> {
        let netns = pod.netns_path().display().to_string();
        let account = pod.account();
        let args = ["enroll", "--netns", &netns, "--namespace", pod.namespace()];
        let named = ["--name", pod.name(), "--service-account", &account];
        let out = self.ctl(&[&args, &named[..], more].concat());
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "cannot enrol {pod:?}: {said}");
        Ok(())
    }

    /// Runs `culvert-cni` as a container runtime does for this pod; what it printed, as a result or as an error.
    pub fn cni(&self, command: &str, pod: &MeshPod, config: &Value) -> Result<Value, Value> {
        let address =
            |ip: String, bits: u8| json!({ "address": format!("{ip}/{bits}"), "interface": 0 });
        let mut whole = json!({
            "cniVersion": "1.1.0", "name": "bed", "type": "culvert-cni", "runDir": self.run_dir,
            "prevResult": {
                "cniVersion": "1.1.0",
                "interfaces": [{ "name": "eth0", "sandbox": pod.netns_path() }],
                "ips": [address(pod.ipv4().to_string(), 24), address(pod.ipv6().to_string(), 64)],
            },
        });
        for (key, value) in config.as_object().into_iter().flatten() {
            whole[key] = value.clone();
        }
        let file = self.node.dir().join(format!("cni-{}.json", pod.name()));
        fs::write(&file, whole.to_string()).unwrap();
        let out = Command::new(binary("culvert-cni"))
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", pod.object_uid())
            .env("CNI_NETNS", pod.netns_path())
            .env("CNI_IFNAME", "eth0")
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}",
                    pod.namespace(),
                    pod.name(),
                    pod.object_uid()
                ),
            )
            .stdin(fs::File::open(&file).unwrap())
            .output()
            .unwrap();
        let said = match out.stdout.as_slice() {
            [] => Value::Null,
            bytes => serde_json::from_slice(bytes).unwrap(),
        };
        if out.status.success() { Ok(said) } else { Err(said) }
    }

    /// As a reboot of the node: the agent dies, and with it goes all that was pinned or written to /run. The node's pods
    /// are the caller's to end.
    pub fn lose_everything(&self) {
        self.kill();
        fs::remove_dir_all(&self.run_dir).unwrap();
        for version in fs::read_dir(self.node.bpffs()).unwrap() {
            fs::remove_dir_all(version.unwrap().path()).unwrap();
        }
    }

    /// `culvertctl <what> -o json`.
    pub fn ask(&self, what: &str) -> Result<Value> {
        let out = self.ctl(&[what, "-o", "json"]);
        if !out.status.success() {
            bail!("culvertctl {what}: {}", String::from_utf8_lossy(&out.stderr));
        }
        serde_json::from_slice(&out.stdout).with_context(|| {
            format!("culvertctl {what} printed\n{}", String::from_utf8_lossy(&out.stdout))
        })
    }

    /// The rows of `culvertctl <what>`.
    pub fn rows(&self, what: &str) -> Result<Vec<Value>> {
        let answer = self.ask(what)?;
        answer.as_array().cloned().with_context(|| format!("culvertctl {what}: no list: {answer}"))
    }

    pub fn status(&self) -> Value {
        self.ask("status").unwrap()
    }

    /// The connections under way.
    pub fn connections(&self) -> Vec<Value> {
        self.rows("connections").unwrap()
    }

    pub fn workload(&self, uid: &str) -> Result<Value> {
        let all = self.rows("workloads")?;
        let found = all.into_iter().find(|w| w["uid"] == uid);
        found.with_context(|| format!("the agent of {} has no {uid}", self.node.name()))
    }

    /// A kernel counter of an enrolled pod.
    pub fn counter(&self, pod: &MeshPod, name: &str) -> u64 {
        let status = self.status();
        let pods = status["pods"].as_array().unwrap();
        let row = pods.iter().find(|p| p["uid"] == pod.uid()).expect("the pod is not enrolled");
        row[name].as_u64().unwrap_or_else(|| panic!("no counter {name} in {row}"))
    }

    /// The certificate in use for an identity: its serial number, and its end in seconds since 1970.
    pub fn certificate(&self, identity: &str) -> Result<(String, u64)> {
        let all = self.rows("certificates")?;
        let row = all.iter().find(|c| c["identity"] == identity);
        let found =
            row.and_then(|c| Some((c["serial"].as_str()?.to_owned(), c["not_after"].as_u64()?)));
        found.with_context(|| format!("no certificate for {identity}: {all:?}"))
    }
}
