//! `sockops`: announces connections, and hands a captured one's destination to the agent.

use crate::{
    maps::{EVENTS, FLOWS, HERE, SOCKS, announce, count, no_room, owner, withdraw},
    unpaced, ways,
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP,
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE,
    },
    helpers::{bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_ringbuf_query},
    macros::sock_ops,
    programs::SockOpsContext,
};
use capture_abi::{
    Addr, Event, Flow, FlowKey, IPPROTO_TCP, Pod, Sock, event_kind, flow_kind, sock_kind,
};
use core::{
    ffi::c_void,
    ptr::{self, read_volatile},
};

const AF_INET: u32 = 2;

/// Bytes of news that the agent may have left unread: a quarter of EVENTS, or 5,000 connections a second.
const WAKES_FROM: u64 = 128 * 1024;

#[sock_ops]
pub fn tcp_events(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(&ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => closed(&ctx),
        _ => {}
    }
    1
}

/// The local port is known and the SYN has not left: from here on `lookup` and the guard know it.
/// A socket that the connect hook did not authorise is not announced, and so goes nowhere.
#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    let Some(sock) = SOCKS.get(sk(ctx)) else { return };
    let kind = match sock.kind {
        sock_kind::CAPTURED => flow_kind::CAPTURED,
        sock_kind::AGENT => flow_kind::AGENT,
        sock_kind::DIRECT => {
            if let Some(pod) = owner(ctx.as_ptr()) {
                connecting_directly(ctx, pod, sock);
            }
            return;
        }
        _ => return,
    };
    // By the owner that the socket was made for, whose capture may just have ended: while `lookup` is still attached, it
    // would take the SYN of a last hop for somebody else's.
    let owner = sock.owner;
    // With TCP Fast Open the SYN may be sent long after the connect hook, which has asked, too.
    if kind == flow_kind::CAPTURED && no_room(owner) {
        count(owner, |c| c.announce_failed += 1);
        return;
    }
    let flow = Flow {
        kind,
        port: sock.port,
        destination: sock.destination,
        cookie: cookie(ctx),
        peer: 0,
        by: 0,
    };
    if announce(&key(ctx, owner), &flow) {
        let _ = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    } else {
        count(owner, |c| c.announce_failed += 1);
    }
}

/// For `lookup` and `arrivals` of the other pod; the guards know the packets by their sockets. Only from the pod's own
/// address: another is not what policy was asked about.
#[inline(always)]
fn connecting_directly(ctx: &SockOpsContext, pod: &Pod, sock: &mut Sock) {
    let here = key(ctx, pod.owner);
    let own = here.local == pod.ipv4 || here.local == pod.ipv6;
    let leads = ways::still_leads(sock, &here.remote, here.remote_port);
    if !own || !leads || !announce_at_the_other(ctx, pod, sock, &here) {
        // Of a socket that is nothing to them, guard and `arrivals` let nothing pass.
        sock.kind = sock_kind::NONE;
        count(pod.owner, |c| c.announce_failed += 1);
    }
}

#[inline(always)]
fn announce_at_the_other(ctx: &SockOpsContext, pod: &Pod, sock: &Sock, here: &FlowKey) -> bool {
    let there = FlowKey { owner: sock.peer, ..*here };
    let admitted = Flow {
        kind: flow_kind::ADMITTED,
        port: sock.port,
        destination: sock.destination,
        cookie: cookie(ctx),
        peer: pod.owner,
        by: pod.host_end,
    };
    if is_anothers(&there, admitted.cookie) || !announce(&there, &admitted) {
        return false;
    }
    let _ = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    true
}

/// Whether the other connection keeps its tuple: a last hop, whose port the kernel has chosen for a pod whose range of
/// ports is wider than usual; or one past the agent, of a socket that is bound to an interface and so in nobody's way. It
/// could not be ended any more once another had taken its announcement's place, and that away.
#[inline(always)]
fn is_anothers(there: &FlowKey, cookie: u64) -> bool {
    // SAFETY: the entry is read at once.
    match unsafe { FLOWS.get(there) } {
        Some(f) if f.kind == flow_kind::AGENT => true,
        Some(f) => flow_kind::is_past_the_agent(f.kind) && f.cookie != cookie,
        None => false,
    }
}

