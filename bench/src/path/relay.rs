//! A bare hop through user space: what comes on one connection goes out on another, and back. One thread, nothing
//! but reading and writing; and TLS towards another such hop, where asked for.

use super::warm::{self, Warm};
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
pub const CHUNK: usize = 64 * 1024;

/// Where there is TLS.
#[derive(Clone)]
enum Tls {
    Nowhere,
    Before(Arc<ServerConfig>),
    Behind(Arc<ClientConfig>),
    /// As the two above, with connections that are kept.
    Ends(Arc<ServerConfig>),
    Begins(Arc<ClientConfig>, Warm),
}

/// `<port> <where to> plain|ends-tls|begins-tls|ends-warm|begins-warm`
pub fn play(args: &[&str]) -> anyhow::Result<()> {
    let [port, to, ends] = args else { bail!("wrong arguments: {args:?}") };
    let (port, to): (u16, SocketAddr) = (port.parse()?, to.parse()?);
    let ends = match *ends {
        "plain" => Tls::Nowhere,
        "ends-tls" => Tls::Before(certified()),
        "begins-tls" => Tls::Behind(tls::client_config(None, H2)),
        "ends-warm" => Tls::Ends(certified()),
        "begins-warm" => Tls::Begins(tls::client_config(None, H2), Warm::default()),
        other => bail!("no such TLS: {other:?}"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener =
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await.context("listening")?;
        println!("listens");
        loop {
            let (near, _) = listener.accept().await?;
            // Ends that break off are none of its business.
            tokio::task::spawn_local(pass_on(near, to, ends.clone()));
        }
    })
}

fn certified() -> Arc<ServerConfig> {
    let (certificate, key) = Pki::new("cluster.local").dns("relay");
    tls::plain_server_config(&certificate, &key)
}

async fn pass_on(near: TcpStream, to: SocketAddr, ends: Tls) -> io::Result<()> {
    near.set_nodelay(true)?;
    match ends {
        Tls::Nowhere => copy(near, dial(to).await?).await,
        Tls::Before(config) => {
            let far = dial(to).await?;
            let (io, session) = tls::accept(near, config).await?.into_inner();
            copy(transport(io, session).0, far).await
        }
        Tls::Behind(config) => {
            let (io, session) = tls::connect(dial(to).await?, config).await?.into_inner();
            copy(near, transport(io, session).0).await
        }
        Tls::Ends(config) => warm::serve(near, to, config).await,
        Tls::Begins(config, warm) => warm.send(near, to, config).await,
    }
}

pub async fn dial(to: SocketAddr) -> io::Result<TcpStream> {
    let far = TcpStream::connect(to).await?;
    far.set_nodelay(true)?;
    Ok(far)
}

async fn copy(
    mut near: impl AsyncRead + AsyncWrite + Unpin,
    mut far: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    copy_bidirectional_with_sizes(&mut near, &mut far, CHUNK, CHUNK).await.map(drop)
}
