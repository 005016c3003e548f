//! Network namespaces: entering one for as long as a socket takes to make.

use crate::sys;
use nix::sched::{CloneFlags, setns};
use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, OnceLock},
};

/// A pod's network namespace, held by a descriptor.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    cookie: u64,
}

/// The namespace that this process was started in.
fn home() -> io::Result<&'static File> {
    static HOME: OnceLock<File> = OnceLock::new();
    if let Some(f) = HOME.get() {
        return Ok(f);
    }
    let f = File::open("/proc/self/ns/net")?;
    Ok(HOME.get_or_init(|| f))
}

/// Notes the agent's own namespace; before any thread enters another.
pub fn remember_home() -> io::Result<()> {
    home().map(drop)
}

/// What a process in the agent's own namespace has at /proc/PID/ns/net.
pub fn home_inode() -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(home()?.metadata()?.ino())
}

impl Netns {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut ns = Netns { fd: Arc::new(fd), cookie: 0 };
        ns.cookie = ns.run(sys::netns_cookie)??;
        Ok(ns)
    }

    /// The kernel's name for it, never used twice.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Runs `f` inside. It must not await, and what it makes (sockets) stays in the namespace.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        let home = home()?;
        setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let _back = Back(home);
        Ok(f())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

struct Back(&'static File);

impl Drop for Back {
    fn drop(&mut self) {
        // A thread that stayed in a pod's namespace would make other pods' sockets there.
        if setns(self.0, CloneFlags::CLONE_NEWNET).is_err() {
            std::process::abort();
        }
    }
}
