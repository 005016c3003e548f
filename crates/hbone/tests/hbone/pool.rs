//! The pool, over connections that are real and a dialler that the test commands.

use crate::pair::{DESTINATION, Server, connect_to, echo, raw_pair, serve};
use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use hbone::{
    ClientError, ClientStream, Dial, DialError, Dialled, Expected, InboundStream, Lease, Pool,
    PoolConfig, PoolError, WINDOWS, handshake,
};
use identity::Certified;
use scripted::pki::Pki;
use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
};

const IDLE: Duration = Duration::from_secs(90);

/// Dials servers in this process, or fails, as it is told.
struct Dialler {
    client: Arc<Certified>,
    serving: Arc<Certified>,
    servers: mpsc::UnboundedSender<Server>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    dials: AtomicUsize,
    generation: AtomicU64,
    failing: AtomicBool,
    /// While held, a dial waits.
    held: AtomicBool,
    release: Notify,
    /// Tasks of the connections, to cut them off.
    drivers: Mutex<Vec<AbortHandle>>,
}

impl Dial<&'static str> for Dialler {
    fn dial(&self, _: &'static str) -> BoxFuture<'static, Result<Dialled, DialError>> {
        let (client, serving, servers, shared) =
            (self.client.clone(), self.serving.clone(), self.servers.clone(), self.shared.clone());
        async move {
            shared.dials.fetch_add(1, Ordering::Relaxed);
            while shared.held.load(Ordering::Relaxed) {
                shared.release.notified().await;
            }
            if shared.failing.load(Ordering::Relaxed) {
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
            }
            let generation = shared.generation.load(Ordering::Relaxed);
            let (near, far) = raw_pair();
            let server = serve(far, &serving);
            let expected = Expected(vec![serving.identity.clone()]);
            let (connection, driver, _) = handshake(near, &client, &expected).await?;
            drop(servers.send(server));
            Ok(Dialled { connection, generation, driver: driver.boxed() })
        }
        .boxed()
    }

    fn generation(&self, _: &&'static str) -> u64 {
        self.shared.generation.load(Ordering::Relaxed)
    }

    fn spawn(&self, _: &&'static str, task: BoxFuture<'static, ()>) {
        let handle = tokio::spawn(task).abort_handle();
        self.shared.drivers.lock().unwrap().push(handle);
    }
}

struct Bench {
    pool: Arc<Pool<&'static str, Dialler>>,
    servers: mpsc::UnboundedReceiver<Server>,
    shared: Arc<Shared>,
}

fn bench() -> Bench {
    bench_for(Duration::from_secs(3600))
}

/// With a server's certificate that has so much left.
fn bench_for(left: Duration) -> Bench {
    let pki = Pki::new("cluster.local");
    let (tx, servers) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared::default());
    let dialler = Dialler {
        client: pki.certified("client"),
        serving: pki.certified_from("server", SystemTime::now(), left),
        servers: tx,
        shared: shared.clone(),
    };
    Bench { pool: Pool::new(dialler, PoolConfig { idle: IDLE }), servers, shared }
}

const KEY: &str = "reviews";

impl Bench {
    fn dials(&self) -> usize {
        self.shared.dials.load(Ordering::Relaxed)
    }

    async fn open(&self) -> Result<(ClientStream, Lease), PoolError> {
        self.pool.open(&KEY, || connect_to(DESTINATION)).await
    }

    /// The server's end of the connection that was dialled next.
    async fn server(&mut self) -> Server {
        self.servers.recv().await.unwrap()
    }

    /// Serves every connection from now on: each stream is accepted, and kept.
    fn accept_all(&mut self) {
        let (_, none) = mpsc::unbounded_channel();
        let mut servers = std::mem::replace(&mut self.servers, none);
        tokio::spawn(async move {
            while let Some(mut server) = servers.recv().await {
                tokio::spawn(async move {
                    let mut open = Vec::new();
                    while let Some(stream) = server.streams.recv().await {
                        open.extend(stream.accept(None));
                    }
                });
            }
        });
    }
}

async fn next(server: &mut Server) -> InboundStream {
    server.streams.recv().await.unwrap()
}

#[tokio::test]
async fn a_connection_comes_back_into_use_when_its_streams_end() {
    let mut b = bench();
    b.accept_all();
    for _ in 0..3 {
        let streams: Vec<_> = join_all((0..WINDOWS.streams).map(|_| b.open()))
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(b.pool.size(), (1, WINDOWS.streams as usize));
        drop(streams);
        assert_eq!(b.pool.size(), (1, 0));
    }
    assert_eq!(b.dials(), 1);
}

#[tokio::test]
async fn another_connection_is_dialled_when_streams_run_out() {
    let mut b = bench();
    b.accept_all();
    let wanted = WINDOWS.streams as usize * 3 + 1;
    let streams: Vec<_> =
        join_all((0..wanted).map(|_| b.open())).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(b.pool.size(), (4, wanted));
    assert_eq!(b.dials(), 4, "no more than it takes");
    drop(streams);
    assert_eq!(b.pool.size(), (4, 0));
    // And one by one.
    let mut streams = Vec::new();
    for _ in 0..wanted {
        streams.push(b.open().await.unwrap());
    }
    assert_eq!(b.dials(), 4);
}

