//! The little of rtnetlink and sock_diag that a pod's namespace needs, on a socket of the calling
//! thread's namespace: its links and addresses, one rule and two routes, and its TCP connections.

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// Whether an object is to be there or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    There,
    Gone,
}

/// A network interface of the namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub loopback: bool,
    pub up: bool,
    /// `veth`, `macvlan`, ...; physical devices have none.
    pub kind: Option<String>,
    /// Index of the other end, in the namespace where that is.
    pub peer: Option<u32>,
    /// This namespace's number for that one; none when it is the same.
    pub peer_netns: Option<u32>,
}

/// Every link of this thread's namespace.
pub fn links() -> io::Result<Vec<Link>> {
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINK: u16 = 5;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_LINK_NETNSID: u16 = 37;
    const IFLA_INFO_KIND: u16 = 1;
    const IFF_UP: u32 = 1;
    const IFF_LOOPBACK: u32 = 8;
    let mut out = Vec::new();
    dump(SockProtocol::NetlinkRoute, RTM_GETLINK, &[0; 16], RTM_NEWLINK, |body| {
        let (Some(index), Some(flags)) = (u32_at(body, 4), u32_at(body, 8)) else { return };
        let mut link = Link {
            index,
            name: String::new(),
            loopback: flags & IFF_LOOPBACK != 0,
            up: flags & IFF_UP != 0,
            kind: None,
            peer: None,
            peer_netns: None,
        };
        for (kind, value) in attributes(body.get(16..).unwrap_or_default()) {
            match kind {
                IFLA_IFNAME => link.name = text(value),
                IFLA_LINK => link.peer = u32_at(value, 0),
                IFLA_LINK_NETNSID => link.peer_netns = u32_at(value, 0),
                IFLA_LINKINFO => {
                    link.kind =
                        attributes(value).find(|(k, _)| *k == IFLA_INFO_KIND).map(|(_, v)| text(v));
                }
                _ => {}
            }
        }
        out.push(link);
    })?;
    Ok(out)
}

/// This thread's namespace's number for another one; it has none before a dump of links has named it.
pub fn netns_number(netns: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    const NETNSA_NSID: u16 = 1;
    const NETNSA_FD: u16 = 3;
    let s = open(SockProtocol::NetlinkRoute)?;
    let mut body = vec![0; 4];
    attribute(&mut body, NETNSA_FD, &netns.as_raw_fd().to_ne_bytes());
    send(&s, RTM_GETNSID, NLM_F_REQUEST, &body)?;
    let mut buffer = vec![0u8; 8192];
    let n = recv(s.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let answer = buffer.get(..n).unwrap_or_default();
    if u16_at(answer, 4) != Some(RTM_NEWNSID) {
        return Err(io::Error::from_raw_os_error(error_of(answer).unwrap_or(libc::EIO)));
    }
    let mut found = attributes(answer.get(20..).unwrap_or_default());
    let number = found.find(|(k, _)| *k == NETNSA_NSID).and_then(|(_, v)| u32_at(v, 0));
    // -1: never numbered.
    Ok(number.filter(|n| *n != u32::MAX))
}

/// Every global address of this thread's namespace.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const RT_SCOPE_UNIVERSE: u8 = 0;
    let mut out = Vec::new();
    dump(SockProtocol::NetlinkRoute, RTM_GETADDR, &[0; 8], RTM_NEWADDR, |body| {
        if body.get(3) != Some(&RT_SCOPE_UNIVERSE) {
            return;
        }
        let rest = body.get(8..).unwrap_or_default();
        let find = |wanted| attributes(rest).find(|(k, _)| *k == wanted).and_then(|(_, v)| ip(v));
        if let Some(ip) = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS)) {
            out.push(ip);
        }
    })?;
    Ok(out)
}

/// One TCP socket of the namespace, other than listeners.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpSocket {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Sends nothing more but empty segments.
    pub time_wait: bool,
    /// Has sent a SYN, and no answer has come yet.
    pub connecting: bool,
}

/// Every TCP connection of this thread's namespace, from SYN_SENT on (sock_diag).
pub fn tcp_sockets() -> io::Result<Vec<TcpSocket>> {
    let mut out = Vec::new();
    each_tcp_socket(OPEN, 0, |socket, _| out.push(socket))?;
    Ok(out)
}

