//! DNS over UDP: an enrolled pod's questions go to the agent's resolver in its namespace, and the
//! answers come from the server that was asked.
//!
//! Each server has a loopback address of its own, a slot: the destination becomes that, and the
//! source of what comes back becomes the server again. `lookup` gives the datagrams to the agent's
//! socket. Without an agent they are refused.

use crate::{
    connect,
    maps::{SERVERS, SOCKS, owner},
    names,
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_NOEXIST, bpf_sock, bpf_sock_addr},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use capture_abi::{
    Addr, DNS_PORT, DNS_SLOTS, DNS_V4, DNS_V6, IPPROTO_UDP, Pod, SPREAD_V6, ServerKey, Sock,
    pod_flags, sock_kind,
};
use core::ptr::read_volatile;

const ALLOW: i32 = 1;

/// How many slots a server is looked for in before it takes another's.
const PROBES: u32 = 4;

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let Some((pod, _)) = asks(&ctx) else { return ALLOW };
    let a = ctx.sock_addr;
    // SAFETY: a field of the program's context.
    let ip = unsafe { read_volatile(&raw const (*a).user_ip4) };
    redirect_v4(a, pod, ip);
    ALLOW
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let Some((pod, _)) = asks(&ctx) else { return ALLOW };
    let a = ctx.sock_addr;
    // SAFETY: `a` is the program's context.
    let ip = unsafe { connect::ip6_of(a) };
    redirect_v6(a, pod, &ip);
    ALLOW
}

/// A datagram socket is connected: to a name server, perhaps.
#[inline(always)]
pub fn connects(ctx: &SockAddrContext, v4: bool) {
    let Some((pod, sk)) = asks(ctx) else { return };
    let a = ctx.sock_addr;
    let (server, redirected) = if v4 {
        // SAFETY: a field of the program's context.
        let ip = unsafe { read_volatile(&raw const (*a).user_ip4) };
        (Addr::v4(ip), redirect_v4(a, pod, ip))
    } else {
        // SAFETY: `a` is the program's context.
        let ip = unsafe { connect::ip6_of(a) };
        (ip, redirect_v6(a, pod, &ip))
    };
    if redirected {
        if v4 {
            connect::bind_v4(a, pod);
        } else {
            connect::bind_v6(a, if server.is_v4() { &pod.ipv4 } else { &pod.ipv6 });
        }
        // For getpeername.
        SOCKS.set(
            sk.cast(),
            Sock {
                kind: sock_kind::CAPTURED,
                peer: 0,
                at: 0,
                owner: pod.owner,
                port: DNS_PORT as u32,
                destination: server,
            },
        );
    }
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    let Some(pod) = answered(&ctx) else { return ALLOW };
    let a = ctx.sock_addr;
    // SAFETY: fields of the program's context.
    let (ip, port) = unsafe { (read_volatile(&raw const (*a).user_ip4), connect::port_of(a)) };
    if let Some(server) = server_v4(pod, ip, port)
        && server.is_v4()
    {
        // SAFETY: fields that a recvmsg4 program may write.
        unsafe {
            (*a).user_ip4 = server.ip4();
            (*a).user_port = DNS_PORT.to_be() as u32;
        }
    }
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    let Some(pod) = answered(&ctx) else { return ALLOW };
    let a = ctx.sock_addr;
    // SAFETY: `a` is the program's context.
    let (ip, port) = unsafe { (connect::ip6_of(a), connect::port_of(a)) };
    let server = if ip.is_v4() {
        server_v4(pod, ip.ip4(), port)
    } else if in_dns_v6(&ip) && port == pod.dns_port_v6 {
        at(pod, u32::from_be(ip.0[3]) - DNS_V6)
    } else {
        None
    };
    if let Some(server) = server {
        names::write_v6(a, &server);
        // SAFETY: a field that a recvmsg6 program may write.
        unsafe { (*a).user_port = DNS_PORT.to_be() as u32 };
    }
    ALLOW
}

/// Whether this datagram goes to the agent: to port 53, from a pod whose DNS is captured, from a
/// socket that is not the agent's own.
#[inline(always)]
fn asks(ctx: &SockAddrContext) -> Option<(&'static Pod, *mut bpf_sock)> {
    let a = ctx.sock_addr;
    // SAFETY: fields of the program's context.
    let (protocol, port, sk) = unsafe {
        (read_volatile(&raw const (*a).protocol), connect::port_of(a), (*a).__bindgen_anon_1.sk)
    };
    if protocol != IPPROTO_UDP || port != DNS_PORT || sk.is_null() {
        return None;
    }
    let pod = owner(ctx.as_ptr())?;
    if pod.flags & pod_flags::OWN_DNS != 0 {
        return None;
    }
    if matches!(SOCKS.get(sk.cast()), Some(s) if s.kind == sock_kind::AGENT) {
        return None;
    }
    Some((pod, sk))
}

