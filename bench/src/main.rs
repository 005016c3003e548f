//! `cargo xtask bench`: measures Culvert, and prints what came of it beside the goals and beside
//! what a peer reaches.
//!
//! Whatever is measured runs in a child process (this program again, with `--role`), so that its
//! memory is its own and no measurement inherits the heap of the one before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod dns;
mod load;
mod machine;
mod memory;
mod path;
mod peers;
mod process;
mod report;
mod role;
mod scale;
mod waypoint;

use anyhow::{bail, ensure};
use clap::Parser;
use std::{fs, path::PathBuf, process::ExitCode};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

#[derive(Parser)]
#[command(name = "cargo xtask bench", about = "Measures Culvert beside its goals and a peer")]
struct Cli {
    /// What to measure: scale, dns, waypoint, same-node, spliced, cross-node, connect, memory, enroll
    /// [default: everything]
    suites: Vec<String>,
    /// Writes the rows to this file, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// How often each measurement that takes a process of its own is repeated
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Of the loads of same-node and cross-node (iperf3, wrk-64) and of the parts of waypoint (alone, many,
    /// mesh), those alone whose names begin so
    #[arg(long)]
    load: Option<String>,
    /// A child process of a measurement, with its arguments
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true)]
    role: Option<Vec<String>>,
}

impl Cli {
    fn runs(&self) -> usize {
        self.runs.max(1)
    }

    /// How the names of loads and parts begin.
    fn load(&self) -> &str {
        self.load.as_deref().unwrap_or_default()
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.role {
        Some(role) => role::play(role),
        None => run(&cli),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

type Run = fn(&Cli) -> anyhow::Result<Vec<report::Row>>;

struct Suite {
    name: &'static str,
    run: Run,
    /// For network namespaces.
    needs_root: bool,
}

const fn of_nodes(name: &'static str, run: Run) -> Suite {
    Suite { name, run, needs_root: true }
}

const SUITES: [Suite; 9] = [
    Suite { name: scale::SUITE, run: |c| scale::run(c.runs()), needs_root: false },
    of_nodes(dns::SUITE, |c| dns::run(c.runs())),
    of_nodes(waypoint::SUITE, |c| waypoint::run(c.runs(), c.load())),
    of_nodes(path::SAME_NODE, |c| path::same_node(c.runs(), c.load())),
    of_nodes(path::SPLICED, |c| path::spliced(c.runs())),
    of_nodes(path::CROSS_NODE, |c| path::cross_node(c.runs(), c.load())),
    of_nodes(path::CONNECT, |c| path::connect(c.runs())),
    of_nodes(path::MEMORY, |c| path::memory(c.runs())),
    of_nodes(path::ENROLL, |c| path::enroll(c.runs())),
];

fn run(cli: &Cli) -> anyhow::Result<()> {
    let names = SUITES.map(|s| s.name);
    if let Some(unknown) = cli.suites.iter().find(|s| !names.contains(&s.as_str())) {
        bail!("there is no suite {unknown:?}, only {}", names.join(", "));
    }
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for suite in SUITES {
        if !cli.suites.is_empty() && !cli.suites.iter().any(|s| s == suite.name) {
            continue;
        }
        if suite.needs_root && !nix::unistd::geteuid().is_root() {
            eprintln!("not root: {} is left out, which needs network namespaces", suite.name);
            continue;
        }
        match (suite.run)(cli) {
            Ok(measured) => rows.extend(measured),
            // What the others have measured is worth having.
            Err(error) => failed.push(format!("{}: {error:#}", suite.name)),
        }
    }
    println!("{}\n\n{}", machine::name()?, report::tables(&rows));
    if let Some(path) = &cli.json {
        fs::write(path, format!("{:#}\n", report::json(&rows)))?;
    }
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    ensure!(!rows.is_empty(), "nothing was measured");
    Ok(())
}
