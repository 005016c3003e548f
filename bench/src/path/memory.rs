//! What an agent holds: at rest, and for idle connections between two nodes. What it holds for workloads and services
//! is the suite `scale`'s.

use super::measures::Measures;
use crate::{memory, process, report::Row, role};
use anyhow::{Context as _, ensure};
use culvert_tests::{Agent, Mesh, MeshPod, SOON};
use std::{fs, thread, time::Duration};
use testbed::{Proc, eventually};

pub const SUITE: &str = "memory";

/// Connections that are open together, step by step.
const STEPS: [usize; 4] = [1_000, 5_000, 15_000, 50_000];
/// Descriptors of an agent beside one for each connection.
const OTHER_DESCRIPTORS: usize = 2_000;
/// No more are opened after so long in a step, and there is no next one.
const LONGEST: Duration = Duration::from_secs(45);
const SETTLING: Duration = Duration::from_secs(1);

/// Once, however many runs are asked for: what one connection takes is the mean of thousands.
pub fn run(_runs: usize) -> anyhow::Result<Vec<Row>> {
    let mut measures = Measures::new(SUITE);
    let mesh = Mesh::new("bench-memory");
    let resident = || -> anyhow::Result<[f64; 2]> {
        thread::sleep(SETTLING);
        Ok([process::resident(mesh.agent(1).pid())?, process::resident(mesh.agent(2).pid())?])
    };
    let tell = |measures: &mut Measures, name: &str| -> anyhow::Result<()> {
        for (agent, resident) in mesh.agents().iter().zip(resident()?) {
            measures.mesh(name, "MB", resident);
            measures.mesh(&format!("{name}-private"), "MB", memory::private(agent.pid())? / 1e6);
        }
        Ok(())
    };
    // The first second leaves something behind, which is given back then.
    thread::sleep(SETTLING);
    tell(&mut measures, "idle")?;
    let (client, server) = (mesh.enrolled_pod(1, "client"), mesh.enrolled_pod(2, "server"));
    thread::sleep(SETTLING);
    tell(&mut measures, "enrolled")?;
    let keeping = server.spawn(role::command(&["path", "keep"])?)?;
    keeping.wait_for_output("listens", SOON)?;
    // What the first of a pair bring along, code among it, is not every connection's.
    let _first = Held::open(&client, &server, 100)?;
    let before = resident()?;
    let mut held: Vec<Held> = Vec::new();
    let descriptors = descriptor_limit(mesh.agent(1).pid())?;
    for step in STEPS {
        if step + OTHER_DESCRIPTORS > descriptors {
            eprintln!(
                "{SUITE}: no {step} connections, as an agent gets {descriptors} descriptors here"
            );
            break;
        }
        eprintln!("{SUITE}: {step} connections");
        let so_far: usize = held.iter().map(|h| h.connections).sum();
        held.push(Held::open(&client, &server, step - so_far)?);
        let open: usize = held.iter().map(|h| h.connections).sum();
        for (side, (now, before)) in ["client", "server"].iter().zip(resident()?.iter().zip(before))
        {
            let each = (now - before) * 1e3 / open as f64;
            measures.mesh(&format!("{open}-connections-{side}"), "KB/connection", each);
        }
        if open < step {
            break;
        }
    }
    drop(held);
    eventually(SOON, || {
        let open = mesh.agents().iter().map(Agent::descriptors).max();
        ensure!(open.is_some_and(|o| o < OTHER_DESCRIPTORS), "connections are still open");
        Ok(())
    })?;
    for (side, now) in ["client", "server"].iter().zip(resident()?) {
        measures.mesh(&format!("after-{side}"), "MB", now);
    }
    Ok(measures.rows())
}

fn descriptor_limit(pid: i32) -> anyhow::Result<usize> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"));
    let soft = line.and_then(|l| l.split_whitespace().next()).context("no limit of descriptors")?;
    Ok(soft.parse()?)
}

/// Connections, and who has them open.
struct Held {
    connections: usize,
    _client: Proc,
}

impl Held {
    fn open(client: &MeshPod, server: &MeshPod, connections: usize) -> anyhow::Result<Self> {
        let (to, connections) = (server.ipv4().to_string(), connections.to_string());
        let seconds = LONGEST.as_secs().to_string();
        let client =
            client.spawn(role::command(&["path", "hold", &to, &connections, &seconds])?)?;
        client.wait_for_output("open", LONGEST + SOON)?;
        let said = client.stdout();
        let count = said.split_whitespace().next().context("the client said nothing")?;
        Ok(Self { connections: count.parse()?, _client: client })
    }
}
