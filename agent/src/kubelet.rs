//! Connections of the node's kubelet, which looks after pods (probes, lifecycle hooks) and has no
//! identity: no policy counts for them.
//!
//! The node's address alone would say little, as every process of the node has it, and kube-proxy gives
//! it to others. It is the kubelet's connection if the kernel has its socket, with this very pair of
//! addresses and ports, in the node's network namespace, and the kubelet's process holds that socket.

use crate::{netlink, netns, pods::lock, sockets};
use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, Mutex},
};

#[derive(Clone)]
pub struct Kubelet(Arc<Inner>);

struct Inner {
    /// What the file of its program is called.
    program: String,
    /// The process that was it the last time.
    last: Mutex<Option<u32>>,
}

impl Kubelet {
    pub fn new(program: &str) -> Self {
        Self(Arc::new(Inner { program: program.to_owned(), last: Mutex::new(None) }))
    }

    /// Whether the connection that comes from `source` is the kubelet's.
    pub async fn has_made(&self, source: SocketAddr, to: SocketAddr) -> bool {
        if !sockets::is_of_this_host(source.ip()) {
            return false;
        }
        let kubelet = self.0.clone();
        tokio::task::spawn_blocking(move || kubelet.has_made(source, to)).await.unwrap_or(false)
    }
}

impl Inner {
    fn has_made(&self, source: SocketAddr, to: SocketAddr) -> bool {
        // Most that is not the kubelet's ends here: nothing of this node has made it.
        let found = netlink::tcp_socket(source, to).ok().flatten();
        let Some(inode) = found.map(|f| f.inode).filter(|inode| *inode != 0) else { return false };
        let Ok(home) = netns::home_inode() else { return false };
        let last = *lock(&self.last);
        let is_it = |pid: u32| self.is_kubelet(pid, home) && holds(pid, inode);
        if last.is_some_and(is_it) {
            return true;
        }
        let found = processes().find(|pid| is_it(*pid));
        if found.is_some() {
            *lock(&self.last) = found;
        }
        found.is_some()
    }

    fn is_kubelet(&self, pid: u32, home: u64) -> bool {
        let process = Path::new("/proc").join(pid.to_string());
        let read = |file: &str| fs::read_to_string(process.join(file)).unwrap_or_default();
        let program = fs::read_link(process.join("exe"));
        program.is_ok_and(|path| is_called(&path, &self.program))
            && fs::metadata(process.join("ns/net")).is_ok_and(|ns| ns.ino() == home)
            && is_root(&read("status"))
            && !is_of_a_pod(&read("cgroup"))
    }
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn holds(pid: u32, inode: u32) -> bool {
    let wanted = format!("socket:[{inode}]");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .any(|target| target.as_os_str() == wanted.as_str())
}

/// A program that has been replaced while it runs is marked as deleted.
fn is_called(path: &Path, program: &str) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    name.strip_suffix(" (deleted)").unwrap_or(name) == program
}

/// By `/proc/PID/status`: real, effective, saved and file system's.
fn is_root(status: &str) -> bool {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.is_some_and(|uids| uids.split_whitespace().eq(["0"; 4]))
}

/// By `/proc/PID/cgroup`. Every driver puts pods beneath a group of this name.
fn is_of_a_pod(cgroup: &str) -> bool {
    cgroup.is_empty() || cgroup.split(['/', ':', '\n']).any(|part| part.starts_with("kubepods"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_the_kubelet_by_program_user_and_place() {
        assert!(is_called(Path::new("/usr/bin/kubelet"), "kubelet"));
        assert!(is_called(Path::new("/usr/bin/kubelet (deleted)"), "kubelet"));
        assert!(!is_called(Path::new("/usr/bin/kubelet2"), "kubelet"));
        assert!(!is_called(Path::new("/kubelet/bash"), "kubelet"));

        assert!(is_root("Name:\tkubelet\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n"));
        assert!(!is_root("Uid:\t0\t1000\t0\t0\n"));
        assert!(!is_root("Gid:\t0\t0\t0\t0\n"));

        assert!(!is_of_a_pod("0::/system.slice/kubelet.service\n"));
        assert!(!is_of_a_pod("0::/../../kubelet\n"));
        assert!(is_of_a_pod("0::/kubepods.slice/kubepods-besteffort.slice/cri-1.scope\n"));
        assert!(is_of_a_pod("12:memory:/kubepods/burstable/pod1/2\n0::/\n"));
        assert!(is_of_a_pod("0::/../kubepods-pod1.slice/cri-containerd-2.scope\n"));
        assert!(is_of_a_pod(""), "nobody knows where it is");
    }
}
