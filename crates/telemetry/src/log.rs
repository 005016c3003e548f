//! The log goes to stdout through a thread of its own, with a bounded queue: whoever reads it
//! slowly, or not at all, loses lines and never slows a connection. Of a full queue each pod has its share:
//! one that floods it loses lines of its own.

use crate::{FlowRecord, Whose, access_log::write_access_log, shares::Shares};
use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};
use tracing::{Level, enabled};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        MakeWriter,
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
};

/// Lines dropped since the start.
pub fn lost() -> u64 {
    queue().lock().shares.lost().map(|(_, lines)| lines).sum()
}

/// The same for each pod that has lost some.
pub fn lost_by_pods() -> Vec<(u32, u64)> {
    queue().lock().shares.lost().filter(|(pod, _)| *pod != 0).collect()
}

/// Lines that pods have lost since this was asked last; 0 is the program itself.
pub fn lost_since() -> Vec<(u32, u64)> {
    queue().lock().shares.lost_since()
}

/// The pod is gone; its lines count on in [`lost`].
pub fn forget(pod: u32) {
    queue().lock().shares.forget(pod);
}

const QUEUE: usize = 8192;

/// Bytes that are written at once, or a little more.
const AT_ONCE: usize = 64 * 1024;

/// Between writes that leave nothing waiting. So much of the log is lost when the process is killed.
const PAUSE: Duration = Duration::from_millis(5);

/// A queue that has held so many lines gives its memory back when it is empty.
const KEPT: usize = 256;

/// A line as it is, without time and level before it.
pub fn line(text: String) {
    let mut text = text.into_bytes();
    text.push(b'\n');
    queue().put(Whose::now(), text);
}

/// A connection's line, as `tracing` would write it. Past its fields and layers a connection within a node, which
/// has two, takes the agent 3.7 us instead of 6.9.
pub fn access(level: Level, record: &FlowRecord) {
    // A place in the program has one level.
    let (wanted, level) = match level {
        Level::WARN => (enabled!(target: "access", Level::WARN), " WARN"),
        _ => (enabled!(target: "access", Level::INFO), " INFO"),
    };
    if wanted {
        queue().put(Whose::now(), access_line(level, record).into_bytes());
    }
}

fn access_line(level: &str, record: &FlowRecord) -> String {
    let mut text = String::with_capacity(768);
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text.push(' ');
    text.push_str(level);
    text.push_str(" access: ");
    write_access_log(&mut text, record);
    text.push('\n');
    text
}

struct Queue {
    state: Mutex<State>,
    /// For the thread that writes.
    more: Condvar,
    /// For whoever waits for it.
    written: Condvar,
}

struct State {
    lines: VecDeque<(Whose, Vec<u8>)>,
    shares: Shares,
    /// Lines that were ever put, and those of them that are written.
    put: u64,
    written: u64,
    /// The thread that writes sleeps until there is one.
    is_idle: bool,
}

fn queue() -> &'static Queue {
    static ALL: OnceLock<Queue> = OnceLock::new();
    ALL.get_or_init(Queue::new)
}

