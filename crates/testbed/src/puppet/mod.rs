//! Drives a program inside a pod: it opens the sockets that a test wants opened, and says what came of it.

pub mod protocol;
mod raw;
mod sock;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command as Program, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::process::{Placement, numbered};
use protocol::{Command, Hello, Listening, Opened, Outcome, Request, Resolved, Response};

pub use protocol::{
    BulkReport, ConnectOpts, Names, PuppetError, Received, Sent, Serve, ShortReport,
};
pub use raw::{RawSocket, sockaddr};
pub use sock::{Listener, Sock};

/// What a call waits when the caller does not say.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);
/// How much later than the puppet the library gives up: only a puppet that hangs is ever this late.
const GRACE: Duration = Duration::from_secs(15);

type Answer = Result<Value, PuppetError>;

/// A handle to a running `bed-puppet`. Clones share it; calls from several threads run side by side.
///
/// Its process ends with the last handle, sockets included ([`Sock`] and [`Listener`] hold one); the one that
/// [`crate::Pod::puppet`] gives is also held by the pod.
#[derive(Clone)]
pub struct Puppet(Arc<Inner>);

struct Inner {
    child: Mutex<Child>,
    pid: i32,
    stdin: Mutex<ChildStdin>,
    pending: Arc<Mutex<Pending>>,
    next: AtomicU64,
}

#[derive(Default)]
struct Pending {
    waiting: HashMap<u64, mpsc::Sender<Answer>>,
    gone: bool,
}

impl Puppet {
    pub(crate) fn start(place: &Placement, dir: &Path, label: &str) -> Result<Self> {
        let mut cmd = Program::new(binary()?);
        let log = numbered(dir, label, "puppet").with_extension("err");
        cmd.arg("obey").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(log)?);
        place.apply(&mut cmd)?;
        let mut child = cmd.spawn().context("cannot start a puppet")?;
        let stdin = child.stdin.take().context("no stdin")?;
        let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let pid = i32::try_from(child.id())?;

        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let hello: Hello = serde_json::from_str(&line).context("the puppet did not come up")?;
        ensure!(
            hello.puppet == protocol::VERSION,
            "bed-puppet is of another build: cargo build -p testbed"
        );

