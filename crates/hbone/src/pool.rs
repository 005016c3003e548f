//! Shared connections: which one a new stream goes to, when another is dialled, when one ends.
//!
//! [`Bookkeeping`] decides, without I/O or clock; [`Pool`] carries out. A connection takes streams
//! up to its limit, and takes them again as they end. One whose certificate has been replaced, or
//! that has lived half of what its certificates had left, is retired: it finishes what it carries and
//! takes nothing new.

use crate::client::{ClientConnection, ClientError, ClientStream};
use http::Request;
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// A connection without streams is closed after this long.
    pub idle: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        // Istio releases after five minutes; a handshake costs less than a millisecond, memory of
        // an idle TLS connection some tens of KiB at each end.
        PoolConfig { idle: Duration::from_secs(90) }
    }
}

/// What to do for a stream that wants a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Open it on this connection; it is counted already.
    Use(u64),
    /// Dial another connection.
    Dial,
    /// A dial under way will have room.
    Wait,
}

/// The connections of one key, as numbers: data in, decisions out.
#[derive(Debug, Default)]
pub struct Bookkeeping {
    connections: Vec<Slot>,
    dialling: usize,
    waiting: usize,
    next_id: u64,
}

#[derive(Debug)]
struct Slot {
    id: u64,
    generation: u64,
    active: usize,
    limit: usize,
    retired: bool,
    idle_since: Option<Instant>,
}

impl Slot {
    fn takes(&self, generation: u64) -> bool {
        !self.retired && self.generation >= generation && self.active < self.limit
    }
}

impl Bookkeeping {
    /// For a stream under a certificate of `generation`. `per_dial` is how many streams a new
    /// connection is expected to carry.
    pub fn next(&mut self, generation: u64, per_dial: usize) -> Next {
        for slot in &mut self.connections {
            if slot.generation < generation {
                slot.retired = true;
            }
        }
        // The fullest with room, so that the emptier ones fall idle and close.
        let best =
            self.connections.iter_mut().filter(|s| s.takes(generation)).max_by_key(|s| s.active);
        if let Some(slot) = best {
            slot.active += 1;
            slot.idle_since = None;
            return Next::Use(slot.id);
        }
        if self.waiting < self.dialling.saturating_mul(per_dial) {
            self.waiting += 1;
            return Next::Wait;
        }
        self.dialling += 1;
        self.waiting += 1;
        Next::Dial
    }

    /// Whether a stream would find a connection.
    pub fn has_room(&self, generation: u64) -> bool {
        self.connections.iter().any(|s| s.takes(generation))
    }

    /// A waiter of [`Next::Wait`] or [`Next::Dial`] waits no more.
    pub fn waited(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    pub fn dialled(&mut self, generation: u64, limit: usize, now: Instant) -> u64 {
        self.dialling = self.dialling.saturating_sub(1);
        self.next_id += 1;
        self.connections.push(Slot {
            id: self.next_id,
            generation,
            active: 0,
            limit: limit.max(1),
            retired: false,
            idle_since: Some(now),
        });
        self.next_id
    }

    pub fn dial_failed(&mut self) {
        self.dialling = self.dialling.saturating_sub(1);
    }

    /// The peer now takes this many streams.
    pub fn limit(&mut self, id: u64, limit: usize) {
        if let Some(slot) = self.slot(id) {
            slot.limit = limit.max(1);
        }
    }

    pub fn finished(&mut self, id: u64, now: Instant) {
        if let Some(slot) = self.slot(id) {
            slot.active = slot.active.saturating_sub(1);
            if slot.active == 0 {
                slot.idle_since = Some(now);
            }
        }
    }

    /// No new streams on this connection.
    pub fn retire(&mut self, id: u64) {
        if let Some(slot) = self.slot(id) {
            slot.retired = true;
        }
    }

    pub fn gone(&mut self, id: u64) {
        self.connections.retain(|s| s.id != id);
    }

    /// Connections to close: idle too long, or retired and empty.
    pub fn to_close(&self, now: Instant, idle: Duration) -> Vec<u64> {
        self.connections
            .iter()
            .filter(|s| {
                s.active == 0
                    && (s.retired
                        || s.idle_since.is_some_and(|t| now.saturating_duration_since(t) >= idle))
            })
            .map(|s| s.id)
            .collect()
    }

    pub fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.dialling == 0 && self.waiting == 0
    }

