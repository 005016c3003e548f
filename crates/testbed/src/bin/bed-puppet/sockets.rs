//! The sockets that a puppet holds, by number.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use testbed::puppet::protocol::{Listening, Opened};
use testbed::puppet::{PuppetError, Serve};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::stream::Stream;
use crate::{error, serve};

/// The kernel cuts it down to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

#[derive(Default)]
pub(crate) struct Sockets {
    streams: Mutex<HashMap<u64, Arc<Stream>>>,
    listeners: Mutex<HashMap<u64, Listener>>,
    next: AtomicU64,
}

enum Listener {
    Manual { tcp: Arc<TcpListener>, closing: watch::Sender<bool> },
    Serving(JoinHandle<()>),
}

impl Sockets {
    pub(crate) fn listen(&self, addr: SocketAddr, serve: Serve) -> Result<Listening, PuppetError> {
        let tcp = bind(addr).map_err(|e| error::from_io(&format!("listen {addr}"), &e))?;
        let addr = tcp.local_addr().map_err(|e| error::from_io("listen", &e))?;
        let listener = match serve {
            Serve::Manual => {
                Listener::Manual { tcp: Arc::new(tcp), closing: watch::Sender::new(false) }
            }
            serve => Listener::Serving(tokio::spawn(serve::accept_loop(tcp, serve))),
        };
        let id = self.number();
        lock(&self.listeners).insert(id, listener);
        Ok(Listening { listener: id, addr })
    }

    pub(crate) async fn accept(&self, id: u64) -> Result<Opened, PuppetError> {
        let (tcp, mut closing) = match lock(&self.listeners).get(&id) {
            Some(Listener::Manual { tcp, closing }) => (tcp.clone(), closing.subscribe()),
            Some(Listener::Serving(_)) => {
                return Err(PuppetError::new("other", "this listener serves by itself"));
            }
            None => return Err(error::no_such("listener", id)),
        };
        let accepted = tokio::select! {
            accepted = tcp.accept() => accepted,
            _ = closing.wait_for(|closing| *closing) => return Err(error::closed()),
        };
        let (stream, _) = accepted.map_err(|e| error::from_io("accept", &e))?;
        stream.set_nodelay(true).map_err(|e| error::from_io("accept", &e))?;
        self.add(stream)
    }

    /// Answers when the kernel's socket is closed.
    pub(crate) async fn close_listener(&self, id: u64) -> Result<Value, PuppetError> {
        let listener = lock(&self.listeners).remove(&id);
        match listener.ok_or_else(|| error::no_such("listener", id))? {
            Listener::Manual { tcp, closing } => {
                closing.send_replace(true);
                sole(tcp).await;
            }
            Listener::Serving(task) => {
                task.abort();
                let _ = task.await;
            }
        }
        Ok(json!({}))
    }

    pub(crate) fn add(&self, tcp: TcpStream) -> Result<Opened, PuppetError> {
        let stream = Stream::new(tcp);
        // A peer that is gone already still is a connection: it can be read, and shows its reset there.
        let names = stream.names().unwrap_or(testbed::puppet::Names {
            local: SocketAddr::from(([0, 0, 0, 0], 0)),
            peer: SocketAddr::from(([0, 0, 0, 0], 0)),
        });
        let id = self.number();
        lock(&self.streams).insert(id, Arc::new(stream));
        Ok(Opened { sock: id, names })
    }

    pub(crate) fn get(&self, id: u64) -> Result<Arc<Stream>, PuppetError> {
        lock(&self.streams).get(&id).cloned().ok_or_else(|| error::no_such("socket", id))
    }

    /// Answers when the kernel's socket is closed. Closing what is closed is no error.
    pub(crate) async fn close(&self, id: u64, reset: bool) -> Result<Value, PuppetError> {
        let stream = lock(&self.streams).remove(&id);
        if let Some(stream) = stream {
            if reset {
                stream.abort()?;
            }
            stream.interrupt();
            sole(stream).await;
        }
        Ok(json!({}))
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Waits for the other users, who have been told to stop, and drops the last reference.
async fn sole<T>(mut shared: Arc<T>) {
    loop {
        match Arc::try_unwrap(shared) {
            Ok(last) => return drop(last),
            Err(still) => shared = still,
        }
        tokio::task::yield_now().await;
    }
}

fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
