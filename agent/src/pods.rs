//! The pods that are enrolled on this node, and how a pod gets in and out.
//!
//! Enrolment goes: the workload's record is there and names the namespace's addresses; listeners
//! are open; `sk_lookup` takes what arrives; the entry in PODS takes what leaves; connections that
//! are older are listed; the guard is on. Only then is it acknowledged. Each step fails closed, and
//! a failure takes back what was done.

use crate::{
    agent::{Agent, PATIENCE},
    dns, fault,
    handover::InheritedPod,
    inbound,
    netlink::{self, TcpSocket},
    netns::Netns,
    outbound,
    scope::{PodScope, spawn_for_agent},
    sockets::{self, DnsPorts},
};
use agent_api::enroll::Enroll;
use anyhow::{Context as _, bail};
use capture_abi::{listener, pod_flags};
use identity::SpiffeId;
use mesh::Workload;
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::{IpAddr, SocketAddr},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
};

/// One enrolled pod: every descriptor and every task that is held for it.
#[derive(Debug)]
pub struct Pod {
    pub uid: Arc<str>,
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
    accepted: Mutex<HashSet<(u16, SocketAddr)>>,
    /// Connections older than the enrolment.
    earlier: Mutex<HashSet<(SocketAddr, SocketAddr)>>,
    /// Whether this enrolment counts as a user of the namespace's rules and routes.
    prepared: AtomicBool,
    /// For the agent that takes this one's place.
    listeners: Mutex<Vec<(u32, OwnedFd)>>,
    /// True once it takes no new connections: un-enrolled, or the agent drains.
    leaving: watch::Sender<bool>,
}

impl Pod {
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

