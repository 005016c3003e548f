//! The way of a connection: a pair of pods in the mesh beside a pair on the same nodes outside it, under the same loads
//! in turn.

mod bare;
mod connect;
mod copy;
mod crypto;
mod echo;
mod enroll;
mod floors;
mod hold;
mod iperf;
mod load;
mod measures;
mod memory;
mod nginx;
mod paced;
mod pair;
mod probes;
mod relay;
mod spliced;
mod warm;

pub use connect::{SUITE as CONNECT, run as connect};
pub use enroll::{SUITE as ENROLL, run as enroll};
pub use memory::{SUITE as MEMORY, run as memory};
pub use spliced::{SUITE as SPLICED, run as spliced};

use crate::{process, report::Row};
use anyhow::bail;
use culvert_tests::Mesh;
use load::{Load, Moved};
use measures::Measures;
use pair::{Pair, Pairs};

pub const SAME_NODE: &str = "same-node";
pub const CROSS_NODE: &str = "cross-node";

/// More turns than this say little more, and all of these suites are to be over in a quarter of an hour.
const MOST_TURNS: usize = 3;

pub fn same_node(runs: usize, load: &str) -> anyhow::Result<Vec<Row>> {
    let mesh = Mesh::new("bench-same-node");
    let pairs = Pairs::new(&mesh, 1)?;
    let mut measures = under_loads(SAME_NODE, &mesh, &pairs, runs, load)?;
    if FLOOR.name().starts_with(load)
        && let Err(error) = beside_hooks(&pairs.plain, runs.min(MOST_TURNS), &mut measures)
    {
        eprintln!("{SAME_NODE}: the floor is left out: {error:#}");
    }
    Ok(measures.rows())
}

/// What is measured of pods for which a capture does the least that it can.
const FLOOR: Load = Load::Connects { at_once: 16 };

fn beside_hooks(plain: &Pair, turns: usize, into: &mut Measures) -> anyhow::Result<()> {
    for turn in 1..=turns {
        eprintln!("{SAME_NODE}: bare hooks, turn {turn} of {turns}");
        let without = FLOOR.run(plain)?;
        let with = {
            let _attached = bare::hooks(plain)?;
            FLOOR.run(plain)?
        };
        for (without, with) in without.figures.iter().zip(&with.figures) {
            let name = format!("floor-hooks-{}", FLOOR.name());
            into.both(&name, with.unit, without.value, with.value);
        }
    }
    Ok(())
}

pub fn cross_node(runs: usize, load: &str) -> anyhow::Result<Vec<Row>> {
    let mesh = Mesh::new("bench-cross-node");
    let pairs = Pairs::new(&mesh, 2)?;
    let mut rows = under_loads(CROSS_NODE, &mesh, &pairs, runs, load)?.rows();
    match floors::measure(CROSS_NODE, &pairs.plain, runs.min(MOST_TURNS)) {
        Ok(floors) => rows.extend(floors),
        Err(error) => eprintln!("{CROSS_NODE}: floors are left out: {error:#}"),
    }
    Ok(rows)
}

/// A child process of one of these suites.
pub fn play(role: &[&str]) -> anyhow::Result<()> {
    match role {
        ["echo", args @ ..] => echo::serve(args),
        ["ping-pong", args @ ..] => echo::ping_pong(args),
        ["paced", args @ ..] => paced::play(args),
        ["connects", args @ ..] => connect::play(args),
        ["keep", args @ ..] => hold::keep(args),
        ["hold", args @ ..] => hold::hold(args),
        ["relay", args @ ..] => relay::play(args),
        ["copy"] => copy::play(),
        ["crypto"] => crypto::play(),
        ["probes", args @ ..] => probes::play(args),
        _ => bail!("there is no such role: {role:?}"),
    }
}

/// All loads, each by both pairs in turn.
fn under_loads(
    suite: &'static str,
    mesh: &Mesh,
    pairs: &Pairs,
    runs: usize,
    named: &str,
) -> anyhow::Result<Measures> {
    let mut agents = vec![mesh.agent_of(&pairs.mesh.client).pid()];
    if suite == CROSS_NODE {
        agents.push(mesh.agent_of(&pairs.mesh.server).pid());
    }
    let mut measures = Measures::new(suite);
    let turns = runs.min(MOST_TURNS);
    for turn in 1..=turns {
        eprintln!("{suite}, turn {turn} of {turns}");
        for load in load::ALL.into_iter().filter(|l| l.name().starts_with(named)) {
            // One that fails must not take the others' figures along.
            if let Err(error) = take_turn(load, pairs, &agents, &mut measures) {
                eprintln!("{suite}: {} is left out of turn {turn}: {error:#}", load.name());
            }
        }
    }
    for agent in agents {
        measures.mesh("agent-memory", "MB", process::resident(agent)?);
    }
    Ok(measures)
}

fn take_turn(load: Load, pairs: &Pairs, agents: &[i32], into: &mut Measures) -> anyhow::Result<()> {
    let plain = load.run(&pairs.plain)?;
    let before = process::processor_seconds(agents)?;
    let mesh = load.run(&pairs.mesh)?;
    let spent = process::processor_seconds(agents)? - before;
    for (plain, mesh) in plain.figures.iter().zip(&mesh.figures) {
        let name = format!("{}{}", load.name(), mesh.suffix);
        into.both(&name, mesh.unit, plain.value, mesh.value);
        if let Load::Paced = load {
            into.mesh(&format!("{name}-added"), mesh.unit, mesh.value - plain.value);
        }
    }
    let cpu = format!("{}-agent-cpu", load.name());
    match mesh.moved {
        Moved::Bytes(bytes) => into.mesh(&cpu, "s/GB", spent / bytes * 1e9),
        Moved::Requests(requests) => into.mesh(&cpu, "us/request", spent / requests * 1e6),
    }
    Ok(())
}
