//! The pool's bookkeeping under streams that open and end, dials that succeed and fail, peers that
//! change their minds, connections that break, certificates that are renewed and expire, and a
//! clock of its own.
//!
//! The world around it does what `hbone::Pool` does: it asks anew after each wait, tells of every
//! end, and sweeps now and then. It keeps books of its own, and compares.

use hbone::{Bookkeeping, Next};
use sim::{Run, simulate};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

const STEPS: usize = 600;
const KEYS: usize = 3;
const IDLE: Duration = Duration::from_secs(90);
/// How long a certificate is used, and how long it could be.
const RENEWED: Duration = Duration::from_secs(300);
const LIFE: Duration = Duration::from_secs(600);
/// Streams that a new connection is expected to carry.
const PER_DIAL: usize = 3;

/// A connection, as whoever made it knows it.
#[derive(Clone, Copy, Debug)]
struct Connection {
    generation: u64,
    ends: Instant,
    limit: usize,
    streams: usize,
    /// Takes nothing new.
    retired: bool,
    idle_since: Option<Instant>,
}

/// All of one key: one pair of identities and addresses.
struct Key {
    book: Bookkeeping,
    generation: u64,
    /// When each generation's certificate ends.
    expiry: BTreeMap<u64, Instant>,
    connections: BTreeMap<u64, Connection>,
    /// The generation of the certificate that each dial under way was begun with.
    dials: Vec<u64>,
    /// Streams that wait for a dial.
    waiting: usize,
    /// Streams by the connection that they are on, which may have ended before them.
    leases: Vec<u64>,
    seen: u64,
}

impl Key {
    fn new(now: Instant) -> Self {
        Self {
            book: Bookkeeping::default(),
            generation: 1,
            expiry: [(1, now + LIFE)].into(),
            connections: BTreeMap::new(),
            dials: Vec::new(),
            waiting: 0,
            leases: Vec::new(),
            seen: 0,
        }
    }

    fn takes(&self, c: &Connection) -> bool {
        !c.retired && c.generation >= self.generation && c.streams < c.limit
    }

    /// A stream wants a connection.
    fn ask(&mut self, now: Instant) -> String {
        let room = self.connections.values().any(|c| self.takes(c));
        assert_eq!(self.book.has_room(self.generation), room);
        let next = self.book.next(self.generation, PER_DIAL);
        for c in self.connections.values_mut() {
            c.retired |= c.generation < self.generation;
        }
        match next {
            Next::Use(id) => {
                // Of this key, and alive: or there would be no such number here.
                let c = self.connections.get(&id).expect("a connection that does not exist");
                assert!(self.takes(c), "it takes no more: {c:?}");
                assert!(c.ends > now, "its certificate has ended: {c:?}");
                let c = self.connections.get_mut(&id).unwrap();
                c.streams += 1;
                c.idle_since = None;
                self.leases.push(id);
            }
            Next::Dial => {
                assert!(!room, "it dials beside a connection with room");
                self.dials.push(self.generation);
                self.waiting += 1;
            }
            Next::Wait => {
                assert!(!room, "it waits beside a connection with room");
                assert!(!self.dials.is_empty(), "it waits for a dial that nobody has begun");
                assert!(self.waiting < self.dials.len() * PER_DIAL, "too many wait for a dial");
                self.waiting += 1;
            }
        }
        format!("a stream: {next:?}")
    }

    /// A dial has ended, one way or the other: whoever waits asks again or, if it failed and there
    /// is no other way, gives up.
    fn dial_ends(&mut self, run: &mut Run, now: Instant) -> String {
        let began_with = self.dials.swap_remove(run.rng_index(self.dials.len()));
        let ends = self.expiry[&began_with];
        let fails = run.chance(0.3) || ends <= now;
        if fails {
            self.book.dial_failed();
        } else {
            let limit = run.pick(&[0, 1, 2, 3, 3, 5]);
            let id = self.book.dialled(began_with, limit, now);
            assert!(id > self.seen, "{id} has been another connection's number");
            self.seen = id;
            let c = Connection {
                generation: began_with,
                ends,
                limit: limit.max(1),
                streams: 0,
                retired: false,
                idle_since: Some(now),
            };
            self.connections.insert(id, c);
        }
        let woken = std::mem::take(&mut self.waiting);
        for _ in 0..woken {
            self.book.waited();
        }
        let mut again = 0;
        for _ in 0..woken {
            // As `checkout`: the error is theirs only if there is nothing else.
            if !fails || self.book.has_room(self.generation) {
                self.ask(now);
                again += 1;
            }
        }
        format!("a dial ended, failed: {fails}; {again} of {woken} ask again")
    }

