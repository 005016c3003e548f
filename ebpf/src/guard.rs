//! `tcx` ingress on the host end of an enrolled pod's veth: what was never announced does not leave.
//!
//! A TCP segment leaves only on a flow that `sockops` or the agent has announced. Without payload
//! and without SYN it may leave anyway, from the pod's own address: it opens nothing and carries nothing
//! (the last ACK out of TIME_WAIT, a RST for a closed port, a SYN-ACK before the flow is established).
//! What cannot be parsed is dropped.

use crate::{
    lookup::{POD_OWNER, POD_V4, POD_V6},
    maps::{EARLIER, FLOWS, HERE, count},
    origin,
    ways::lease_holds,
};
use aya_ebpf::{
    EbpfContext as _, bindings::__sk_buff, helpers::bpf_skb_load_bytes, macros::classifier,
    programs::TcContext,
};
use capture_abi::{Addr, FlowKey, IPPROTO_TCP, flow_kind};
use core::{mem::MaybeUninit, ptr::read_volatile};

pub const TCX_NEXT: i32 = -1;
pub const TCX_DROP: i32 = 2;

pub const ETH_LEN: u32 = 14;
pub const ETH_P_IP: u16 = 0x0800;
pub const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_ARP: u16 = 0x0806;
pub const ETH_P_8021Q: u16 = 0x8100;
pub const ETH_P_8021AD: u16 = 0x88a8;

const ICMP: u8 = 1;
const IGMP: u8 = 2;
pub const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const DESTINATION: u8 = 60;

const FIN_ACK_RST_SYN: u8 = 0x17;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Set when the program is loaded: protocols other than TCP, UDP and ICMP may leave.
#[unsafe(no_mangle)]
static ALLOW_OTHER: u32 = 0;

enum Verdict {
    Pass,
    Udp,
    Icmp,
    Other,
    DropSyn,
    DropSegment,
    DropFragment,
    DropProtocol,
    DropMalformed,
    DropLease,
}

#[classifier]
pub fn guard(ctx: TcContext) -> i32 {
    // SAFETY: a constant of the program.
    let owner = unsafe { read_volatile(&raw const POD_OWNER) };
    let verdict = match origin::of_direct(&ctx) {
        Some(sock) if sock.owner == owner => past_the_agent(),
        _ => judge(&ctx, owner),
    };
    match verdict {
        Verdict::Pass => TCX_NEXT,
        Verdict::Udp => {
            count(owner, |c| c.passed_udp += 1);
            TCX_NEXT
        }
        Verdict::Icmp => {
            count(owner, |c| c.passed_icmp += 1);
            TCX_NEXT
        }
        Verdict::Other => {
            count(owner, |c| c.passed_other += 1);
            TCX_NEXT
        }
        Verdict::DropSyn => {
            count(owner, |c| c.dropped_syn += 1);
            TCX_DROP
        }
        Verdict::DropSegment => {
            count(owner, |c| c.dropped_segment += 1);
            TCX_DROP
        }
        Verdict::DropFragment => {
            count(owner, |c| c.dropped_fragment += 1);
            TCX_DROP
        }
        Verdict::DropProtocol => {
            count(owner, |c| c.dropped_protocol += 1);
            TCX_DROP
        }
        Verdict::DropMalformed => {
            count(owner, |c| c.dropped_malformed += 1);
            TCX_DROP
        }
        Verdict::DropLease => {
            count(owner, |c| c.dropped_lease += 1);
            TCX_DROP
        }
    }
}

#[inline(always)]
fn judge(ctx: &TcContext, owner: u32) -> Verdict {
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    // SAFETY: fields of the program's context.
    let (vlan, len) = unsafe {
        (read_volatile(&raw const (*skb).vlan_present), read_volatile(&raw const (*skb).len))
    };
    // The kernel has taken one tag out of the frame, and what is within is what it was without: with the tag of
    // network 0 whoever receives it reads it so. A second tag would hide it.
    if vlan != 0 && !may_be_other() {
        return Verdict::DropProtocol;
    }
    let Some(ethertype) = load::<[u8; 2]>(ctx, 12) else { return Verdict::DropMalformed };
    match u16::from_be_bytes(ethertype) {
        ETH_P_8021Q | ETH_P_8021AD => Verdict::DropProtocol,
        ETH_P_IP => judge_v4(ctx, owner, len),
        ETH_P_IPV6 => judge_v6(ctx, owner, len),
        ETH_P_ARP => Verdict::Pass,
        _ => other_protocol(),
    }
}

