//! A bare hop through user space: what comes on one connection goes out on another, and back. One thread, nothing
//! but reading and writing; and TLS towards another such hop, where asked for.

use anyhow::{Context as _, bail};
use hbone::transport;
use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// As much at a time as the agent reads.
const CHUNK: usize = 64 * 1024;

/// Where there is TLS.
#[derive(Clone)]
enum Tls {
    Nowhere,
    Before(TlsAcceptor),
    Behind(TlsConnector),
}

/// `<port> <where to> plain|ends-tls|begins-tls`
pub fn play(args: &[&str]) -> anyhow::Result<()> {
    let [port, to, tls] = args else { bail!("wrong arguments: {args:?}") };
    let (port, to): (u16, SocketAddr) = (port.parse()?, to.parse()?);
    let tls = match *tls {
        "ends-tls" => Tls::Before(Arc::new(server()?).into()),
        "begins-tls" => Tls::Behind(Arc::new(client()?).into()),
        _ => Tls::Nowhere,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener =
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await.context("listening")?;
        println!("listens");
        loop {
            let (near, _) = listener.accept().await?;
            // Ends that break off are none of its business.
            tokio::spawn(pass_on(near, to, tls.clone()));
        }
    })
}

async fn pass_on(near: TcpStream, to: SocketAddr, tls: Tls) -> io::Result<()> {
    let far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    match tls {
        Tls::Nowhere => copy(near, far).await,
        Tls::Before(acceptor) => {
            let (io, session) = acceptor.accept(near).await?.into_inner();
            copy(transport(io, session).0, far).await
        }
        Tls::Behind(connector) => {
            let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
            let (io, session) = connector.connect(name, far).await?.into_inner();
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

fn server() -> anyhow::Result<ServerConfig> {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["relay".to_owned()])?;
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    Ok(ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)?)
}

fn client() -> anyhow::Result<ClientConfig> {
    Ok(ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth())
}

/// Only what bytes cost is of interest.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