/// Whether a connection to this thread's namespace has begun and is not accepted by its other end yet.
pub fn tcp_half_open() -> io::Result<bool> {
    const TCP_SYN_RECV: u32 = 3;
    let mut any = false;
    each_tcp_socket(1 << TCP_SYN_RECV, 0, |_, _| any = true)?;
    Ok(any)
}

/// Bytes that the connections of this thread's namespace have sent and received.
pub fn tcp_bytes() -> io::Result<HashMap<(SocketAddr, SocketAddr), (u64, u64)>> {
    const INET_DIAG_INFO: u16 = 2;
    // Of struct tcp_info: tcpi_bytes_acked, tcpi_bytes_received.
    const ACKED: usize = 120;
    const RECEIVED: usize = 128;
    let mut out = HashMap::new();
    each_tcp_socket(OPEN, 1 << (INET_DIAG_INFO - 1), |socket, more| {
        if let Some((_, info)) = attributes(more).find(|(kind, _)| *kind == INET_DIAG_INFO)
            && let (Some(acked), Some(received)) = (u64_at(info, ACKED), u64_at(info, RECEIVED))
        {
            // The SYN counts as one.
            out.insert((socket.local, socket.remote), (acked.saturating_sub(1), received));
        }
    })?;
    Ok(out)
}

/// All states but those of listeners and of what is closed.
const OPEN: u32 = {
    const TCP_LISTEN: u32 = 10;
    const TCP_CLOSE: u32 = 7;
    !(1 << TCP_LISTEN | 1 << TCP_CLOSE)
};

/// Of these `states`. `extensions`: what is to be told beside; it comes as attributes.
fn each_tcp_socket(
    states: u32,
    extensions: u8,
    mut each: impl FnMut(TcpSocket, &[u8]),
) -> io::Result<()> {
    const TCP_TIME_WAIT: u8 = 6;
    const TCP_SYN_SENT: u8 = 2;
    const IPPROTO_TCP: u8 = 6;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0u8; 56];
        request[0] = u8::try_from(family).unwrap_or_default();
        request[1] = IPPROTO_TCP;
        request[2] = extensions;
        request[4..8].copy_from_slice(&states.to_ne_bytes());
        let diag = SockProtocol::NetlinkSockDiag;
        dump(diag, SOCK_DIAG_BY_FAMILY, &request, SOCK_DIAG_BY_FAMILY, |body| {
            let v4 = body.first() == Some(&2);
            let (Some(sport), Some(dport)) = (be_u16_at(body, 4), be_u16_at(body, 6)) else {
                return;
            };
            let address = |at: usize| ip(body.get(at..at + if v4 { 4 } else { 16 })?);
            if let (Some(src), Some(dst)) = (address(8), address(24)) {
                let socket = TcpSocket {
                    time_wait: body.get(1) == Some(&TCP_TIME_WAIT),
                    connecting: body.get(1) == Some(&TCP_SYN_SENT),
                    local: SocketAddr::new(src.to_canonical(), sport),
                    remote: SocketAddr::new(dst.to_canonical(), dport),
                };
                each(socket, body.get(72..).unwrap_or_default());
            }
        })?;
    }
    Ok(())
}

/// Resets a TCP connection of this thread's namespace (`SOCK_DESTROY`). By its cookie: without one the
/// kernel takes a listener where the connection is gone.
pub fn destroy_tcp(local: SocketAddr, remote: SocketAddr, cookie: u64) -> io::Result<()> {
    if destroy_on(0, local, remote, cookie)? {
        return Ok(());
    }
    // One that is bound to an interface is found by that alone (`inet_sk_bound_dev_eq`).
    for link in links()? {
        if destroy_on(link.index, local, remote, cookie)? {
            break;
        }
    }
    // Gone is as well.
    Ok(())
}

/// Whether there was one. `interface`: 0 for none.
fn destroy_on(
    interface: u32,
    local: SocketAddr,
    remote: SocketAddr,
    cookie: u64,
) -> io::Result<bool> {
    let body = one_tcp_socket(interface, local, remote, cookie);
    let s = open(SockProtocol::NetlinkSockDiag)?;
    send(&s, SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, &body)?;
    let mut buffer = vec![0u8; 8192];
    let n = recv(s.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    match error_of(buffer.get(..n).unwrap_or_default()) {
        Some(0) => Ok(true),
        Some(libc::ENOENT | libc::ESTALE) => Ok(false),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::other("netlink answered something else")),
    }
}