    fn stream_ends(&mut self, run: &mut Run, now: Instant) {
        let id = self.leases.swap_remove(run.rng_index(self.leases.len()));
        self.book.finished(id, now);
        if let Some(c) = self.connections.get_mut(&id) {
            c.streams -= 1;
            if c.streams == 0 {
                c.idle_since = Some(now);
            }
        }
    }

    /// The driver has ended: told of before anything else happens, as by its guard.
    fn gone(&mut self, id: u64) {
        self.connections.remove(&id).unwrap();
        self.book.gone(id);
    }

    /// Connections end with the certificate that made them.
    fn expire(&mut self, now: Instant) {
        let ended: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.ends <= now).map(|(id, _)| *id).collect();
        for id in ended {
            self.gone(id);
        }
    }

    fn sweep(&mut self, now: Instant) -> Vec<u64> {
        let mut closed = self.book.to_close(now, IDLE);
        closed.sort_unstable();
        let idle = |c: &Connection| c.idle_since.is_some_and(|t| now - t >= IDLE);
        let right: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| c.streams == 0 && (c.retired || idle(c)))
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(closed, right, "{:?}", self.connections);
        for id in &closed {
            self.gone(*id);
        }
        closed
    }

    fn check(&self) {
        let streams = self.connections.values().map(|c| c.streams).sum();
        assert_eq!(self.book.size(), (self.connections.len(), streams));
        let on_living = self.leases.iter().filter(|id| self.connections.contains_key(id)).count();
        assert_eq!(on_living, streams, "a lease is counted twice, or not at all");
        let empty = self.connections.is_empty() && self.dials.is_empty() && self.waiting == 0;
        assert_eq!(self.book.is_empty(), empty);
        // Whoever waits is woken by some dial.
        assert!(self.waiting == 0 || !self.dials.is_empty(), "{} wait for ever", self.waiting);
    }
}

trait Index {
    fn rng_index(&mut self, below: usize) -> usize;
}

impl Index for Run {
    fn rng_index(&mut self, below: usize) -> usize {
        let all: Vec<usize> = (0..below).collect();
        self.pick(&all)
    }
}

fn step(run: &mut Run, key: &mut Key, now: Instant) -> String {
    let living: Vec<u64> = key.connections.keys().copied().collect();
    match run.rng_index(14) {
        0..=3 => key.ask(now),
        4..=5 if !key.dials.is_empty() => key.dial_ends(run, now),
        6..=8 if !key.leases.is_empty() => {
            key.stream_ends(run, now);
            "a stream ends".to_owned()
        }
        9 if !living.is_empty() => {
            let id = run.pick(&living);
            key.gone(id);
            format!("{id} breaks")
        }
        10 if !living.is_empty() => {
            let (id, limit) = (run.pick(&living), run.pick(&[0, 1, 2, 4]));
            key.book.limit(id, limit);
            key.connections.get_mut(&id).unwrap().limit = limit.max(1);
            format!("{id} takes {limit} streams")
        }
        11 if !living.is_empty() => {
            // As after a GOAWAY.
            let id = run.pick(&living);
            key.book.retire(id);
            key.connections.get_mut(&id).unwrap().retired = true;
            format!("{id} is retired")
        }
        12 => {
            // Late news of a connection that has gone is no news.
            for id in 1..=key.seen {
                if !key.connections.contains_key(&id) {
                    key.book.limit(id, 100);
                    key.book.retire(id);
                    key.book.gone(id);
                }
            }
            "late news".to_owned()
        }
        _ => format!("swept: {:?}", key.sweep(now)),
    }
}

#[test]
fn leases_are_counted_once_and_only_on_connections_that_may_carry_them() {
    simulate(|run| {
        let mut now = Instant::now();
        let begun = now;
        let mut renewed = now;
        let mut keys: Vec<Key> = (0..KEYS).map(|_| Key::new(now)).collect();
        for _ in 0..STEPS {
            now += Duration::from_secs(run.pick(&[0, 0, 0, 0, 1, 1, 5, 50]));
            if now - renewed >= RENEWED {
                renewed = now;
                for key in &mut keys {
                    // Renewal fails now and then, for all its retries: the old one is used on.
                    if run.chance(0.7) {
                        key.generation += 1;
                        key.expiry.insert(key.generation, now + LIFE);
                    }
                }
            }
            for key in &mut keys {
                key.expire(now);
            }
            let n = run.rng_index(KEYS);
            let what = step(run, &mut keys[n], now);
            run.note(format!("{:5} s, key {n}: {what}", (now - begun).as_secs()));
            keys.iter().for_each(Key::check);
        }
        for key in &mut keys {
            key.expire(now);
            while !key.dials.is_empty() {
                key.dial_ends(run, now);
            }
            while !key.leases.is_empty() {
                key.stream_ends(run, now);
                key.check();
            }
            now += IDLE;
            key.sweep(now);
            assert!(key.book.is_empty(), "something is left: {:?}", key.book);
        }
    });
}