#[inline(always)]
fn judge_v4(ctx: &TcContext, owner: u32, len: u32) -> Verdict {
    let Some(h) = load::<[u8; 20]>(ctx, ETH_LEN) else { return Verdict::DropMalformed };
    let ihl = ((h[0] & 0x0f) as u32) << 2;
    if h[0] >> 4 != 4 || ihl < 20 {
        return Verdict::DropMalformed;
    }
    let protocol = h[9];
    // More-fragments, or an offset: whatever comes second has no TCP header to look at.
    if u16::from_be_bytes([h[6], h[7]]) & 0x3fff != 0 && protocol == TCP {
        return Verdict::DropFragment;
    }
    let total = u16::from_be_bytes([h[2], h[3]]) as u32;
    // Zero on packets that segmentation offload will cut (BIG TCP).
    let total = if total == 0 { len.wrapping_sub(ETH_LEN) } else { total };
    match protocol {
        TCP => {
            let key = FlowKey {
                owner,
                protocol: IPPROTO_TCP,
                local: Addr::v4(u32::from_ne_bytes([h[12], h[13], h[14], h[15]])),
                remote: Addr::v4(u32::from_ne_bytes([h[16], h[17], h[18], h[19]])),
                local_port: 0,
                remote_port: 0,
            };
            judge_tcp(ctx, key, ETH_LEN + ihl, total.wrapping_sub(ihl))
        }
        UDP => Verdict::Udp,
        ICMP | IGMP => Verdict::Icmp,
        _ => other_protocol(),
    }
}

#[inline(always)]
fn judge_v6(ctx: &TcContext, owner: u32, len: u32) -> Verdict {
    let Some(h) = load::<[u8; 40]>(ctx, ETH_LEN) else { return Verdict::DropMalformed };
    if h[0] >> 4 != 6 {
        return Verdict::DropMalformed;
    }
    let payload = u16::from_be_bytes([h[4], h[5]]) as u32;
    let mut left = if payload == 0 { len.wrapping_sub(ETH_LEN + 40) } else { payload };
    let mut at = ETH_LEN + 40;
    let mut next = h[6];
    let mut fragment = false;
    for _ in 0..8 {
        let skip = match next {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let Some(e) = load::<[u8; 2]>(ctx, at) else { return Verdict::DropMalformed };
                // The chain behind a fragment header stands in the first fragment only.
                if fragment {
                    return Verdict::DropFragment;
                }
                next = e[0];
                (e[1] as u32 + 1) << 3
            }
            FRAGMENT => {
                let Some(e) = load::<[u8; 2]>(ctx, at) else { return Verdict::DropMalformed };
                fragment = true;
                next = e[0];
                8
            }
            TCP if fragment => return Verdict::DropFragment,
            TCP => {
                let a = |i: usize| u32::from_ne_bytes([h[i], h[i + 1], h[i + 2], h[i + 3]]);
                let key = FlowKey {
                    owner,
                    protocol: IPPROTO_TCP,
                    local: Addr([a(8), a(12), a(16), a(20)]),
                    remote: Addr([a(24), a(28), a(32), a(36)]),
                    local_port: 0,
                    remote_port: 0,
                };
                return judge_tcp(ctx, key, at, left);
            }
            UDP => return Verdict::Udp,
            ICMPV6 => return Verdict::Icmp,
            _ => return other_protocol(),
        };
        at += skip;
        left = left.wrapping_sub(skip);
    }
    Verdict::DropMalformed
}

