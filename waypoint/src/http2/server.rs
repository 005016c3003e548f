//! Requests of a client that speaks HTTP/2.

use super::{Body, CONNECTION_WINDOW, STREAM_WINDOW};
use crate::{
    body::{InBody, Received},
    head,
    interim::Allowance,
};
use bytes::Bytes;
use h2::{
    RecvStream,
    server::{Builder, SendResponse},
};
use hbone::StreamIo;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use std::{
    cell::RefCell,
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::SystemTime,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{oneshot, watch},
};

/// Streams of one connection.
const STREAMS: u32 = 256;

/// Streams that a client may open and reset before they are looked at (CVE-2023-44487).
const RESET: usize = 32;

/// Answers requests, each in a task of its own, until the connection ends; from a drain on, those that
/// are under way.
pub async fn serve<I, F>(
    io: I,
    most_head_bytes: u32,
    mut draining: watch::Receiver<bool>,
    answer: impl Fn(Request<Received>) -> F,
) -> Result<(), h2::Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Response<InBody>> + Send + 'static,
{
    let mut connection = Builder::new()
        .max_concurrent_streams(STREAMS)
        .enable_connect_protocol()
        .max_header_list_size(most_head_bytes)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(RESET)
        .handshake(io)
        .await?;
    let mut drains = false;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            _ = draining.wait_for(|d| *d), if !drains => {
                drains = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(accepted) = accepted else { return Ok(()) };
        let (request, respond) = accepted?;
        let reply = Arc::new(Reply::new(respond));
        let (mut request, switch) = received(request, &reply);
        head::join_cookies(request.headers_mut());
        let is_head = *request.method() == Method::HEAD;
        tokio::spawn(finish(reply, switch, is_head, answer(request)));
    }
}

/// Bytes of another protocol are this request's stream, once it is answered so.
struct Switch {
    to: oneshot::Sender<StreamIo>,
    from: RecvStream,
}

fn received(
    request: Request<RecvStream>,
    reply: &Arc<Reply>,
) -> (Request<Received>, Option<Switch>) {
    let (parts, from) = request.into_parts();
    if parts.method == Method::CONNECT {
        let (to, switched) = oneshot::channel();
        let request = Request::from_parts(parts, Received::Switched(switched));
        return (request, Some(Switch { to, from }));
    }
    let mut body = Body::new(from, &parts.headers, None);
    body.client = Some(reply.clone());
    let expects = parts.headers.get(header::EXPECT);
    body.client_waits = expects.is_some_and(|e| e.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    (Request::from_parts(parts, Received::Http2(body)), None)
}

/// Takes one request's answer to its end.
async fn finish(
    reply: Arc<Reply>,
    switch: Option<Switch>,
    is_head: bool,
    answer: impl Future<Output = Response<InBody>>,
) {
    let answered = {
        let mut answer = pin!(answer);
        poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            // The client wants no more: nor does anybody else.
            Poll::Pending => reply.poll_reset(cx).map(|()| None),
        })
        .await
    };
    let (Some(response), Some(mut respond)) = (answered, reply.end()) else { return };
    let (mut head, body) = response.into_parts();
    head::clean_response(&mut head.headers);
    if !head.headers.contains_key(header::DATE)
        && let Some(date) = date()
    {
        head.headers.insert(header::DATE, date);
    }
    let switch = switch.filter(|_| head.status.is_success());
    let is_end = body.is_end_stream() && switch.is_none();
    if !is_end {
        super::measured(&mut head.headers, body.size_hint().exact().filter(|_| switch.is_none()));
    }
    // To HEAD the length is told, and nothing else (RFC 9110, section 9.3.2).
    let is_end = is_end || is_head && switch.is_none();
    let sent = match respond.send_response(Response::from_parts(head, ()), is_end) {
        Ok(stream) if is_end => {
            drop(stream);
            Ok(())
        }
        Ok(stream) => match switch {
            // It is this proxy's end that has gone, where nobody takes it.
            Some(switch) => {
                let _ = switch.to.send(StreamIo::new(stream, switch.from));
                Ok(())
            }
            None => super::send(body, stream).await,
        },
        Err(e) => {
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
            Err(e)
        }
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "an answer did not reach its client");
    }
}

/// A stream on which there is no answer yet.
pub struct Reply(Mutex<Waiting>);

struct Waiting {
    respond: Option<SendResponse<Bytes>>,
    allowance: Allowance,
}

impl Waiting {
    fn send(&mut self, status: StatusCode, headers: HeaderMap) {
        let Some(respond) = &mut self.respond else { return };
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        if let Err(error) = respond.send_informational(response) {
            tracing::debug!(%error, "an interim answer did not reach its client");
        }
    }
}

impl Reply {
    fn new(respond: SendResponse<Bytes>) -> Self {
        let allowance = Allowance::default();
        Self(Mutex::new(Waiting { respond: Some(respond), allowance }))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on there are no interim answers.
    fn end(&self) -> Option<SendResponse<Bytes>> {
        self.lock().respond.take()
    }

    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.lock().respond {
            Some(respond) => respond.poll_reset(cx).map(|_| ()),
            None => Poll::Ready(()),
        }
    }

    pub fn interim(&self, status: StatusCode, headers: HeaderMap) {
        let mut waiting = self.lock();
        let bytes = headers.iter().map(|(n, v)| n.as_str().len() + v.len()).sum();
        if !waiting.allowance.takes(bytes) {
            return;
        }
        waiting.send(status, headers);
    }

    /// The request's body is wanted.
    pub fn go_on(&self) {
        self.lock().send(StatusCode::CONTINUE, HeaderMap::new());
    }
}

/// The hour (RFC 9110, section 6.6.1), written anew each second.
fn date() -> Option<HeaderValue> {
    thread_local! {
        static WRITTEN: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    WRITTEN.with_borrow_mut(|written| {
        if written.as_ref().is_none_or(|(at, _)| *at != second) {
            let text = httpdate::fmt_http_date(now);
            *written = Some((second, HeaderValue::from_str(&text).ok()?));
        }
        written.as_ref().map(|(_, date)| date.clone())
    })
}
