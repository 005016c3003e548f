//! The machine: where things are, and how what is missing gets there.

use anyhow::{Context as _, bail};
use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Tools and caches outlive a checkout.
pub fn cache() -> PathBuf {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache")
    });
    base.join("culvert")
}

/// Where cargo puts what it builds for this workspace.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).unwrap_or_else(|| root().join("target"))
}

pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let out =
        command.stderr(Stdio::piped()).output().with_context(|| format!("starting {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?} ended with {}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

pub fn require_root() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces and eBPF need root: run this as root");
    }
    Ok(())
}

fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps administration out of a user's PATH.
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

/// Debian packages, by a program that each brings; installed when one is missing.
pub fn require_packages(wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| !on_path(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

/// Installs Debian packages.
pub fn install(packages: &[&str]) -> anyhow::Result<()> {
    let names = packages.join(", ");
    if !on_path("apt-get") {
        bail!("install {names} with this system's package manager");
    }
    eprintln!("installing {names} (Debian packages)");
    let apt = |args: &[&str]| {
        run(Command::new("apt-get")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null()))
    };
    apt(&["update", "-qq"])?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments).with_context(|| format!("installing {names}"))
}

/// What building needs beside Rust: aws-lc is C, and built with cmake.
pub fn require_build_tools() -> anyhow::Result<()> {
    require_packages(&[("cc", "gcc"), ("c++", "g++"), ("make", "make"), ("cmake", "cmake")])
}

/// What the testbed needs.
pub fn require_network_tools() -> anyhow::Result<()> {
    require_packages(&[("ip", "iproute2"), ("nft", "nftables")])
}

/// What the tests run between pods, to see that it fares as without a mesh.
pub fn require_test_programs() -> anyhow::Result<()> {
    require_packages(&[
        ("iperf3", "iperf3"),
        ("nginx", "nginx-light"),
        ("wrk", "wrk"),
        ("redis-server", "redis-server"),
        // Its programs by version are not on the path; these are.
        ("psql", "postgresql"),
        ("go", "golang-go"),
        ("runuser", "util-linux"),
        // Clocks that jump.
        ("faketime", "faketime"),
    ])
}

/// The cargo that runs this.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}