    /// Connections, and streams open on them.
    pub fn size(&self) -> (usize, usize) {
        (self.connections.len(), self.connections.iter().map(|s| s.active).sum())
    }

    fn slot(&mut self, id: u64) -> Option<&mut Slot> {
        self.connections.iter_mut().find(|s| s.id == id)
    }
}

/// A dialled connection and the task that drives it.
pub struct Dialled {
    pub connection: ClientConnection,
    /// Of the certificate that it was made with.
    pub generation: u64,
    pub driver: futures_util::future::BoxFuture<'static, ()>,
}

/// How a key's connections are made, and where their tasks run.
pub trait Dial<K>: Send + Sync + 'static {
    fn dial(&self, key: K) -> futures_util::future::BoxFuture<'static, Result<Dialled, DialError>>;

    /// The generation of the certificate that a new connection would be made with.
    fn generation(&self, key: &K) -> u64;

    fn spawn(&self, key: &K, task: futures_util::future::BoxFuture<'static, ()>);
}

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Identity(Arc<str>),
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum PoolError {
    /// Shared by all who waited for the same dial.
    #[error("{0}")]
    Dial(Arc<DialError>),
    #[error("{0}")]
    Open(Arc<ClientError>),
}

pub struct Pool<K, D> {
    dial: Arc<D>,
    config: PoolConfig,
    keys: Mutex<HashMap<K, Arc<Mutex<PerKey>>>>,
}

struct PerKey {
    book: Bookkeeping,
    live: HashMap<u64, ClientConnection>,
    /// How the last dial to end has ended: wakes those who wait.
    outcome: watch::Sender<Result<(), Arc<DialError>>>,
}

impl Default for PerKey {
    fn default() -> Self {
        Self {
            book: Bookkeeping::default(),
            live: HashMap::new(),
            outcome: watch::Sender::new(Ok(())),
        }
    }
}