/// `struct inet_diag_req_v2` for one socket.
fn one_tcp_socket(interface: u32, local: SocketAddr, remote: SocketAddr, cookie: u64) -> Vec<u8> {
    const IPPROTO_TCP: u8 = 6;
    let mut body = vec![family(local.is_ipv6()), IPPROTO_TCP, 0, 0];
    body.extend_from_slice(&u32::MAX.to_ne_bytes());
    body.extend_from_slice(&local.port().to_be_bytes());
    body.extend_from_slice(&remote.port().to_be_bytes());
    for ip in [local.ip(), remote.ip()] {
        let mut sixteen = [0u8; 16];
        match ip {
            IpAddr::V4(ip) => sixteen.iter_mut().zip(ip.octets()).for_each(|(to, b)| *to = b),
            IpAddr::V6(ip) => sixteen = ip.octets(),
        }
        body.extend_from_slice(&sixteen);
    }
    body.extend_from_slice(&interface.to_ne_bytes());
    // The lower half first.
    for half in [cookie & 0xffff_ffff, cookie >> 32] {
        body.extend_from_slice(&u32::try_from(half).unwrap_or_default().to_ne_bytes());
    }
    body
}

/// A socket of a connection.
#[derive(Clone, Copy)]
pub struct Found {
    /// 0: nobody holds it any more.
    pub inode: u32,
    pub cookie: u64,
}

