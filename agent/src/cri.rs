//! A pod's network namespace, by what the node's container runtime says of its sandbox.

use crate::{netns::Netns, sys};
use anyhow::{Context as _, bail};
use cri::{Runtime, Sandbox};
use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::{Mode, fstat},
};
use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

/// None where the runtime has no sandbox for the pod that is ready.
pub async fn namespace_of(runtime: &Runtime, pod_uid: &str) -> anyhow::Result<Option<Netns>> {
    let Some(id) = runtime.ready_sandboxes(pod_uid).await?.into_iter().next() else {
        return Ok(None);
    };
    let sandbox = runtime.sandbox(&id).await?;
    if !sandbox.ready || sandbox.pod_uid != pod_uid {
        return Ok(None);
    }
    let Some(named) = sandbox.netns.as_deref() else {
        bail!("its sandbox {id} is in the node's network namespace, which cannot be enrolled");
    };
    let fd = match sandbox.pid {
        Some(pid) => of_process(runtime, &sandbox, pid).await?,
        None => by_name(named).with_context(|| {
            format!("opening {}, the namespace of its sandbox {id}", named.display())
        })?,
    };
    // Named in the runtime's mounts: where nobody can look into them, nothing is said.
    if let Ok(there) = by_name(named)
        && !same_file(&fd, &there)
    {
        bail!(
            "process {:?} of its sandbox {id} is not in {}: did the sandbox end meanwhile?",
            sandbox.pid,
            named.display()
        );
    }
    let netns = Netns::new(fd)
        .with_context(|| format!("what sandbox {id} names is not a network namespace"))?;
    if netns.cookie() == sys::netns_cookie()? {
        bail!("its sandbox {id} is in the node's network namespace, which cannot be enrolled");
    }
    Ok(Some(netns))
}

/// A process's number may be another's by the time that it is looked at. Its directory is opened before
/// the runtime is asked again: what is found in it is of the process that was there then.
async fn of_process(runtime: &Runtime, sandbox: &Sandbox, pid: u32) -> anyhow::Result<OwnedFd> {
    let path = format!("/proc/{pid}");
    let process = File::open(&path).with_context(|| {
        format!("opening {path}, of its sandbox {}: does the agent have hostPID?", sandbox.id)
    })?;
    let again = runtime.sandbox(&sandbox.id).await?;
    if again != *sandbox {
        bail!("its sandbox {} has changed while it was looked at", sandbox.id);
    }
    openat(&process, "ns/net", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .with_context(|| format!("opening {path}/ns/net, of its sandbox {}", sandbox.id))
}

/// As this process sees it, where the runtime's directory is mounted here, or as the node's first does.
fn by_name(path: &Path) -> anyhow::Result<OwnedFd> {
    if let Ok(file) = File::open(path) {
        return Ok(file.into());
    }
    let root = File::open("/proc/1/root")?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(openat2(root.as_fd(), path, how)?)
}

fn same_file(a: &OwnedFd, b: &OwnedFd) -> bool {
    match (fstat(a), fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}
