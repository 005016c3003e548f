//! HTTP/2 over h2, for what hyper's does not do: interim answers, on either side.

pub mod client;
pub mod server;

use crate::{body::BoxError, interim::ToClient};
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, header};
use http_body::{Frame, SizeHint};
use server::Reply;
use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio_util::task::AbortOnDropHandle;

/// Bytes that a stream, and all streams of a connection, may be sent before they are read.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// What comes on a stream. h2 has seen to it that it is as long as `content-length` says.
pub struct Body {
    from: RecvStream,
    /// Bytes to come, where that is known.
    left: Option<u64>,
    data_ended: bool,
    /// The request's body, where this is the answer's: whoever wants no more of one sends no more of the
    /// other.
    _request: Option<AbortOnDropHandle<()>>,
    /// The client, where it is a request's.
    client: Option<Arc<Reply>>,
    /// It is to be told to go on (RFC 9110, section 10.1.1).
    client_waits: bool,
    /// Its place among the requests of a connection.
    _place: Option<Arc<()>>,
}

impl Body {
    fn new(from: RecvStream, headers: &HeaderMap, request: Option<AbortOnDropHandle<()>>) -> Self {
        let said = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let left = said.or(from.is_end_stream().then_some(0));
        Self {
            from,
            left,
            data_ended: false,
            _request: request,
            client: None,
            client_waits: false,
            _place: None,
        }
    }

    /// For as long as it is read.
    pub fn hold(&mut self, place: Arc<()>) {
        self._place = Some(place);
    }

    pub fn client(&self) -> Option<ToClient> {
        self.client.clone().map(ToClient::Http2)
    }

    /// By a reset without error an endpoint says that no more of the request is wanted (RFC 9113,
    /// section 8.1): its answer has come by then. A client's is none of that.
    fn failed(&self, e: h2::Error) -> Option<Result<Frame<Bytes>, h2::Error>> {
        let is_end = e.is_reset() && e.reason() == Some(Reason::NO_ERROR) && self.client.is_none();
        (!is_end || self.left.is_some_and(|n| n > 0)).then_some(Err(e))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.client_waits)
            && let Some(client) = &this.client
        {
            client.go_on();
        }
        if !this.data_ended {
            match ready!(this.from.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It fails when the stream is gone, which the next read tells.
                    let _ = this.from.flow_control().release_capacity(data.len());
                    this.left = this.left.map(|n| n.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(e)) => return Poll::Ready(this.failed(e)),
                None => this.data_ended = true,
            }
        }
        Poll::Ready(match ready!(this.from.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|t| Ok(Frame::trailers(t))),
            Err(e) => this.failed(e),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.from.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Sends a body to its end; where it breaks off, so does the stream.
async fn send<B>(mut body: B, mut stream: SendStream<Bytes>) -> Result<(), h2::Error>
where
    B: http_body::Body<Data = Bytes, Error = BoxError> + Unpin,
{
    loop {
        let next = poll_fn(|cx| {
            // Of a reset nobody hears who waits for the body alone.
            if let Poll::Ready(reset) = stream.poll_reset(cx) {
                return Poll::Ready(Err(reset.map_or_else(|e| e, h2::Error::from)));
            }
            Pin::new(&mut body).poll_frame(cx).map(Ok)
        });
        let frame = match next.await? {
            None => return stream.send_data(Bytes::new(), true),
            Some(Ok(frame)) => frame,
            Some(Err(e)) => {
                // What other reasons say is true of the stream that it came from alone: that nobody has
                // looked at the request, or that all has come.
                let is_cancel = e
                    .downcast_ref::<h2::Error>()
                    .is_some_and(|e| e.is_reset() && e.reason() == Some(Reason::CANCEL));
                stream.send_reset(match is_cancel {
                    true => Reason::CANCEL,
                    false => Reason::INTERNAL_ERROR,
                });
                return Ok(());
            }
        };
        match frame.into_data() {
            Ok(data) => {
                let is_end = body.is_end_stream();
                if !data.is_empty() {
                    room(&mut stream).await?;
                }
                stream.send_data(data, is_end)?;
                if is_end {
                    return Ok(());
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return stream.send_trailers(trailers);
                }
            }
        }
    }
}

/// Waits until some of what is there may be sent. The rest of it waits in h2, and what comes after it
/// for it.
async fn room(stream: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
    // A claim to all of it would keep the window of the connection from others.
    stream.reserve_capacity(1);
    while stream.capacity() == 0 {
        match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(_)) => {}
            Some(Err(e)) => return Err(e),
            None => return Err(Reason::CANCEL.into()),
        }
    }
    Ok(())
}

/// Says how long a body is that says so itself.
fn measured(headers: &mut HeaderMap, length: Option<u64>) {
    if let Some(length) = length
        && !headers.contains_key(header::CONTENT_LENGTH)
    {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
mod tests;
