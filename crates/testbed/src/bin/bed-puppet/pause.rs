//! Makes the pod's mount namespace and holds it, with the network namespace it was started in.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// `binds` alternates between a file and what it is to be mounted over.
pub(crate) fn run(binds: &[String]) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot make mounts private")?;
    let (binds, _) = binds.as_chunks::<2>();
    for [source, target] in binds {
        // A host without, say, nsswitch.conf uses the defaults, which suit a pod.
        if Path::new(target).exists() {
            mount(
                Some(source.as_str()),
                target.as_str(),
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .with_context(|| format!("cannot mount {source} over {target}"))?;
        }
    }
    forget_beds()?;
    if let Some(ready) = std::env::var_os("BED_READY") {
        fs::write(ready, "")?;
    }
    loop {
        nix::unistd::pause();
    }
}

/// This namespace copied every mount of the host: names of other pods' namespaces and beds' pinned programs, which
/// would stay alive as long as this pod does.
fn forget_beds() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let theirs =
        |dir: &&str| dir.starts_with("/run/netns/") || dir.starts_with("/run/culvert-bed/");
    for dir in mounts.lines().filter_map(|l| l.split(' ').nth(1)).filter(theirs) {
        // Another name for the same mount may have taken it away already.
        let _ = umount2(dir, MntFlags::MNT_DETACH);
    }
    Ok(())
}
