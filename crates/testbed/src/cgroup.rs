//! Control groups: where cgroup2 is mounted, and making, emptying and removing groups.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::eventually;

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or beside v1 on a hybrid host.
pub(crate) fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (dir, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(dir))
        })
        .next()
        .context("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

pub(crate) fn create(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make cgroup {}", dir.display()))
}

/// Kills everything in the group and removes it with all groups below it.
pub(crate) fn destroy(dir: &Path) -> Result<()> {
    eventually(Duration::from_secs(30), || {
        fs::write(dir.join("cgroup.kill"), "1")?;
        let events = fs::read_to_string(dir.join("cgroup.events"))?;
        anyhow::ensure!(events.contains("populated 0"), "{} is still populated", dir.display());
        Ok(())
    })?;
    eventually(Duration::from_secs(10), || remove_tree(dir))
}

fn remove_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir).with_context(|| format!("cannot remove cgroup {}", dir.display()))
}
