//! A pod: a network and a mount namespace, a cgroup, an address, and a process that holds them.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::capture::Capture;
use crate::node::{Node, valid_name};
use crate::process::{Placement, Proc, eventually, numbered};
use crate::puppet::{self, Puppet};
use crate::{cgroup, netns, tools};

/// A pod. Clones are handles to the same pod, which lives until [`Pod::delete`] or the end of the bed.
#[derive(Clone)]
pub struct Pod(Arc<Inner>);

struct Inner {
    node: Node,
    namespace: String,
    name: String,
    /// The last part of its address.
    k: u8,
    host_ifindex: u32,
    pid: i32,
    pause: Mutex<Option<Child>>,
    puppet: Mutex<Option<Puppet>>,
}

/// A pod that is being made: where its parts go.
struct Plan<'a> {
    node: &'a Node,
    namespace: &'a str,
    name: &'a str,
    key: String,
    k: u8,
}

impl Pod {
    pub(crate) fn create(node: &Node, namespace: &str, name: &str, k: Option<u8>) -> Result<Self> {
        ensure!(
            valid_name(name) && valid_name(namespace),
            "{namespace}/{name} is no name for a pod"
        );
        let key = key(namespace, name);
        ensure!(node.shared().state().taken.insert(key.clone()), "the name {key} is taken");
        // Held to the end, so that two pods do not take the same address.
        let mut registry = node.registry();
        let k = match k {
            Some(k) => k,
            None => (2..=254).find(|k| !registry.contains_key(k)).context("the node is full")?,
        };
        ensure!((2..=254).contains(&k), "10.10.i.{k} is no address for a pod");
        ensure!(!registry.contains_key(&k), "{} is in use", node.pod_ipv4(k));
        let plan = Plan { node, namespace, name, key, k };
        let pod = plan.build().with_context(|| format!("cannot create pod {namespace}/{name}"))?;
        registry.insert(k, pod.clone());
        Ok(pod)
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    pub fn node(&self) -> &Node {
        &self.0.node
    }

    pub fn ipv4(&self) -> Ipv4Addr {
        self.0.node.pod_ipv4(self.0.k)
    }

    pub fn ipv6(&self) -> Ipv6Addr {
        self.0.node.pod_ipv6(self.0.k)
    }

    pub fn netns_path(&self) -> PathBuf {
        netns::path(&self.netns_name())
    }

    /// The name that `ip netns exec` knows.
    pub fn netns_name(&self) -> String {
        self.0.node.shared().netns_name(&key(&self.0.namespace, &self.0.name))
    }

    /// The node's end of the pod's veth pair.
    pub fn host_ifname(&self) -> String {
        host_ifname(self.0.k)
    }

    pub fn host_ifindex(&self) -> u32 {
        self.0.host_ifindex
    }

    pub fn cgroup(&self) -> PathBuf {
        self.0.node.cgroup().join("pods").join(key(&self.0.namespace, &self.0.name))
    }

    /// The process that holds the pod's namespaces.
    pub fn pid(&self) -> i32 {
        self.0.pid
    }

    /// Where a program of the pod runs, for callers that start it themselves.
    pub fn placement(&self) -> Placement {
        Placement {
            cgroup: self.cgroup(),
            netns: Some(self.netns_path()),
            mntns: Some(format!("/proc/{}/ns/mnt", self.0.pid).into()),
        }
    }

    /// Runs a program in the pod.
    pub fn spawn(&self, cmd: Command) -> Result<Proc> {
        Proc::spawn(
            cmd,
            &self.placement(),
            &self.0.node.dir(),
            &key(&self.0.namespace, &self.0.name),
        )
    }

    /// The pod's puppet, started at the first call (and again, should it have died). It lives as long as the pod.
    pub fn puppet(&self) -> Result<Puppet> {
        let mut slot = self.0.puppet.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(puppet) = slot.as_ref().filter(|p| p.is_alive()) {
            return Ok(puppet.clone());
        }
        let puppet = self.new_puppet()?;
        *slot = Some(puppet.clone());
        Ok(puppet)
    }

    /// One more puppet: a process of its own, which ends with its last handle.
    pub fn new_puppet(&self) -> Result<Puppet> {
        Puppet::start(&self.placement(), &self.0.node.dir(), &key(&self.0.namespace, &self.0.name))
    }

    /// A puppet in the pod's network and mount namespace, and in a cgroup beside those of the nodes: one that no hook of
    /// the node's cgroup sees. It ends with its last handle.
    pub fn stray_puppet(&self) -> Result<Puppet> {
        let cgroup = self.0.node.cgroup().parent().context("no cgroup of the bed")?.join("stray");
        cgroup::create(&cgroup)?;
        let place = Placement { cgroup, ..self.placement() };
        Puppet::start(&place, &self.0.node.dir(), &key(&self.0.namespace, &self.0.name))
    }

    /// The MAC address of its interface.
    pub fn mac(&self) -> crate::forge::Mac {
        [0x02, 0x10, 0x10, self.0.node.number(), 0, self.0.k]
    }

    /// Runs `f` on a thread in the pod's network namespace (and outside its cgroup).
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        netns::inside(&self.netns_path(), f)
    }

