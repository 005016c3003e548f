//! Sockets by bare system calls: raw and packet sockets, odd options, odd orders.

use std::net::SocketAddr;
use std::time::Duration;

use libc::{c_int, c_long};

use super::protocol::{Arg, Command, Opened, Returned};
use super::{DEFAULT_DEADLINE, Puppet, PuppetError, Sock};
use crate::pattern::{hex, unhex};

impl Puppet {
    /// A socket of any kind.
    pub fn raw_socket(
        &self,
        domain: c_int,
        kind: c_int,
        protocol: c_int,
    ) -> Result<RawSocket, PuppetError> {
        let args = [domain, kind | libc::SOCK_CLOEXEC, protocol].map(int);
        let made = self.syscall(libc::SYS_socket, args.into())?;
        let fd = i32::try_from(made.value).unwrap_or(-1);
        Ok(RawSocket { puppet: self.clone(), fd })
    }

    /// A TCP socket of the address's family, whose calls give up after a few seconds.
    pub fn tcp_socket(&self, like: SocketAddr) -> Result<RawSocket, PuppetError> {
        let domain = if like.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = self.raw_socket(domain, libc::SOCK_STREAM, 0)?;
        socket.patience(Duration::from_secs(5))?;
        Ok(socket)
    }

    /// A UDP socket of the address's family, whose calls give up after a few seconds.
    pub fn udp_socket(&self, like: SocketAddr) -> Result<RawSocket, PuppetError> {
        let domain = if like.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = self.raw_socket(domain, libc::SOCK_DGRAM, 0)?;
        socket.patience(Duration::from_secs(5))?;
        Ok(socket)
    }

    fn syscall(&self, number: c_long, args: Vec<Arg>) -> Result<Returned, PuppetError> {
        self.call(Command::Syscall { number, args }, DEFAULT_DEADLINE)
    }
}

fn int(n: c_int) -> Arg {
    Arg::Int(n.into())
}

fn bytes(b: &[u8]) -> Arg {
    Arg::Bytes(hex(b))
}

/// A socket in the puppet's process. Closed when it is dropped.
#[derive(Debug)]
pub struct RawSocket {
    puppet: Puppet,
    fd: i32,
}

impl RawSocket {
    /// setsockopt
    pub fn set(&self, level: c_int, name: c_int, value: &[u8]) -> Result<(), PuppetError> {
        let len = Arg::Int(value.len() as i64);
        let args = vec![int(self.fd), int(level), int(name), bytes(value), len];
        self.puppet.syscall(libc::SYS_setsockopt, args).map(drop)
    }

    pub fn set_int(&self, level: c_int, name: c_int, value: c_int) -> Result<(), PuppetError> {
        self.set(level, name, &value.to_ne_bytes())
    }

    /// getsockopt: what the kernel gives, of at most `room` bytes.
    pub fn get(&self, level: c_int, name: c_int, room: usize) -> Result<Vec<u8>, PuppetError> {
        let len = u32::try_from(room).unwrap_or(u32::MAX).to_ne_bytes();
        let args = vec![int(self.fd), int(level), int(name), bytes(&vec![0; room]), bytes(&len)];
        let got = self.puppet.syscall(libc::SYS_getsockopt, args)?;
        let given = buffer(&got, 1).try_into().map_or(0, u32::from_ne_bytes);
        let mut value = buffer(&got, 0);
        value.truncate(given as usize);
        Ok(value)
    }

    /// ioctl with a number that the kernel fills in, as SIOCINQ and SIOCOUTQ do.
    pub fn ioctl(&self, request: u32) -> Result<u32, PuppetError> {
        let args = vec![int(self.fd), Arg::Int(request.into()), bytes(&[0; 4])];
        let got = self.puppet.syscall(libc::SYS_ioctl, args)?;
        Ok(buffer(&got, 0).try_into().map_or(0, u32::from_ne_bytes))
    }

