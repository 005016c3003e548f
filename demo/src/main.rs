//! `culvert-demo`: Bookinfo on a mesh of two nodes, and the proof that it is one.
//!
//! Nodes and pods are network namespaces of this machine; everything else is what runs on a
//! cluster: the kernel programs, an agent per node, a control plane.

mod bookinfo;
mod fast_path;
mod gateway;
mod proofs;
mod waypoint;

use bookinfo::Bookinfo;
use clap::Parser;
use signal_hook::{consts::SIGINT, iterator::Signals};
use std::{any::Any, process::ExitCode};

#[derive(Parser)]
#[command(name = "culvert-demo", about = "Bookinfo on a mesh of two nodes")]
struct Cli {
    /// Fail if any proof fails; print no more than needed
    #[arg(long)]
    check: bool,
    /// Leave it running, and print commands to try
    #[arg(long)]
    keep: bool,
    /// What to show
    #[arg(long, value_enum, default_value = "mesh")]
    scenario: Scenario,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Scenario {
    /// Enrolment, identity, policy of connections
    Mesh,
    /// Routes, faults, retries, mirrors and policy of requests
    Waypoint,
    /// Two pods of one node, past the agent
    FastPath,
    /// Bookinfo opened to the outside, and an outside host opened to Bookinfo
    Gateway,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // What the bed starts is ended by a process of its own when this one ends, however it ends.
    let outcome = std::panic::catch_unwind(|| -> anyhow::Result<()> {
        let bookinfo = Bookinfo::start()?;
        // Held until the end: their processes are the proxies, and who is outside.
        let _held: Box<dyn Any> = match cli.scenario {
            Scenario::Mesh => Box::new(proofs::all(&bookinfo)?),
            Scenario::FastPath => Box::new(fast_path::all(&bookinfo)?),
            Scenario::Waypoint => Box::new(waypoint::all(&bookinfo)?),
            Scenario::Gateway => Box::new(gateway::all(&bookinfo)?),
        };
        if cli.keep {
            keep(&bookinfo)?;
        }
        println!("\nTaking it all down again.");
        Ok(())
    });
    match outcome {
        Ok(Ok(())) => {
            println!("Every proof held.");
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => {
            eprintln!("\nA proof failed: {error:#}");
            ExitCode::FAILURE
        }
        // The panic has printed what it had to say.
        Err(_) => ExitCode::FAILURE,
    }
}

fn keep(bookinfo: &Bookinfo) -> anyhow::Result<()> {
    bookinfo.print_commands();
    println!("\nIt runs until Ctrl-C.");
    let mut signals = Signals::new([SIGINT, signal_hook::consts::SIGTERM])?;
    signals.forever().next();
    Ok(())
}
