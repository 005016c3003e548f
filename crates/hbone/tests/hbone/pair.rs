//! Two ends of one connection, and what tests do with a stream.

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use hbone::{
    ClientConnection, ClientError, ClientStream, Expected, InboundStream, ServerError, accept,
    handshake,
};
use http::{Method, Request};
use identity::Certified;
use scripted::pki::Pki;
use std::{future::poll_fn, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, duplex},
    sync::{mpsc, watch},
    task::JoinHandle,
};

/// Bytes on their way between the two ends: more than a window, so that windows decide.
pub const WIRE: usize = 1024 * 1024;

pub struct Pair {
    pub client: ClientConnection,
    pub server: Server,
    pub driver: JoinHandle<()>,
}

/// The server's end: the streams it is handed, and how it ends.
pub struct Server {
    pub streams: mpsc::UnboundedReceiver<InboundStream>,
    pub ended: JoinHandle<Result<(), ServerError>>,
    pub drain: watch::Sender<bool>,
}

pub async fn pair() -> Pair {
    let pki = Pki::new("cluster.local");
    pair_of(&pki.certified("client"), &pki.certified("server")).await
}

pub async fn pair_of(client: &Certified, server: &Arc<Certified>) -> Pair {
    let (near, far) = duplex(WIRE);
    let server_end = serve(far, server);
    let (client, driver) = connect(near, client, server).await.unwrap();
    Pair { client, server: server_end, driver }
}

pub async fn connect(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    client: &Certified,
    server: &Certified,
) -> Result<(ClientConnection, JoinHandle<()>), ClientError> {
    let expected = Expected(vec![server.identity.clone()]);
    let (connection, driver, _) = handshake(io, client, &expected).await?;
    Ok((connection, tokio::spawn(driver)))
}

pub fn serve(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    certified: &Arc<Certified>,
) -> Server {
    let (tx, streams) = mpsc::unbounded_channel();
    let (drain, draining) = watch::channel(false);
    let config = certified.server.clone();
    let ended = tokio::spawn(async move {
        // A test that no longer takes streams has dropped its end.
        accept(io, config).await?.run(draining, |s| drop(tx.send(s))).await
    });
    Server { streams, ended, drain }
}

pub fn raw_pair() -> (DuplexStream, DuplexStream) {
    duplex(WIRE)
}

pub fn connect_to(authority: &str) -> Request<()> {
    Request::builder().method(Method::CONNECT).uri(authority).body(()).unwrap()
}

pub const DESTINATION: &str = "10.0.0.2:9080";

impl Pair {
    /// A stream, by both its ends.
    pub async fn open(&mut self) -> (ClientStream, (SendStream<Bytes>, RecvStream)) {
        let (client, server) = tokio::join!(self.client.open(connect_to(DESTINATION)), async {
            self.server.streams.recv().await.unwrap().accept(None).unwrap()
        });
        (client.unwrap(), server)
    }
}

/// Sends all of `data`, as the peer's credit allows.
pub async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = poll_fn(|cx| stream.poll_capacity(cx)).await.expect("the stream is open")?;
        stream.send_data(data.split_to(room.min(data.len())), false)?;
    }
    Ok(())
}

/// Reads exactly `n` bytes, and gives their credit back.
pub async fn receive(stream: &mut RecvStream, n: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < n {
        let chunk = stream.data().await.expect("more data").unwrap();
        stream.flow_control().release_capacity(chunk.len()).unwrap();
        got.extend_from_slice(&chunk);
    }
    got
}

/// The stream's direction has ended, cleanly and with nothing left in it.
pub async fn assert_ended(stream: &mut RecvStream) {
    while let Some(chunk) = stream.data().await {
        assert!(chunk.unwrap().is_empty(), "more data");
    }
    assert!(stream.is_end_stream());
}

/// Bytes that differ by position, so that a loss or a swap shows.
pub fn pattern(n: usize) -> Bytes {
    (0..n).map(|i| u8::try_from(i * 31 % 251).unwrap()).collect()
}

/// `n` bytes one way while the same come back.
pub async fn echo(
    near: (&mut SendStream<Bytes>, &mut RecvStream),
    far: (&mut SendStream<Bytes>, &mut RecvStream),
    n: usize,
) {
    let data = pattern(n);
    let there = async {
        let mut left = n;
        while left > 0 {
            let chunk = far.1.data().await.expect("more data").unwrap();
            far.1.flow_control().release_capacity(chunk.len()).unwrap();
            left -= chunk.len();
            send(far.0, chunk).await.unwrap();
        }
    };
    let ((), sent, back) = tokio::join!(there, send(near.0, data.clone()), receive(near.1, n));
    sent.unwrap();
    assert!(back == data, "what came back differs");
}
