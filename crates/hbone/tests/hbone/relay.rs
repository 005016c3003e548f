//! From a client's socket to a server's, through two relays and a stream: what TCP says at one end
//! is what the other end hears.

use crate::pair::{Pair, pair, pattern};
use hbone::{Broken, End, Relayed, Side, WINDOWS, relay};
use std::{
    io::ErrorKind,
    sync::{Arc, atomic::Ordering},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// An application's connection to another, through the mesh.
struct Tunnel {
    client: TcpStream,
    server: TcpStream,
    outbound: Relay,
    inbound: Relay,
    pair: Pair,
}

struct Relay {
    task: JoinHandle<Result<(), Broken>>,
    counters: Arc<Relayed>,
}

impl Relay {
    fn start(first: End, second: End) -> Self {
        let counters = Arc::new(Relayed::default());
        Relay { task: tokio::spawn(relay(first, second, counters.clone())), counters }
    }
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

async fn tunnel() -> Tunnel {
    let mut pair = pair().await;
    let (near, far) = pair.open().await;
    let (client, captured) = sockets().await;
    let (delivered, server) = sockets().await;
    Tunnel {
        client,
        server,
        outbound: Relay::start(End::Tcp(captured), End::H2(near.send, near.receive)),
        inbound: Relay::start(End::H2(far.0, far.1), End::Tcp(delivered)),
        pair,
    }
}

/// Reads what there is, and how it ends.
async fn read_to_end(s: &mut TcpStream) -> (usize, std::io::Result<()>) {
    let mut n = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match s.read(&mut buffer).await {
            Ok(0) => return (n, Ok(())),
            Ok(read) => n += read,
            Err(e) => return (n, Err(e)),
        }
    }
}

async fn assert_reset(s: &mut TcpStream) {
    let (_, end) = read_to_end(s).await;
    let error = end.expect_err("a reset came through as a clean end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn bytes_both_ways_are_counted() {
    let mut t = tunnel().await;
    let data = pattern(5_000_000);
    let (mut back, mut there) = (vec![0; 1_000_000], vec![0; data.len()]);
    let (a, b, c, d) = {
        let (mut client_read, mut client_write) = t.client.split();
        let (mut server_read, mut server_write) = t.server.split();
        tokio::join!(
            client_write.write_all(&data),
            server_read.read_exact(&mut there),
            server_write.write_all(&data[..1_000_000]),
            client_read.read_exact(&mut back),
        )
    };
    a.and(c).and(b.and(d)).unwrap();
    assert!(there == data && back == data[..1_000_000]);
    drop((t.client, t.server));
    for relay in [t.outbound, t.inbound] {
        relay.task.await.unwrap().unwrap();
        assert_eq!(relay.counters.forward.load(Ordering::Relaxed), 5_000_000);
        assert_eq!(relay.counters.backward.load(Ordering::Relaxed), 1_000_000);
    }
}

#[tokio::test]
async fn the_client_may_end_first() {
    let t = tunnel().await;
    half_close(t.client, t.server).await;
    t.outbound.task.await.unwrap().unwrap();
    t.inbound.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_server_may_end_first() {
    let t = tunnel().await;
    half_close(t.server, t.client).await;
    t.outbound.task.await.unwrap().unwrap();
    t.inbound.task.await.unwrap().unwrap();
}

async fn half_close(mut first: TcpStream, mut second: TcpStream) {
    first.write_all(b"question").await.unwrap();
    first.shutdown().await.unwrap();
    let mut question = Vec::new();
    second.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    // More than any buffer on the way holds.
    let answer = pattern(9_000_000);
    let mut got = Vec::new();
    let (wrote, read) = tokio::join!(
        async {
            second.write_all(&answer).await?;
            second.shutdown().await
        },
        first.read_to_end(&mut got)
    );
    wrote.unwrap();
    read.unwrap();
    assert!(got == answer);
}

#[tokio::test]
async fn a_reset_by_the_client_reaches_the_server() {
    let mut t = tunnel().await;
    t.client.write_all(b"half a mes").await.unwrap();
    t.server.read_exact(&mut [0; 10]).await.unwrap();
    t.client.set_zero_linger().unwrap();
    drop(t.client);
    assert_reset(&mut t.server).await;
    assert_eq!(t.outbound.task.await.unwrap().unwrap_err().side, Side::First);
    assert_eq!(t.inbound.task.await.unwrap().unwrap_err().side, Side::First);
}

#[tokio::test]
async fn a_reset_by_the_server_reaches_the_client() {
    let mut t = tunnel().await;
    t.server.write_all(b"half a mes").await.unwrap();
    t.client.read_exact(&mut [0; 10]).await.unwrap();
    t.server.set_zero_linger().unwrap();
    drop(t.server);
    assert_reset(&mut t.client).await;
    assert_eq!(t.inbound.task.await.unwrap().unwrap_err().side, Side::Second);
    assert_eq!(t.outbound.task.await.unwrap().unwrap_err().side, Side::Second);
}

/// The direction that has ended cleanly does not make the end of the other look clean.
#[tokio::test]
async fn a_reset_after_a_half_close_is_still_a_reset() {
    let mut t = tunnel().await;
    t.client.shutdown().await.unwrap();
    assert_eq!(t.server.read(&mut [0]).await.unwrap(), 0);
    t.server.write_all(b"half a mes").await.unwrap();
    t.client.read_exact(&mut [0; 10]).await.unwrap();
    t.server.set_zero_linger().unwrap();
    drop(t.server);
    assert_reset(&mut t.client).await;
}

#[tokio::test]
async fn a_relay_that_is_dropped_resets_both_ends() {
    for outbound in [true, false] {
        let mut t = tunnel().await;
        t.client.write_all(b"x").await.unwrap();
        t.server.read_exact(&mut [0]).await.unwrap();
        if outbound {
            t.outbound.task.abort()
        } else {
            t.inbound.task.abort()
        }
        assert_reset(&mut t.client).await;
        assert_reset(&mut t.server).await;
    }
}

#[tokio::test]
async fn a_connection_that_breaks_resets_both_ends() {
    let mut t = tunnel().await;
    t.client.write_all(b"x").await.unwrap();
    t.server.read_exact(&mut [0]).await.unwrap();
    t.pair.driver.abort();
    assert_reset(&mut t.client).await;
    assert_reset(&mut t.server).await;
}

/// What waits on the way, when the server does not read, is a window and what its own socket holds.
#[tokio::test]
async fn a_server_that_does_not_read_holds_the_client_back() {
    let mut t = tunnel().await;
    let Tunnel { client, server, outbound, inbound, pair } = &mut t;
    let writer = async {
        let chunk = vec![3; 64 * 1024];
        while client.write_all(&chunk).await.is_ok() {}
    };
    let observer = async {
        let mut last = (0, 0);
        let mut unchanged = 0;
        // Another stream's round trips are the clock: what has not moved in fifty of them is stuck.
        let (mut near, mut far) = pair.open().await;
        while unchanged < 50 {
            crate::pair::echo((&mut near.send, &mut near.receive), (&mut far.0, &mut far.1), 1000)
                .await;
            let now = (
                outbound.counters.forward.load(Ordering::Relaxed),
                inbound.counters.forward.load(Ordering::Relaxed),
            );
            unchanged = if now == last && now.0 > 0 { unchanged + 1 } else { 0 };
            last = now;
        }
        last
    };
    let (taken, delivered) = tokio::select! {
        seen = observer => seen,
        () = writer => panic!("the client's socket broke"),
    };
    assert!(taken - delivered <= u64::from(WINDOWS.stream), "{taken} taken, {delivered} delivered");
    let mut rest = vec![0; usize::try_from(taken).unwrap()];
    server.read_exact(&mut rest).await.unwrap();
    assert!(rest.iter().all(|b| *b == 3));
}