    /// Sets `net.*` in the pod.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        self.inside(|| netns::set(path, value))
    }

    /// A counter of the pod's network stack: `TCPSynRetrans`, or with its group where the name alone is ambiguous,
    /// `Tcp.RetransSegs`, `IpExt.InOctets`.
    pub fn netstat(&self, key: &str) -> Result<u64> {
        let (group, name) = match key.split_once(['.', ' ']) {
            Some((group, name)) => (Some(group), name),
            None => (None, key),
        };
        for file in ["netstat", "snmp"] {
            let text = fs::read_to_string(format!("/proc/{}/net/{file}", self.0.pid))?;
            if let Some(value) = counter(&text, group, name) {
                return Ok(value);
            }
        }
        bail!("no counter {key}")
    }

    /// Records the node's end of the pod's veth pair. What a program there drops on ingress is still seen.
    pub fn capture_host_end(&self, name: &str) -> Result<Capture> {
        let label = key(&self.0.namespace, &self.0.name);
        let file = numbered(&self.0.node.dir(), &label, name).with_extension("pcapng");
        Capture::start(&self.0.node.netns_path(), &self.host_ifname(), &file)
    }

    /// Kills all that runs in the pod, and removes its veth pair, namespaces and cgroup. Its name and address are
    /// free when this returns.
    pub fn delete(self) -> Result<()> {
        let mut registry = self.0.node.registry();
        ensure!(registry.contains_key(&self.0.k), "{} is gone already", self.0.name);
        cgroup::destroy(&self.cgroup())?;
        self.collect();
        tools::ip(&self.0.node.netns_name(), &format!("link del {}", self.host_ifname()))?;
        let netns = netns::id(&self.netns_path())?;
        netns::remove(&self.netns_name())?;
        self.0.node.shared().forget(&netns);
        registry.remove(&self.0.k);
        drop(registry);
        let key = key(&self.0.namespace, &self.0.name);
        self.0.node.shared().state().taken.remove(&key);
        Ok(())
    }

    /// Waits for the pod's own processes, once they have been killed.
    pub(crate) fn collect(&self) {
        drop(self.0.puppet.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
        if let Some(mut pause) = self.pause().take() {
            // Already dead, unless the reaper failed, which it has reported.
            let _ = pause.kill();
            let _ = pause.wait();
        }
    }

    fn pause(&self) -> MutexGuard<'_, Option<Child>> {
        self.0.pause.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Plan<'_> {
    fn build(self) -> Result<Pod> {
        let shared = self.node.shared();
        let netns_name = shared.netns_name(&self.key);
        let cgroup = self.node.cgroup().join("pods").join(&self.key);
        cgroup::create(&cgroup)?;
        shared.remember(netns::create(&netns_name)?);
        netns::prepare(&netns::path(&netns_name), netns::Role::Pod)?;
        self.wire(&netns_name)?;
        let ifname = host_ifname(self.k);
        let host_ifindex =
            self.node.inside(|| Ok(nix::net::if_::if_nametoindex(ifname.as_str())?))?;
        let place = Placement { cgroup, netns: Some(netns::path(&netns_name)), mntns: None };
        let pause = self.hold(&place)?;
        Ok(Pod(Arc::new(Inner {
            node: self.node.clone(),
            namespace: self.namespace.to_owned(),
            name: self.name.to_owned(),
            k: self.k,
            host_ifindex,
            pid: i32::try_from(pause.id())?,
            pause: Mutex::new(Some(pause)),
            puppet: Mutex::default(),
        })))
    }

    fn wire(&self, pod: &str) -> Result<()> {
        let (node, i, k) = (self.node, self.node.number(), self.k);
        let veth = host_ifname(k);
        // The MAC follows from the address: a pod that takes over another's address meets no stale neighbour entries.
        tools::ip(
            &node.netns_name(),
            &format!(
                "link add {veth} type veth peer name eth0 address 02:10:10:{i:02x}:00:{k:02x} netns {pod}
                 link set {veth} master br0
                 link set dev {veth} type bridge_slave hairpin on
                 link set {veth} up"
            ),
        )?;
        tools::ip(
            pod,
            &format!(
                "link set lo up
                 link set eth0 up
                 addr add {}/24 dev eth0
                 addr add {}/64 dev eth0 nodad
                 route add default via {}
                 route add ::/0 via {}",
                node.pod_ipv4(k),
                node.pod_ipv6(k),
                node.gateway4(),
                node.gateway6(),
            ),
        )
    }

    /// Starts the process that holds the pod's namespaces, with its own resolver configuration.
    fn hold(&self, place: &Placement) -> Result<Child> {
        let dir = self.node.dir();
        let file = |what: &str| dir.join(format!("{}.{what}", self.key));
        fs::write(
            file("resolv.conf"),
            format!(
                "nameserver {}\nsearch {}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
                self.node.gateway4(),
                self.namespace
            ),
        )?;
        fs::write(
            file("hosts"),
            format!(
                "127.0.0.1 localhost\n::1 localhost ip6-localhost\n{} {name}\n{} {name}\n",
                self.node.pod_ipv4(self.k),
                self.node.pod_ipv6(self.k),
                name = self.name
            ),
        )?;
        // Without it a host whose names come from a local daemon would ask that one, not the pod's resolver.
        fs::write(file("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")?;
        let mut cmd = Command::new(puppet::binary()?);
        cmd.arg("pause");
        for what in ["resolv.conf", "hosts", "nsswitch.conf"] {
            cmd.arg(file(what)).arg(format!("/etc/{what}"));
        }
        let ready = file("ready");
        cmd.env("BED_READY", &ready);
        cmd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(file("pause.err"))?);
        // From an earlier pod of this name.
        let _ = fs::remove_file(&ready);
        place.apply(&mut cmd)?;
        let mut pause = cmd.spawn().context("cannot start the pod's pause process")?;
        eventually(Duration::from_secs(30), || {
            if let Some(status) = pause.try_wait()? {
                // Not worth waiting any longer; the caller sees it by the missing file.
                return Ok(Some(status));
            }
            ensure!(ready.exists(), "the pause process is not ready");
            Ok(None)
        })
        .and_then(|ended| match ended {
            None => Ok(()),
            Some(status) => bail!(
                "the pause process ended: {status}\n{}",
                fs::read_to_string(file("pause.err")).unwrap_or_default()
            ),
        })?;
        Ok(pause)
    }
}

