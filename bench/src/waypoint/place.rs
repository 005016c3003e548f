//! A pod with a gateway, a backend behind it, and room for clients: whatever goes to and fro stays on
//! that pod's loopback.

use crate::{process, role};
use anyhow::{Context as _, ensure};
use culvert_tests::{Mesh, SOON, Waypoint};
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};
use testbed::{Proc, eventually, inside};

/// The backend's addresses, one for each destination.
pub const BACKENDS: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
pub const BACKEND_PORT: u16 = 9000;
/// The gateway's.
pub const PORT: u16 = 8080;

/// Where clients and backends run, and where the proxy that is measured.
pub const OTHERS: &str = "0";

pub fn proxys_processor() -> usize {
    std::thread::available_parallelism().map_or(0, |n| n.get() - 1).min(1)
}

pub struct Place {
    pub gateway: Waypoint,
    _backend: Proc,
}

impl Place {
    /// `label`: what Gateways select it by (`istio`).
    pub fn new(mesh: &Mesh, node: usize, label: &str) -> anyhow::Result<Self> {
        let arguments = ["--workers", "1", "--no-access-log"];
        let gateway = mesh.gateway_with(node, label, label, &arguments);
        for address in BACKENDS {
            let mut command = Command::new("ip");
            command.args(["-netns", &gateway.pod.netns_name(), "address", "add"]);
            let status = command.args([&format!("{address}/32"), "dev", "lo"]).status()?;
            ensure!(status.success(), "no address for the backend");
        }
        let backend = backend(&gateway.pod, BACKEND_PORT)?;
        process::pin(backend.pid(), 0)?;
        process::pin(gateway.pid(), proxys_processor())?;
        Ok(Self { gateway, _backend: backend })
    }

    /// A host's URL within the pod.
    pub fn url(&self, mesh: &Mesh, host: &str, port: u16, path: &str) -> String {
        mesh.bed.dns(host, &[Ipv4Addr::LOCALHOST.into()]);
        format!("http://{host}:{port}{path}")
    }

    /// Waits until the gateway, or whoever listens on that port, answers 200.
    pub fn serves(&self, host: &str, port: u16, path: &str) -> anyhow::Result<()> {
        eventually(SOON, || {
            let mut client = Client::connect(&self.gateway.pod.netns_path(), port)?;
            let answer = client.get(host, path)?;
            ensure!(answer.starts_with("HTTP/1.1 200"), "{host}{path}: {answer}");
            Ok(())
        })
    }
}

/// Answers on a port of a pod.
pub fn backend(pod: &testbed::Pod, port: u16) -> anyhow::Result<Proc> {
    let backend = pod.spawn(role::command(&["backend", &port.to_string()])?)?;
    backend.wait_for_output("listens on", SOON)?;
    Ok(backend)
}

/// One connection that asks, and asks again.
pub struct Client(TcpStream);

impl Client {
    pub fn connect(netns: &Path, port: u16) -> anyhow::Result<Self> {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = inside(netns, || Ok(TcpStream::connect(at)?))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// Head and body, of an answer that says its length.
    pub fn get(&mut self, host: &str, path: &str) -> anyhow::Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        self.0.write_all(request.as_bytes())?;
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let n = self.0.read(&mut buffer)?;
            ensure!(n > 0, "the connection ended");
            answer.extend_from_slice(&buffer[..n]);
            let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
            if body.len() >= length.context("no length")?.trim().parse()? {
                return Ok(String::from_utf8_lossy(&answer).into_owned());
            }
        }
    }
}
