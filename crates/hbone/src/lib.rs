//! HBONE: byte streams between workloads, as HTTP/2 CONNECT over mutual TLS.
//!
//! [`Pool`] gives a client streams over shared connections, [`ServerConnection`] gives a server the
//! streams of one, and [`relay`] moves bytes between any two ends, half-close, reset and
//! backpressure included. All are generic over the transport beneath.
//!
//! A stream that nobody reads stalls no other: the connection window is never smaller than the sum
//! of the windows of its streams (see [`Windows`]).

mod authority;
mod client;
mod headers;
mod pool;
mod relay;
mod server;
mod stream_io;
mod transport;

pub use authority::{Authority, AuthorityError};
pub use client::{ClientConnection, ClientError, ClientStream, Expected, handshake};
pub use headers::{Baggage, Forwarded};
pub use pool::{Bookkeeping, Dial, DialError, Dialled, Lease, Next, Pool, PoolConfig, PoolError};
pub use relay::{Broken, End, Relayed, Side, relay};
pub use server::{InboundStream, ServerConnection, ServerError, accept};
pub use stream_io::StreamIo;
pub use transport::{Outlet, Transport, transport};

use std::time::Duration;

/// HTTP/2 limits of a connection, the same at both ends.
///
/// `h2` returns a stream's credit and the connection's together, when the reader takes the bytes.
/// With a connection window of `streams` x `stream`, streams that are neglected hold their own
/// credit and nobody else's. At 128 streams of 512 KiB a connection whose every stream is neglected
/// holds 64 MiB, and a single stream still moves 5 GB/s at a round trip of 100 us. A connection itself
/// takes some 50 KB at either end, whatever its streams.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Bytes.
    pub stream: u32,
    /// Streams open at once on a connection.
    pub streams: u32,
    /// Bytes.
    pub frame: u32,
    /// Bytes of a header list, decoded.
    pub headers: u32,
    /// Bytes of one stream that wait to be sent.
    pub send_buffer: usize,
}

/// Bytes that are read and sent as one DATA frame: with its header of nine, what four TLS records hold.
/// Four times as much at a time is no faster.
pub(crate) const CHUNK: usize = 64 * 1024 - 9;

// Windows and buffers are whole frames: a remainder would go as a small frame of its own.
pub const WINDOWS: Windows = Windows {
    stream: 8 * CHUNK as u32,
    streams: 128,
    frame: 64 * 1024,
    headers: 16 * 1024,
    send_buffer: 4 * CHUNK,
};

impl Windows {
    pub(crate) fn connection(&self) -> u32 {
        self.stream.saturating_mul(self.streams)
    }
}

/// TLS and HTTP/2 handshakes that take longer are given up.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A CONNECT that is not answered by then has failed.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a connection is asked whether the peer is still there, and for how long.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);
