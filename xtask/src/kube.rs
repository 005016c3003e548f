//! `cargo xtask kube`: a cluster of Kubernetes' real programs on this machine, and the tests that stand on one.

use crate::{host, programs};
use anyhow::bail;
use std::path::Path;
use std::process::Command;

#[derive(clap::Subcommand)]
pub enum Args {
    /// Build etcd, Kubernetes and Helm from their Go modules, once
    Build(Extent),
    /// Start a cluster of two nodes and leave it running
    Up(Extent),
    /// Take that cluster away
    Down,
    /// Run the tests that need a cluster
    Test {
        #[command(flatten)]
        extent: Extent,
        /// Only tests whose names contain this
        filter: Option<String>,
    },
}

#[derive(clap::Args)]
pub struct Extent {
    /// etcd and kube-apiserver only: objects, without anything that acts on them
    #[arg(long)]
    api_only: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    match args {
        Args::Build(extent) => kubebed("build", extent),
        Args::Up(extent) => {
            prepare(extent)?;
            kubebed("build", extent)?;
            kubebed("up", extent)
        }
        Args::Down => {
            host::require_root()?;
            kubebed("down", &Extent { api_only: false })
        }
        Args::Test { extent, filter } => test(extent, filter.as_deref()),
    }
}

fn test(extent: &Extent, filter: Option<&str>) -> anyhow::Result<()> {
    prepare(extent)?;
    kubebed("build", extent)?;
    let of_the_api = ["kubebed", "api_server", "chart", "control_plane"];
    let mut failed = Vec::new();
    for test in programs::all()?.into_iter().filter(|t| t.package == "kubebed") {
        if extent.api_only && !of_the_api.contains(&test.target.as_str()) {
            continue;
        }
        // A cluster takes a gigabyte: one at a time.
        let status = test.command().arg("--test-threads=1").args(filter).status()?;
        if !status.success() {
            failed.push(test.target);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// What a cluster needs of Debian.
fn prepare(extent: &Extent) -> anyhow::Result<()> {
    host::require_root()?;
    host::require_build_tools()?;
    host::require_network_tools()?;
    if extent.api_only {
        return Ok(());
    }
    host::require_packages(&[
        ("containerd", "containerd"),
        ("runc", "runc"),
        ("busybox", "busybox-static"),
        ("unshare", "util-linux"),
        // By which the plugin for host ports makes its rules.
        ("iptables", "iptables"),
    ])?;
    // Not programs for a user: they are on no path.
    if !Path::new("/usr/lib/cni/ptp").exists() {
        host::install(&["containernetworking-plugins"])?;
    }
    Ok(())
}

/// Builds the program that knows, and has it do this.
fn kubebed(what: &str, extent: &Extent) -> anyhow::Result<()> {
    programs::all()?;
    let mut kubebed = Command::new(host::target().join("debug/kubebed"));
    kubebed.arg(what);
    if extent.api_only {
        kubebed.arg("--api-only");
    }
    host::run(&mut kubebed)
}