#[tokio::test]
async fn a_connection_that_leaves_a_connect_unanswered_takes_no_more() {
    let mut b = bench();
    let pool = b.pool.clone();
    let (first, silent) = tokio::join!(pool.open(&KEY, || connect_to(DESTINATION)), async {
        let mut server = b.servers.recv().await.unwrap();
        let stream = next(&mut server).await;
        (server, stream)
    });
    let Err(PoolError::Open(why)) = first else { panic!("an answer") };
    assert!(matches!(*why, ClientError::Unanswered), "{why}");
    b.accept_all();
    let _open = b.open().await.unwrap();
    assert_eq!(b.dials(), 2);
    drop(silent);
}

#[tokio::test]
async fn idle_connections_close_on_a_sweep() {
    let mut b = bench();
    let (opened, mut server) = tokio::join!(b.pool.open(&KEY, || connect_to(DESTINATION)), async {
        let mut server = b.servers.recv().await.unwrap();
        let stream = next(&mut server).await.accept(None).unwrap();
        (server, stream)
    });
    let (mut stream, lease) = opened.unwrap();
    let far_future = Instant::now() + IDLE * 10;
    b.pool.sweep(far_future);
    echo((&mut stream.send, &mut stream.receive), (&mut server.1.0, &mut server.1.1), 1000).await;
    drop((stream, lease));
    b.pool.sweep(Instant::now());
    assert_eq!(b.pool.size(), (1, 0), "not idle for long");
    b.pool.sweep(far_future);
    assert_eq!(b.pool.size(), (0, 0));
    // The other end learns of it.
    drop(server.1);
    let _ = server.0.ended.await.unwrap();
    b.accept_all();
    b.open().await.unwrap();
    assert_eq!(b.dials(), 2);
}

#[tokio::test]
async fn a_failed_dial_fails_all_who_waited_and_the_next_dials_anew() {
    let mut b = bench();
    b.shared.held.store(true, Ordering::Relaxed);
    b.shared.failing.store(true, Ordering::Relaxed);
    // The join polls in order: all wait when the dial is let go.
    let (all, ()) = tokio::join!(join_all((0..10).map(|_| b.open())), async {
        b.shared.held.store(false, Ordering::Relaxed);
        b.shared.release.notify_waiters();
    });
    assert_eq!(b.dials(), 1, "they shared it");
    for one in all {
        match one {
            Err(PoolError::Dial(e)) => assert!(matches!(*e, DialError::Io(_)), "{e}"),
            other => panic!("{:?}", other.map(drop)),
        }
    }
    assert_eq!(b.pool.size(), (0, 0));
    b.shared.failing.store(false, Ordering::Relaxed);
    b.accept_all();
    b.open().await.unwrap();
    assert_eq!(b.dials(), 2);
    assert_eq!(b.pool.size().0, 1);
}

/// The dial belongs to no caller: it ends for those who still wait.
#[tokio::test]
async fn who_dialled_may_leave_before_the_dial_ends() {
    let mut b = bench();
    b.accept_all();
    b.shared.held.store(true, Ordering::Relaxed);
    let pool = b.pool.clone();
    let first =
        tokio::spawn(async move { pool.open(&KEY, || connect_to(DESTINATION)).await.map(drop) });
    while b.dials() == 0 {
        tokio::task::yield_now().await;
    }
    let (second, ()) = tokio::join!(b.open(), async {
        first.abort();
        b.shared.held.store(false, Ordering::Relaxed);
        b.shared.release.notify_waiters();
    });
    drop(first.await);
    let _held = second.unwrap();
    assert_eq!((b.dials(), b.pool.size()), (1, (1, 1)));
}

#[tokio::test]
async fn a_cancelled_caller_leaves_nothing_counted() {
    let mut b = bench();
    let pool = b.pool.clone();
    let caller =
        tokio::spawn(async move { pool.open(&KEY, || connect_to(DESTINATION)).await.map(drop) });
    let mut server = b.server().await;
    // Asked for, and not answered.
    let unanswered = next(&mut server).await;
    assert_eq!(b.pool.size(), (1, 1));
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    assert_eq!(b.pool.size(), (1, 0));
    // The server is told: its end of the stream is an error, before or after it answers.
    if let Ok((_send, mut receive)) = unanswered.accept(None) {
        assert!(receive.data().await.expect("an error, not an end").is_err());
    }
    // Nor does one that is cancelled while it waits for a dial.
    b.pool.sweep(Instant::now() + IDLE);
    b.shared.held.store(true, Ordering::Relaxed);
    assert!(b.open().now_or_never().is_none());
    b.shared.failing.store(true, Ordering::Relaxed);
    b.shared.held.store(false, Ordering::Relaxed);
    b.shared.release.notify_waiters();
    assert!(b.open().await.is_err());
    b.pool.sweep(Instant::now());
    assert_eq!(b.pool.size(), (0, 0));
}

