//! `cgroup/connect4`, `connect6`: an enrolled pod's TCP connect goes to the agent.
//!
//! The destination becomes a random address and port on `lo`, spread so wide that no two
//! connections share a tuple; `lookup` gives the connection to the agent's listener by its
//! announcement. The destination asked for stays with the socket.

use crate::{
    dns,
    maps::{SOCKS, count, no_room, owner},
    ways::{self, Choice},
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::{bpf_bind, bpf_get_prandom_u32, bpf_set_retval, bpf_setsockopt},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use capture_abi::{
    Addr, DNS_PORT, ELSEWHERE, IPPROTO_TCP, IPPROTO_UDP, Pod, SPREAD_V6, Sock, Target, pod_flags,
    sock_kind,
};
use core::{ffi::c_void, ptr::read_volatile};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
const ENOBUFS: i32 = 105;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    if is_udp(&ctx) {
        dns::connects(&ctx, true);
        return ALLOW;
    }
    let (pod, sk) = match captures(&ctx) {
        Ok(captured) => captured,
        Err(verdict) => return verdict,
    };
    let a = ctx.sock_addr;
    // SAFETY: fields of the program's context, each read as one word.
    let (ip, port) = unsafe { (read_volatile(&raw const (*a).user_ip4), port_of(a)) };
    if local_v4(ip) && !is_node_dns(pod, ip, port) {
        SOCKS.clear(sk.cast());
        return ALLOW;
    }
    let asked = Addr::v4(ip);
    let flag = match ways::choose(a, pod, &asked, port) {
        Choice::Direct(target) => {
            if !direct(pod, sk, &asked, port, &target) {
                return REFUSE;
            }
            bind_v4(a, pod);
            // SAFETY: as above; these fields may be written by a connect4 program.
            unsafe {
                (*a).user_ip4 = target.address.ip4();
                (*a).user_port = (target.port as u16).to_be() as u32;
            }
            return ALLOW;
        }
        Choice::Elsewhere => ELSEWHERE,
        Choice::Unknown => 0,
    };
    if !remember(pod, sk, asked, port as u32 | flag) {
        return REFUSE;
    }
    bind_v4(a, pod);
    // SAFETY: as above; these fields may be written by a connect4 program.
    unsafe {
        (*a).user_ip4 = spread_v4();
        (*a).user_port = spread_port().to_be() as u32;
    }
    ALLOW
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    if is_udp(&ctx) {
        dns::connects(&ctx, false);
        return ALLOW;
    }
    let (pod, sk) = match captures(&ctx) {
        Ok(captured) => captured,
        Err(verdict) => return verdict,
    };
    let a = ctx.sock_addr;
    // SAFETY: fields of the program's context, each read as one word.
    let (ip, port) = unsafe { (ip6_of(a), port_of(a)) };
    let passes = if ip.is_v4() {
        local_v4(ip.ip4()) && !is_node_dns(pod, ip.ip4(), port)
    } else {
        // Without an address of that family there is nobody to be captured as, and no route either.
        local_v6(&ip) || pod.ipv6.is_unspecified()
    };
    if passes {
        SOCKS.clear(sk.cast());
        return ALLOW;
    }
    let flag = match ways::choose(a, pod, &ip, port) {
        Choice::Direct(target) => {
            if !direct(pod, sk, &ip, port, &target) {
                return REFUSE;
            }
            bind_v6(a, if ip.is_v4() { &pod.ipv4 } else { &pod.ipv6 });
            // SAFETY: of this function's context.
            unsafe { go_to(a, &target.address, target.port as u16) };
            return ALLOW;
        }
        Choice::Elsewhere => ELSEWHERE,
        Choice::Unknown => 0,
    };
    if !remember(pod, sk, ip, port as u32 | flag) {
        return REFUSE;
    }
    let to = if ip.is_v4() {
        bind_v6(a, &pod.ipv4);
        Addr::v4(spread_v4())
    } else {
        bind_v6(a, &pod.ipv6);
        spread_v6()
    };
    // SAFETY: of this function's context.
    unsafe { go_to(a, &to, spread_port()) };
    ALLOW
}

