//! Hand-over: a new agent takes every listener from the old one, which then drains.
//!
//! ```text
//! new                          old
//!  Hello  --------------------->  looks at the versions; no pod comes or goes from here on
//!         <---------------------  Node, Pod.., Sent        with all descriptors
//!  (has discovery, certificates, and every pod in hand)
//!  Ready  --------------------->  accepts no more; connections wait in the listeners' queues
//!         <---------------------  Yours
//!  (accepts)
//!  Serving -------------------->  stands by; begins to drain a little later
//! ```
//!
//! At every moment at most one of the two accepts. When one goes, the connection ends and the other
//! knows: the old one accepts again unless it has begun to drain, the new one accepts if it has
//! everything. Whoever gives up while alive says [`Message::Abort`], and means it.

use serde::{Deserialize, Serialize};

/// Raised with every change that the other side must know of.
pub const PROTOCOL: u32 = 1;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    Hello {
        protocol: u32,
        /// Of the maps in the kernel.
        abi: u32,
        version: String,
    },
    /// With the lock on the agent's directory, then a descriptor for each socket that is named.
    Node {
        sockets: Vec<NodeSocket>,
        pods: usize,
    },
    /// With the pod's network namespace, then a descriptor for each listener that is named.
    Pod {
        uid: String,
        owner: u32,
        flags: u32,
        /// As in the kernel's map of listeners.
        listeners: Vec<u32>,
    },
    Sent,
    Ready,
    Yours,
    Serving,
    Abort {
        why: String,
    },
}

/// A listener of the node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeSocket {
    Enroll,
    Admin,
    Metrics,
    Readiness,
}

pub fn parse(bytes: &[u8]) -> Result<Message, String> {
    serde_json::from_slice(bytes).map_err(|e| format!("the message is not understood: {e}"))
}

/// What happens to either side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    Received(Message),
    /// The connection has ended without a word.
    Closed,
    /// What is waited for has not come in time; for the old agent in stand-by, that time is over.
    TimedOut,
    /// The new agent has discovery, certificates and every pod.
    Prepared,
    /// The new agent cannot be what the old one is.
    Failed(String),
}

/// What is to be done, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    Send(Message),
    /// Node, each pod, and that this was all. No pod comes or goes until the hand-over has ended.
    SendAll,
    /// Keep what came with this message.
    Keep(Message),
    /// Get ready with what is there.
    Prepare,
    /// Accept nothing more, for now.
    Pause,
    Accept,
    /// Finish what is under way, and end.
    Drain,
    /// The hand-over has come to nothing, and things are as before.
    GiveUp(String),
    /// There is nothing to take over: begin as if there had been no old agent.
    BeginAlone,
}

/// The old agent's side of one hand-over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Old {
    #[default]
    Listening,
    Offered,
    /// The new agent may accept from here on.
    Yielded,
    /// It does.
    StandBy,
    Over,
}

impl Old {
    /// Whether this agent accepts connections.
    pub fn accepts(self) -> bool {
        matches!(self, Old::Listening | Old::Offered)
    }

    pub fn on(&mut self, event: Event, abi: u32) -> Vec<Action> {
        use Action::{Accept, Drain, GiveUp, Pause, Send, SendAll};
        let (next, actions) = match (*self, event) {
            (Old::Listening, Event::Received(Message::Hello { protocol, abi: theirs, .. })) => {
                match mismatch(protocol, theirs, abi) {
                    None => (Old::Offered, vec![SendAll]),
                    Some(why) => {
                        (Old::Over, vec![Send(Message::Abort { why: why.clone() }), GiveUp(why)])
                    }
                }
            }
            (Old::Offered, Event::Received(Message::Ready)) => {
                (Old::Yielded, vec![Pause, Send(Message::Yours)])
            }
            // Too long, but alive, and told that all is its own: it accepts, for all that is known.
            (Old::Yielded, Event::Received(Message::Serving) | Event::TimedOut) => {
                (Old::StandBy, vec![])
            }
            // Late, and what was thought.
            (Old::StandBy, Event::Received(Message::Serving)) => (Old::StandBy, vec![]),
            (Old::StandBy, Event::TimedOut) => (Old::Over, vec![Drain]),
            (Old::Over, _) => (Old::Over, vec![]),
            (before, event) => {
                let (why, tell) = reason(event);
                let mut actions = Vec::new();
                // Told before this one accepts: the other ends, whatever it has.
                if tell {
                    actions.push(Send(Message::Abort { why: why.clone() }));
                }
                if !before.accepts() {
                    actions.push(Accept);
                }
                actions.push(GiveUp(why));
                (Old::Over, actions)
            }
        };
        *self = next;
        actions
    }
}

