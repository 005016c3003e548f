//! Is the peer who its certificate says it is: chain, life, usage, and exactly one SPIFFE id.
//!
//! Whether that identity is the *expected* one is for the caller to check after the handshake:
//! configurations are shared by all connections of an identity, expectations are not.

use crate::{Roots, SpiffeId};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use std::sync::Arc;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PeerCertError {
    #[error("the peer's certificate cannot be parsed")]
    Malformed,
    #[error("the peer's certificate has no SPIFFE id; it needs exactly one URI SAN")]
    NoUri,
    #[error("the peer's certificate has more than one URI SAN; SPIFFE allows exactly one")]
    SeveralUris,
    #[error(transparent)]
    Id(#[from] crate::SpiffeIdError),
    #[error("the peer presented no certificate")]
    None,
}

/// The SPIFFE id of a leaf certificate, and when the certificate ends (seconds since the epoch).
pub fn peer_identity(
    chain: Option<&[CertificateDer<'_>]>,
) -> Result<(SpiffeId, i64), PeerCertError> {
    let leaf = chain.and_then(<[_]>::first).ok_or(PeerCertError::None)?;
    let (rest, cert) = X509Certificate::from_der(leaf).map_err(|_| PeerCertError::Malformed)?;
    if !rest.is_empty() {
        return Err(PeerCertError::Malformed);
    }
    let mut uris = cert
        .extensions()
        .iter()
        .filter_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(san) => Some(&san.general_names),
            _ => None,
        })
        .flatten()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    let uri = uris.next().ok_or(PeerCertError::NoUri)?;
    if uris.next().is_some() {
        return Err(PeerCertError::SeveralUris);
    }
    Ok((uri.parse()?, cert.validity().not_after.timestamp()))
}

/// Checks either side of a mesh connection.
#[derive(Debug)]
pub(crate) struct MeshVerifier {
    roots: Arc<Roots>,
    subjects: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl MeshVerifier {
    pub(crate) fn new(roots: Arc<Roots>, provider: &CryptoProvider) -> Arc<Self> {
        Arc::new(Self {
            subjects: roots.subjects(),
            roots,
            algorithms: provider.signature_verification_algorithms,
        })
    }

    /// Whether either side would take this chain now.
    pub(crate) fn accepts(&self, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        let (leaf, intermediates) =
            chain.split_first().ok_or_else(|| Error::General("the chain is empty".into()))?;
        let now = UnixTime::now();
        self.verify(leaf, intermediates, now, KeyUsage::server_auth())?;
        self.verify(leaf, intermediates, now, KeyUsage::client_auth())
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let (id, _) = peer_identity(Some(std::slice::from_ref(leaf)))
            .map_err(|e| Error::General(e.to_string()))?;
        let roots = self.roots.of(id.trust_domain()).ok_or_else(|| {
            Error::General(format!("no roots are known for the trust domain of {id}"))
        })?;
        let cert = EndEntityCert::try_from(leaf).map_err(bad)?;
        cert.verify_for_usage(
            self.algorithms.all,
            &roots.roots,
            intermediates,
            now,
            usage,
            None,
            None,
        )
        .map(drop)
        .map_err(bad)
    }

    fn verify_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }
}

fn bad(e: webpki::Error) -> Error {
    let e = match e {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        other => return Error::General(format!("the peer's certificate is refused: {other}")),
    };
    Error::InvalidCertificate(e)
}

impl ServerCertVerifier for MeshVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for MeshVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
