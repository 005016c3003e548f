//! The log goes to stdout through a thread of its own, with a bounded queue: whoever reads it
//! slowly, or not at all, loses lines and never slows a connection.

use std::{
    io::{self, Write},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

static LOST: AtomicUsize = AtomicUsize::new(0);

/// Lines dropped since the start.
pub fn lost() -> usize {
    LOST.load(Ordering::Relaxed)
}

const QUEUE: usize = 8192;

/// Bytes that are written at once, or a little more.
const AT_ONCE: usize = 64 * 1024;

/// Between writes. So much of the log is lost when the process is killed.
const PAUSE: Duration = Duration::from_millis(5);

static OUT: OnceLock<SyncSender<Vec<u8>>> = OnceLock::new();

/// A line as it is, without time and level before it.
pub fn line(text: String) {
    let mut text = text.into_bytes();
    text.push(b'\n');
    if OUT.get().is_none_or(|out| out.try_send(text).is_err()) {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct Queue(SyncSender<Vec<u8>>);

/// One event's text, queued whole when it ends.
struct Line {
    queue: Queue,
    text: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, b: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(b);
        Ok(b.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.queue.0.try_send(std::mem::take(&mut self.text)).is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { queue: self.clone(), text: Vec::with_capacity(512) }
    }
}

/// Starts logging; `CULVERT_LOG` filters, as `RUST_LOG` does elsewhere.
pub fn start() {
    let (tx, rx) = sync_channel::<Vec<u8>>(QUEUE);
    std::thread::spawn(move || {
        let mut stdout = io::stdout();
        for mut lines in &rx {
            // Together with those that wait: one write for all of them.
            while lines.len() < AT_ONCE
                && let Ok(line) = rx.try_recv()
            {
                lines.extend_from_slice(&line);
            }
            // A closed stdout is no reason to stop.
            let _ = stdout.write_all(&lines);
            // A line that comes while this thread waits for one wakes it, at a tenth of what opening the
            // connection costs that the line tells of: those of the next few milliseconds do not.
            std::thread::sleep(PAUSE);
        }
    });
    let _ = OUT.set(tx.clone());
    let filter = EnvFilter::try_from_env("CULVERT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(Queue(tx))
        .init();
}
