//! `culvert-agent detach`: the node as it was before any agent.

use crate::{
    ADMIN, ENROLL, HANDOVER, LOCK, PODS, capture,
    enrolment::living_namespaces,
    installer,
    netns::Netns,
    pods::{Saved, file_name},
    sockets,
};
use anyhow::Context as _;
use clap::Args;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value = "/sys/fs/bpf/culvert")]
    bpffs: PathBuf,
    /// Take culvert-cni out of the configurations of this directory first
    #[arg(long)]
    cni_conf_dir: Option<PathBuf>,
    /// Then remove it from this directory
    #[arg(long, requires = "cni_conf_dir")]
    cni_bin_dir: Option<PathBuf>,
    /// Then remove what agents have left in this directory, `run --run-dir`
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// Wait for SIGTERM afterwards: what starts this program would start it again
    #[arg(long)]
    linger: bool,
    /// Is there once it is done
    #[arg(long, requires = "linger")]
    ready_file: Option<PathBuf>,
}

impl Options {
    pub fn detach(&self) -> anyhow::Result<()> {
        if let Some(file) = &self.ready_file {
            absent_is_fine(fs::remove_file(file))?;
        }
        // What waits for an agent goes first, then what needs one.
        if let Some(conf_dir) = &self.cni_conf_dir {
            installer::uninstall(conf_dir, self.cni_bin_dir.as_deref())?;
        }
        let done = self.linger && !capture::holds_state(&self.bpffs);
        if !done {
            capture::detach(&self.bpffs)?;
        }
        // Of an agent of another version it may hold something still.
        let _ = fs::remove_dir(&self.bpffs);
        if let Some(run_dir) = &self.run_dir {
            give_back(&run_dir.join(PODS))?;
            clear(run_dir)
                .with_context(|| format!("clearing {} (--run-dir)", run_dir.display()))?;
        }
        if self.linger {
            println!("nothing of the mesh is left on this node");
            if let Some(file) = &self.ready_file {
                fs::write(file, "").with_context(|| format!("writing {}", file.display()))?;
            }
            until_terminated()?;
        }
        Ok(())
    }
}

/// Takes rules, routes and settings out of the pods that agents have saved there, as far as they still run.
fn give_back(pods: &Path) -> anyhow::Result<()> {
    let mut namespaces = living_namespaces();
    for entry in fs::read_dir(pods).into_iter().flatten().flatten() {
        let text = fs::read(entry.path()).unwrap_or_default();
        // What is half written is of a pod that was not captured yet.
        let Ok(saved) = serde_json::from_slice::<Saved>(&text) else { continue };
        let Some(namespace) = namespaces.remove(&saved.netns_inode) else { continue };
        let Ok(netns) = Netns::new(namespace.into()) else { continue };
        if entry.file_name().to_string_lossy() == file_name(netns.cookie()) {
            sockets::restore(&netns, &saved.fwmark_accept)
                .with_context(|| format!("giving back the network of pod {}", saved.uid))?;
        }
    }
    Ok(())
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// What agents put there and nothing else: it may be another directory than was meant, and things may be mounted in it.
fn clear(dir: &Path) -> io::Result<()> {
    for name in [LOCK, HANDOVER, ENROLL, ADMIN] {
        absent_is_fine(fs::remove_file(dir.join(name)))?;
    }
    // Where a hierarchy was mounted that the node lacked; it stays while it is.
    let _ = fs::remove_dir(dir.join("cgroup2"));
    absent_is_fine(fs::remove_dir_all(dir.join(PODS)))
}

/// For what has been done and must not be done again.
fn until_terminated() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}
