//! The enrol socket: `SOCK_SEQPACKET`, mode 0600, for root alone. One message per request, JSON,
//! with the network namespace's descriptor beside it (SCM_RIGHTS); one message back, sent only once
//! the pod is captured and guarded, or let go.

use crate::{agent::Agent, netns::Netns, pods, scope::spawn_for_agent};
use anyhow::{Context as _, bail};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
        accept4, bind, getsockopt, listen, recvmsg, send, socket, sockopt::PeerCredentials,
    },
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::IoSliceMut,
    os::{
        fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd},
        unix::fs::PermissionsExt as _,
    },
    path::Path,
    sync::Arc,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Largest request, in bytes.
const MAX_REQUEST: usize = 16 * 1024;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// With the namespace's descriptor.
    Enroll(EnrollRequest),
    Unenroll {
        uid: String,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// `<cluster>//Pod/<namespace>/<name>`
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    /// Tunnels and unknown protocols may leave the pod.
    #[serde(default)]
    pub allow_other_protocols: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Response {
    /// Absent when the request was carried out.
    pub error: Option<String>,
}

/// Opens the socket; `serve` answers on it.
pub fn open(path: &Path) -> anyhow::Result<AsyncFd<OwnedFd>> {
    let _ = fs::remove_file(path);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let s = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(s.as_raw_fd(), &UnixAddr::new(path)?)
        .with_context(|| format!("binding {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listen(&s, Backlog::new(16)?)?;
    // SAFETY: an OwnedFd is open, and the same descriptor, for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(s, Interest::READABLE) }?)
}

pub async fn serve(agent: Arc<Agent>, listener: AsyncFd<OwnedFd>) {
    loop {
        let accepted = listener
            .async_io(Interest::READABLE, |s| {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                accept4(s.as_raw_fd(), flags).map_err(std::io::Error::from)
            })
            .await;
        match accepted {
            Ok(fd) => {
                let agent = agent.clone();
                // SAFETY: accept4 has just made this descriptor for us.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                spawn_for_agent(async move {
                    if let Err(error) = client(&agent, fd).await {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "an enrol client was turned away"
                        );
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept on the enrol socket failed");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

async fn client(agent: &Arc<Agent>, fd: OwnedFd) -> anyhow::Result<()> {
    let who = getsockopt(&fd, PeerCredentials)?;
    if who.uid() != 0 {
        bail!("process {} of user {} may not enrol pods: only root may", who.pid(), who.uid());
    }
    // SAFETY: as above.
    let fd = unsafe { AsyncFd::register(fd) }?;
    loop {
        let received = fd
            .async_io(Interest::READABLE, |s| receive(s.as_raw_fd()).map_err(std::io::Error::from))
            .await?;
        let Some((bytes, fds)) = received else { return Ok(()) };
        let outcome = match serde_json::from_slice::<Request>(&bytes) {
            Ok(request) => carry_out(agent, request, fds).await,
            Err(e) => Err(anyhow::anyhow!("the request is not understood: {e}")),
        };
        let response = Response { error: outcome.err().map(|e| format!("{e:#}")) };
        if let Some(error) = &response.error {
            tracing::warn!(error, "an enrol request failed");
        }
        let bytes = serde_json::to_vec(&response)?;
        fd.async_io(Interest::WRITABLE, |s| {
            send(s.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL).map_err(std::io::Error::from)
        })
        .await?;
    }
}

async fn carry_out(agent: &Arc<Agent>, request: Request, fds: Vec<OwnedFd>) -> anyhow::Result<()> {
    match request {
        Request::Enroll(request) => {
            let mut fds = fds.into_iter();
            let (Some(fd), None) = (fds.next(), fds.next()) else {
                bail!("an enrol request comes with one descriptor: the pod's network namespace");
            };
            let netns = Netns::new(fd)
                .context("the descriptor beside the request is not a network namespace")?;
            Box::pin(pods::enroll(agent, netns, &request)).await
        }
        Request::Unenroll { uid } => pods::unenroll(agent, &uid).await,
    }
}

type Received = Option<(Vec<u8>, Vec<OwnedFd>)>;

fn receive(s: RawFd) -> nix::Result<Received> {
    let mut buffer = vec![0u8; MAX_REQUEST];
    let mut space = cmsg_space!([RawFd; 4]);
    let (len, truncated, fds) = {
        let mut iov = [IoSliceMut::new(&mut buffer)];
        let message =
            recvmsg::<UnixAddr>(s, &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let mut fds = Vec::new();
        for c in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(list) = c {
                // SAFETY: the kernel has just installed these descriptors for us.
                fds.extend(list.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, message.flags.contains(MsgFlags::MSG_TRUNC), fds)
    };
    if truncated {
        return Err(Errno::EMSGSIZE);
    }
    if len == 0 {
        return Ok(None);
    }
    buffer.truncate(len);
    Ok(Some((buffer, fds)))
}
