//! Connections that do not leave the node are not paced.
//!
//! Between two sockets of one kernel no link can be congested, and what a reader is slow to take, TCP's window
//! holds back. A congestion control that looks for a link's bandwidth and paces by it, as BBR does, finds the
//! scheduling of the two ends instead: 12 Gbit/s from pod to pod where without pacing it is 50 (two cores, 6.18).

use aya_ebpf::{helpers::bpf_setsockopt, programs::SockOpsContext};

const TCP_CONGESTION: i32 = 13;

/// Does not pace, and is in every kernel; CUBIC may be a module.
const RENO: [u8; 5] = *b"reno\0";

/// From BPF_SOCK_OPS_*_ESTABLISHED_CB only, which `tcp_init_transfer` (net/ipv4/tcp_input.c, since 5.10) runs
/// before congestion control begins: nothing takes back the `sk_pacing_status` of a socket on which BBR has begun.
#[inline(always)]
pub fn within_node(ctx: &SockOpsContext) {
    let mut name = RENO;
    // Where it fails, the connection is as it would have been.
    // SAFETY: the program's context, and a name of five bytes on this stack.
    unsafe {
        bpf_setsockopt(
            ctx.ops.cast(),
            capture_abi::IPPROTO_TCP as i32,
            TCP_CONGESTION,
            (&raw mut name).cast(),
            name.len() as i32,
        )
    };
}
