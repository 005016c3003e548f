//! The kernel programs of `ebpf/src/floors.rs`, attached to pods outside the mesh for as long as they are measured.

use super::pair::Pair;
use anyhow::{Context as _, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::SockHash,
    programs::{
        CgroupAttachMode, CgroupSock, CgroupSockAddr, SchedClassifier, SkLookup, SkMsg, SockOps,
        TcAttachType,
    },
};
use culvert_tests::MeshPod;
use std::{env, fs::File, process::Command};

/// Detached when it is dropped.
pub struct Attached(#[expect(dead_code)] Ebpf);

/// As the agent has it for its last hop, in each pod: whoever has a rule of his own has a longer way to a route.
const RULE: [&str; 4] = ["fwmark", "0x63767200", "lookup", "63"];

/// What a link asks for, whose program always runs beside others.
const LINK: CgroupAttachMode = CgroupAttachMode::Single;

fn object() -> anyhow::Result<Vec<u8>> {
    let path = env::var_os("CULVERT_BENCH_FLOORS");
    let path = path.context("CULVERT_BENCH_FLOORS: `cargo xtask bench` sets it")?;
    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

/// What any capture does for a connection within a node, at the hooks that Culvert's programs have.
pub fn hooks(pair: &Pair) -> anyhow::Result<Hooks> {
    let mut ebpf = EbpfLoader::new().load(&object()?)?;
    let pods = [&pair.client, &pair.server];
    let connect: &mut CgroupSockAddr = program(&mut ebpf, "bare_connect")?;
    connect.load()?;
    for pod in pods {
        connect.attach(cgroup(pod)?, LINK)?;
    }
    let create: &mut CgroupSock = program(&mut ebpf, "bare_create")?;
    create.load()?;
    for pod in pods {
        create.attach(cgroup(pod)?, LINK)?;
    }
    events(&mut ebpf, "bare_events", &pods)?;
    let lookup: &mut SkLookup = program(&mut ebpf, "bare_lookup")?;
    lookup.load()?;
    lookup.attach(File::open(pair.server.netns_path())?)?;
    let packet: &mut SchedClassifier = program(&mut ebpf, "bare_packet")?;
    packet.load()?;
    for pod in pods {
        testbed::inside(&pod.node().netns_path(), || {
            for side in [TcAttachType::Ingress, TcAttachType::Egress] {
                packet.attach(&pod.host_ifname(), side)?;
            }
            Ok(())
        })?;
    }
    let hooks = Hooks { _attached: Attached(ebpf), netns: pods.map(|pod| pod.netns_name()) };
    hooks.rule("add")?;
    Ok(hooks)
}

/// Detached, and the rules taken out, when it is dropped.
pub struct Hooks {
    _attached: Attached,
    netns: [String; 2],
}

impl Hooks {
    fn rule(&self, verb: &str) -> anyhow::Result<()> {
        for netns in &self.netns {
            let args = ["-n", netns.as_str(), "rule", verb];
            let status = Command::new("ip").args(args).args(RULE).status().context("ip rule")?;
            ensure!(status.success(), "ip rule {verb} in {netns}: {status}");
        }
        Ok(())
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        let _ = self.rule("del");
    }
}

/// All connections that these pods make from now on with one another; with `odd_by_tcp` messages of an odd length go
/// by TCP.
pub fn splice(pods: &[&MeshPod], odd_by_tcp: bool) -> anyhow::Result<Attached> {
    let odd_by_tcp = u32::from(odd_by_tcp);
    let mut loader = EbpfLoader::new();
    let mut ebpf = loader.override_global("ODD_BY_TCP", &odd_by_tcp, true).load(&object()?)?;
    let map = ebpf.map("SPLICED").context("the object has no SPLICED")?;
    let sockets = SockHash::<_, [u32; 4]>::try_from(map)?.fd().try_clone()?;
    let splice: &mut SkMsg = program(&mut ebpf, "splice")?;
    splice.load()?;
    splice.attach(&sockets)?;
    events(&mut ebpf, "splice_events", pods)?;
    Ok(Attached(ebpf))
}

fn events(ebpf: &mut Ebpf, name: &str, pods: &[&MeshPod]) -> anyhow::Result<()> {
    let events: &mut SockOps = program(ebpf, name)?;
    events.load()?;
    for pod in pods {
        events.attach(cgroup(pod)?, LINK)?;
    }
    Ok(())
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no {name}"))?;
    Ok(program.try_into()?)
}

fn cgroup(pod: &MeshPod) -> anyhow::Result<File> {
    let path = pod.cgroup();
    File::open(&path).with_context(|| format!("opening {}", path.display()))
}
