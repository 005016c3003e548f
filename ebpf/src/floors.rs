//! What `cargo xtask bench` measures Culvert's kernel programs beside, and no agent ever loads: the least that any
//! capture does for a connection within a node, and a bare pair of sockets spliced by `sk_msg`.
#![no_std]
#![no_main]

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_INGRESS, BPF_F_NO_PREALLOC, BPF_RB_NO_WAKEUP, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, sk_action,
    },
    btf_maps::{HashMap, RingBuf, SockHash},
    helpers::bpf_get_socket_cookie,
    macros::{btf_map, cgroup_sock, cgroup_sock_addr, classifier, sk_lookup, sk_msg, sock_ops},
    programs::{
        SkLookupContext, SkMsgContext, SockAddrContext, SockContext, SockOpsContext, TcContext,
    },
};
use core::ptr::read_volatile;

/// IPv4, as the benchmark's loads are.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tuple {
    local: u32,
    remote: u32,
    local_port: u32,
    remote_port: u32,
}

impl Tuple {
    fn of(ctx: &SockOpsContext) -> Self {
        Self {
            local: ctx.local_ip4(),
            remote: ctx.remote_ip4(),
            local_port: ctx.local_port(),
            remote_port: u32::from_be(ctx.remote_port()),
        }
    }

    fn reversed(self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            local_port: self.remote_port,
            remote_port: self.local_port,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct News {
    tuple: Tuple,
    cookie: u64,
}

#[btf_map]
static KNOWN: HashMap<Tuple, u64, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Nobody reads it: it holds what a measurement makes.
#[btf_map]
static TOLD: RingBuf<News, { 16 << 20 }> = RingBuf::new();

#[cgroup_sock_addr(connect4)]
pub fn bare_connect(_: SockAddrContext) -> i32 {
    1
}

#[cgroup_sock(sock_create)]
pub fn bare_create(_: SockContext) -> i32 {
    1
}

/// Whoever connects is known by its tuple before its SYN leaves, until it is closed; both are told.
#[sock_ops]
pub fn bare_events(ctx: SockOpsContext) -> u32 {
    let tuple = Tuple::of(&ctx);
    // SAFETY: takes the program's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            if KNOWN.insert(&tuple, &cookie, 0).is_ok() {
                let _ = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
            }
        }
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => tell(tuple, cookie),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => {
            let _ = KNOWN.remove(&tuple);
            tell(tuple, cookie);
        }
        _ => {}
    }
    1
}

#[inline(always)]
fn tell(tuple: Tuple, cookie: u64) {
    let _ = TOLD.output(News { tuple, cookie }, BPF_RB_NO_WAKEUP as u64);
}

#[sk_lookup]
pub fn bare_lookup(ctx: SkLookupContext) -> u32 {
    let l = ctx.lookup;
    // SAFETY: fields of the program's context, each read as one word.
    let key = unsafe {
        Tuple {
            local: read_volatile(&raw const (*l).remote_ip4),
            remote: read_volatile(&raw const (*l).local_ip4),
            local_port: u16::from_be(read_volatile(&raw const (*l).remote_port)) as u32,
            remote_port: read_volatile(&raw const (*l).local_port),
        }
    };
    // SAFETY: only whether it is there counts.
    match unsafe { KNOWN.get(&key) } {
        Some(_) => sk_action::SK_PASS,
        None => sk_action::SK_DROP,
    }
}

/// At both sides of the host end of both pods' interfaces.
#[classifier]
pub fn bare_packet(_: TcContext) -> i32 {
    -1
}

#[btf_map]
static SPLICED: SockHash<Tuple, 65536> = SockHash::new();

/// Set when the program is loaded: messages of an odd length go by TCP, so that one connection has both kinds.
#[unsafe(no_mangle)]
static ODD_BY_TCP: u32 = 0;

#[sock_ops]
pub fn splice_events(ctx: SockOpsContext) -> u32 {
    if matches!(ctx.op(), BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
    {
        let key = Tuple::of(&ctx);
        // SAFETY: the program's context, which the helper takes.
        let _ = SPLICED.update(key, unsafe { &mut *ctx.ops }, 0);
    }
    1
}

/// To the other socket's queue, or by TCP where it is not there (yet).
#[sk_msg]
pub fn splice(ctx: SkMsgContext) -> u32 {
    let m = ctx.msg;
    // SAFETY: fields of the program's context and a constant of the program, each read as one word.
    let (own, size, odd_by_tcp) = unsafe {
        let own = Tuple {
            local: read_volatile(&raw const (*m).local_ip4),
            remote: read_volatile(&raw const (*m).remote_ip4),
            local_port: read_volatile(&raw const (*m).local_port),
            remote_port: u32::from_be(read_volatile(&raw const (*m).remote_port)),
        };
        (own, read_volatile(&raw const (*m).size), read_volatile(&raw const ODD_BY_TCP))
    };
    if odd_by_tcp != 0 && size & 1 == 1 {
        return sk_action::SK_PASS;
    }
    let _ = SPLICED.redirect_msg(&ctx, own.reversed(), BPF_F_INGRESS as u64);
    sk_action::SK_PASS
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
