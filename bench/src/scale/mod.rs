//! A mesh of 100,000 workloads: how long until it is there, what it weighs, what a decision costs.

pub mod control;
mod corpus;
pub mod decide;
mod dump;
pub mod fields;
pub mod hold;
mod pki;

use crate::{
    peers,
    report::{Peer, Row},
    role::{self, Samples, Serving},
};
use anyhow::Context as _;
use std::{env, fs, path::PathBuf};

pub const SUITE: &str = "scale";

/// The certificates of the control plane, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let dir = env::temp_dir().join(format!("culvert-bench-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn run(runs: usize) -> anyhow::Result<Vec<Row>> {
    let scratch = Scratch::new()?;
    pki::write(&scratch.0)?;
    let dir = scratch.0.to_str().context("a temporary directory without a name")?;
    let mut rows = Vec::new();
    for (workloads, name) in [("10000", "10,000 workloads"), ("100000", "100,000 workloads")] {
        eprintln!("{name}, {runs} times");
        rows.extend(mesh_of(workloads, name, runs, dir)?);
    }
    eprintln!("what a workload's memory is made of");
    let mut samples = Samples::default();
    role::measure(&["fields"], &mut samples)?;
    eprintln!("endpoints and policies");
    role::measure(&["decide"], &mut samples)?;
    if nix::unistd::geteuid().is_root() {
        eprintln!("a dump of the agent's");
        dump::measure(100_000, &mut samples)?;
    } else {
        eprintln!("not root: the dump of a real agent is left out");
    }
    rows.extend(samples.iter().map(|(name, values)| row(name, name, values)));
    Ok(rows)
}

/// A server and a process that holds the mesh for each run: what one changes must not be what the
/// next begins with.
fn mesh_of(workloads: &str, name: &str, runs: usize, dir: &str) -> anyhow::Result<Vec<Row>> {
    let hold = |labels: &str, what: &str, into: &mut Samples| -> anyhow::Result<()> {
        let mut server =
            Serving::start(&["control", "127.0.0.1:0", workloads, labels, dir, "child"])?;
        let line = server.first_line()?;
        let (discovery, orders) = line.split_once(' ').context("two addresses")?;
        role::measure(&["hold", discovery, orders, workloads, labels, dir, what], into)
    };
    let mut samples = Samples::default();
    let mut bare = Samples::default();
    for _ in 0..runs {
        hold("labels", "time", &mut samples)?;
    }
    hold("labels", "memory", &mut samples)?;
    hold("no-labels", "time", &mut bare)?;
    hold("no-labels", "memory", &mut bare)?;
    for (what, values) in bare.iter().filter(|(what, _)| what.ends_with("per workload")) {
        for value in values {
            samples.add(&format!("{what}, without labels"), *value);
        }
    }
    Ok(samples.iter().map(|(what, values)| row(&format!("{name}: {what}"), what, values)).collect())
}

fn row(name: &str, what: &str, values: &[f64]) -> Row {
    let mut row = Row::new(SUITE, name.to_owned(), unit(what), values);
    let (goal, ztunnel) = peers::scale(name);
    (row.goal, row.peer) = (goal, ztunnel.map(Peer::Ztunnel));
    row
}

fn unit(what: &str) -> &'static str {
    match what {
        "connect to ready" | "connect to ready: processor" | "dump: time" => "s",
        "resident" | "resident, peak" | "dump: size" => "MB",
        w if w.starts_with("dump: agent") => "MB",
        w if w.ends_with("applied") => "ms",
        w if w.starts_with("resolve") || w.starts_with("choice") => "ns",
        w if w.contains("policies: check") => "us",
        _ => "B",
    }
}
