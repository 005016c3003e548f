//! `culvert-agent detach`: the node as it was before any agent.

use crate::{ADMIN, ENROLL, HANDOVER, LOCK, PODS, capture, installer};
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
}

impl Options {
    pub fn detach(&self) -> anyhow::Result<()> {
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
            clear(run_dir)
                .with_context(|| format!("clearing {} (--run-dir)", run_dir.display()))?;
        }
        if self.linger {
            println!("nothing of the mesh is left on this node");
            until_terminated()?;
        }
        Ok(())
    }
}

/// What agents put there and nothing else: it may be another directory than was meant, and things may be mounted in it.
fn clear(dir: &Path) -> io::Result<()> {
    let absent_is_fine = |done: io::Result<()>| match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    };
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
