//! `cargo xtask demo`: builds what the demo needs and hands over to it.

use crate::{ebpf, host};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

#[derive(clap::Args)]
pub struct Args {
    /// Run unattended and fail if any proof fails
    #[arg(long)]
    check: bool,
    /// Leave the mesh running, and print commands to try
    #[arg(long)]
    keep: bool,
    /// What to show: mesh, fast-path, waypoint or gateway
    #[arg(long, default_value = "mesh")]
    scenario: String,
    /// Take the programs as `cargo xtask test` has built them
    #[arg(long)]
    no_build: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    host::require_root()?;
    host::require_build_tools()?;
    host::require_network_tools()?;
    if !args.no_build {
        build()?;
    }
    let mut demo = Command::new(host::target().join("debug/culvert-demo"));
    demo.args(["--scenario", &args.scenario]);
    if args.check {
        demo.arg("--check");
    }
    if args.keep {
        demo.arg("--keep");
    }
    // In this process's place, so that Ctrl-C reaches the demo and nothing else.
    Err(anyhow::anyhow!("starting the demo: {}", demo.exec()))
}

fn build() -> anyhow::Result<()> {
    ebpf::build()?;
    eprintln!("building the programs (several minutes when cold)");
    let programs = [
        "culvert-agent",
        "culvertd",
        "culvertctl",
        "testbed",
        "culvert-waypoint",
        "culvert-tests",
        "culvert-demo",
    ];
    let mut build = host::cargo();
    build.args(["build", "--quiet", "--locked"]);
    for p in programs {
        build.args(["--package", p]);
    }
    host::run(&mut build)
}
