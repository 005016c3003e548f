//! The two sockets of an agent.

use agent_api::{client, enroll::Request};
use anyhow::{Context as _, anyhow};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
    time::Duration,
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

/// How long an enrolment may take, with one agent that hands over to another meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);

/// Has the agent enrol a pod, or let it go.
pub fn enrol(run_dir: &Path, request: &Request, fd: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    client::ask(run_dir, request, fd, PATIENCE).map_err(|e| match e {
        client::Failure::NoAgent(why) => Failure::NoAgent(anyhow!(why)),
        client::Failure::Refused(why) => Failure::Other(anyhow!(why)),
    })
}
