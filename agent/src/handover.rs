//! One agent takes the place of another: the shell around `agent_api::handover`, whose module says
//! what is spoken and why no connection is refused.

use crate::{
    agent::Agent,
    fault,
    netns::Netns,
    scope::spawn_for_agent,
    seqpacket::{Listener, Seqpacket},
};
use agent_api::handover::{Action, Event, Message, New, NodeSocket, Old, parse};
use anyhow::{Context as _, anyhow, bail};
use capture_abi::ABI_VERSION;
use std::{
    collections::HashMap,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

/// What an agent that is taken over waits for the next word: discovery and certificates come in
/// between.
const PREPARATION: Duration = Duration::from_secs(60);

/// How long one message may take where nothing but a message is to be made.
const WORD: Duration = Duration::from_secs(5);

/// How long the old agent could still go on, should the new one die of its first work.
const STAND_BY: Duration = Duration::from_secs(2);

/// What a new agent has from an old one.
pub struct Inherited {
    /// The lock on the agent's directory, held by both until the old one ends.
    pub lock: OwnedFd,
    pub sockets: HashMap<NodeSocket, OwnedFd>,
    pub pods: Vec<InheritedPod>,
    line: Line,
}

pub struct InheritedPod {
    pub netns: Netns,
    pub listeners: HashMap<u32, OwnedFd>,
}

struct Line {
    connection: Seqpacket,
    state: New,
}

/// What became of the attempt to take over.
pub enum Outcome {
    TakenOver(Box<Inherited>),
    /// There is no old agent, or it died before it gave anything.
    Nobody,
}

/// Takes everything from the agent that listens at `socket`.
pub async fn take_over(socket: &Path) -> anyhow::Result<Outcome> {
    let Ok(connection) = Seqpacket::connect(socket) else { return Ok(Outcome::Nobody) };
    connection.only_root()?;
    let mut line = Line { connection, state: New::default() };
    say(&line.connection, &New::hello(ABI_VERSION, env!("CARGO_PKG_VERSION")), &[]).await?;
    let mut lock = None;
    let mut sockets = HashMap::new();
    let mut pods = Vec::new();
    loop {
        let (event, fds) = hear(&line.connection, PREPARATION).await;
        let mut fds = fds.into_iter();
        for action in line.state.on(event) {
            match action {
                Action::Keep(Message::Node { sockets: named, .. }) => {
                    lock = fds.next();
                    sockets.extend(named.into_iter().zip(&mut fds));
                }
                Action::Keep(Message::Pod { listeners, .. }) => {
                    let netns = fds.next().context("a pod came without its namespace")?;
                    let netns = Netns::new(netns)?;
                    let listeners = listeners.into_iter().zip(&mut fds).collect();
                    pods.push(InheritedPod { netns, listeners });
                }
                Action::Prepare => {
                    fault::point("handover-received");
                    let lock = lock.context("the lock did not come along")?;
                    let inherited = Inherited { lock, sockets, pods, line };
                    return Ok(Outcome::TakenOver(Box::new(inherited)));
                }
                Action::BeginAlone => return Ok(Outcome::Nobody),
                Action::GiveUp(why) => bail!("{why}"),
                Action::Send(message) => say(&line.connection, &message, &[]).await?,
                other => bail!("a new agent cannot {other:?}"),
            }
        }
    }
}

/// A hand-over, from where everything has come.
pub struct TakingOver(Line);

impl Inherited {
    pub fn split(self) -> (OwnedFd, HashMap<NodeSocket, OwnedFd>, Vec<InheritedPod>, TakingOver) {
        (self.lock, self.sockets, self.pods, TakingOver(self.line))
    }
}

impl TakingOver {
    /// Serves once `prepared` is done and the old agent has yielded, or is dead. An error means that
    /// the old one goes on.
    pub async fn finish(
        self,
        agent: &Arc<Agent>,
        prepared: impl Future<Output = Result<(), String>>,
    ) -> anyhow::Result<()> {
        let Line { connection, mut state } = self.0;
        let mut prepared = pin!(prepared);
        let (mut is_prepared, mut is_closed) = (false, false);
        while !state.accepts() {
            let event = tokio::select! {
                outcome = &mut prepared, if !is_prepared => {
                    is_prepared = true;
                    match outcome {
                        Ok(()) => Event::Prepared,
                        Err(why) => Event::Failed(why),
                    }
                }
                (event, _) = hear(&connection, PREPARATION), if !is_closed => event,
            };
            is_closed |= event == Event::Closed;
            for action in state.on(event) {
                match action {
                    Action::Accept => {
                        fault::point("handover-yielded");
                        agent.serving.send_replace(true);
                    }
                    Action::Send(message) => {
                        // A dead old agent is news for the next turn.
                        let _ = say(&connection, &message, &[]).await;
                    }
                    Action::GiveUp(why) => bail!("{why}"),
                    other => bail!("a new agent cannot {other:?}"),
                }
            }
        }
        fault::point("handover-serving");
        // Open for as long as either needs to know that the other lives.
        agent.succeeds.send_replace(true);
        let agent = agent.clone();
        spawn_for_agent(async move {
            while connection.receive().await.is_ok_and(|r| r.is_some()) {}
            agent.succeeds.send_replace(false);
        });
        Ok(())
    }
}

/// The sockets of the node that an agent holds, for the one that comes after it.
pub struct Estate {
    pub lock: OwnedFd,
    pub sockets: Vec<(NodeSocket, OwnedFd)>,
}

/// Waits at `path` for an agent that takes this one's place. Returns once one has.
pub async fn offer(agent: Arc<Agent>, mut listener: Listener, path: PathBuf, estate: Estate) {
    loop {
        let Ok(connection) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        if let Err(error) = connection.only_root() {
            tracing::warn!(error = format!("{error:#}"), "a hand-over was refused");
            continue;
        }
        match hand_over(&agent, &connection, &estate).await {
            Ok(()) => {
                // The line tells the new agent of this one: what connections need is not to be taken away.
                agent.is_alone().await;
                crate::until_idle(&agent).await;
                return;
            }
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "a hand-over has come to nothing; this agent goes on"
            ),
        }
        // The one that is gone may have put its own socket there already.
        if !listener.is_at(&path) {
            match Listener::bind(&path) {
                Ok(own) => listener = own,
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "no agent can take over");
                }
            }
        }
    }
}

