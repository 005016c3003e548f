//! GET, from within a network namespace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// The status and the body.
pub(crate) fn get(netns: &Path, to: SocketAddr, path: &str) -> Result<(u16, String)> {
    let timeout = Duration::from_secs(10);
    testbed::inside(netns, || {
        let mut tcp = TcpStream::connect_timeout(&to, timeout)?;
        tcp.set_read_timeout(Some(timeout))?;
        write!(tcp, "GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP response")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    })
}
