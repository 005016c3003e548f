//! Everything in the workspace, built at once: cargo gives a library other features when fewer packages are asked for, and
//! builds it, and all that stands on it, anew.

use crate::host;
use anyhow::{Context as _, bail};
use serde_json::Value;
use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

/// A program that has tests in it.
pub struct Test {
    pub package: String,
    pub target: String,
    folder: PathBuf,
    program: PathBuf,
}

impl Test {
    /// Where cargo would run it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }
}

/// Builds all programs and all tests; gives the tests.
pub fn all() -> anyhow::Result<Vec<Test>> {
    let mut cargo = host::cargo();
    cargo.args(["build", "--quiet", "--locked", "--workspace", "--all-targets"]);
    cargo.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut child = cargo.spawn().with_context(|| format!("starting {cargo:?}"))?;
    let stdout = child.stdout.take().context("cargo has no output")?;
    let mut tests = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let message: Value = serde_json::from_str(&line?).context("reading cargo's messages")?;
        tests.extend(test(&message));
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{cargo:?} ended with {status}");
    }
    tests.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(tests)
}

/// A test, if cargo's message is of one.
fn test(message: &Value) -> Option<Test> {
    let is_test = message.pointer("/profile/test")?.as_bool()?;
    let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str);
    let folder = PathBuf::from(text("/manifest_path")?).parent()?.to_owned();
    let package = text("/package_id")?;
    // `path+file:///a/b#name@version`, or `#version` where the folder has the package's name.
    let after = package.rsplit_once('#')?.1;
    let name = match after.split_once('@') {
        Some((name, _)) => name.to_owned(),
        None => folder.file_name()?.to_string_lossy().into_owned(),
    };
    let program = text("/executable").filter(|_| is_test)?;
    Some(Test {
        package: name,
        target: text("/target/name")?.to_owned(),
        folder,
        program: program.into(),
    })
}
