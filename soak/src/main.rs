//! `cargo xtask soak`: two nodes under churn for as long as one likes. Pods come and go and take
//! over each other's addresses, policies and certificates change, agents are killed and drained,
//! the control plane is restarted, and the network is slow, loses packets and is cut. Throughout,
//! clients of known identities ask for what they may have and for what they may not.
//!
//! It ends well if nothing crossed the wire in the clear, nobody was taken for somebody else,
//! every refused connection has a cause with a name, and nothing grew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod access_log;
mod attempts;
mod cast;
mod churn;
mod delay;
mod judge;
mod report;
mod scene;
mod watch;
mod weather;
mod wire;

use clap::Parser;
use scene::Scene;
use std::{process::ExitCode, thread, time::Duration};

#[derive(Parser)]
#[command(name = "cargo xtask soak", about = "Runs a mesh under churn and failures, watched")]
struct Cli {
    /// How long; a minute shows every kind of trouble once
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let length = Duration::from_secs_f64(cli.minutes * 60.0);
    eprintln!("building two nodes");
    let scene = Scene::set();
    eprintln!("{:.1} minutes from now on", cli.minutes);
    let mut samples = Vec::new();
    thread::scope(|threads| {
        let scene = &scene;
        for n in 0..cast::CLIENTS {
            threads.spawn(move || scene.guard("a client", || attempts::client(scene, n)));
        }
        for n in 0..cast::GUESTS {
            threads.spawn(move || scene.guard("a guest", || churn::guests(scene, n)));
        }
        threads.spawn(|| scene.guard("policies", || churn::policies(scene)));
        threads.spawn(|| scene.guard("weather", || weather::change(scene)));
        threads.spawn(|| scene.guard("the wire", || wire::watch(scene)));
        let watching = threads.spawn(|| watch::sample(scene));
        scene.pause(length);
        scene.end();
        samples = watching.join().unwrap_or_default();
    });
    let rest = watch::at_rest(&scene);
    let outcome = judge::judge(&scene, &samples, rest);
    println!("{outcome}");
    if outcome.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
