//! The threads that carry bytes. Each has a runtime of its own, and a connection stays on the one that it
//! is given to, with the HBONE connection under it: what has arrived for one task wakes another on the same
//! thread, and no other thread.

use crate::scope::PodScope;
use std::{cell::Cell, io, net, thread};
use tokio::{
    net::TcpStream,
    runtime::{self, EnterGuard, Handle},
    sync::oneshot,
};

/// A connection leaves the thread that accepted it for one that has so many tasks fewer: each move wakes
/// that thread.
const WORTH_A_MOVE: usize = 4;

thread_local! {
    static HERE: Cell<usize> = const { Cell::new(0) };
}

/// Which worker's thread this is.
pub fn here() -> usize {
    HERE.get()
}

pub struct Workers(Vec<Handle>);

/// Ends the threads, and drops what they carry, when it is dropped.
pub struct Threads(Vec<(oneshot::Sender<()>, thread::JoinHandle<()>)>);

impl Workers {
    pub fn start(count: usize) -> io::Result<(Self, Threads)> {
        let (mut handles, mut threads) = (Vec::new(), Vec::new());
        for number in 0..count.max(1) {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            handles.push(runtime.handle().clone());
            let (end, ended) = oneshot::channel();
            let thread =
                thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                    HERE.set(number);
                    let _ = runtime.block_on(ended);
                })?;
            threads.push((end, thread));
        }
        Ok((Self(handles), Threads(threads)))
    }

    /// For a pod's listeners: what is made and spawned until the answer is dropped belongs to a worker that
    /// has little to do.
    pub fn enter_any(&self) -> Option<EnterGuard<'_>> {
        self.0.iter().min_by_key(|w| w.metrics().num_alive_tasks()).map(Handle::enter)
    }

    /// Spawns `work` with a stream that this worker has accepted: here, or where there is less to do.
    pub fn place<W>(
        &self,
        scope: &PodScope,
        stream: TcpStream,
        work: impl FnOnce(TcpStream) -> W + Send + 'static,
    ) where
        W: Future<Output = ()> + Send + 'static,
    {
        let tasks = |w: &Handle| w.metrics().num_alive_tasks();
        let own = self.0.get(here()).map_or(0, tasks);
        match self.0.iter().find(|w| tasks(w) + WORTH_A_MOVE < own) {
            None => scope.spawn(work(stream)),
            Some(other) => match stream.into_std() {
                Ok(stream) => {
                    let _there = other.enter();
                    scope.spawn(moved(stream, work));
                }
                Err(error) => tracing::warn!(%error, "an accepted connection is lost"),
            },
        }
    }
}

async fn moved<W: Future<Output = ()>>(stream: net::TcpStream, work: impl FnOnce(TcpStream) -> W) {
    match TcpStream::from_std(stream) {
        Ok(stream) => work(stream).await,
        Err(error) => tracing::warn!(%error, "an accepted connection is lost"),
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for (end, thread) in self.0.drain(..) {
            drop(end);
            let _ = thread.join();
        }
    }
}
