//! Connections that are there and idle: a server that keeps them, and a client that opens so many and says how far it
//! got.

use anyhow::{Context as _, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::{
    net::Ipv6Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// A server's, as one has no more connections from a client than the client has ports.
pub const PORTS: [u16; 4] = [9001, 9002, 9003, 9004];

/// Opened at a time.
const AT_ONCE: usize = 32;

pub fn keep(args: &[&str]) -> anyhow::Result<()> {
    if !args.is_empty() {
        bail!("wrong arguments: {args:?}");
    }
    raise_descriptor_limit()?;
    runtime()?.block_on(async {
        let mut ports = JoinSet::new();
        for port in PORTS {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await?;
            ports.spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await?;
                    // A client that breaks off is none of its business.
                    tokio::spawn(echo(stream));
                }
            });
        }
        println!("listens");
        match ports.join_next().await {
            Some(ended) => ended?,
            None => Ok(()),
        }
    })
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    while stream.read(&mut byte).await? > 0 {
        stream.write_all(&byte).await?;
    }
    Ok(())
}

/// `<address> <connections> <seconds>`: each has carried a byte there and back. After so many seconds no more are opened.
pub fn hold(args: &[&str]) -> anyhow::Result<()> {
    let [address, connections, seconds] = args else { bail!("wrong arguments: {args:?}") };
    let connections: usize = connections.parse()?;
    let until = Instant::now() + Duration::from_secs(seconds.parse()?);
    raise_descriptor_limit()?;
    runtime()?.block_on(async {
        let next = Arc::new(AtomicUsize::new(0));
        let mut openers = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (next, address) = (next.clone(), (*address).to_owned());
            openers.spawn(async move {
                let mut held = Vec::new();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= connections || Instant::now() > until {
                        return anyhow::Ok(held);
                    }
                    held.push(open(&address, PORTS[n % PORTS.len()]).await?);
                }
            });
        }
        let held = openers.join_all().await.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        println!("{} open", held.iter().map(Vec::len).sum::<usize>());
        std::future::pending().await
    })
}

async fn open(address: &str, port: u16) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect((address, port)).await.context("connecting")?;
    let mut byte = [b'x'];
    stream.write_all(&byte).await?;
    stream.read_exact(&mut byte).await?;
    Ok(stream)
}

/// As far as this machine lets it.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = hard.max(200_000);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted)
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
        .context("raising the limit of descriptors")
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
