//! One agent takes another's place.

use testbed::Proc;

use crate::agent::killed;
use crate::{Agent, SOON};

/// An agent that has been started beside the one that runs. It is killed when it is dropped.
pub struct Challenger<'a> {
    agent: &'a Agent,
    proc: Proc,
}

impl Agent {
    /// Starts a second agent with the same arguments.
    pub fn challenged(&self) -> Challenger<'_> {
        Challenger { agent: self, proc: self.another(None) }
    }

    /// Starts a second agent that dies at this fault point.
    pub fn challenged_to_die_at(&self, point: &str) -> Challenger<'_> {
        Challenger { agent: self, proc: self.another(Some(point)) }
    }

    /// A second agent takes this one's place: returns once the old one has ended by itself, in good order.
    pub fn upgrade(&self) {
        self.challenged().takes_over().ends();
        self.wait_until_ready();
    }
}

impl<'a> Challenger<'a> {
    /// Waits until it serves; the answer is the agent that was there before.
    pub fn takes_over(self) -> Predecessor<'a> {
        self.proc.wait_for_output("this agent serves now", SOON).unwrap();
        Predecessor { agent: self.agent, proc: self.agent.succeeded_by(self.proc) }
    }

    /// The agent before it dies of the attempt, and this one goes on alone.
    pub fn survives(self) {
        let (agent, old) = (self.agent, self.agent.succeeded_by(self.proc));
        killed(&old);
        agent.wait_until_ready();
    }

    /// Waits until it has died at its fault point.
    pub fn dies(self) {
        killed(&self.proc);
    }

    /// Waits until it has given up; the answer is what it says about it.
    pub fn gives_up(self) -> String {
        let status = self.proc.wait(SOON).unwrap();
        assert_eq!(status.code(), Some(1), "{status}\n{}", self.proc.stderr());
        self.proc.stderr()
    }
}

/// An agent whose place another has taken.
pub struct Predecessor<'a> {
    agent: &'a Agent,
    proc: Proc,
}

impl Predecessor<'_> {
    pub fn is_running(&self) -> bool {
        self.proc.is_running()
    }

    /// Waits for its own end, which is in good order.
    pub fn ends(self) {
        let status = self.proc.wait(SOON).unwrap();
        let name = self.agent.node.name();
        assert!(status.success(), "the old agent of {name}: {status}\n{}", self.proc.stderr());
    }
}
