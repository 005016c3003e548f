//! Runs `ip` and `nft` in a namespace.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a batch of `ip` commands, one per line, in the named namespace.
pub(crate) fn ip(netns: &str, batch: &str) -> Result<()> {
    let mut cmd = Command::new("ip");
    cmd.args(["-n", netns, "-batch", "-"]);
    feed(cmd, batch).with_context(|| format!("ip in {netns}"))
}

/// Loads an nft ruleset, atomically, in the named namespace.
pub(crate) fn nft(netns: &str, ruleset: &str) -> Result<()> {
    let mut cmd = Command::new("ip");
    cmd.args(["netns", "exec", netns, "nft", "-f", "-"]);
    feed(cmd, ruleset).with_context(|| format!("nft in {netns}"))
}

fn feed(mut cmd: Command, input: &str) -> Result<()> {
    let mut child = cmd
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {:?}: is it installed?", cmd.get_program()))?;
    // A tool that gives up early closes its end; its own words say more than EPIPE.
    let written = child.stdin.take().context("no stdin")?.write_all(input.as_bytes());
    let out = child.wait_with_output()?;
    if !out.status.success() {
        bail!("{}\nin:\n{input}", String::from_utf8_lossy(&out.stderr).trim());
    }
    written.context("the tool did not read its input")
}