    /// Whether a connection from `client` on `port` to the pod's `local` exists already.
    pub fn tuple_taken(&self, local: SocketAddr, client: IpAddr, port: u16) -> bool {
        let remote = SocketAddr::new(client, port);
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
struct Saved {
    uid: String,
    owner: u32,
    flags: u32,
    netns_inode: u64,
    fwmark_accept: String,
    #[serde(default)]
    dns: DnsPorts,
    /// Connections that are older than the enrolment are known: whatever else the namespace holds
    /// later has no claim to be one of them.
    #[serde(default)]
    earlier_listed: bool,
}

#[derive(Debug)]
struct Prepared {
    users: usize,
    /// net.ipv4.tcp_fwmark_accept as it was before.
    fwmark_accept: String,
}

pub struct Pods {
    dir: PathBuf,
    all: Mutex<HashMap<u64, Arc<Pod>>>,
    /// Namespaces that have rules and routes of the agent's, by cookie: enrolled now, or with
    /// connections left from when they were.
    prepared: Mutex<HashMap<u64, Prepared>>,
    next_owner: AtomicU32,
    /// One enrolment at a time: their steps must not interleave for one namespace.
    enrolling: Arc<tokio::sync::Mutex<()>>,
    /// Un-enrolled pods whose last connections have not ended.
    letting_go: watch::Sender<usize>,
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

    fn by_uid(&self, uid: &str) -> Option<Arc<Pod>> {
        lock(&self.all).values().find(|p| *p.uid == *uid).cloned()
    }

    /// Makes a namespace ready for one more user. The answer is what
    /// net.ipv4.tcp_fwmark_accept was before the first.
    fn prepare(&self, netns: &Netns) -> anyhow::Result<String> {
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
    fn done(&self, pod: &Pod, stays_closed: bool) {
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

    fn saved(&self, cookie: u64) -> Option<Saved> {
        serde_json::from_slice(&fs::read(self.file(cookie)).ok()?).ok()
    }

    fn file(&self, cookie: u64) -> PathBuf {
        self.dir.join(format!("{cookie:x}.json"))
    }
}

/// Enrols the pod that lives in `netns`.
pub async fn enroll(agent: &Arc<Agent>, netns: Netns, request: &Enroll) -> anyhow::Result<()> {
    let _one = agent.pods.enrolling.lock().await;
    still_here(agent)?;
    let cookie = netns.cookie();
    if let Some(there) = lock(&agent.pods.all).get(&cookie) {
        if *there.uid == *request.uid {
            return Ok(());
        }
        bail!(
            "this network namespace is enrolled as {}; un-enrol that first, it cannot be {} as well",
            there.uid,
            request.uid
        );
    }
    let flags = if request.allow_other_protocols { pod_flags::ALLOW_OTHER_PROTOCOLS } else { 0 };
    // A pod that could not be taken up yet has programs of its own already: they are replaced.
    let earlier = agent.capture.enrolled().into_iter().find(|(c, _)| *c == cookie);
    let owner = match earlier {
        Some((_, entry)) => entry.owner,
        None => agent.pods.next_owner.fetch_add(1, Ordering::Relaxed),
    };
    enroll_as(agent, netns, &request.uid, Some(request), owner, flags, HashMap::new()).await
}

fn still_here(agent: &Agent) -> anyhow::Result<()> {
    if *agent.draining.borrow() || agent.is_superseded() {
        bail!("this agent is draining; ask the one that replaces it");
    }
    Ok(())
}

async fn enroll_as(
    agent: &Arc<Agent>,
    netns: Netns,
    uid: &str,
    request: Option<&Enroll>,
    owner: u32,
    flags: u32,
    inherited: HashMap<u32, OwnedFd>,
) -> anyhow::Result<()> {
    // What is taken up is tried again; what is asked for now is waited for.
    let patience = if request.is_some() { PATIENCE } else { Duration::ZERO };
    let workload = record(agent, uid, patience).await?;
    if let Some(r) = request {
        let same = *workload.namespace == *r.namespace
            && workload.name() == r.name
            && *workload.service_account == *r.service_account;
        if !same {
            bail!(
                "{uid} is {}/{} with service account {} by the control plane, and {}/{} with \
                 service account {} by this request: one of the two is wrong",
                workload.namespace,
                workload.name(),
                workload.service_account,
                r.namespace,
                r.name,
                r.service_account
            );
        }
    }
    let addresses = checked_addresses(&workload, &netns)?;
    let host_ends = sockets::host_ends(&netns)?;
    if request.is_some()
        && let Some(other) = agent.pods.by_uid(uid)
    {
        // A pod that came back in a new sandbox, which is known to be it: the old one is history.
        release(agent, &other).await;
    }
    let own_dns = workload.dns.as_ref().is_some_and(|d| d.not_captured);
    let flags = match own_dns {
        true => flags | pod_flags::OWN_DNS,
        false => flags & !pod_flags::OWN_DNS,
    };
    let searches = workload.dns.as_ref().and_then(|d| d.searches.clone());
    let pod = Arc::new(Pod {
        searches: searches
            .unwrap_or_else(|| dns::cluster_searches(&workload.namespace, &agent.cluster_domain)),
        dns: !own_dns,
        uid: workload.uid.clone(),
        owner,
        flags,
        listeners: Mutex::default(),
        identity: workload.identity()?,
        addresses,
        scope: PodScope::new(),
        accepted: Mutex::default(),
        earlier: Mutex::default(),
        prepared: AtomicBool::new(false),
        leaving: watch::Sender::new(false),
        netns,
    });
    agent.certs.want(&pod.identity);
    let outcome = capture(agent, &pod, &host_ends, inherited);
    match outcome {
        Ok(()) => {
            tracing::info!(uid, owner, identity = %pod.identity, "pod enrolled");
            lock(&agent.pods.all).insert(pod.netns.cookie(), pod);
            Ok(())
        }
        Err(e) if request.is_some() => {
            withdraw(agent, &pod);
            finish(agent, &pod).await;
            Err(e)
        }
        // Taken up from an earlier agent: what holds it closed stays, and it is tried again.
        Err(e) => {
            pod.scope.end().await;
            agent.certs.release(&pod.identity);
            agent.pods.done(&pod, true);
            Err(e)
        }
    }
}

/// The steps, in their order.
fn capture(
    agent: &Arc<Agent>,
    pod: &Arc<Pod>,
    host_ends: &[u32],
    inherited: HashMap<u32, OwnedFd>,
) -> anyhow::Result<()> {
    let cookie = pod.netns.cookie();
    let capture = &agent.capture;
    let file = agent.pods.file(cookie);
    let fwmark_accept = agent.pods.prepare(&pod.netns)?;
    pod.prepared.store(true, Ordering::Release);
    capture.start_counting(pod.owner)?;
    fault::point("enroll-prepared");
    let before = agent.pods.saved(cookie).filter(|s| s.owner == pod.owner);
    let dns_before = before.as_ref().map(|s| s.dns).unwrap_or_default();
    let dns_before = pod.dns.then_some(dns_before);
    let listeners = sockets::listen(capture, &pod.netns, pod.owner, inherited, dns_before)?;
    let dns = sockets::dns_ports(&listeners);
    fault::point("enroll-listening");
    let programs = capture.pod_programs();
    let mut ebpf = programs.load(pod.owner, pod.flags)?;
    let mut saved = Saved {
        uid: pod.uid.to_string(),
        owner: pod.owner,
        flags: pod.flags,
        netns_inode: netns_inode(&pod.netns)?,
        fwmark_accept,
        dns,
        earlier_listed: before.is_some_and(|s| s.earlier_listed),
    };
    save(&file, &saved)?;
    fault::point("enroll-saved");
    programs.attach_lookup(&mut ebpf, pod.owner, &pod.netns)?;
    fault::point("enroll-looking-up");
    capture.enroll(cookie, sockets::kernel_entry(pod.owner, pod.flags, &pod.addresses, dns))?;
    fault::point("enroll-captured");
    // What is connected now was connected before: everything after the entry is captured.
    let earlier = earlier_connections(pod)?;
    if !saved.earlier_listed {
        for s in earlier.iter().filter(|s| !s.time_wait) {
            capture.allow_earlier(pod.owner, s)?;
        }
        saved.earlier_listed = true;
        save(&file, &saved)?;
    }
    lock(&pod.earlier).extend(earlier.iter().map(|s| (s.local, s.remote)));
    for end in host_ends {
        programs.attach_guard(&mut ebpf, pod.owner, *end)?;
    }
    fault::point("enroll-guarded");
    for (kind, socket) in listeners {
        let (agent, pod2) = (agent.clone(), pod.clone());
        lock(&pod.listeners).push((kind, socket.try_clone()?.into()));
        match kind {
            listener::OUTBOUND_V4 | listener::OUTBOUND_V6 => {
                pod.scope.spawn(outbound::listen(
                    agent,
                    pod2,
                    TcpListener::from_std(socket.into())?,
                ));
            }
            listener::PLAINTEXT_V4 | listener::PLAINTEXT_V6 => {
                let listener = TcpListener::from_std(socket.into())?;
                pod.scope.spawn(inbound::listen_plaintext(agent, pod2, listener));
            }
            listener::HBONE_V4 | listener::HBONE_V6 => {
                let listener = TcpListener::from_std(socket.into())?;
                pod.scope.spawn(inbound::listen_hbone(agent, pod2, listener));
            }
            _ => pod.scope.spawn(dns::listen(agent, pod2, UdpSocket::from_std(socket.into())?)),
        }
    }
    Ok(())
}

/// Whole or not at all: an agent may die at any time.
fn save(file: &Path, saved: &Saved) -> anyhow::Result<()> {
    let next = file.with_extension("next");
    fs::write(&next, serde_json::to_vec(saved)?)
        .and_then(|()| fs::rename(&next, file))
        .with_context(|| format!("writing {}", file.display()))
}

/// The workload's record, once discovery has it.
async fn record(agent: &Agent, uid: &str, patience: Duration) -> anyhow::Result<Arc<Workload>> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if let Some(w) = agent.mesh.workload(uid).filter(|w| !w.addresses.is_empty()) {
            return Ok(w);
        }
        if tokio::time::Instant::now() >= deadline {
            let synced = *agent.mesh.synced().borrow();
            bail!(
                "the control plane has no workload {uid} with an address (after {patience:?}; \
                 discovery connected: {}, first answer received: {}): check the pod's manifest, its \
                 status.podIP and phase, and culvertd's diagnostics",
                synced.connected,
                synced.ready()
            );
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The namespace must have the record's addresses: otherwise it is somebody else's.
fn checked_addresses(w: &Workload, netns: &Netns) -> anyhow::Result<Vec<IpAddr>> {
    if w.host_network {
        bail!("{} runs in its node's network namespace, which cannot be enrolled", w.uid);
    }
    let found = sockets::pod_addresses(netns)?;
    for wanted in w.addresses.iter() {
        if !found.contains(wanted) {
            bail!(
                "{} has address {wanted} by the control plane, and the network namespace has \
                 {found:?}: the namespace is not this pod's",
                w.uid
            );
        }
    }
    Ok(w.addresses.to_vec())
}

fn earlier_connections(pod: &Pod) -> anyhow::Result<Vec<TcpSocket>> {
    let all = pod.netns.run(netlink::tcp_sockets)??;
    Ok(all.into_iter().filter(|s| !s.local.ip().is_loopback()).collect())
}

/// Forgets those of the pods' earlier connections that have ended.
pub fn sweep_earlier(agent: &Agent) {
    for pod in agent.pods.all() {
        if pod.earlier_connections() == 0 {
            continue;
        }
        let Ok(now) = earlier_connections(&pod) else { continue };
        let now: HashSet<(SocketAddr, SocketAddr)> =
            now.into_iter().map(|s| (s.local, s.remote)).collect();
        lock(&pod.earlier).retain(|s| now.contains(s));
        agent.capture.retain_earlier(pod.owner, |l, r| now.contains(&(l, r)));
    }
}

/// Un-enrols a pod by its uid.
pub async fn unenroll(agent: &Arc<Agent>, uid: &str) -> anyhow::Result<()> {
    let _one = agent.pods.enrolling.lock().await;
    still_here(agent)?;
    match agent.pods.by_uid(uid) {
        Some(pod) => {
            release(agent, &pod).await;
            Ok(())
        }
        None => {
            bail!("no pod {uid} is enrolled on this node; `culvertctl status` lists those that are")
        }
    }
}

/// Capture ends at once. Connections that are open go on, and what they need stays until the last
/// of them has ended.
async fn release(agent: &Arc<Agent>, pod: &Arc<Pod>) {
    withdraw(agent, pod);
    pod.leave();
    lock(&agent.pods.all).remove(&pod.netns.cookie());
    tracing::info!(uid = %pod.uid, "pod un-enrolled");
    agent.pods.letting_go.send_modify(|pods| *pods += 1);
    let (agent, pod) = (agent.clone(), pod.clone());
    if tokio::time::timeout(LET_GO, pod.scope.idle()).await.is_ok() {
        finish(&agent, &pod).await;
        agent.pods.letting_go.send_modify(|pods| *pods -= 1);
    } else {
        spawn_for_agent(async move {
            pod.scope.idle().await;
            finish(&agent, &pod).await;
            agent.pods.letting_go.send_modify(|pods| *pods -= 1);
        });
    }
}

/// How long the last frames of HBONE connections may take to leave.
pub const LAST_FRAMES: Duration = Duration::from_secs(1);

/// How long an un-enrolment waits for connections before it leaves them to themselves.
const LET_GO: Duration = Duration::from_millis(100);

fn withdraw(agent: &Agent, pod: &Pod) {
    let cookie = pod.netns.cookie();
    agent.capture.unenroll(cookie);
    agent.capture.pod_programs().detach(pod.owner);
    agent.capture.retain_earlier(pod.owner, |_, _| false);
    agent.capture.stop_counting(pod.owner);
    agent.capture.forget_name_servers(pod.owner);
    let _ = fs::remove_file(agent.pods.file(cookie));
}

async fn finish(agent: &Agent, pod: &Arc<Pod>) {
    agent.pool.let_go(|key| key.pod.owner == pod.owner);
    pod.scope.settle(LAST_FRAMES).await;
    pod.scope.end().await;
    agent.certs.release(&pod.identity);
    // The agent that took this one's place may have enrolled it again, and needs what is there.
    let cookie = pod.netns.cookie();
    let is_anothers =
        agent.is_superseded() && agent.capture.enrolled().iter().any(|(c, _)| *c == cookie);
    agent.pods.done(pod, is_anothers);
}

/// Takes up the pods that an earlier agent enrolled. Until that is done they are closed: captured
/// and guarded, with nobody listening.
///
/// Called at the start, and again for those that could not be taken up.
///
/// Pods with what an agent before this one has given are the first to be taken up. The answer is
/// why some of them could not be.
pub async fn take_up(
    agent: &Arc<Agent>,
    first: bool,
    inherited: Vec<InheritedPod>,
) -> Result<(), String> {
    let _one = agent.pods.enrolling.lock().await;
    let enrolled = agent.capture.enrolled();
    if !first && enrolled.iter().all(|(c, _)| lock(&agent.pods.all).contains_key(c)) {
        return Ok(());
    }
    let mut inherited: HashMap<u64, InheritedPod> =
        inherited.into_iter().map(|p| (p.netns.cookie(), p)).collect();
    let mut failed = Ok(());
    let highest = enrolled.iter().map(|(_, p)| p.owner).max().unwrap_or(0);
    agent.pods.next_owner.fetch_max(highest + 1, Ordering::Relaxed);
    let mut namespaces = namespaces_of_processes();
    let mut kept = HashSet::new();
    for (cookie, entry) in enrolled {
        if lock(&agent.pods.all).contains_key(&cookie) {
            kept.insert(entry.owner);
            continue;
        }
        let saved = agent.pods.saved(cookie);
        let found = |s: &Saved| {
            let path = namespaces.remove(&s.netns_inode)?;
            Netns::new(fs::File::open(path).ok()?.into()).ok().filter(|n| n.cookie() == cookie)
        };
        let was_given = inherited.remove(&cookie);
        let is_given = was_given.is_some();
        let (netns, listeners) = match was_given {
            Some(pod) => (Some(pod.netns), pod.listeners),
            None => (saved.as_ref().and_then(found), HashMap::new()),
        };
        let (Some(saved), Some(netns)) = (saved, netns) else {
            tracing::info!(cookie, owner = entry.owner, "an enrolled pod is gone");
            agent.capture.unenroll(cookie);
            agent.capture.pod_programs().detach(entry.owner);
            let _ = fs::remove_file(agent.pods.file(cookie));
            continue;
        };
        kept.insert(entry.owner);
        let (owner, flags) = (entry.owner, saved.flags);
        let taken = enroll_as(agent, netns, &saved.uid, None, owner, flags, listeners).await;
        if let Err(error) = taken {
            tracing::error!(
                uid = saved.uid,
                error = format!("{error:#}"),
                "an enrolled pod could not be taken up yet: its new connections fail until then"
            );
            // One that the control plane has no more is on its way out.
            if is_given && agent.mesh.workload(&saved.uid).is_some() {
                failed = Err(format!("{} cannot be taken over: {error:#}", saved.uid));
            }
        }
    }
    if first {
        agent.capture.forget_except(&kept);
        agent.capture.pod_programs().detach_except(&kept);
    }
    failed
}

/// A path to each network namespace that some process is in, by inode.
fn namespaces_of_processes() -> HashMap<u64, PathBuf> {
    let mut found = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
            let path = entry.path().join("ns/net");
            if let Ok(meta) = fs::metadata(&path) {
                found.entry(meta.ino()).or_insert(path);
            }
        }
    }
    found
}

fn netns_inode(netns: &Netns) -> anyhow::Result<u64> {
    use std::os::fd::AsFd as _;
    Ok(nix::sys::stat::fstat(netns.as_fd())?.st_ino)
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
