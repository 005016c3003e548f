//! Connections that end in good order: who has said its last word reads on, for a little, until the
//! other end has gone too. Closed at once, the way beneath would tell the other end of a reset, which an
//! application takes for a failure.

use crate::upstream::Io;
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    runtime::Handle,
    sync::Semaphore,
};

/// How long the other end may take over its own last word, and how much of it is read.
const PATIENCE: Duration = Duration::from_secs(5);
const MOST: u64 = 64 * 1024;

/// So many part at a time; others are closed at once.
const AT_A_TIME: usize = 1024;
static PARTING: Semaphore = Semaphore::const_new(AT_A_TIME);

/// Whether an end would be in good order: nothing is under way.
#[derive(Clone, Default)]
pub struct InOrder(Arc<AtomicBool>);

impl InOrder {
    pub fn set(&self, yes: bool) {
        self.0.store(yes, Ordering::Relaxed);
    }
}

pub struct Parting {
    /// There until it is dropped.
    io: Option<Io>,
    said_all: bool,
    in_order: InOrder,
}

impl Parting {
    pub fn new(io: Io, in_order: InOrder) -> Self {
        Self { io: Some(io), said_all: false, in_order }
    }

    fn io(&mut self) -> io::Result<Pin<&mut Io>> {
        self.io.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Parting {
    fn drop(&mut self) {
        if !self.said_all || !self.in_order.0.load(Ordering::Relaxed) {
            return;
        }
        let (Ok(runtime), Ok(place)) = (Handle::try_current(), PARTING.try_acquire()) else {
            return;
        };
        if let Some(io) = self.io.take() {
            runtime.spawn(tokio::time::timeout(PATIENCE, async move {
                let _place = place;
                let _ = tokio::io::copy(&mut io.take(MOST), &mut tokio::io::sink()).await;
            }));
        }
    }
}

impl AsyncRead for Parting {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().io()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Parting {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().io()?.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().io()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = this.io()?.poll_shutdown(cx);
        this.said_all |= matches!(done, Poll::Ready(Ok(())));
        done
    }
}
