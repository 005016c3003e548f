//! Moves bytes between two ends until both directions are finished, or one breaks.
//!
//! An end is a TCP socket or an HTTP/2 stream. The end of a direction is passed on as a half-close
//! and the other direction goes on. A stream whose peer reads no more, as it says with a reset that is
//! no error, goes on being read to its end. A failure is passed on as a reset of both ends: a TCP socket is
//! closed with RST, a stream with RST_STREAM. A TCP socket is set to do so (`SO_LINGER` 0) before
//! the first byte and until both directions have ended, so that it is a reset, too, when this
//! process dies. Nothing is read from an end before the other can take it, so backpressure goes
//! through, and an idle relay holds no buffer.
//!
//! One future, polled by hand: as two `async` directions it took 1.8 KB of each connection, and takes a
//! fifth of that.

use crate::CHUNK;
use bytes::{Buf as _, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use std::{
    future::Future,
    io::{self, IoSlice},
    net::Shutdown,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};
use tokio::{io::Interest, net::TcpStream};

/// One end of a relay.
pub enum End {
    Tcp(TcpStream),
    H2(SendStream<Bytes>, RecvStream),
}

/// What went through, in bytes; counted while it goes.
#[derive(Debug, Default)]
pub struct Relayed {
    /// From the first end to the second.
    pub forward: AtomicU64,
    pub backward: AtomicU64,
}

/// Which end failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    First,
    Second,
}

#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", match side { Side::First => "downstream", Side::Second => "upstream" })]
pub struct Broken {
    pub side: Side,
    pub source: io::Error,
}

/// Reads below this are copied out of the buffer, which is used again: a message of one byte must
/// not keep 64 KiB while it waits to be sent.
const SMALL: usize = 8 * 1024;

/// Chunks that one direction moves before others on the thread have their turn.
const TURN: usize = 16;

/// Frames written to a socket at once.
const AT_ONCE: usize = 4;

/// Relays until both directions have ended. Dropping the future resets both ends.
pub fn relay(
    first: End,
    second: End,
    counters: Arc<Relayed>,
) -> impl Future<Output = Result<(), Broken>> + Send + Unpin {
    Relay {
        first: Guarded::new(first),
        second: Guarded::new(second),
        forward: Direction::default(),
        backward: Direction::default(),
        counters,
    }
}

struct Relay {
    first: Guarded,
    second: Guarded,
    forward: Direction,
    backward: Direction,
    counters: Arc<Relayed>,
}

impl Future for Relay {
    type Output = Result<(), Broken>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Relay { first, second, forward, backward, counters } = &mut *self;
        let sides = |e: Failed, from, to| match e {
            Failed::Reading(source) => Broken { side: from, source },
            Failed::Writing(source) => Broken { side: to, source },
        };
        forward
            .poll(cx, first, second, &counters.forward)
            .map_err(|e| sides(e, Side::First, Side::Second))?;
        backward
            .poll(cx, second, first, &counters.backward)
            .map_err(|e| sides(e, Side::Second, Side::First))?;
        if forward.ended && backward.ended {
            first.finished();
            second.finished();
            return Poll::Ready(Ok(()));
        }
        // A socket that nobody waits to read may be reset all the same.
        if !forward.reading {
            first.watch(cx).map_err(|source| Broken { side: Side::First, source })?;
        }
        if !backward.reading {
            second.watch(cx).map_err(|source| Broken { side: Side::Second, source })?;
        }
        Poll::Pending
    }
}

/// Resets its end when it is dropped before [`Guarded::finished`].
struct Guarded {
    end: Inner,
    finished: bool,
}

enum Inner {
    Tcp { socket: Arc<TcpStream>, watch: Option<Watch> },
    H2(SendStream<Bytes>, RecvStream),
}

/// Ends when the socket has failed. Only while nobody reads it is there one.
type Watch = Pin<Box<dyn Future<Output = io::Error> + Send>>;

enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

/// What goes one way.
#[derive(Default)]
struct Direction {
    /// For what is read next.
    buffer: BytesMut,
    /// What the other end has not taken yet.
    waiting: Waiting,
    /// The last poll ended with waiting for something to read.
    reading: bool,
    read_ended: bool,
    /// The other end wants no more: what comes is read to its end. A socket that is closed with something
    /// unread is reset, and what was sent to its peer may be lost.
    discarding: bool,
    ended: bool,
}