/// A stream, counted on its connection until it is dropped.
pub struct Lease {
    per_key: Arc<Mutex<PerKey>>,
    id: u64,
    /// From when on its connection takes no other: what shares the stream should not, either.
    pub fresh_until: Instant,
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.per_key).book.finished(self.id, Instant::now());
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, D> Pool<K, D>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    D: Dial<K>,
{
    pub fn new(dial: D, config: PoolConfig) -> Arc<Self> {
        Arc::new(Self { dial: Arc::new(dial), config, keys: Mutex::default() })
    }

    /// A stream to `key`'s peer, once the peer has answered 200.
    pub async fn open(
        self: &Arc<Self>,
        key: &K,
        request: impl Fn() -> Request<()>,
    ) -> Result<(ClientStream, Lease), PoolError> {
        // A connection may end between being chosen and being used; a second choice settles it.
        let mut attempts = 0;
        loop {
            attempts += 1;
            let (connection, lease) = self.checkout(key).await?;
            match connection.open(request()).await {
                Ok(stream) => {
                    lock(&lease.per_key).book.limit(lease.id, connection.stream_limit());
                    return Ok((stream, lease));
                }
                Err(ClientError::Stream(e)) if attempts < 3 && not_processed(&e) => {
                    lock(&lease.per_key).book.retire(lease.id);
                }
                Err(e) => {
                    // The next stream would wait as long for nothing; those that it carries go on.
                    if matches!(e, ClientError::Unanswered) {
                        lock(&lease.per_key).book.retire(lease.id);
                    }
                    return Err(PoolError::Open(Arc::new(e)));
                }
            }
        }
    }

    /// Lets go of what is idle; call it now and then.
    pub fn sweep(&self, now: Instant) {
        let mut gone = Vec::new();
        lock(&self.keys).retain(|_, per_key| {
            let mut p = lock(per_key);
            for id in p.book.to_close(now, self.config.idle) {
                p.book.gone(id);
                gone.extend(p.live.remove(&id));
            }
            !p.book.is_empty()
        });
        // The last handle: its driver sends what is left to send, and ends.
        drop(gone);
    }

    /// Lets go of the connections of every key that `of` selects: each ends by itself, once its
    /// streams have ended and what they sent is on its way.
    pub fn let_go(&self, of: impl Fn(&K) -> bool) {
        let mut gone = Vec::new();
        lock(&self.keys).retain(|key, per_key| {
            let selected = of(key);
            if selected {
                gone.push(std::mem::take(&mut lock(per_key).live));
            }
            !selected
        });
        // Dropped without the locks: the last handle of a connection wakes its driver.
        drop(gone);
    }

    /// Connections, and streams open on them.
    pub fn size(&self) -> (usize, usize) {
        lock(&self.keys)
            .values()
            .map(|p| lock(p).book.size())
            .fold((0, 0), |(a, b), (c, s)| (a + c, b + s))
    }

    async fn checkout(self: &Arc<Self>, key: &K) -> Result<(ClientConnection, Lease), PoolError> {
        let per_dial = crate::WINDOWS.streams as usize;
        loop {
            let generation = self.dial.generation(key);
            let per_key = lock(&self.keys).entry(key.clone()).or_default().clone();
            let mut ended = {
                let mut p = lock(&per_key);
                // Before anything is begun: no end can be missed.
                let ended = p.outcome.subscribe();
                match p.book.next(generation, per_dial) {
                    Next::Use(id) => {
                        let Some(connection) = p.live.get(&id).cloned() else {
                            p.book.gone(id);
                            continue;
                        };
                        // The lease's drop takes the lock.
                        drop(p);
                        let fresh_until = connection.fresh_until;
                        let lease = Lease { per_key: per_key.clone(), id, fresh_until };
                        return Ok((connection, lease));
                    }
                    Next::Dial => {
                        // A spawn may drop its task at once, and its drop takes the lock.
                        drop(p);
                        self.begin_dial(key, &per_key);
                    }
                    Next::Wait => {}
                }
                ended
            };
            let waiting = Waiting(&per_key);
            // Cannot fail: this function holds the sender.
            let _ = ended.changed().await;
            drop(waiting);
            let outcome = ended.borrow().clone();
            if let Err(e) = outcome {
                // Another dial may have ended well before this one failed.
                if !lock(&per_key).book.has_room(generation) {
                    return Err(PoolError::Dial(e));
                }
            }
        }
    }

    /// Dials in a task of its own: the connection is for everyone who waits, not only for the one
    /// who came first.
    fn begin_dial(&self, key: &K, per_key: &Arc<Mutex<PerKey>>) {
        let guard = Dialling { per_key: per_key.clone(), ended: false };
        let dialling = self.dial.dial(key.clone());
        let dial = self.dial.clone();
        let spawn_for = key.clone();
        self.dial.spawn(
            key,
            Box::pin(async move {
                // Whole: a closure that took its fields one by one would copy `ended`.
                let mut guard = guard;
                match dialling.await {
                    Ok(Dialled { connection, mut driver, generation }) => {
                        guard.ended = true;
                        let fresh_until = connection.fresh_until;
                        let id = {
                            let mut p = lock(&guard.per_key);
                            let limit = connection.stream_limit();
                            let id = p.book.dialled(generation, limit, Instant::now());
                            p.live.insert(id, connection);
                            id
                        };
                        // Not under the lock: a scope that is closed drops the task at once.
                        let gone = Gone(guard.per_key.clone(), id);
                        let driver = async move {
                            let Gone(per_key, id) = &gone;
                            tokio::select! {
                                () = &mut driver => return,
                                () = tokio::time::sleep_until(fresh_until.into()) => {}
                            }
                            lock(per_key).book.retire(*id);
                            driver.await;
                        };
                        dial.spawn(&spawn_for, Box::pin(driver));
                        let _ = lock(&guard.per_key).outcome.send_replace(Ok(()));
                    }
                    Err(e) => guard.failed(e),
                }
            }),
        );
    }
}

