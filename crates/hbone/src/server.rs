//! The server's end of one HBONE connection.

use crate::{
    Authority, HANDSHAKE_TIMEOUT, WINDOWS,
    client::{keep_alive, unix, until},
    transport::{Outlet, Transport, transport},
};
use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    server::{Builder, Connection, SendResponse},
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use identity::{PeerCertError, SpiffeId, peer_identity};
use rustls::ServerConfig;
use std::{future::poll_fn, io, sync::Arc, time::SystemTime};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// Streams that were reset lately and are remembered, so that what is still under way for them is
/// no offence: as many as can be open, twice.
pub(crate) const REMEMBERED_RESETS: usize = 2 * WINDOWS.streams as usize;

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("the TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    #[error("the handshake did not end within {HANDSHAKE_TIMEOUT:?}")]
    Timeout,
    #[error("the client did not agree on HTTP/2 (ALPN h2)")]
    Alpn,
    #[error(transparent)]
    PeerCert(#[from] PeerCertError),
    #[error("HTTP/2: {0}")]
    H2(#[from] h2::Error),
}

/// A client whose identity is proven, and the streams it opens.
pub struct ServerConnection<T> {
    connection: Connection<Transport<T>, Bytes>,
    outlet: Outlet<T>,
    pub peer: SpiffeId,
    ends: SystemTime,
}

/// A CONNECT that has been read and not yet answered.
pub struct InboundStream {
    pub authority: Authority,
    pub headers: HeaderMap,
    receive: RecvStream,
    respond: SendResponse<Bytes>,
}

/// Performs both handshakes over `io`.
pub async fn accept<T>(io: T, config: Arc<ServerConfig>) -> Result<ServerConnection<T>, ServerError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    timeout(HANDSHAKE_TIMEOUT, async {
        let tls = TlsAcceptor::from(config).accept(io).await.map_err(ServerError::Tls)?;
        let (_, session) = tls.get_ref();
        if session.alpn_protocol() != Some(b"h2") {
            return Err(ServerError::Alpn);
        }
        let (peer, not_after) = peer_identity(session.peer_certificates())?;
        let (io, session) = tls.into_inner();
        let (transport, outlet) = transport(io, session);
        let connection = Builder::new()
            .initial_window_size(WINDOWS.stream)
            .initial_connection_window_size(WINDOWS.connection())
            .max_frame_size(WINDOWS.frame)
            .max_header_list_size(WINDOWS.headers)
            .max_send_buffer_size(WINDOWS.send_buffer)
            .max_concurrent_streams(WINDOWS.streams)
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .max_pending_accept_reset_streams(32)
            .handshake(transport)
            .await?;
        Ok(ServerConnection { connection, outlet, peer, ends: unix(not_after) })
    })
    .await
    .map_err(|_| ServerError::Timeout)?
}

impl<T> ServerConnection<T>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    /// Hands each stream to `serve` until the connection ends, or no later than the client's
    /// certificate. When `draining` turns true the client is told to go away, and what is open
    /// finishes.
    pub async fn run(
        mut self,
        mut draining: watch::Receiver<bool>,
        mut serve: impl FnMut(InboundStream),
    ) -> Result<(), ServerError> {
        let ping = self.connection.ping_pong();
        let alive = keep_alive(ping);
        let expired = until(self.ends);
        tokio::pin!(alive, expired);
        let mut told = false;
        loop {
            let next = tokio::select! {
                next = poll_fn(|cx| self.outlet.drive(cx, |cx| self.connection.poll_accept(cx))) => next,
                () = &mut alive => {
                    tracing::info!(peer = %self.peer, "an HBONE client no longer answers");
                    return Ok(());
                }
                () = &mut expired => {
                    tracing::info!(peer = %self.peer, "an HBONE client's certificate has expired");
                    return Ok(());
                }
                changed = draining.wait_for(|d| *d), if !told => {
                    if changed.is_ok() {
                        self.connection.graceful_shutdown();
                    }
                    told = true;
                    continue;
                }
            };
            match next {
                Some(Ok((request, respond))) => {
                    if let Some(stream) = read_connect(request, respond) {
                        serve(stream);
                    }
                }
                Some(Err(e)) => return Err(e.into()),
                None => return Ok(()),
            }
        }
    }
}

/// A plain CONNECT with an authority; anything else is answered 400 or 405 here.
fn read_connect(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) -> Option<InboundStream> {
    let (parts, receive) = request.into_parts();
    let refuse = |mut respond: SendResponse<Bytes>, status| {
        refuse_with(&mut respond, status);
        None
    };
    if parts.method != Method::CONNECT {
        return refuse(respond, StatusCode::METHOD_NOT_ALLOWED);
    }
    // Extended CONNECT (RFC 8441) and requests with a path are not HBONE.
    if parts.extensions.get::<h2::ext::Protocol>().is_some()
        || parts.uri.path_and_query().is_some_and(|p| p.as_str() != "/" && !p.as_str().is_empty())
    {
        return refuse(respond, StatusCode::BAD_REQUEST);
    }
    let Some(Ok(authority)) = parts.uri.authority().map(|a| a.as_str().parse::<Authority>()) else {
        return refuse(respond, StatusCode::BAD_REQUEST);
    };
    Some(InboundStream { authority, headers: parts.headers, receive, respond })
}

fn refuse_with(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // Fails when the stream is gone, and then nobody waits for an answer. The unread body ends with
    // the handle: h2 resets the stream with NO_ERROR (RFC 9113, section 8.1).
    let _ = respond.send_response(response, true);
}

impl InboundStream {
    pub fn refuse(mut self, status: StatusCode) {
        refuse_with(&mut self.respond, status);
    }

    /// Ends when the client has reset the stream: then nobody waits for an answer.
    pub async fn abandoned(&mut self) {
        // An error is the end of the connection, and so of the stream.
        let _ = std::future::poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }

    /// Answers 200 and opens the stream.
    pub fn accept(
        mut self,
        baggage: Option<String>,
    ) -> Result<(SendStream<Bytes>, RecvStream), h2::Error> {
        let mut response = Response::new(());
        if let Some(value) = baggage.and_then(|b| b.parse().ok()) {
            response.headers_mut().insert("baggage", value);
        }
        let send = self.respond.send_response(response, false)?;
        Ok((send, self.receive))
    }
}
