//! `kubebed`: what `cargo xtask kube` hands over to. Builds Kubernetes, and keeps one cluster for a developer.

mod keep;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "kubebed", about = "Kubernetes from its real programs, on this machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build what is not there yet
    Build(Extent),
    /// Start a cluster and leave it running
    Up(Extent),
    /// Take it away
    Down,
    /// Write the plain manifests in deploy/ anew, from the chart
    Manifests,
    /// Be the process that a running cluster belongs to
    #[command(hide = true)]
    Keep(Extent),
}

#[derive(clap::Args)]
struct Extent {
    /// etcd, kube-apiserver and kubectl only
    #[arg(long)]
    api_only: bool,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Build(extent) => kubebed::build::missing(extent.api_only),
        Command::Up(extent) => keep::up(extent.api_only),
        Command::Down => keep::down(),
        Command::Manifests => kubebed::chart::write_manifests(),
        Command::Keep(extent) => keep::keep(extent.api_only),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kubebed: {error:#}");
            ExitCode::FAILURE
        }
    }
}
