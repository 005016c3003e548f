//! Bodies on their way through: as they come, kept for a retry, copied for a mirror, counted.

use crate::http2;
use bytes::Bytes;
use hbone::StreamIo;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};
use telemetry::Messages;
use tokio::sync::{mpsc, oneshot};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes of a request that are kept so that it can be sent again. A longer one is not.
pub const KEPT: usize = 64 * 1024;

/// Bytes that a mirror may be behind; then it is given up.
const MIRROR_BEHIND: usize = 1024 * 1024;

/// What comes from a client or from an endpoint.
pub enum Received {
    Http1(Incoming),
    Http2(http2::Body),
    /// A CONNECT of HTTP/2 has none: its stream comes by this, when it is answered.
    Switched(oneshot::Receiver<StreamIo>),
}

impl Body for Received {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Switched(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
            Self::Switched(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
            Self::Switched(_) => SizeHint::with_exact(0),
        }
    }
}

/// A request's body, shared by its attempts.
#[derive(Clone)]
pub struct Replay(Arc<Mutex<Source>>);

struct Source {
    from: Option<Received>,
    kept: VecDeque<Bytes>,
    size: usize,
    /// Too much has gone by: what is gone cannot be sent again.
    overflown: bool,
    trailers: Option<http::HeaderMap>,
    ended: bool,
    /// The client has broken it off.
    broken: bool,
    keep: bool,
    mirrors: Vec<Mirror>,
    taken: Arc<Taken>,
    messages: Option<Messages>,
    /// The attempt that may read; those before it may be there still.
    current: u32,
}

/// What a client has sent.
#[derive(Default)]
pub struct Taken {
    pub bytes: AtomicU64,
    /// Of gRPC.
    pub messages: AtomicU64,
}

struct Mirror {
    /// Without an end, it is a part only.
    to: mpsc::UnboundedSender<Option<Frame<Bytes>>>,
    behind: Arc<AtomicU64>,
}

