//! `tcx` egress on the host end of an enrolled pod's veth, towards the pod: nobody on the wire takes
//! the place of the agent's last hop.
//!
//! The last hop comes over `lo` from the client's address and a port of the agent's choosing, and
//! `lookup` lets its SYN through to the application. `sk_lookup` cannot tell `lo` from the wire: for
//! the pod's own addresses the kernel names the same interface. A packet with such a tuple that
//! comes by this way is somebody else's.
//!
//! Nor does anybody take the place of a pod of this node that connects past the agent: its packets
//! are its own socket's, or else, where a router between has cut that tie, entered the node at the host
//! end of its own interface, which the kernel keeps, too.

use crate::{
    guard::{
        DESTINATION, ETH_LEN, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, FRAGMENT,
        HOP_BY_HOP, ROUTING, TCP, TCX_DROP, TCX_NEXT, load, same,
    },
    lookup::{POD_OWNER, POD_V4, POD_V6},
    maps::{FLOWS, count},
    origin,
};
use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, macros::classifier, programs::TcContext};
use capture_abi::{Addr, FlowKey, IPPROTO_TCP, flow_kind};
use core::ptr::read_volatile;

#[classifier]
pub fn arrivals(ctx: TcContext) -> i32 {
    // SAFETY: a constant of the program.
    let owner = unsafe { read_volatile(&raw const POD_OWNER) };
    let direct = origin::of_direct(&ctx);
    if matches!(direct, Some(sock) if sock.peer == owner) {
        return TCX_NEXT;
    }
    let Ok(tuple) = tuple(&ctx, owner) else {
        count(owner, |c| c.dropped_malformed += 1);
        return TCX_DROP;
    };
    if let Some(key) = tuple {
        // Another pod's: a bridge that does not know where that pod is sends it to all.
        // SAFETY: constants of the program.
        let own = unsafe {
            same(&key.remote, read_volatile(&raw const POD_V4))
                || same(&key.remote, read_volatile(&raw const POD_V6))
        };
        if direct.is_some() && !own {
            return TCX_DROP;
        }
        // SAFETY: the entry is read at once; a field of the program's context.
        let impostor = match unsafe { FLOWS.get(&key) } {
            Some(f) if f.kind == flow_kind::AGENT => true,
            Some(f) if flow_kind::is_past_the_agent(f.kind) => unsafe {
                let skb: *mut __sk_buff = ctx.as_ptr().cast();
                read_volatile(&raw const (*skb).ingress_ifindex) != f.by
            },
            _ => false,
        };
        if impostor {
            count(owner, |c| c.dropped_impostor += 1);
            return TCX_DROP;
        }
    }
    TCX_NEXT
}

/// It may hold TCP, and where is not to be seen.
struct Hidden;

/// The tuple as the agent's socket would have announced it, of what is TCP. A later fragment has none, and
/// does nothing without its first.
#[inline(always)]
fn tuple(ctx: &TcContext, owner: u32) -> Result<Option<FlowKey>, Hidden> {
    let ethertype = load::<[u8; 2]>(ctx, 12).ok_or(Hidden)?;
    let (local, remote, at) = match u16::from_be_bytes(ethertype) {
        ETH_P_IP => {
            let h = load::<[u8; 20]>(ctx, ETH_LEN).ok_or(Hidden)?;
            if h[9] != TCP || u16::from_be_bytes([h[6], h[7]]) & 0x1fff != 0 {
                return Ok(None);
            }
            let word = |i: usize| u32::from_ne_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]);
            (Addr::v4(word(12)), Addr::v4(word(16)), ETH_LEN + (((h[0] & 0x0f) as u32) << 2))
        }
        ETH_P_IPV6 => {
            let h = load::<[u8; 40]>(ctx, ETH_LEN).ok_or(Hidden)?;
            let word = |i: usize| u32::from_ne_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]);
            let Some(at) = tcp_of_v6(ctx, h[6])? else { return Ok(None) };
            let local = Addr([word(8), word(12), word(16), word(20)]);
            let remote = Addr([word(24), word(28), word(32), word(36)]);
            (local, remote, at)
        }
        // A second tag, which the pod's kernel takes off as well.
        ETH_P_8021Q | ETH_P_8021AD => return Err(Hidden),
        _ => return Ok(None),
    };
    let ports = load::<[u8; 4]>(ctx, at).ok_or(Hidden)?;
    Ok(Some(FlowKey {
        owner,
        protocol: IPPROTO_TCP,
        local,
        remote,
        local_port: u16::from_be_bytes([ports[0], ports[1]]),
        remote_port: u16::from_be_bytes([ports[2], ports[3]]),
    }))
}

/// Where the TCP header begins.
#[inline(always)]
fn tcp_of_v6(ctx: &TcContext, first: u8) -> Result<Option<u32>, Hidden> {
    let (mut next, mut at) = (first, ETH_LEN + 40);
    for _ in 0..8 {
        match next {
            TCP => return Ok(Some(at)),
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let e = load::<[u8; 2]>(ctx, at).ok_or(Hidden)?;
                next = e[0];
                at += (e[1] as u32 + 1) << 3;
            }
            FRAGMENT => {
                let e = load::<[u8; 4]>(ctx, at).ok_or(Hidden)?;
                if u16::from_be_bytes([e[2], e[3]]) & 0xfff8 != 0 {
                    return Ok(None);
                }
                next = e[0];
                at += 8;
            }
            _ => return Ok(None),
        }
    }
    Err(Hidden)
}
