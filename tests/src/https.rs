//! HTTPS from outside the mesh: authorities, Secrets, and a client.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use testbed::Pod;

use crate::{Mesh, SOON};

/// A certificate and its key.
pub type Issued = (rcgen::Certificate, KeyPair);

/// Whom somebody trusts.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate and key for a name.
    pub fn issue(&self, name: &str) -> Issued {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }
}

/// A client of these versions, that trusts one authority.
fn client(
    versions: &[&'static rustls::SupportedProtocolVersion],
    trusted: &Authority,
    own: Option<&Issued>,
) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.0.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    }
}

/// A handshake alone, by this version: what was agreed on as the protocol within.
pub fn shake(
    from: &Pod,
    to: SocketAddr,
    name: &str,
    version: &'static rustls::SupportedProtocolVersion,
    alpn: &[&[u8]],
    trusted: &Authority,
) -> Result<Option<Vec<u8>>, String> {
    let mut config = client(&[version], trusted, None);
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    let server = ServerName::try_from(name.to_owned()).unwrap();
    let shaken = testbed::inside(&from.netns_path(), || {
        let mut tcp = TcpStream::connect(to)?;
        tcp.set_read_timeout(Some(SOON))?;
        let mut connection = rustls::ClientConnection::new(Arc::new(config), server)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        Ok(connection.alpn_protocol().map(<[u8]>::to_vec))
    });
    shaken.map_err(|e| format!("{e:#}"))
}

/// GETs of `paths` by HTTP/2 on one connection, all at once: their statuses and bodies.
pub fn get_by_http2(
    from: &Pod,
    to: SocketAddr,
    name: &str,
    paths: &[&str],
    trusted: &Authority,
) -> Vec<(u16, String)> {
    use http_body_util::BodyExt as _;
    let mut config = client(&[&rustls::version::TLS13], trusted, None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = testbed::inside(&from.netns_path(), || Ok(TcpStream::connect(to)?)).unwrap();
    tcp.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tcp = tokio::net::TcpStream::from_std(tcp).unwrap();
        let server = ServerName::try_from(name.to_owned()).unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let tls = hyper_util::rt::TokioIo::new(connector.connect(server, tcp).await.unwrap());
        let executor = hyper_util::rt::TokioExecutor::new();
        let (send, connection) =
            hyper::client::conn::http2::handshake(executor, tls).await.unwrap();
        tokio::spawn(connection);
        let ask = |path: &&str| {
            let uri = format!("https://{name}{path}");
            let body = http_body_util::Empty::<bytes::Bytes>::new();
            let request = http::Request::get(uri).body(body).unwrap();
            let mut send = send.clone();
            async move {
                let answer = send.send_request(request).await.unwrap();
                let status = answer.status().as_u16();
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                (status, String::from_utf8(body.to_vec()).unwrap())
            }
        };
        futures_util::future::join_all(paths.iter().map(ask)).await
    })
}

/// GET by HTTPS of `name`, for `host`, from a pod's network: the head and the body, or why there is none.
#[allow(clippy::too_many_arguments)]
pub fn get(
    from: &Pod,
    to: SocketAddr,
    name: &str,
    host: &str,
    path: &str,
    trusted: &Authority,
    own: Option<&Issued>,
) -> Result<String, String> {
    let config = client(rustls::DEFAULT_VERSIONS, trusted, own);
    let server = ServerName::try_from(name.to_owned()).unwrap();
    let fetched = testbed::inside(&from.netns_path(), || {
        let tcp = TcpStream::connect(to)?;
        tcp.set_read_timeout(Some(SOON))?;
        let connection = rustls::ClientConnection::new(Arc::new(config), server)?;
        let mut tls = rustls::StreamOwned::new(connection, tcp);
        write!(tls, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        tls.read_to_string(&mut answer)?;
        Ok(answer)
    });
    fetched.map_err(|e| format!("{e:#}"))
}

/// A Secret whose text is neither certificate nor key.
pub fn spoil(mesh: &Mesh, name: &str) {
    mesh.apply(
        &format!("secret-{name}"),
        &format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{ namespace: default, name: {name} }}\n\
             type: kubernetes.io/tls\nstringData: {{ tls.crt: nonsense, tls.key: nonsense }}\n"
        ),
    );
}

/// A Secret of nothing but whom to trust, in `default`.
pub fn roots(mesh: &Mesh, name: &str, trusted: &Authority) {
    mesh.apply(
        &format!("secret-{name}"),
        &format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{ namespace: default, name: {name} }}\n\
             type: Opaque\nstringData:\n  ca.crt: |\n{}",
            indent(&trusted.pem()),
        ),
    );
}

fn indent(pem: &str) -> String {
    pem.lines().map(|l| format!("    {l}\n")).collect()
}

/// A Secret of type kubernetes.io/tls, in `default`; with roots for clients, if given.
pub fn secret(mesh: &Mesh, name: &str, issued: &Issued, more: &str) {
    let more = match more {
        "" => String::new(),
        pem => format!("  ca.crt: |\n{}", indent(pem)),
    };
    mesh.apply(
        &format!("secret-{name}"),
        &format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{ namespace: default, name: {name} }}\n\
             type: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}{more}",
            indent(&issued.0.pem()),
            indent(&issued.1.serialize_pem()),
        ),
    );
}
