//! Many connections at once.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use testbed::pattern;
use testbed::puppet::{BulkReport, ConnectOpts, PuppetError, ShortReport};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::stream::{read_some, recv_digest, send_pattern, write_all};
use crate::{connect, error};

/// More SYNs at once than a listener's queue holds (net.core.somaxconn, 4096) would be lost and measured as delay.
const CONNECTING_AT_ONCE: usize = 1000;

pub(crate) async fn hold_open(
    addr: &str,
    count: u32,
    bytes_each_way: u64,
    seed: u64,
) -> Result<BulkReport, PuppetError> {
    let start = Instant::now();
    let permits = Arc::new(Semaphore::new(CONNECTING_AT_ONCE));
    let mut connecting = JoinSet::new();
    for _ in 0..count {
        let (addr, permits) = (addr.to_owned(), permits.clone());
        connecting.spawn(async move {
            let _permit = permits.acquire_owned().await;
            connect::connect(&addr, &patient()).await
        });
    }
    let mut failed = BTreeMap::new();
    let mut open = Vec::new();
    while let Some(result) = connecting.join_next().await {
        match flat(result) {
            Ok(stream) => open.push(stream),
            Err(e) => *failed.entry(e.kind).or_default() += 1,
        }
    }

    let opened = open.len() as u64;
    let mut exchanging = JoinSet::new();
    for (n, stream) in open.into_iter().enumerate() {
        let seed = seed.wrapping_add(n as u64);
        exchanging
            .spawn(async move { exchange(&stream, bytes_each_way, seed).await.map(|()| stream) });
    }
    // Kept to the end: all are open until the last one is done.
    let mut done = Vec::new();
    while let Some(result) = exchanging.join_next().await {
        match flat(result) {
            Ok(stream) => done.push(stream),
            Err(e) => *failed.entry(e.kind).or_default() += 1,
        }
    }
    Ok(BulkReport { opened, ok: done.len() as u64, failed, elapsed: start.elapsed() })
}

/// Sends and receives at the same time: an echo server stops reading while nobody takes what it sends.
async fn exchange(tcp: &TcpStream, bytes: u64, seed: u64) -> Result<(), PuppetError> {
    let (mut sent, mut received) = (0, 0);
    let (there, back) = tokio::try_join!(
        send_pattern(tcp, bytes, seed, &mut sent),
        recv_digest(tcp, Some(bytes), &mut received),
    )
    .map_err(|e| error::from_io("exchange", &e))?;
    if there == back {
        Ok(())
    } else {
        Err(PuppetError::new("data", "the echo differs from what was sent"))
    }
}

pub(crate) async fn short_connections(
    addr: &str,
    count: u32,
    concurrency: u32,
) -> Result<ShortReport, PuppetError> {
    let start = Instant::now();
    let permits = Arc::new(Semaphore::new(concurrency.max(1) as usize));
    let mut tasks = JoinSet::new();
    let mut failed = BTreeMap::new();
    let mut times = Vec::with_capacity(count as usize);
    let mut note = |result| match flat(result) {
        Ok(time) => times.push(time),
        Err(e) => *failed.entry(e.kind).or_default() += 1,
    };
    for n in 0..count {
        let permit = permits.clone().acquire_owned().await.map_err(|_| error::closed())?;
        let addr = addr.to_owned();
        tasks.spawn(async move {
            let result = short(&addr, n.into()).await;
            drop(permit);
            result
        });
        while let Some(result) = tasks.try_join_next() {
            note(result);
        }
    }
    while let Some(result) = tasks.join_next().await {
        note(result);
    }
    times.sort_unstable();
    Ok(ShortReport {
        ok: times.len() as u64,
        failed,
        elapsed: start.elapsed(),
        median: quantile(&times, 0.5),
        p99: quantile(&times, 0.99),
    })
}

async fn short(addr: &str, seed: u64) -> Result<Duration, PuppetError> {
    let start = Instant::now();
    let tcp = connect::connect(addr, &patient()).await?;
    let data = pattern::bytes(16, seed);
    let mut back = [0; 16];
    let mut filled = 0;
    let io = |e: io::Error| error::from_io("short connection", &e);
    write_all(&tcp, &data, &mut 0).await.map_err(io)?;
    while filled < back.len() {
        match read_some(&tcp, &mut back[filled..]).await.map_err(io)? {
            0 => {
                return Err(error::from_io(
                    "short connection",
                    &io::ErrorKind::UnexpectedEof.into(),
                ));
            }
            n => filled += n,
        }
    }
    if back != data[..] {
        return Err(PuppetError::new("data", "the echo differs from what was sent"));
    }
    Ok(start.elapsed())
}

/// The command's deadline limits it; each connection may use it up.
fn patient() -> ConnectOpts {
    ConnectOpts { timeout: Duration::from_secs(600), ..ConnectOpts::default() }
}

fn quantile(sorted: &[Duration], q: f64) -> Duration {
    let at = (sorted.len() as f64 * q) as usize;
    sorted.get(at).or(sorted.last()).copied().unwrap_or_default()
}

fn flat<T>(
    result: Result<Result<T, PuppetError>, tokio::task::JoinError>,
) -> Result<T, PuppetError> {
    result.unwrap_or_else(|e| Err(PuppetError::new("other", e.to_string())))
}
