//! `cargo xtask test`: everything, with a summary at the end. A test that was skipped is named, and
//! fails the run unless `tests/skips.txt` gives it a reason.

use crate::{
    ebpf, host,
    programs::{self, Test},
};
use anyhow::{Context as _, bail};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Instant,
};

#[derive(clap::Args)]
pub struct Args {
    /// Only the group of this name (`hostile_pod`, `death`, ...), or else only tests whose names contain this
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
    unsteady: Vec<String>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    host::require_root()?;
    host::require_build_tools()?;
    host::require_network_tools()?;
    host::require_test_programs()?;
    ebpf::build()?;
    let begun = Instant::now();
    eprintln!("building the programs and their tests (several minutes when cold)");
    let built = programs::all()?;
    let mut summary = Summary::default();
    let group = args.filter.as_deref().filter(|f| built.iter().any(|t| t.target == *f));
    let filter = if group.is_none() { args.filter.as_deref() } else { None };
    let built: Vec<Test> =
        built.into_iter().filter(|t| group.is_none_or(|group| t.target == group)).collect();
    // Decisions first: they are quick, and say more precisely what is wrong. What needs Kubernetes is run by `kube test`.
    let apart = ["culvert-tests", "testbed", "kubebed"];
    let (apart, unit): (Vec<_>, Vec<_>) =
        built.iter().partition(|t| apart.contains(&t.package.as_str()));
    for test in unit {
        run_test(test, &[], filter, &mut summary)?;
    }
    if !args.unit {
        for test in apart.iter().filter(|t| t.package == "testbed") {
            run_test(test, &[], filter, &mut summary)?;
        }
        let of_culvert: Vec<_> =
            apart.into_iter().filter(|t| t.package == "culvert-tests").collect();
        end_to_end(&of_culvert, filter, &mut summary)?;
    }
    report(&summary, begun)
}

/// So many end-to-end tests may fail beside others and pass alone; they are named as unsteady.
const UNSTEADY: usize = 2;

fn end_to_end(tests: &[&Test], filter: Option<&str>, summary: &mut Summary) -> anyhow::Result<()> {
    let before = summary.failed.len();
    let mut failed = Vec::new();
    for test in tests {
        let already = summary.failed.len();
        run_test(test, &["--test-threads=2"], filter, summary)?;
        let names = summary.failed.get(already..).unwrap_or_default();
        failed.extend(names.iter().map(|name| (*test, name.clone())));
    }
    if failed.len() > UNSTEADY {
        return Ok(());
    }
    summary.failed.truncate(before);
    for (test, name) in failed {
        println!("once more, alone: {name}");
        let still = summary.failed.len();
        run_test(test, &["--exact", &name], None, summary)?;
        if summary.failed.len() == still {
            summary.unsteady.push(name);
        }
    }
    Ok(())
}

fn run_test(
    test: &Test,
    test_args: &[&str],
    filter: Option<&str>,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    println!("\n     Running {} of {}", test.target, test.package);
    let mut command = test.command();
    command.args(test_args).args(filter).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let stdout = child.stdout.take().context("the tests have no output")?;
    let before = summary.failed.len();
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
    if !status.success() && summary.failed.len() == before {
        summary.failed.push(format!("{} of {} ended with {status}", test.target, test.package));
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
    for name in &summary.unsteady {
        println!("UNSTEADY {name}: failed, and passed alone; why it failed is above");
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
