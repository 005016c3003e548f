//! Moves bytes between two ends until both directions are finished, or one breaks.
//!
//! An end is a TCP socket or an HTTP/2 stream. The end of a direction is passed on as a half-close
//! and the other direction goes on. A stream whose peer reads no more, as it says with a reset that is
//! no error, goes on being read to its end. A failure is passed on as a reset of both ends: a TCP socket is
//! closed with RST, a stream with RST_STREAM. A TCP socket is set to do so (`SO_LINGER` 0) before
//! the first byte and until both directions have ended, so that it is a reset, too, when this
//! process dies. Nothing is read from an end before the other can take it, so backpressure goes
//! through, and an idle relay holds no buffer.

use crate::CHUNK;
use bytes::{Buf as _, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use std::{
    io,
    net::Shutdown,
    sync::atomic::{AtomicU64, Ordering},
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

/// Relays until both directions have ended. Dropping the future resets both ends.
pub async fn relay(first: End, second: End, counters: &Relayed) -> Result<(), Broken> {
    let (first, second) = (Guarded::new(first), Guarded::new(second));
    {
        let (mut r1, mut w1) = first.split();
        let (mut r2, mut w2) = second.split();
        let forward = pump(&mut r1, Side::First, &mut w2, Side::Second, &counters.forward);
        let backward = pump(&mut r2, Side::Second, &mut w1, Side::First, &counters.backward);
        tokio::try_join!(forward, backward)?;
    }
    first.finished();
    second.finished();
    Ok(())
}

/// Resets its end when it is dropped before [`Guarded::finished`].
struct Guarded {
    end: Option<Inner>,
}

enum Inner {
    Tcp(TcpStream),
    H2(std::sync::Mutex<SendStream<Bytes>>, std::sync::Mutex<Option<RecvStream>>),
}

impl Guarded {
    fn new(end: End) -> Self {
        let inner = match end {
            End::Tcp(s) => {
                // Fails only for a socket that is closed already.
                let _ = s.set_zero_linger();
                Inner::Tcp(s)
            }
            End::H2(s, r) => Inner::H2(std::sync::Mutex::new(s), std::sync::Mutex::new(Some(r))),
        };
        Guarded { end: Some(inner) }
    }

    fn split(&self) -> (Reader<'_>, Writer<'_>) {
        match &self.end {
            Some(Inner::Tcp(s)) => (Reader::Tcp(s), Writer::Tcp(s)),
            Some(Inner::H2(s, r)) => {
                let recv = r.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                (Reader::H2(recv), Writer::H2(s))
            }
            None => (Reader::H2(None), Writer::Gone),
        }
    }

    fn finished(mut self) {
        if let Some(Inner::Tcp(s)) = self.end.take() {
            let _ = socket2::SockRef::from(&s).set_linger(None);
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        match self.end.take() {
            Some(Inner::H2(s, _)) => {
                let mut s = s.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
                s.send_reset(Reason::CANCEL);
            }
            Some(Inner::Tcp(_)) | None => {}
        }
    }
}

enum Reader<'a> {
    Tcp(&'a TcpStream),
    H2(Option<RecvStream>),
}

enum Writer<'a> {
    Tcp(&'a TcpStream),
    H2(&'a std::sync::Mutex<SendStream<Bytes>>),
    Gone,
}

async fn pump(
    from: &mut Reader<'_>,
    from_side: Side,
    to: &mut Writer<'_>,
    to_side: Side,
    moved: &AtomicU64,
) -> Result<(), Broken> {
    let read_failed = |source| Broken { side: from_side, source };
    let write_failed = |source| Broken { side: to_side, source };
    if let (Reader::H2(r), Writer::Tcp(s)) = (&mut *from, &*to) {
        return h2_to_tcp(r, s, moved, read_failed, write_failed).await;
    }
    let mut buffer = BytesMut::new();
    loop {
        let chunk = match (&mut *from, &mut *to) {
            // A stream that the peer has reset says so only to who asks.
            (Reader::Tcp(s), Writer::H2(w)) => tokio::select! {
                biased;
                chunk = read_tcp(s, &mut buffer) => chunk.map_err(read_failed)?,
                reset = peer_reset(w) => return match no_error(&reset) {
                    true => discard(s, &mut buffer).await.map_err(read_failed),
                    false => Err(write_failed(reset)),
                },
            },
            // One that has sent its end is read no more, and may be reset all the same.
            (Reader::Tcp(s), Writer::Tcp(w)) => tokio::select! {
                biased;
                chunk = read_tcp(s, &mut buffer) => chunk.map_err(read_failed)?,
                broken = tcp_reset(w) => return Err(write_failed(broken)),
            },
            (Reader::Tcp(s), Writer::Gone) => {
                read_tcp(s, &mut buffer).await.map_err(read_failed)?
            }
            (Reader::H2(r), _) => read_h2(r).await.map_err(read_failed)?,
        };
        let Some(chunk) = chunk else {
            return to.finish().map_err(write_failed);
        };
        let len = chunk.len();
        match &mut *from {
            // Blocked on the other end, this one may be reset all the same.
            Reader::Tcp(s) => tokio::select! {
                biased;
                written = to.write(chunk) => match written {
                    Err(e) if no_error(&e) => {
                        return discard(s, &mut buffer).await.map_err(read_failed);
                    }
                    written => written.map_err(write_failed)?,
                },
                broken = tcp_reset(s) => return Err(read_failed(broken)),
            },
            Reader::H2(_) => to.write(chunk).await.map_err(write_failed)?,
        }
        moved.fetch_add(len as u64, Ordering::Relaxed);
        if let Reader::H2(Some(r)) = from {
            // The credit goes back only now that the other end has taken the bytes.
            r.flow_control().release_capacity(len).map_err(|e| read_failed(into_io(e)))?;
        }
    }
}

/// While the socket takes nothing, frames are still taken from the stream and joined: h2 allows a
/// connection only so many small frames that nobody has read, and would end it for all streams.
/// Credit is given back only for what the socket has taken, so that a stream holds no more than
/// its window.
async fn h2_to_tcp(
    r: &mut Option<RecvStream>,
    s: &TcpStream,
    moved: &AtomicU64,
    read_failed: impl Fn(io::Error) -> Broken,
    write_failed: impl Fn(io::Error) -> Broken,
) -> Result<(), Broken> {
    let mut waiting = BytesMut::new();
    let mut ended = false;
    loop {
        if waiting.is_empty() {
            if ended {
                return Writer::Tcp(s).finish().map_err(&write_failed);
            }
            let chunk = tokio::select! {
                biased;
                chunk = read_h2(r) => chunk.map_err(&read_failed)?,
                // One that has sent its end is read no more, and may be reset all the same.
                broken = tcp_reset(s) => return Err(write_failed(broken)),
            };
            let Some(chunk) = chunk else {
                ended = true;
                continue;
            };
            // Most often the socket takes the whole frame, and nothing is copied.
            let n = try_write(s, &chunk).map_err(&write_failed)?;
            taken(r, n, moved).map_err(&read_failed)?;
            if n < chunk.len() {
                waiting.extend_from_slice(chunk.get(n..).unwrap_or_default());
            }
            continue;
        }
        tokio::select! {
            biased;
            writable = s.writable() => {
                writable.map_err(&write_failed)?;
                let n = try_write(s, &waiting).map_err(&write_failed)?;
                waiting.advance(n);
                taken(r, n, moved).map_err(&read_failed)?;
            }
            chunk = read_h2(r), if !ended => match chunk.map_err(&read_failed)? {
                Some(chunk) => waiting.extend_from_slice(&chunk),
                None => ended = true,
            },
        }
    }
}

fn taken(r: &mut Option<RecvStream>, n: usize, moved: &AtomicU64) -> io::Result<()> {
    moved.fetch_add(n as u64, Ordering::Relaxed);
    match r {
        Some(r) if n > 0 => r.flow_control().release_capacity(n).map_err(into_io),
        _ => Ok(()),
    }
}

/// Writes what fits now.
fn try_write(s: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match s.try_write(bytes) {
            Ok(n) => return Ok(n),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
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

/// Reads below this are copied out of the buffer, which is used again: a message of one byte must
/// not keep 64 KiB while it waits to be sent.
const SMALL: usize = 8 * 1024;

/// The next bytes, or none at the end. The buffer is given back when a read finds nothing.
async fn read_tcp(s: &TcpStream, buffer: &mut BytesMut) -> io::Result<Option<Bytes>> {
    loop {
        if buffer.capacity() < CHUNK {
            buffer.reserve(CHUNK);
        }
        match s.try_read_buf(buffer) {
            Ok(0) => return Ok(None),
            Ok(n) if n < SMALL => {
                let bytes = Bytes::copy_from_slice(buffer);
                buffer.clear();
                return Ok(Some(bytes));
            }
            Ok(_) => return Ok(Some(buffer.split().freeze())),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                // Idle: 64 KiB for each of ten thousand idle connections would be 640 MB.
                *buffer = BytesMut::new();
                s.readable().await?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

async fn read_h2(r: &mut Option<RecvStream>) -> io::Result<Option<Bytes>> {
    let Some(r) = r else { return Ok(None) };
    loop {
        match r.data().await {
            Some(Ok(bytes)) if bytes.is_empty() => {
                if r.is_end_stream() {
                    return Ok(None);
                }
            }
            Some(Ok(bytes)) => return Ok(Some(bytes)),
            // It comes after the end of what is sent.
            Some(Err(e)) if !e.is_go_away() && e.reason() == Some(Reason::NO_ERROR) => {
                return Ok(None);
            }
            Some(Err(e)) => return Err(into_io(e)),
            None => return Ok(None),
        }
    }
}

/// Whether the peer has said all that it had to say, and reads no more.
fn no_error(e: &io::Error) -> bool {
    let h2 = e.get_ref().and_then(|e| e.downcast_ref::<h2::Error>());
    h2.is_some_and(|e| !e.is_go_away() && e.reason() == Some(Reason::NO_ERROR))
}

/// Reads to the end what nobody wants: a socket that is closed with something unread is reset, and
/// what was sent to its peer may be lost.
async fn discard(s: &TcpStream, buffer: &mut BytesMut) -> io::Result<()> {
    while read_tcp(s, buffer).await?.is_some() {}
    Ok(())
}

impl Writer<'_> {
    async fn write(&mut self, mut chunk: Bytes) -> io::Result<()> {
        match self {
            Writer::Tcp(s) => {
                let mut rest = &chunk[..];
                while !rest.is_empty() {
                    match s.try_write(rest) {
                        Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => s.writable().await?,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(e),
                    }
                }
                Ok(())
            }
            Writer::H2(s) => {
                while !chunk.is_empty() {
                    let n = capacity(s, chunk.len()).await?;
                    let part = chunk.split_to(n.min(chunk.len()));
                    lock(s).send_data(part, false).map_err(into_io)?;
                }
                Ok(())
            }
            Writer::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// The end of this direction; the other may go on.
    fn finish(&mut self) -> io::Result<()> {
        match self {
            Writer::Tcp(s) => match socket2::SockRef::from(*s).shutdown(Shutdown::Write) {
                // The peer has closed both directions already, and cleanly.
                Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
                other => other,
            },
            Writer::H2(s) => {
                let mut s = lock(s);
                match s.send_data(Bytes::new(), true) {
                    Ok(()) => Ok(()),
                    Err(e) => {
                        // A peer that reads no more misses no end.
                        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
                        match s.poll_reset(&mut cx) {
                            std::task::Poll::Ready(Ok(Reason::NO_ERROR)) => Ok(()),
                            _ => Err(into_io(e)),
                        }
                    }
                }
            }
            Writer::Gone => Ok(()),
        }
    }
}

fn lock(s: &std::sync::Mutex<SendStream<Bytes>>) -> std::sync::MutexGuard<'_, SendStream<Bytes>> {
    s.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Waits until some of `wanted` bytes may be sent.
async fn capacity(s: &std::sync::Mutex<SendStream<Bytes>>, wanted: usize) -> io::Result<usize> {
    lock(s).reserve_capacity(wanted);
    std::future::poll_fn(|cx| {
        let mut s = lock(s);
        if s.capacity() > 0 {
            return std::task::Poll::Ready(Ok(s.capacity()));
        }
        loop {
            match s.poll_capacity(cx) {
                std::task::Poll::Ready(Some(Ok(0))) => {}
                std::task::Poll::Ready(Some(Ok(n))) => return std::task::Poll::Ready(Ok(n)),
                std::task::Poll::Ready(Some(Err(e))) => {
                    return std::task::Poll::Ready(Err(into_io(e)));
                }
                std::task::Poll::Ready(None) => {
                    return std::task::Poll::Ready(Err(match s.poll_reset(cx) {
                        std::task::Poll::Ready(Ok(reason)) => {
                            io::Error::new(io::ErrorKind::ConnectionReset, h2::Error::from(reason))
                        }
                        _ => io::ErrorKind::ConnectionReset.into(),
                    }));
                }
                std::task::Poll::Pending => return std::task::Poll::Pending,
            }
        }
    })
    .await
}

async fn peer_reset(s: &std::sync::Mutex<SendStream<Bytes>>) -> io::Error {
    let reason = std::future::poll_fn(|cx| lock(s).poll_reset(cx)).await;
    match reason {
        Ok(reason) => io::Error::new(io::ErrorKind::ConnectionReset, h2::Error::from(reason)),
        Err(e) => into_io(e),
    }
}

fn into_io(e: h2::Error) -> io::Error {
    if e.is_io() {
        e.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
    } else {
        io::Error::new(io::ErrorKind::ConnectionReset, e)
    }
}
