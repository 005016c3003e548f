//! Sockets and listeners that a puppet holds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::protocol::{Amount, Command, Data, Listening, Names, Opened, SockOption};
use super::{DEFAULT_DEADLINE, Puppet, PuppetError, Received, Sent};
use crate::pattern::{hex, unhex};

/// A listening socket. Dropping the handle does not close it, so that a server may be left to itself.
#[derive(Clone)]
pub struct Listener {
    puppet: Puppet,
    id: u64,
    addr: SocketAddr,
}

impl Listener {
    pub(super) fn new(puppet: Puppet, listening: Listening) -> Self {
        Self { puppet, id: listening.listener, addr: listening.addr }
    }

    /// The bound address; its port is the kernel's choice when 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Takes the next connection of a [`super::Serve::Manual`] listener.
    pub fn accept(&self, deadline: Duration) -> Result<Sock, PuppetError> {
        let opened: Opened = self.puppet.call(Command::Accept { listener: self.id }, deadline)?;
        Ok(Sock::new(self.puppet.clone(), opened))
    }

    /// Stops listening. Connections that were accepted go on.
    pub fn close(self) -> Result<(), PuppetError> {
        let _: Value =
            self.puppet.call(Command::CloseListener { listener: self.id }, DEFAULT_DEADLINE)?;
        Ok(())
    }
}

/// A connected socket. The last handle closes it. Reading and writing may go on at the same time.
#[derive(Clone)]
pub struct Sock {
    end: Arc<End>,
    deadline: Duration,
}

struct End {
    puppet: Puppet,
    id: u64,
    opened_as: Names,
}

impl Sock {
    pub(super) fn new(puppet: Puppet, opened: Opened) -> Self {
        let end = End { puppet, id: opened.sock, opened_as: opened.names };
        Self { end: Arc::new(end), deadline: DEFAULT_DEADLINE }
    }

    /// The same socket with another deadline for each call (60 s unless set). One that passes is the kind `timeout`;
    /// the socket stays usable.
    pub fn within(&self, deadline: Duration) -> Self {
        Self { end: self.end.clone(), deadline }
    }

    pub fn write(&self, data: &[u8]) -> Result<(), PuppetError> {
        self.done(Command::Write { sock: self.end.id, hex: hex(data) })
    }

    /// Exactly `n` bytes; an end before that is the kind `eof`.
    pub fn read_exact(&self, n: usize) -> Result<Vec<u8>, PuppetError> {
        self.read(Amount::Exact(n as u64))
    }

    /// All up to the peer's FIN. A reset is an error, even after some bytes: `PuppetError::bytes` says how many.
    pub fn read_to_end(&self) -> Result<Vec<u8>, PuppetError> {
        self.read(Amount::ToEnd)
    }

    /// What one read brings, at most `max`; nothing at EOF.
    pub fn read_some(&self, max: usize) -> Result<Vec<u8>, PuppetError> {
        self.read(Amount::Some(max as u64))
    }

    /// Sends the first `bytes` of a [`crate::pattern`].
    pub fn send_pattern(&self, bytes: u64, seed: u64) -> Result<Sent, PuppetError> {
        self.call(Command::SendPattern { sock: self.end.id, bytes, seed })
    }

    /// Receives `bytes` (`None`: to the end) and keeps only their number and checksum.
    pub fn recv_pattern(&self, bytes: Option<u64>) -> Result<Received, PuppetError> {
        self.call(Command::RecvPattern { sock: self.end.id, bytes })
    }

    /// Sends a FIN.
    pub fn shutdown_write(&self) -> Result<(), PuppetError> {
        self.done(Command::ShutdownWrite { sock: self.end.id })
    }

    /// Closes with a RST (SO_LINGER 0). Calls under way end with the kind `closed`.
    pub fn reset(&self) -> Result<(), PuppetError> {
        self.done(Command::Close { sock: self.end.id, reset: true })
    }

    /// Closes; unread data makes it a RST, as for any application. Calls under way end with the kind `closed`.
    pub fn close(&self) -> Result<(), PuppetError> {
        self.done(Command::Close { sock: self.end.id, reset: false })
    }

    /// What getsockname and getpeername say now.
    pub fn names(&self) -> Result<Names, PuppetError> {
        self.call(Command::Names { sock: self.end.id })
    }

    /// SO_RCVBUF in bytes; the kernel doubles it.
    pub fn set_rcvbuf(&self, bytes: u32) -> Result<(), PuppetError> {
        self.set(SockOption::RecvBuffer(bytes))
    }

    /// SO_SNDBUF in bytes; the kernel doubles it.
    pub fn set_sndbuf(&self, bytes: u32) -> Result<(), PuppetError> {
        self.set(SockOption::SendBuffer(bytes))
    }

    /// TCP_NODELAY, which is on from the start.
    pub fn set_nodelay(&self, on: bool) -> Result<(), PuppetError> {
        self.set(SockOption::NoDelay(on))
    }

    pub fn set_keepalive(&self, on: bool) -> Result<(), PuppetError> {
        self.set(SockOption::KeepAlive(on))
    }

    /// IP_OPTIONS: from now on its packets have IPv4 headers of 24 bytes.
    pub fn set_empty_ip_options(&self) -> Result<(), PuppetError> {
        self.set(SockOption::EmptyIpOptions)
    }

    /// What they said when it was opened: a socket that has been reset has no peer any more.
    pub fn opened_as(&self) -> Names {
        self.end.opened_as
    }

    fn set(&self, option: SockOption) -> Result<(), PuppetError> {
        self.done(Command::SetOption { sock: self.end.id, option })
    }

    fn read(&self, amount: Amount) -> Result<Vec<u8>, PuppetError> {
        let data: Data = self.call(Command::Read { sock: self.end.id, amount })?;
        unhex(&data.hex).ok_or_else(|| PuppetError::new("other", "the puppet's answer is no hex"))
    }

    fn done(&self, command: Command) -> Result<(), PuppetError> {
        let _: Value = self.call(command)?;
        Ok(())
    }

    fn call<T: serde::de::DeserializeOwned>(&self, command: Command) -> Result<T, PuppetError> {
        self.end.puppet.call(command, self.deadline)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Not waited for: a drop must not block, and a puppet that is gone has closed it anyhow.
        let _ = self.puppet.send(Command::Close { sock: self.id, reset: false }, DEFAULT_DEADLINE);
    }
}

impl std::fmt::Debug for Sock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sock({})", self.end.id)
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Listener({})", self.addr)
    }
}
