//! The one way a bed goes: a process that outlives its owner and removes everything that carries the bed's id.
//!
//! It waits for the end of a pipe that only the owner holds. A drop, a panic, Ctrl-C and SIGKILL all close that pipe,
//! so there is no second clean-up path that could rot.
//!
//! Set `CULVERT_BED_KEEP_LOGS=<folder>` to have the work dir (the output of every process) copied there first.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::netns::{self, NetnsId};
use crate::process::wait_deadline;

const SCRIPT: &str = include_str!("reaper.sh");
/// Longer than all the retries of the script together.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Reaper {
    child: Child,
    id: String,
    cgroup: PathBuf,
    dir: PathBuf,
}

impl Reaper {
    pub fn spawn(id: &str, cgroup: &Path, dir: &Path) -> Result<Self> {
        let mut cmd = Command::new("/bin/sh");
        cmd.arg("-c")
            .arg(SCRIPT)
            .arg("bed-reaper")
            .arg(id)
            .args([cgroup, dir])
            .arg(std::process::id().to_string())
            .arg(std::env::var_os("CULVERT_BED_KEEP_LOGS").unwrap_or_default())
            .current_dir("/")
            // std's pipes are close-on-exec, so that no child of the owner keeps this one open.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: setsid is async-signal-safe and touches no memory of the parent.
        unsafe {
            // A session of its own: the terminal's Ctrl-C and hang-up do not reach it.
            cmd.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
        }
        let child = cmd.spawn().context("cannot start the reaper")?;
        Ok(Self { child, id: id.to_owned(), cgroup: cgroup.into(), dir: dir.into() })
    }

    /// Lets the reaper do its work, then looks for what it may have missed.
    pub fn finish(mut self, netns_ids: &BTreeSet<NetnsId>) -> Result<()> {
        drop(self.child.stdin.take());
        wait_deadline(&mut self.child, PATIENCE).context("the reaper did not end")?;
        let left = self.leftovers(netns_ids)?;
        if !left.is_empty() {
            bail!("left behind: {}", left.join(", "));
        }
        Ok(())
    }

    fn leftovers(&self, netns_ids: &BTreeSet<NetnsId>) -> Result<Vec<String>> {
        let mut left = leftovers_of(&self.id)?;
        if self.cgroup.exists() {
            left.push(format!("cgroup {}", self.cgroup.display()));
        }
        if self.dir.exists() {
            left.push(format!("work dir {}", self.dir.display()));
        }
        left.extend(self.processes_in(netns_ids)?);
        Ok(left)
    }

    fn processes_in(&self, netns_ids: &BTreeSet<NetnsId>) -> Result<Vec<String>> {
        let own = format!("culvert-bed-{}/", self.id);
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            // Not a process, gone meanwhile, or a zombie: none of them is in a namespace.
            let Ok(id) = netns::id(&path.join("ns/net")) else { continue };
            let is_process = path
                .file_name()
                .is_some_and(|n| n.as_encoded_bytes().iter().all(u8::is_ascii_digit));
            if !is_process || !netns_ids.contains(&id) {
                continue;
            }
            // The number of a namespace that is gone may be another bed's by now.
            let cgroup = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
            if cgroup.contains("culvert-bed-") && !cgroup.contains(&own) {
                continue;
            }
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            found.push(format!("process {} ({})", path.display(), name.trim()));
        }
        Ok(found)
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Nobody to tell: the error was reported by `finish`, which is the ordinary way here.
        let _ = self.child.wait();
    }
}

/// What still carries the id of a bed: namespaces, mounts, work dir and cgroup. Empty once the bed is gone.
pub fn leftovers_of(id: &str) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let prefix = format!("{id}-");
    for entry in fs::read_dir(netns::DIR).into_iter().flatten() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) {
            left.push(format!("namespace {name}"));
        }
    }
    for mount in fs::read_to_string("/proc/self/mounts")?.lines() {
        if mount.contains(id) {
            left.push(format!("mount {mount}"));
        }
    }
    let dir = Path::new(crate::bed::RUN_DIR).join(id);
    if dir.exists() {
        left.push(format!("work dir {}", dir.display()));
    }
    let cgroup = crate::cgroup::mount_point()?.join(format!("culvert-bed-{id}"));
    if cgroup.exists() {
        left.push(format!("cgroup {}", cgroup.display()));
    }
    Ok(left)
}
