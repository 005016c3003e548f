//! A bare hop through user space: what comes on one connection goes out on another, and back. One thread, nothing
//! but reading and writing; and TLS towards another such hop, where asked for.

use anyhow::{Context as _, bail};
use hbone::transport;
use rustls::{ClientConfig, ServerConfig};
use scripted::{
    pki::Pki,
    tls::{self, H2},
};
use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream},
};

/// As much at a time as the agent reads.
const CHUNK: usize = 64 * 1024;

/// Where there is TLS.
#[derive(Clone)]
enum Tls {
    Nowhere,
    Before(Arc<ServerConfig>),
    Behind(Arc<ClientConfig>),
}

/// `<port> <where to> plain|ends-tls|begins-tls`
pub fn play(args: &[&str]) -> anyhow::Result<()> {
    let [port, to, ends] = args else { bail!("wrong arguments: {args:?}") };
    let (port, to): (u16, SocketAddr) = (port.parse()?, to.parse()?);
    let ends = match *ends {
        "plain" => Tls::Nowhere,
        "ends-tls" => {
            let (certificate, key) = Pki::new("cluster.local").dns("relay");
            Tls::Before(tls::plain_server_config(&certificate, &key))
        }
        "begins-tls" => Tls::Behind(tls::client_config(None, H2)),
        other => bail!("no such TLS: {other:?}"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener =
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await.context("listening")?;
        println!("listens");
        loop {
            let (near, _) = listener.accept().await?;
            // Ends that break off are none of its business.
            tokio::spawn(pass_on(near, to, ends.clone()));
        }
    })
}

async fn pass_on(near: TcpStream, to: SocketAddr, ends: Tls) -> io::Result<()> {
    let far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    match ends {
        Tls::Nowhere => copy(near, far).await,
        Tls::Before(config) => {
            let (io, session) = tls::accept(near, config).await?.into_inner();
            copy(transport(io, session).0, far).await
        }
        Tls::Behind(config) => {
            let (io, session) = tls::connect(far, config).await?.into_inner();
            copy(near, transport(io, session).0).await
        }
    }
}

async fn copy(
    mut near: impl AsyncRead + AsyncWrite + Unpin,
    mut far: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    copy_bidirectional_with_sizes(&mut near, &mut far, CHUNK, CHUNK).await.map(drop)
}
