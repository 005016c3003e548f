//! TLS between an HTTP/2 connection and its socket. What the connection has to send when it is polled is
//! written at once, and what has arrived is read at once, where h2 flushes after each DATA frame and rustls
//! reads by 4 KiB: 64 connections of requests cost a tenth less CPU.

use rustls::Connection;
use std::{
    io::{self, BufRead as _, IoSlice, Write},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// No more plaintext is added, but what waits is written first, once it is so much: four frames.
const ENOUGH: usize = 256 * 1024;
/// Not reached by frames of ours: what waits is less than [`ENOUGH`] when another is added.
const LIMIT: usize = 2 * ENOUGH;
/// Ciphertext read at a time: four records, and a few small ones.
const READ: usize = 64 * 1024 + 512;

/// For h2. The [`Outlet`] is for who polls h2.
pub struct Transport<T>(Arc<Mutex<Tls<T>>>);

/// Flushes what h2 has written while it was polled. Before it is used, h2's own flushes do that.
pub struct Outlet<T>(Arc<Mutex<Tls<T>>>);

/// For a session whose handshake is done.
pub fn transport<T>(io: T, session: impl Into<Connection>) -> (Transport<T>, Outlet<T>) {
    let mut session = session.into();
    session.set_buffer_limit(Some(LIMIT));
    let tls = Tls {
        io,
        session,
        read: Vec::new(),
        taken: 0,
        queued: 0,
        driven: false,
        closing: false,
        failed: None,
    };
    let tls = Arc::new(Mutex::new(tls));
    (Transport(tls.clone()), Outlet(tls))
}

struct Tls<T> {
    io: T,
    session: Connection,
    /// Ciphertext, of which so much has been given to `session`. Without an allocation when idle.
    read: Vec<u8>,
    taken: usize,
    /// Plaintext bytes whose ciphertext may wait in `session`.
    queued: usize,
    driven: bool,
    closing: bool,
    /// Of a flush that h2 did not ask for: it is told when it reads next.
    failed: Option<io::Error>,
}

fn lock<T>(tls: &Mutex<Tls<T>>) -> MutexGuard<'_, Tls<T>> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: AsyncRead + AsyncWrite + Unpin> Outlet<T> {
    /// Polls h2, and writes what it has left.
    pub fn drive<R>(
        &self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        lock(&self.0).driven = true;
        let outcome = poll(cx);
        let mut tls = lock(&self.0);
        if tls.taken == tls.read.len() {
            // Idle, most likely.
            (tls.read, tls.taken) = (Vec::new(), 0);
        }
        if let Poll::Ready(Err(error)) = tls.write_out(cx)
            && tls.failed.is_none()
        {
            tls.failed = Some(error);
            cx.waker().wake_by_ref();
        }
        outcome
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Tls<T> {
    fn write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut AsRustls { io: &mut self.io, cx }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        self.queued = 0;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Plaintext, of as many records as are there and fit; nothing at the end.
    fn read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let before = buf.remaining();
        loop {
            match self.session.reader().fill_buf() {
                Ok([]) => return Poll::Ready(Ok(())),
                Ok(plain) => {
                    let n = plain.len().min(buf.remaining());
                    buf.put_slice(plain.get(..n).unwrap_or_default());
                    self.session.reader().consume(n);
                    if buf.remaining() == 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.taken == self.read.len() {
                        if buf.remaining() < before {
                            return Poll::Ready(Ok(()));
                        }
                        ready!(self.fill(cx))?;
                    }
                    self.open(cx)?;
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.read.clear();
        self.taken = 0;
        self.read.reserve(READ);
        std::pin::pin!(self.io.read_buf(&mut self.read)).poll(cx)
    }

    /// Gives the session a piece of what was read; without any, it learns of the end.
    fn open(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut rest = self.read.get(self.taken..).unwrap_or_default();
        self.taken += self.session.read_tls(&mut rest)?;
        if let Err(error) = self.session.process_new_packets() {
            // The peer is to learn why.
            let _ = self.write_out(cx);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(())
    }

    fn write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.queued >= ENOUGH {
            ready!(self.write_out(cx))?;
        }
        loop {
            let n = self.session.writer().write_vectored(bufs)?;
            self.queued += n;
            if n > 0 || bufs.iter().all(|b| b.is_empty()) {
                return Poll::Ready(Ok(n));
            }
            ready!(self.write_out(cx))?;
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Transport<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        lock(&self.0).read(cx, buf)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Transport<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut tls = lock(&self.0);
        if tls.driven {
            return Poll::Ready(Ok(()));
        }
        tls.write_out(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut tls = lock(&self.0);
        if !tls.closing {
            tls.closing = true;
            tls.session.send_close_notify();
        }
        ready!(tls.write_out(cx))?;
        match ready!(Pin::new(&mut tls.io).poll_shutdown(cx)) {
            Err(e) if e.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(e)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

/// The socket, as rustls writes: `WouldBlock` stands for pending.
struct AsRustls<'a, 'b, T> {
    io: &'a mut T,
    cx: &'a mut Context<'b>,
}

impl<T: AsyncWrite + Unpin> Write for AsRustls<'_, '_, T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match Pin::new(&mut *self.io).poll_write_vectored(self.cx, bufs) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
