//! Culvert's chart, as Helm renders it, and the plain manifests that are made of that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::programs::{Programs, Versions};

/// Where the plain manifests put it.
pub const NAMESPACE: &str = "culvert-system";

const HEAD: &str = "\
# What the chart in deploy/helm/culvert renders to, written by `cargo xtask manifests`: not to be changed by hand.
# First, where there are none yet: kubectl apply --server-side -f deploy/helm/culvert/crds
";

pub fn dir() -> PathBuf {
    deploy().join("helm/culvert")
}

/// The manifests that are checked in.
pub fn manifests_file() -> PathBuf {
    deploy().join("manifests/culvert.yaml")
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

/// What kubectl is given that has no Helm: the chart as it is, in a namespace that comes with it.
///
/// # Errors
/// When there is no Helm, or it does not take the chart.
pub fn manifests() -> Result<String> {
    let rendered = render(&["--set", "namespace.create=true", "--no-hooks"])?;
    // Helm is not who manages this.
    let of_helm = ["helm.sh/chart:", "app.kubernetes.io/managed-by:"];
    let kept = rendered.lines().filter(|line| !of_helm.iter().any(|l| line.contains(l)));
    Ok(kept.fold(HEAD.to_owned(), |text, line| text + line + "\n"))
}

/// Writes them to where they are checked in.
///
/// # Errors
/// As [`manifests`], or when the file cannot be written.
pub fn write_manifests() -> Result<()> {
    let path = manifests_file();
    fs::create_dir_all(path.parent().unwrap_or(&path))?;
    fs::write(&path, manifests()?).with_context(|| format!("cannot write {}", path.display()))
}

/// What `helm template` makes of the chart.
///
/// # Errors
/// When there is no Helm, or with what it says against the chart or these arguments.
pub fn render(args: &[&str]) -> Result<String> {
    // Otherwise it goes by the version that it was built against, which changes with it.
    let version = Versions::read()?.kubernetes;
    let own = ["template", "culvert", "--namespace", NAMESPACE, "--kube-version", &version];
    alone(&own, args)
}

/// # Errors
/// With what Helm says against the chart.
pub fn lint() -> Result<String> {
    alone(&["lint", "--strict", "--namespace", NAMESPACE], &[])
}

/// Helm without a cluster, on the chart.
fn alone(own: &[&str], args: &[&str]) -> Result<String> {
    let home = std::env::temp_dir().join(format!("kubebed-helm-{}", std::process::id()));
    let mut cmd = helm(&Programs::find()?, &home)?;
    cmd.args(own).arg(dir()).args(args);
    let out = cmd.output().context("cannot start helm");
    let _ = fs::remove_dir_all(&home);
    let out = out?;
    ensure!(
        out.status.success(),
        "helm {}: {}{}",
        own.join(" "),
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Helm, with nothing of whoever runs it.
pub(crate) fn helm(programs: &Programs, home: &Path) -> Result<Command> {
    let mut cmd = Command::new(programs.get("helm")?);
    for what in ["CACHE", "CONFIG", "DATA"] {
        cmd.env(format!("HELM_{what}_HOME"), home.join(what));
    }
    Ok(cmd)
}