/// The new agent's side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum New {
    #[default]
    Greeting,
    /// Everything has come, and is being made ready.
    Preparing,
    /// Waits for the word.
    Ready,
    /// Makes ready without an old agent.
    Orphaned,
    Serving,
    /// Ends.
    GaveUp,
    /// Goes on as if there had been no old agent.
    Alone,
}

impl New {
    pub fn accepts(self) -> bool {
        self == New::Serving
    }

    pub fn hello(abi: u32, version: &str) -> Message {
        Message::Hello { protocol: PROTOCOL, abi, version: version.to_owned() }
    }

    pub fn on(&mut self, event: Event) -> Vec<Action> {
        use Action::{Accept, BeginAlone, GiveUp, Keep, Prepare, Send};
        let (next, actions) = match (*self, event) {
            (New::Greeting, Event::Received(m @ (Message::Node { .. } | Message::Pod { .. }))) => {
                (New::Greeting, vec![Keep(m)])
            }
            (New::Greeting, Event::Received(Message::Sent)) => (New::Preparing, vec![Prepare]),
            (New::Greeting, Event::Closed) => (New::Alone, vec![BeginAlone]),
            (New::Preparing, Event::Prepared) => (New::Ready, vec![Send(Message::Ready)]),
            // The old agent is dead, and this one has everything.
            (New::Preparing, Event::Closed) => (New::Orphaned, vec![]),
            // Nobody else is there: one that cannot be all that the old one was is better than none, as
            // for an agent that begins alone.
            (New::Orphaned, Event::Prepared | Event::Failed(_)) | (New::Ready, Event::Closed) => {
                (New::Serving, vec![Accept])
            }
            (New::Orphaned, _) => (New::Orphaned, vec![]),
            (New::Ready, Event::Received(Message::Yours)) => {
                (New::Serving, vec![Accept, Send(Message::Serving)])
            }
            // The old agent drains, and ends.
            (New::Serving, Event::Closed | Event::TimedOut) => (New::Serving, vec![]),
            (end @ (New::GaveUp | New::Alone), _) => (end, vec![]),
            (_, event) => {
                let (why, tell) = reason(event);
                let abort = Send(Message::Abort { why: why.clone() });
                let actions = if tell { vec![abort, GiveUp(why)] } else { vec![GiveUp(why)] };
                (New::GaveUp, actions)
            }
        };
        *self = next;
        actions
    }
}

fn mismatch(protocol: u32, theirs: u32, abi: u32) -> Option<String> {
    if protocol != PROTOCOL {
        return Some(format!(
            "the new agent speaks version {protocol} of the hand-over, this one {PROTOCOL}: stop \
             this agent first; enrolled pods stay closed meanwhile"
        ));
    }
    (theirs != abi).then(|| {
        format!(
            "the new agent's kernel state is v{theirs}, this one's v{abi}: a hand-over cannot bridge \
             that; drain the node, or stop this agent first"
        )
    })
}

/// Why it ends, and whether the other side has yet to hear of it.
fn reason(event: Event) -> (String, bool) {
    match event {
        Event::Received(Message::Abort { why }) => {
            (format!("the other agent gave up: {why}"), false)
        }
        Event::Received(m) => (format!("the other agent said {m:?} out of turn"), true),
        Event::Closed => ("the other agent is gone".to_owned(), false),
        Event::TimedOut => ("the other agent took too long".to_owned(), true),
        Event::Failed(why) => (why, true),
        Event::Prepared => ("ready out of turn".to_owned(), true),
    }
}
