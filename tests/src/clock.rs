//! Clocks on the wall that a test sets, for processes that it starts: a library stands between them and
//! the machine's, which nobody touches.

use std::path::{Path, PathBuf};
use std::process::Command;

/// One machine's clock; what it says can be changed while processes read it.
pub struct Clock {
    file: PathBuf,
}

impl Clock {
    /// As the machine's, to begin with.
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let clock = Self { file: dir.join(format!("{name}.clock")) };
        clock.set(0);
        clock
    }

    /// So many hours ahead of the machine's; behind it, when negative.
    pub fn set(&self, hours: i64) {
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{hours:+}h")).unwrap();
        // At once: no reader finds half a line.
        std::fs::rename(new, &self.file).unwrap();
    }

    /// The process will read this clock. Time that only passes, which timers go by, stays the machine's.
    pub(crate) fn keep(&self, cmd: &mut Command) {
        cmd.env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_DISABLE_SHM", "1")
            .env("NO_FAKE_STAT", "1");
    }
}

/// Debian's, whatever the architecture.
fn library() -> PathBuf {
    let of_architecture = std::fs::read_dir("/usr/lib").unwrap();
    let paths = of_architecture.map(|e| e.unwrap().path().join("faketime/libfaketime.so.1"));
    let found = paths.into_iter().find(|p| p.exists());
    found.expect("libfaketime is not installed (Debian: faketime)")
}
