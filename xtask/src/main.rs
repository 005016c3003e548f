//! `cargo xtask`: every chore of a developer, each with what it needs installed by itself.

mod bench;
mod demo;
mod deploy;
mod ebpf;
mod fuzz;
mod host;
mod image;
mod kube;
mod programs;
mod soak;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Culvert's developer chores")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the kernel programs into target/ebpf/culvert.bpf.o
    BuildEbpf,
    /// Run every test: unit, property and end-to-end, as root
    Test(test::Args),
    /// Run the demo: Bookinfo on a two-node mesh, on this machine
    Demo(demo::Args),
    /// Measure, and print the figures beside their goals and a peer's
    Bench(bench::Args),
    /// Run a mesh under churn and failures for a while, watched throughout
    Soak(soak::Args),
    /// Kubernetes itself, on this machine: build it, start and end a cluster, test against it
    #[command(subcommand)]
    Kube(kube::Args),
    /// Make a container image of the programs, without a daemon
    Image(image::Args),
    /// Write the CustomResourceDefinitions in deploy/ anew, from the types
    Crds,
    /// Write the plain manifests in deploy/ anew, from the chart
    Manifests,
    /// Run every fuzz target for a while, as many at a time as there are processors
    Fuzz {
        /// Seconds for each
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::BuildEbpf => ebpf::build().map(drop),
        Command::Test(args) => test::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Kube(args) => kube::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Crds => deploy::crds(),
        Command::Manifests => deploy::manifests(),
        Command::Fuzz { seconds } => fuzz::run(seconds),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
