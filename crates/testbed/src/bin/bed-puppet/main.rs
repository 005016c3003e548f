//! `bed-puppet pause` holds a pod's namespaces; `bed-puppet obey` opens sockets there as it is told on stdin.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod bulk;
mod connect;
mod error;
mod obey;
mod pause;
mod raw;
mod serve;
mod sockets;
mod stream;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let result = match args.next().as_deref() {
        Some("pause") => pause::run(&args.collect::<Vec<_>>()),
        Some("obey") => obey::run(),
        _ => {
            eprintln!("usage: bed-puppet pause [<source> <target>]... | obey");
            return ExitCode::FAILURE;
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bed-puppet: {e:#}");
            ExitCode::FAILURE
        }
    }
}
