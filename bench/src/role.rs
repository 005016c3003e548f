//! Child processes: started with a role and its arguments, they print samples, a line each.

use crate::{dns, path, scale, waypoint};
use anyhow::{Context as _, bail, ensure};
use std::{
    env,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};
use testbed::Proc;

/// The samples of each measure, in the order in which they were first measured.
#[derive(Default)]
pub struct Samples(Vec<(String, Vec<f64>)>);

impl Samples {
    pub fn add(&mut self, name: &str, value: f64) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, values)) => values.push(value),
            None => self.0.push((name.to_owned(), vec![value])),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f64])> {
        self.0.iter().map(|(name, values)| (name.as_str(), values.as_slice()))
    }
}

pub fn play(role: &[String]) -> anyhow::Result<()> {
    let words: Vec<&str> = role.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["control", args @ ..] => scale::control::play(args),
        ["hold", args @ ..] => scale::hold::play(args),
        ["fields"] => scale::fields::play(),
        ["decide"] => scale::decide::play(),
        ["ask", args @ ..] => dns::ask::play(args),
        ["backend", args @ ..] => waypoint::backend::play(args),
        ["path", args @ ..] => path::play(args),
        _ => bail!("there is no role {role:?}"),
    }
}

/// A child says that it has measured something.
pub fn say(name: &str, value: f64) {
    println!("{name}\t{value}");
}

pub fn command(words: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new(env::current_exe().context("finding this program")?);
    command.arg("--role").args(words);
    Ok(command)
}

/// Runs a role to its end and adds its samples.
pub fn measure(words: &[&str], into: &mut Samples) -> anyhow::Result<()> {
    let out = command(words)?.stderr(Stdio::inherit()).output().context("starting a role")?;
    ensure!(out.status.success(), "the role {words:?} ended with {}", out.status);
    for (name, value) in samples(&String::from_utf8(out.stdout)?)? {
        into.add(&name, value);
    }
    Ok(())
}

/// What a child has said that it measured.
pub fn samples(said: &str) -> anyhow::Result<Vec<(String, f64)>> {
    let sample = |line: &str| {
        let (name, value) =
            line.split_once('\t').with_context(|| format!("not a sample: {line}"))?;
        Ok((name.to_owned(), value.parse()?))
    };
    said.lines().map(sample).collect()
}

/// Waits for a role that runs in a pod; what it said of these names.
pub fn said<const N: usize>(
    role: &Proc,
    patience: Duration,
    names: [&str; N],
) -> anyhow::Result<[f64; N]> {
    let status =
        role.wait(patience).with_context(|| format!("it has said: {:?}", role.stdout()))?;
    ensure!(status.success(), "a role ended with {status}: {}", role.stderr());
    let samples = samples(&role.stdout())?;
    let mut values = [0.0; N];
    for (value, name) in values.iter_mut().zip(names) {
        let found = samples.iter().find(|(n, _)| n == name);
        *value = found.with_context(|| format!("the role did not say {name}"))?.1;
    }
    Ok(values)
}

/// What so many of a hundred took less than.
///
/// # Panics
/// Without any.
pub fn microseconds(took: &mut [Duration], percent: usize) -> f64 {
    took.sort_unstable();
    took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e6
}

/// A role that serves until it is dropped. Its standard input is its line to its parent: the
/// child ends when that closes, whatever became of the parent.
pub struct Serving {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Serving {
    pub fn start(words: &[&str]) -> anyhow::Result<Self> {
        let mut child = command(words)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a role")?;
        let stdout = BufReader::new(child.stdout.take().context("the role has no output")?);
        Ok(Self { child, stdout })
    }

    /// What it says once it serves.
    pub fn first_line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "the role ended before it served");
        Ok(line.trim().to_owned())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Ends this process when its parent has gone.
pub fn end_with_parent() {
    std::thread::spawn(|| {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1)) {}
        std::process::exit(0);
    });
}
