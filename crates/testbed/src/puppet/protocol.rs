//! What the library and `bed-puppet` say to each other: one JSON object per line, each way.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Raised with every change to the types below: a puppet left over from an older build is told apart.
pub const VERSION: u32 = 2;

/// The first line that a puppet writes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    pub puppet: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub id: u64,
    /// After this the puppet answers with the kind `timeout`.
    pub deadline_ms: u64,
    #[serde(flatten)]
    pub command: Command,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Response {
    pub id: u64,
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Ok(Value),
    Err(PuppetError),
}

/// Why the puppet could not do what it was told.
#[derive(Clone, Debug, thiserror::Error, Serialize, Deserialize)]
#[error("{msg} [{kind}]")]
pub struct PuppetError {
    /// The errno's name (`ECONNRESET`), or `timeout`, `eof`, `closed`, `resolve`, `data`, `gone`, `other`.
    pub kind: String,
    pub errno: Option<i32>,
    pub msg: String,
    /// How many bytes this call had moved before it failed.
    #[serde(default)]
    pub bytes: u64,
}

impl PuppetError {
    pub fn new(kind: &str, msg: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), errno: None, msg: msg.into(), bytes: 0 }
    }

    pub fn kind(&self) -> &str {
        &self.kind
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "kebab-case")]
pub enum Command {
    Listen { addr: SocketAddr, serve: Serve },
    Accept { listener: u64 },
    CloseListener { listener: u64 },
    Connect { addr: String, opts: ConnectOpts },
    Write { sock: u64, hex: String },
    Read { sock: u64, amount: Amount },
    SendPattern { sock: u64, bytes: u64, seed: u64 },
    RecvPattern { sock: u64, bytes: Option<u64> },
    ShutdownWrite { sock: u64 },
    Close { sock: u64, reset: bool },
    Names { sock: u64 },
    SetOption { sock: u64, option: SockOption },
    HoldOpen { addr: String, count: u32, bytes_each_way: u64, seed: u64 },
    ShortConnections { addr: String, count: u32, concurrency: u32 },
    Resolve { name: String },
    Syscall { number: i64, args: Vec<Arg> },
    RingConnect { fd: i32, to: SocketAddr },
    Adopt { fd: i32 },
}

/// An argument of a system call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arg {
    Int(i64),
    /// A pointer to these bytes, in hex; what the kernel leaves there comes back.
    Bytes(String),
}

/// What a system call that did not fail has returned, and what it left in its buffers, in hex.
#[derive(Debug, Serialize, Deserialize)]
pub struct Returned {
    pub value: i64,
    pub buffers: Vec<String>,
}

/// What a listener does with each connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Serve {
    /// Leaves it to [`crate::Listener::accept`].
    Manual,
    /// Echoes until EOF, then closes.
    Echo,
    /// Reads all to EOF, then answers `<bytes> <sha256>\n` and closes.
    Sink,
    /// The client's first line chooses: `echo`, `sink`, `source <n> <seed>` (a [`crate::pattern`], then FIN),
    /// `whoami` (a JSON line with `peer` and `local`, IPv4 never mapped, then echo), `stall` (never reads, stays open), `rst`,
    /// `reply-after-eof` (reads to EOF, then answers `got <n> <sha256>\n`), `close-now`.
    Script,
    /// Server first: sends this text, then echoes.
    Banner(String),
}

/// How to connect.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnectOpts {
    /// For resolution and all addresses together; past it the error's kind is `timeout`.
    pub timeout: Duration,
    /// Local address, before connecting.
    pub bind: Option<SocketAddr>,
    /// IPV6_V6ONLY of an IPv6 socket.
    pub v6only: Option<bool>,
    /// Reach an IPv4 address through an AF_INET6 socket, as `::ffff:a.b.c.d`.
    pub mapped: bool,
    /// SO_BINDTODEVICE.
    pub bind_device: Option<String>,
}

impl Default for ConnectOpts {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(60),
            bind: None,
            v6only: None,
            mapped: false,
            bind_device: None,
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Amount {
    Exact(u64),
    /// One read of at most so much. None at all means EOF.
    Some(u64),
    ToEnd,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SockOption {
    RecvBuffer(u32),
    SendBuffer(u32),
    NoDelay(bool),
    KeepAlive(bool),
    /// IP_OPTIONS: its packets have IPv4 headers of 24 bytes, the last four of which say nothing.
    EmptyIpOptions,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Listening {
    pub listener: u64,
    pub addr: SocketAddr,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Opened {
    pub sock: u64,
    pub names: Names,
}

/// The two ends of a socket, as getsockname and getpeername tell them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    pub local: SocketAddr,
    pub peer: SocketAddr,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Data {
    pub hex: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Resolved {
    pub addrs: Vec<IpAddr>,
}

/// What was sent of a pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    pub bytes: u64,
    pub sha256: String,
    pub elapsed: Duration,
}

/// What was received, without keeping it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    pub bytes: u64,
    pub sha256: String,
    pub elapsed: Duration,
}

/// Many connections that were open at the same time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkReport {
    pub opened: u64,
    /// Connections that brought every byte back unchanged.
    pub ok: u64,
    /// How many failed, by the error's kind.
    pub failed: BTreeMap<String, u64>,
    pub elapsed: Duration,
}

/// Many connections that carried one request each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShortReport {
    pub ok: u64,
    /// How many failed, by the error's kind.
    pub failed: BTreeMap<String, u64>,
    pub elapsed: Duration,
    /// From before connect() to the last byte of the echo.
    pub median: Duration,
    pub p99: Duration,
}
