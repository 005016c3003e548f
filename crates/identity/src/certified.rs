//! A certificate in use: the key, the chain, and the TLS configurations made from them once.

use crate::{Roots, SpiffeId, csr::KeyAndRequest, verify::MeshVerifier};
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    version::TLS13,
};
use rustls_pki_types::pem::PemObject as _;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// An identity with a certificate for it, and ready TLS configurations (TLS 1.3, ALPN `h2`,
/// X25519MLKEM768 preferred, no resumption).
pub struct Certified {
    pub identity: SpiffeId,
    /// Distinguishes this certificate from those before and after it.
    pub generation: u64,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    obtained: SystemTime,
    /// Hexadecimal, for people.
    pub serial: String,
    pub client: Arc<ClientConfig>,
    pub server: Arc<ServerConfig>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

#[derive(Debug, thiserror::Error)]
pub enum CertifiedError {
    #[error("the CA's answer for {identity} is not a PEM certificate chain: {why}")]
    Pem { identity: SpiffeId, why: String },
    #[error("the CA answered for {identity} without a certificate")]
    Empty { identity: SpiffeId },
    #[error("the CA was asked for {asked} and certified something else: {got}")]
    OtherIdentity { asked: SpiffeId, got: String },
    #[error("the certificate for {identity} cannot be used: {why}")]
    Unusable { identity: SpiffeId, why: String },
}

/// Certificates of one process are numbered from one.
static GENERATION: AtomicU64 = AtomicU64::new(1);

impl Certified {
    /// Takes the CA's answer: the chain, leaf first. Roots among it are ignored; trust comes from
    /// `roots` alone.
    pub fn new(
        identity: &SpiffeId,
        request: KeyAndRequest,
        chain_pem: &[String],
        roots: Arc<Roots>,
    ) -> Result<Self, CertifiedError> {
        let chain = parse_chain(identity, chain_pem)?;
        let unusable = |why: String| CertifiedError::Unusable { identity: identity.clone(), why };
        let leaf =
            chain.first().ok_or_else(|| CertifiedError::Empty { identity: identity.clone() })?;
        match crate::peer_identity(Some(&chain)) {
            Ok((got, _)) if got == *identity => {}
            Ok((got, _)) => {
                return Err(CertifiedError::OtherIdentity {
                    asked: identity.clone(),
                    got: got.to_string(),
                });
            }
            Err(e) => {
                return Err(CertifiedError::OtherIdentity {
                    asked: identity.clone(),
                    got: e.to_string(),
                });
            }
        }
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|e| unusable(e.to_string()))?;
        let not_before = system_time(parsed.validity().not_before.timestamp());
        let not_after = system_time(parsed.validity().not_after.timestamp());
        let serial = parsed.raw_serial_as_string();

        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(request.key.serialize_der()));
        let (client, server) =
            configurations(&chain, &key, roots).map_err(|e| unusable(e.to_string()))?;
        Ok(Certified {
            identity: identity.clone(),
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            not_before,
            not_after,
            obtained: SystemTime::now(),
            serial,
            client,
            server,
            chain,
            key,
        })
    }

    /// Takes an answer that has just come from the CA, in the place of a certificate that may be
    /// good still: peers must accept it, by these roots and by the clock, or it is refused.
    pub fn from_ca(
        identity: &SpiffeId,
        request: KeyAndRequest,
        chain_pem: &[String],
        roots: Arc<Roots>,
    ) -> Result<Self, CertifiedError> {
        let certified = Self::new(identity, request, chain_pem, roots.clone())?;
        certified.accepted_by(roots).map_err(|e| CertifiedError::Unusable {
            identity: identity.clone(),
            why: format!("no peer would accept it: {e}"),
        })?;
        Ok(certified)
    }

    /// Whether peers with these roots would take it now.
    pub(crate) fn accepted_by(&self, roots: Arc<Roots>) -> Result<(), rustls::Error> {
        MeshVerifier::new(roots, &aws_lc_rs::default_provider()).accepts(&self.chain)
    }

    /// The same certificate, for handshakes that hold the peer to these roots.
    pub(crate) fn trusting(&self, roots: Arc<Roots>) -> Result<Self, rustls::Error> {
        let (client, server) = configurations(&self.chain, &self.key, roots)?;
        Ok(Self {
            identity: self.identity.clone(),
            generation: self.generation,
            not_before: self.not_before,
            not_after: self.not_after,
            obtained: self.obtained,
            serial: self.serial.clone(),
            client,
            server,
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        })
    }

    /// Half of the life that the certificate had when it came has passed at this moment. Not half
    /// of what it says: a CA backdates, for the sake of slow clocks.
    fn half_life(&self) -> SystemTime {
        self.obtained + self.not_after.duration_since(self.obtained).unwrap_or_default() / 2
    }

    /// How long it may be kept before another is asked for. Nothing: half of its life has passed, or
    /// it begins later than now, as the clock was set back, and no peer takes it.
    pub(crate) fn rests(&self, now: SystemTime) -> Duration {
        if now < self.not_before {
            return Duration::ZERO;
        }
        self.half_life().duration_since(now).unwrap_or_default()
    }

    pub fn expired(&self, now: SystemTime) -> bool {
        now >= self.not_after
    }
}

fn parse_chain(
    identity: &SpiffeId,
    pems: &[String],
) -> Result<Vec<CertificateDer<'static>>, CertifiedError> {
    let mut chain = Vec::new();
    for pem in pems {
        for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let der = der.map_err(|e| CertifiedError::Pem {
                identity: identity.clone(),
                why: e.to_string(),
            })?;
            // Self-signed: a root, which peers must have and must not be told.
            let root = X509Certificate::from_der(&der)
                .is_ok_and(|(_, c)| c.is_ca() && c.subject() == c.issuer());
            if !root {
                chain.push(der);
            }
        }
    }
    Ok(chain)
}

fn configurations(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    roots: Arc<Roots>,
) -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = MeshVerifier::new(roots, &provider);
    let client = client_config(&provider, &verifier, chain.to_vec(), key.clone_key())?;
    let server = server_config(&provider, verifier, chain.to_vec(), key.clone_key())?;
    Ok((Arc::new(client), Arc::new(server)))
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    verifier: &Arc<MeshVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<MeshVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn system_time(unix: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or(0))
}
