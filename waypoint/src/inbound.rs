//! What comes over HBONE: the peer's identity, the original destination, and inside the stream HTTP
//! or bytes.

use crate::{
    body::{BoxError, Received},
    doors::Admitted,
    http::{self as request, Came, Downstream},
    http2, interim,
    proxy::{PATIENCE, Proxy},
    tcp,
    upstream::{self, Resets},
};
use futures_util::{TryFutureExt as _, future::BoxFuture};
use hbone::{Authority, InboundStream, StreamIo};
use http::StatusCode;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use identity::SpiffeId;
use routes::proto::Protocol;
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// How long a client may take to show what it speaks, where the port does not say.
pub const DETECTION: Duration = Duration::from_secs(5);

/// How long a request's head may take to come.
pub const HEAD: Duration = Duration::from_secs(30);

/// Bytes of a request's head: of HTTP/1 in all, of HTTP/2 decoded.
const HEAD_BYTES: u32 = 64 * 1024;

/// Header fields of a request.
const HEADERS: usize = 128;

pub async fn listen(proxy: Arc<Proxy>, listener: TcpListener) {
    let mut draining = proxy.draining.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = draining.wait_for(|d| *d) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(admitted) = admit(&proxy, &stream, peer) else { continue };
                let connection = connection(proxy.clone(), stream, peer);
                tokio::spawn(async move {
                    connection.await;
                    drop(admitted);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: connections wait in the backlog meanwhile.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// A place for a connection; without one it is reset.
pub fn admit(proxy: &Proxy, stream: &TcpStream, peer: SocketAddr) -> Option<Admitted> {
    let admitted = proxy.doors.admit(peer.ip());
    if admitted.is_none() {
        tracing::debug!(%peer, "refused: too many connections (--max-connections)");
        let _ = stream.set_zero_linger();
    }
    admitted
}

async fn connection(proxy: Arc<Proxy>, stream: TcpStream, peer: SocketAddr) {
    upstream::tune(&stream);
    let certified = match proxy.certs.fetch(&proxy.identity, PATIENCE).await {
        Ok(c) => c,
        Err(why) => {
            tracing::warn!(%peer, %why, "HBONE connection refused");
            let _ = stream.set_zero_linger();
            return;
        }
    };
    let connection = match Box::pin(hbone::accept(stream, certified.server.clone())).await {
        Ok(c) => c,
        Err(error) => {
            tracing::warn!(%peer, %error, "HBONE handshake failed");
            return;
        }
    };
    let identity = connection.peer.clone();
    let ended = connection.run(proxy.draining.clone(), |stream| {
        tokio::spawn(one_stream(proxy.clone(), identity.clone(), peer, stream));
    });
    if let Err(error) = ended.await {
        tracing::debug!(%peer, %error, "HBONE connection ended");
    }
}

async fn one_stream(
    proxy: Arc<Proxy>,
    identity: SpiffeId,
    peer: SocketAddr,
    mut stream: InboundStream,
) {
    let client = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let ready = tokio::select! {
        ready = proxy.is_ready() => ready,
        () = stream.abandoned() => return,
    };
    let Some(own) = proxy.own().filter(|_| ready) else {
        tracing::warn!(%client, "refused: discovery has not answered yet, or has no record of this proxy");
        stream.refuse(StatusCode::SERVICE_UNAVAILABLE);
        return;
    };
    let asked = match &stream.authority {
        Authority::Address(asked) => SocketAddr::new(asked.ip().to_canonical(), asked.port()),
        other => {
            tracing::warn!(%client, authority = %other, "refused: an authority is an address and a port");
            stream.refuse(StatusCode::BAD_REQUEST);
            return;
        }
    };
    let Some(service) = proxy.mesh.service_at(&own, asked.ip()) else {
        tracing::warn!(%client, %asked, "refused: it is no service's address");
        stream.refuse(StatusCode::NOT_FOUND);
        return;
    };
    let table = proxy.tables.host(&service.key);
    let Some(protocol) = table.as_ref().and_then(|t| t.port(asked.port())).map(|p| p.protocol)
    else {
        tracing::warn!(%client, service = %service.key, port = asked.port(),
            "refused: this proxy has no routes for it");
        stream.refuse(StatusCode::SERVICE_UNAVAILABLE);
        return;
    };
    // A certificate says who; an address that has another identity is not that workload's.
    let at = proxy.clients.workload(&proxy.mesh, &own.network, client.ip()).await;
    let workload = at.filter(|w| w.identity().is_ok_and(|id| id == identity));
    let downstream = Downstream {
        peer: Some(identity),
        client,
        workload,
        asked,
        came: Came::ToService(service),
        own,
        http2: false,
    };
    let Ok((send, receive)) = stream.accept(Some(proxy.baggage())) else { return };
    serve(proxy, downstream, StreamIo::new(send, receive), protocol).await;
}

/// HTTP or bytes, as the port says or the first bytes show.
async fn serve(
    proxy: Arc<Proxy>,
    mut downstream: Downstream,
    mut io: StreamIo,
    protocol: Protocol,
) {
    let (first, http) = match protocol {
        Protocol::Tcp | Protocol::Tls => (Vec::new(), None),
        known => {
            // A port that is said to be HTTP has nothing else on it, however long that is silent: what it is silent
            // about would go by unjudged.
            let said = matches!(known, Protocol::Http1 | Protocol::Http2 | Protocol::Grpc);
            let patience = if said { HEAD } else { DETECTION };
            let mut first = Vec::new();
            match tokio::time::timeout(patience, shown(&mut io, &mut first)).await {
                Ok(Ok(shown)) => (first, shown.or(said.then_some(false))),
                Ok(Err(_)) => return,
                Err(_) if said => {
                    tracing::debug!(client = %downstream.client, "no request within {patience:?}");
                    return;
                }
                // A client that waits for the server to speak speaks no HTTP.
                Err(_) => (first, None),
            }
        }
    };
    match http {
        Some(http2) => {
            downstream.http2 = http2;
            let io: Box<dyn Io> = Box::new(io);
            serve_http(proxy, Arc::new(downstream), Prefixed::new(first, io)).await;
        }
        None => {
            let mut io = Prefixed::new(first, io);
            let name = if protocol == Protocol::Tls { tcp::hello(&mut io).await } else { None };
            Box::pin(tcp::serve(proxy, downstream, io, name)).await;
        }
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads the first bytes, and says what they are: HTTP/2, HTTP/1, or neither.
pub async fn shown(
    io: &mut (impl AsyncRead + Unpin),
    first: &mut Vec<u8>,
) -> io::Result<Option<bool>> {
    let mut buffer = [0; 64];
    loop {
        let n = io.read(&mut buffer).await?;
        first.extend_from_slice(buffer.get(..n).unwrap_or_default());
        if let Some(shown) = looks_like(first) {
            return Ok(shown);
        }
        if n == 0 {
            return Ok(None);
        }
    }
}

/// None: too few bytes to tell.
#[allow(clippy::option_option)]
fn looks_like(first: &[u8]) -> Option<Option<bool>> {
    if first.starts_with(PREFACE) {
        return Some(Some(true));
    }
    if PREFACE.starts_with(first) {
        return None;
    }
    // A method is letters, then comes a space.
    let letters = first.iter().take_while(|b| b.is_ascii_uppercase() || **b == b'-').count();
    match first.get(letters) {
        Some(b' ') if letters > 0 => Some(Some(false)),
        None if letters <= 24 => None,
        _ => Some(None),
    }
}

/// Whatever HTTP comes by. Boxed, so that there is one program for all of them: the
/// larger part of hyper's and h2's text is made for the type that they read from.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<I: AsyncRead + AsyncWrite + Unpin + Send> Io for I {}

pub async fn serve_http(proxy: Arc<Proxy>, downstream: Arc<Downstream>, io: Prefixed<Box<dyn Io>>) {
    let (http2, draining) = (downstream.http2, proxy.draining.clone());
    let answer = move |r| request::serve(proxy.clone(), downstream.clone(), r);
    // In a box, or a connection of either version would be as large as the larger.
    let serving: BoxFuture<'_, Result<(), BoxError>> = if http2 {
        Box::pin(http2::server::serve(io, HEAD_BYTES, draining, answer).map_err(Into::into))
    } else {
        let io = interim::Beneath::new(io);
        let interim = io.answers();
        let service = service_fn(move |mut r: http::Request<Incoming>| {
            let open = interim.open(&mut r);
            let answer = answer(r.map(Received::Http1));
            async move {
                let answer = answer.await;
                drop(open);
                Ok::<_, Infallible>(answer)
            }
        });
        let connection = http1().serve_connection(TokioIo::new(io), service).with_upgrades();
        Box::pin(drained(draining, connection, |c| c.graceful_shutdown()).map_err(Into::into))
    };
    if let Err(error) = serving.await {
        tracing::debug!(%error, "a connection of HTTP ended");
    }
}

/// How HTTP/1 is taken.
pub fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES as usize)
        .max_headers(HEADERS)
        .half_close(true);
    builder
}

/// Until it ends; from a drain on, with what is under way and nothing new.
async fn drained<F>(
    mut draining: watch::Receiver<bool>,
    connection: F,
    shut: impl Fn(Pin<&mut F>),
) -> F::Output
where
    F: Future,
{
    tokio::pin!(connection);
    tokio::select! {
        ended = &mut connection => return ended,
        _ = draining.wait_for(|d| *d) => shut(connection.as_mut()),
    }
    connection.await
}

/// A stream whose first bytes have been looked at.
pub struct Prefixed<I> {
    pub first: Vec<u8>,
    at: usize,
    io: I,
    /// Bytes that have been read, and written.
    pub moved: (u64, u64),
}

impl<I: AsyncRead + Unpin> AsyncRead for Prefixed<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let left = this.first.get(this.at..).unwrap_or_default();
        if !left.is_empty() {
            let n = left.len().min(buf.remaining());
            buf.put_slice(left.get(..n).unwrap_or_default());
            this.at += n;
            this.moved.0 += n as u64;
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        this.moved.0 += buf.filled().len().saturating_sub(before) as u64;
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Prefixed<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = &written {
            this.moved.1 += *n as u64;
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

impl<I: Resets> Resets for Prefixed<I> {
    fn resets(&self, yes: bool) {
        self.io.resets(yes);
    }
}

impl<I: AsyncRead + Unpin> Prefixed<I> {
    pub fn new(first: Vec<u8>, io: I) -> Self {
        Self { first, at: 0, io, moved: (0, 0) }
    }

    /// Reads more into what has been looked at.
    pub async fn peek_more(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 4096];
        let n = self.io.read(&mut buffer).await?;
        self.first.extend_from_slice(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::looks_like;

    #[test]
    fn the_first_bytes_show_what_it_is() {
        for (first, shown) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Some(false))),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Some(true))),
            (b"PRI * HT", None),
            (b"PRINT ", Some(Some(false))),
            (b"GE", None),
            (b"", None),
            (b"\x16\x03\x01", Some(None)),
            (b"SSH-2.0-OpenSSH", Some(None)),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Some(None)),
        ] {
            assert_eq!(looks_like(first), shown, "{first:?}");
        }
    }
}
