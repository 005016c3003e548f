//! Builds Kubernetes, etcd and Helm from their Go modules. Nothing is fetched but by the `go` command, as its own settings say.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::programs::{self, Programs, Versions};

/// A program, the package that it is built from, and whether the API-server tier needs it.
const PROGRAMS: [(&str, &str, bool); 8] = [
    ("etcd", "go.etcd.io/etcd/server/v3", true),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", true),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl", true),
    ("helm", "helm.sh/helm/v3/cmd/helm", true),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", false),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", false),
    ("kubelet", "k8s.io/kubernetes/cmd/kubelet", false),
    ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", false),
];

/// Builds what is nowhere to be found yet: all programs, or those of the API-server tier.
///
/// # Errors
/// When Go is missing or too old, when a module cannot be had, or when a build fails.
pub fn missing(api_only: bool) -> Result<()> {
    let found = Programs::find()?;
    let missing: Vec<_> = PROGRAMS
        .into_iter()
        .filter(|(name, _, api)| (*api || !api_only) && found.get(name).is_err())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let versions = Versions::read()?;
    require_go(&versions.go)?;
    let dir = programs::built_dir()?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // Another build may have been waited for: look again at what is there.
    let _alone = lock(&dir)?;
    let missing: Vec<_> =
        missing.into_iter().filter(|(name, ..)| !dir.join(name).is_file()).collect();
    if missing.is_empty() { Ok(()) } else { together(&missing, &versions, &dir) }
}

/// One command for all of them: while one is linked, which takes a processor and two gigabytes, others are compiled.
fn together(programs: &[(&str, &str, bool)], versions: &Versions, dir: &Path) -> Result<()> {
    let names: Vec<&str> = programs.iter().map(|(name, ..)| *name).collect();
    let names = names.join(", ");
    eprintln!("building {names} (once; minutes when nothing of Kubernetes has been built before)");
    let begun = Instant::now();
    let parts = dir.join(".parts");
    let mut go = go();
    go.args(["build", "-trimpath", "-mod=readonly", "-ldflags", &ldflags(&versions.kubernetes)?])
        // With its slash it is a folder to go, whatever there is.
        .arg("-o")
        .arg(parts.join(""))
        .args(programs.iter().map(|(_, package, _)| package))
        // One file that runs in every mount namespace, whatever libraries are there.
        .env("CGO_ENABLED", "0");
    let status = go.status().context("cannot start go")?;
    ensure!(status.success(), "building {names} ended with {status}: what go said is above");
    for (name, package, _) in programs {
        let done = dir.join(name);
        fs::rename(parts.join(go_name(package)), &done)
            .with_context(|| format!("cannot make {}", done.display()))?;
    }
    eprintln!("built {names}: {} s, in {}", begun.elapsed().as_secs(), dir.display());
    Ok(())
}

/// What go calls the program of a package: its last part that is not a version.
fn go_name(package: &str) -> &str {
    let is_version = |p: &&str| p.strip_prefix('v').is_some_and(|n| n.parse::<u32>().is_ok());
    package.rsplit('/').find(|p| !is_version(p)).unwrap_or(package)
}

/// Without a version a program calls itself v0.0.0, and compares its API's age with that.
fn ldflags(version: &str) -> Result<String> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        bail!("{version} is no version of Kubernetes");
    };
    let mut flags = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (variable, value) in [
            ("gitVersion", version),
            ("gitMajor", major),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
        ] {
            flags.push_str(&format!(" -X {package}.{variable}={value}"));
        }
    }
    Ok(flags)
}

fn go() -> Command {
    let mut go = Command::new("go");
    go.current_dir(programs::go_module());
    go
}

fn require_go(oldest: &str) -> Result<()> {
    let remedy = format!(
        "install Go {oldest} or later and put it in PATH, or set KUBE_BIN_DIR to a folder with etcd and Kubernetes' programs"
    );
    // Asked in the module's folder: a `go` that is too old gets the right one, or says why it does not.
    let out = match go().args(["env", "GOVERSION"]).output() {
        Ok(out) => out,
        Err(e) => bail!("Kubernetes is built with Go, and `go` cannot be run ({e}): {remedy}"),
    };
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        let said = said.trim().lines().next_back().unwrap_or_default();
        bail!("Kubernetes is built with Go, and this one cannot ({said}): {remedy}");
    }
    Ok(())
}

/// Held by whoever builds into the folder.
fn lock(dir: &Path) -> Result<nix::fcntl::Flock<fs::File>> {
    let path = dir.join(".lock");
    let file =
        fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .with_context(|| format!("cannot lock {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_told_its_version() {
        let flags = ldflags("v1.35.4").unwrap();
        assert!(flags.contains(" -X k8s.io/component-base/version.gitMinor=35 "), "{flags}");
        assert!(flags.contains(" -X k8s.io/client-go/pkg/version.gitVersion=v1.35.4 "), "{flags}");
        assert!(ldflags("v1").is_err());
    }

    #[test]
    fn a_program_is_called_as_go_calls_it() {
        assert_eq!(go_name("go.etcd.io/etcd/server/v3"), "server");
        assert_eq!(go_name("k8s.io/kubernetes/cmd/kubectl"), "kubectl");
    }

    #[test]
    fn what_is_built_is_what_the_module_names_as_tools() {
        let go_mod = fs::read_to_string(programs::go_module().join("go.mod")).unwrap();
        let tools = go_mod.split_once("tool (").unwrap().1;
        for (name, package, _) in PROGRAMS {
            assert!(tools.lines().any(|l| l.trim() == package), "{name}: {package} is no tool");
        }
    }
}
