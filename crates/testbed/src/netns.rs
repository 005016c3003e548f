//! Network namespaces with a name under `/run/netns`, so that `ip netns exec` finds them.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

pub(crate) const DIR: &str = "/run/netns";

/// Device and inode: what a namespace is to the kernel, whatever names it has.
pub(crate) type NetnsId = (u64, u64);

/// What the namespace is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Forwards: a node or the fabric.
    Router,
    Pod,
}

pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Makes a namespace and binds it to its name.
pub(crate) fn create(name: &str) -> Result<NetnsId> {
    prepare_dir()?;
    let path = path(name);
    File::create_new(&path).with_context(|| format!("{} is taken", path.display()))?;
    // A thread of its own, as a thread cannot be trusted to get back to where it was.
    std::thread::scope(|s| {
        s.spawn(|| -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            mount(
                Some("/proc/thread-self/ns/net"),
                &path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .with_context(|| format!("cannot bind {}", path.display()))
        })
        .join()
        .map_err(|_| anyhow!("the thread that made {name} panicked"))?
    })?;
    id(&path)
}

/// Unbinds the name. The namespace lives on while processes or sockets are in it.
pub(crate) fn remove(name: &str) -> Result<()> {
    let path = path(name);
    umount2(&path, MntFlags::MNT_DETACH)
        .with_context(|| format!("cannot unmount {}", path.display()))?;
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
}

pub(crate) fn id(path: &Path) -> Result<NetnsId> {
    let meta = fs::metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Runs `f` on a thread inside the namespace. Sockets it makes stay there; `/proc/sys/net` is the namespace's, for
/// `/proc/net` say `/proc/thread-self/net`.
///
/// # Errors
/// When there is no such namespace, or from `f`.
pub fn inside<T: Send>(netns: &Path, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(netns).with_context(|| format!("no namespace {}", netns.display()))?;
    std::thread::scope(|s| {
        s.spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter {}", netns.display()))?;
            f()
        })
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Settings that a namespace needs before its first interface appears.
pub(crate) fn prepare(netns: &Path, role: Role) -> Result<()> {
    inside(netns, || {
        for which in ["all", "default"] {
            // Addresses work at once: no duplicate address detection.
            set(&format!("net/ipv6/conf/{which}/accept_dad"), "0")?;
            set(&format!("net/ipv6/conf/{which}/accept_ra"), "0")?;
            // A node that hairpins a VIP would tell the pod to go round it.
            set(&format!("net/ipv6/conf/{which}/accept_redirects"), "0")?;
            set(&format!("net/ipv4/conf/{which}/accept_redirects"), "0")?;
            set(&format!("net/ipv4/conf/{which}/send_redirects"), "0")?;
            // IPv4 settings are inherited from the host, and many distributions set this one.
            set(&format!("net/ipv4/conf/{which}/rp_filter"), "0")?;
        }
        set("net/ipv6/conf/default/dad_transmits", "0")?;
        if role == Role::Router {
            set("net/ipv4/ip_forward", "1")?;
            set("net/ipv6/conf/all/forwarding", "1")?;
        }
        for family in ["iptables", "ip6tables", "arptables"] {
            // Bridged packets would pass through the node's NAT as well. Absent when br_netfilter is not loaded.
            let key = format!("net/bridge/bridge-nf-call-{family}");
            if Path::new("/proc/sys").join(&key).exists() {
                set(&key, "0")?;
            }
        }
        Ok(())
    })
}

/// Writes a sysctl (`net.ipv4.x` or `net/ipv4/x`) in the calling thread's namespace.
pub(crate) fn set(key: &str, value: &str) -> Result<()> {
    // An interface's name may hold dots: a key with slashes is taken as it is.
    let key = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    fs::write(Path::new("/proc/sys").join(&key), value)
        .with_context(|| format!("cannot set {key}={value}"))
}

/// What `ip netns add` does as well: the folder becomes a shared mount, so that unmounting a name reaches other
/// mount namespaces.
fn prepare_dir() -> Result<()> {
    static ONCE: Mutex<()> = Mutex::new(());
    let _one = ONCE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    fs::create_dir_all(DIR)?;
    // Beds of other processes do the same at the same time.
    let dir = File::open(DIR)?;
    let locked = nix::fcntl::Flock::lock(dir, nix::fcntl::FlockArg::LockExclusive);
    let _lock = locked.map_err(|(_, e)| e).context("cannot lock /run/netns")?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    if !mounts.lines().any(|l| l.split(' ').nth(1) == Some(DIR)) {
        mount(Some(DIR), DIR, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .context("cannot make /run/netns a mount")?;
    }
    mount(None::<&str>, DIR, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>)
        .context("cannot make /run/netns shared")
}
