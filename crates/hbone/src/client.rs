//! The client's end of one HBONE connection.

use crate::{
    ANSWER_TIMEOUT, HANDSHAKE_TIMEOUT, PING_INTERVAL, PING_TIMEOUT, WINDOWS,
    transport::{Outlet, Transport, transport},
};
use bytes::Bytes;
use h2::{
    Ping, PingPong, RecvStream, SendStream,
    client::{Builder, Connection, SendRequest},
};
use http::{Request, StatusCode};
use identity::{Certified, PeerCertError, SpiffeId, peer_identity};
use rustls::pki_types::ServerName;
use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Who may answer.
#[derive(Clone, Debug)]
pub struct Expected(pub Vec<SpiffeId>);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    #[error("the handshake did not end within {HANDSHAKE_TIMEOUT:?}")]
    Timeout,
    #[error("the peer did not agree on HTTP/2 (ALPN h2)")]
    Alpn,
    #[error(transparent)]
    PeerCert(#[from] PeerCertError),
    #[error("the peer is {got}, where {expected:?} was expected")]
    OtherIdentity { got: SpiffeId, expected: Vec<SpiffeId> },
    #[error("the HTTP/2 handshake failed: {0}")]
    Handshake(#[source] h2::Error),
    #[error("the peer refused the stream: {0}")]
    Stream(#[source] h2::Error),
    #[error("the peer did not answer the CONNECT within {ANSWER_TIMEOUT:?}")]
    Unanswered,
    #[error("the peer answered {0}")]
    Refused(StatusCode),
}

/// A connection on which streams may be opened. Cheap to clone.
#[derive(Clone)]
pub struct ClientConnection {
    requests: SendRequest<Bytes>,
    pub peer: SpiffeId,
    /// Half of the time that its certificates had left: what is begun later may be cut off soon.
    pub fresh_until: std::time::Instant,
}

/// One stream, open to the destination.
pub struct ClientStream {
    pub send: SendStream<Bytes>,
    pub receive: RecvStream,
    /// The response's headers: `baggage` of the other end.
    pub response: http::response::Parts,
}

/// Performs both handshakes over `io`. The second value drives the connection; it ends with the
/// connection, or no later than the certificates that made it.
pub async fn handshake<T>(
    io: T,
    certified: &Certified,
    expected: &Expected,
) -> Result<(ClientConnection, impl Future<Output = ()> + Send + use<T>, SystemTime), ClientError>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    timeout(HANDSHAKE_TIMEOUT, async {
        // No name is sent (INTEROP: no SNI); rustls wants one all the same.
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
        let tls = TlsConnector::from(Arc::clone(&certified.client))
            .connect(name, io)
            .await
            .map_err(ClientError::Tls)?;
        let (peer, not_after) = check_peer(&tls, expected)?;
        let (io, session) = tls.into_inner();
        let (transport, outlet) = transport(io, session);
        let (requests, connection) = Builder::new()
            .initial_window_size(WINDOWS.stream)
            .initial_connection_window_size(WINDOWS.connection())
            .max_frame_size(WINDOWS.frame)
            .max_header_list_size(WINDOWS.headers)
            .max_send_buffer_size(WINDOWS.send_buffer)
            .initial_max_send_streams(WINDOWS.streams as usize)
            .max_concurrent_reset_streams(crate::server::REMEMBERED_RESETS)
            .enable_push(false)
            .handshake::<_, Bytes>(transport)
            .await
            .map_err(ClientError::Handshake)?;
        let ends = certified.not_after.min(not_after);
        let left = ends.duration_since(SystemTime::now()).unwrap_or_default();
        let fresh_until = std::time::Instant::now() + left / 2;
        let client = ClientConnection { requests, peer, fresh_until };
        Ok((client, drive(connection, outlet, ends), ends))
    })
    .await
    .map_err(|_| ClientError::Timeout)?
}

fn check_peer<T>(
    tls: &TlsStream<T>,
    expected: &Expected,
) -> Result<(SpiffeId, SystemTime), ClientError> {
    let (_, session) = tls.get_ref();
    if session.alpn_protocol() != Some(b"h2") {
        return Err(ClientError::Alpn);
    }
    let (got, not_after) = peer_identity(session.peer_certificates())?;
    if !expected.0.contains(&got) {
        return Err(ClientError::OtherIdentity { got, expected: expected.0.clone() });
    }
    Ok((got, unix(not_after)))
}

pub(crate) fn unix(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

async fn drive<T>(
    mut connection: Connection<Transport<T>, Bytes>,
    outlet: Outlet<T>,
    ends: SystemTime,
) where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let ping = connection.ping_pong();
    let driven = poll_fn(|cx| outlet.drive(cx, |cx| Pin::new(&mut connection).poll(cx)));
    tokio::select! {
        ended = driven => if let Err(error) = ended {
            tracing::debug!(%error, "HBONE connection ended");
        },
        () = keep_alive(ping) => tracing::info!("an HBONE peer no longer answers"),
        () = until(ends) => tracing::info!("an HBONE connection's certificate has expired"),
    }
}

/// Ends when the peer leaves a ping unanswered.
pub(crate) async fn keep_alive(ping: Option<PingPong>) {
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        sleep(PING_INTERVAL).await;
        match timeout(PING_TIMEOUT, ping.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection itself reports why it ended.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// Sleeps until the clock on the wall reaches `moment`, even if somebody sets it.
pub(crate) async fn until(moment: SystemTime) {
    loop {
        match moment.duration_since(SystemTime::now()) {
            Ok(left) if !left.is_zero() => {
                sleep_until(Instant::now() + left.min(Duration::from_secs(30))).await;
            }
            _ => return,
        }
    }
}

impl ClientConnection {
    /// How many streams the peer takes at once, as far as it has said.
    pub fn stream_limit(&self) -> usize {
        self.requests.current_max_send_streams().min(WINDOWS.streams as usize)
    }

    /// Opens a stream and waits for the answer, though not for ever.
    pub async fn open(&self, request: Request<()>) -> Result<ClientStream, ClientError> {
        timeout(ANSWER_TIMEOUT, self.open_unhurried(request))
            .await
            .map_err(|_| ClientError::Unanswered)?
    }

    async fn open_unhurried(&self, request: Request<()>) -> Result<ClientStream, ClientError> {
        let mut requests = self.requests.clone().ready().await.map_err(ClientError::Stream)?;
        let (response, send) =
            requests.send_request(request, false).map_err(ClientError::Stream)?;
        let mut guard = ResetOnDrop(Some(send));
        let (parts, receive) = response.await.map_err(ClientError::Stream)?.into_parts();
        if parts.status != StatusCode::OK {
            return Err(ClientError::Refused(parts.status));
        }
        match guard.0.take() {
            Some(send) => Ok(ClientStream { send, receive, response: parts }),
            None => Err(ClientError::Refused(parts.status)),
        }
    }
}

/// A caller that gives up waiting leaves no stream behind.
struct ResetOnDrop(Option<SendStream<Bytes>>);

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if let Some(mut send) = self.0.take() {
            send.send_reset(h2::Reason::CANCEL);
        }
    }
}
