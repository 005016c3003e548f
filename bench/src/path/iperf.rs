//! iperf3: bytes as fast as they go.

use anyhow::{Context as _, ensure};
use culvert_tests::{MeshPod, SOON};
use serde_json::Value;
use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};
use testbed::Proc;

pub const PORT: u16 = 5201;

pub fn serve(pod: &MeshPod) -> anyhow::Result<Proc> {
    let mut command = Command::new("iperf3");
    command.args(["--server", "--forceflush", "--port", &PORT.to_string()]);
    let server = pod.spawn(command)?;
    server.wait_for_output("Server listening", SOON)?;
    Ok(server)
}

/// One run of the client, in this pod.
pub struct Run {
    process: Proc,
    seconds: u64,
}

/// What the receiver has got.
pub struct Received {
    pub bytes: f64,
    pub bits_per_second: f64,
}

impl Run {
    /// `reverse`: the server sends.
    pub fn start(
        from: &MeshPod,
        to: impl Into<IpAddr>,
        port: u16,
        streams: u32,
        reverse: bool,
        seconds: u64,
    ) -> anyhow::Result<Self> {
        let to = SocketAddr::new(to.into(), port);
        let mut command = Command::new("iperf3");
        command.args([
            "--client",
            &to.ip().to_string(),
            "--port",
            &to.port().to_string(),
            "--json",
        ]);
        command.args(["--time", &seconds.to_string(), "--parallel", &streams.to_string()]);
        if reverse {
            command.arg("--reverse");
        }
        Ok(Self { process: from.spawn(command)?, seconds })
    }

    pub fn received(self) -> anyhow::Result<Received> {
        let status = self.process.wait(Duration::from_secs(self.seconds + 30))?;
        let said = self.process.stdout();
        ensure!(status.success(), "iperf3 ended with {status}: {said}{}", self.process.stderr());
        received(&said).with_context(|| format!("iperf3 said {said}"))
    }
}

fn received(said: &str) -> anyhow::Result<Received> {
    let said: Value = serde_json::from_str(said)?;
    let sum = &said["end"]["sum_received"];
    let figure = |name: &str| sum[name].as_f64().context("no sum of what was received");
    let received =
        Received { bytes: figure("bytes")?, bits_per_second: figure("bits_per_second")? };
    ensure!(received.bytes > 0.0, "nothing was received");
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::received;

    #[test]
    fn iperf3_is_understood() {
        let said = r#"{ "end": { "sum_received": { "bytes": 2000, "bits_per_second": 8e3 } } }"#;
        let received = received(said).unwrap();
        assert_eq!((received.bytes, received.bits_per_second), (2000.0, 8000.0));
        assert!(super::received(r#"{ "error": "unable to connect" }"#).is_err());
    }
}