#[inline(always)]
fn connected(ctx: &SockOpsContext) {
    let Some(sock) = SOCKS.get(sk(ctx)) else { return };
    match sock.kind {
        sock_kind::CAPTURED => unpaced::within_node(ctx),
        sock_kind::AGENT => {
            if matches!(owner(ctx.as_ptr()), Some(pod) if stays_here(ctx, pod)) {
                unpaced::within_node(ctx);
            }
        }
        sock_kind::DIRECT => {
            unpaced::within_node(ctx);
            tell(ctx, event_kind::OPENED, &key(ctx, sock.owner), sock);
        }
        _ => {}
    }
}

/// Whether this socket of the agent's leads to the application of the pod that it is in, or to another pod of this
/// node.
#[inline(always)]
fn stays_here(ctx: &SockOpsContext, pod: &Pod) -> bool {
    let remote = key(ctx, pod.owner).remote;
    remote == pod.ipv4 || remote == pod.ipv6 || is_here(&remote)
}

#[inline(always)]
fn is_here(address: &Addr) -> bool {
    // SAFETY: only whether it is there counts.
    unsafe { HERE.get(address) }.is_some()
}

/// Without waking the agent, which looks ten times a second: at ten thousand connections a second that
/// would cost more than the connections. Only when it has fallen behind is it woken.
#[inline(always)]
fn tell(ctx: &SockOpsContext, kind: u32, flow: &FlowKey, sock: &Sock) {
    let o = ctx.ops;
    // SAFETY: fields of the program's context, each read as one word.
    let (sent, received) = unsafe {
        (read_volatile(&raw const (*o).bytes_acked), read_volatile(&raw const (*o).bytes_received))
    };
    let event = Event {
        kind,
        state: if kind == event_kind::CLOSED { ctx.arg(0) } else { 0 },
        cookie: cookie(ctx),
        flow: *flow,
        peer: sock.peer,
        asked: sock.destination,
        asked_port: sock.port,
        reserved: 0,
        sent,
        received,
        // SAFETY: no arguments.
        at: unsafe { bpf_ktime_get_ns() },
    };
    let ring = ptr::from_ref(&EVENTS).cast_mut().cast();
    // SAFETY: the map lives as long as the program.
    let waiting = unsafe { bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA as u64) };
    let wakes = if waiting > WAKES_FROM { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    if EVENTS.output(event, wakes as u64).is_err() {
        count(sock.owner, |c| c.untold += 1);
    }
}

/// A socket that was connected once, and listens now: what it accepts, to which storage is cloned,
/// was not captured.
#[inline(always)]
fn listening(ctx: &SockOpsContext) {
    if matches!(SOCKS.get(sk(ctx)), Some(sock) if sock.kind != sock_kind::AGENT) {
        SOCKS.clear(sk(ctx));
    }
}

/// Only the agent's listeners leave their mark on what they accept. The far end of a captured
/// connection takes the destination over; anything else that the agent accepted is a flow of its
/// own, which the guard lets answer.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let (kind, made_for) =
        SOCKS.get(sk(ctx)).map_or((sock_kind::NONE, 0), |sock| (sock.kind, sock.owner));
    if kind == sock_kind::DIRECT {
        // Both ends have connected at once: it is announced, and told of as what it is.
        return connected(ctx);
    }
    let agents = kind == sock_kind::AGENT;
    // As in `connecting`.
    let owner = if agents {
        made_for
    } else {
        let Some(pod) = owner(ctx.as_ptr()) else { return };
        pod.owner
    };
    let here = key(ctx, owner);
    let there = FlowKey {
        local: here.remote,
        remote: here.local,
        local_port: here.remote_port,
        remote_port: here.local_port,
        ..here
    };
    // SAFETY: the entry is copied out at once.
    let announced = unsafe { FLOWS.get(&there) }.copied();
    let flow = Flow {
        kind: flow_kind::ACCEPTED,
        port: 0,
        destination: Addr::UNSPECIFIED,
        cookie: cookie(ctx),
        peer: 0,
        by: 0,
    };
    match announced {
        Some(captured) if agents && captured.kind == flow_kind::CAPTURED => {
            let handed = Sock {
                kind: sock_kind::HANDED_OVER,
                owner,
                port: captured.port,
                peer: 0,
                destination: captured.destination,
                at: 0,
            };
            SOCKS.set(sk(ctx), handed);
            withdraw(&there, &captured);
            unpaced::within_node(ctx);
            return;
        }
        // An application's, of the last hop.
        Some(agents_own) if !agents && agents_own.kind == flow_kind::AGENT => {
            unpaced::within_node(ctx);
            return;
        }
        // An application's, of a connection that came past the agent: its packets are known by it.
        Some(admitted) if !agents && admitted.kind == flow_kind::ADMITTED => {
            let sock = Sock {
                kind: sock_kind::ADMITTED,
                owner,
                port: 0,
                peer: admitted.peer,
                destination: Addr::UNSPECIFIED,
                at: 0,
            };
            if !SOCKS.set(sk(ctx), sock) {
                count(owner, |c| c.announce_failed += 1);
            }
            has_entered(&there);
            unpaced::within_node(ctx);
            return;
        }
        _ if agents => {
            // What comes from another pod of this node by HBONE.
            if is_here(&here.remote) {
                unpaced::within_node(ctx);
            }
        }
        _ => return,
    }
    if announce(&here, &flow) {
        let _ = ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    } else {
        count(owner, |c| c.announce_failed += 1);
    }
}