/// The socket of this thread's namespace that this connection is, if it is bound to no interface.
pub fn tcp_socket(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Found>> {
    tcp_socket_on(0, local, remote)
}

/// The same, whatever it is bound to.
pub fn tcp_socket_anywhere(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Found>> {
    if let Some(found) = tcp_socket_on(0, local, remote)? {
        return Ok(Some(found));
    }
    for link in links()? {
        if let Some(found) = tcp_socket_on(link.index, local, remote)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// `interface`: 0 for none.
fn tcp_socket_on(
    interface: u32,
    local: SocketAddr,
    remote: SocketAddr,
) -> io::Result<Option<Found>> {
    const NO_COOKIE: u64 = u64::MAX;
    const TCP_LISTEN: u8 = 10;
    // Of struct inet_diag_msg, behind its header of 16.
    const STATE: usize = 16 + 1;
    const REMOTE_PORT: usize = 16 + 6;
    const COOKIE: usize = 16 + 44;
    const INODE: usize = 16 + 68;
    let body = one_tcp_socket(interface, local, remote, NO_COOKIE);
    let s = open(SockProtocol::NetlinkSockDiag)?;
    send(&s, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, &body)?;
    let mut buffer = vec![0u8; 8192];
    let n = recv(s.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let answer = buffer.get(..n).unwrap_or_default();
    match u16_at(answer, 4) {
        Some(SOCK_DIAG_BY_FAMILY) => {
            // Where there is no such connection, a listener at its address is what is found.
            let is_it = be_u16_at(answer, REMOTE_PORT) == Some(remote.port())
                && answer.get(STATE) != Some(&TCP_LISTEN);
            let found = || {
                let half = |at| u32_at(answer, at).map(u64::from);
                let cookie = half(COOKIE)? | half(COOKIE.saturating_add(4))? << 32;
                Some(Found { inode: u32_at(answer, INODE)?, cookie })
            };
            Ok(is_it.then(found).flatten())
        }
        _ => match error_of(answer) {
            Some(libc::ENOENT) => Ok(None),
            errno => Err(io::Error::from_raw_os_error(errno.unwrap_or(libc::EIO))),
        },
    }
}

/// `ip rule add|del fwmark MARK lookup TABLE`
pub fn mark_rule(want: Want, v6: bool, mark: u32, table: u32, priority: u32) -> io::Result<()> {
    const FRA_PRIORITY: u16 = 6;
    const FRA_FWMARK: u16 = 10;
    const FRA_TABLE: u16 = 15;
    const FR_ACT_TO_TBL: u8 = 1;
    let mut body = vec![family(v6), 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
    attribute(&mut body, FRA_PRIORITY, &priority.to_ne_bytes());
    attribute(&mut body, FRA_FWMARK, &mark.to_ne_bytes());
    attribute(&mut body, FRA_TABLE, &table.to_ne_bytes());
    ensure(want, RTM_NEWRULE, RTM_DELRULE, &body)
}

/// `ip route add|del local PREFIX dev lo table TABLE`
pub fn local_route(want: Want, prefix: IpAddr, length: u8, table: u32) -> io::Result<()> {
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_TABLE: u16 = 15;
    const RTPROT_STATIC: u8 = 4;
    const RT_SCOPE_HOST: u8 = 254;
    const RTN_LOCAL: u8 = 2;
    const LOOPBACK_INDEX: u32 = 1;
    let small_table = u8::try_from(table).unwrap_or(0);
    let mut body = vec![
        family(prefix.is_ipv6()),
        length,
        0,
        0,
        small_table,
        RTPROT_STATIC,
        RT_SCOPE_HOST,
        RTN_LOCAL,
        0,
        0,
        0,
        0,
    ];
    if length > 0 {
        match prefix {
            IpAddr::V4(ip) => attribute(&mut body, RTA_DST, &ip.octets()),
            IpAddr::V6(ip) => attribute(&mut body, RTA_DST, &ip.octets()),
        }
    }
    attribute(&mut body, RTA_OIF, &LOOPBACK_INDEX.to_ne_bytes());
    attribute(&mut body, RTA_TABLE, &table.to_ne_bytes());
    ensure(want, RTM_NEWROUTE, RTM_DELROUTE, &body)
}

fn family(v6: bool) -> u8 {
    u8::try_from(if v6 { libc::AF_INET6 } else { libc::AF_INET }).unwrap_or_default()
}

/// Makes an object or removes it; one that is there, or gone, already is well.
fn ensure(want: Want, new: u16, del: u16, body: &[u8]) -> io::Result<()> {
    let s = open(SockProtocol::NetlinkRoute)?;
    let (kind, flags) = match want {
        Want::There => (new, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL),
        Want::Gone => (del, NLM_F_REQUEST | NLM_F_ACK),
    };
    send(&s, kind, flags, body)?;
    let mut buffer = vec![0u8; 8192];
    let n = recv(s.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let answer = buffer.get(..n).unwrap_or_default();
    match (error_of(answer), want) {
        (Some(0), _) | (Some(libc::EEXIST), Want::There) => Ok(()),
        (Some(libc::ENOENT | libc::ESRCH), Want::Gone) => Ok(()),
        (Some(errno), _) => Err(io::Error::from_raw_os_error(errno)),
        (None, _) => Err(io::Error::other("netlink answered something else")),
    }
}

fn dump(
    protocol: SockProtocol,
    request: u16,
    body: &[u8],
    answer: u16,
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    let s = open(protocol)?;
    send(&s, request, NLM_F_REQUEST | NLM_F_DUMP, body)?;
    let mut buffer = vec![0u8; 256 * 1024];
    loop {
        let n = recv(s.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..n).unwrap_or_default();
        while let (Some(len), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
            let len = len as usize;
            let Some(message) = rest.get(16..len) else { break };
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let errno = error_of(rest).unwrap_or(libc::EIO);
                    return Err(io::Error::from_raw_os_error(errno));
                }
                k if k == answer => each(message),
                _ => {}
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn error_of(message: &[u8]) -> Option<i32> {
    (u16_at(message, 4)? == NLMSG_ERROR).then_some(())?;
    let code = i32::from_ne_bytes(message.get(16..20)?.try_into().ok()?);
    Some(code.saturating_neg())
}

fn open(protocol: SockProtocol) -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?)
}

fn send(s: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let len = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend_from_slice(&len.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&1u32.to_ne_bytes());
    message.extend_from_slice(&0u32.to_ne_bytes());
    message.extend_from_slice(body);
    sendto(s.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(())
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u16_at(rest, 0)? as usize;
        // The upper two bits say that the value is nested or in network order.
        let kind = u16_at(rest, 2)? & 0x3fff;
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

fn be_u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(b.get(at..at + 8)?.try_into().ok()?))
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?))
}
