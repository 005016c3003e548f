//! The agent's copy loop alone: one relay between two connections over loopback, on a thread of its own.

use crate::role::say;
use anyhow::Context as _;
use hbone::{End, relay};
use nix::sys::resource::{UsageWho, getrusage};
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

const LASTS: Duration = Duration::from_secs(2);
const CHUNK: usize = 128 * 1024;

pub fn play() -> anyhow::Result<()> {
    let (mut source, first) = connection()?;
    let (second, mut sink) = connection()?;
    let copying = thread::spawn(move || copied(first, second));
    let sending = thread::spawn(move || -> std::io::Result<()> {
        let (chunk, begun) = (vec![b'x'; CHUNK], Instant::now());
        while begun.elapsed() < LASTS {
            source.write_all(&chunk)?;
        }
        Ok(())
    });
    let (begun, mut received, mut buffer) = (Instant::now(), 0, vec![0; CHUNK]);
    loop {
        match sink.read(&mut buffer)? {
            0 => break,
            n => received += n,
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    drop(sink);
    sending.join().expect("the source's thread")?;
    let spent = copying.join().expect("the relay's thread")?;
    let gigabytes = received as f64 / 1e9;
    say("floor-copy", gigabytes / seconds);
    say("floor-copy-cpu", spent / gigabytes);
    Ok(())
}

/// Its two ends.
fn connection() -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    Ok((client, listener.accept()?.0))
}

/// Relays to the end; the seconds that this thread has had of a processor.
fn copied(first: TcpStream, second: TcpStream) -> anyhow::Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let end = |stream: TcpStream| -> anyhow::Result<End> {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            Ok(End::Tcp(tokio::net::TcpStream::from_std(stream)?))
        };
        relay(end(first)?, end(second)?, Arc::default()).await.context("relaying")
    })?;
    let used = getrusage(UsageWho::RUSAGE_THREAD)?;
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    Ok(seconds(used.user_time()) + seconds(used.system_time()))
}
