//! `cgroup/sock_create`: an enrolled pod gets no MPTCP sockets.
//!
//! Their subflows are sockets of their own that no connect hook sees. Applications that ask for
//! MPTCP fall back to TCP when it is not to be had.

use crate::maps::owner;
use aya_ebpf::{
    EbpfContext as _, helpers::bpf_set_retval, macros::cgroup_sock, programs::SockContext,
};
use core::ptr::read_volatile;

const IPPROTO_MPTCP: u32 = 262;
const EPROTONOSUPPORT: i32 = 93;

#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    // SAFETY: a field of the program's context.
    let protocol = unsafe { read_volatile(&raw const (*ctx.sock).protocol) };
    if protocol == IPPROTO_MPTCP && owner(ctx.as_ptr()).is_some() {
        // SAFETY: sets what socket() returns to the application.
        unsafe { bpf_set_retval(-EPROTONOSUPPORT) };
        return 0;
    }
    1
}
