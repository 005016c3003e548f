//! TLS that is begun with endpoints, as a DestinationRule's `tls` asks for it.

use crate::upstream::Io;
use routes::proto;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::ParsedCertificate,
    version::{TLS12, TLS13},
};
use rustls_pki_types::pem::PemObject as _;
use std::{
    fs::{self, File},
    io::{self, Read as _},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use webpki::EndEntityCert;

/// How long certificates from files are used before the files are read again.
const FILES: Duration = Duration::from_secs(60);

/// Bytes of a file of certificates.
const MOST: u64 = 1024 * 1024;

/// What is spoken within.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Within {
    Http1,
    Http2,
    /// Whatever it is.
    Bytes,
}

pub struct ClientTls {
    settings: proto::ClientTls,
    /// Connections of one are not used for another.
    pub id: u64,
    made: Mutex<Option<Made>>,
}

struct Made {
    at: Instant,
    config: Result<Arc<ClientConfig>, String>,
}

impl ClientTls {
    pub fn new(settings: proto::ClientTls) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { settings, id, made: Mutex::default() }
    }

    /// A hand-shake over `io`.
    pub async fn connect(&self, io: Io, within: Within) -> Result<TlsStream<Io>, String> {
        let name = ServerName::try_from(self.settings.sni.clone())
            .map_err(|_| format!("{:?} is no name to ask for: give tls.sni", self.settings.sni))?;
        let mut config = ClientConfig::clone(&*self.config().await?);
        config.alpn_protocols = match within {
            Within::Http1 => vec![b"http/1.1".to_vec()],
            Within::Http2 => vec![b"h2".to_vec()],
            Within::Bytes => Vec::new(),
        };
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, io);
        let stream = Box::pin(connecting).await.map_err(|e| format!("TLS: {e}"))?;
        if within == Within::Http2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err("TLS: the endpoint does not speak HTTP/2".to_owned());
        }
        Ok(stream)
    }

    async fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let s = &self.settings;
        let files = [&s.chain_file, &s.key_file, &s.roots_file].iter().any(|f| !f.is_empty());
        if let Some(made) = &*self.lock()
            && (!files || made.at.elapsed() < FILES)
        {
            return made.config.clone();
        }
        // Files, and the system's roots, are read where nobody waits for it.
        let settings = s.clone();
        let making = tokio::task::spawn_blocking(move || client_config(&settings).map(Arc::new));
        let config = making.await.map_err(|e| e.to_string()).flatten();
        *self.lock() = Some(Made { at: Instant::now(), config: config.clone() });
        config
    }

    fn lock(&self) -> MutexGuard<'_, Option<Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn client_config(s: &proto::ClientTls) -> Result<ClientConfig, String> {
    if !s.broken.is_empty() {
        return Err(s.broken.clone());
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier(s, provider)?);
    let chain = given_or_file(&s.chain_pem, &s.chain_file)?;
    let key = given_or_file(&s.key_pem, &s.key_file)?;
    let (Some(chain), Some(key)) = (chain, key) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(&chain).map_err(|e| format!("the client's certificate: {e}"))?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|_| "the client's private key is no PEM of a key".to_owned())?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|e| format!("the client's certificate and key do not go together: {e}"))
}

fn given_or_file(pem: &[u8], file: &str) -> Result<Option<Vec<u8>>, String> {
    if !pem.is_empty() {
        return Ok(Some(pem.to_vec()));
    }
    match file {
        "" => Ok(None),
        file => read(file).map(Some).map_err(|e| format!("reading {file}: {e}")),
    }
}

/// A file that somebody else has named: no pipe, no device, and not more than certificates take.
fn read(file: &str) -> io::Result<Vec<u8>> {
    if !fs::metadata(file)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    File::open(file)?.take(MOST + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MOST {
        true => Err(io::Error::other(format!("it has more than {MOST} bytes"))),
        false => Ok(bytes),
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("it is no PEM: {e}"))?;
    if all.is_empty() { Err("there is none".to_owned()) } else { Ok(all) }
}

fn verifier(
    s: &proto::ClientTls,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    if s.unverified {
        return Ok(Arc::new(Verifier { provider, expected: None }));
    }
    let roots = match given_or_file(&s.roots_pem, &s.roots_file)? {
        None => system_roots()?,
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(&pem).map_err(|e| format!("the roots: {e}"))? {
                roots.add(root).map_err(|e| format!("the roots: {e}"))?;
            }
            Arc::new(roots)
        }
    };
    if s.subject_alt_names.is_empty() {
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
        return verifier.map(|v| v as Arc<dyn ServerCertVerifier>).map_err(|e| e.to_string());
    }
    let expected = Some((roots, s.subject_alt_names.clone()));
    Ok(Arc::new(Verifier { provider, expected }))
}

/// Those of the machine, or the image.
fn system_roots() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    if roots.is_empty() {
        return Err("the system has no root certificates: give caCertificates, or a \
                    credentialName whose Secret has ca.crt"
            .to_owned());
    }
    Ok(roots.clone())
}

/// Takes a certificate of the roots that has one of the names; without these, any.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    expected: Option<(Arc<RootCertStore>, Vec<String>)>,
}

/// Whether a certificate is for a name: of DNS, an address, or a URI.
fn is_for(certificate: &ParsedCertificate<'_>, leaf: &CertificateDer<'_>, name: &str) -> bool {
    if name.contains("://") {
        return EndEntityCert::try_from(leaf)
            .is_ok_and(|c| c.valid_uri_names().any(|uri| uri == name));
    }
    ServerName::try_from(name).is_ok_and(|name| verify_server_name(certificate, &name).is_ok())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some((roots, names)) = &self.expected else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            roots,
            intermediates,
            now,
            algorithms,
        )?;
        if names.iter().any(|name| is_for(&certificate, leaf, name)) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::NotValidForName))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{MOST, read};

    #[test]
    fn files_that_are_no_certificates_are_not_read_for_ever() {
        let why = |file: &str| read(file).map(|_| ()).unwrap_err().to_string();
        assert_eq!(why("/dev/zero"), "it is no regular file");
        assert_eq!(why("/"), "it is no regular file");
        let long = std::env::temp_dir().join(format!("culvert-long-{}", std::process::id()));
        std::fs::write(&long, vec![b'x'; MOST as usize + 1]).unwrap();
        assert_eq!(why(&long.display().to_string()), format!("it has more than {MOST} bytes"));
        std::fs::write(&long, "x").unwrap();
        assert_eq!(read(&long.display().to_string()).unwrap(), b"x");
        std::fs::remove_file(&long).unwrap();
    }
}
