//! A connected socket that commands work on, several at once, until one of them closes it.

use std::future::Future;
use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use socket2::SockRef;
use testbed::pattern::{Pattern, hex, unhex};
use testbed::puppet::protocol::{Amount, Data, SockOption};
use testbed::puppet::{Names, PuppetError, Received, Sent};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, watch};

use crate::error;

pub(crate) const BLOCK: usize = 256 * 1024;

pub(crate) struct Stream {
    tcp: TcpStream,
    /// One reader and one writer at a time, in the order they came.
    reading: Mutex<()>,
    writing: Mutex<()>,
    closing: watch::Sender<bool>,
}

impl Stream {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            reading: Mutex::default(),
            writing: Mutex::default(),
            closing: watch::Sender::new(false),
        }
    }

    pub(crate) fn names(&self) -> Result<Names, PuppetError> {
        let io = |e: io::Error| error::from_io("names", &e);
        Ok(Names {
            local: self.tcp.local_addr().map_err(io)?,
            peer: self.tcp.peer_addr().map_err(io)?,
        })
    }

    pub(crate) async fn write(&self, data: &str) -> Result<Value, PuppetError> {
        let data = unhex(data).ok_or_else(|| PuppetError::new("other", "no hex"))?;
        let _turn = self.writing.lock().await;
        let mut count = 0;
        self.unless_closed(write_all(&self.tcp, &data, &mut count))
            .await?
            .map_err(|e| failed("write", &e, count))?;
        Ok(json!({}))
    }

    pub(crate) async fn read(&self, amount: Amount) -> Result<Data, PuppetError> {
        let _turn = self.reading.lock().await;
        let mut data = Vec::new();
        let result = self.unless_closed(self.read_into(&mut data, amount)).await?;
        match result {
            Ok(()) => Ok(Data { hex: hex(&data) }),
            Err(e) => Err(failed("read", &e, data.len() as u64)),
        }
    }

    async fn read_into(&self, data: &mut Vec<u8>, amount: Amount) -> io::Result<()> {
        let limit = match amount {
            Amount::Exact(n) | Amount::Some(n) => usize::try_from(n).unwrap_or(usize::MAX),
            Amount::ToEnd => usize::MAX,
        };
        let mut block = vec![0; BLOCK.min(limit)];
        while data.len() < limit {
            let part = block.len().min(limit - data.len());
            let n = read_some(&self.tcp, &mut block[..part]).await?;
            data.extend_from_slice(&block[..n]);
            match amount {
                Amount::Exact(_) if n == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Amount::Some(_) => return Ok(()),
                _ if n == 0 => return Ok(()),
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) async fn send_pattern(&self, bytes: u64, seed: u64) -> Result<Sent, PuppetError> {
        let _turn = self.writing.lock().await;
        let start = Instant::now();
        let mut count = 0;
        let sha256 = self
            .unless_closed(send_pattern(&self.tcp, bytes, seed, &mut count))
            .await?
            .map_err(|e| failed("send", &e, count))?;
        Ok(Sent { bytes: count, sha256, elapsed: start.elapsed() })
    }

    pub(crate) async fn recv_pattern(&self, bytes: Option<u64>) -> Result<Received, PuppetError> {
        let _turn = self.reading.lock().await;
        let start = Instant::now();
        let mut count = 0;
        let sha256 = self
            .unless_closed(recv_digest(&self.tcp, bytes, &mut count))
            .await?
            .map_err(|e| failed("receive", &e, count))?;
        Ok(Received { bytes: count, sha256, elapsed: start.elapsed() })
    }

    pub(crate) fn shutdown_write(&self) -> Result<Value, PuppetError> {
        SockRef::from(&self.tcp)
            .shutdown(std::net::Shutdown::Write)
            .map_err(|e| error::from_io("shutdown", &e))?;
        Ok(json!({}))
    }

    pub(crate) fn set(&self, option: SockOption) -> Result<Value, PuppetError> {
        let socket = SockRef::from(&self.tcp);
        match option {
            SockOption::RecvBuffer(n) => socket.set_recv_buffer_size(n as usize),
            SockOption::SendBuffer(n) => socket.set_send_buffer_size(n as usize),
            SockOption::NoDelay(on) => self.tcp.set_nodelay(on),
            SockOption::KeepAlive(on) => socket.set_keepalive(on),
            SockOption::EmptyIpOptions => empty_ip_options(&self.tcp),
        }
        .map_err(|e| error::from_io("set option", &e))?;
        Ok(json!({}))
    }

    /// Makes the coming close a reset.
    pub(crate) fn abort(&self) -> Result<(), PuppetError> {
        linger_zero(&self.tcp).map_err(|e| error::from_io("reset", &e))
    }

    /// Ends every call under way, so that they let go of the socket.
    pub(crate) fn interrupt(&self) {
        self.closing.send_replace(true);
    }

    async fn unless_closed<T>(&self, work: impl Future<Output = T>) -> Result<T, PuppetError> {
        let mut closing = self.closing.subscribe();
        tokio::select! {
            result = work => Ok(result),
            _ = closing.wait_for(|closing| *closing) => Err(error::closed()),
        }
    }
}

pub(crate) fn linger_zero(tcp: &TcpStream) -> io::Result<()> {
    SockRef::from(tcp).set_linger(Some(Duration::ZERO))
}

pub(crate) async fn read_some(tcp: &TcpStream, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        tcp.readable().await?;
        match tcp.try_read(buf) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

pub(crate) async fn write_all(tcp: &TcpStream, mut data: &[u8], count: &mut u64) -> io::Result<()> {
    while !data.is_empty() {
        tcp.writable().await?;
        match tcp.try_write(data) {
            Ok(n) => {
                *count += n as u64;
                data = &data[n..];
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Sends `bytes` of the seed's stream; gives their checksum.
pub(crate) async fn send_pattern(
    tcp: &TcpStream,
    bytes: u64,
    seed: u64,
    count: &mut u64,
) -> io::Result<String> {
    let mut pattern = Pattern::new(seed);
    let mut digest = Sha256::new();
    let mut block = vec![0; BLOCK.min(usize::try_from(bytes).unwrap_or(BLOCK))];
    while *count < bytes {
        let part = block.len().min(usize::try_from(bytes - *count).unwrap_or(usize::MAX));
        pattern.fill(&mut block[..part]);
        digest.update(&block[..part]);
        write_all(tcp, &block[..part], count).await?;
    }
    Ok(hex(&digest.finalize()))
}

/// Receives `bytes`, or all up to the end; gives their checksum.
pub(crate) async fn recv_digest(
    tcp: &TcpStream,
    bytes: Option<u64>,
    count: &mut u64,
) -> io::Result<String> {
    let limit = bytes.unwrap_or(u64::MAX);
    let mut digest = Sha256::new();
    let mut block = vec![0; BLOCK.min(usize::try_from(limit).unwrap_or(BLOCK))];
    while *count < limit {
        let part = block.len().min(usize::try_from(limit - *count).unwrap_or(usize::MAX));
        let n = read_some(tcp, &mut block[..part]).await?;
        if n == 0 {
            if bytes.is_some() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            break;
        }
        digest.update(&block[..n]);
        *count += n as u64;
    }
    Ok(hex(&digest.finalize()))
}

fn failed(doing: &str, e: &io::Error, bytes: u64) -> PuppetError {
    let mut error = error::from_io(&format!("{doing}, after {bytes} bytes"), e);
    error.bytes = bytes;
    error
}

fn empty_ip_options(tcp: &impl std::os::fd::AsRawFd) -> std::io::Result<()> {
    // IPOPT_NOP of <linux/ip.h>
    let nothing = [1u8; 4];
    // SAFETY: four bytes, of which the length tells.
    let failed = unsafe {
        libc::setsockopt(
            tcp.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            nothing.as_ptr().cast(),
            4,
        )
    };
    if failed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
