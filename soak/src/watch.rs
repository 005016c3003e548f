//! What an agent and its kernel maps hold, sampled throughout, and once more when all is quiet.

use crate::scene::Scene;
use anyhow::{Context as _, ensure};
use aya::maps::{HashMap, Map, MapData, SockHash};
use capture_abi::{Flow, FlowKey, ListenerKey, Pod};
use culvert_tests::Agent;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};
use testbed::eventually;

const EVERY: Duration = Duration::from_millis(500);

/// One node's, by what is counted.
pub type Sample = BTreeMap<&'static str, u64>;

/// By how much the last third's median may be above the first's: a part of it, and some.
pub const BOUNDS: [(&str, f64, f64); 7] = [
    ("descriptors", 0.25, 32.0),
    ("memory, KiB", 0.25, 12.0 * 1024.0),
    ("namespaces held", 0.0, 3.0),
    ("map entries: pods", 0.0, 3.0),
    // Those of pods that died go after two minutes, see [`REST`]: a short soak sees them come only.
    ("map entries: flows", 0.5, 192.0),
    ("map entries: listeners", 0.0, 18.0),
    ("pinned for pods", 0.0, 18.0),
];

pub fn sample(scene: &Scene) -> Vec<(usize, Sample)> {
    let mut samples = Vec::new();
    while !scene.has_ended() {
        for node in [1, 2] {
            // One that is being started or ended is not sampled.
            if let Ok(sample) = of(scene.mesh.agent(node)) {
                samples.push((node, sample));
            }
        }
        scene.pause(EVERY);
    }
    samples
}

fn of(agent: &Agent) -> anyhow::Result<Sample> {
    let pid = agent.running_pid().context("no agent")?;
    let mut descriptors = 0;
    let mut namespaces = BTreeSet::new();
    for fd in fs::read_dir(format!("/proc/{pid}/fd"))? {
        descriptors += 1;
        // By its path, if it was opened by one.
        if let Ok(to) = fs::read_link(fd?.path())
            && ["net:", "/run/netns/"].iter().any(|p| to.to_string_lossy().starts_with(p))
        {
            namespaces.insert(to);
        }
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let memory = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
        .context("no VmRSS")?;
    let maps = Maps::open(agent)?;
    Ok([
        ("descriptors", descriptors),
        ("memory, KiB", memory),
        ("namespaces held", namespaces.len() as u64),
        ("map entries: pods", maps.pods),
        ("map entries: flows", maps.flows.len() as u64),
        ("map entries: listeners", maps.listeners),
        ("pinned for pods", agent.pinned_for_pods().len() as u64),
    ]
    .into())
}

/// How many entries the node's maps have.
struct Maps {
    pods: u64,
    flows: Vec<(FlowKey, Flow)>,
    listeners: u64,
}

impl Maps {
    fn open(agent: &Agent) -> anyhow::Result<Self> {
        let dir = agent.node.bpffs().join(format!("v{}", capture_abi::ABI_VERSION)).join("maps");
        let pin = |name: &str| MapData::from_pin(dir.join(name));
        let pods = HashMap::<_, u64, Pod>::try_from(Map::HashMap(pin("PODS")?))?;
        let flows = HashMap::<_, FlowKey, Flow>::try_from(Map::HashMap(pin("FLOWS")?))?;
        let listeners = SockHash::<_, ListenerKey>::try_from(Map::SockHash(pin("LISTENERS")?))?;
        let count = |n: usize| n as u64;
        Ok(Self {
            pods: count(pods.keys().filter(Result::is_ok).count()),
            flows: flows.iter().filter_map(Result::ok).collect(),
            listeners: count(listeners.keys().filter(Result::is_ok).count()),
        })
    }
}

/// A connection to a pod that has died ends when its FIN has been repeated often enough, which
/// takes the kernel two minutes or so (`tcp_orphan_retries`), after the pings of half a minute by
/// which it is found to be dead.
const REST: Duration = Duration::from_secs(300);

/// What is left once nothing happens any more, other than what the cast needs.
pub fn at_rest(scene: &Scene) -> Vec<String> {
    let mut left = Vec::new();
    let begun = Instant::now();
    for node in [1, 2] {
        let agent = scene.mesh.agent(node);
        if let Err(e) = eventually(REST, || quiet(agent)) {
            left.push(format!("n{node}: {e:#}"));
        }
    }
    eprintln!("quiet after {} s", begun.elapsed().as_secs());
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let guests = named
        .filter(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            name.contains(scene.mesh.bed.id()) && name.contains("guest")
        })
        .count();
    if guests > 0 {
        left.push(format!("{guests} namespaces of guests"));
    }
    left
}

/// A client and a server are on each node.
fn quiet(agent: &Agent) -> anyhow::Result<()> {
    const PODS: u64 = 2;
    let status = agent.ask("status")?;
    ensure!(status["connections"] == 0, "{} connections are open", status["connections"]);
    ensure!(status["pool"]["connections"] == 0, "the pool holds {}", status["pool"]);
    ensure!(status["pods"].as_array().is_some_and(|p| p.len() as u64 == PODS), "pods: {status}");
    let maps = Maps::open(agent)?;
    ensure!(maps.pods == PODS, "{} pods are in the kernel's map", maps.pods);
    ensure!(maps.flows.is_empty(), "flows are in the kernel's map: {:?}", maps.flows);
    let listeners = PODS * u64::from(capture_abi::listener::KINDS);
    ensure!(maps.listeners == listeners, "{} listeners are in the kernel's map", maps.listeners);
    let pinned = agent.pinned_for_pods();
    let owners: BTreeSet<&Path> = pinned.iter().map(AsRef::as_ref).collect();
    ensure!(owners.len() as u64 <= PODS * 3, "pinned: {owners:?}");
    Ok(())
}
