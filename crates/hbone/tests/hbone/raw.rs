//! A client with a good certificate and no manners, before a real server.

use crate::pair::{Server, raw_pair, serve};
use scripted::{
    frames,
    frames::{PREFACE, SETTINGS, frame},
    pki::Pki,
    tls,
    wire::{Reader, Wire},
};
use tokio::io::{AsyncWriteExt as _, DuplexStream, WriteHalf};
use tokio_rustls::client::TlsStream;

type Tls = TlsStream<DuplexStream>;

pub fn connect_frame(stream: u32) -> Vec<u8> {
    frames::connect(stream, "10.0.0.2:80")
}

pub struct Raw {
    pub write: WriteHalf<Tls>,
    pub read: Reader<Tls>,
    pub server: Server,
}

impl Raw {
    /// After both handshakes.
    pub async fn connect() -> Self {
        let mut raw = Self::connect_without_preface().await;
        raw.send(PREFACE).await;
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        raw
    }

    pub async fn connect_without_preface() -> Self {
        let pki = Pki::new("cluster.local");
        let (near, far) = raw_pair();
        let server = serve(far, &pki.certified("server"));
        let client = pki.certified("client").client.clone();
        let Wire { write, read } = Wire::new(tls::connect(near, client).await.unwrap());
        Raw { write, read, server }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.write.write_all(bytes).await.unwrap();
        self.write.flush().await.unwrap();
    }

    /// See [`Wire::assault`]; afterwards nothing more can be sent.
    pub async fn assault(self, frames: impl Iterator<Item = Vec<u8>>) -> (Assaulted, Server) {
        let Raw { write, read, server } = self;
        let siege = Wire { write, read }.assault(frames).await;
        ((siege.written, siege.goodbye), server)
    }
}

/// Frames written, and the code of the server's GOAWAY.
pub type Assaulted = (usize, Option<u32>);
