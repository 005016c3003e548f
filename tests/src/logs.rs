//! What the programs wrote, shown when a test fails.

use std::fs;
use std::path::PathBuf;

/// The testbed shows stderr; Culvert's programs log to stdout.
pub(crate) struct ShownOnPanic {
    pub(crate) dir: PathBuf,
}

const LINES: usize = 80;

impl Drop for ShownOnPanic {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let mut dirs = vec![self.dir.clone()];
        while let Some(dir) = dirs.pop() {
            for path in fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path()) {
                if path.is_dir() && !path.ends_with("bpf") {
                    dirs.push(path);
                } else if path.extension().is_some_and(|e| e == "out") {
                    let text = fs::read(&path).unwrap_or_default();
                    let text = String::from_utf8_lossy(&text);
                    let lines: Vec<&str> = text.lines().collect();
                    let tail = &lines[lines.len().saturating_sub(LINES)..];
                    eprintln!("--- {} (last {LINES} lines)\n{}", path.display(), tail.join("\n"));
                }
            }
        }
    }
}
