//! `cargo xtask bench`: measures Culvert, and prints what came of it beside the goals and beside
//! what a peer reaches.
//!
//! Whatever is measured runs in a child process (this program again, with `--role`), so that its
//! memory is its own and no measurement inherits the heap of the one before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod dns;
mod memory;
mod peers;
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
    /// What to measure: scale, dns, waypoint [default: everything]
    suites: Vec<String>,
    /// Writes the rows to this file, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// How often each measurement that takes a process of its own is repeated
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// A child process of a measurement, with its arguments
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true)]
    role: Option<Vec<String>>,
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

type Suite = fn(usize) -> anyhow::Result<Vec<report::Row>>;

fn run(cli: &Cli) -> anyhow::Result<()> {
    let all = [scale::SUITE, dns::SUITE, waypoint::SUITE];
    if let Some(unknown) = cli.suites.iter().find(|s| !all.contains(&s.as_str())) {
        bail!("there is no suite {unknown:?}, only {}", all.join(" and "));
    }
    let wanted = |suite: &str| cli.suites.is_empty() || cli.suites.iter().any(|s| s == suite);
    let runs = cli.runs.max(1);
    let mut rows = Vec::new();
    if wanted(scale::SUITE) {
        rows.extend(scale::run(runs)?);
    }
    for (suite, run) in [(dns::SUITE, dns::run as Suite), (waypoint::SUITE, waypoint::run)] {
        if !wanted(suite) {
            continue;
        }
        if nix::unistd::geteuid().is_root() {
            rows.extend(run(runs)?);
        } else {
            eprintln!("not root: {suite} is left out, which needs network namespaces");
        }
    }
    ensure!(!rows.is_empty(), "nothing was measured");
    println!("{}", report::table(&rows));
    if let Some(path) = &cli.json {
        fs::write(path, format!("{:#}\n", report::json(&rows)))?;
    }
    Ok(())
}
