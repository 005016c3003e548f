//! The kernel's half: loads the programs, pins them, and keeps the maps.
//!
//! Everything lives in bpffs under `v<ABI>/`: `maps/`, `links/` for the node's hooks, and `pods/`
//! for each pod's own two. Pinned, it holds while the agent is away; an agent that starts finds it,
//! puts its own programs into the links that are there, and goes on with the maps as they are.

pub mod check;
mod host;
mod links;
mod loader;
mod pod_programs;

pub use host::{ensure_bpffs, find_cgroup2};
pub use pod_programs::PodPrograms;

use crate::{netlink::TcpSocket, sys};
use anyhow::{Context as _, anyhow};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuHashMap, RingBuf, SockHash};
use capture_abi::{
    ABI_VERSION, Addr, Counts, DNS_SLOTS, ELSEWHERE, Event, Flow, FlowKey, IPPROTO_TCP,
    ListenerKey, Pod, ServerKey, Sock, Way, WayKey, flow_kind, lease, sock_kind,
};
use loader::Loader;
use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The kernel programs, built from `ebpf/`.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("CULVERT_EBPF_OBJECT"));

/// Sizes of the maps.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Connections of all pods of the node together.
    pub flows: u32,
}

/// What is announced of a connection at the pod that it leads to.
pub enum Admitted {
    /// It went past the agent, by the socket with this cookie.
    PastTheAgent(u64),
    /// The tuple is that of another connection.
    Otherwise,
    Nothing,
}

/// What a captured connection was for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub address: SocketAddr,
    /// An endpoint that no way of the pod's leads to: those are chosen in the kernel.
    pub elsewhere: bool,
}

/// How close to full FLOWS may come before new connections are refused: what may be under way on
/// other CPUs between the check and the insertion.
const MARGIN: u32 = 64;

pub struct Capture {
    dir: PathBuf,
    loader: Loader,
    pods: Mutex<HashMap<MapData, u64, Pod>>,
    here: Mutex<HashMap<MapData, Addr, u32>>,
    flows: Mutex<HashMap<MapData, FlowKey, Flow>>,
    /// The same, to read: a connection's own questions wait for nobody who walks through all.
    announced: HashMap<MapData, FlowKey, Flow>,
    earlier: Mutex<HashMap<MapData, FlowKey, Flow>>,
    listeners: Mutex<SockHash<MapData, ListenerKey>>,
    counts: Mutex<PerCpuHashMap<MapData, u32, Counts>>,
    meshed: Mutex<HashMap<MapData, Addr, u32>>,
    servers: Mutex<HashMap<MapData, ServerKey, Addr>>,
    in_use: Mutex<Array<MapData, u64>>,
    own: Mutex<HashMap<MapData, u32, u64>>,
    ways: Mutex<HashMap<MapData, WayKey, Way>>,
    lease: Mutex<Array<MapData, u64>>,
    events: Mutex<RingBuf<MapData>>,
    socks: MapData,
}

const MAPS: [&str; 14] = [
    "PODS",
    "HERE",
    "FLOWS",
    "EARLIER",
    "MESHED",
    "SERVERS",
    "LISTENERS",
    "COUNTS",
    "IN_USE",
    "OWN",
    "WAYS",
    "LEASE",
    "EVENTS",
    "SOCKS",
];

