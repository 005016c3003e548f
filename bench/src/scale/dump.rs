//! The real agent with 100,000 workloads, asked for all of them: what it costs the agent to tell.

use super::{corpus::NODE, pki};
use crate::{memory, role};
use anyhow::{Context as _, ensure};
use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use testbed::{Bed, eventually};

/// Every attempt of a measurement starts from the same agent.
const DUMPS: usize = 3;
const DISCOVERY: &str = "172.18.0.254:15012";

fn program(name: &str) -> anyhow::Result<PathBuf> {
    let here = env::current_exe()?;
    let path = here.with_file_name(name);
    ensure!(path.exists(), "{} is not built", path.display());
    Ok(path)
}

/// An agent on a node of a bed of its own; the bed removes everything, whatever happens here.
pub fn measure(workloads: u32, into: &mut role::Samples) -> anyhow::Result<()> {
    let (agent, ctl) = (program("culvert-agent")?, program("culvertctl")?);
    let bed = Bed::new("bench")?;
    let node = bed.node(NODE)?;
    pki::write(bed.dir())?;
    let dir = bed.dir().display().to_string();
    let workloads = workloads.to_string();
    let control = role::command(&["control", DISCOVERY, &workloads, "labels", &dir, "alone"])?;
    let _control = bed.spawn_fabric(control)?;
    let run_dir = node.dir().join("run");
    let mut run = Command::new(&agent);
    run.arg("run").env("RUST_LOG", "warn");
    for (flag, value) in [
        ("--node", NODE.to_owned()),
        ("--run-dir", run_dir.display().to_string()),
        ("--bpffs", node.bpffs().display().to_string()),
        ("--cgroup", node.cgroup().display().to_string()),
        ("--control", format!("https://{DISCOVERY}")),
        ("--root-cert", format!("{dir}/root-cert.pem")),
    ] {
        run.args([flag, &value]);
    }
    let running = node.spawn(run)?;
    let ask = |what: &str| -> anyhow::Result<Vec<u8>> {
        let mut command = Command::new(&ctl);
        let out = command
            .arg("--run-dir")
            .arg(&run_dir)
            .args([what, "-o", "json"])
            .stderr(Stdio::piped())
            .output()?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Ok(out.stdout)
    };
    eventually(Duration::from_secs(120), || {
        if let Some(status) = running.try_wait()? {
            // Not worth waiting any longer; the next call says that nobody answers.
            eprintln!("the agent ended: {status}\n{}{}", running.stdout(), running.stderr());
        }
        let status: serde_json::Value = serde_json::from_slice(&ask("status")?)?;
        ensure!(status["ready"] == true, "the agent is not ready: {status}");
        Ok(())
    })?;
    let pid = running.pid().to_string();
    let mut sample = |name: &str, value: f64| into.add(&format!("dump: {name}"), value);
    for _ in 0..DUMPS {
        // From here on the highest is counted anew.
        fs::write(format!("/proc/{pid}/clear_refs"), "5").context("resetting the agent's peak")?;
        let (before, _) = memory::resident(&pid)?;
        let begun = Instant::now();
        let out = ask("workloads")?;
        let took = begun.elapsed();
        let (_, peak) = memory::resident(&pid)?;
        sample("time", took.as_secs_f64());
        sample("size", out.len() as f64 / 1e6);
        sample("agent at rest", before / 1e6);
        sample("agent's peak above its rest", (peak - before) / 1e6);
    }
    Ok(())
}
