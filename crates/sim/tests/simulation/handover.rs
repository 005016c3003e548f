//! One agent takes another's place: both sides' decisions against each other, with messages that
//! are read late, patience that ends, and a death of either at any point, between two actions too.
//!
//! The world around them does what their shells do with sockets: what was sent before an end is
//! read before it, and a patience ends only while nothing is there to be read.

use agent_api::handover::{Action, Event, Message, New, Old};
use sim::{Run, simulate};
use std::collections::VecDeque;

const ABI: u32 = 2;
const STEPS: usize = 200;

/// What either side has in common.
#[derive(Debug, Default)]
struct Side {
    dead: bool,
    accepts: bool,
    /// Its end of the connection is closed.
    hung_up: bool,
    /// Sent to it, and not read yet.
    inbox: VecDeque<Message>,
    /// It has seen the end of the connection.
    saw_end: bool,
}

impl Side {
    fn alive(&self) -> bool {
        !self.dead
    }
}

struct World {
    old: Side,
    new: Side,
    old_state: Old,
    new_state: New,
    /// Preparation is under way.
    preparing: bool,
    sent_all: bool,
    was_told: bool,
    drains: bool,
    begins_alone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Old,
    New,
}

impl World {
    fn new(run: &mut Run) -> Self {
        let abi = if run.chance(0.05) { ABI + 1 } else { ABI };
        let mut old = Side { accepts: true, ..Side::default() };
        old.inbox.push_back(New::hello(abi, "1"));
        Self {
            old,
            new: Side::default(),
            old_state: Old::default(),
            new_state: New::default(),
            preparing: false,
            sent_all: false,
            was_told: false,
            drains: false,
            begins_alone: false,
        }
    }

    fn side(&mut self, who: Who) -> &mut Side {
        match who {
            Who::Old => &mut self.old,
            Who::New => &mut self.new,
        }
    }

    fn other(&mut self, who: Who) -> &mut Side {
        match who {
            Who::Old => &mut self.new,
            Who::New => &mut self.old,
        }
    }

    fn dies(&mut self, run: &mut Run, who: Who) {
        run.note(format!("{who:?} dies"));
        let side = self.side(who);
        side.dead = true;
        side.accepts = false;
        side.hung_up = true;
    }

    fn says(&mut self, who: Who, message: Message) {
        if !self.side(who).hung_up && !self.other(who).hung_up {
            self.other(who).inbox.push_back(message);
        }
    }

    fn happens(&mut self, run: &mut Run, who: Who, event: Event) {
        run.note(format!("{who:?}: {event:?}"));
        if event == Event::Closed {
            self.side(who).saw_end = true;
        }
        let actions = match who {
            Who::Old => self.old_state.on(event, ABI),
            Who::New => self.new_state.on(event),
        };
        for action in actions {
            // A fault point is anywhere.
            if run.chance(0.03) {
                self.dies(run, who);
                return;
            }
            run.note(format!("{who:?} does {action:?}"));
            self.acts(who, action);
            self.check();
        }
    }

    fn acts(&mut self, who: Who, action: Action) {
        match (who, action) {
            (_, Action::Send(message)) => {
                self.was_told |= message == Message::Yours;
                self.says(who, message);
            }
            (Who::Old, Action::SendAll) => {
                self.sent_all = true;
                let pod = |n: u32| Message::Pod {
                    uid: format!("p{n}"),
                    owner: n,
                    flags: 0,
                    listeners: Vec::new(),
                };
                self.says(who, Message::Node { sockets: Vec::new(), pods: 2 });
                self.says(who, pod(1));
                self.says(who, pod(2));
                self.says(who, Message::Sent);
            }
            (Who::Old, Action::Pause) => self.old.accepts = false,
            (_, Action::Accept) => {
                assert!(!self.side(who).accepts, "it does already");
                self.side(who).accepts = true;
            }
            (Who::Old, Action::Drain) => {
                assert!(!self.old.accepts, "a drain while it accepts");
                assert!(self.was_told, "a drain, and the new one was never told to begin");
                self.drains = true;
                self.old.hung_up = true;
            }
            (Who::Old, Action::GiveUp(_)) => self.old.hung_up = true,
            // Its process ends.
            (Who::New, Action::GiveUp(_)) => {
                self.new.hung_up = true;
                self.new.dead = true;
                self.new.accepts = false;
            }
            (Who::New, Action::Keep(_)) => assert!(self.sent_all),
            (Who::New, Action::Prepare) => self.preparing = true,
            (Who::New, Action::BeginAlone) => self.begins_alone = true,
            (who, action) => panic!("{who:?} cannot {action:?}"),
        }
    }

    fn check(&self) {
        assert!(!(self.old.accepts && self.new.accepts), "both accept");
        // The shells ask the states; what they were told to do must be the same.
        if self.new.alive() {
            assert_eq!(self.new.accepts, self.new_state.accepts());
        }
        assert!(!self.drains || !self.old.accepts, "it drains and accepts");
    }

