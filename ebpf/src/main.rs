//! Culvert's kernel programs. Each hook has a file; `maps` holds what they share.
//!
//! `connect` turns an application's connect to the agent, `dns` its questions for a name server;
//! `ways` lets a connect to a pod of this node go past the agent; `names` keeps all that invisible,
//! `sockops` announces connections, `lookup` admits or captures what arrives, `guard` drops what was
//! never announced, `arrivals` what takes an announced one's name; `origin` tells both who made a
//! packet; `unpaced` keeps congestion control from connections that do not leave the node.
#![no_std]
#![no_main]
#![allow(internal_features)]
#![feature(core_intrinsics)]

mod arrivals;
mod connect;
mod create;
mod dns;
mod guard;
mod lookup;
mod maps;
mod names;
mod origin;
mod sockops;
mod unpaced;
mod ways;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// Some helpers (bpf_setsockopt among them) are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