    /// shutdown
    pub fn shutdown(&self, how: c_int) -> Result<(), PuppetError> {
        self.puppet.syscall(libc::SYS_shutdown, vec![int(self.fd), int(how)]).map(drop)
    }

    /// How long a connect, a send or a receive may take.
    pub fn patience(&self, patience: Duration) -> Result<(), PuppetError> {
        let time = [patience.as_secs(), patience.subsec_micros().into()];
        let time: Vec<u8> = time.iter().flat_map(|n| n.to_ne_bytes()).collect();
        self.set(libc::SOL_SOCKET, libc::SO_SNDTIMEO, &time)?;
        self.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &time)
    }

    pub fn bind(&self, to: SocketAddr) -> Result<(), PuppetError> {
        self.bind_to(&sockaddr(to))
    }

    /// bind to an address of any family.
    pub fn bind_to(&self, address: &[u8]) -> Result<(), PuppetError> {
        self.with_address(libc::SYS_bind, address)
    }

    pub fn connect(&self, to: SocketAddr) -> Result<(), PuppetError> {
        self.with_address(libc::SYS_connect, &sockaddr(to))
    }

    /// connect to AF_UNSPEC, which takes a connection back.
    pub fn disconnect(&self) -> Result<(), PuppetError> {
        self.with_address(libc::SYS_connect, &[0; 16])
    }

    /// IORING_OP_CONNECT
    pub fn connect_by_io_uring(&self, to: SocketAddr) -> Result<(), PuppetError> {
        let command = Command::RingConnect { fd: self.fd, to };
        self.puppet.call::<serde_json::Value>(command, DEFAULT_DEADLINE).map(drop)
    }

    fn with_address(&self, number: c_long, address: &[u8]) -> Result<(), PuppetError> {
        let args = vec![int(self.fd), bytes(address), Arg::Int(address.len() as i64)];
        self.puppet.syscall(number, args).map(drop)
    }

    pub fn listen(&self, backlog: c_int) -> Result<(), PuppetError> {
        self.puppet.syscall(libc::SYS_listen, vec![int(self.fd), int(backlog)]).map(drop)
    }

    pub fn accept(&self) -> Result<RawSocket, PuppetError> {
        let args = vec![int(self.fd), Arg::Int(0), Arg::Int(0)];
        let made = self.puppet.syscall(libc::SYS_accept, args)?;
        Ok(RawSocket { puppet: self.puppet.clone(), fd: i32::try_from(made.value).unwrap_or(-1) })
    }

    /// sendto; how many bytes were taken. An empty address is none.
    pub fn send_to(&self, data: &[u8], flags: c_int, to: &[u8]) -> Result<usize, PuppetError> {
        let address = if to.is_empty() { Arg::Int(0) } else { bytes(to) };
        let (len, address_len) = (Arg::Int(data.len() as i64), Arg::Int(to.len() as i64));
        let args = vec![int(self.fd), bytes(data), len, int(flags), address, address_len];
        let sent = self.puppet.syscall(libc::SYS_sendto, args)?;
        Ok(usize::try_from(sent.value).unwrap_or(0))
    }

    pub fn send(&self, data: &[u8]) -> Result<usize, PuppetError> {
        self.send_to(data, libc::MSG_NOSIGNAL, &[])
    }

    /// What one receive brings, at most `max`; nothing at the end of a stream.
    pub fn receive(&self, max: usize) -> Result<Vec<u8>, PuppetError> {
        let len = Arg::Int(max as i64);
        let none = Arg::Int(0);
        let args = vec![int(self.fd), bytes(&vec![0; max]), len, int(0), none.clone(), none];
        let got = self.puppet.syscall(libc::SYS_recvfrom, args)?;
        let mut data = got.buffers.first().and_then(|b| unhex(b)).unwrap_or_default();
        data.truncate(usize::try_from(got.value).unwrap_or(0));
        Ok(data)
    }

    /// A datagram of at most `max` bytes, and whom the kernel names as its sender.
    pub fn receive_from(&self, max: usize) -> Result<(Vec<u8>, SocketAddr), PuppetError> {
        let (len, room) = (Arg::Int(max as i64), bytes(&(SOCKADDR as u32).to_ne_bytes()));
        let data = bytes(&vec![0; max]);
        let args = vec![int(self.fd), data, len, int(0), bytes(&[0; SOCKADDR]), room];
        let got = self.puppet.syscall(libc::SYS_recvfrom, args)?;
        let mut data = buffer(&got, 0);
        data.truncate(usize::try_from(got.value).unwrap_or(0));
        Ok((data, parsed(&buffer(&got, 1))?))
    }

    /// getsockname
    pub fn local(&self) -> Result<SocketAddr, PuppetError> {
        self.name(libc::SYS_getsockname)
    }

    /// getpeername
    pub fn peer(&self) -> Result<SocketAddr, PuppetError> {
        self.name(libc::SYS_getpeername)
    }

    fn name(&self, number: c_long) -> Result<SocketAddr, PuppetError> {
        let room = bytes(&(SOCKADDR as u32).to_ne_bytes());
        let args = vec![int(self.fd), bytes(&[0; SOCKADDR]), room];
        parsed(&buffer(&self.puppet.syscall(number, args)?, 0))
    }

    /// From here on it is an ordinary connected socket.
    pub fn into_sock(self) -> Result<Sock, PuppetError> {
        let me = std::mem::ManuallyDrop::new(self);
        let opened: Opened = me.puppet.call(Command::Adopt { fd: me.fd }, DEFAULT_DEADLINE)?;
        Ok(Sock::new(me.puppet.clone(), opened))
    }
}

