//! Connections that are made for as long as a test wants, one after the other.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::ensure;
use testbed::{ConnectOpts, Pod, PuppetError, Token, eventually};

use crate::dialogue::{at, connect};
use crate::{Agent, SOON};

/// Lines of a log that are shown of one failure.
const LINES: usize = 20;

/// What became of the connections so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    pub ok: u64,
    pub failed: u64,
}

/// What a client saw of a connection that failed.
#[derive(Clone, Debug)]
struct Failure {
    error: String,
    /// None when there was no connection yet.
    local: Option<SocketAddr>,
    at: SystemTime,
    after: Duration,
}

/// Between connections: whoever closes one keeps its port for a minute, and has 28,000 towards one address. Past
/// the agent, connections follow each other fast enough to use them up.
const PAUSE: Duration = Duration::from_millis(3);

/// New connections from one pod to a script server, each with a question and its answer.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    ok: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    last_failure: Arc<Mutex<Option<Failure>>>,
    from: Pod,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    /// Each connection carries `token` there and back.
    pub fn start(from: &Pod, to: &str, token: Token) -> Self {
        let mut traffic = Self {
            stop: Arc::default(),
            ok: Arc::default(),
            failed: Arc::default(),
            last_failure: Arc::default(),
            from: from.clone(),
            thread: None,
        };
        let last_failure = traffic.last_failure.clone();
        let (stop, ok, failed) = (traffic.stop.clone(), traffic.ok.clone(), traffic.failed.clone());
        let (from, to) = (from.clone(), to.to_owned());
        traffic.thread = Some(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let said = say(&from, &to, &token);
                let tally = if said.is_ok() { &ok } else { &failed };
                if let Err(e) = said {
                    *last_failure.lock().unwrap() = Some(e);
                }
                tally.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(PAUSE);
            }
        }));
        traffic
    }

    pub fn tally(&self) -> Tally {
        Tally { ok: self.ok.load(Ordering::Relaxed), failed: self.failed.load(Ordering::Relaxed) }
    }

    /// What the client saw of the last connection that failed, and what the agents and the kernel have to say of it: the
    /// end of a log may be far behind that by now.
    pub fn last_failure(&self, agents: &[Agent]) -> String {
        let Some(failure) = self.last_failure.lock().unwrap().clone() else { return String::new() };
        let own =
            [at(self.from.ipv4(), 0), at(self.from.ipv6(), 0)].map(|a| a[..a.len() - 1].to_owned());
        // The far agent knows the client's address and another port, that of the pooled connection.
        let of_it = |line: &&str| {
            let failed = line.contains(" WARN ") || line.contains(" error=");
            failed && own.iter().any(|o| line.contains(o))
                || failure.local.is_some_and(|l| line.contains(&l.to_string()))
        };
        let Failure { error, local, at, after } = &failure;
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let mut said =
            format!("{error}, from {local:?}, {after:?} after its begin, {at:?} after 1970");
        for agent in agents {
            let log = agent.log();
            let lines: Vec<&str> = log.lines().filter(of_it).collect();
            let counted = agent.ask("status").map(|s| s["pods"].to_string());
            let last = &lines[lines.len().saturating_sub(LINES)..];
            said += &format!("\n{}: {counted:?}\n{}", agent.node.name(), last.join("\n"));
        }
        said
    }

    /// Waits until so many more connections have succeeded.
    pub fn succeeds(&self, more: u64) {
        let goal = self.tally().ok + more;
        eventually(SOON, || {
            let tally = self.tally();
            ensure!(tally.ok >= goal, "{tally:?}, and {goal} successes wanted");
            Ok(())
        })
        .unwrap();
    }

    /// Waits until so many more connections have failed.
    pub fn fails(&self, more: u64) {
        let goal = self.tally().failed + more;
        eventually(SOON, || {
            let tally = self.tally();
            ensure!(tally.failed >= goal, "{tally:?}, and {goal} failures wanted");
            Ok(())
        })
        .unwrap();
    }

    pub fn stop(mut self) -> Tally {
        self.halt();
        self.tally()
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there is a mismatch of bytes, which has been printed.
            let died = thread.join().is_err();
            assert!(!died || std::thread::panicking(), "the traffic's thread panicked");
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.halt();
    }
}

impl std::fmt::Debug for Traffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.tally().fmt(f)
    }
}

fn say(from: &Pod, to: &str, token: &Token) -> Result<(), Failure> {
    // Short: where packets are dropped, the test goes on to see them dropped again.
    let patience = Duration::from_secs(10);
    let opts = ConnectOpts { timeout: patience, ..ConnectOpts::default() };
    let begun = Instant::now();
    let failure = |error: PuppetError, local| {
        let (at, after) = (SystemTime::now(), begun.elapsed());
        Failure { error: error.to_string(), local, at, after }
    };
    let puppet =
        from.puppet().map_err(|e| failure(PuppetError::new("gone", e.to_string()), None))?;
    let sock = puppet.connect(to, opts).map_err(|e| failure(e, None))?.within(patience);
    let talk = || {
        sock.write(b"echo\n")?;
        sock.write(token.bytes())?;
        sock.read_exact(token.bytes().len())
    };
    let answer = talk().map_err(|e| failure(e, Some(sock.opened_as().local)))?;
    assert_eq!(answer, token.bytes());
    Ok(())
}

/// One connection, a token each way, to a server that echoes from the first byte.
pub fn exchange(from: &Pod, to: &str, there: &Token, back: &testbed::Listener, answer: &Token) {
    let client = connect(from, to);
    let server = back.accept(SOON).unwrap();
    client.write(there.bytes()).unwrap();
    assert_eq!(server.read_exact(there.bytes().len()).unwrap(), there.bytes());
    server.write(answer.bytes()).unwrap();
    assert_eq!(client.read_exact(answer.bytes().len()).unwrap(), answer.bytes());
}
