//! A node: a namespace with a bridge for its pods and a wire to the other nodes.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};

use crate::capture::Capture;
use crate::dns::Resolver;
use crate::pod::Pod;
use crate::process::{Placement, Proc, numbered};
use crate::puppet::Puppet;
use crate::service::Services;
use crate::state::Shared;
use crate::{cgroup, netns, tools};

/// A node of the cluster. Clones are handles to the same node.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    name: String,
    number: u8,
    /// Pods by the last part of their address.
    pods: Mutex<BTreeMap<u8, Pod>>,
    resolver: Mutex<Option<Resolver>>,
}

impl Node {
    pub(crate) fn create(shared: &Arc<Shared>, name: &str) -> Result<Self> {
        let mut state = shared.state();
        ensure!(valid_name(name), "{name:?} is no name for a node: letters, digits and dashes");
        ensure!(state.taken.insert(name.to_owned()), "the name is taken");
        let number = u8::try_from(state.nodes.len() + 1)?;
        ensure!(number < 250, "too many nodes");
        let node = Self(Arc::new(Inner {
            shared: shared.clone(),
            name: name.to_owned(),
            number,
            pods: Mutex::default(),
            resolver: Mutex::default(),
        }));
        node.make_places()?;
        node.wire()?;
        for other in &state.nodes {
            tools::ip(&other.netns_name(), &node.routes_to_me())?;
            tools::ip(&node.netns_name(), &other.routes_to_me())?;
        }
        tools::ip(&shared.netns_name("fabric"), &node.routes_to_me())?;
        if !state.services.is_empty() {
            node.install_services(&state.services)?;
        }
        let addresses = [node.gateway4().into(), node.gateway6().into()];
        let resolver = Resolver::start(&node.netns_path(), &addresses, shared.names.clone())?;
        *node.0.resolver.lock().unwrap() = Some(resolver);
        state.nodes.push(node.clone());
        Ok(node)
    }

    fn make_places(&self) -> Result<()> {
        fs::create_dir_all(self.dir())?;
        fs::create_dir_all(self.bpffs())?;
        for child in ["agent", "host", "pods"] {
            cgroup::create(&self.cgroup().join(child))?;
        }
        self.0.shared.remember(netns::create(&self.netns_name())?);
        netns::prepare(&self.netns_path(), netns::Role::Router)
    }

    fn wire(&self) -> Result<()> {
        let (i, fabric) = (self.0.number, self.0.shared.netns_name("fabric"));
        let name = self.netns_name();
        tools::ip(
            &fabric,
            &format!(
                "link add node{i} type veth peer name eth0 address 02:18:00:00:00:{i:02x} netns {name}
                 link set node{i} master br0 up"
            ),
        )?;
        // The bridge's own MAC is fixed, or it would change with each pod and stale neighbour entries would follow.
        tools::ip(
            &name,
            &format!(
                "link set lo up
                 link set eth0 up
                 addr add {}/24 dev eth0
                 addr add {}/64 dev eth0 nodad
                 route add default via 172.18.0.254
                 route add ::/0 via fd18::fe
                 link add br0 address 02:cb:00:00:00:{i:02x} type bridge mcast_snooping 0
                 link set br0 up
                 addr add {}/24 dev br0
                 addr add {}/64 dev br0 nodad",
                self.ipv4(),
                self.ipv6(),
                self.gateway4(),
                self.gateway6(),
            ),
        )
    }

