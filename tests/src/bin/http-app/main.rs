//! An application of HTTP/1.1 and HTTP/2 that does as it is asked, and a client for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod ask;
mod collect;
mod serve;
mod tls;

use clap::{Parser, Subcommand};
use http::HeaderMap;
use serde_json::Value;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Answers with what it was asked. In the query: `status`, `delay` (ms; at the pod `delaying` only,
    /// if that is given), `fail` (that many of the requests with the same `key` are answered 503),
    /// `failing` (the pod that answers 503), `early` (such a failure comes before the body is read),
    /// `echo` (the answer is the request's body), `size` (bytes of the answer), `chunks` (so many, one
    /// `every` so many ms), `broken` (the answer breaks off after so many bytes), `trailer`, `grpc`
    /// (its status, in trailers), `peek` (what the requests with this key were).
    Serve {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        name: String,
        /// Within TLS: a directory with chain.pem, key.pem and, for clients' certificates, roots.pem
        #[arg(long)]
        tls: Option<std::path::PathBuf>,
    },
    Ask(Box<ask::Ask>),
    /// Takes spans over OTLP, and writes each down as a line of JSON.
    Collect {
        #[arg(long)]
        port: u16,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Cmd::Serve { port, name, tls } => {
            let tls = tls.map(|dir| tls::acceptor(&dir)).transpose()?;
            serve::serve(port, name, tls).await
        }
        Cmd::Collect { port } => collect::collect(port).await,
        Cmd::Ask(ask) => ask::ask_all(&ask).await,
    }
}

fn text(headers: &HeaderMap) -> Value {
    let mut all = serde_json::Map::new();
    for name in headers.keys() {
        let values = headers.get_all(name).iter();
        let joined: Vec<String> =
            values.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect();
        all.insert(name.to_string(), joined.join(",").into());
    }
    all.into()
}