#[tokio::test]
async fn a_connection_told_to_go_away_is_replaced() {
    let mut b = bench();
    let (opened, served) = tokio::join!(b.pool.open(&KEY, || connect_to(DESTINATION)), async {
        let mut server = b.servers.recv().await.unwrap();
        let stream = next(&mut server).await.accept(None).unwrap();
        (server, stream)
    });
    let ((mut stream, lease), (server, mut far)) = (opened.unwrap(), served);
    b.accept_all();
    server.drain.send(true).unwrap();
    // None fails, whether it comes before the GOAWAY, between its two halves, or after.
    for _ in 0..50 {
        b.open().await.unwrap();
    }
    // What was open goes on.
    echo((&mut stream.send, &mut stream.receive), (&mut far.0, &mut far.1), 100_000).await;
    let (_held, ()) = (b.open().await.unwrap(), ());
    assert_eq!(b.dials(), 2, "one replacement is enough");
    drop((stream, lease, far));
    b.pool.sweep(Instant::now());
    // It ends; whether the client's close or the server's farewell comes first is a race.
    let _ = server.ended.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_broke_is_replaced() {
    let mut b = bench();
    b.accept_all();
    for round in 1..=5 {
        let (mut stream, _lease) = b.open().await.unwrap();
        assert_eq!(b.dials(), round);
        for driver in b.shared.drivers.lock().unwrap().drain(..) {
            driver.abort();
        }
        assert!(stream.receive.data().await.is_none_or(|chunk| chunk.is_err()));
    }
}

/// The server leaves without a word, again and again: no caller sees it.
#[tokio::test]
async fn servers_that_come_and_go_fail_no_caller() {
    let mut b = bench();
    for round in 1..=5 {
        let (opened, server) = tokio::join!(b.pool.open(&KEY, || connect_to(DESTINATION)), async {
            let mut server = b.servers.recv().await.unwrap();
            drop(next(&mut server).await.accept(None).unwrap());
            server
        });
        drop(opened.unwrap());
        assert_eq!(b.dials(), round);
        server.ended.abort();
        drop(server.ended.await);
    }
}

#[tokio::test]
async fn a_newer_certificate_makes_new_connections_and_leaves_the_old_its_streams() {
    let mut b = bench();
    b.accept_all();
    b.shared.generation.store(1, Ordering::Relaxed);
    let old = b.open().await.unwrap();
    b.shared.generation.store(2, Ordering::Relaxed);
    let new = b.open().await.unwrap();
    assert_eq!((b.dials(), b.pool.size()), (2, (2, 2)));
    b.pool.sweep(Instant::now());
    assert_eq!(b.pool.size(), (2, 2), "the old one carries a stream");
    drop(old);
    b.pool.sweep(Instant::now());
    assert_eq!(b.pool.size(), (1, 1), "the old one is retired and empty");
    drop(new);
}

/// Whatever has become of its own certificate, the peer's ends.
#[tokio::test]
async fn what_will_end_soon_takes_nothing_new() {
    let left = Duration::from_secs(8);
    let mut b = bench_for(left);
    b.accept_all();
    let begun = Instant::now();
    let old = b.open().await.unwrap();
    let same = b.open().await.unwrap();
    assert_eq!(b.dials(), 1);
    assert!(old.1.fresh_until <= begun + left / 2 + Duration::from_secs(1));
    while b.dials() == 1 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(b.open().await.unwrap());
    }
    assert!(Instant::now() >= old.1.fresh_until);
    // It still carries what it carried.
    assert_eq!(b.pool.size(), (2, 2));
    drop((old, same));
}

/// The certificate is renewed while the connection is made: who asked under the old one is served
/// by it, and so is who asks under the new one.
#[tokio::test]
async fn a_renewal_during_a_dial_wastes_nothing() {
    let mut b = bench();
    b.accept_all();
    b.shared.held.store(true, Ordering::Relaxed);
    let (opened, ()) = tokio::join!(b.open(), async {
        b.shared.generation.store(1, Ordering::Relaxed);
        b.shared.held.store(false, Ordering::Relaxed);
        b.shared.release.notify_waiters();
    });
    let _held = opened.unwrap();
    let _second = b.open().await.unwrap();
    assert_eq!((b.dials(), b.pool.size()), (1, (1, 2)));
}

#[tokio::test]
async fn keys_share_nothing() {
    let mut b = bench();
    b.accept_all();
    let _one = b.pool.open(&"reviews", || connect_to(DESTINATION)).await.unwrap();
    let (mut other, _lease) = b.pool.open(&"ratings", || connect_to(DESTINATION)).await.unwrap();
    assert_eq!((b.dials(), b.pool.size()), (2, (2, 2)));
    // The last task to be spawned drives the connection of the second.
    b.shared.drivers.lock().unwrap().pop().unwrap().abort();
    assert!(other.receive.data().await.is_none_or(|chunk| chunk.is_err()));
    assert_eq!(b.pool.size(), (1, 1));
}
