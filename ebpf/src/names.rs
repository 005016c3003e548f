//! `getpeername` and `getsockname`: a captured socket shows the destination that its application
//! asked for, and the pod's own address.

use crate::maps::{SOCKS, owner};
use aya_ebpf::{
    EbpfContext as _, bindings::bpf_sock_addr, macros::cgroup_sock_addr, programs::SockAddrContext,
};
use capture_abi::{Addr, SPREAD_V6, Sock, sock_kind};
use core::ptr::read_volatile;

const ALLOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    if let Some(sock) = connected(&ctx)
        && sock.destination.is_v4()
    {
        // SAFETY: fields that a getpeername4 program may write.
        unsafe {
            (*ctx.sock_addr).user_ip4 = sock.destination.ip4();
            (*ctx.sock_addr).user_port = (sock.port as u16).to_be() as u32;
        }
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    if let Some(sock) = connected(&ctx) {
        write_v6(ctx.sock_addr, &sock.destination);
        // SAFETY: a field that a getpeername6 program may write.
        unsafe { (*ctx.sock_addr).user_port = (sock.port as u16).to_be() as u32 };
    }
    ALLOW
}

#[cgroup_sock_addr(getsockname4)]
pub fn getsockname4(ctx: SockAddrContext) -> i32 {
    if captured(&ctx).is_some()
        && let Some(pod) = owner(ctx.as_ptr())
    {
        // SAFETY: a field of the program's context.
        let ip = u32::from_be(unsafe { read_volatile(&raw const (*ctx.sock_addr).user_ip4) });
        if ip >> 24 == 127 {
            // SAFETY: a field that a getsockname4 program may write.
            unsafe { (*ctx.sock_addr).user_ip4 = pod.ipv4.ip4() };
        }
    }
    ALLOW
}

#[cgroup_sock_addr(getsockname6)]
pub fn getsockname6(ctx: SockAddrContext) -> i32 {
    if captured(&ctx).is_some()
        && let Some(pod) = owner(ctx.as_ptr())
    {
        let a = ctx.sock_addr;
        // SAFETY: fields of the program's context, each read as one word.
        let ip = unsafe {
            Addr([
                read_volatile(&raw const (*a).user_ip6[0]),
                read_volatile(&raw const (*a).user_ip6[1]),
                read_volatile(&raw const (*a).user_ip6[2]),
                read_volatile(&raw const (*a).user_ip6[3]),
            ])
        };
        if ip.is_v4() && u32::from_be(ip.ip4()) >> 24 == 127 {
            write_v6(a, &pod.ipv4);
        } else if on_loopback(&ip) {
            write_v6(a, &pod.ipv6);
        }
    }
    ALLOW
}

#[inline(always)]
fn captured(ctx: &SockAddrContext) -> Option<Sock> {
    connected(ctx).filter(|sock| sock.kind == sock_kind::CAPTURED)
}

/// What an application connected to, by way of the agent or past it.
#[inline(always)]
fn connected(ctx: &SockAddrContext) -> Option<Sock> {
    // SAFETY: a field of the program's context.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    let mut sock = *SOCKS.get(sk.cast())?;
    // Without what is for the agent.
    sock.port &= 0xffff;
    matches!(sock.kind, sock_kind::CAPTURED | sock_kind::DIRECT).then_some(sock)
}

#[inline(always)]
fn on_loopback(ip: &Addr) -> bool {
    let p = SPREAD_V6;
    let spread = ip.0[0] == u32::from_ne_bytes([p[0], p[1], p[2], p[3]])
        && ip.0[1] == u32::from_ne_bytes([p[4], p[5], p[6], p[7]]);
    spread || (ip.0[0] == 0 && ip.0[1] == 0 && ip.0[2] == 0 && u32::from_be(ip.0[3]) == 1)
}

#[inline(always)]
pub fn write_v6(a: *mut bpf_sock_addr, ip: &Addr) {
    // SAFETY: fields that these programs may write, a word at a time.
    unsafe {
        (*a).user_ip6[0] = ip.0[0];
        (*a).user_ip6[1] = ip.0[1];
        (*a).user_ip6[2] = ip.0[2];
        (*a).user_ip6[3] = ip.0[3];
    }
}
