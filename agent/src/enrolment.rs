//! How a pod gets in and out.
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
    pods::{Pod, Saved, lock},
    scope::{PodScope, spawn_for_agent},
    sockets,
};
use agent_api::enroll::{Enroll, Sandbox};
use anyhow::{Context as _, bail};
use capture_abi::{listener, pod_flags};
use mesh::{Workload, incarnation};
use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{IpAddr, SocketAddr},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{oneshot, watch},
};

/// Who wants a pod to be enrolled, and what he knows of it.
#[derive(Clone, Copy)]
enum Asked<'a> {
    /// Nobody: an earlier agent enrolled it.
    Before,
    Operator(&'a Enroll),
    /// The one who starts it. Its record may have no address yet, or its last sandbox's.
    Starter(&'a Sandbox),
}

/// Enrols the pod that lives in `netns`.
pub async fn enroll(agent: &Arc<Agent>, netns: Netns, request: &Enroll) -> anyhow::Result<()> {
    let _one = agent.pods.enrolling.lock().await;
    let flags = if request.allow_other_protocols { pod_flags::ALLOW_OTHER_PROTOCOLS } else { 0 };
    enroll_anew(agent, netns, &request.uid, Asked::Operator(request), flags).await
}

/// Enrols a pod whose sandbox has just been made and in which nothing runs yet, if it is of the
/// mesh. Whether it is, the control plane says; without its word the pod does not start.
pub async fn start(agent: &Arc<Agent>, netns: Netns, sandbox: &Sandbox) -> anyhow::Result<()> {
    let uid = uid_of(agent, sandbox);
    let workload = record(agent, &uid, PATIENCE, |w| is_of(sandbox, w)).await?;
    if !workload.enroll {
        return Ok(());
    }
    let _one = agent.pods.enrolling.lock().await;
    enroll_anew(agent, netns, &uid, Asked::Starter(sandbox), 0).await
}

/// Whether the sandbox is as `start` would leave it.
pub fn check(agent: &Agent, netns: &Netns, sandbox: &Sandbox) -> anyhow::Result<()> {
    let uid = uid_of(agent, sandbox);
    let enrolled = lock(&agent.pods.all).get(&netns.cookie()).is_some_and(|p| *p.uid == *uid);
    match agent.mesh.workload(&uid).filter(|w| is_of(sandbox, w)) {
        Some(w) if w.enroll && !enrolled => {
            bail!("{uid} is of the mesh, and its network namespace is not captured")
        }
        _ => Ok(()),
    }
}

/// Lets go of a sandbox that ends.
pub async fn stop(agent: &Arc<Agent>, netns: &Netns) -> anyhow::Result<()> {
    let_go(agent, netns.cookie()).await
}

/// Lets go of the pod in the namespace of this cookie, if there is one still.
pub async fn let_go(agent: &Arc<Agent>, cookie: u64) -> anyhow::Result<()> {
    let _one = agent.pods.enrolling.lock().await;
    still_here(agent)?;
    let pod = lock(&agent.pods.all).get(&cookie).cloned();
    if let Some(pod) = pod {
        release(agent, &pod).await;
    }
    Ok(())
}

fn uid_of(agent: &Agent, sandbox: &Sandbox) -> String {
    format!("{}//Pod/{}/{}", agent.cluster, sandbox.namespace, sandbox.name)
}

/// A pod may have had a namesake, which was of the mesh or was not.
fn is_of(sandbox: &Sandbox, w: &Workload) -> bool {
    w.incarnation == Some(incarnation(&sandbox.pod_uid))
}

async fn enroll_anew(
    agent: &Arc<Agent>,
    netns: Netns,
    uid: &str,
    asked: Asked<'_>,
    flags: u32,
) -> anyhow::Result<()> {
    still_here(agent)?;
    let cookie = netns.cookie();
    if let Some(there) = lock(&agent.pods.all).get(&cookie) {
        if *there.uid == *uid {
            return Ok(());
        }
        bail!(
            "this network namespace is enrolled as {}; un-enrol that first, it cannot be {uid} as \
             well",
            there.uid
        );
    }
    // A pod that could not be taken up yet has programs of its own already: they are replaced.
    let earlier = agent.capture.enrolled().into_iter().find(|(c, _)| *c == cookie);
    let owner = match earlier {
        Some((_, entry)) => entry.owner,
        None => agent.pods.next_owner.fetch_add(1, Ordering::Relaxed),
    };
    enroll_as(agent, netns, uid, asked, owner, flags, HashMap::new()).await
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
    asked: Asked<'_>,
    owner: u32,
    flags: u32,
    inherited: HashMap<u32, OwnedFd>,
) -> anyhow::Result<()> {
    let named = |w: &Workload| !w.addresses.is_empty();
    let workload = match asked {
        // What is taken up is tried again; what is asked for now is waited for.
        Asked::Before => record(agent, uid, Duration::ZERO, named).await?,
        Asked::Operator(_) => record(agent, uid, PATIENCE, named).await?,
        Asked::Starter(s) => record(agent, uid, PATIENCE, |w| is_of(s, w)).await?,
    };
    if let Asked::Operator(r) = asked {
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
    let wanted = match asked {
        Asked::Starter(s) => &*s.addresses,
        _ => &*workload.addresses,
    };
    let asked_now = !matches!(asked, Asked::Before);
    let at_fault = |e: anyhow::Error| if asked_now { e } else { e.context(OwnFault) };
    let addresses = checked_addresses(&workload, wanted, &netns).map_err(at_fault)?;
    let (host_ends, unguarded) = sockets::host_ends(&netns)?;
    match asked {
        // What it has made since it was captured leads nowhere but through what is guarded.
        Asked::Before => sockets::check_loopback(&netns).map_err(at_fault)?,
        _ => unguarded.map_or(Ok(()), Err)?,
    }
    let cookie = netns.cookie();
    let was_captured = agent.capture.enrolled().iter().any(|(c, _)| *c == cookie);
    if asked_now && let Some(other) = agent.pods.by_uid(uid) {
        // A pod that came back in a new sandbox, which is known to be it: the old one is history.
        release(agent, &other).await;
    }
    let own_dns = workload.dns.as_ref().is_some_and(|d| d.not_captured);
    let flags = match own_dns {
        true => flags | pod_flags::OWN_DNS,
        false => flags & !pod_flags::OWN_DNS,
    };
    let flags = match asked_now && workload.other_protocols {
        true => flags | pod_flags::ALLOW_OTHER_PROTOCOLS,
        false => flags,
    };
    // By one interface: by which of several a connection leaves is the pod's to say.
    let flags = match agent.goes_direct && host_ends.len() == 1 {
        true => flags | pod_flags::DIRECT,
        false => flags & !pod_flags::DIRECT,
    };
    let pod_uid = match asked {
        Asked::Starter(s) => Some(s.pod_uid.as_str().into()),
        Asked::Operator(_) => agent.mesh.pod_uid(uid),
        Asked::Before => {
            let saved = agent.pods.saved(netns.cookie()).and_then(|s| s.pod_uid);
            saved.or_else(|| agent.mesh.pod_uid(uid))
        }
    };
    let searches = workload.dns.as_ref().and_then(|d| d.searches.clone());
    let pod = Arc::new(Pod {
        searches: searches
            .unwrap_or_else(|| dns::cluster_searches(&workload.namespace, &agent.cluster_domain)),
        dns: !own_dns,
        uid: (&*workload.uid).into(),
        pod_uid,
        owner,
        flags,
        listeners: Mutex::default(),
        identity: workload.identity()?,
        addresses,
        scope: PodScope::new(owner),
        accepted: Mutex::default(),
        earlier: Mutex::default(),
        prepared: AtomicBool::new(false),
        leaving: watch::Sender::new(false),
        released: AtomicBool::new(false),
        netns,
    });
    agent.certs.want(&pod.identity);
    let outcome = capture(agent, &pod, &host_ends, inherited);
    match outcome {
        Ok(()) => {
            tracing::info!(uid, owner, identity = %pod.identity, "pod enrolled");
            agent.reports.say(pod.pod_uid.as_ref(), &pod.uid, true);
            lock(&agent.pods.all).insert(pod.netns.cookie(), pod);
            Ok(())
        }
        Err(e) if !was_captured => {
            withdraw(agent, &pod);
            finish(agent, &pod).await;
            Err(e)
        }
        // Captured by an earlier agent: what holds it closed stays, and it is tried again.
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
    let host_end = match host_ends {
        [only] => *only,
        _ => 0,
    };
    let entry = sockets::kernel_entry(pod.owner, pod.flags, &pod.addresses, dns, host_end);
    let mut ebpf = programs.load(&entry)?;
    let mut saved = Saved {
        uid: pod.uid.to_string(),
        pod_uid: pod.pod_uid.clone(),
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
    capture.enroll(cookie, entry)?;
    fault::point("enroll-captured");
    // What is connected now was connected before: everything after the entry is captured.
    let earlier = earlier_connections(pod)?;
    if !saved.earlier_listed {
        let room = capture.room_for_earlier();
        let open: Vec<&TcpSocket> = earlier.iter().filter(|s| !s.time_wait).collect();
        for s in open.iter().take(room) {
            capture.allow_earlier(pod.owner, s)?;
        }
        if open.len() > room {
            tracing::warn!(uid = %pod.uid, open = open.len(), room,
                "the pod has more connections from before its enrolment than it is given room for in \
                 the kernel: those beyond carry nothing from now on");
        }
        saved.earlier_listed = true;
        save(&file, &saved)?;
    }
    lock(&pod.earlier).extend(earlier.iter().map(|s| (s.local, s.remote)));
    for end in host_ends {
        programs.attach_guard(&mut ebpf, pod.owner, *end)?;
    }
    fault::point("enroll-guarded");
    let _worker = agent.workers.enter_any();
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

/// Beside the reason why a captured pod cannot be taken up: it has made it so itself.
#[derive(Debug, thiserror::Error)]
#[error("the pod has changed its own network namespace")]
struct OwnFault;

/// Whole or not at all: an agent may die at any time.
fn save(file: &Path, saved: &Saved) -> anyhow::Result<()> {
    let next = file.with_extension("next");
    fs::write(&next, serde_json::to_vec(saved)?)
        .and_then(|()| fs::rename(&next, file))
        .with_context(|| format!("writing {}", file.display()))
}

/// The workload's record, once discovery has it.
async fn record(
    agent: &Agent,
    uid: &str,
    patience: Duration,
    is_the_one: impl Fn(&Workload) -> bool,
) -> anyhow::Result<Arc<Workload>> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if let Some(w) = agent.mesh.workload(uid).filter(|w| is_the_one(w)) {
            return Ok(w);
        }
        if tokio::time::Instant::now() >= deadline {
            let synced = *agent.mesh.synced().borrow();
            bail!(
                "the control plane has no record of {uid} as it is now (after {patience:?}; \
                 discovery connected: {}, first answer received: {}): check the pod's manifest, its \
                 uid, spec.nodeName, status.podIP and phase, and culvertd's diagnostics",
                synced.connected,
                synced.ready()
            );
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The namespace must have the record's addresses: otherwise it is somebody else's.
fn checked_addresses(
    w: &Workload,
    wanted: &[IpAddr],
    netns: &Netns,
) -> anyhow::Result<Vec<IpAddr>> {
    if w.host_network {
        bail!("{} runs in its node's network namespace, which cannot be enrolled", w.uid);
    }
    let found = sockets::pod_addresses(netns)?;
    for ip in wanted {
        if !found.contains(ip) {
            bail!(
                "{} is to have the address {ip}, and the network namespace has {found:?}: the \
                 namespace is not this pod's",
                w.uid
            );
        }
    }
    Ok(wanted.to_vec())
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
    pod.release();
    lock(&agent.pods.all).remove(&pod.netns.cookie());
    // Once more: the last connection that was captured may have made one.
    agent.direct.forget(agent, pod.owner);
    tracing::info!(uid = %pod.uid, "pod un-enrolled");
    agent.reports.say(pod.pod_uid.as_ref(), &pod.uid, false);
    agent.pods.letting_go.send_modify(|pods| *pods += 1);
    let (agent, pod) = (agent.clone(), pod.clone());
    let (idle, is_idle) = oneshot::channel();
    let (finished, is_finished) = oneshot::channel();
    // Whoever asked for it may not wait for the end.
    spawn_for_agent(async move {
        pod.scope.idle().await;
        // The agent before this one may carry connections of the pod, over the rules and routes that are there.
        agent.is_alone().await;
        let _ = idle.send(());
        finish(&agent, &pod).await;
        agent.pods.letting_go.send_modify(|pods| *pods -= 1);
        let _ = finished.send(());
    });
    if tokio::time::timeout(LET_GO, is_idle).await.is_ok() {
        let _ = is_finished.await;
    }
}

/// How long the last frames of HBONE connections may take to leave.
pub const LAST_FRAMES: Duration = Duration::from_secs(1);

/// How long an un-enrolment waits for connections before it leaves them to themselves.
const LET_GO: Duration = Duration::from_millis(100);

fn withdraw(agent: &Agent, pod: &Pod) {
    let cookie = pod.netns.cookie();
    agent.capture.unenroll(cookie);
    agent.direct.forget(agent, pod.owner);
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
    let mut namespaces = living_namespaces();
    let mut kept = HashSet::new();
    for (cookie, entry) in enrolled {
        if lock(&agent.pods.all).contains_key(&cookie) {
            kept.insert(entry.owner);
            continue;
        }
        let saved = agent.pods.saved(cookie);
        let found = |s: &Saved| {
            let netns = Netns::new(namespaces.remove(&s.netns_inode)?.into());
            netns.ok().filter(|n| n.cookie() == cookie)
        };
        let was_given = inherited.remove(&cookie);
        let is_given = was_given.is_some();
        let (netns, listeners) = match was_given {
            Some(pod) => (Some(pod.netns), pod.listeners),
            None => (saved.as_ref().and_then(found), HashMap::new()),
        };
        let (Some(saved), Some(netns)) = (saved, netns) else {
            tracing::info!(cookie, owner = entry.owner, "an enrolled pod is gone");
            if let Some(saved) = agent.pods.saved(cookie) {
                agent.reports.say(saved.pod_uid.as_ref(), &saved.uid.into(), false);
            }
            agent.capture.unenroll(cookie);
            agent.capture.pod_programs().detach(entry.owner);
            let _ = fs::remove_file(agent.pods.file(cookie));
            continue;
        };
        kept.insert(entry.owner);
        let (owner, flags) = (entry.owner, saved.flags);
        let taken =
            enroll_as(agent, netns, &saved.uid, Asked::Before, owner, flags, listeners).await;
        if let Err(error) = taken {
            tracing::error!(
                uid = saved.uid,
                error = format!("{error:#}"),
                "an enrolled pod could not be taken up yet: its new connections fail until then"
            );
            // One that the control plane has no more is on its way out, and none keeps an agent from coming by what it
            // does in its own namespace.
            let is_own_fault = error.is::<OwnFault>();
            if is_given && !is_own_fault && agent.mesh.workload(&saved.uid).is_some() {
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

/// Each network namespace that some process is in, or that is mounted on the node, by inode. Opened at once: the
/// process that leads to it may end, and another of the same number be somewhere else.
pub fn living_namespaces() -> HashMap<u64, fs::File> {
    let mut found = HashMap::new();
    let mut look = |path: PathBuf| {
        // Most processes are in few namespaces: each is opened once.
        let is_new = fs::metadata(&path).is_ok_and(|m| !found.contains_key(&m.ino()));
        if is_new
            && let Ok(file) = fs::File::open(&path)
            && let Ok(meta) = file.metadata()
        {
            found.insert(meta.ino(), file);
        }
    };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
            look(entry.path().join("ns/net"));
        }
    }
    // A sandbox that is being made has no process yet.
    for mounted in mounted_namespaces(&fs::read_to_string("/proc/1/mountinfo").unwrap_or_default())
    {
        look(Path::new("/proc/1/root").join(mounted.trim_start_matches('/')));
    }
    found
}

/// Where namespaces are mounted, by `/proc/PID/mountinfo` (proc_pid_mountinfo(5)). Paths with escapes are nobody's
/// who mounts namespaces.
fn mounted_namespaces(mounts: &str) -> impl Iterator<Item = &str> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        root.starts_with("net:[").then_some(at)
    })
}

fn netns_inode(netns: &Netns) -> anyhow::Result<u64> {
    use std::os::fd::AsFd as _;
    Ok(nix::sys::stat::fstat(netns.as_fd())?.st_ino)
}

#[cfg(test)]
mod tests {
    use super::mounted_namespaces;

    #[test]
    fn namespaces_are_found_where_they_are_mounted() {
        let mounts = "24 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
            310 26 0:4 net:[4026532281] /run/netns/cni-1 rw shared:161 - nsfs nsfs rw\n\
            311 26 0:4 uts:[4026532282] /run/utsns/a rw shared:162 - nsfs nsfs rw\n\
            bad\n312 26\n";
        let found: Vec<&str> = mounted_namespaces(mounts).collect();
        assert_eq!(found, ["/run/netns/cni-1"]);
    }
}
