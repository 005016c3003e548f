//! The control plane under test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Result, ensure};
use serde_json::Value;
use testbed::{Bed, Proc, eventually};

use crate::{Clock, SOON, binary, http};

pub(crate) const DISCOVERY: &str = "172.18.0.254:15012";
const MONITOR: &str = "172.18.0.254:15014";

/// `culvertd`, in the namespace between the nodes.
pub struct Control {
    netns: PathBuf,
    args: Vec<String>,
    state: PathBuf,
    clock: Option<Clock>,
    running: Mutex<Option<Proc>>,
    /// The output of all that have run.
    outputs: Mutex<Vec<PathBuf>>,
}

impl Control {
    pub(crate) fn start(
        bed: &Bed,
        config: &Path,
        tokens: &Path,
        ttl: Option<u32>,
        clock: Option<Clock>,
    ) -> Self {
        let state = bed.dir().join("control");
        std::fs::create_dir_all(&state).unwrap();
        let text = |p: &Path| p.display().to_string();
        let mut args: Vec<String> =
            ["run", "--listen", DISCOVERY, "--monitor", MONITOR, "--cluster", "Kubernetes"]
                .map(str::to_owned)
                .into();
        for (flag, path) in
            [("--config", config), ("--state-dir", state.as_path()), ("--tokens", tokens)]
        {
            args.extend([flag.to_owned(), text(path)]);
        }
        if let Some(seconds) = ttl {
            args.extend(["--cert-ttl-seconds".to_owned(), seconds.to_string()]);
        }
        let control = Self {
            netns: bed.fabric_netns_path(),
            args,
            state,
            clock,
            running: Mutex::default(),
            outputs: Mutex::default(),
        };
        control.restart(bed);
        control
    }

    pub fn root_cert(&self) -> PathBuf {
        self.state.join("root-cert.pem")
    }

    /// Its authority, certificate and key in PEM: for certificates that it would never give.
    pub fn authority(&self) -> (String, String) {
        let read = |name: &str| std::fs::read_to_string(self.state.join(name)).unwrap();
        (read("ca-cert.pem"), read("ca-key.pem"))
    }

    /// SIGKILL: what it has kept is what it wrote.
    pub fn kill(&self) {
        let proc = self.running.lock().unwrap().take().expect("culvertd is not running");
        proc.kill().unwrap();
    }

    /// Starts it with the state that it left, and waits until it serves.
    pub fn restart(&self, bed: &Bed) {
        let mut cmd = Command::new(binary("culvertd"));
        cmd.args(&self.args);
        if let Some(clock) = &self.clock {
            clock.keep(&mut cmd);
        }
        let proc = bed.spawn_fabric(cmd).unwrap();
        self.outputs.lock().unwrap().push(proc.stdout_path().to_owned());
        eventually(SOON, || {
            if let Some(status) = proc.try_wait()? {
                // Nothing to wait for.
                panic!("culvertd ended: {status}\n{}{}", proc.stdout(), proc.stderr());
            }
            ensure!(self.get("/ready")?.0 == 200, "culvertd is not ready");
            ensure!(self.root_cert().exists(), "culvertd has not written its root certificate");
            Ok(())
        })
        .unwrap();
        *self.running.lock().unwrap() = Some(proc);
    }

    /// That of its machine, in a mesh that has [`crate::mesh::Builder::clocks`].
    pub fn clock(&self) -> &Clock {
        self.clock.as_ref().expect("culvertd goes by the machine's clock")
    }

    /// What the monitor port says: status and body.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        http::get(&self.netns, MONITOR.parse::<SocketAddr>()?, path)
    }

    /// All that it and its predecessors have logged.
    pub fn log(&self) -> String {
        std::thread::sleep(crate::LOGGED_WITHIN);
        let read = |p: &PathBuf| String::from_utf8_lossy(&std::fs::read(p).unwrap()).into_owned();
        self.outputs.lock().unwrap().iter().map(read).collect()
    }

    /// What it complains about.
    pub fn diagnostics(&self) -> Vec<Value> {
        let (status, body) = self.get("/debug/diagnostics").unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    pub fn metrics(&self) -> String {
        let (status, body) = self.get("/metrics").unwrap();
        assert_eq!(status, 200, "{body}");
        body
    }
}
