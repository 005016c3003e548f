//! Past the agent: a connect to a pod of this node, for which policy has said yes before.
//!
//! The agent writes a way for what a pod may connect to, and renews a lease for all of them. The
//! connect hook chooses the endpoint, `sockops` announces the tuple at the other pod, `lookup`
//! there admits just that. From there on it is plain TCP between the two.

use crate::maps::{FLOWS, LEASE, WAYS, no_room};
use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns},
};
use capture_abi::{
    Addr, FlowKey, IPPROTO_TCP, LAST_HOP_MARK, MOST_TARGETS, Pod, Sock, Target, WayKey, flow_kind,
    lease, pod_flags,
};
use core::ptr::read_volatile;

/// Where a connect goes.
pub enum Choice {
    /// To a pod of this node.
    Direct(Target),
    /// To an endpoint that is the agent's to choose, among those that are not here.
    Elsewhere,
    /// To the agent.
    Unknown,
}

/// Whether the agent's lease on all ways has not ended.
#[inline(always)]
pub fn lease_holds() -> bool {
    // A few milliseconds do not matter, and this clock costs a quarter of the exact one.
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    matches!(LEASE.get(lease::UNTIL), Some(until) if now < *until)
}

/// `a` is the connect hook's context, with the address that the application asks for.
#[inline(always)]
pub fn choose(a: *mut bpf_sock_addr, pod: &Pod, address: &Addr, port: u16) -> Choice {
    if pod.flags & pod_flags::DIRECT == 0 {
        return Choice::Unknown;
    }
    let key = WayKey { owner: pod.owner, port: port as u32, address: *address };
    // SAFETY: an entry that the agent rewrites in place stays valid memory until the program ends.
    let Some(way) = (unsafe { WAYS.get(key) }) else { return Choice::Unknown };
    let is_current = matches!(LEASE.get(lease::GENERATION), Some(g) if *g == way.generation);
    if !is_current || !lease_holds() || !unbound(a, pod) {
        return Choice::Unknown;
    }
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let chosen = match way.endpoints {
        0 => return Choice::Unknown,
        1 => 0,
        // A product of two 32-bit numbers, of which the upper half is below the second.
        n => ((random as u64 * n as u64) >> 32) as u32,
    };
    if chosen >= way.here || chosen >= MOST_TARGETS as u32 {
        return Choice::Elsewhere;
    }
    let Some(target) = way.targets.get(chosen as usize) else { return Choice::Elsewhere };
    if target.owner == 0 {
        return Choice::Unknown;
    }
    if is_of_last_hop(a, pod, target) {
        return Choice::Unknown;
    }
    Choice::Direct(*target)
}

/// Whether the socket is bound to a port of the client's with which a last hop to the target stands for the client:
/// a second connection of that tuple there cannot be, and by the agent it gets another.
#[inline(always)]
fn is_of_last_hop(a: *mut bpf_sock_addr, pod: &Pod, target: &Target) -> bool {
    // SAFETY: `sk` was checked in `connect::captures`; the verifier follows the pointer.
    let port = unsafe {
        let sk = (*a).__bindgen_anon_1.sk;
        if sk.is_null() { 0 } else { read_volatile(&raw const (*sk).src_port) }
    };
    if port == 0 {
        return false;
    }
    let key = FlowKey {
        owner: target.owner,
        protocol: IPPROTO_TCP,
        local: if target.address.is_v4() { pod.ipv4 } else { pod.ipv6 },
        remote: target.address,
        local_port: port as u16,
        remote_port: target.port as u16,
    };
    is_last_hop(&key)
}

/// Whether the tuple is that of a socket of the agent's.
#[inline(always)]
fn is_last_hop(there: &FlowKey) -> bool {
    // SAFETY: the entry is read at once.
    matches!(unsafe { FLOWS.get(there) }, Some(flow) if flow.kind == flow_kind::AGENT)
}

/// In units of [`now`].
const AT_ONCE: u32 = 20;

/// The monotonic clock in 2^20 nanoseconds, about milliseconds.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_ktime_get_coarse_ns() } >> 20) as u32
}

/// Whether the way by which a socket was let go past the agent still leads there. With TCP Fast Open its
/// SYN may be sent long after the connect hook, which has also asked whether there is room.
#[inline(always)]
pub fn still_leads(sock: &Sock, address: &Addr, port: u16) -> bool {
    // Nearly always at once: what has changed since is seen when the agent hears of the connection.
    if now().wrapping_sub(sock.at) < AT_ONCE {
        return true;
    }
    if no_room(sock.owner) {
        return false;
    }
    let key = WayKey { owner: sock.owner, port: sock.port, address: sock.destination };
    // SAFETY: as in `choose`.
    let Some(way) = (unsafe { WAYS.get(key) }) else { return false };
    let is_current = matches!(LEASE.get(lease::GENERATION), Some(g) if *g == way.generation);
    is_current
        && lease_holds()
        && way
            .targets
            .iter()
            .any(|t| t.owner == sock.peer && t.port == port as u32 && t.address == *address)
}

/// Whether the socket is bound to nothing, or to the pod's own address: as another it is not
/// announced, and to a device of its own, or with the agent's mark, it may not find the way.
#[inline(always)]
fn unbound(a: *mut bpf_sock_addr, pod: &Pod) -> bool {
    // SAFETY: `sk` was checked in `connect::captures`; fields of it, each read as one word.
    unsafe {
        let sk = (*a).__bindgen_anon_1.sk;
        if sk.is_null()
            || read_volatile(&raw const (*sk).bound_dev_if) != 0
            || read_volatile(&raw const (*sk).mark) == LAST_HOP_MARK
        {
            return false;
        }
        let v4 = read_volatile(&raw const (*sk).src_ip4);
        let v6 = Addr([
            read_volatile(&raw const (*sk).src_ip6[0]),
            read_volatile(&raw const (*sk).src_ip6[1]),
            read_volatile(&raw const (*sk).src_ip6[2]),
            read_volatile(&raw const (*sk).src_ip6[3]),
        ]);
        let own_v4 = v4 == 0 || v4 == pod.ipv4.ip4();
        let own_v6 = v6.is_unspecified()
            || v6 == pod.ipv6
            || (v6.is_v4() && (v6.ip4() == 0 || v6.ip4() == pod.ipv4.ip4()));
        own_v4 && own_v6
    }
}