#[inline(always)]
fn answered(ctx: &SockAddrContext) -> Option<&'static Pod> {
    // SAFETY: a field of the program's context.
    let protocol = unsafe { read_volatile(&raw const (*ctx.sock_addr).protocol) };
    if protocol != IPPROTO_UDP { None } else { owner(ctx.as_ptr()) }
}

#[inline(always)]
fn redirect_v4(a: *mut bpf_sock_addr, pod: &Pod, ip: u32) -> bool {
    // A server in the pod itself answers for itself.
    if u32::from_be(ip) >> 24 == 127 || ip == 0 || pod.dns_port_v4 == 0 {
        return false;
    }
    let slot = slot_of(pod, &Addr::v4(ip));
    connect::unbind_device(a);
    // SAFETY: fields that connect4 and sendmsg4 programs may write.
    unsafe {
        (*a).user_ip4 = (DNS_V4 + slot).to_be();
        (*a).user_port = pod.dns_port_v4.to_be() as u32;
    }
    true
}

#[inline(always)]
fn redirect_v6(a: *mut bpf_sock_addr, pod: &Pod, ip: &Addr) -> bool {
    let (to, port) = if ip.is_v4() {
        if u32::from_be(ip.ip4()) >> 24 == 127 {
            return false;
        }
        (Addr::v4((DNS_V4 + slot_of(pod, ip)).to_be()), pod.dns_port_v4)
    } else {
        // Link-local servers are known by interface, too; those are left alone.
        if connect::local_v6(ip) || pod.ipv6.is_unspecified() {
            return false;
        }
        let p = SPREAD_V6;
        let slot = slot_of(pod, ip);
        let to = Addr([
            u32::from_ne_bytes([p[0], p[1], p[2], p[3]]),
            u32::from_ne_bytes([p[4], p[5], p[6], p[7]]),
            0,
            (DNS_V6 + slot).to_be(),
        ]);
        (to, pod.dns_port_v6)
    };
    if port == 0 {
        return false;
    }
    connect::unbind_device(a);
    names::write_v6(a, &to);
    // SAFETY: a field that connect6 and sendmsg6 programs may write.
    unsafe { (*a).user_port = port.to_be() as u32 };
    true
}

/// The slot of a server, its own for as long as nobody else needs it more.
#[inline(always)]
fn slot_of(pod: &Pod, server: &Addr) -> u32 {
    let s = server.0;
    let hash = (s[0] ^ s[1] ^ s[2] ^ s[3]).wrapping_mul(0x9e37_79b1) >> 16;
    let mut first = ServerKey { owner: pod.owner, slot: hash % DNS_SLOTS };
    let mut i = 0;
    while i < PROBES {
        let key = ServerKey { owner: pod.owner, slot: hash.wrapping_add(i) % DNS_SLOTS };
        // SAFETY: the entry is compared at once.
        match unsafe { SERVERS.get(&key) } {
            Some(there) if *there == *server => return key.slot,
            Some(_) => {}
            None => {
                if SERVERS.insert(&key, server, BPF_NOEXIST as u64).is_ok() {
                    return key.slot;
                }
            }
        }
        i += 1;
    }
    let _ = SERVERS.insert(&first, server, 0);
    first.slot %= DNS_SLOTS;
    first.slot
}

#[inline(always)]
fn server_v4(pod: &Pod, ip: u32, port: u16) -> Option<Addr> {
    let ip = u32::from_be(ip);
    if ip & !(DNS_SLOTS - 1) != DNS_V4 || port != pod.dns_port_v4 {
        return None;
    }
    at(pod, ip - DNS_V4)
}

#[inline(always)]
fn at(pod: &Pod, slot: u32) -> Option<Addr> {
    // SAFETY: the entry is copied out at once.
    unsafe { SERVERS.get(&ServerKey { owner: pod.owner, slot }) }.copied()
}

/// Whether this is the address of a slot.
#[inline(always)]
pub fn in_dns_v6(ip: &Addr) -> bool {
    let p = SPREAD_V6;
    ip.0[0] == u32::from_ne_bytes([p[0], p[1], p[2], p[3]])
        && ip.0[1] == u32::from_ne_bytes([p[4], p[5], p[6], p[7]])
        && ip.0[2] == 0
        && u32::from_be(ip.0[3]) & !(DNS_SLOTS - 1) == DNS_V6
}
