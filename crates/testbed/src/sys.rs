//! System calls that `nix` does not offer under the features in use: AF_PACKET, recvmmsg, poll.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// What the kernel counted on a packet socket since it was last asked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PacketStatistics {
    pub drops: u64,
}

/// A packet socket that records both directions of one interface, in the calling thread's namespace.
pub(crate) fn packet_socket(ifindex: u32, receive_buffer: i32) -> io::Result<OwnedFd> {
    // Protocol 0: nothing is received before bind() has chosen the interface.
    // SAFETY: no pointers; the result is checked.
    let fd =
        check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: fd was just returned by socket() and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    set_int(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, receive_buffer)?;
    // SAFETY: sockaddr_ll is plain data, for which all zeroes is a value.
    let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    addr.sll_family = libc::AF_PACKET as u16;
    addr.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    addr.sll_ifindex = ifindex as i32;
    // SAFETY: the address is a sockaddr_ll that lives through the call, and its length is given.
    check(unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const addr).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    })?;
    Ok(fd)
}

pub(crate) fn packet_statistics(fd: BorrowedFd<'_>) -> io::Result<PacketStatistics> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the buffer is a tpacket_stats and `len` says so.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut len,
        )
    })?;
    Ok(PacketStatistics { drops: stats.tp_drops.into() })
}

fn set_int(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the option value is an int that lives through the call, and its length is given.
    check(unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Buffers for many packets per system call.
pub(crate) struct Batch {
    buffers: Vec<Vec<u8>>,
    /// Per packet: how long it was on the wire, which may be more than was kept.
    lengths: Vec<usize>,
}

impl Batch {
    pub fn new(packets: usize, bytes_each: usize) -> Self {
        Self { buffers: vec![vec![0; bytes_each]; packets], lengths: Vec::new() }
    }

    /// Receives what is queued, up to the batch's size. Waits up to `timeout_ms` for the first packet; none is `Ok(0)`.
    pub fn receive(&mut self, fd: BorrowedFd<'_>, timeout_ms: i32) -> io::Result<usize> {
        self.lengths.clear();
        if !readable(&[fd], timeout_ms)?.contains(&true) {
            return Ok(0);
        }
        let mut parts: Vec<libc::iovec> = self
            .buffers
            .iter_mut()
            .map(|b| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: mmsghdr is plain data, for which all zeroes is a value.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        // MSG_TRUNC: report the real length of a packet that did not fit.
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        // SAFETY: every header points at one iovec, which points at a buffer of its stated length; all outlive the
        // call and nothing else refers to them meanwhile.
        let n = unsafe {
            libc::recvmmsg(
                fd.as_raw_fd(),
                messages.as_mut_ptr(),
                messages.len() as libc::c_uint,
                flags as _,
                std::ptr::null_mut(),
            )
        };
        let n = match check(n) {
            Ok(n) => n as usize,
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                0
            }
            Err(e) => return Err(e),
        };
        self.lengths.extend(messages.iter().take(n).map(|m| m.msg_len as usize));
        Ok(n)
    }

    /// What the last `receive` brought: the bytes kept and the length on the wire.
    pub fn packets(&self) -> impl Iterator<Item = (&[u8], usize)> {
        self.buffers.iter().zip(&self.lengths).map(|(b, &len)| (b.get(..len).unwrap_or(b), len))
    }
}

/// Waits until one of the descriptors has something to read, or has ended; says which.
pub(crate) fn readable(fds: &[BorrowedFd<'_>], timeout_ms: i32) -> io::Result<Vec<bool>> {
    let mut polled: Vec<libc::pollfd> = fds
        .iter()
        .map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    // SAFETY: the array and its length belong together and live through the call.
    let n = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout_ms) };
    match check(n) {
        Ok(_) => Ok(polled.iter().map(|p| p.revents != 0).collect()),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(vec![false; fds.len()]),
        Err(e) => Err(e),
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
