//! A server and a client of gRPC, by tonic: calls, streams both ways, statuses and deadlines, over one connection and
//! over many. The client says in lines what it saw. The services are discovery's and the CA's, as any others would be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod ask;
mod serve;

use clap::Parser;
use std::net::IpAddr;

#[derive(Parser)]
enum Cli {
    Serve { at: IpAddr },
    Ask { at: IpAddr },
}

const PORT: u16 = 9090;

/// A call for this is not answered.
const NEVER: &str = "never";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    match Cli::parse() {
        Cli::Serve { at } => serve::serve(at).await,
        Cli::Ask { at } => ask::ask(at).await,
    }
}
