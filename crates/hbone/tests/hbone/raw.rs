//! HTTP/2 frames by hand, for what a well-behaved client never sends.

use crate::{
    pair::{Server, raw_pair, serve},
    pki::Pki,
};
use rustls::pki_types::ServerName;
use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, split};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const ENHANCE_YOUR_CALM: u32 = 11;

pub struct Frame {
    pub kind: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a GOAWAY or RST_STREAM.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// The status at the front of a response's headers, where the static table has it (RFC 7541,
    /// appendix A).
    pub fn status(&self) -> Option<u16> {
        match self.payload.first()? {
            0x88 => Some(200),
            0x8c => Some(400),
            _ => None,
        }
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = length[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A header block of literals: no table, no Huffman.
pub fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in headers {
        out.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "a longer literal has a longer length");
            out.push(u8::try_from(text.len()).unwrap());
            out.extend(text.as_bytes());
        }
    }
    out
}

pub fn headers(stream: u32, list: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(list))
}

pub fn connect_frame(stream: u32) -> Vec<u8> {
    headers(stream, &[(":method", "CONNECT"), (":authority", "10.0.0.2:80")])
}

type Tls = TlsStream<DuplexStream>;

/// A client with a good certificate and no manners.
pub struct Raw {
    pub write: WriteHalf<Tls>,
    pub read: Reader,
    pub server: Server,
}

pub struct Reader(ReadHalf<Tls>, VecDeque<Frame>);

impl Raw {
    /// After both handshakes.
    pub async fn connect() -> Self {
        let mut raw = Self::connect_without_preface().await;
        raw.write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        raw
    }

    pub async fn connect_without_preface() -> Self {
        let pki = Pki::new("cluster.local");
        let (near, far) = raw_pair();
        let server = serve(far, &pki.certified("server"));
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
        let client = pki.certified("client").client.clone();
        let tls = TlsConnector::from(client).connect(name, near).await.unwrap();
        let (read, write) = split(tls);
        Raw { write, read: Reader(read, VecDeque::new()), server }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.write.write_all(bytes).await.unwrap();
        self.write.flush().await.unwrap();
    }
}

impl Reader {
    /// The next frame, or none when the peer has ended the connection.
    pub async fn frame(&mut self) -> Option<Frame> {
        if let Some(f) = self.1.pop_front() {
            return Some(f);
        }
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], stream, payload })
    }

    /// The next frame that is about `stream`: headers or a reset.
    pub async fn answer(&mut self, stream: u32) -> Option<Frame> {
        loop {
            let f = self.frame().await?;
            if f.stream == stream && matches!(f.kind, HEADERS | RST_STREAM) {
                return Some(f);
            }
        }
    }

    /// Reads to the end; the code of the GOAWAY on the way, if there was one.
    pub async fn goodbye(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(f) = self.frame().await {
            if f.kind == GOAWAY {
                code = Some(f.code());
            }
        }
        code
    }
}