#[derive(Default)]
enum Waiting {
    #[default]
    Nothing,
    Chunk(Bytes),
    /// While a socket takes nothing, frames are still taken from the stream and joined: h2 allows a
    /// connection only so many small frames that nobody has read, and would end it for all streams.
    /// Credit is given back only for what the socket has taken, so that a stream holds no more than
    /// its window.
    Joined(BytesMut),
}

impl Direction {
    /// Moves what can be moved now.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Guarded,
        to: &mut Guarded,
        moved: &AtomicU64,
    ) -> Result<(), Failed> {
        self.reading = false;
        for _ in 0..TURN {
            if self.ended {
                return Ok(());
            }
            let step = match (&mut from.end, &mut to.end) {
                (Inner::H2(_, stream), Inner::Tcp { socket, .. }) => {
                    self.frames_to_socket(cx, stream, socket, moved)
                }
                (from, to) => self.chunk(cx, from, to, moved),
            };
            match step {
                Poll::Ready(step) => step?,
                Poll::Pending => return Ok(()),
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// One chunk, read and written.
    fn chunk(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Inner,
        to: &mut Inner,
        moved: &AtomicU64,
    ) -> Poll<Result<(), Failed>> {
        if let Waiting::Chunk(chunk) = &mut self.waiting {
            let taken = match ready!(to.poll_write(cx, chunk)) {
                Ok(n) => n,
                Err(e) if no_error(&e) => {
                    self.discarding = true;
                    self.waiting = Waiting::Nothing;
                    return Poll::Ready(Ok(()));
                }
                Err(e) => return Poll::Ready(Err(Failed::Writing(e))),
            };
            if chunk.is_empty() {
                self.waiting = Waiting::Nothing;
            }
            moved.fetch_add(taken as u64, Ordering::Relaxed);
            return Poll::Ready(from.took(taken).map_err(Failed::Reading));
        }
        if self.read_ended {
            return Poll::Ready(self.finish(to));
        }
        match from.poll_read(cx, &mut self.buffer) {
            Poll::Ready(Ok(Some(chunk))) if self.discarding => {
                from.took(chunk.len()).map_err(Failed::Reading)?;
            }
            Poll::Ready(Ok(Some(chunk))) => self.waiting = Waiting::Chunk(chunk),
            Poll::Ready(Ok(None)) => self.read_ended = true,
            Poll::Ready(Err(e)) => return Poll::Ready(Err(Failed::Reading(e))),
            Poll::Pending => {
                self.reading = true;
                // A stream that the peer has reset says so only to who asks.
                if let Inner::H2(send, _) = to
                    && !self.discarding
                    && let Poll::Ready(reset) = peer_reset(cx, send)
                {
                    match no_error(&reset) {
                        true => self.discarding = true,
                        false => return Poll::Ready(Err(Failed::Writing(reset))),
                    }
                }
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn frames_to_socket(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut RecvStream,
        socket: &TcpStream,
        moved: &AtomicU64,
    ) -> Poll<Result<(), Failed>> {
        if let Waiting::Joined(waiting) = &mut self.waiting {
            match poll_write_tcp(cx, socket, &[IoSlice::new(waiting)]) {
                Poll::Ready(Ok(n)) => {
                    waiting.advance(n);
                    if waiting.is_empty() {
                        self.waiting = Waiting::Nothing;
                    }
                    return Poll::Ready(taken(stream, n, moved));
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(Failed::Writing(e))),
                Poll::Pending if self.read_ended => return Poll::Pending,
                Poll::Pending => {}
            }
            match ready!(poll_frame(cx, stream)).map_err(Failed::Reading)? {
                Some(frame) => waiting.extend_from_slice(&frame),
                None => self.read_ended = true,
            }
            return Poll::Ready(Ok(()));
        }
        let mut frames: [Bytes; AT_ONCE] = Default::default();
        let mut failed = None;
        for frame in &mut frames {
            if self.read_ended {
                break;
            }
            match poll_frame(cx, stream) {
                Poll::Ready(Ok(Some(f))) => *frame = f,
                Poll::Ready(Ok(None)) => self.read_ended = true,
                // After what has come before it.
                Poll::Ready(Err(e)) => {
                    failed = Some(e);
                    break;
                }
                Poll::Pending => {
                    self.reading = true;
                    break;
                }
            }
        }
        let total: usize = frames.iter().map(Bytes::len).sum();
        if total > 0 {
            // Most often the socket takes all of it, and nothing is copied.
            let all = frames.each_ref().map(|f| IoSlice::new(f));
            let count = frames.iter().take_while(|f| !f.is_empty()).count();
            let n = match poll_write_tcp(cx, socket, all.get(..count).unwrap_or_default()) {
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(Failed::Writing(e))),
                Poll::Pending => 0,
            };
            if n < total {
                let mut rest = BytesMut::with_capacity(total - n);
                let mut written = n;
                for frame in &mut frames {
                    let gone = written.min(frame.len());
                    rest.extend_from_slice(frame.get(gone..).unwrap_or_default());
                    written -= gone;
                }
                self.waiting = Waiting::Joined(rest);
            }
            self.reading = false;
            taken(stream, n, moved)?;
        }
        match failed {
            Some(e) => Poll::Ready(Err(Failed::Reading(e))),
            None if total > 0 => Poll::Ready(Ok(())),
            None if self.read_ended => {
                Poll::Ready(shut(socket).map_err(Failed::Writing).map(|()| {
                    self.ended = true;
                }))
            }
            None => Poll::Pending,
        }
    }

    /// The end of this direction; the other may go on.
    fn finish(&mut self, to: &mut Inner) -> Result<(), Failed> {
        self.ended = true;
        match to {
            _ if self.discarding => Ok(()),
            Inner::Tcp { socket, .. } => shut(socket).map_err(Failed::Writing),
            Inner::H2(send, _) => match send.send_data(Bytes::new(), true) {
                Ok(()) => Ok(()),
                // A peer that reads no more misses no end.
                Err(e) => match send.poll_reset(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(Ok(Reason::NO_ERROR)) => Ok(()),
                    _ => Err(Failed::Writing(into_io(e))),
                },
            },
        }
    }
}

fn shut(socket: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(socket).shutdown(Shutdown::Write) {
        // The peer has closed both directions already, and cleanly.
        Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}

impl Guarded {
    fn new(end: End) -> Self {
        let end = match end {
            End::Tcp(s) => {
                // Fails only for a socket that is closed already.
                let _ = s.set_zero_linger();
                Inner::Tcp { socket: Arc::new(s), watch: None }
            }
            End::H2(send, receive) => Inner::H2(send, receive),
        };
        Guarded { end, finished: false }
    }

    fn finished(&mut self) {
        self.finished = true;
        if let Inner::Tcp { socket, .. } = &self.end {
            let _ = socket2::SockRef::from(&**socket).set_linger(None);
        }
    }

    /// Fails once the socket has.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Inner::Tcp { socket, watch } = &mut self.end else { return Ok(()) };
        let watch = watch.get_or_insert_with(|| {
            let socket = socket.clone();
            Box::pin(async move { tcp_reset(&socket).await })
        });
        match watch.as_mut().poll(cx) {
            Poll::Ready(e) => Err(e),
            Poll::Pending => Ok(()),
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Inner::H2(send, _) = &mut self.end
            && !self.finished
        {
            send.send_reset(Reason::CANCEL);
        }
    }
}

impl Inner {
    /// The next bytes, or none at the end.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<Option<Bytes>>> {
        match self {
            Inner::Tcp { socket, .. } => poll_read_tcp(cx, socket, buffer),
            Inner::H2(_, stream) => poll_frame(cx, stream),
        }
    }

    /// Takes what fits off the chunk.
    fn poll_write(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<io::Result<usize>> {
        match self {
            Inner::Tcp { socket, .. } => {
                let n = ready!(poll_write_tcp(cx, socket, &[IoSlice::new(chunk)]))?;
                chunk.advance(n);
                Poll::Ready(Ok(n))
            }
            Inner::H2(send, _) => {
                let room = ready!(poll_capacity(cx, send, chunk.len()))?;
                let part = chunk.split_to(room.min(chunk.len()));
                let n = part.len();
                Poll::Ready(send.send_data(part, false).map(|()| n).map_err(into_io))
            }
        }
    }

    /// The other end has taken so much: only now the credit goes back.
    fn took(&mut self, n: usize) -> io::Result<()> {
        match self {
            Inner::H2(_, stream) if n > 0 => {
                stream.flow_control().release_capacity(n).map_err(into_io)
            }
            _ => Ok(()),
        }
    }
}

fn taken(stream: &mut RecvStream, n: usize, moved: &AtomicU64) -> Result<(), Failed> {
    moved.fetch_add(n as u64, Ordering::Relaxed);
    match n {
        0 => Ok(()),
        n => stream.flow_control().release_capacity(n).map_err(|e| Failed::Reading(into_io(e))),
    }
}

/// Ends when the socket has failed, whether or not anybody reads or writes.
async fn tcp_reset(s: &TcpStream) -> io::Error {
    loop {
        match s.ready(Interest::ERROR).await {
            Err(e) => return e,
            Ok(ready) if ready.is_error() => {
                return match s.take_error() {
                    Ok(Some(e)) | Err(e) => e,
                    Ok(None) => io::ErrorKind::ConnectionReset.into(),
                };
            }
            Ok(_) => tokio::task::yield_now().await,
        }
    }
}

/// The buffer is given back when a read finds nothing.
fn poll_read_tcp(
    cx: &mut Context<'_>,
    s: &TcpStream,
    buffer: &mut BytesMut,
) -> Poll<io::Result<Option<Bytes>>> {
    loop {
        if buffer.capacity() < CHUNK {
            buffer.reserve(CHUNK);
        }
        match s.try_read_buf(buffer) {
            Ok(0) => return Poll::Ready(Ok(None)),
            Ok(n) if n < SMALL => {
                let bytes = Bytes::copy_from_slice(buffer);
                buffer.clear();
                return Poll::Ready(Ok(Some(bytes)));
            }
            Ok(_) => return Poll::Ready(Ok(Some(buffer.split().freeze()))),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                // Idle: 64 KiB for each of ten thousand idle connections would be 640 MB.
                *buffer = BytesMut::new();
                ready!(s.poll_read_ready(cx))?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Poll::Ready(Err(e)),
        }
    }
}

fn poll_write_tcp(
    cx: &mut Context<'_>,
    s: &TcpStream,
    bytes: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    loop {
        match s.try_write_vectored(bytes) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready!(s.poll_write_ready(cx))?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            outcome => return Poll::Ready(outcome),
        }
    }
}

fn poll_frame(cx: &mut Context<'_>, stream: &mut RecvStream) -> Poll<io::Result<Option<Bytes>>> {
    loop {
        return Poll::Ready(match ready!(stream.poll_data(cx)) {
            Some(Ok(bytes)) if bytes.is_empty() => match stream.is_end_stream() {
                true => Ok(None),
                false => continue,
            },
            Some(Ok(bytes)) => Ok(Some(bytes)),
            // It comes after the end of what is sent.
            Some(Err(e)) if !e.is_go_away() && e.reason() == Some(Reason::NO_ERROR) => Ok(None),
            Some(Err(e)) => Err(into_io(e)),
            None => Ok(None),
        });
    }
}

/// Waits until some of `wanted` bytes may be sent.
fn poll_capacity(
    cx: &mut Context<'_>,
    send: &mut SendStream<Bytes>,
    wanted: usize,
) -> Poll<io::Result<usize>> {
    send.reserve_capacity(wanted);
    if send.capacity() > 0 {
        return Poll::Ready(Ok(send.capacity()));
    }
    loop {
        return Poll::Ready(match ready!(send.poll_capacity(cx)) {
            Some(Ok(0)) => continue,
            Some(Ok(n)) => Ok(n),
            Some(Err(e)) => Err(into_io(e)),
            None => Err(match send.poll_reset(cx) {
                Poll::Ready(Ok(reason)) => reset(reason),
                _ => io::ErrorKind::ConnectionReset.into(),
            }),
        });
    }
}

fn peer_reset(cx: &mut Context<'_>, send: &mut SendStream<Bytes>) -> Poll<io::Error> {
    send.poll_reset(cx).map(|outcome| match outcome {
        Ok(reason) => reset(reason),
        Err(e) => into_io(e),
    })
}

fn reset(reason: Reason) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, h2::Error::from(reason))
}

/// Whether the peer has said all that it had to say, and reads no more.
fn no_error(e: &io::Error) -> bool {
    let h2 = e.get_ref().and_then(|e| e.downcast_ref::<h2::Error>());
    h2.is_some_and(|e| !e.is_go_away() && e.reason() == Some(Reason::NO_ERROR))
}

fn into_io(e: h2::Error) -> io::Error {
    if e.is_io() {
        e.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
    } else {
        io::Error::new(io::ErrorKind::ConnectionReset, e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F: Future>(_: fn(End, End, Arc<Relayed>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_relay_is_small() {
        assert!(size(relay) <= 400, "{}", size(relay));
    }
}
