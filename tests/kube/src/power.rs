//! What a node has lost when its power comes back.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testbed::eventually;

const PATIENCE: Duration = Duration::from_secs(60);

/// Kills everything in the group at once, and takes away what does not outlive a machine: mounts (among them those of
/// pods' network namespaces, and of pinned kernel programs), groups, files in `/run`, links to pods, rules.
pub(crate) fn off(node: &testbed::Node, cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.kill"), "1")
        .with_context(|| format!("cannot kill what is in {}", cgroup.display()))?;
    eventually(PATIENCE, || {
        let events = fs::read_to_string(cgroup.join("cgroup.events"))?;
        ensure!(events.contains("populated 0"), "{} is populated still", cgroup.display());
        Ok(())
    })?;
    remove_groups(cgroup)?;
    empty_run(node)?;
    eventually(PATIENCE, || links_to_pods_are_gone(node))?;
    on(node, "nft", &["flush", "ruleset"]).map(drop)
}

fn remove_groups(group: &Path) -> Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    eventually(PATIENCE, || Ok(fs::remove_dir(group)?))
        .with_context(|| format!("cannot remove {}", group.display()))
}

/// The node's namespace of mounts went with its last process, and with that what was mounted there.
fn empty_run(node: &testbed::Node) -> Result<()> {
    let run = node.dir().join("run");
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let mounted = below.map(Path::new).find(|mount| mount.starts_with(&run));
    ensure!(mounted.is_none(), "{mounted:?} is mounted still");
    fs::remove_dir_all(&run).with_context(|| format!("cannot empty {}", run.display()))
}

/// The kernel takes its time to remove namespaces that nobody is in.
fn links_to_pods_are_gone(node: &testbed::Node) -> Result<()> {
    let links = on(node, "ip", &["-o", "link", "show", "type", "veth"])?;
    let left = links.lines().filter(|link| !link.contains(": eth0@")).count();
    ensure!(left == 0, "{left} links to pods are left:\n{links}");
    Ok(())
}

/// What a program of this machine prints in the node's network.
fn on(node: &testbed::Node, program: &str, args: &[&str]) -> Result<String> {
    let out = node.inside(|| Ok(Command::new(program).args(args).output()?))?;
    ensure!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
