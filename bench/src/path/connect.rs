//! New connections across nodes: those that find an HBONE connection in the pool, and those for which one is made.

use super::{echo, measures::Measures};
use crate::{
    process,
    report::Row,
    role::{self, say},
};
use anyhow::{Context as _, bail, ensure};
use culvert_tests::{Mesh, MeshPod, SOON, at};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};
use testbed::Proc;

pub const SUITE: &str = "connect";

/// Servers that the client has no HBONE connections to, with two addresses each.
const SERVERS: usize = 24;
const MOST_TURNS: usize = 3;
/// The agents look for what is idle in their pools every five seconds.
const UNTIL_POOLS_ARE_EMPTY: Duration = Duration::from_secs(6);

pub fn run(runs: usize) -> anyhow::Result<Vec<Row>> {
    let mesh = Mesh::builder("bench-connect").agent_args(&["--pool-idle-seconds", "0"]).build();
    let (plain_client, client) = (mesh.pod(1, "plain-client"), mesh.pod(1, "client"));
    let plain_server = mesh.pod(2, "plain-server");
    let servers: Vec<MeshPod> =
        (0..SERVERS).map(|n| mesh.pod(2, &*format!("server-{n}"))).collect();
    let _serving = servers
        .iter()
        .chain([&plain_server])
        .map(echo::start)
        .collect::<anyhow::Result<Vec<Proc>>>()?;
    let meshed: Vec<MeshPod> = servers.iter().chain([&client]).cloned().collect();
    mesh.enroll_all(&meshed);
    let plain = addresses(&[plain_server]);
    let all = addresses(&servers);
    let pooled = addresses(&servers[..1]);
    // Certificates are fetched at the first.
    Connects { at_once: 1, times: 1 }.run(&client, &all)?;
    let agents = [mesh.agent(1).pid(), mesh.agent(2).pid()];
    let mut measures = Measures::new(SUITE);
    for turn in 1..=runs.min(MOST_TURNS) {
        eprintln!("{SUITE}, turn {turn} of {}", runs.min(MOST_TURNS));
        for at_once in [1, 16] {
            let (name, times) = (format!("pooled-{at_once}"), 500 * at_once.min(4));
            let load = Connects { at_once, times };
            let plain = load.run(&plain_client, &plain)?;
            let mesh = load.run(&client, &pooled)?;
            measures.both(&name, "1/s", plain.per_second, mesh.per_second);
            measures.both(&format!("{name}-p50"), "us", plain.p50, mesh.p50);
            measures.both(&format!("{name}-p99"), "us", plain.p99, mesh.p99);
        }
        for at_once in [1, 16] {
            thread::sleep(UNTIL_POOLS_ARE_EMPTY);
            let handshakes = || mesh.agent(1).counter(&client, "handshakes");
            let (shaken, before) = (handshakes(), process::processor_seconds(&agents)?);
            let seen = Connects { at_once, times: 1 }.run(&client, &all)?;
            let spent = process::processor_seconds(&agents)? - before;
            let shaken = handshakes() - shaken;
            ensure!(shaken >= all.len() as u64, "{shaken} handshakes for {} pairs", all.len());
            let name = format!("unpooled-{at_once}");
            measures.mesh(&name, "1/s", seen.per_second);
            measures.mesh(&format!("{name}-p50"), "us", seen.p50);
            measures.mesh(
                &format!("{name}-agent-cpu"),
                "us/connection",
                spent / all.len() as f64 * 1e6,
            );
        }
    }
    Ok(measures.rows())
}

fn addresses(servers: &[MeshPod]) -> Vec<String> {
    servers.iter().flat_map(|s| [at(s.ipv4(), echo::PORT), at(s.ipv6(), echo::PORT)]).collect()
}

/// To each of some addresses, so many times; a message there and back on each connection.
struct Connects {
    at_once: usize,
    times: usize,
}

struct Seen {
    per_second: f64,
    /// Microseconds from the call of connect() until the message is back.
    p50: f64,
    p99: f64,
}

impl Connects {
    fn run(&self, from: &MeshPod, to: &[String]) -> anyhow::Result<Seen> {
        let (at_once, times) = (self.at_once.to_string(), self.times.to_string());
        let mut words = vec!["path", "connects", &at_once, &times];
        words.extend(to.iter().map(String::as_str));
        let client = from.spawn(role::command(&words)?)?;
        let [per_second, p50, p99] = role::said(&client, SOON, ["per second", "p50", "p99"])?;
        Ok(Seen { per_second, p50, p99 })
    }
}

/// `<at once> <times> <address>...`
pub fn play(args: &[&str]) -> anyhow::Result<()> {
    let [at_once, times, addresses @ ..] = args else { bail!("wrong arguments: {args:?}") };
    let (at_once, times): (usize, usize) = (at_once.parse()?, times.parse()?);
    let next = AtomicUsize::new(0);
    let begun = Instant::now();
    let one_after_the_other = || -> anyhow::Result<Vec<Duration>> {
        let mut took = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= times * addresses.len() {
                return Ok(took);
            }
            let address = addresses[n % addresses.len()];
            took.push(once(address).with_context(|| format!("connecting to {address}"))?);
        }
    };
    let mut took = thread::scope(|s| {
        let clients: Vec<_> = (0..at_once).map(|_| s.spawn(one_after_the_other)).collect();
        let took = clients.into_iter().map(|c| c.join().expect("a client's thread"));
        took.collect::<anyhow::Result<Vec<_>>>()
    })?
    .concat();
    say("per second", took.len() as f64 / begun.elapsed().as_secs_f64());
    say("p50", role::microseconds(&mut took, 50));
    say("p99", role::microseconds(&mut took, 99));
    Ok(())
}

fn once(address: &str) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    let mut message = [b'x'];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)?;
    Ok(begun.elapsed())
}