impl Queue {
    fn new() -> Self {
        let state = State {
            lines: VecDeque::new(),
            shares: Shares::new(QUEUE),
            put: 0,
            written: 0,
            is_idle: false,
        };
        Self { state: Mutex::new(state), more: Condvar::new(), written: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, whose: Whose, text: Vec<u8>) {
        let mut state = self.lock();
        if !state.shares.take(whose) {
            return;
        }
        state.lines.push_back((whose, text));
        state.put += 1;
        if std::mem::take(&mut state.is_idle) {
            drop(state);
            self.more.notify_one();
        }
    }

    /// Waits for lines, and adds those that wait to `text`; how many they were.
    fn take(&self, text: &mut Vec<u8>) -> u64 {
        let mut state = self.lock();
        while state.lines.is_empty() {
            state.is_idle = true;
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut lines = 0;
        while text.len() < AT_ONCE
            && let Some((whose, line)) = state.lines.pop_front()
        {
            state.shares.give_back(whose);
            text.extend_from_slice(&line);
            lines += 1;
        }
        if state.lines.is_empty() && state.lines.capacity() > KEPT {
            state.lines = VecDeque::new();
        }
        lines
    }

    fn write_each(&self, mut out: impl Write) -> ! {
        let mut text = Vec::new();
        loop {
            let lines = self.take(&mut text);
            // A closed stdout is no reason to stop.
            let _ = out.write_all(&text);
            let more = text.len() >= AT_ONCE;
            text.clear();
            self.lock().written += lines;
            self.written.notify_all();
            // A line that comes while this thread waits for one wakes it, at a fifth of what opening the
            // connection costs that the line tells of: those of the next few milliseconds do not.
            if !more {
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Returns once all is written that was put before.
    fn flush(&self, patience: Duration) {
        let state = self.lock();
        let put = state.put;
        let _ = self.written.wait_timeout_while(state, patience, |s| s.written < put);
    }
}

/// One event's text, queued whole when it ends.
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, b: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(b);
        Ok(b.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        queue().put(Whose::now(), std::mem::take(&mut self.0));
    }
}

struct Lines;

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Vec::with_capacity(512))
    }
}

/// Starts logging; `CULVERT_LOG` filters, as `RUST_LOG` does elsewhere. Keep the answer for as long as the
/// program runs.
pub fn start() -> Written {
    std::thread::spawn(|| queue().write_each(io::stdout()));
    let filter = EnvFilter::try_from_env("CULVERT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Lines).init();
    Written(queue())
}

/// When it is dropped, what has been logged is written first.
#[must_use]
pub struct Written(&'static Queue);

impl Drop for Written {
    fn drop(&mut self) {
        // A stdout that nobody reads keeps no program from its end.
        self.0.flush(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CloseReason, Direction, Endpoint, ResponseFlags, Transport, access_log_line};
    use std::{
        sync::{Arc, mpsc},
        time::UNIX_EPOCH,
    };

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Paper {
        fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
        }
    }

    impl Write for Paper {
        fn write(&mut self, b: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(b)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn new() -> &'static Queue {
        Box::leak(Box::new(Queue::new()))
    }

    #[test]
    fn a_connections_line_is_as_all_others() {
        let record = FlowRecord {
            id: 1,
            direction: Direction::Inbound,
            source: Endpoint { workload: "a \"quoted\" name".into(), ..Endpoint::default() },
            destination: Endpoint { workload: "web".into(), ..Endpoint::default() },
            service: None,
            hbone_address: None,
            transport: Transport::Hbone,
            verdict: None,
            sent: 1,
            received: 2,
            opened: UNIX_EPOCH,
            duration_ms: 3,
            flags: ResponseFlags::None,
            close: Some(CloseReason::Failed("no\nroute".into())),
        };
        let paper = Paper::default();
        let all = tracing_subscriber::fmt().with_ansi(false);
        let own = paper.clone();
        let subscriber = all.with_writer(move || own.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "access", "{}", access_log_line(&record));
            tracing::warn!(target: "access", "{}", access_log_line(&record));
        });
        let lines = [access_line(" INFO", &record), access_line(" WARN", &record)].concat();
        let untimed = |text: &str| -> Vec<(usize, String)> {
            let parts = text.lines().map(|l| l.split_once(' ').unwrap());
            parts.map(|(time, rest)| (time.len(), rest.to_owned())).collect()
        };
        assert_eq!(untimed(&lines), untimed(&paper.text()));
    }

    #[test]
    fn what_was_logged_before_the_end_is_written_in_its_order() {
        let queue = new();
        let paper = Paper::default();
        let out = paper.clone();
        std::thread::spawn(move || queue.write_each(out));
        let log = Written(queue);
        let expected: String = (0..5_000).map(|n| format!("line {n}\n")).collect();
        for line in expected.split_inclusive('\n') {
            queue.put(Whose::PROGRAM, line.into());
        }
        drop(log);
        assert_eq!(paper.text(), expected);
    }

    /// A reader that stands still until it is told to go on.
    struct Stalled(mpsc::Receiver<()>, Paper);

    impl Write for Stalled {
        fn write(&mut self, b: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.write(b)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn of_a_log_that_is_not_read_a_flood_takes_its_share() {
        let queue = new();
        let (go_on, stalled) = mpsc::channel();
        let paper = Paper::default();
        let out = Stalled(stalled, paper.clone());
        std::thread::spawn(move || queue.write_each(out));
        for n in 0..3 * QUEUE {
            queue.put(Whose::pod(1), format!("flood {n}\n").into());
            if n % 30 == 0 {
                queue.put(Whose::pod(2), format!("other {}\n", n / 30).into());
            }
        }
        drop(go_on);
        queue.flush(Duration::from_secs(60));
        let text = paper.text();
        let others: Vec<&str> = text.lines().filter(|l| l.starts_with("other")).collect();
        let expected: Vec<String> =
            (0..(3 * QUEUE).div_ceil(30)).map(|n| format!("other {n}")).collect();
        assert_eq!(others, expected);
        let lost: Vec<_> = queue.lock().shares.lost().collect();
        assert!(matches!(lost.as_slice(), [(1, n)] if *n as usize > QUEUE), "{lost:?}");
    }
}
