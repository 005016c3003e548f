//! Asking an agent over its enrol socket, from a program that has nothing else to do meanwhile.

use crate::{
    MAX_MESSAGE,
    enroll::{Request, Response},
};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv,
            sendmsg, setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
};
use std::{
    fmt,
    io::IoSlice,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

/// Why a request was not carried out.
#[derive(Debug)]
pub enum Failure {
    /// Nobody answers. It may be tried again.
    NoAgent(String),
    /// The agent's own words, or why it could not be asked.
    Refused(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::NoAgent(why) | Self::Refused(why)) = self;
        f.write_str(why)
    }
}

impl std::error::Error for Failure {}

/// Between two attempts while one agent hands over to the next.
const PAUSE: Duration = Duration::from_millis(100);

/// One request to the agent of `run_dir`, with a descriptor beside it, and what became of it.
pub fn ask(
    run_dir: &Path,
    request: &Request,
    fd: Option<BorrowedFd<'_>>,
    patience: Duration,
) -> Result<(), Failure> {
    let path = run_dir.join("enroll.sock");
    let deadline = Instant::now() + patience;
    loop {
        match exchange(&path, request, fd, deadline)? {
            Response { moved: true, .. } if Instant::now() < deadline => sleep(PAUSE),
            Response { error: None, .. } => return Ok(()),
            Response { error: Some(error), .. } => return Err(Failure::Refused(error)),
        }
    }
}

fn exchange(
    path: &Path,
    request: &Request,
    fd: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> Result<Response, Failure> {
    let refused = |what: &str, e: &dyn fmt::Display| Failure::Refused(format!("{what}: {e}"));
    let address =
        UnixAddr::new(path).map_err(|e| refused("the run directory's path is too long", &e))?;
    let s = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|e| refused("making a socket", &e))?;
    connect(s.as_raw_fd(), &address).map_err(|e| {
        Failure::NoAgent(format!(
            "no agent answers on {} ({e}): is culvert-agent running on this node, is this its \
             --run-dir, and are you root?",
            path.display()
        ))
    })?;
    let bytes = serde_json::to_vec(request).map_err(|e| refused("writing the request", &e))?;
    let fds: Vec<i32> = fd.iter().map(|f| f.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let beside = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    sendmsg::<UnixAddr>(
        s.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        beside,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map_err(|e| refused("asking the agent", &e))?;
    let answer = answer(&s, deadline)?;
    serde_json::from_slice(&answer).map_err(|e| refused("the agent's answer is not understood", &e))
}

fn answer(s: &OwnedFd, deadline: Instant) -> Result<Vec<u8>, Failure> {
    let left = deadline.saturating_duration_since(Instant::now()).max(PAUSE);
    let limit = TimeVal::milliseconds(i64::try_from(left.as_millis()).unwrap_or(i64::MAX));
    let waiting = |e: Errno| match e {
        Errno::EAGAIN => Failure::NoAgent(format!("the agent has not answered in {left:?}")),
        e => Failure::Refused(format!("waiting for the agent: {e}")),
    };
    setsockopt(s, sockopt::ReceiveTimeout, &limit).map_err(waiting)?;
    let mut buffer = vec![0; MAX_MESSAGE];
    let n = recv(s.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(waiting)?;
    if n == 0 {
        return Err(Failure::NoAgent(
            "the agent closed the connection without an answer; its log says why".to_owned(),
        ));
    }
    buffer.truncate(n);
    Ok(buffer)
}