        let pending = Arc::new(Mutex::new(Pending::default()));
        let dispatch = pending.clone();
        std::thread::Builder::new()
            .name(format!("puppet {label}"))
            .spawn(move || read_answers(stdout, &dispatch))?;
        Ok(Self(Arc::new(Inner {
            child: Mutex::new(child),
            pid,
            stdin: Mutex::new(stdin),
            pending,
            next: AtomicU64::new(1),
        })))
    }

    /// The puppet's process.
    pub fn pid(&self) -> i32 {
        self.0.pid
    }

    pub fn is_alive(&self) -> bool {
        !lock(&self.0.pending).gone && matches!(lock(&self.0.child).try_wait(), Ok(None))
    }

    /// Sends a signal, such as SIGSTOP and SIGCONT.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        ensure!(self.is_alive(), "the puppet has ended");
        kill(Pid::from_raw(self.0.pid), signal).context("cannot signal the puppet")
    }

    /// SIGKILL: all its sockets close as they do when an application crashes.
    pub fn kill(&self) -> Result<()> {
        let mut child = lock(&self.0.child);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Listens (port 0: any). The listener serves until [`Listener::close`] or the puppet's end.
    pub fn listen(&self, addr: SocketAddr, serve: Serve) -> Result<Listener, PuppetError> {
        let listening: Listening = self.call(Command::Listen { addr, serve }, DEFAULT_DEADLINE)?;
        Ok(Listener::new(self.clone(), listening))
    }

    /// Connects to `ip:port`, or to `name:port` by the pod's own resolver, trying its addresses in turn.
    pub fn connect(&self, addr: impl Into<String>, opts: ConnectOpts) -> Result<Sock, PuppetError> {
        let deadline = opts.timeout;
        let opened: Opened = self.call(Command::Connect { addr: addr.into(), opts }, deadline)?;
        Ok(Sock::new(self.clone(), opened))
    }

    /// What getaddrinfo says in the pod.
    pub fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, PuppetError> {
        let resolved: Resolved =
            self.call(Command::Resolve { name: name.to_owned() }, DEFAULT_DEADLINE)?;
        Ok(resolved.addrs)
    }

    /// Opens `count` connections to a [`Serve::Echo`]; only when all are open (or have failed) sends so many bytes on
    /// each, all at once, and compares what comes back.
    pub fn hold_open(
        &self,
        addr: impl Into<String>,
        count: u32,
        bytes_each_way: u64,
        seed: u64,
        deadline: Duration,
    ) -> Result<BulkReport, PuppetError> {
        self.call(Command::HoldOpen { addr: addr.into(), count, bytes_each_way, seed }, deadline)
    }

    /// `count` times, `concurrency` at once, to a [`Serve::Echo`]: connect, send 16 bytes, read them back, close.
    pub fn short_connections(
        &self,
        addr: impl Into<String>,
        count: u32,
        concurrency: u32,
        deadline: Duration,
    ) -> Result<ShortReport, PuppetError> {
        self.call(Command::ShortConnections { addr: addr.into(), count, concurrency }, deadline)
    }

    pub(crate) fn call<T: DeserializeOwned>(
        &self,
        command: Command,
        deadline: Duration,
    ) -> Result<T, PuppetError> {
        let gave_up = || PuppetError::new("gone", "the puppet hangs");
        let value = self
            .send(command, deadline)?
            .recv_timeout(deadline + GRACE)
            .map_err(|_| gave_up())??;
        serde_json::from_value(value)
            .map_err(|e| PuppetError::new("other", format!("strange answer: {e}")))
    }

    /// Gives a command without waiting for what comes of it.
    pub(crate) fn send(
        &self,
        command: Command,
        deadline: Duration,
    ) -> Result<mpsc::Receiver<Answer>, PuppetError> {
        let gone = || PuppetError::new("gone", "the puppet has ended");
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let deadline_ms = deadline.as_millis().try_into().unwrap_or(u64::MAX);
        let request = Request { id, deadline_ms, command };
        let mut line =
            serde_json::to_vec(&request).map_err(|e| PuppetError::new("other", e.to_string()))?;
        line.push(b'\n');
        let (answer, receiver) = mpsc::channel();
        {
            let mut pending = lock(&self.0.pending);
            if pending.gone {
                return Err(gone());
            }
            pending.waiting.insert(id, answer);
        }
        lock(&self.0.stdin).write_all(&line).map_err(|_| gone())?;
        Ok(receiver)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Fails only when it has already ended.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Runs until the puppet's end, then tells all who still wait.
fn read_answers(stdout: BufReader<ChildStdout>, pending: &Mutex<Pending>) {
    for line in stdout.lines().map_while(Result::ok) {
        let response: Response = match serde_json::from_str(&line) {
            Ok(response) => response,
            Err(e) => {
                eprintln!("a puppet said {line:?}: {e}");
                continue;
            }
        };
        let waiting = lock(pending).waiting.remove(&response.id);
        if let Some(waiting) = waiting {
            // Nobody waits for a close.
            let _ = waiting.send(match response.outcome {
                Outcome::Ok(value) => Ok(value),
                Outcome::Err(e) => Err(e),
            });
        }
    }
    let mut pending = lock(pending);
    pending.gone = true;
    for (_, waiting) in pending.waiting.drain() {
        let _ = waiting.send(Err(PuppetError::new("gone", "the puppet has ended")));
    }
}

/// Where `bed-puppet` is: `CULVERT_BED_PUPPET`, else beside the running program or in a folder above it (a test runs
/// from `target/<profile>/deps`, the puppet lies in `target/<profile>`).
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CULVERT_BED_PUPPET") {
        return Ok(path.into());
    }
    let exe = std::env::current_exe()?;
    exe.ancestors()
        .skip(1)
        .take(4)
        .map(|dir| dir.join("bed-puppet"))
        .find(|path| path.is_file())
        .with_context(|| format!("no bed-puppet near {}: cargo build -p testbed", exe.display()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
