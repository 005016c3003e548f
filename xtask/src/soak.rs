//! `cargo xtask soak`: builds what is soaked and hands over to the program that does it.

use crate::{ebpf, host};
use std::{os::unix::process::CommandExt as _, process::Command};

#[derive(clap::Args)]
pub struct Args {
    /// How long; a minute shows every kind of trouble once
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    host::require_root()?;
    host::require_build_tools()?;
    host::require_network_tools()?;
    host::require_packages(&[("iptables-legacy", "iptables")])?;
    ebpf::build()?;
    eprintln!("building the programs (several minutes when cold)");
    let mut build = host::cargo();
    build.args(["build", "--quiet", "--locked"]);
    for p in ["culvert-agent", "culvertd", "culvertctl", "testbed", "culvert-soak"] {
        build.args(["--package", p]);
    }
    host::run(&mut build)?;
    let mut soak = Command::new(host::target().join("debug/culvert-soak"));
    soak.arg("--minutes").arg(args.minutes.to_string());
    // In this process's place, so that Ctrl-C reaches it and nothing else.
    Err(anyhow::anyhow!("starting the soak: {}", soak.exec()))
}
