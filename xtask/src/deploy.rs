//! `cargo xtask crds` and `cargo xtask manifests`: files in `deploy/` that are made, and checked in for whoever installs.

use crate::{host, programs};
use std::process::Command;

/// Writes the CustomResourceDefinitions of the chart.
pub fn crds() -> anyhow::Result<()> {
    let mut run = host::cargo();
    run.args(["run", "--quiet", "--locked", "--package", "istio-api", "--example", "crds", "--"]);
    host::run(run.arg(host::root().join("deploy/helm/culvert/crds")))
}

/// Writes what the chart renders to where nothing is set.
pub fn manifests() -> anyhow::Result<()> {
    programs::all()?;
    host::run(Command::new(host::target().join("debug/kubebed")).arg("manifests"))
}
