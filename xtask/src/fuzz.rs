//! `cargo xtask fuzz`: every fuzz target for a while, as many at a time as there are processors.

use crate::host;
use anyhow::{Context as _, bail};
use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    slice,
    sync::{Mutex, PoisonError},
    thread,
};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// libFuzzer's instrumentation by hand: `cargo fuzz` would want a nightly toolchain for it.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

/// Runs each fuzz target for so many seconds, from its corpus.
pub fn run(seconds: u64) -> anyhow::Result<()> {
    host::require_build_tools()?;
    let dir = host::root().join("fuzz");
    let target = host::cache().join("fuzz-target");
    eprintln!("building the fuzz targets (several minutes when cold)");
    host::run(
        host::cargo()
            .current_dir(&dir)
            // A target of its own keeps the flags from build scripts and procedural macros.
            .args(["build", "--release", "--quiet", "--locked", "--target", TRIPLE])
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", FLAGS)
            .env("CARGO_TARGET_DIR", &target),
    )?;
    let mut names: Vec<String> = fs::read_dir(dir.join("fuzz_targets"))?
        .flatten()
        .filter_map(|e| Some(e.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    let programs = target.join(TRIPLE).join("release");
    let queue = Mutex::new(names.iter());
    let work = || take_turns(&queue, &programs, &dir.join("corpus"), seconds);
    let found = thread::scope(|scope| {
        let at_a_time = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..at_a_time).map(|_| scope.spawn(work)).collect();
        let mut found = Vec::new();
        for worker in workers {
            let done = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            found.extend(done?);
        }
        anyhow::Ok(found)
    })?;
    if !found.is_empty() {
        bail!("these found something: {}", found.join(", "));
    }
    Ok(())
}

/// Runs targets of the queue, one after the other, until none is left; names those that found
/// something.
fn take_turns(
    queue: &Mutex<slice::Iter<'_, String>>,
    programs: &Path,
    corpus: &Path,
    seconds: u64,
) -> anyhow::Result<Vec<String>> {
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let mut found = Vec::new();
    while let Some(name) = next() {
        // New inputs go to a scratch directory, the checked-in corpus is only read.
        let scratch = host::cache().join("fuzz-corpus").join(name);
        fs::create_dir_all(&scratch)?;
        let mut command = Command::new(programs.join(name));
        command
            .current_dir(&scratch)
            .arg(&scratch)
            .arg(corpus.join(name))
            .arg(format!("-max_total_time={seconds}"))
            .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]);
        if !fuzz_one(name, &mut command)? {
            found.push(format!("{name} (its input is in {})", scratch.display()));
        }
    }
    Ok(found)
}

/// Whether the target found nothing. libFuzzer's progress becomes one line; all else it says is
/// passed on, line by line, as another target may be speaking, too.
fn fuzz_one(name: &str, command: &mut Command) -> anyhow::Result<bool> {
    let mut child =
        command.stderr(Stdio::piped()).spawn().with_context(|| format!("starting {command:?}"))?;
    let stderr = child.stderr.take().context("the target has no output")?;
    let (mut counters, mut executed, mut first, mut last) = (0, 0, 0, 0);
    for line in BufReader::new(stderr).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            // #4096 pulse cov: 131 ft: 388 corp: 50/1023b ...
            [run, _, rest @ ..] if run.starts_with('#') => {
                executed = run.trim_start_matches('#').parse().unwrap_or(executed);
                if let ["cov:", covered, ..] = rest {
                    last = covered.parse().unwrap_or(last);
                    first = if first == 0 { last } else { first };
                }
            }
            ["INFO:", "Loaded", _, "modules", count, "inline", ..] => {
                counters = count.trim_start_matches('(').parse().unwrap_or(0);
            }
            ["stat::number_of_executed_units:", n] => executed = n.parse().unwrap_or(executed),
            ["INFO:", ..] | ["Done", ..] | [] => {}
            // Symbols that only sanitizers bring are missed in warnings.
            ["WARNING:", "Failed", "to", "find", "function", ..] => {}
            // Figures, newly covered functions, and words of a dictionary.
            [word, ..] if ["stat::", "NEW_FUNC[", "\""].iter().any(|p| word.starts_with(p)) => {}
            _ => {
                // In one piece.
                let whole = format!("{name}: {line}\n");
                eprint!("{whole}");
            }
        }
    }
    let status = child.wait()?;
    if status.success() && counters == 0 {
        bail!("{name} was built without coverage counters, and would search blindly");
    }
    println!("{name}: {executed} executions, {last} of {counters} edges (first {first}), {status}");
    Ok(status.success())
}