    fn routes_to_me(&self) -> String {
        let i = self.0.number;
        format!(
            "route add 10.10.{i}.0/24 via {}\nroute add fd10:10:{i:x}::/64 via {}\n",
            self.ipv4(),
            self.ipv6()
        )
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The node's number, from 1: the `i` in 10.10.i.0/24.
    pub fn number(&self) -> u8 {
        self.0.number
    }

    pub fn netns_path(&self) -> PathBuf {
        netns::path(&self.netns_name())
    }

    /// The name that `ip netns exec` knows.
    pub fn netns_name(&self) -> String {
        self.0.shared.netns_name(&self.0.name)
    }

    /// Its address on the wire between the nodes.
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 18, 0, self.0.number)
    }

    /// Its address on the wire between the nodes.
    pub fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd18, 0, 0, 0, 0, 0, 0, self.0.number.into())
    }

    /// Its address on the pods' bridge: their gateway and resolver.
    pub fn gateway4(&self) -> Ipv4Addr {
        self.pod_ipv4(1)
    }

    /// Its address on the pods' bridge: their gateway and resolver.
    pub fn gateway6(&self) -> Ipv6Addr {
        self.pod_ipv6(1)
    }

    pub(crate) fn pod_ipv4(&self, k: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 10, self.0.number, k)
    }

    pub(crate) fn pod_ipv6(&self, k: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd10, 0x10, self.0.number.into(), 0, 0, 0, 0, k.into())
    }

    /// The MAC address of its end of the pods' bridge.
    pub fn mac(&self) -> crate::forge::Mac {
        [0x02, 0xcb, 0, 0, 0, self.number()]
    }

    /// The node's root cgroup, with `agent`, `host` and `pods` below: capture is attached here.
    pub fn cgroup(&self) -> PathBuf {
        self.0.shared.cgroup.join(&self.0.name)
    }

    /// The node's part of the bed's bpffs.
    pub fn bpffs(&self) -> PathBuf {
        self.0.shared.bpffs().join(&self.0.name)
    }

    /// The node's work dir; the output of its processes is here.
    pub fn dir(&self) -> PathBuf {
        self.0.shared.dir.join(&self.0.name)
    }

    /// Runs a program on the node: its namespace, cgroup `agent`, the host's mounts.
    pub fn spawn(&self, cmd: Command) -> Result<Proc> {
        Proc::spawn(cmd, &self.placement("agent"), &self.dir(), &self.0.name)
    }

    /// The same for what a shell or a wrapper starts: the files of its output carry this name, too.
    pub fn spawn_named(&self, cmd: Command, name: &str) -> Result<Proc> {
        let label = format!("{}-{name}", self.0.name);
        Proc::spawn(cmd, &self.placement("agent"), &self.dir(), &label)
    }

    /// Where a program of the node runs, for callers that start it themselves: `cgroup` is `agent` or `host`.
    pub fn placement(&self, cgroup: &str) -> Placement {
        Placement {
            cgroup: self.cgroup().join(cgroup),
            netns: Some(self.netns_path()),
            mntns: None,
        }
    }

    /// A puppet among the node's host processes (cgroup `host`); it ends with its last handle.
    pub fn puppet(&self) -> Result<Puppet> {
        Puppet::start(&self.placement("host"), &self.dir(), &self.0.name)
    }

    /// Runs `f` on a thread in the node's network namespace.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        netns::inside(&self.netns_path(), f)
    }

    /// A pod in namespace `default`, at the first free address.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        Pod::create(self, "default", name, None)
    }

    /// A pod in the given Kubernetes namespace, at the first free address.
    pub fn pod_in(&self, namespace: &str, name: &str) -> Result<Pod> {
        Pod::create(self, namespace, name, None)
    }

    /// A pod in namespace `default` at 10.10.i.k, for `k` from 2 to 254.
    pub fn pod_at(&self, name: &str, k: u8) -> Result<Pod> {
        Pod::create(self, "default", name, Some(k))
    }

    /// A pod in the given Kubernetes namespace at 10.10.i.k.
    pub fn pod_in_at(&self, namespace: &str, name: &str, k: u8) -> Result<Pod> {
        Pod::create(self, namespace, name, Some(k))
    }

    /// The pods that run on it.
    pub fn pods(&self) -> Vec<Pod> {
        self.registry().values().cloned().collect()
    }

    /// Records the link to the other nodes.
    pub fn capture_link(&self, name: &str) -> Result<Capture> {
        let file = numbered(&self.dir(), &self.0.name, name).with_extension("pcapng");
        Capture::start(&self.netns_path(), "eth0", &file)
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, BTreeMap<u8, Pod>> {
        self.0.pods.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    pub(crate) fn install_services(&self, services: &Services) -> Result<()> {
        tools::nft(&self.netns_name(), &services.ruleset(self.0.number))
            .with_context(|| format!("cannot install services on {}", self.0.name))
    }

    pub(crate) fn stop_resolver(&self) {
        drop(self.0.resolver.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
    }

    /// Waits for the pods' processes, which the reaper has killed, and lets go of the pods.
    pub(crate) fn collect(&self) {
        let pods = std::mem::take(&mut *self.registry());
        for pod in pods.values() {
            pod.collect();
        }
    }
}

/// Names become file names, parts of a cgroup path and words of `ip` commands.
pub(crate) fn valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({} {})", self.0.name, self.ipv4())
    }
}
