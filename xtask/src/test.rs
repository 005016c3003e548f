//! `cargo xtask test`: everything, with a summary at the end. A test that was skipped is named, and
//! fails the run unless `tests/skips.txt` gives it a reason.

use crate::{ebpf, host};
use anyhow::{Context as _, bail};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Instant,
};

#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose names contain this
    filter: Option<String>,
    /// Leave out the end-to-end tests
    #[arg(long)]
    unit: bool,
}

#[derive(Default)]
struct Summary {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    host::require_root()?;
    host::require_build_tools()?;
    host::require_network_tools()?;
    ebpf::build()?;
    let begun = Instant::now();
    eprintln!("building the programs and their tests (several minutes when cold)");
    host::run(host::cargo().args(["build", "--quiet", "--workspace", "--locked"]))?;
    host::run(host::cargo().args(["test", "--quiet", "--workspace", "--locked", "--no-run"]))?;
    let mut summary = Summary::default();
    // Decisions first: they are quick, and say more precisely what is wrong.
    let unit = ["--workspace", "--exclude", "culvert-tests", "--exclude", "testbed"];
    run_tests(&unit, &[], args, &mut summary)?;
    if !args.unit {
        run_tests(&["--package", "testbed"], &[], args, &mut summary)?;
        run_tests(&["--package", "culvert-tests"], &["--test-threads=2"], args, &mut summary)?;
    }
    report(&summary, begun)
}

fn run_tests(
    what: &[&str],
    test_args: &[&str],
    args: &Args,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let mut command = host::cargo();
    command.args(["test", "--locked", "--no-fail-fast"]).args(what).arg("--").args(test_args);
    if let Some(filter) = &args.filter {
        command.arg(filter);
    }
    command.stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let stdout = child.stdout.take().context("the tests have no output")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        let Some(rest) = line.strip_prefix("test ") else { continue };
        let Some((name, outcome)) = rest.rsplit_once(" ... ") else { continue };
        match outcome.split([' ', ',']).next() {
            Some("ok") => summary.passed += 1,
            Some("FAILED") => summary.failed.push(name.to_owned()),
            Some("ignored") => summary.skipped.push(name.to_owned()),
            _ => {}
        }
    }
    let status = child.wait()?;
    if !status.success() && summary.failed.is_empty() {
        summary.failed.push(format!("{what:?} ended with {status}"));
    }
    Ok(())
}

fn report(summary: &Summary, begun: Instant) -> anyhow::Result<()> {
    let path = host::root().join("tests/skips.txt");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let reasons: BTreeMap<&str, &str> = text
        .lines()
        .filter(|l| !l.trim().is_empty() && !l.starts_with('#'))
        .filter_map(|l| l.split_once(':'))
        .map(|(name, reason)| (name.trim(), reason.trim()))
        .collect();
    println!();
    println!(
        "{} passed, {} failed, {} skipped, in {} s",
        summary.passed,
        summary.failed.len(),
        summary.skipped.len(),
        begun.elapsed().as_secs()
    );
    let mut unexplained = 0;
    for name in &summary.skipped {
        match reasons
            .iter()
            .find(|(listed, _)| name == *listed || name.ends_with(&format!("::{listed}")))
        {
            Some((_, reason)) => println!("skipped  {name}: {reason}"),
            None => {
                unexplained += 1;
                println!("skipped  {name}: NO REASON in tests/skips.txt");
            }
        }
    }
    for name in &summary.failed {
        println!("FAILED   {name}");
    }
    if !summary.failed.is_empty() || unexplained > 0 {
        bail!("{} tests failed, {unexplained} were skipped without a reason", summary.failed.len());
    }
    if summary.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

const FUZZ_TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// libFuzzer's instrumentation by hand: `cargo fuzz` would want a nightly toolchain for it.
const FUZZ_FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

/// Runs each fuzz target for a while, from its corpus.
pub fn fuzz(seconds: u64) -> anyhow::Result<()> {
    host::require_build_tools()?;
    let dir = host::root().join("fuzz");
    let target = host::cache().join("fuzz-target");
    eprintln!("building the fuzz targets (several minutes when cold)");
    host::run(
        host::cargo()
            .current_dir(&dir)
            // A target of its own keeps the flags from build scripts and procedural macros.
            .args(["build", "--release", "--quiet", "--locked", "--target", FUZZ_TRIPLE])
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", FUZZ_FLAGS)
            .env("CARGO_TARGET_DIR", &target),
    )?;
    let mut names: Vec<String> = fs::read_dir(dir.join("fuzz_targets"))?
        .flatten()
        .filter_map(|e| Some(e.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    let mut found = Vec::new();
    for name in &names {
        let program = target.join(FUZZ_TRIPLE).join("release").join(name);
        // New inputs go to a scratch directory, the checked-in corpus is only read.
        let scratch = host::cache().join("fuzz-corpus").join(name);
        fs::create_dir_all(&scratch)?;
        let mut command = Command::new(program);
        command
            .current_dir(&scratch)
            .arg(&scratch)
            .arg(dir.join("corpus").join(name))
            .arg(format!("-max_total_time={seconds}"))
            .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]);
        if !fuzz_one(name, &mut command)? {
            found.push(format!("{name} (its input is in {})", scratch.display()));
        }
    }
    if !found.is_empty() {
        bail!("these found something: {}", found.join(", "));
    }
    Ok(())
}

/// Whether the target found nothing. libFuzzer's progress becomes one line; all else it says is
/// passed on.
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
            _ => eprintln!("{line}"),
        }
    }
    let status = child.wait()?;
    if status.success() && counters == 0 {
        bail!("{name} was built without coverage counters, and would search blindly");
    }
    println!("{name}: {executed} executions, {last} of {counters} edges (first {first}), {status}");
    Ok(status.success())
}
