//! Sockets in a pod's namespace: listeners, upstream connections, and the last hop that keeps the
//! client's address.

use crate::{
    capture::{Capture, addr},
    netlink::{self, Want},
    netns::Netns,
    pods::Pod,
};
use anyhow::{Context as _, anyhow, ensure};
use capture_abi::{DNS_SLOTS, DNS_V4, DNS_V6, LAST_HOP_MARK, ListenerKey, SPREAD_V6, listener};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    SockaddrStorage, recvmsg, sendmsg, setsockopt, socketpair, sockopt,
};
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::Duration,
};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

/// Of the rule and the table for that mark, in the pod's namespace.
const LAST_HOP_TABLE: u32 = 0x0c75;
const LAST_HOP_PRIORITY: u32 = 100;

/// How many connections may wait to be accepted: as many as the kernel allows by default
/// (net.core.somaxconn). A pod's burst of connects must not meet a full queue, which costs a SYN
/// retransmission of a second.
const BACKLOG: i32 = 4096;

/// Three retransmissions of a SYN, and less than a peer waits for the answer to its CONNECT.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);

/// So that answers have the mark of what they answer: the first is for connections, the others for
/// what no socket answers, such as a port that nobody listens on.
const FWMARKS: [&str; 3] = [
    "/proc/sys/net/ipv4/tcp_fwmark_accept",
    "/proc/sys/net/ipv4/fwmark_reflect",
    "/proc/sys/net/ipv6/fwmark_reflect",
];

/// What a pod's namespace has to have: where captured IPv6 connects go, and how the last hop's
/// answers come back. The answer is what the settings of marks were before.
pub fn prepare(netns: &Netns) -> anyhow::Result<String> {
    netns.run(|| -> anyhow::Result<String> {
        let mut before = Vec::new();
        for path in FWMARKS {
            if path.contains("ipv6") && !has_ipv6() {
                continue;
            }
            let value = fs::read_to_string(path)
                .with_context(|| format!("reading {path} in the pod's namespace"))?;
            before.push(value.trim().to_owned());
            fs::write(path, "1")
                .with_context(|| format!("setting {path} in the pod's namespace"))?;
        }
        last_hop_routes(Want::There)
            .context("adding rules and routes for the last hop in the pod's namespace")?;
        Ok(before.join(" "))
    })?
}

/// Takes it away again.
pub fn restore(netns: &Netns, fwmarks: &str) -> anyhow::Result<()> {
    netns.run(|| -> anyhow::Result<()> {
        last_hop_routes(Want::Gone)?;
        // An earlier agent knew of the first only.
        for (path, before) in FWMARKS.iter().zip(fwmarks.split_whitespace()) {
            fs::write(path, before)?;
        }
        Ok(())
    })?
}

fn last_hop_routes(want: Want) -> io::Result<()> {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    netlink::mark_rule(want, false, LAST_HOP_MARK, LAST_HOP_TABLE, LAST_HOP_PRIORITY)?;
    netlink::local_route(want, any, 0, LAST_HOP_TABLE)?;
    if has_ipv6() {
        let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        netlink::mark_rule(want, true, LAST_HOP_MARK, LAST_HOP_TABLE, LAST_HOP_PRIORITY)?;
        netlink::local_route(want, any, 0, LAST_HOP_TABLE)?;
        let mut spread = [0u8; 16];
        let (prefix, _) = spread.split_at_mut(SPREAD_V6.len());
        prefix.copy_from_slice(&SPREAD_V6);
        const LOCAL_TABLE: u32 = 255;
        netlink::local_route(want, Ipv6Addr::from(spread).into(), 64, LOCAL_TABLE)?;
    }
    Ok(())
}

fn has_ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").is_ok_and(|s| s.trim() == "0")
}