/// # Safety
/// `a` is the context of a connect6 program.
#[inline(always)]
unsafe fn go_to(a: *mut bpf_sock_addr, to: &Addr, port: u16) {
    // SAFETY: these fields may be written by a connect6 program.
    unsafe {
        (*a).user_ip6[0] = to.0[0];
        (*a).user_ip6[1] = to.0[1];
        (*a).user_ip6[2] = to.0[2];
        (*a).user_ip6[3] = to.0[3];
        (*a).user_port = port.to_be() as u32;
    }
}

/// Datagram sockets: what an earlier connect kept with the socket is no longer so.
#[inline(always)]
fn is_udp(ctx: &SockAddrContext) -> bool {
    let a = ctx.sock_addr;
    // SAFETY: fields of the program's context.
    let (protocol, sk) =
        unsafe { (read_volatile(&raw const (*a).protocol), (*a).__bindgen_anon_1.sk) };
    if protocol != IPPROTO_UDP {
        return false;
    }
    if matches!(SOCKS.get(sk.cast()), Some(s) if s.kind != sock_kind::AGENT) {
        SOCKS.clear(sk.cast());
    }
    true
}

/// A name server on the node, at a link-local address: the cluster's, for this node's pods.
#[inline(always)]
fn is_node_dns(pod: &Pod, ip: u32, port: u16) -> bool {
    port == DNS_PORT
        && u32::from_be(ip) >> 16 == 0xa9fe
        && pod.flags & pod_flags::OWN_DNS == 0
        && pod.dns_port_v4 != 0
}

/// The pod and the socket, when this connect is the agent's business at all; what else becomes of
/// it when it is not. The agent's own take up room, too.
#[inline(always)]
fn captures(ctx: &SockAddrContext) -> Result<(&'static Pod, *mut bpf_sock), i32> {
    let a = ctx.sock_addr;
    // SAFETY: fields of the program's context.
    let (protocol, sk) =
        unsafe { (read_volatile(&raw const (*a).protocol), (*a).__bindgen_anon_1.sk) };
    if protocol != IPPROTO_TCP || sk.is_null() {
        return Err(ALLOW);
    }
    let Some(pod) = owner(ctx.as_ptr()) else { return Err(ALLOW) };
    match SOCKS.get(sk.cast()) {
        Some(s) if s.kind == sock_kind::AGENT && no_room(pod.owner) => Err(refused(pod)),
        Some(s) if s.kind == sock_kind::AGENT => Err(ALLOW),
        _ => Ok((pod, sk)),
    }
}

/// Keeps the destination with the socket; without room for the announcement, refuses.
#[inline(always)]
fn remember(pod: &Pod, sk: *mut bpf_sock, destination: Addr, port: u32) -> bool {
    let sock =
        Sock { kind: sock_kind::CAPTURED, owner: pod.owner, port, peer: 0, destination, at: 0 };
    let kept = !no_room(pod.owner) && SOCKS.set(sk.cast(), sock);
    if kept {
        count(pod.owner, |c| c.captured += 1);
    } else {
        refused(pod);
    }
    kept
}

/// The same for a connection that goes past the agent.
#[inline(always)]
fn direct(pod: &Pod, sk: *mut bpf_sock, asked: &Addr, port: u16, target: &Target) -> bool {
    let sock = Sock {
        kind: sock_kind::DIRECT,
        owner: pod.owner,
        port: port as u32,
        peer: target.owner,
        destination: *asked,
        at: ways::now(),
    };
    let kept = !no_room(pod.owner) && SOCKS.set(sk.cast(), sock);
    if kept {
        count(pod.owner, |c| c.direct += 1);
    } else {
        refused(pod);
    }
    kept
}

#[inline(always)]
fn refused(pod: &Pod) -> i32 {
    count(pod.owner, |c| c.announce_failed += 1);
    // SAFETY: sets what connect() returns.
    unsafe { bpf_set_retval(-ENOBUFS) };
    REFUSE
}