/// The pod's name among namespaces and cgroups. A pod of the same name may exist in every Kubernetes namespace.
fn key(namespace: &str, name: &str) -> String {
    if namespace == "default" { name.to_owned() } else { format!("{namespace}.{name}") }
}

fn host_ifname(k: u8) -> String {
    format!("veth{k}")
}

/// Finds a counter in the format of /proc/net/netstat: a line of names, then a line of values.
fn counter(text: &str, group: Option<&str>, name: &str) -> Option<u64> {
    let lines: Vec<&str> = text.lines().collect();
    lines.chunks_exact(2).find_map(|pair| {
        let (names, values) = (pair.first()?, pair.last()?);
        let (found, names) = names.split_once(": ")?;
        let (_, values) = values.split_once(": ")?;
        if group.is_some_and(|g| g != found) {
            return None;
        }
        let at = names.split(' ').position(|n| n == name)?;
        values.split(' ').nth(at)?.parse().ok()
    })
}

impl std::fmt::Debug for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pod({}/{} {})", self.0.namespace, self.0.name, self.ipv4())
    }
}

#[cfg(test)]
mod tests {
    use super::counter;

    #[test]
    fn counters_are_found_by_name_and_group() {
        let text = "TcpExt: A B\nTcpExt: 1 2\nIpExt: B C\nIpExt: 3 4\n";
        assert_eq!(counter(text, None, "B"), Some(2));
        assert_eq!(counter(text, Some("IpExt"), "B"), Some(3));
        assert_eq!(counter(text, None, "D"), None);
    }
}
