//! The pods that are enrolled on this node, and what is remembered of them.

use crate::{
    netns::Netns,
    scope::PodScope,
    sockets::{self, DnsPorts},
};
use anyhow::Context as _;
use identity::SpiffeId;
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};
use tokio::sync::watch;

/// One enrolled pod: every descriptor and every task that is held for it.
#[derive(Debug)]
pub struct Pod {
    pub uid: Arc<str>,
    /// `metadata.uid`, where somebody has said it.
    pub pod_uid: Option<Arc<str>>,
    /// The key of its state in the kernel.
    pub owner: u32,
    pub flags: u32,
    pub netns: Netns,
    pub scope: PodScope,
    pub identity: SpiffeId,
    pub addresses: Vec<IpAddr>,
    /// The search list of its resolver.
    pub searches: Vec<String>,
    /// Whether its questions for name servers come here.
    pub dns: bool,
    /// Remote ends of plaintext connections that this agent has accepted for the pod, by the local
    /// port: the last hop must not take their tuples.
    pub accepted: Mutex<HashSet<(u16, SocketAddr)>>,
    /// Connections older than the enrolment.
    pub earlier: Mutex<HashSet<(SocketAddr, SocketAddr)>>,
    /// Whether this enrolment counts as a user of the namespace's rules and routes.
    pub prepared: AtomicBool,
    /// For the agent that takes this one's place.
    pub listeners: Mutex<Vec<(u32, OwnedFd)>>,
    /// True once it takes no new connections: un-enrolled, or the agent drains.
    pub leaving: watch::Sender<bool>,
    /// Nothing more is captured.
    pub released: AtomicBool,
}

impl Pod {
    /// Capture has ended: it takes those connections that have begun, and no others.
    pub fn release(&self) {
        self.released.store(true, Ordering::Release);
        self.leave();
    }

    pub fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    pub fn leaving(&self) -> watch::Receiver<bool> {
        self.leaving.subscribe()
    }

    /// Takes no new connections; those that are open go on.
    pub fn leave(&self) {
        self.leaving.send_replace(true);
        lock(&self.listeners).clear();
    }

    /// Its listeners, by their kind in the kernel's map.
    pub fn listeners(&self) -> io::Result<Vec<(u32, OwnedFd)>> {
        lock(&self.listeners).iter().map(|(kind, fd)| Ok((*kind, fd.try_clone()?))).collect()
    }

    pub fn has_address(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip.to_canonical())
    }

    pub fn address_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().find(|a| a.is_ipv4() == like.is_ipv4()).copied()
    }

    /// Notes an accepted plaintext connection until the guard is dropped.
    pub fn note_accepted(self: &Arc<Self>, local_port: u16, remote: SocketAddr) -> Accepted {
        lock(&self.accepted).insert((local_port, remote));
        Accepted { pod: self.clone(), key: (local_port, remote) }
    }

    /// Whether a connection from `remote` to the pod's `local` exists already.
    pub fn tuple_taken(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        lock(&self.accepted).contains(&(local.port(), remote))
            || lock(&self.earlier).contains(&(local, remote))
    }

    pub fn earlier_connections(&self) -> usize {
        lock(&self.earlier).len()
    }
}

pub struct Accepted {
    pod: Arc<Pod>,
    key: (u16, SocketAddr),
}

impl Drop for Accepted {
    fn drop(&mut self) {
        lock(&self.pod.accepted).remove(&self.key);
    }
}

/// What is kept on disk about an enrolled pod, so that a restarted agent knows whose namespace
/// it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saved {
    pub uid: String,
    #[serde(default)]
    pub pod_uid: Option<Arc<str>>,
    pub owner: u32,
    pub flags: u32,
    pub netns_inode: u64,
    pub fwmark_accept: String,
    #[serde(default)]
    pub dns: DnsPorts,
    /// Connections that are older than the enrolment are known: whatever else the namespace holds
    /// later has no claim to be one of them.
    #[serde(default)]
    pub earlier_listed: bool,
}