/// Opens the agent's listeners in one pod, on loopback with ports of the kernel's choosing: nobody
/// can squat on them, and 15001, 15006 and 15008 stay free for the pod. `sk_lookup` gives them their
/// connections. Those that an earlier agent has given are taken as they are.
pub fn listen(
    capture: &Capture,
    netns: &Netns,
    owner: u32,
    mut inherited: HashMap<u32, OwnedFd>,
    dns: Option<DnsPorts>,
) -> anyhow::Result<Vec<(u32, Socket)>> {
    let mut all = Vec::new();
    let ipv6 = netns.run(has_ipv6)?;
    for kind in listener::OUTBOUND_V4..=listener::DNS_V6 {
        let v6 = kind % 2 == 1;
        if v6 && !ipv6 {
            continue;
        }
        let is_hbone = matches!(kind, listener::HBONE_V4 | listener::HBONE_V6);
        let is_dns = matches!(kind, listener::DNS_V4 | listener::DNS_V6);
        let before = match dns {
            None if is_dns => continue,
            Some(ports) if is_dns && v6 => ports.v6,
            Some(ports) if is_dns => ports.v4,
            _ => 0,
        };
        let socket = match inherited.remove(&kind) {
            Some(fd) => Socket::from(fd),
            None => new_listener(capture, netns, owner, v6, is_dns, before)?,
        };
        if !is_dns {
            set_for_accepted(&socket, is_hbone).context("setting up a listener")?;
        }
        capture.set_listener(ListenerKey { owner, kind }, &socket)?;
        all.push((kind, socket));
    }
    Ok(all)
}

fn new_listener(
    capture: &Capture,
    netns: &Netns,
    owner: u32,
    v6: bool,
    is_dns: bool,
    port_before: u16,
) -> anyhow::Result<Socket> {
    let lo: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let make = if is_dns { new_datagram_socket } else { new_socket };
    let socket = netns.run(|| make(lo))?.context("making a listener")?;
    capture.mark_own(owner, &socket).context("marking a listener as the agent's")?;
    if v6 {
        socket.set_only_v6(true)?;
    }
    if is_dns && v6 {
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        // Answers leave from the slots' addresses, which no interface has.
        crate::sys::set_ipv6_transparent(&socket)?;
    } else if is_dns {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    // An application may have connected a socket to the resolver that was there before.
    socket
        .bind(&SockAddr::from(SocketAddr::new(lo, port_before)))
        .or_else(|_| socket.bind(&SockAddr::from(SocketAddr::new(lo, 0))))
        .context("binding a listener on the pod's loopback")?;
    if !is_dns {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

/// What the sockets inherit that are accepted here: seven system calls fewer for each.
fn set_for_accepted(listener: &Socket, is_hbone: bool) -> io::Result<()> {
    listener.set_tcp_nodelay(true)?;
    if !is_hbone {
        // Until both directions have ended, a close is a reset: whether the upstream fails, or the agent.
        listener.set_linger(Some(Duration::ZERO))?;
        probe_when_idle(listener);
    }
    Ok(())
}

/// The resolver's ports among the listeners.
pub fn dns_ports(listeners: &[(u32, Socket)]) -> DnsPorts {
    let port = |wanted: u32| {
        let socket = listeners.iter().find(|(kind, _)| *kind == wanted).map(|(_, s)| s);
        let bound = socket.and_then(|s| s.local_addr().ok()).and_then(|a| a.as_socket());
        bound.map_or(0, |a| a.port())
    };
    DnsPorts { v4: port(listener::DNS_V4), v6: port(listener::DNS_V6) }
}

/// Where the resolver listens in a pod; zero where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DnsPorts {
    pub v4: u16,
    pub v6: u16,
}

/// The slot whose address this is.
pub fn name_server_slot(ip: IpAddr) -> Option<u32> {
    let (base, at) = match ip {
        IpAddr::V4(ip) => (DNS_V4, ip.to_bits()),
        IpAddr::V6(ip) => {
            let (prefix, rest) = (ip.to_bits() >> 64, ip.to_bits() as u64);
            if prefix != u128::from(u64::from_be_bytes(SPREAD_V6)) {
                return None;
            }
            (DNS_V6, u32::try_from(rest).ok()?)
        }
    };
    at.checked_sub(base).filter(|slot| *slot < DNS_SLOTS)
}

/// A datagram, from whom, and the address that it was sent to.
pub fn receive_for(
    socket: &UdpSocket,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, IpAddr)> {
    let mut space = nix::cmsg_space!(libc::in6_pktinfo);
    let mut iov = [io::IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut iov,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let to = message.cmsgs()?.find_map(|c| match c {
        ControlMessageOwned::Ipv4PacketInfo(i) => {
            Some(IpAddr::V4(u32::from_be(i.ipi_addr.s_addr).into()))
        }
        ControlMessageOwned::Ipv6PacketInfo(i) => {
            Some(IpAddr::V6(Ipv6Addr::from(i.ipi6_addr.s6_addr)))
        }
        _ => None,
    });
    let from = message.address.as_ref().and_then(|a| {
        let v4 = a.as_sockaddr_in().map(|a| SocketAddr::from(std::net::SocketAddrV4::from(*a)));
        v4.or_else(|| a.as_sockaddr_in6().map(|a| std::net::SocketAddrV6::from(*a).into()))
    });
    let (Some(to), Some(from)) = (to, from) else {
        return Err(io::Error::other("a datagram without addresses"));
    };
    Ok((message.bytes, from, to))
}

/// A datagram that comes from `from`, an address of this namespace's loopback.
pub fn send_as(socket: &UdpSocket, message: &[u8], to: SocketAddr, from: IpAddr) -> io::Result<()> {
    let iov = [io::IoSlice::new(message)];
    let (v4, v6);
    let control = match from {
        IpAddr::V4(ip) => {
            v4 = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: ip.to_bits().to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            [ControlMessage::Ipv4PacketInfo(&v4)]
        }
        IpAddr::V6(ip) => {
            v6 = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
                ipi6_ifindex: 0,
            };
            [ControlMessage::Ipv6PacketInfo(&v6)]
        }
    };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let to = SockaddrStorage::from(to);
    sendmsg(socket.as_raw_fd(), &iov, &control, flags, Some(&to))?;
    Ok(())
}

/// A socket of the pod's own, for questions to `server`.
pub fn ask_name_server(capture: &Capture, pod: &Pod, server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = pod.netns.run(|| new_datagram_socket(server.ip()))??;
    capture.mark_own(pod.owner, &socket)?;
    socket.connect(&SockAddr::from(server))?;
    UdpSocket::from_std(socket.into())
}

fn new_datagram_socket(like: IpAddr) -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address((like, 0).into()), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Two ends of a stream within this process; each is read, written and shut like a TCP socket.
pub fn stream_pair() -> io::Result<(TcpStream, TcpStream)> {
    let (a, b) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )?;
    let stream = |fd: OwnedFd| TcpStream::from_std(std::net::TcpStream::from(fd));
    Ok((stream(a)?, stream(b)?))
}

fn new_socket(like: IpAddr) -> io::Result<Socket> {
    let domain = Domain::for_address((like, 0).into());
    Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))
}