/// The peer has said that it did not look at the stream, or has gone before it answered. No byte of
/// the application's has been sent by then, so the stream may be tried elsewhere.
fn not_processed(e: &h2::Error) -> bool {
    e.is_go_away() || e.is_io() || e.reason() == Some(h2::Reason::REFUSED_STREAM)
}

struct Waiting<'a>(&'a Arc<Mutex<PerKey>>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(self.0).book.waited();
    }
}

/// A dial that is dropped before it ends has failed.
struct Dialling {
    per_key: Arc<Mutex<PerKey>>,
    ended: bool,
}

impl Dialling {
    fn failed(&mut self, e: DialError) {
        self.ended = true;
        let mut p = lock(&self.per_key);
        p.book.dial_failed();
        let _ = p.outcome.send_replace(Err(Arc::new(e)));
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        if !self.ended {
            self.failed(std::io::Error::other("the pod is going away").into());
        }
    }
}

struct Gone(Arc<Mutex<PerKey>>, u64);

impl Drop for Gone {
    fn drop(&mut self) {
        let mut p = lock(&self.0);
        p.book.gone(self.1);
        p.live.remove(&self.1);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_comes_back_into_use_when_its_streams_end() {
        let now = Instant::now();
        let mut b = Bookkeeping::default();
        assert_eq!(b.next(1, 2), Next::Dial);
        let id = b.dialled(1, 2, now);
        b.waited();
        assert_eq!(b.next(1, 2), Next::Use(id));
        assert_eq!(b.next(1, 2), Next::Use(id));
        assert_eq!(b.next(1, 2), Next::Dial, "full");
        b.dial_failed();
        b.waited();
        b.finished(id, now);
        assert_eq!(b.next(1, 2), Next::Use(id));
    }

    #[test]
    fn waiters_share_a_dial_until_it_cannot_hold_them() {
        let mut b = Bookkeeping::default();
        assert_eq!(b.next(1, 2), Next::Dial);
        assert_eq!(b.next(1, 2), Next::Wait);
        assert_eq!(b.next(1, 2), Next::Dial);
    }

    #[test]
    fn a_newer_certificate_retires_what_the_older_made() {
        let now = Instant::now();
        let mut b = Bookkeeping::default();
        b.next(1, 2);
        let old = b.dialled(1, 2, now);
        b.waited();
        assert_eq!(b.next(1, 2), Next::Use(old));
        assert_eq!(b.next(2, 2), Next::Dial);
        let new = b.dialled(2, 2, now);
        b.waited();
        assert_eq!(b.next(2, 2), Next::Use(new));
        assert!(b.to_close(now, Duration::MAX).is_empty(), "it carries a stream");
        b.finished(old, now);
        assert_eq!(b.to_close(now, Duration::MAX), [old]);
    }

    #[test]
    fn idle_connections_close() {
        let now = Instant::now();
        let mut b = Bookkeeping::default();
        b.next(1, 2);
        let id = b.dialled(1, 2, now);
        b.waited();
        assert_eq!(b.next(1, 2), Next::Use(id));
        let later = now + Duration::from_secs(100);
        assert!(b.to_close(later, Duration::from_secs(90)).is_empty());
        b.finished(id, later);
        assert!(b.to_close(later, Duration::from_secs(90)).is_empty());
        assert_eq!(b.to_close(later + Duration::from_secs(90), Duration::from_secs(90)), [id]);
        b.gone(id);
        assert!(b.is_empty());
    }
}