impl Capture {
    /// Takes up what is pinned beneath `bpffs`, or begins anew, and puts the node's hooks on
    /// `cgroup`.
    pub fn open(bpffs: &Path, cgroup: &Path, sizes: Sizes) -> anyhow::Result<Self> {
        ensure_bpffs(bpffs)?;
        refuse_other_versions(bpffs)?;
        let dir = bpffs.join(format!("v{ABI_VERSION}"));
        for sub in ["maps", "links", "pods"] {
            fs::create_dir_all(dir.join(sub))
                .with_context(|| format!("creating {}", dir.join(sub).display()))?;
        }
        let loader = Loader::new(&dir, sizes);
        let mut ebpf = loader.load()?;
        let cgroup_fd = fs::File::open(cgroup)
            .with_context(|| format!("opening the cgroup {}", cgroup.display()))?;
        for hook in links::NODE_HOOKS {
            links::attach_node_hook(&mut ebpf, hook, cgroup_fd.as_fd(), &dir.join("links"))?;
        }
        let mut take = |name: &str| {
            ebpf.take_map(name).ok_or_else(|| anyhow!("the eBPF object has no map {name}"))
        };
        Ok(Capture {
            loader,
            pods: Mutex::new(HashMap::try_from(take("PODS")?)?),
            here: Mutex::new(HashMap::try_from(take("HERE")?)?),
            flows: Mutex::new(HashMap::try_from(take("FLOWS")?)?),
            announced: HashMap::try_from(Map::HashMap(MapData::from_pin(dir.join("maps/FLOWS"))?))?,
            earlier: Mutex::new(HashMap::try_from(take("EARLIER")?)?),
            listeners: Mutex::new(SockHash::try_from(take("LISTENERS")?)?),
            counts: Mutex::new(PerCpuHashMap::try_from(take("COUNTS")?)?),
            meshed: Mutex::new(HashMap::try_from(take("MESHED")?)?),
            servers: Mutex::new(HashMap::try_from(take("SERVERS")?)?),
            in_use: Mutex::new(Array::try_from(take("IN_USE")?)?),
            own: Mutex::new(HashMap::try_from(take("OWN")?)?),
            ways: Mutex::new(HashMap::try_from(take("WAYS")?)?),
            lease: Mutex::new(Array::try_from(take("LEASE")?)?),
            events: Mutex::new(news(&dir)?),
            socks: match take("SOCKS")? {
                Map::SkStorage(data) => data,
                other => return Err(anyhow!("SOCKS is not socket storage but {other:?}")),
            },
            dir,
        })
    }

    /// Pods that are enrolled in the kernel, by namespace cookie.
    pub fn enrolled(&self) -> Vec<(u64, Pod)> {
        lock(&self.pods).iter().filter_map(Result::ok).collect()
    }

    /// From here on the pod's connects are captured.
    pub fn enroll(&self, cookie: u64, pod: Pod) -> anyhow::Result<()> {
        for address in [pod.ipv4, pod.ipv6].into_iter().filter(|a| !a.is_unspecified()) {
            // Without, what goes to it within the node may be paced.
            let _ = lock(&self.here).insert(address, pod.owner, 0);
        }
        lock(&self.pods).insert(cookie, pod, 0).map_err(|e| {
            anyhow!(
                "the kernel's map of enrolled pods took no entry ({e}); \
                 it has room for 4096 pods: un-enrol some, or spread them over more nodes"
            )
        })
    }

    /// Ends the capture; connections under way go on.
    pub fn unenroll(&self, cookie: u64) {
        let pod = lock(&self.pods).get(&cookie, 0);
        // Not there is as well as gone.
        let _ = lock(&self.pods).remove(&cookie);
        if let Ok(pod) = pod {
            self.retain_here(|owner| owner != pod.owner);
        }
    }

