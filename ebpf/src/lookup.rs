//! `sk_lookup`, attached to each enrolled pod's namespace: which socket a new connection meets.
//!
//! An announced tuple goes where its announcement says; what stays on loopback is left alone; every
//! other SYN is the agent's. Without an agent there is no listener, and the SYN is refused.

use crate::{
    dns,
    maps::{FLOWS, LISTENERS, MESHED, count, no_room},
};
use aya_ebpf::{
    bindings::{bpf_sk_lookup, sk_action},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use capture_abi::{
    Addr, DNS_SLOTS, DNS_V4, FlowKey, HBONE_PORT, IPPROTO_TCP, IPPROTO_UDP, ListenerKey, SPREAD_V6,
    flow_kind, listener,
};
use core::ptr::read_volatile;

/// The pod whose namespace this link is attached to; set when the program is loaded.
#[unsafe(no_mangle)]
pub static POD_OWNER: u32 = 0;

/// Its addresses.
#[unsafe(no_mangle)]
pub static POD_V4: Addr = Addr::UNSPECIFIED;
#[unsafe(no_mangle)]
pub static POD_V6: Addr = Addr::UNSPECIFIED;

const AF_INET: u32 = 2;

#[sk_lookup]
pub fn lookup(ctx: SkLookupContext) -> u32 {
    let l = ctx.lookup;
    // SAFETY: fields of the program's context and a constant of the program.
    let (owner, protocol) =
        unsafe { (read_volatile(&raw const POD_OWNER), read_volatile(&raw const (*l).protocol)) };
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
        return sk_action::SK_PASS;
    }
    // SAFETY: `l` is the program's context.
    let key = unsafe { announcement(l, owner) };
    if protocol == IPPROTO_UDP {
        return datagram(ctx, owner, &key);
    }
    // SAFETY: the entry is read at once.
    match unsafe { FLOWS.get(&key) } {
        Some(flow) if flow.kind == flow_kind::CAPTURED => {
            return assign(ctx, owner, listener::OUTBOUND_V4, key.remote.is_v4());
        }
        Some(flow) if matches!(flow.kind, flow_kind::AGENT | flow_kind::ADMITTED) => {
            return sk_action::SK_PASS;
        }
        _ => {}
    }
    // The announcement's remote end is this packet's local one.
    if on_loopback(&key.remote) {
        return sk_action::SK_PASS;
    }
    // Unlike 127/8 this range is no martian: a neighbour on the link could address it.
    if in_spread(&key.remote) {
        return sk_action::SK_DROP;
    }
    // What the agent accepts it could not answer without an announcement.
    if no_room(owner) {
        count(owner, |c| c.announce_failed += 1);
        return sk_action::SK_DROP;
    }
    let kind =
        if key.remote_port == HBONE_PORT { listener::HBONE_V4 } else { listener::PLAINTEXT_V4 };
    // A pod of the mesh that comes in plaintext, because its agent does not know this one: refused
    // before it has said anything. The agent would refuse it, too, after the first bytes.
    // SAFETY: the entry is not read.
    if kind == listener::PLAINTEXT_V4 && unsafe { MESHED.get(&key.local) }.is_some() {
        count(owner, |c| c.refused_plaintext += 1);
        return sk_action::SK_DROP;
    }
    assign(ctx, owner, kind, key.remote.is_v4())
}

/// A question for one of the pod's name servers is the agent's; other datagrams are nobody's
/// business. A neighbour on the link could address the IPv6 slots as well: the agent looks at who
/// asks.
#[inline(always)]
fn datagram(ctx: SkLookupContext, owner: u32, key: &FlowKey) -> u32 {
    let to = &key.remote;
    let slot_v4 = to.is_v4() && u32::from_be(to.ip4()) & !(DNS_SLOTS - 1) == DNS_V4;
    if slot_v4 || dns::in_dns_v6(to) {
        return assign(ctx, owner, listener::DNS_V4, slot_v4);
    }
    sk_action::SK_PASS
}

#[inline(always)]
fn assign(ctx: SkLookupContext, owner: u32, kind_v4: u32, v4: bool) -> u32 {
    let kind = if v4 { kind_v4 } else { kind_v4 + 1 };
    match LISTENERS.redirect_sk_lookup(ctx, ListenerKey { owner, kind }, 0) {
        Ok(()) => sk_action::SK_PASS,
        Err(_) => sk_action::SK_DROP,
    }
}

/// The tuple as the socket that connects has announced it.
///
/// # Safety
/// `l` is the program's context.
#[inline(always)]
unsafe fn announcement(l: *mut bpf_sk_lookup, owner: u32) -> FlowKey {
    // Every word is read before the family is looked at, as in `sockops`.
    // SAFETY: fields of the program's context, each read as one word.
    let (family, local4, remote4, local6, remote6, local_port, remote_port) = unsafe {
        (
            read_volatile(&raw const (*l).family),
            read_volatile(&raw const (*l).local_ip4),
            read_volatile(&raw const (*l).remote_ip4),
            Addr([
                read_volatile(&raw const (*l).local_ip6[0]),
                read_volatile(&raw const (*l).local_ip6[1]),
                read_volatile(&raw const (*l).local_ip6[2]),
                read_volatile(&raw const (*l).local_ip6[3]),
            ]),
            Addr([
                read_volatile(&raw const (*l).remote_ip6[0]),
                read_volatile(&raw const (*l).remote_ip6[1]),
                read_volatile(&raw const (*l).remote_ip6[2]),
                read_volatile(&raw const (*l).remote_ip6[3]),
            ]),
            read_volatile(&raw const (*l).local_port),
            read_volatile(&raw const (*l).remote_port),
        )
    };
    let (here, there) =
        if family == AF_INET { (Addr::v4(local4), Addr::v4(remote4)) } else { (local6, remote6) };
    FlowKey {
        owner,
        protocol: IPPROTO_TCP,
        local: there,
        remote: here,
        local_port: u16::from_be(remote_port),
        remote_port: local_port as u16,
    }
}

/// 127/8 and ::1
#[inline(always)]
fn on_loopback(ip: &Addr) -> bool {
    if ip.is_v4() {
        return u32::from_be(ip.ip4()) >> 24 == 127;
    }
    ip.0[0] == 0 && ip.0[1] == 0 && ip.0[2] == 0 && u32::from_be(ip.0[3]) == 1
}

/// The range that captured IPv6 connections are spread over.
#[inline(always)]
fn in_spread(ip: &Addr) -> bool {
    let p = SPREAD_V6;
    ip.0[0] == u32::from_ne_bytes([p[0], p[1], p[2], p[3]])
        && ip.0[1] == u32::from_ne_bytes([p[4], p[5], p[6], p[7]])
}
