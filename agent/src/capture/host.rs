//! What the host must have: bpffs and a cgroup2 hierarchy. Mounted here where they are not.

use anyhow::{Context as _, anyhow};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Makes sure that `dir` lies in bpffs: mounts one on it where none is.
pub fn ensure_bpffs(dir: &Path) -> anyhow::Result<()> {
    let mut existing = dir;
    while !existing.exists() {
        existing = existing.parent().unwrap_or(Path::new("/"));
    }
    if is_bpffs(existing) {
        return fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()));
    }
    // The customary place is mounted whole, for the tools that look there.
    let customary = Path::new("/sys/fs/bpf");
    let at = if dir.starts_with(customary) { customary } else { dir };
    fs::create_dir_all(at).with_context(|| format!("creating {}", at.display()))?;
    mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), Some("mode=0700")).map_err(|e| {
        anyhow!(
            "{} is not in a bpffs and none could be mounted there ({e}): mount one with \
             `mount -t bpf bpf {}`, or, in a container, mount the host's /sys/fs/bpf into it",
            dir.display(),
            at.display()
        )
    })?;
    tracing::info!(at = %at.display(), "mounted a bpffs");
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC)
}

pub fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|s| s.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// The root of the cgroup2 hierarchy: the one that is mounted, or one that is mounted here, which
/// works beside v1 controllers too.
pub fn find_cgroup2() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let mounted = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let at = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(at))
    });
    if let Some(at) = mounted {
        return Ok(at);
    }
    let at = PathBuf::from("/run/culvert/cgroup2");
    fs::create_dir_all(&at).with_context(|| format!("creating {}", at.display()))?;
    mount(Some("cgroup2"), &at, Some("cgroup2"), MsFlags::empty(), None::<&str>).map_err(|e| {
        anyhow!(
            "no cgroup2 is mounted and none could be mounted at {} ({e}): the kernel needs \
             CONFIG_CGROUPS and must not have cgroup v2 disabled (cgroup_no_v1, \
             systemd.unified_cgroup_hierarchy); or name one with --cgroup",
            at.display()
        )
    })?;
    Ok(at)
}