/// The pod's own address, so that getsockname says what it would say without a mesh. Fails,
/// harmlessly, for a socket that is bound already.
#[inline(always)]
pub fn bind_v4(a: *mut bpf_sock_addr, pod: &Pod) {
    unbind_device(a);
    let mut to = [0u32; 4];
    to[0] = AF_INET as u32;
    to[1] = pod.ipv4.ip4();
    // SAFETY: a sockaddr_in of sixteen bytes on this stack.
    unsafe { bpf_bind(a, (&raw mut to).cast(), 16) };
}

#[inline(always)]
pub fn bind_v6(a: *mut bpf_sock_addr, ip: &Addr) {
    unbind_device(a);
    let mut to = [0u32; 7];
    to[0] = AF_INET6 as u32;
    to[2] = ip.0[0];
    to[3] = ip.0[1];
    to[4] = ip.0[2];
    to[5] = ip.0[3];
    // SAFETY: a sockaddr_in6 of 28 bytes on this stack.
    unsafe { bpf_bind(a, (&raw mut to).cast(), 28) };
}

/// A socket bound to eth0 could not reach `lo`: its SYN would leave by eth0 and hang.
#[inline(always)]
pub fn unbind_device(a: *mut bpf_sock_addr) {
    // SAFETY: `sk` was checked in `captures`; the verifier follows the pointer.
    let bound = unsafe {
        let sk = (*a).__bindgen_anon_1.sk;
        !sk.is_null() && read_volatile(&raw const (*sk).bound_dev_if) != 0
    };
    if bound {
        let mut none = 0u32;
        // SAFETY: an empty device name of four bytes on this stack.
        unsafe {
            bpf_setsockopt(
                a.cast::<c_void>(),
                SOL_SOCKET,
                SO_BINDTODEVICE,
                (&raw mut none).cast(),
                4,
            )
        };
    }
}

#[inline(always)]
fn spread_v4() -> u32 {
    // SAFETY: no arguments.
    capture_abi::spread_v4(unsafe { bpf_get_prandom_u32() }).to_be()
}

#[inline(always)]
fn spread_v6() -> Addr {
    let p = SPREAD_V6;
    // SAFETY: no arguments.
    let (a, b) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
    Addr([
        u32::from_ne_bytes([p[0], p[1], p[2], p[3]]),
        u32::from_ne_bytes([p[4], p[5], p[6], p[7]]),
        a,
        b | 1,
    ])
}

#[inline(always)]
fn spread_port() -> u16 {
    // SAFETY: no arguments.
    let r = unsafe { bpf_get_prandom_u32() };
    (r as u16) | 1
}

/// Loopback, link-local and "this host" stay with the kernel.
#[inline(always)]
fn local_v4(ip: u32) -> bool {
    let ip = u32::from_be(ip);
    ip >> 24 == 127 || ip >> 16 == 0xa9fe || ip == 0
}

#[inline(always)]
pub fn local_v6(ip: &Addr) -> bool {
    let first = u32::from_be(ip.0[0]);
    let loopback = ip.0[0] == 0 && ip.0[1] == 0 && ip.0[2] == 0 && u32::from_be(ip.0[3]) <= 1;
    loopback || first & 0xffc0_0000 == 0xfe80_0000
}

/// # Safety
/// `a` is the program's context.
#[inline(always)]
pub unsafe fn ip6_of(a: *mut bpf_sock_addr) -> Addr {
    // Word by word: the verifier takes no wider access here.
    unsafe {
        Addr([
            read_volatile(&raw const (*a).user_ip6[0]),
            read_volatile(&raw const (*a).user_ip6[1]),
            read_volatile(&raw const (*a).user_ip6[2]),
            read_volatile(&raw const (*a).user_ip6[3]),
        ])
    }
}

/// # Safety
/// `a` is the program's context.
#[inline(always)]
pub unsafe fn port_of(a: *mut bpf_sock_addr) -> u16 {
    u16::from_be(unsafe { read_volatile(&raw const (*a).user_port) } as u16)
}
