//! What connections through warm TLS cost at least: each takes a TLS connection that nobody uses, has it to
//! itself, and leaves it to the next. A length before each piece of bytes tells where one ends.

use super::relay::{CHUNK, dial};
use hbone::transport;
use rustls::{ClientConfig, ServerConfig};
use scripted::tls;
use std::{cell::RefCell, io, net::SocketAddr, rc::Rc, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

trait Bytes: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Bytes for T {}

/// TLS connections that nobody uses.
#[derive(Clone, Default)]
pub struct Warm(Rc<RefCell<Vec<Box<dyn Bytes>>>>);

impl Warm {
    /// From one that asks to the other end.
    pub async fn send(
        &self,
        near: TcpStream,
        to: SocketAddr,
        config: Arc<ClientConfig>,
    ) -> io::Result<()> {
        let kept = self.0.borrow_mut().pop();
        let mut tls = match kept {
            Some(tls) => tls,
            None => {
                let (io, session) = tls::connect(dial(to).await?, config).await?.into_inner();
                Box::new(transport(io, session).0)
            }
        };
        carry(near, &mut tls, None).await?;
        self.0.borrow_mut().push(tls);
        Ok(())
    }
}

/// From the other end to the server, one after the other.
pub async fn serve(near: TcpStream, to: SocketAddr, config: Arc<ServerConfig>) -> io::Result<()> {
    let (io, session) = tls::accept(near, config).await?.into_inner();
    let mut tls = transport(io, session).0;
    loop {
        let first = tls.read_u32().await?;
        carry(dial(to).await?, &mut tls, Some(first)).await?;
    }
}

/// `first`: the length of a piece that was read already.
async fn carry(
    plain: TcpStream,
    tls: &mut (impl AsyncRead + AsyncWrite + Unpin),
    mut first: Option<u32>,
) -> io::Result<()> {
    let (mut from_plain, mut to_plain) = plain.into_split();
    let (mut from_tls, mut to_tls) = tokio::io::split(tls);
    let out = async {
        let mut piece = vec![0; 4 + CHUNK];
        loop {
            let n = from_plain.read(&mut piece[4..]).await?;
            let length = u32::try_from(n).unwrap_or_default();
            piece[..4].copy_from_slice(&length.to_be_bytes());
            to_tls.write_all(&piece[..4 + n]).await?;
            to_tls.flush().await?;
            if n == 0 {
                return io::Result::Ok(());
            }
        }
    };
    let back = async {
        let mut piece = vec![0; CHUNK];
        loop {
            let length = match first.take() {
                Some(length) => length,
                None => from_tls.read_u32().await?,
            };
            if length == 0 {
                return to_plain.shutdown().await;
            }
            let piece = &mut piece[..length as usize];
            from_tls.read_exact(piece).await?;
            to_plain.write_all(piece).await?;
        }
    };
    tokio::try_join!(out, back).map(drop)
}