/// Ports that stand for the client's on the last hop: neither privileged, nor what a client's own kernel chooses by
/// default (`net.ipv4.ip_local_port_range`: 32768 to 60999). While a last hop lasts, its tuple can have no other
/// connection: the SYN of one that comes past the agent, or in plaintext, would meet this one instead of a listener.
const LAST_HOP_PORTS: std::ops::RangeInclusive<u16> = 1024..=32767;

/// A connection from the pod, as the pod: its address, routes and NetworkPolicy.
pub async fn connect(
    capture: &Capture,
    pod: &Pod,
    from: Option<IpAddr>,
    to: SocketAddr,
) -> io::Result<TcpStream> {
    let socket = pod.netns.run(|| new_socket(to.ip()))??;
    capture.mark_own(pod.owner, &socket)?;
    if let Some(from) = from.filter(|f| f.is_ipv4() == to.is_ipv4()) {
        // The port is found at connect, where the whole tuple counts and not the address alone.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
    }
    establish(socket, to).await
}

/// A connection to the application in the pod, from the client's own address. A port of the client
/// that is in use towards `to` already will not do: the SYN would meet that connection instead of
/// the listener.
pub async fn connect_as(
    capture: &Capture,
    pod: &Pod,
    client: IpAddr,
    to: SocketAddr,
) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..64 {
        // A port that is asked for by number may be one in TIME_WAIT (`tcp_twsk_unique`), which
        // the kernel's own choice never is: it would run out at 470 connections/s of one client.
        let port = rand::random_range(LAST_HOP_PORTS);
        let from = SocketAddr::new(client, port);
        if pod.tuple_taken(to, from) || capture.is_announced(pod.owner, from, to) {
            continue;
        }
        let socket = pod.netns.run(|| new_socket(to.ip()))??;
        capture.mark_own(pod.owner, &socket)?;
        socket.set_mark(LAST_HOP_MARK)?;
        // Two connections may share a port of the client as long as they differ otherwise.
        socket.set_reuse_address(true)?;
        if client.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
        } else {
            crate::sys::set_ipv6_transparent(&socket)?;
        }
        let bound = socket.bind(&SockAddr::from(from));
        let outcome = match bound {
            Ok(()) => establish(socket, to).await,
            Err(e) => Err(e),
        };
        match outcome {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse
                ) =>
            {
                last = e;
            }
            other => return other,
        }
    }
    Err(last)
}

