//! [`PodScope`]: all work that is done for a pod goes through here, so that it ends with the pod
//! and can be counted. A lint forbids spawning tasks anywhere else in the agent.

use pin_project_lite::pin_project;
use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use telemetry::Whose;
use tokio::sync::Notify;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};

/// Handshakes under way towards one pod, in all and from one address. One that is never finished holds
/// 24 KiB and a descriptor for ten seconds: so many cost 48 MiB at most, and a peer that floods keeps
/// nobody else out. One that is turned away dials again.
const MOST_HANDSHAKES: usize = 2048;
const MOST_HANDSHAKES_OF_ONE: usize = 64;

/// HBONE connections that one address has with a pod: with 100 streams each, 100,000 at a time. For a peer that only opens
/// them the agent grows by less than 96 MiB (e2e hostile_peer).
const MOST_CONNECTIONS_OF_ONE: usize = 1024;

#[derive(Clone, Debug)]
pub struct PodScope {
    owner: u32,
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Handshakes that others have begun with the pod.
    begun: Peers,
    /// HBONE connections that others have with it, or begin.
    held: Peers,
    tasks: TaskTracker,
    ended: CancellationToken,
    handshakes: AtomicU64,
    connections: AtomicUsize,
    fewer: Notify,
}

impl PodScope {
    /// `owner`: the key of the pod's state in the kernel.
    pub fn new(owner: u32) -> Self {
        Self { owner, inner: Arc::default() }
    }

    /// Runs `work` until it ends or the pod does. What it logs is of the pod's share, and of the client's
    /// for whom the caller works.
    #[allow(clippy::disallowed_methods)]
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let ended = self.inner.ended.clone().cancelled_owned();
        let whose = Whose::now_within(self.owner);
        tokio::spawn(self.inner.tasks.track_future(UntilEnded { work, ended, whose }));
    }

    /// Room for one more handshake that a peer at `from` has begun, until the answer is dropped; none
    /// when too many are under way.
    pub fn room_for_handshake(&self, from: IpAddr) -> Option<Place> {
        self.place(|of| &of.begun, from, MOST_HANDSHAKES_OF_ONE, MOST_HANDSHAKES)
    }

    /// Room for one more HBONE connection of a peer at `from`, for as long as it is held.
    pub fn room_for_connection(&self, from: IpAddr) -> Option<Place> {
        self.place(|of| &of.held, from, MOST_CONNECTIONS_OF_ONE, usize::MAX)
    }

    fn place(&self, of: Of, from: IpAddr, most_of_one: usize, most: usize) -> Option<Place> {
        let from = from.to_canonical();
        let mut peers = of(&self.inner).0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = peers.by_address.get(&from).copied().unwrap_or(0);
        if peers.all >= most || own >= most_of_one {
            return None;
        }
        peers.by_address.insert(from, own + 1);
        peers.all += 1;
        drop(peers);
        Some(Place { scope: self.inner.clone(), of, from })
    }

    pub fn count_handshake(&self) {
        self.inner.handshakes.fetch_add(1, Ordering::Relaxed);
    }

    pub fn handshakes(&self) -> u64 {
        self.inner.handshakes.load(Ordering::Relaxed)
    }

    pub fn tasks(&self) -> usize {
        self.inner.tasks.len()
    }

    /// Counts a connection of an application, or of a peer on behalf of some, until the answer is
    /// dropped.
    pub fn connection(&self) -> Counted {
        self.inner.connections.fetch_add(1, Ordering::AcqRel);
        Counted(self.inner.clone())
    }

    /// Returns once no connection is left. A peer's ends by itself only after the pod has begun to
    /// leave.
    pub async fn idle(&self) {
        loop {
            let fewer = self.inner.fewer.notified();
            if self.inner.connections.load(Ordering::Acquire) == 0 {
                return;
            }
            fewer.await;
        }
    }

    /// Waits for work that ends by itself; no longer than `patience`.
    pub async fn settle(&self, patience: Duration) {
        self.inner.tasks.close();
        let _ = tokio::time::timeout(patience, self.inner.tasks.wait()).await;
    }

    /// Ends all work; waits a little for it to be gone, sockets and all.
    pub async fn end(&self) {
        self.inner.ended.cancel();
        self.inner.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(5), self.inner.tasks.wait()).await;
    }
}

pin_project! {
    /// By hand: `select!` in an `async` block has room for the work twice, 2 KB of each connection.
    struct UntilEnded<W> {
        #[pin]
        work: W,
        #[pin]
        ended: WaitForCancellationFutureOwned,
        whose: Whose,
    }
}

impl<W: Future<Output = ()>> Future for UntilEnded<W> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        this.whose.within(|| match this.work.poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => this.ended.poll(cx),
        })
    }
}

/// How many of something peers have, by their address.
#[derive(Debug, Default)]
struct Peers(Mutex<Many>);

#[derive(Debug, Default)]
struct Many {
    by_address: HashMap<IpAddr, usize>,
    all: usize,
}

type Of = fn(&Inner) -> &Peers;

/// One of those that a peer has; another's once it is dropped.
#[derive(Debug)]
pub struct Place {
    scope: Arc<Inner>,
    of: Of,
    from: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = (self.of)(&self.scope).0.lock().unwrap_or_else(PoisonError::into_inner);
        peers.all = peers.all.saturating_sub(1);
        if let Some(own) = peers.by_address.get_mut(&self.from) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                peers.by_address.remove(&self.from);
            }
        }
    }
}

#[derive(Debug)]
pub struct Counted(Arc<Inner>);

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.connections.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.fewer.notify_waiters();
        }
    }
}

/// Runs what belongs to the agent and to no pod.
#[allow(clippy::disallowed_methods)]
pub fn spawn_for_agent(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connections::Entry;
    use hbone::{End, Lease};

    /// What the task of a connection takes while its bytes are relayed.
    const MOST: usize = 800;

    #[test]
    fn the_task_of_a_connection_is_small() {
        fn relaying<H, W>(_: fn(Entry, End, End, H) -> W) -> usize {
            size_of::<UntilEnded<W>>()
        }
        let size = relaying(Entry::relay::<(Counted, Option<Lease>)>);
        assert!(size <= MOST, "{size}");
    }
}
