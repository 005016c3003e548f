//! What two applications say to each other in these tests.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use testbed::{ConnectOpts, Listener, Pod, Puppet, PuppetError, Serve, Sock, pattern};

/// All addresses of both families.
pub fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

pub fn at(ip: impl Into<IpAddr>, port: u16) -> String {
    SocketAddr::new(ip.into(), port).to_string()
}

/// The pod's puppet serves [`Serve::Script`] on this port of every address.
pub fn serve(pod: &Pod, port: u16, serve: Serve) -> Listener {
    pod.puppet().unwrap().listen(any(port), serve).unwrap()
}

pub fn connect(from: &Pod, to: &str) -> Sock {
    from.puppet().unwrap().connect(to, ConnectOpts::default()).unwrap()
}

/// Both ends of one connection to a listener that nobody else talks to.
pub fn by_hand(from: &Pod, to: &str, listener: &Listener) -> (Sock, Sock) {
    let client = connect(from, to);
    (client, listener.accept(crate::SOON).unwrap())
}

/// What both ends of a connection to a [`Serve::Script`] see.
#[derive(Clone, Debug)]
pub struct Seen {
    /// getsockname and getpeername at the client.
    pub client: testbed::Names,
    /// getpeername at the server.
    pub peer: SocketAddr,
    /// getsockname at the server.
    pub local: SocketAddr,
}

/// Asks a [`Serve::Script`] who it thinks is talking to whom.
pub fn whoami(from: &Pod, to: &str) -> Result<Seen, PuppetError> {
    whoami_with(&from.puppet().unwrap(), to, ConnectOpts::default())
}

pub fn whoami_with(from: &Puppet, to: &str, opts: ConnectOpts) -> Result<Seen, PuppetError> {
    let sock = from.connect(to, opts)?;
    let seen = ask_whoami(&sock)?;
    sock.shutdown_write()?;
    sock.read_to_end()?;
    Ok(seen)
}

/// Over a new connection, which echoes from then on.
pub fn ask_whoami(sock: &Sock) -> Result<Seen, PuppetError> {
    sock.write(b"whoami\n")?;
    let line = read_line(sock)?;
    let client = sock.names()?;
    let line: Value = serde_json::from_str(&line).unwrap();
    let address = |name: &str| line[name].as_str().unwrap().parse().unwrap();
    Ok(Seen { client, peer: address("peer"), local: address("local") })
}

fn read_line(sock: &Sock) -> Result<String, PuppetError> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.extend(sock.read_exact(1)?);
    }
    Ok(String::from_utf8(line).unwrap())
}

/// One question and its answer over a new connection to a [`Serve::Script`]: does the path carry?
pub fn attempt(from: &Pod, to: &str) -> Result<(), PuppetError> {
    attempt_with(&from.puppet().unwrap(), to)
}

pub fn attempt_with(from: &Puppet, to: &str) -> Result<(), PuppetError> {
    let opts = ConnectOpts { timeout: Duration::from_secs(20), ..ConnectOpts::default() };
    let sock = from.connect(to, opts)?.within(Duration::from_secs(20));
    sock.write(b"echo\nping")?;
    let back = sock.read_exact(4)?;
    assert_eq!(back, b"ping");
    Ok(())
}

/// The path does not carry, and the client is told so by a reset, never by a clean end.
#[track_caller]
pub fn denied(from: &Pod, to: &str) {
    match attempt(from, to) {
        Ok(()) => panic!("{from:?} to {to} was allowed"),
        Err(e) => assert_eq!(e.kind(), "ECONNRESET", "{from:?} to {to}: {e}"),
    }
}

/// Sends so many bytes to an echo and compares what comes back.
pub fn echo(sock: &Sock, bytes: u64, seed: u64) -> Result<(), PuppetError> {
    let there = sock.clone();
    let sending = std::thread::spawn(move || there.send_pattern(bytes, seed));
    let back = sock.recv_pattern(Some(bytes))?;
    sending.join().unwrap()?;
    assert_eq!(back.sha256, pattern::sha256(bytes, seed), "the echo differs from what was sent");
    Ok(())
}

/// A connection to a [`Serve::Script`] that has been told to echo.
pub fn echo_to(from: &Pod, to: &str) -> Result<Sock, PuppetError> {
    let sock = from.puppet().unwrap().connect(to, ConnectOpts::default())?;
    sock.write(b"echo\n")?;
    Ok(sock)
}

/// A connection to a [`Serve::Script`] that sends a pattern, then ends.
pub fn fetch(from: &Pod, to: &str, bytes: u64, seed: u64) -> Result<Sock, PuppetError> {
    let sock = from.puppet().unwrap().connect(to, ConnectOpts::default())?;
    sock.write(format!("source {bytes} {seed}\n").as_bytes())?;
    Ok(sock)
}
