//! Requests of HTTP/1.1 at a fixed rate. One that is due while its connection still waits for the answer before is
//! late, and its time counts from when it was due.

use crate::role::{self, say};
use anyhow::{Context as _, bail, ensure};
use culvert_tests::{MeshPod, SOON, at};
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    thread,
    time::{Duration, Instant},
};

#[derive(Clone, Copy)]
pub struct Rate {
    pub connections: u32,
    /// Requests of all connections together.
    pub per_second: u32,
}

pub struct Seen {
    pub requests: f64,
    /// Microseconds.
    pub p50: f64,
    pub p99: f64,
}

impl Rate {
    pub fn run(
        self,
        client: &MeshPod,
        ip: Ipv4Addr,
        port: u16,
        seconds: u64,
    ) -> anyhow::Result<Seen> {
        let to = at(ip, port);
        let (connections, rate) = (self.connections.to_string(), self.per_second.to_string());
        let words = ["path", "paced", &to, &connections, &rate, &seconds.to_string()];
        let client = client.spawn(role::command(&words)?)?;
        let patience = Duration::from_secs(seconds) + SOON;
        let [requests, p50, p99] = role::said(&client, patience, ["requests", "p50", "p99"])?;
        Ok(Seen { requests, p50, p99 })
    }
}

/// `<address> <connections> <requests a second> <seconds>`
pub fn play(args: &[&str]) -> anyhow::Result<()> {
    let [to, connections, rate, seconds] = args else { bail!("wrong arguments: {args:?}") };
    let (connections, rate): (u32, u32) = (connections.parse()?, rate.parse()?);
    let requests = rate * seconds.parse::<u32>()?;
    let streams: Vec<TcpStream> =
        (0..connections).map(|_| open(to)).collect::<anyhow::Result<_>>()?;
    let begun = Instant::now();
    let clients: Vec<_> = (0..connections)
        .zip(streams)
        .map(|(first, stream)| {
            let due = (first..requests).step_by(connections as usize);
            let due = due.map(move |n| begun + Duration::from_secs(1) * n / rate);
            thread::spawn(move || ask(stream, due))
        })
        .collect();
    let mut took = Vec::new();
    for client in clients {
        took.extend(client.join().expect("a client's thread")?);
    }
    say("requests", took.len() as f64);
    say("p50", role::microseconds(&mut took, 50));
    say("p99", role::microseconds(&mut took, 99));
    Ok(())
}

/// One request has been answered: what a connection takes to begin is another measure's, and would be this one's p99.
fn open(to: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.write_all(REQUEST)?;
    answer(&mut stream)?;
    Ok(stream)
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";

fn ask(mut stream: TcpStream, due: impl Iterator<Item = Instant>) -> anyhow::Result<Vec<Duration>> {
    let mut took = Vec::new();
    for due in due {
        let early = due.saturating_duration_since(Instant::now());
        thread::sleep(early);
        // What the sleep is too long is not the server's doing.
        let begun = if early.is_zero() { due } else { Instant::now() };
        stream.write_all(REQUEST)?;
        answer(&mut stream)?;
        took.push(begun.elapsed());
    }
    Ok(took)
}

/// Reads one, whose length is in its head.
fn answer(stream: &mut TcpStream) -> anyhow::Result<()> {
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let n = stream.read(&mut buffer)?;
        ensure!(n > 0, "the connection ended");
        answer.extend_from_slice(&buffer[..n]);
        let text = std::str::from_utf8(&answer)?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        ensure!(head.starts_with("HTTP/1.1 200"), "the answer is {head}");
        let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: "));
        if body.len() == length.context("no length")?.parse::<usize>()? {
            return Ok(());
        }
    }
}