/// `left` is what the packet says it holds from the TCP header on.
#[inline(always)]
fn judge_tcp(ctx: &TcContext, key: FlowKey, at: u32, left: u32) -> Verdict {
    let Some(h) = load::<[u8; 14]>(ctx, at) else { return Verdict::DropMalformed };
    let header = ((h[12] >> 4) as u32) << 2;
    if header < 20 || left < header || left > 0x00ff_ffff {
        return Verdict::DropMalformed;
    }
    let flags = h[13] & FIN_ACK_RST_SYN;
    let opens = flags & (SYN | ACK) == SYN;
    // SAFETY: constants of the program.
    let own = unsafe {
        same(&key.local, read_volatile(&raw const POD_V4))
            || same(&key.local, read_volatile(&raw const POD_V6))
    };
    if left == header && !opens && own {
        return Verdict::Pass;
    }
    // Link-local IPv4 (a node's metadata server or DNS cache) is not captured, and is no pod's.
    if key.remote.is_v4() && u32::from_be(key.remote.ip4()) >> 16 == 0xa9fe {
        return Verdict::Pass;
    }
    let key = FlowKey {
        local_port: u16::from_be_bytes([h[0], h[1]]),
        remote_port: u16::from_be_bytes([h[2], h[3]]),
        ..key
    };
    // SAFETY: the entry is read at once.
    let announced = match unsafe { FLOWS.get(&key) } {
        Some(f) => f.kind == flow_kind::AGENT || f.kind == flow_kind::ACCEPTED,
        // SAFETY: as above.
        None => match unsafe { EARLIER.get(&key) } {
            // What is connected has no need of a SYN: it would begin another connection.
            Some(f) => !opens || f.kind == flow_kind::EARLIER_SYN,
            None if goes_past(&key) => return past_the_agent(),
            None => false,
        },
    };
    match (announced, opens) {
        (true, _) => Verdict::Pass,
        (false, true) => Verdict::DropSyn,
        (false, false) => Verdict::DropSegment,
    }
}

/// Whether a packet that came without its socket (where XDP has copied it, say) is of a connection past the agent: of
/// one that this pod was asked for, or of one of its own, announced at the pod that it leads to.
#[inline(always)]
fn goes_past(key: &FlowKey) -> bool {
    let asked_for = FlowKey {
        local: key.remote,
        remote: key.local,
        local_port: key.remote_port,
        remote_port: key.local_port,
        ..*key
    };
    // SAFETY: the entries are read at once.
    unsafe {
        if matches!(FLOWS.get(&asked_for), Some(f) if flow_kind::is_past_the_agent(f.kind)) {
            return true;
        }
        let Some(peer) = HERE.get(&key.remote) else { return false };
        let own = FlowKey { owner: *peer, ..*key };
        let announced = FLOWS.get(&own).filter(|f| flow_kind::is_past_the_agent(f.kind));
        matches!(announced, Some(f) if f.peer == key.owner)
    }
}

#[inline(always)]
pub fn same(a: &Addr, b: Addr) -> bool {
    a.0[0] == b.0[0] && a.0[1] == b.0[1] && a.0[2] == b.0[2] && a.0[3] == b.0[3]
}

#[inline(always)]
fn past_the_agent() -> Verdict {
    match lease_holds() {
        true => Verdict::Pass,
        false => Verdict::DropLease,
    }
}

#[inline(always)]
fn other_protocol() -> Verdict {
    if may_be_other() { Verdict::Other } else { Verdict::DropProtocol }
}

#[inline(always)]
fn may_be_other() -> bool {
    // SAFETY: a constant of the program.
    unsafe { read_volatile(&raw const ALLOW_OTHER) != 0 }
}

/// `size_of::<T>()` bytes of the packet at `offset`, wherever they lie.
#[inline(always)]
pub fn load<T: Copy>(ctx: &TcContext, offset: u32) -> Option<T> {
    let mut out = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes all of `out` or fails.
    unsafe {
        let failed = bpf_skb_load_bytes(
            ctx.as_ptr(),
            offset,
            out.as_mut_ptr().cast(),
            size_of::<T>() as u32,
        );
        (failed == 0).then(|| out.assume_init())
    }
}
