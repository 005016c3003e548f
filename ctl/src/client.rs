//! The two sockets of an agent.

use anyhow::{Context as _, anyhow, bail};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg,
    socket,
};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader, IoSlice, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

#[derive(Debug)]
pub enum Failure {
    NoAgent(anyhow::Error),
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(e: anyhow::Error) -> Self {
        Failure::Other(e)
    }
}

fn no_agent(path: &Path, e: impl std::fmt::Display) -> Failure {
    Failure::NoAgent(anyhow!(
        "no agent answers on {} ({e}): is culvert-agent running on this node, is this its --run-dir, \
         and are you root?",
        path.display()
    ))
}

/// Asks the admin socket; a value per row.
pub fn ask(run_dir: &Path, word: &str) -> Result<Vec<Value>, Failure> {
    let path = run_dir.join("admin.sock");
    let mut stream = UnixStream::connect(&path).map_err(|e| no_agent(&path, e))?;
    stream.write_all(format!("{word}\n").as_bytes()).context("asking the agent")?;
    let mut rows = Vec::new();
    for line in BufReader::new(stream).lines() {
        let line = line.context("reading the agent's answer")?;
        let row: Value = serde_json::from_str(&line).context("the agent's answer is not JSON")?;
        if let Some(error) = row.get("error").and_then(Value::as_str) {
            return Err(Failure::Other(anyhow!("{error}")));
        }
        rows.push(row);
    }
    Ok(rows)
}

/// One request on the enrol socket, with a descriptor beside it.
pub fn enroll_socket(run_dir: &Path, request: &Value, fd: Option<OwnedFd>) -> Result<(), Failure> {
    let path = run_dir.join("enroll.sock");
    let address = UnixAddr::new(&path).context("the run directory's path is too long")?;
    for _ in 0..MOVES {
        let s = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
            .context("making a socket")?;
        connect(s.as_raw_fd(), &address).map_err(|e| no_agent(&path, e))?;
        if exchange(&s, request, fd.as_ref())? == Answer::Done {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Err(Failure::Other(anyhow!("the agent is being replaced, and its successor does not answer")))
}

/// How often a request is made again while one agent hands over to the next.
const MOVES: usize = 50;

#[derive(PartialEq, Eq)]
enum Answer {
    Done,
    /// Another agent listens there by now.
    Moved,
}

fn exchange(s: &OwnedFd, request: &Value, fd: Option<&OwnedFd>) -> anyhow::Result<Answer> {
    let bytes = serde_json::to_vec(request)?;
    let fds: Vec<i32> = fd.iter().map(|f| f.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let beside = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    let iov = [IoSlice::new(&bytes)];
    sendmsg::<UnixAddr>(s.as_raw_fd(), &iov, beside, MsgFlags::MSG_NOSIGNAL, None)
        .context("asking the agent")?;
    let mut buffer = vec![0u8; 64 * 1024];
    let n = recv(s.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("waiting for the agent")?;
    if n == 0 {
        bail!("the agent closed the connection without an answer; its log says why");
    }
    let answer: Value = serde_json::from_slice(buffer.get(..n).unwrap_or_default())
        .context("the agent's answer is not JSON")?;
    if answer.get("moved") == Some(&Value::Bool(true)) {
        return Ok(Answer::Moved);
    }
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => bail!("{error}"),
        None => Ok(Answer::Done),
    }
}
