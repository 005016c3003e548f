//! A bed: one miniature cluster, from its first namespace to proof that nothing of it is left.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};

use crate::node::Node;
use crate::process::{Placement, Proc};
use crate::puppet::Puppet;
use crate::reaper::Reaper;
use crate::service::Backend;
use crate::state::{Shared, State};
use crate::{cgroup, netns, tools};

/// Where every bed keeps its files.
pub(crate) const RUN_DIR: &str = "/run/culvert-bed";

/// One miniature cluster. Dropping it removes everything it made, and panics if something stayed behind.
pub struct Bed {
    shared: Arc<Shared>,
    /// Not in `shared`: nodes and pods that outlive the bed must not keep the cluster alive.
    reaper: Option<Reaper>,
}

impl Bed {
    /// Builds an empty cluster: a fabric namespace, a cgroup, a bpffs and a work dir, all named after the bed's id.
    ///
    /// # Errors
    /// When not root, when cgroup2 is not mounted, or when the kernel refuses a namespace or a mount.
    pub fn new(name: &str) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "a bed needs root: it makes namespaces and mounts"
        );
        let id = unique_id(name);
        let dir = Path::new(RUN_DIR).join(&id);
        let cgroup = cgroup::mount_point()?.join(format!("culvert-bed-{id}"));

        // First of all, so that whatever fails below is undone as well.
        let reaper = Reaper::spawn(&id, &cgroup, &dir)?;
        let shared = Arc::new(Shared::new(id, dir, cgroup));
        let bed = Self { shared, reaper: Some(reaper) };
        bed.build().with_context(|| format!("cannot build bed {}", bed.id()))?;
        Ok(bed)
    }

    fn build(&self) -> Result<()> {
        let shared = &*self.shared;
        fs::create_dir_all(shared.bpffs())?;
        mount(Some("bpf"), &shared.bpffs(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("cannot mount a bpffs")?;
        cgroup::create(&shared.cgroup.join("fabric"))?;

        let fabric = shared.netns_name("fabric");
        shared.remember(netns::create(&fabric)?);
        netns::prepare(&netns::path(&fabric), netns::Role::Router)?;
        tools::ip(
            &fabric,
            "link set lo up
             link add br0 address 02:cb:ff:00:00:fe type bridge mcast_snooping 0
             link set br0 up
             addr add 172.18.0.254/24 dev br0
             addr add fd18::fe/64 dev br0 nodad",
        )
    }

    /// Where the bed keeps its files: `/run/culvert-bed/<id>`.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// The name that everything of this bed carries.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// The bed's own bpffs. What is pinned there goes with the bed.
    pub fn bpffs(&self) -> PathBuf {
        self.shared.bpffs()
    }

    /// The bed's cgroup, above those of its nodes.
    pub fn cgroup(&self) -> PathBuf {
        self.shared.cgroup.clone()
    }

    /// The namespace between the nodes, where clients from outside the cluster live (172.18.0.254, fd18::fe).
    pub fn fabric_netns_path(&self) -> PathBuf {
        netns::path(&self.shared.netns_name("fabric"))
    }

    /// Runs a program outside every node: in the fabric's namespace.
    pub fn spawn_fabric(&self, cmd: Command) -> Result<Proc> {
        Proc::spawn(cmd, &self.fabric_placement(), &self.shared.dir, "fabric")
    }

    /// A puppet outside every node; it ends with its last handle.
    pub fn fabric_puppet(&self) -> Result<Puppet> {
        Puppet::start(&self.fabric_placement(), &self.shared.dir, "fabric")
    }

    /// Where a program outside every node runs, for callers that start it themselves.
    pub fn fabric_placement(&self) -> Placement {
        Placement {
            cgroup: self.shared.cgroup.join("fabric"),
            netns: Some(self.fabric_netns_path()),
            mntns: None,
        }
    }

    /// Adds a node, connected to all that exist. Its number is the order of creation, from 1.
    pub fn node(&self, name: &str) -> Result<Node> {
        Node::create(&self.shared, name).with_context(|| format!("cannot create node {name}"))
    }

    /// Makes a virtual address for pods that are not enrolled, spread at random over `backends`, on every node that
    /// exists or will. Called again for the same address and port it replaces; without backends it removes.
    pub fn service(
        &self,
        vip4: Ipv4Addr,
        vip6: Option<Ipv6Addr>,
        port: u16,
        backends: &[(Ipv4Addr, Option<Ipv6Addr>, u16)],
    ) -> Result<()> {
        let mut state = self.shared.state();
        let backends: Vec<Backend> =
            backends.iter().map(|&(v4, v6, port)| Backend { v4, v6, port }).collect();
        state.services.set(vip4, vip6, port, backends);
        state.install_services()
    }

    /// Registers a fully qualified name with every node's resolver, replacing what it had; no addresses unregister it.
    pub fn dns(&self, name: &str, addrs: &[IpAddr]) {
        self.shared.names.set(name, addrs);
    }

    /// Removes everything, and says what could not be removed.
    pub fn close(mut self) -> Result<()> {
        self.shut()
    }

    fn shut(&mut self) -> Result<()> {
        let Some(reaper) = self.reaper.take() else { return Ok(()) };
        let state = std::mem::take(&mut *self.shared.state());
        state.stop_resolvers();
        let result = reaper.finish(&self.shared.netns_ids());
        // The reaper killed them; waiting only collects them.
        state.collect();
        result
    }
}

impl State {
    fn stop_resolvers(&self) {
        for node in &self.nodes {
            node.stop_resolver();
        }
    }

    fn collect(self) {
        for node in self.nodes {
            node.collect();
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        if panicking && self.reaper.is_some() {
            crate::process::print_tails(&self.shared.dir);
        }
        match self.shut() {
            Ok(()) => {}
            // A second panic would abort and hide the first.
            Err(e) if panicking => eprintln!("bed {}: {e:#}", self.shared.id),
            Err(e) => panic!("bed {}: {e:#}", self.shared.id),
        }
    }
}

/// `<name>-<pid>-<random>`: readable, and unique among beds that run side by side.
fn unique_id(name: &str) -> String {
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(16).collect();
    format!("{name}-{}-{:06x}", std::process::id(), rand::random::<u32>() & 0xff_ffff)
}
