//! A server that sends back what it gets, and a client that waits for each message before it sends the next. Both block
//! in the kernel; nobody spins.

use super::pair::Pair;
use crate::role::{self, say};
use anyhow::{Context as _, bail, ensure};
use culvert_tests::{MeshPod, SOON, at};
use std::{
    io::{Read as _, Write as _},
    net::{Ipv6Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};
use testbed::Proc;

pub const PORT: u16 = 7;

const MESSAGE: usize = 64;
const LASTS: Duration = Duration::from_secs(1);

pub fn start(pod: &MeshPod) -> anyhow::Result<Proc> {
    let server = pod.spawn(role::command(&["path", "echo"])?)?;
    server.wait_for_output("listens", SOON)?;
    Ok(server)
}

/// What a client saw.
pub struct Seen {
    pub count: f64,
    /// Microseconds.
    pub p50: f64,
}

pub fn ping_pongs(pair: &Pair) -> anyhow::Result<Seen> {
    let to = at(pair.server.ipv4(), PORT);
    let client = pair.client.spawn(role::command(&["path", "ping-pong", &to])?)?;
    let [p50, count] = role::said(&client, LASTS + SOON, ["p50", "count"])?;
    Ok(Seen { count, p50 })
}

pub fn serve(args: &[&str]) -> anyhow::Result<()> {
    ensure!(args.is_empty(), "wrong arguments: {args:?}");
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).context("listening")?;
    println!("listens");
    loop {
        let (stream, _) = listener.accept()?;
        // A client that breaks off is none of its business.
        thread::spawn(move || echo(stream));
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; MESSAGE];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

/// `<address>`
pub fn ping_pong(args: &[&str]) -> anyhow::Result<()> {
    let [to] = args else { bail!("wrong arguments: {args:?}") };
    let mut stream = TcpStream::connect(to).context("connecting")?;
    stream.set_nodelay(true)?;
    let mut message = [b'x'; MESSAGE];
    let mut took = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < LASTS {
        let sent = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        took.push(sent.elapsed());
    }
    say("p50", role::microseconds(&mut took, 50));
    say("count", took.len() as f64);
    Ok(())
}
