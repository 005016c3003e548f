//! The log goes to stdout through a thread of its own, with a bounded queue: whoever reads it
//! slowly, or not at all, loses lines and never slows a connection.

use std::{
    io::{self, Write},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
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

/// Between writes that leave nothing waiting. So much of the log is lost when the process is killed.
const PAUSE: Duration = Duration::from_millis(5);

static OUT: OnceLock<SyncSender<Message>> = OnceLock::new();

enum Message {
    Text(Vec<u8>),
    /// Whether all before it is written.
    Asks(SyncSender<()>),
}

/// A line as it is, without time and level before it.
pub fn line(text: String) {
    let mut text = text.into_bytes();
    text.push(b'\n');
    if OUT.get().is_none_or(|out| out.try_send(Message::Text(text)).is_err()) {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct Queue(SyncSender<Message>);

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
        if self.queue.0.try_send(Message::Text(std::mem::take(&mut self.text))).is_err() {
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

/// Starts logging; `CULVERT_LOG` filters, as `RUST_LOG` does elsewhere. Keep the answer for as long as the
/// program runs.
pub fn start() -> Written {
    let (tx, rx) = sync_channel(QUEUE);
    std::thread::spawn(move || write_each(&rx, io::stdout()));
    let _ = OUT.set(tx.clone());
    let filter = EnvFilter::try_from_env("CULVERT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(Queue(tx.clone()))
        .init();
    Written(tx)
}

/// When it is dropped, what has been logged is written first.
#[must_use]
pub struct Written(SyncSender<Message>);

impl Drop for Written {
    fn drop(&mut self) {
        let (done, is_done) = sync_channel(1);
        // A queue that is full, or a stdout that nobody reads, keeps no program from its end.
        if self.0.try_send(Message::Asks(done)).is_ok() {
            let _ = is_done.recv_timeout(Duration::from_secs(1));
        }
    }
}

fn write_each(queue: &Receiver<Message>, mut out: impl Write) {
    let mut lines = Vec::new();
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        let mut asks = None;
        // Together with those that wait: one write for all of them.
        while let Some(message) = next.take() {
            match message {
                Message::Text(text) => lines.extend_from_slice(&text),
                Message::Asks(done) => asks = Some(done),
            }
            if lines.len() < AT_ONCE && asks.is_none() {
                next = queue.try_recv().ok();
            }
        }
        let more = lines.len() >= AT_ONCE;
        // A closed stdout is no reason to stop.
        let _ = out.write_all(&lines);
        lines.clear();
        match asks {
            Some(done) => drop(done.try_send(())),
            // A line that comes while this thread waits for one wakes it, at a fifth of what opening the
            // connection costs that the line tells of: those of the next few milliseconds do not.
            None if !more => std::thread::sleep(PAUSE),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, b: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(b)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_was_logged_before_the_end_is_written_in_its_order() {
        let (tx, rx) = sync_channel(QUEUE);
        let paper = Paper::default();
        let out = paper.clone();
        std::thread::spawn(move || write_each(&rx, out));
        let log = Written(tx.clone());
        let expected: String = (0..5_000).map(|n| format!("line {n}\n")).collect();
        for line in expected.split_inclusive('\n') {
            tx.send(Message::Text(line.into())).unwrap();
        }
        drop(log);
        assert_eq!(String::from_utf8_lossy(&paper.0.lock().unwrap()), expected);
    }
}