#[derive(Debug)]
struct Prepared {
    users: usize,
    /// The settings of marks as they were before, net.ipv4.tcp_fwmark_accept first.
    fwmark_accept: String,
}

pub struct Pods {
    dir: PathBuf,
    pub all: Mutex<HashMap<u64, Arc<Pod>>>,
    /// Namespaces that have rules and routes of the agent's, by cookie: enrolled now, or with
    /// connections left from when they were.
    prepared: Mutex<HashMap<u64, Prepared>>,
    pub next_owner: AtomicU32,
    /// One enrolment at a time: their steps must not interleave for one namespace.
    pub enrolling: Arc<tokio::sync::Mutex<()>>,
    /// Un-enrolled pods whose last connections have not ended.
    pub letting_go: watch::Sender<usize>,
}

impl Pods {
    pub fn new(dir: PathBuf) -> anyhow::Result<Arc<Self>> {
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Arc::new(Self {
            dir,
            all: Mutex::default(),
            prepared: Mutex::default(),
            next_owner: AtomicU32::new(1),
            enrolling: Arc::default(),
            letting_go: watch::Sender::new(0),
        }))
    }

    pub fn all(&self) -> Vec<Arc<Pod>> {
        let mut all: Vec<Arc<Pod>> = lock(&self.all).values().cloned().collect();
        all.sort_by(|a, b| a.uid.cmp(&b.uid));
        all
    }

    /// No pod comes or goes for as long as the answer lives.
    pub async fn hold_still(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.enrolling.clone().lock_owned().await
    }

    /// Returns once every un-enrolled pod's last connection has ended.
    pub async fn let_go(&self) {
        let _ = self.letting_go.subscribe().wait_for(|pods| *pods == 0).await;
    }

    pub fn by_uid(&self, uid: &str) -> Option<Arc<Pod>> {
        lock(&self.all).values().find(|p| *p.uid == *uid).cloned()
    }

    /// Makes a namespace ready for one more user. The answer is what
    /// the settings of marks were before the first.
    pub fn prepare(&self, netns: &Netns) -> anyhow::Result<String> {
        // Held throughout: another's end must not take away what this one has just found there.
        let mut prepared = lock(&self.prepared);
        let found = sockets::prepare(netns)?;
        // An earlier agent has prepared a pod that is taken up.
        let saved = || Some(self.saved(netns.cookie())?.fwmark_accept);
        let entry = prepared
            .entry(netns.cookie())
            .or_insert_with(|| Prepared { users: 0, fwmark_accept: saved().unwrap_or(found) });
        entry.users += 1;
        Ok(entry.fwmark_accept.clone())
    }

    /// One user less; with the last, the namespace is as it was, unless it is to stay closed.
    pub fn done(&self, pod: &Pod, stays_closed: bool) {
        if !pod.prepared.swap(false, Ordering::AcqRel) {
            return;
        }
        let netns = &pod.netns;
        let mut prepared = lock(&self.prepared);
        let Some(entry) = prepared.get_mut(&netns.cookie()) else { return };
        entry.users = entry.users.saturating_sub(1);
        if entry.users > 0 {
            return;
        }
        if !stays_closed && let Err(error) = sockets::restore(netns, &entry.fwmark_accept) {
            tracing::debug!(
                error = format!("{error:#}"),
                "a pod's namespace keeps the agent's routes"
            );
        }
        prepared.remove(&netns.cookie());
    }

    pub fn saved(&self, cookie: u64) -> Option<Saved> {
        serde_json::from_slice(&fs::read(self.file(cookie)).ok()?).ok()
    }

    pub fn file(&self, cookie: u64) -> PathBuf {
        self.dir.join(file_name(cookie))
    }
}

/// Of what is saved about the pod of a namespace.
pub fn file_name(cookie: u64) -> String {
    format!("{cookie:x}.json")
}

pub fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
