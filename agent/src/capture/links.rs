//! Links: attached once, pinned, and given a newer program in place.

use crate::sys::{self, AttachType, BPF_F_BEFORE, Target};
use anyhow::{Context as _, anyhow};
use aya::{
    Ebpf,
    programs::{CgroupSock, CgroupSockAddr, Program, SchedClassifier, SkLookup, SockOps},
};
use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

/// A hook of the whole node.
#[derive(Clone, Copy, Debug)]
pub struct NodeHook {
    pub program: &'static str,
    pub attach: AttachType,
    /// The oldest kernel that has it.
    pub since: &'static str,
    pub does: &'static str,
}

pub const NODE_HOOKS: [NodeHook; 12] = [
    NodeHook {
        program: "connect4",
        attach: AttachType::Connect4,
        since: "4.17",
        does: "captures IPv4 connects",
    },
    NodeHook {
        program: "connect6",
        attach: AttachType::Connect6,
        since: "4.17",
        does: "captures IPv6 and v4-mapped connects",
    },
    NodeHook {
        program: "getpeername4",
        attach: AttachType::Getpeername4,
        since: "5.8",
        does: "shows applications the address they asked for",
    },
    NodeHook {
        program: "getpeername6",
        attach: AttachType::Getpeername6,
        since: "5.8",
        does: "the same for IPv6",
    },
    NodeHook {
        program: "getsockname4",
        attach: AttachType::Getsockname4,
        since: "5.8",
        does: "shows applications the pod's own address",
    },
    NodeHook {
        program: "getsockname6",
        attach: AttachType::Getsockname6,
        since: "5.8",
        does: "the same for IPv6",
    },
    NodeHook {
        program: "recvmsg4",
        attach: AttachType::Recvmsg4,
        since: "5.2",
        does: "shows applications the name server they asked",
    },
    NodeHook {
        program: "recvmsg6",
        attach: AttachType::Recvmsg6,
        since: "5.2",
        does: "the same for IPv6",
    },
    NodeHook {
        program: "sendmsg4",
        attach: AttachType::Sendmsg4,
        since: "4.18",
        does: "brings questions for a name server to the agent",
    },
    NodeHook {
        program: "sendmsg6",
        attach: AttachType::Sendmsg6,
        since: "4.18",
        does: "the same for IPv6",
    },
    NodeHook {
        program: "sock_create",
        attach: AttachType::CgroupSockCreate,
        since: "5.10",
        does: "keeps MPTCP, whose subflows nobody sees, out of enrolled pods",
    },
    // Last: with it connections begin to be announced, and all the rest is in place by then.
    NodeHook {
        program: "tcp_events",
        attach: AttachType::CgroupSockOps,
        since: "5.14",
        does: "announces connections to sk_lookup and the guard",
    },
];

pub fn attach_node_hook(
    ebpf: &mut Ebpf,
    hook: NodeHook,
    cgroup: BorrowedFd<'_>,
    links: &Path,
) -> anyhow::Result<()> {
    let program = program_fd(ebpf, hook.program)?;
    attach(program.as_fd(), Target::Fd(cgroup), hook.attach, &links.join(hook.program))
        .with_context(|| {
            format!(
                "attaching {} ({}; needs Linux {}). `culvert-agent check` tells more",
                hook.program, hook.does, hook.since
            )
        })
}

/// Puts `program` into the link that is pinned at `at`, or makes and pins one.
pub fn attach(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: AttachType,
    at: &Path,
) -> io::Result<()> {
    match sys::pinned(at) {
        Ok(link) => match sys::link_update(link.as_fd(), program) {
            Ok(()) => return Ok(()),
            // The link is there, what it was attached to is gone.
            Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => std::fs::remove_file(at)?,
            Err(e) => return Err(e),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let link = create(program, target, attach_type)?;
    sys::pin(link.as_fd(), at)
}

/// Ahead of programs that are there already, where the kernel can: behind Cilium's socket
/// balancer a service's address would be lost, behind another classifier a packet.
pub fn create(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    if attach_type == AttachType::SkLookup {
        return sys::link_create(program, target, attach_type, 0);
    }
    match sys::link_create(program, target, attach_type, BPF_F_BEFORE) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            sys::link_create(program, target, attach_type, 0)
        }
        other => other,
    }
}

/// Loads a program into the kernel.
pub fn program_fd(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<OwnedFd> {
    let program =
        ebpf.program_mut(name).ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
    let fd = match program {
        Program::CgroupSockAddr(p) => load(p, CgroupSockAddr::load, CgroupSockAddr::fd),
        Program::CgroupSock(p) => load(p, CgroupSock::load, CgroupSock::fd),
        Program::SockOps(p) => load(p, SockOps::load, SockOps::fd),
        Program::SkLookup(p) => load(p, SkLookup::load, SkLookup::fd),
        Program::SchedClassifier(p) => load(p, SchedClassifier::load, SchedClassifier::fd),
        _ => return Err(anyhow!("the program {name} is of a kind that nobody here loads")),
    };
    fd.with_context(|| format!("the kernel did not take the program {name}"))
}

fn load<P>(
    program: &mut P,
    load: impl Fn(&mut P) -> Result<(), aya::programs::ProgramError>,
    fd: impl Fn(&P) -> Result<&aya::programs::ProgramFd, aya::programs::ProgramError>,
) -> anyhow::Result<OwnedFd> {
    load(program)?;
    Ok(fd(program)?.as_fd().try_clone_to_owned()?)
}
