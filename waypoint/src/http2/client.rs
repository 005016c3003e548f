//! Requests to an endpoint that speaks HTTP/2.

use super::Body;
use crate::{body::OutBody, interim::ToClient};
use bytes::Bytes;
use futures_util::task::noop_waker_ref;
use h2::{
    Reason,
    client::{Builder, SendRequest},
};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;

/// Bytes that an endpoint may send before they are read: on a stream, and on all of a connection.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// Bytes of an answer's head.
const HEAD_BYTES: u32 = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The connection takes no more.
    #[error(transparent)]
    Unsent(h2::Error),
    #[error(transparent)]
    Sent(#[from] h2::Error),
}

impl Failed {
    /// Whether nobody has looked at the request: refused, or begun after the last one that the endpoint
    /// takes (RFC 9113, section 8.7).
    pub fn is_unprocessed(&self) -> bool {
        match self {
            Self::Unsent(_) => true,
            Self::Sent(e) => {
                e.is_remote() && (e.is_go_away() || e.reason() == Some(Reason::REFUSED_STREAM))
            }
        }
    }
}

/// A connection for requests. It ends when nobody has it any more and the last of them is answered.
#[derive(Clone)]
pub struct Requests(SendRequest<Bytes>);

impl Requests {
    pub async fn connect<I>(io: I) -> Result<Self, h2::Error>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEAD_BYTES)
            .handshake(io)
            .await?;
        // No PINGs: servers of gRPC close connections on which there are more than one in five minutes, and
        // an end that is gone is noticed beneath.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self(send))
    }

    /// Whether the endpoint takes more.
    pub fn is_open(&mut self) -> bool {
        let polled = self.0.poll_ready(&mut Context::from_waker(noop_waker_ref()));
        !matches!(polled, Poll::Ready(Err(_)))
    }

    /// How many requests the endpoint takes at a time.
    pub fn at_a_time(&self) -> usize {
        self.0.current_max_send_streams()
    }

    /// One request, up to its answer's head. What is left of its body then is sent beside the answer.
    pub async fn ask(
        mut self,
        request: Request<OutBody>,
        interim: Option<ToClient>,
    ) -> Result<Response<Body>, Failed> {
        let (mut head, body) = request.into_parts();
        let means_something = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
        let length = body.size_hint().exact().filter(|n| *n > 0 || means_something);
        super::measured(&mut head.headers, length);
        let is_end = body.is_end_stream();
        let sent = self.0.send_request(Request::from_parts(head, ()), is_end);
        let (mut response, stream) = sent.map_err(Failed::Unsent)?;
        let mut sending = match is_end {
            true => None,
            false => Some(Box::pin(super::send(body, stream))),
        };
        let response = poll_fn(|cx| {
            // Taken even where nobody wants to hear of them: no window holds them back.
            while let Poll::Ready(Some(Ok(i))) = response.poll_informational(cx) {
                // There is none in HTTP/2 (RFC 9113, section 8.6).
                if i.status() == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Err(Reason::PROTOCOL_ERROR.into()));
                }
                if let Some(client) = &interim {
                    client.send(i.status(), i.headers());
                }
            }
            if let Poll::Ready(response) = Pin::new(&mut response).poll(cx) {
                return Poll::Ready(response);
            }
            if sending.as_mut().is_some_and(|s| s.as_mut().poll(cx).is_ready()) {
                sending = None;
            }
            Poll::Pending
        });
        let (head, from) = response.await?.into_parts();
        let sending = sending.map(|sending| {
            AbortOnDropHandle::new(tokio::spawn(async move {
                let _ = sending.await;
            }))
        });
        let body = Body::new(from, &head.headers, sending);
        Ok(Response::from_parts(head, body))
    }
}