impl Drop for RawSocket {
    fn drop(&mut self) {
        let close = Command::Syscall { number: libc::SYS_close, args: vec![int(self.fd)] };
        // Not waited for: a puppet that is gone has closed it anyhow.
        let _ = self.puppet.send(close, DEFAULT_DEADLINE);
    }
}

/// Of a `sockaddr_in6`.
const SOCKADDR: usize = 28;

fn buffer(of: &Returned, number: usize) -> Vec<u8> {
    of.buffers.get(number).and_then(|b| unhex(b)).unwrap_or_default()
}

/// What [`sockaddr`] makes.
fn parsed(address: &[u8]) -> Result<SocketAddr, PuppetError> {
    let strange = || PuppetError::new("other", format!("a strange address: {address:?}"));
    let (family, rest) = address.split_first_chunk().ok_or_else(strange)?;
    let (port, rest) = rest.split_first_chunk().ok_or_else(strange)?;
    let port = u16::from_be_bytes(*port);
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => {
            let ip: &[u8; 4] = rest.first_chunk().ok_or_else(strange)?;
            Ok((*ip, port).into())
        }
        libc::AF_INET6 => {
            let ip: &[u8; 16] = rest.get(4..).and_then(|r| r.first_chunk()).ok_or_else(strange)?;
            Ok((*ip, port).into())
        }
        _ => Err(strange()),
    }
}

/// A `sockaddr_in` or `sockaddr_in6`.
pub fn sockaddr(of: SocketAddr) -> Vec<u8> {
    let mut out = Vec::new();
    let family = if of.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    out.extend((family as u16).to_ne_bytes());
    out.extend(of.port().to_be_bytes());
    match of {
        SocketAddr::V4(v4) => {
            out.extend(v4.ip().octets());
            out.extend([0; 8]);
        }
        SocketAddr::V6(v6) => {
            out.extend([0; 4]);
            out.extend(v6.ip().octets());
            out.extend(v6.scope_id().to_ne_bytes());
        }
    }
    out
}

impl std::fmt::Debug for Puppet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Puppet({})", self.pid())
    }
}
