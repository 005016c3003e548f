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
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.0.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
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