impl Replay {
    /// `keep`: it may have to be sent again. `grpc`: its messages are counted.
    pub fn new(from: Received, keep: bool, grpc: bool) -> Self {
        let ended = from.is_end_stream();
        Self(Arc::new(Mutex::new(Source {
            from: (!ended).then_some(from),
            kept: VecDeque::new(),
            size: 0,
            overflown: false,
            trailers: None,
            ended,
            broken: false,
            keep,
            mirrors: Vec::new(),
            taken: Arc::default(),
            messages: grpc.then(Messages::default),
            current: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Source> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the client has sent so far.
    pub fn taken(&self) -> Arc<Taken> {
        self.lock().taken.clone()
    }

    /// Whether the client has sent all of it.
    pub fn is_whole(&self) -> bool {
        let s = self.lock();
        s.ended || s.from.as_ref().is_some_and(Body::is_end_stream)
    }

    /// Whether the client has broken it off.
    pub fn is_broken(&self) -> bool {
        self.lock().broken
    }

    /// Whether another attempt can send all of it; if so, the one before reads no more.
    pub fn again(&self) -> bool {
        let mut s = self.lock();
        let again = s.keep && !s.overflown;
        s.current += u32::from(again);
        again
    }

    /// For one attempt, from the beginning.
    pub fn attempt(&self) -> OutBody {
        let s = self.lock();
        if s.ended && s.kept.is_empty() && s.trailers.is_none() {
            return OutBody::Empty;
        }
        let number = s.current;
        OutBody::Replay(Attempt { source: self.0.clone(), number, at: 0, trailed: false })
    }

    /// A copy for a mirror, which never makes anybody wait.
    pub fn mirror(&self) -> OutBody {
        let mut s = self.lock();
        if s.ended {
            return OutBody::Empty;
        }
        let (to, from) = mpsc::unbounded_channel();
        let behind = Arc::new(AtomicU64::new(0));
        s.mirrors.push(Mirror { to, behind: behind.clone() });
        OutBody::Mirror(from, behind)
    }
}

impl Source {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(from) = &mut self.from else {
            self.ended = true;
            return Poll::Ready(None);
        };
        let polled = std::task::ready!(Pin::new(from).poll_frame(cx));
        match polled {
            Some(Ok(frame)) => {
                self.pass(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(e)) => {
                // Mirrors must not take the part for the whole.
                self.from = None;
                self.broken = true;
                self.overflown = true;
                self.mirrors.clear();
                Poll::Ready(Some(Err(e)))
            }
            None => {
                (self.ended, self.from) = (true, None);
                for m in self.mirrors.drain(..) {
                    let _ = m.to.send(None);
                }
                Poll::Ready(None)
            }
        }
    }

    fn pass(&mut self, frame: &Frame<Bytes>) {
        if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
            for m in self.mirrors.drain(..) {
                let _ = m.to.send(Some(Frame::trailers(trailers.clone())));
                let _ = m.to.send(None);
            }
        }
        let Some(data) = frame.data_ref() else { return };
        let n = data.len() as u64;
        self.taken.bytes.fetch_add(n, Ordering::Relaxed);
        if let Some(messages) = &mut self.messages {
            messages.feed(data);
            self.taken.messages.store(messages.count, Ordering::Relaxed);
        }
        self.mirrors.retain(|m| {
            let behind = m.behind.fetch_add(n, Ordering::Relaxed) + n;
            behind <= MIRROR_BEHIND as u64 && m.to.send(Some(Frame::data(data.clone()))).is_ok()
        });
        if !self.keep || self.overflown {
            self.overflown = true;
            return;
        }
        self.size += data.len();
        if self.size > KEPT {
            self.overflown = true;
            self.kept.clear();
        } else {
            self.kept.push_back(data.clone());
        }
    }
}

pub struct Attempt {
    source: Arc<Mutex<Source>>,
    number: u32,
    at: usize,
    trailed: bool,
}

/// What is sent to an endpoint.
pub enum OutBody {
    Empty,
    /// This proxy's own.
    Whole(Option<Bytes>),
    Replay(Attempt),
    Mirror(mpsc::UnboundedReceiver<Option<Frame<Bytes>>>, Arc<AtomicU64>),
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(data) => Poll::Ready(data.take().map(|d| Ok(Frame::data(d)))),
            Self::Mirror(from, behind) => from.poll_recv(cx).map(|f| {
                let Some(frame) = f else {
                    return Some(Err("the request was broken off".into()));
                };
                let frame = frame?;
                if let Some(data) = frame.data_ref() {
                    behind.fetch_sub(data.len() as u64, Ordering::Relaxed);
                }
                Some(Ok(frame))
            }),
            Self::Replay(attempt) => {
                let mut s = attempt.source.lock().unwrap_or_else(PoisonError::into_inner);
                if s.current != attempt.number {
                    return Poll::Ready(Some(Err("another attempt is made".into())));
                }
                if let Some(kept) = s.kept.get(attempt.at) {
                    let data = kept.clone();
                    attempt.at += 1;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                if s.ended {
                    let trailers = if attempt.trailed { None } else { s.trailers.clone() };
                    attempt.trailed = true;
                    return Poll::Ready(trailers.map(|t| Ok(Frame::trailers(t))));
                }
                let polled = std::task::ready!(s.poll(cx));
                if let Some(Ok(frame)) = &polled {
                    attempt.trailed |= frame.is_trailers();
                    if frame.is_data() {
                        // Now among the kept, if any are.
                        attempt.at = s.kept.len();
                    }
                }
                Poll::Ready(polled)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(data) => data.is_none(),
            Self::Replay(_) | Self::Mirror(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(data) => SizeHint::with_exact(data.as_ref().map_or(0, |d| d.len() as u64)),
            Self::Replay(a) => {
                let s = a.source.lock().unwrap_or_else(PoisonError::into_inner);
                match (&s.from, a.at) {
                    (Some(from), 0) if s.kept.is_empty() => from.size_hint(),
                    (None, 0) if s.ended => SizeHint::with_exact(s.size as u64),
                    _ => SizeHint::default(),
                }
            }
            Self::Mirror(..) => SizeHint::default(),
        }
    }
}

/// What is sent to the client.
pub enum InBody {
    Full(Option<Bytes>),
    Passing(Box<Passing>),
}

/// An endpoint's answer on its way, and whoever wants to know how it ended.
pub struct Passing {
    pub from: Received,
    pub deadline: Option<Pin<Box<tokio::time::Sleep>>>,
    pub done: Option<Box<dyn Watch>>,
}

/// Hears of an answer's body.
pub trait Watch: Send {
    fn data(&mut self, bytes: &Bytes);
    fn trailers(&mut self, trailers: &http::HeaderMap);
    /// Called once; an answer that is dropped before its end has not ended well.
    fn ended(&mut self, how: Ended);
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    Whole,
    /// The endpoint broke it off.
    Broken,
    TimedOut,
    /// The client wanted no more.
    Abandoned,
}

impl Passing {
    fn tell(&mut self, how: Ended) {
        if let Some(mut watch) = self.done.take() {
            watch.ended(how);
        }
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        // Whoever has as much as was said asks for no more, and its end may not have been seen yet.
        let is_whole = self.from.is_end_stream() || self.from.size_hint().exact() == Some(0);
        let how = if is_whole { Ended::Whole } else { Ended::Abandoned };
        self.tell(how);
    }
}

impl Body for InBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let passing = match self.get_mut() {
            Self::Full(data) => return Poll::Ready(data.take().map(|d| Ok(Frame::data(d)))),
            Self::Passing(p) => p,
        };
        match Pin::new(&mut passing.from).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(watch) = &mut passing.done {
                    if let Some(data) = frame.data_ref() {
                        watch.data(data);
                    } else if let Some(trailers) = frame.trailers_ref() {
                        watch.trailers(trailers);
                    }
                }
                // Nothing comes after them, and nobody asks.
                if frame.is_trailers() {
                    passing.tell(Ended::Whole);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(e))) => {
                passing.tell(Ended::Broken);
                Poll::Ready(Some(Err(e)))
            }
            Poll::Ready(None) => {
                passing.tell(Ended::Whole);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let late =
                    passing.deadline.as_mut().is_some_and(|d| d.as_mut().poll(cx).is_ready());
                if late {
                    passing.tell(Ended::TimedOut);
                    return Poll::Ready(Some(Err("the request's time ran out".into())));
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(data) => data.is_none(),
            Self::Passing(p) => p.from.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(data) => SizeHint::with_exact(data.as_ref().map_or(0, |d| d.len() as u64)),
            Self::Passing(p) => p.from.size_hint(),
        }
    }
}

impl InBody {
    pub fn empty() -> Self {
        Self::Full(None)
    }

    pub fn of(text: impl Into<Bytes>) -> Self {
        let data = text.into();
        Self::Full((!data.is_empty()).then_some(data))
    }
}
