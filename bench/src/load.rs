//! HTTP's load, and what came of it: wrk for HTTP/1.1 as fast as it goes, h2load for HTTP/2 and for
//! rates that are held.

use anyhow::{Context as _, bail, ensure};
use std::{fs, process::Command, time::Duration};
use testbed::Pod;

/// How long each load lasts.
pub const SECONDS: u64 = 2;

#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// So many connections of HTTP/1.1.
    Http1(u32),
    /// So many connections of HTTP/1.1 at a time, each for one request.
    Http1Once(u32),
    /// So many connections of HTTP/2, and streams on each.
    Http2(u32, u32),
    /// So many connections of HTTP/1.1, and requests a second in all.
    Paced(u32, u32),
}

/// What the clients saw.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub requests: f64,
    pub per_second: f64,
    /// Microseconds.
    pub p50: f64,
    pub p99: f64,
}

impl Load {
    pub fn name(self) -> String {
        match self {
            Self::Http1(connections) => format!("HTTP/1.1, {connections} connections"),
            Self::Http1Once(at_once) => {
                format!("HTTP/1.1, a connection a request, {at_once} at a time")
            }
            Self::Http2(connections, streams) => {
                format!("HTTP/2, {connections} x {streams} streams")
            }
            Self::Paced(_, rate) => format!("HTTP/1.1, {rate}/s"),
        }
    }

    /// Runs it in the pod, on the processors that `on` names (as taskset has it).
    pub fn run(self, from: &Pod, url: &str, on: &str, seconds: u64) -> anyhow::Result<Seen> {
        // A pod's mounts are the host's but for its resolver: what is written there is seen here.
        let log = from.node().dir().join(format!("h2load-{}", from.name()));
        // It would add to what is there.
        let _ = fs::remove_file(&log);
        let text = |n: u32| n.to_string();
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", on]);
        let seconds_given = seconds.to_string();
        match self {
            Self::Http1(connections) | Self::Http1Once(connections) => {
                command.args(["wrk", "--threads", "1", "--latency"]);
                if let Self::Http1Once(_) = self {
                    command.args(["--header", "Connection: close"]);
                }
                command.args(["--connections", &text(connections), "--duration", &seconds_given]);
            }
            Self::Http2(connections, streams) => {
                command.args(["h2load", "--threads", "1", "--clients", &text(connections)]);
                command.args(["--max-concurrent-streams", &text(streams)]);
                command.args(["--duration", &seconds_given, "--log-file"]).arg(&log);
            }
            Self::Paced(connections, rate) => {
                command.args(["h2load", "--h1", "--threads", "1", "--clients", &text(connections)]);
                command.args(["--rps", &text(rate / connections)]);
                command.args(["--duration", &seconds_given, "--log-file"]).arg(&log);
            }
        }
        command.arg(url);
        let process = from.spawn(command)?;
        let status = process.wait(Duration::from_secs(seconds + 30))?;
        let said = process.stdout();
        ensure!(status.success(), "{self:?} ended with {status}: {said}{}", process.stderr());
        let seen = match self {
            Self::Http1(_) | Self::Http1Once(_) => of_wrk(&said),
            _ => of_h2load(&said, &fs::read_to_string(&log)?),
        };
        seen.with_context(|| format!("{url}, {self:?}:\n{said}"))
    }
}

fn of_wrk(said: &str) -> anyhow::Result<Seen> {
    if let Some(bad) = said.lines().find(|l| l.contains("Non-2xx") || l.contains("Socket errors")) {
        bail!("{}", bad.trim());
    }
    let after = |word: &str| {
        said.lines().find_map(|l| l.trim().strip_prefix(word)).map(str::trim).context("no figure")
    };
    let total = said.lines().find(|l| l.contains(" requests in ")).context("no total")?;
    let requests = total.split_whitespace().next().context("no total")?.parse()?;
    Ok(Seen {
        requests,
        per_second: after("Requests/sec:")?.parse()?,
        p50: microseconds(after("50%")?)?,
        p99: microseconds(after("99%")?)?,
    })
}

/// `1.23ms`
fn microseconds(text: &str) -> anyhow::Result<f64> {
    let (number, unit) = text.split_at(text.find(char::is_alphabetic).context("no unit")?);
    let unit = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => bail!("no unit: {unit}"),
    };
    Ok(number.parse::<f64>()? * unit)
}

/// Its log has a line per request: when it began, the status, and how many microseconds it took.
fn of_h2load(said: &str, log: &str) -> anyhow::Result<Seen> {
    let finished = said.lines().find(|l| l.starts_with("finished in ")).context("no rate")?;
    let per_second = finished
        .split(", ")
        .find_map(|part| part.strip_suffix(" req/s"))
        .context("no rate")?
        .parse()?;
    let mut took = Vec::with_capacity(log.len() / 24);
    for line in log.lines() {
        let mut fields = line.split('\t').skip(1);
        let (status, time) = (fields.next(), fields.next().context("no time")?);
        ensure!(status == Some("200"), "a request was answered {status:?}");
        took.push(time.parse::<f64>()?);
    }
    ensure!(!took.is_empty(), "no request was answered");
    took.sort_by(f64::total_cmp);
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    Ok(Seen { requests: took.len() as f64, per_second, p50: at(50), p99: at(99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_understood() {
        let said = "  Latency Distribution\n     50%  123.00us\n     75%    1.00ms\n     99%    \
                    4.50ms\n  6000 requests in 2.00s, 1.2MB read\nRequests/sec:   2999.50\n";
        let seen = of_wrk(said).unwrap();
        assert_eq!((seen.requests, seen.per_second), (6000.0, 2999.5));
        assert_eq!((seen.p50, seen.p99), (123.0, 4500.0));
        assert!(of_wrk(&format!("{said}  Non-2xx or 3xx responses: 3\n")).is_err());
    }

    #[test]
    fn h2load_is_understood() {
        let said = "finished in 2.00s, 1500.00 req/s, 1.00MB/s\n";
        let seen = of_h2load(said, "1\t200\t30\n2\t200\t10\n3\t200\t20\n").unwrap();
        assert_eq!((seen.requests, seen.per_second, seen.p50), (3.0, 1500.0, 20.0));
        assert!(of_h2load(said, "1\t503\t30\n").is_err());
    }
}