/// Another connection of the tuple would be one that nobody hears of, and no policy ends.
#[inline(always)]
fn has_entered(there: &FlowKey) {
    if let Some(flow) = FLOWS.get_ptr_mut(there) {
        // SAFETY: an entry of the map; one word, which others read whole.
        unsafe { ptr::write_volatile(&raw mut (*flow).kind, flow_kind::ENTERED) };
    }
}

/// The socket takes its announcement along, unless a newer socket has the tuple by now.
#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let Some(sock) = SOCKS.get(sk(ctx)) else { return };
    let key = key(ctx, sock.owner);
    if sock.kind != sock_kind::DIRECT {
        withdraw_own(ctx, &key);
    } else {
        withdraw_own(ctx, &FlowKey { owner: sock.peer, ..key });
        tell(ctx, event_kind::CLOSED, &key, sock);
    }
}

#[inline(always)]
fn withdraw_own(ctx: &SockOpsContext, key: &FlowKey) {
    // SAFETY: the entry is copied out at once.
    if let Some(flow) = unsafe { FLOWS.get(key) }.copied()
        && flow.cookie == cookie(ctx)
    {
        withdraw(key, &flow);
    }
}

#[inline(always)]
fn sk(ctx: &SockOpsContext) -> *mut c_void {
    // SAFETY: a field of the program's context.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk.cast() }
}

#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: takes the program's context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn key(ctx: &SockOpsContext, owner: u32) -> FlowKey {
    let o = ctx.ops;
    // Every word is read before the family is looked at: of reads in two branches the compiler
    // makes one with a computed offset, which the verifier refuses.
    // SAFETY: fields of the program's context, each read as one word.
    let (family, local4, remote4, local6, remote6, local_port, remote_port) = unsafe {
        (
            read_volatile(&raw const (*o).family),
            read_volatile(&raw const (*o).local_ip4),
            read_volatile(&raw const (*o).remote_ip4),
            Addr([
                read_volatile(&raw const (*o).local_ip6[0]),
                read_volatile(&raw const (*o).local_ip6[1]),
                read_volatile(&raw const (*o).local_ip6[2]),
                read_volatile(&raw const (*o).local_ip6[3]),
            ]),
            Addr([
                read_volatile(&raw const (*o).remote_ip6[0]),
                read_volatile(&raw const (*o).remote_ip6[1]),
                read_volatile(&raw const (*o).remote_ip6[2]),
                read_volatile(&raw const (*o).remote_ip6[3]),
            ]),
            read_volatile(&raw const (*o).local_port),
            read_volatile(&raw const (*o).remote_port),
        )
    };
    let (local, remote) =
        if family == AF_INET { (Addr::v4(local4), Addr::v4(remote4)) } else { (local6, remote6) };
    FlowKey {
        owner,
        protocol: IPPROTO_TCP,
        local,
        remote,
        local_port: local_port as u16,
        remote_port: u32::from_be(remote_port) as u16,
    }
}
