//! `SOCK_SEQPACKET` unix sockets with descriptors beside the messages, for root alone.

use agent_api::{MAX_DESCRIPTORS, MAX_MESSAGE};
use anyhow::{Context as _, bail};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
        UnixAddr, accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, socket,
        sockopt::PeerCredentials,
    },
};
use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
};
use tokio::io::{Interest, unix::AsyncFd};

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

pub struct Listener {
    fd: AsyncFd<OwnedFd>,
    /// The file that it was bound to, if that is known.
    file: Option<(u64, u64)>,
}

/// A connection.
pub struct Seqpacket {
    fd: AsyncFd<OwnedFd>,
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::symlink_metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

fn registered(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and the same descriptor, for as long as it lives.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

impl Listener {
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let _ = fs::remove_file(path);
        let s = socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None)?;
        bind(s.as_raw_fd(), &UnixAddr::new(path)?)
            .with_context(|| format!("binding {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listen(&s, Backlog::new(16)?)?;
        Ok(Self { file: file_at(path), ..Self::from_fd(s)? })
    }

    pub fn from_fd(fd: OwnedFd) -> anyhow::Result<Self> {
        Ok(Self { fd: registered(fd)?, file: None })
    }

    /// Whether who connects to `path` comes here.
    pub fn is_at(&self, path: &Path) -> bool {
        self.file.is_some() && self.file == file_at(path)
    }

    /// The next connection, whoever makes it.
    pub async fn accept(&self) -> io::Result<Seqpacket> {
        let fd = self
            .fd
            .async_io(Interest::READABLE, |s| {
                accept4(s.as_raw_fd(), FLAGS).map_err(io::Error::from)
            })
            .await?;
        // SAFETY: accept4 has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Seqpacket { fd: registered(fd)? })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

pub type Received = (Vec<u8>, Vec<OwnedFd>);

impl Seqpacket {
    pub fn connect(path: &Path) -> anyhow::Result<Self> {
        let s = socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None)?;
        connect(s.as_raw_fd(), &UnixAddr::new(path)?)
            .with_context(|| format!("connecting to {}", path.display()))?;
        Ok(Self { fd: registered(s)? })
    }

    /// An error unless the other end is root's.
    pub fn only_root(&self) -> anyhow::Result<()> {
        let who = getsockopt(self.fd.get_ref(), PeerCredentials)?;
        if who.uid() != 0 {
            bail!("process {} of user {} may not: only root may", who.pid(), who.uid());
        }
        Ok(())
    }

    /// Nothing at the end.
    pub async fn receive(&self) -> io::Result<Option<Received>> {
        self.fd
            .async_io(Interest::READABLE, |s| receive(s.as_raw_fd()).map_err(io::Error::from))
            .await
    }

    pub async fn send(&self, bytes: &[u8], beside: &[BorrowedFd<'_>]) -> io::Result<()> {
        let fds: Vec<RawFd> = beside.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { rights.get(..0) } else { rights.get(..) };
        let iov = [io::IoSlice::new(bytes)];
        self.fd
            .async_io(Interest::WRITABLE, |s| {
                let flags = MsgFlags::MSG_NOSIGNAL;
                let control = control.unwrap_or_default();
                sendmsg::<UnixAddr>(s.as_raw_fd(), &iov, control, flags, None)
                    .map_err(io::Error::from)
            })
            .await
            .map(drop)
    }
}

/// As many as the kernel lets through. With room for fewer, those that fit would stay open, unknown
/// to anybody.
const SCM_MAX_FD: usize = 253;

fn receive(s: RawFd) -> nix::Result<Option<Received>> {
    let mut buffer = vec![0u8; MAX_MESSAGE];
    let mut space = cmsg_space!([RawFd; SCM_MAX_FD]);
    let (len, truncated, fds) = {
        let mut iov = [io::IoSliceMut::new(&mut buffer)];
        let message =
            recvmsg::<UnixAddr>(s, &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let mut fds = Vec::new();
        for c in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(list) = c {
                // SAFETY: the kernel has just installed these descriptors for us.
                fds.extend(list.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let short = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC;
        (message.bytes, message.flags.intersects(short), fds)
    };
    if truncated || fds.len() > MAX_DESCRIPTORS {
        return Err(Errno::EMSGSIZE);
    }
    if len == 0 {
        return Ok(None);
    }
    buffer.truncate(len);
    Ok(Some((buffer, fds)))
}