    pub fn pod_programs(&self) -> PodPrograms<'_> {
        PodPrograms { dir: &self.dir, loader: &self.loader }
    }

    /// Marks a socket of the agent's own: its connects are not captured, and what it accepts is
    /// known as the agent's.
    pub fn mark_own(&self, owner: u32, socket: &impl AsRawFd) -> io::Result<()> {
        let own = Sock { kind: sock_kind::AGENT, owner, ..Sock::default() };
        sys::socket_storage_set(self.socks_fd(), socket.as_raw_fd(), &own)
    }

    /// Where the application at the other end of an accepted socket was going, if it was captured.
    pub fn original_destination(&self, socket: &impl AsRawFd) -> Option<Asked> {
        let sock: Sock = sys::socket_storage_get(self.socks_fd(), socket.as_raw_fd()).ok()?;
        let port = u16::try_from(sock.port & !ELSEWHERE).unwrap_or(0);
        (sock.kind == sock_kind::HANDED_OVER).then(|| Asked {
            address: address(&sock.destination, port),
            elsewhere: sock.port & ELSEWHERE != 0,
        })
    }

    /// Lets connects go by `way`, past the agent. One that finds no room goes through it.
    pub fn set_way(&self, key: WayKey, way: Way) {
        let _ = lock(&self.ways).insert(key, way, 0);
    }

    pub fn remove_way(&self, key: &WayKey) {
        let _ = lock(&self.ways).remove(key);
    }

    pub fn clear_ways(&self) {
        let mut ways = lock(&self.ways);
        let all: Vec<WayKey> = ways.keys().filter_map(Result::ok).collect();
        for key in all {
            let _ = ways.remove(&key);
        }
    }

    /// Ways and what came by them hold for `lease` from now on.
    pub fn renew_lease(&self, lease: Duration) {
        let until = sys::monotonic().saturating_add(lease);
        let until = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        let _ = lock(&self.lease).set(lease::UNTIL, until, 0);
    }

    /// From here on ways of other generations are not used.
    pub fn set_generation(&self, generation: u64) {
        let _ = lock(&self.lease).set(lease::GENERATION, generation, 0);
    }

    pub fn generation(&self) -> u64 {
        lock(&self.lease).get(&lease::GENERATION, 0).unwrap_or_default()
    }

    /// Whether a connection from `from` to the pod's `to` is under way that the kernel programs know of.
    pub fn is_announced(&self, owner: u32, from: SocketAddr, to: SocketAddr) -> bool {
        self.announced.get(&flow_key(owner, from, to), 0).is_ok()
    }

    /// What there is at `server`, of the pod `owner`, of a connection that came from `client`.
    pub fn admitted(&self, owner: u32, client: SocketAddr, server: SocketAddr) -> Admitted {
        match self.announced.get(&flow_key(owner, client, server), 0) {
            Ok(flow) if flow_kind::is_past_the_agent(flow.kind) => {
                Admitted::PastTheAgent(flow.cookie)
            }
            Ok(_) => Admitted::Otherwise,
            Err(_) if self.is_announced(owner, server, client) => Admitted::Otherwise,
            Err(_) => Admitted::Nothing,
        }
    }

    /// Reads the news from where whoever read them before has stopped.
    pub fn take_up_news(&self) -> anyhow::Result<()> {
        *lock(&self.events) = news(&self.dir)?;
        Ok(())
    }

    /// Can be read from when news are left unread for too long.
    pub fn news_descriptor(&self) -> io::Result<OwnedFd> {
        lock(&self.events).as_fd().try_clone_to_owned()
    }

    /// What became of connections past the agent since this was asked last.
    pub fn news(&self, mut each: impl FnMut(&Event)) {
        let mut events = lock(&self.events);
        while let Some(item) = events.next() {
            if let Some(event) = sys::event(&item) {
                each(&event);
            }
        }
    }

    /// Connections past the agent that are open: as the ends that connected see them, the owners that they lead to,
    /// and how they were announced there.
    pub fn direct_flows(&self) -> Vec<(FlowKey, u32, Flow)> {
        let admitted = |(_, flow): &(FlowKey, Flow)| flow_kind::is_past_the_agent(flow.kind);
        let flows = self.announced.iter().filter_map(Result::ok).filter(admitted);
        flows.map(|(key, flow)| (FlowKey { owner: flow.peer, ..key }, key.owner, flow)).collect()
    }

    /// Gives new connections of the pod to `socket`.
    pub fn set_listener(&self, key: ListenerKey, socket: &impl AsRawFd) -> anyhow::Result<()> {
        lock(&self.listeners).insert(key, socket.as_raw_fd(), 0).map_err(|e| {
            anyhow!("the kernel's map of listeners took no entry ({e}); it has room for 32768")
        })
    }

    /// Lets connections that are older than the enrolment go on.
    pub fn allow_earlier(&self, owner: u32, s: &TcpSocket) -> anyhow::Result<()> {
        let kind = if s.connecting { flow_kind::EARLIER_SYN } else { flow_kind::EARLIER };
        let flow = Flow { kind, ..Flow::default() };
        lock(&self.earlier).insert(flow_key(owner, s.local, s.remote), flow, 0).map_err(|e| {
            anyhow!(
                "the kernel's map of earlier connections took no entry ({e}); it has room for 65536"
            )
        })
    }

    /// How many of a pod's earlier connections there is room for: as many as are left for whoever comes
    /// after it.
    pub fn room_for_earlier(&self) -> usize {
        const ALL: usize = 65536;
        ALL.saturating_sub(lock(&self.earlier).keys().count()) / 2
    }

    /// Forgets earlier connections of the pod for which `alive` is false.
    pub fn retain_earlier(
        &self,
        owner: u32,
        alive: impl Fn(SocketAddr, SocketAddr) -> bool,
    ) -> usize {
        let mut earlier = lock(&self.earlier);
        let keys: Vec<FlowKey> =
            earlier.keys().filter_map(Result::ok).filter(|k| k.owner == owner).collect();
        let mut left = 0;
        for k in keys {
            if alive(
                SocketAddr::new(ip(&k.local), k.local_port),
                SocketAddr::new(ip(&k.remote), k.remote_port),
            ) {
                left += 1;
            } else {
                let _ = earlier.remove(&k);
            }
        }
        left
    }

    fn retain_here(&self, stays: impl Fn(u32) -> bool) {
        let mut here = lock(&self.here);
        let gone: Vec<Addr> = here
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, o)| !stays(*o))
            .map(|(a, _)| a)
            .collect();
        for address in gone {
            let _ = here.remove(&address);
        }
    }

    /// Drops what the kernel kept for pods that are not enrolled any more.
    pub fn forget_except(&self, owners: &std::collections::HashSet<u32>) {
        self.retain_here(|owner| owners.contains(&owner));
        let mut flows = lock(&self.flows);
        let (kept, stale): (Vec<FlowKey>, Vec<FlowKey>) =
            flows.keys().filter_map(Result::ok).partition(|k| owners.contains(&k.owner));
        if !stale.is_empty() {
            for k in stale {
                let _ = flows.remove(&k);
            }
            // Nearly exact is good enough: the kernel counts on from here, within a margin, and takes less than
            // none for none.
            let _ = lock(&self.in_use).set(0, kept.len() as u64, 0);
        }
        drop(flows);
        let mut earlier = lock(&self.earlier);
        let stale: Vec<FlowKey> =
            earlier.keys().filter_map(Result::ok).filter(|k| !owners.contains(&k.owner)).collect();
        for k in stale {
            let _ = earlier.remove(&k);
        }
        drop(earlier);
        let mut counts = lock(&self.counts);
        let stale: Vec<u32> =
            counts.keys().filter_map(Result::ok).filter(|o| !owners.contains(o)).collect();
        for o in stale {
            let _ = counts.remove(&o);
            let _ = lock(&self.own).remove(&o);
        }
        drop(counts);
        let mut servers = lock(&self.servers);
        let stale: Vec<ServerKey> =
            servers.keys().filter_map(Result::ok).filter(|k| !owners.contains(&k.owner)).collect();
        for k in stale {
            let _ = servers.remove(&k);
        }
    }

    /// Whether connections from these addresses in plaintext are refused in the kernel: those of
    /// workloads that come by HBONE. A table that is full refuses fewer of them; the agent itself
    /// looks at each that is left.
    pub fn set_meshed(&self, changes: &[(IpAddr, bool)]) {
        let mut meshed = lock(&self.meshed);
        let mut full = 0usize;
        for (ip, is) in changes {
            if !is {
                let _ = meshed.remove(&addr(*ip));
            } else if meshed.insert(addr(*ip), 1, 0).is_err() {
                full += 1;
            }
        }
        if full > 0 {
            tracing::warn!(
                addresses = full,
                "the kernel's map of addresses of the mesh is full (262144)"
            );
        }
    }

    /// Forgets addresses that an earlier agent has left, and that are no longer so.
    pub fn retain_meshed(&self, still: impl Fn(IpAddr) -> bool) {
        let mut meshed = lock(&self.meshed);
        let gone: Vec<Addr> =
            meshed.keys().filter_map(Result::ok).filter(|a| !still(ip(a))).collect();
        for a in gone {
            let _ = meshed.remove(&a);
        }
    }

    /// The name server that has this slot at the pod.
    pub fn name_server(&self, owner: u32, slot: u32) -> Option<IpAddr> {
        lock(&self.servers).get(&ServerKey { owner, slot }, 0).ok().map(|a| ip(&a))
    }

    pub fn forget_name_servers(&self, owner: u32) {
        let mut servers = lock(&self.servers);
        for slot in 0..DNS_SLOTS {
            let _ = servers.remove(&ServerKey { owner, slot });
        }
    }

    pub fn start_counting(&self, owner: u32) -> anyhow::Result<()> {
        let mut own = lock(&self.own);
        if own.get(&owner, 0).is_err() {
            own.insert(owner, 0, 0).context("the kernel's map of pods' shares took no entry")?;
        }
        drop(own);
        let mut counts = lock(&self.counts);
        if counts.get(&owner, 0).is_ok() {
            return Ok(());
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| e)?;
        let zero = aya::maps::PerCpuValues::try_from(vec![Counts::default(); cpus])?;
        counts.insert(owner, zero, 0).context("the kernel's map of counters took no entry")
    }

    pub fn stop_counting(&self, owner: u32) {
        let _ = lock(&self.counts).remove(&owner);
        let _ = lock(&self.own).remove(&owner);
    }

    /// What the kernel has counted for the pod, over all CPUs.
    pub fn counts(&self, owner: u32) -> Counts {
        let mut sum = Counts::default();
        if let Ok(per_cpu) = lock(&self.counts).get(&owner, 0) {
            for c in per_cpu.iter() {
                sum += c;
            }
        }
        sum
    }

    fn socks_fd(&self) -> BorrowedFd<'_> {
        self.socks.fd().as_fd()
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kernel's news, as it has them: they may be an earlier agent's, and of another size than this one's would be.
fn news(dir: &Path) -> anyhow::Result<RingBuf<MapData>> {
    let map = Map::RingBuf(MapData::from_pin(dir.join("maps/EVENTS"))?);
    Ok(RingBuf::try_from(map)?)
}