/// Whether the host's own network has the address: only then can a socket be bound to it.
pub fn is_of_this_host(ip: IpAddr) -> bool {
    !ip.is_loopback() && std::net::UdpSocket::bind((ip, 0)).is_ok()
}

/// An end that is gone without a word, such as one that closed and whose kernel has given up waiting
/// for the other, is noticed within two minutes, and what is kept for it is given back.
fn probe_when_idle(socket: &Socket) {
    let often = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    // Without it the connection works as well.
    let _ = socket.set_tcp_keepalive(&often);
}

async fn establish(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    socket.set_tcp_nodelay(true)?;
    probe_when_idle(&socket);
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(to);
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{to} did not answer within {CONNECT_TIMEOUT:?}"),
        )),
    }
}

/// The host end of each of the pod's interfaces, as an index in the agent's namespace, and what is wrong with
/// them: an interface without one (macvlan, ipvlan, a passed-through device) leaves nothing to guard.
///
/// Indexes alone do not tell whose end it is: the pod's root makes interfaces of any number. That
/// the other end is in the pod's namespace is known from the kernel, out here.
pub fn host_ends(netns: &Netns) -> anyhow::Result<(Vec<u32>, Option<anyhow::Error>)> {
    let inside = netns.run(netlink::links)??;
    let outside = netlink::links()?;
    let number = netlink::netns_number(netns.as_fd())?;
    let (mut ends, mut wrong) = (Vec::new(), None);
    for link in inside.iter().filter(|l| !l.loopback) {
        let kind = link.kind.as_deref().unwrap_or("a device of the host");
        // Fallback tunnel devices appear in every namespace, and are down.
        if !link.up && kind != "veth" {
            continue;
        }
        let end = link.peer.filter(|_| kind == "veth").and_then(|peer| {
            outside.iter().find(|o| {
                let theirs = o.peer == Some(link.index) && o.peer_netns == number;
                o.index == peer && theirs && number.is_some()
            })
        });
        match end {
            Some(end) => ends.push(end.index),
            None => {
                wrong = Some(anyhow!(
                    "the pod's interface {} is {kind} without an end in the agent's network namespace, \
                     so its traffic cannot be guarded: give the pod a veth, or run the agent in the \
                     namespace that holds the other end",
                    link.name
                ));
            }
        }
    }
    if ends.is_empty() && wrong.is_none() {
        wrong = Some(anyhow!(
            "the pod's network namespace has no interface beside lo yet: enrol it once it has one"
        ));
    }
    Ok((ends, wrong))
}

/// Captured connections go over `lo`.
pub fn check_loopback(netns: &Netns) -> anyhow::Result<()> {
    let is_up = netns.run(netlink::links)??.iter().any(|l| l.loopback && l.up);
    ensure!(is_up, "its interface lo is down");
    Ok(())
}

/// The namespace's addresses, and those that stand for the pod in the kernel.
pub fn pod_addresses(netns: &Netns) -> anyhow::Result<Vec<IpAddr>> {
    Ok(netns.run(netlink::addresses)??)
}

pub fn kernel_entry(
    owner: u32,
    flags: u32,
    addresses: &[IpAddr],
    dns: DnsPorts,
    host_end: u32,
) -> capture_abi::Pod {
    let pick = |v4: bool| {
        addresses.iter().find(|a| a.is_ipv4() == v4).map(|a| addr(*a)).unwrap_or_default()
    };
    capture_abi::Pod {
        owner,
        flags,
        ipv4: pick(true),
        ipv6: pick(false),
        dns_port_v4: dns.v4,
        dns_port_v6: dns.v6,
        host_end,
    }
}