async fn hand_over(agent: &Arc<Agent>, line: &Seqpacket, estate: &Estate) -> anyhow::Result<()> {
    let mut state = Old::default();
    // From the offer on, no pod comes or goes: the new agent would not know of it.
    let mut unchanged = None;
    loop {
        let patience = match state {
            Old::Offered => PREPARATION,
            Old::StandBy => STAND_BY,
            _ => WORD,
        };
        let (event, _) = hear(line, patience).await;
        for action in state.on(event, ABI_VERSION) {
            match action {
                Action::SendAll => {
                    if *agent.draining.borrow() {
                        let why = "this agent drains already".to_owned();
                        let _ = say(line, &Message::Abort { why: why.clone() }, &[]).await;
                        bail!(why);
                    }
                    unchanged = Some(agent.pods.hold_still().await);
                    send_all(agent, line, estate).await?;
                    fault::point("handover-sent");
                }
                Action::Pause => {
                    agent.serving.send_replace(false);
                    fault::point("handover-paused");
                }
                Action::Accept => {
                    agent.serving.send_replace(true);
                }
                // A new agent that is gone is news for the next turn.
                Action::Send(message) => drop(say(line, &message, &[]).await),
                Action::Drain => {
                    // Before requests that have waited are looked at: they are the new agent's.
                    agent.superseded.send_replace(true);
                    drop(unchanged);
                    return Ok(());
                }
                Action::GiveUp(why) => bail!("{why}"),
                other => bail!("an old agent cannot {other:?}"),
            }
        }
    }
}

async fn send_all(agent: &Agent, line: &Seqpacket, estate: &Estate) -> anyhow::Result<()> {
    let pods = agent.pods.all();
    let node = Message::Node {
        sockets: estate.sockets.iter().map(|(which, _)| *which).collect(),
        pods: pods.len(),
    };
    let lock = std::iter::once(estate.lock.as_fd());
    let fds: Vec<BorrowedFd<'_>> =
        lock.chain(estate.sockets.iter().map(|(_, fd)| fd.as_fd())).collect();
    say(line, &node, &fds).await?;
    for pod in pods {
        let listeners = pod.listeners()?;
        let message = Message::Pod {
            uid: pod.uid.to_string(),
            owner: pod.owner,
            flags: pod.flags,
            listeners: listeners.iter().map(|(kind, _)| *kind).collect(),
        };
        let fds: Vec<BorrowedFd<'_>> = std::iter::once(pod.netns.as_fd())
            .chain(listeners.iter().map(|(_, fd)| fd.as_fd()))
            .collect();
        say(line, &message, &fds).await?;
    }
    say(line, &Message::Sent, &[]).await
}

async fn say(line: &Seqpacket, message: &Message, fds: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    tokio::time::timeout(WORD, line.send(&bytes, fds))
        .await
        .map_err(|_| anyhow!("the other agent takes no message"))?
        .context("telling the other agent")
}

/// What the other side says next, and what came beside it.
async fn hear(line: &Seqpacket, patience: Duration) -> (Event, Vec<OwnedFd>) {
    let receive = async {
        match line.receive().await {
            // It has left something unread. That is told first, and its last words are there yet: an
            // agent that gave up is not one that died.
            Err(_) => line.receive().await,
            received => received,
        }
    };
    match tokio::time::timeout(patience, receive).await {
        Err(_) => (Event::TimedOut, Vec::new()),
        Ok(Ok(None) | Err(_)) => (Event::Closed, Vec::new()),
        Ok(Ok(Some((bytes, fds)))) => match parse(&bytes) {
            Ok(message) => (Event::Received(message), fds),
            Err(why) => (Event::Failed(why), Vec::new()),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn last_words_are_heard_though_the_other_has_left_something_unread() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let path = std::env::temp_dir().join(format!("last-words-{}", std::process::id()));
            let listener = Listener::bind(&path).unwrap();
            let new = Seqpacket::connect(&path).unwrap();
            let old = listener.accept().await.unwrap();
            std::fs::remove_file(&path).unwrap();
            say(&new, &Message::Ready, &[]).await.unwrap();
            let abort = Message::Abort { why: "too long".to_owned() };
            say(&old, &abort, &[]).await.unwrap();
            drop(old);
            assert_eq!(hear(&new, WORD).await.0, Event::Received(abort));
            assert_eq!(hear(&new, WORD).await.0, Event::Closed);
        });
    }
}
