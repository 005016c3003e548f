//! `cargo xtask bench`: builds what is measured, as it would be released, and hands over to the
//! program that measures.

use crate::{ebpf, host};
use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command};

#[derive(clap::Args)]
pub struct Args {
    /// What to measure: scale, dns [default: everything]
    suites: Vec<String>,
    /// Write the figures to this file, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// How often each measurement that takes a process of its own is repeated
    #[arg(long)]
    runs: Option<usize>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    host::require_build_tools()?;
    let mut programs = vec!["culvert-bench"];
    // A real agent is measured where one can run.
    if nix::unistd::geteuid().is_root() {
        host::require_network_tools()?;
        ebpf::build()?;
        programs.extend(["culvert-agent", "culvertctl", "culvertd", "testbed"]);
    }
    eprintln!("building the programs (several minutes when cold)");
    let mut build = host::cargo();
    build.args(["build", "--quiet", "--locked", "--release"]);
    for p in programs {
        build.args(["--package", p]);
    }
    host::run(&mut build)?;
    let mut bench = Command::new(host::target().join("release/culvert-bench"));
    bench.args(&args.suites);
    if let Some(path) = &args.json {
        bench.arg("--json").arg(path);
    }
    if let Some(runs) = args.runs {
        bench.arg("--runs").arg(runs.to_string());
    }
    // In this process's place, so that Ctrl-C reaches it and nothing else.
    Err(anyhow::anyhow!("starting the measurement: {}", bench.exec()))
}
