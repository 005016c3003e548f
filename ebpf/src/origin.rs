//! Who made a packet: between two network namespaces of one node the kernel keeps the socket that
//! sent it. Nobody can put another's socket to a packet, so what it says needs no look-up.

use crate::{
    guard::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, TCP},
    maps::SOCKS,
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_sock},
    helpers::bpf_sk_fullsock,
    programs::TcContext,
};
use capture_abi::{Sock, sock_kind};
use core::ptr::{read_unaligned, read_volatile};

/// The socket of a connection past the agent, if this packet is a whole segment of that connection, as
/// TCP made it: no fragment, no tunnel around it, no other address.
#[inline(always)]
pub fn of_direct(ctx: &TcContext) -> Option<&'static Sock> {
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    // SAFETY: a field of the program's context; the helper takes what was found not to be null.
    let full = unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() || read_volatile(&raw const (*skb).vlan_present) != 0 {
            return None;
        }
        bpf_sk_fullsock(sk)
    };
    if full.is_null() {
        return None;
    }
    let sock = SOCKS.get(full.cast())?;
    let goes_past = matches!(sock.kind, sock_kind::DIRECT | sock_kind::ADMITTED);
    (goes_past && is_its_segment(ctx, full)).then_some(&*sock)
}

#[inline(always)]
fn is_its_segment(ctx: &TcContext, sk: *mut bpf_sock) -> bool {
    let (start, end) = (ctx.data(), ctx.data_end());
    let at = |offset: u32| (start + offset as usize) as *const u8;
    if start + (ETH_LEN + 24) as usize > end {
        return false;
    }
    // SAFETY: within the packet, as has just been seen; fields of a socket, each read as one word.
    unsafe {
        let word = |offset: u32| read_unaligned(at(offset).cast::<u32>());
        let half = |offset: u32| u16::from_be(read_unaligned(at(offset).cast::<u16>()));
        let own_port = read_volatile(&raw const (*sk).src_port) as u16;
        let its_port = u16::from_be(read_volatile(&raw const (*sk).dst_port));
        match half(12) {
            ETH_P_IP => {
                *at(ETH_LEN) == 0x45
                    && half(ETH_LEN + 6) & 0x3fff == 0
                    && *at(ETH_LEN + 9) == TCP
                    && word(ETH_LEN + 12) == read_volatile(&raw const (*sk).src_ip4)
                    && word(ETH_LEN + 16) == read_volatile(&raw const (*sk).dst_ip4)
                    && half(ETH_LEN + 20) == own_port
                    && half(ETH_LEN + 22) == its_port
            }
            ETH_P_IPV6 => {
                start + (ETH_LEN + 44) as usize <= end
                    && *at(ETH_LEN + 6) == TCP
                    && word(ETH_LEN + 8) == read_volatile(&raw const (*sk).src_ip6[0])
                    && word(ETH_LEN + 12) == read_volatile(&raw const (*sk).src_ip6[1])
                    && word(ETH_LEN + 16) == read_volatile(&raw const (*sk).src_ip6[2])
                    && word(ETH_LEN + 20) == read_volatile(&raw const (*sk).src_ip6[3])
                    && word(ETH_LEN + 24) == read_volatile(&raw const (*sk).dst_ip6[0])
                    && word(ETH_LEN + 28) == read_volatile(&raw const (*sk).dst_ip6[1])
                    && word(ETH_LEN + 32) == read_volatile(&raw const (*sk).dst_ip6[2])
                    && word(ETH_LEN + 36) == read_volatile(&raw const (*sk).dst_ip6[3])
                    && half(ETH_LEN + 40) == own_port
                    && half(ETH_LEN + 42) == its_port
            }
            _ => false,
        }
    }
}
