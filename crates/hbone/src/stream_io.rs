//! A stream as something that is read from and written to, for protocols that run inside it.

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes handed to h2 at a time: what one TLS flight of four records holds.
const CHUNK: usize = 64 * 1024;

/// The end of what is written is a half-close; a drop before that is a reset. A drop after it, and
/// before the end of what is read, is h2's to tell: once all that was written has been sent, that no
/// more is read (RFC 9113, section 8.1).
pub struct StreamIo {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// What was received and not yet read.
    held: Bytes,
    write_ended: bool,
}

impl StreamIo {
    pub fn new(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        Self { send, receive, held: Bytes::new(), write_ended: false }
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.held.is_empty() {
            match ready!(this.receive.poll_data(cx)) {
                Some(Ok(data)) => this.held = data,
                // It comes after the end of what is sent (RFC 9113, section 8.1).
                Some(Err(e)) if !e.is_go_away() && e.reason() == Some(Reason::NO_ERROR) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(e)) => return Poll::Ready(Err(to_io(e))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = this.held.len().min(buf.remaining());
        buf.put_slice(this.held.get(..n).unwrap_or_default());
        this.held.advance(n);
        // Credit for what the reader has taken. It fails when the stream is gone, which the next read
        // tells.
        let _ = this.receive.flow_control().release_capacity(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if this.write_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        this.send.reserve_capacity(buf.len().min(CHUNK));
        let room = match this.send.capacity() {
            0 => loop {
                match ready!(this.send.poll_capacity(cx)) {
                    // h2 may wake without room.
                    Some(Ok(0)) => {}
                    Some(Ok(n)) => break n,
                    Some(Err(e)) => return Poll::Ready(Err(to_io(e))),
                    None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                }
            },
            n => n,
        };
        // A reset that came meanwhile.
        if let Poll::Ready(reset) = this.send.poll_reset(cx) {
            return Poll::Ready(Err(match reset {
                Ok(reason) => to_io(reason.into()),
                Err(e) => to_io(e),
            }));
        }
        let n = room.min(buf.len());
        let data = Bytes::copy_from_slice(buf.get(..n).unwrap_or_default());
        this.send.send_data(data, false).map_err(to_io)?;
        Poll::Ready(Ok(n))
    }

    /// Nothing is held here. Whoever waits for something else than the peer asks for this meanwhile,
    /// and hears of a reset that it would see neither in reading nor in writing.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut().send.poll_reset(cx) {
            Poll::Ready(Ok(Reason::NO_ERROR)) | Poll::Pending => Poll::Ready(Ok(())),
            Poll::Ready(Ok(reason)) => Poll::Ready(Err(to_io(reason.into()))),
            Poll::Ready(Err(e)) => Poll::Ready(Err(to_io(e))),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.write_ended {
            this.write_ended = true;
            this.send.send_data(Bytes::new(), true).map_err(to_io)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for StreamIo {
    fn drop(&mut self) {
        if !self.write_ended {
            // Takes what is not sent yet along.
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

fn to_io(e: h2::Error) -> io::Error {
    if e.is_io() {
        return e.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, e)
}