/// Pinned state of another version is not read: its meaning may differ.
fn refuse_other_versions(bpffs: &Path) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(bpffs) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name
            .strip_prefix('v')
            .is_some_and(|v| v.parse() != Ok(ABI_VERSION) && v.parse::<u32>().is_ok())
        {
            return Err(anyhow!(
                "{} holds capture state of another version ({name}, this agent is v{ABI_VERSION}). \
                 Enrolled pods stay closed meanwhile. Remove it with \
                 `culvert-agent detach --bpffs {}` of that version, then start this agent and enrol \
                 the pods again",
                bpffs.display(),
                bpffs.display()
            ));
        }
    }
    Ok(())
}

/// Whether there is something to take off.
pub fn holds_state(bpffs: &Path) -> bool {
    bpffs.join(format!("v{ABI_VERSION}")).exists()
}

/// Takes capture and guard off the node: pods are as before, unmeshed.
pub fn detach(bpffs: &Path) -> anyhow::Result<()> {
    let dir = bpffs.join(format!("v{ABI_VERSION}"));
    if !dir.exists() {
        return Err(anyhow!("{} holds no capture state of this version", bpffs.display()));
    }
    // Hooks first: maps go when the last program that uses them has gone.
    for sub in ["links", "pods", "maps"] {
        for entry in fs::read_dir(dir.join(sub)).into_iter().flatten().flatten() {
            fs::remove_file(entry.path())
                .with_context(|| format!("removing {}", entry.path().display()))?;
        }
        let _ = fs::remove_dir(dir.join(sub));
    }
    fs::remove_dir(&dir).with_context(|| format!("removing {}", dir.display()))
}

pub fn addr(ip: IpAddr) -> Addr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => Addr::from_octets(v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => Addr::from_octets(v6.octets()),
    }
}

pub fn address(ip_of: &Addr, port: u16) -> SocketAddr {
    SocketAddr::new(ip(ip_of), port)
}

fn ip(a: &Addr) -> IpAddr {
    IpAddr::from(a.octets()).to_canonical()
}

fn flow_key(owner: u32, local: SocketAddr, remote: SocketAddr) -> FlowKey {
    FlowKey {
        owner,
        protocol: IPPROTO_TCP,
        local: addr(local.ip()),
        remote: addr(remote.ip()),
        local_port: local.port(),
        remote_port: remote.port(),
    }
}