    /// What could happen next to either side.
    fn possible(&self) -> Vec<(Who, Event)> {
        let mut all = Vec::new();
        let (old, new) = (&self.old, &self.new);
        if old.alive() && !old.hung_up {
            match old.inbox.front() {
                Some(m) => all.push((Who::Old, Event::Received(m.clone()))),
                None if new.hung_up => all.push((Who::Old, Event::Closed)),
                None => all.push((Who::Old, Event::TimedOut)),
            }
        }
        if new.alive() && !self.begins_alone {
            match new.inbox.front() {
                Some(m) => all.push((Who::New, Event::Received(m.clone()))),
                None if old.hung_up && !new.saw_end => all.push((Who::New, Event::Closed)),
                None if new.saw_end || new.accepts => {}
                None => all.push((Who::New, Event::TimedOut)),
            }
            if self.preparing {
                all.push((Who::New, Event::Prepared));
            }
        }
        all
    }

    fn step(&mut self, run: &mut Run) -> bool {
        let possible = self.possible();
        if possible.is_empty() {
            return false;
        }
        let n: Vec<usize> = (0..possible.len()).collect();
        let (who, mut event) = possible[run.pick(&n)].clone();
        match event {
            Event::Received(_) => drop(self.side(who).inbox.pop_front()),
            // Rare: all patience is long, and needed to end for the drain to begin.
            Event::TimedOut if self.old_state != Old::StandBy && !run.chance(0.2) => return true,
            Event::Prepared => {
                self.preparing = false;
                if run.chance(0.1) {
                    event = Event::Failed("no certificate".to_owned());
                }
            }
            _ => {}
        }
        self.happens(run, who, event);
        true
    }

    /// Nothing can happen any more.
    fn end(&self) {
        let (old, new) = (&self.old, &self.new);
        match (old.alive(), new.alive()) {
            (true, true) => {
                // One that begins alone finds the lock taken, and asks anew.
                assert!(old.accepts != new.accepts, "nobody accepts: {:?}", self.new_state);
                assert_eq!(new.accepts, self.drains, "the old one drains if the new one serves");
            }
            (true, false) => assert!(old.accepts || self.drains, "nobody accepts"),
            (false, true) => assert!(new.accepts || self.begins_alone, "nobody accepts"),
            (false, false) => {}
        }
        if self.begins_alone {
            assert!(!new.accepts && !self.was_told);
        }
    }
}

#[test]
fn at_most_one_of_two_agents_accepts_and_the_one_that_is_left_does() {
    simulate(|run| {
        let mut world = World::new(run);
        let deaths = run.chance(0.7);
        for step in 0.. {
            assert!(step < STEPS * 10, "it does not come to an end");
            if deaths && run.chance(0.03) {
                let who = run.pick(&[Who::Old, Who::New]);
                if world.side(who).alive() {
                    world.dies(run, who);
                }
            }
            if !world.step(run) {
                break;
            }
            world.check();
        }
        world.end();
    });
}

/// The proof that the simulation reaches what it is about.
#[test]
fn undisturbed_the_new_agent_serves_and_the_old_one_drains() {
    simulate(|run| {
        let mut old = Old::default();
        let mut new = New::default();
        let mut to_old = VecDeque::from([New::hello(ABI, "1")]);
        let mut to_new = VecDeque::new();
        let mut done = Vec::new();
        while let Some((who, event)) = next(run, &mut to_old, &mut to_new) {
            let actions = if who == Who::Old { old.on(event, ABI) } else { new.on(event) };
            for action in actions {
                match action {
                    Action::Send(m) if who == Who::Old => to_new.push_back(m),
                    Action::Send(m) => to_old.push_back(m),
                    Action::SendAll => {
                        to_new.push_back(Message::Node { sockets: Vec::new(), pods: 0 });
                        to_new.push_back(Message::Sent);
                    }
                    Action::Prepare => {
                        let ready = new.on(Event::Prepared);
                        assert_eq!(ready, [Action::Send(Message::Ready)]);
                        to_old.push_back(Message::Ready);
                    }
                    Action::Keep(_) => {}
                    other => done.push((who, other)),
                }
            }
        }
        assert_eq!(old.on(Event::TimedOut, ABI), [Action::Drain]);
        assert_eq!(done, [(Who::Old, Action::Pause), (Who::New, Action::Accept)]);
        assert!(new.accepts() && !old.accepts());
    });
}

fn next(
    run: &mut Run,
    to_old: &mut VecDeque<Message>,
    to_new: &mut VecDeque<Message>,
) -> Option<(Who, Event)> {
    let first = run.chance(0.5);
    let old = |q: &mut VecDeque<Message>| q.pop_front().map(|m| (Who::Old, Event::Received(m)));
    let new = |q: &mut VecDeque<Message>| q.pop_front().map(|m| (Who::New, Event::Received(m)));
    if first { old(to_old).or_else(|| new(to_new)) } else { new(to_new).or_else(|| old(to_old)) }
}
