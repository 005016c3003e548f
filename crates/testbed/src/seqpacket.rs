//! `SOCK_SEQPACKET` unix sockets: what an agent's own clients speak, spoken by hand.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    connect, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// A connection. It ends when it is dropped.
#[derive(Debug)]
pub struct Seqpacket(OwnedFd);

/// Nothing healthy keeps anybody waiting for so long.
const PATIENCE: Duration = Duration::from_secs(20);

impl Seqpacket {
    pub fn connect(path: &Path) -> Result<Self> {
        let s = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        let patience = TimeVal::new(PATIENCE.as_secs().try_into()?, 0);
        setsockopt(&s, sockopt::ReceiveTimeout, &patience)?;
        setsockopt(&s, sockopt::SendTimeout, &patience)?;
        connect(s.as_raw_fd(), &UnixAddr::new(path)?)
            .with_context(|| format!("cannot connect to {}", path.display()))?;
        Ok(Self(s))
    }

    /// Connects as another user, which the rest of the process does not become.
    pub fn connect_as(path: &Path, uid: u32) -> Result<Self> {
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                // The system call, unlike the function of the C library, changes this thread alone.
                // SAFETY: no pointers; the thread ends right afterwards.
                let changed = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
                if changed != 0 {
                    return Err(io::Error::last_os_error().into());
                }
                Self::connect(path)
            });
            there.join().unwrap()
        })
    }

    pub fn send(&self, message: &[u8], beside: &[BorrowedFd<'_>]) -> io::Result<()> {
        let fds: Vec<RawFd> = beside.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        let iov = [IoSlice::new(message)];
        sendmsg::<UnixAddr>(self.0.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// A message and what came beside it; an empty one is the end.
    pub fn receive(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut buffer = vec![0; 1 << 16];
        let mut space = nix::cmsg_space!([RawFd; 64]);
        let mut iov = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let got = recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
        let mut fds = Vec::new();
        for c in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(list) = c {
                // SAFETY: the kernel has just installed these descriptors for us.
                fds.extend(list.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let length = got.bytes;
        buffer.truncate(length);
        Ok((buffer, fds))
    }
}
