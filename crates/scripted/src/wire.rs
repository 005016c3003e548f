//! One end of an HTTP/2 connection, frame by frame.

use crate::frames::{ACK, Frame, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame, settings};
use std::io;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split,
};

/// Both directions, which may be used side by side.
pub struct Wire<S> {
    pub write: WriteHalf<S>,
    pub read: Reader<S>,
}

pub struct Reader<S>(ReadHalf<S>);

impl<S: AsyncRead + AsyncWrite> Wire<S> {
    /// Nothing is sent yet, not even a preface.
    pub fn new(stream: S) -> Self {
        let (read, write) = split(stream);
        Self { write, read: Reader(read) }
    }

    /// A client, after its preface and its first SETTINGS.
    pub async fn client(stream: S) -> io::Result<Self> {
        let mut wire = Self::new(stream);
        wire.write.write_all(PREFACE).await?;
        wire.send(&settings(&[])).await?;
        Ok(wire)
    }

    /// A server that has read the client's preface and sent `first`, its own SETTINGS as a rule.
    pub async fn server(stream: S, first: &[u8]) -> io::Result<Self> {
        let mut wire = Self::new(stream);
        let mut preface = [0; PREFACE.len()];
        wire.read.0.read_exact(&mut preface).await?;
        assert_eq!(preface, PREFACE, "the client speaks HTTP/2");
        wire.send(first).await?;
        Ok(wire)
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write.write_all(bytes).await?;
        self.write.flush().await
    }

    /// Writes until all is written or the peer has hung up, while reading what it answers. How many were written, and
    /// what came back until the peer's end or, once all is written, its closing of the connection after ours.
    pub async fn assault(&mut self, frames: impl Iterator<Item = Vec<u8>>) -> Siege {
        let Wire { write, read } = self;
        let writer = async {
            let mut written = 0;
            for f in frames {
                if write.write_all(&f).await.is_err() || write.flush().await.is_err() {
                    break;
                }
                written += 1;
            }
            // What the peer makes of it ends here at the latest.
            let _ = write.shutdown().await;
            written
        };
        let (written, (goodbye, answered)) = tokio::join!(writer, read.to_the_end());
        Siege { written, goodbye, answered }
    }
}

/// What an assault came to.
#[derive(Clone, Copy, Debug)]
pub struct Siege {
    /// Frames that went out.
    pub written: usize,
    /// The code of the peer's last GOAWAY.
    pub goodbye: Option<u32>,
    /// Frames that came back.
    pub answered: usize,
}

impl<S: AsyncRead> Reader<S> {
    /// The next frame, or none when the peer has ended the connection.
    pub async fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The next frame that is about `stream`: headers or a reset.
    pub async fn answer(&mut self, stream: u32) -> Option<Frame> {
        self.until(|f| f.stream == stream && matches!(f.kind, HEADERS | RST_STREAM)).await
    }

    pub async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let f = self.frame().await?;
            if wanted(&f) {
                return Some(f);
            }
        }
    }

    /// Reads to the end; the code of the last GOAWAY on the way, if there was one.
    pub async fn goodbye(&mut self) -> Option<u32> {
        self.to_the_end().await.0
    }

    /// Also counts the frames.
    pub async fn to_the_end(&mut self) -> (Option<u32>, usize) {
        let mut code = None;
        let mut frames = 0;
        while let Some(f) = self.frame().await {
            frames += 1;
            if f.kind == GOAWAY {
                code = Some(f.code());
            }
        }
        (code, frames)
    }
}

/// What acknowledges the peer's SETTINGS.
pub fn settings_ack() -> Vec<u8> {
    frame(SETTINGS, ACK, 0, &[])
}
