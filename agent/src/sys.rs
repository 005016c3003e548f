//! The system calls that no crate here offers, each behind a safe signature.

use std::{
    io,
    mem::{size_of, zeroed},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
    time::Duration,
};
use tokio::io::{Interest, unix::AsyncFd};

pub const BPF_F_BEFORE: u32 = 1 << 3;

/// `enum bpf_attach_type` of include/uapi/linux/bpf.h.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum AttachType {
    CgroupSockCreate = 2,
    CgroupSockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Getpeername4 = 29,
    Getpeername6 = 30,
    Getsockname4 = 31,
    Getsockname6 = 32,
    SkLookup = 36,
    TcxIngress = 46,
    TcxEgress = 47,
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    Fd(BorrowedFd<'a>),
    Interface(u32),
}

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

#[repr(C)]
struct MapElem {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Obj {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
    path_fd: u32,
    _pad: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    _pad: u32,
    expected_revision: u64,
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attr` is a prefix of union bpf_attr for `command`, of the size given; the kernel
    // takes what is beyond it as zero.
    let r =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(RawFd::try_from(r).unwrap_or(-1))
}

fn fd_u32(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// `BPF_LINK_CREATE`
pub fn link_create(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: AttachType,
    flags: u32,
) -> io::Result<OwnedFd> {
    let target = match target {
        Target::Fd(fd) => fd_u32(fd),
        Target::Interface(index) => index,
    };
    let mut attr = LinkCreate {
        prog_fd: fd_u32(program),
        target,
        attach_type: attach_type as u32,
        flags,
        relative_fd: 0,
        _pad: 0,
        expected_revision: 0,
    };
    bpf(BPF_LINK_CREATE, &mut attr).map(owned)
}

/// `BPF_LINK_UPDATE`: another program, in place.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link_fd: fd_u32(link),
        new_prog_fd: fd_u32(program),
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// `BPF_LINK_DETACH`: the program runs no more once this returns, where the last descriptor's end
/// would leave that for later.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = fd_u32(link);
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

fn path(path: &Path) -> io::Result<std::ffi::CString> {
    use std::os::unix::ffi::OsStrExt as _;
    Ok(std::ffi::CString::new(path.as_os_str().as_bytes())?)
}

/// `BPF_OBJ_PIN`
pub fn pin(fd: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    let name = path(at)?;
    let mut attr = Obj {
        pathname: name.as_ptr() as u64,
        bpf_fd: fd_u32(fd),
        file_flags: 0,
        path_fd: 0,
        _pad: 0,
    };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// `BPF_OBJ_GET`
pub fn pinned(at: &Path) -> io::Result<OwnedFd> {
    let name = path(at)?;
    let mut attr =
        Obj { pathname: name.as_ptr() as u64, bpf_fd: 0, file_flags: 0, path_fd: 0, _pad: 0 };
    bpf(BPF_OBJ_GET, &mut attr).map(owned)
}

/// Reads what a socket-storage map keeps with `socket`.
pub fn socket_storage_get<V: Copy>(map: BorrowedFd<'_>, socket: RawFd) -> io::Result<V> {
    // SAFETY: V is plain data (the caller's types are aya::Pod), which zeroes are valid for.
    let mut value: V = unsafe { zeroed() };
    let mut attr = MapElem {
        map_fd: fd_u32(map),
        _pad: 0,
        key: std::ptr::from_ref(&socket) as u64,
        value: std::ptr::from_mut(&mut value) as u64,
        flags: 0,
    };
    bpf(BPF_MAP_LOOKUP_ELEM, &mut attr)?;
    Ok(value)
}

/// Keeps `value` with `socket`.
pub fn socket_storage_set<V: Copy>(
    map: BorrowedFd<'_>,
    socket: RawFd,
    value: &V,
) -> io::Result<()> {
    let mut attr = MapElem {
        map_fd: fd_u32(map),
        _pad: 0,
        key: std::ptr::from_ref(&socket) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// `SO_NETNS_COOKIE` of the namespace that the calling thread is in.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let mut cookie = 0u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(8);
    // SAFETY: the kernel writes at most `len` bytes into `cookie`.
    let r = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if r != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// `IPV6_TRANSPARENT`
pub fn set_ipv6_transparent(socket: &socket2::Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads four bytes from `on`.
    let r = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IPV6,
            libc::IPV6_TRANSPARENT,
            std::ptr::from_ref(&on).cast(),
            4,
        )
    };
    if r != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// An event of the kernel programs, as they wrote it.
pub fn event(bytes: &[u8]) -> Option<capture_abi::Event> {
    (bytes.len() >= size_of::<capture_abi::Event>()).then(|| {
        // SAFETY: so many bytes are there; of integers, every pattern is valid.
        unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) }
    })
}

/// The clock that the kernel programs read (`CLOCK_MONOTONIC`).
pub fn monotonic() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map(Duration::from).unwrap_or_default()
}

/// No core dumps and no ptrace by others of this user: keys are in this memory.
pub fn forbid_dumps() {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// Told when there is something to read.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what is made here, and stays what it is.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// What the allocator holds and nobody uses goes back to the kernel.
pub fn give_memory_back() {
    // SAFETY: it takes any number, and locks what it looks at.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Code that ran once goes back to the kernel: of what has begun and settled most is never called again, and what is
/// comes back from the file.
pub fn give_code_back() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in maps.lines().filter_map(code_of_a_file) {
        // SAFETY: a private mapping of a file, which this process does not write to and keeps for as long as it runs: its
        // pages are read anew (madvise(2)).
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Start and length of the mapping that a line of /proc/PID/maps tells of, if it is code of a file.
fn code_of_a_file(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, permissions, file) = (words.next()?, words.next()?, words.nth(3)?);
    let (start, end) = range.split_once('-')?;
    let number = |s| usize::from_str_radix(s, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    (permissions == "r-xp" && file.starts_with('/')).then(|| (start, end.saturating_sub(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_from_what_else_is_mapped() {
        let code = "55d0a000-55d0b800 r-xp 0000a000 fe:00 1321   /usr/bin/culvert-agent";
        assert_eq!(code_of_a_file(code), Some((0x55d0_a000, 0x1800)));
        for other in [
            "55d0b000-55d0c000 r--p 0000b000 fe:00 1321   /usr/bin/culvert-agent",
            "7ffd1000-7ffd3000 r-xp 00000000 00:00 0      [vdso]",
            "7f001000-7f002000 rwxp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code_of_a_file(other), None, "{other}");
        }
    }

    #[test]
    fn code_that_was_given_back_runs() {
        give_code_back();
        assert_eq!(format!("{:x}", 255), "ff");
    }
}
