//! A certificate authority per test, good certificates from it, and bad ones.

use identity::{Certified, Roots, SpiffeId, new_request};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    version::TLS13,
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

pub const HOUR: Duration = Duration::from_secs(3600);

/// The authority of one trust domain.
pub struct Pki {
    domain: String,
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Pki {
    pub fn new(domain: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap().der().clone();
        Pki { domain: domain.to_owned(), issuer: Issuer::new(params, key), root }
    }

    pub fn id(&self, account: &str) -> SpiffeId {
        SpiffeId::new(&self.domain, "ns", account).unwrap()
    }

    /// A certificate for an hour.
    pub fn certified(&self, account: &str) -> Arc<Certified> {
        self.certified_from(account, SystemTime::now() - HOUR, HOUR * 2)
    }

    pub fn certified_from(
        &self,
        account: &str,
        from: SystemTime,
        life: Duration,
    ) -> Arc<Certified> {
        let id = self.id(account);
        let request = new_request(&id).unwrap();
        let csr = CertificateSigningRequestParams::from_pem(&request.csr_pem).unwrap();
        let params = leaf(&[&id.to_string()], from, life);
        let pem = params.signed_by(&csr.public_key, &self.issuer).unwrap().pem();
        let roots = Roots::from_ders(&self.domain, std::slice::from_ref(&self.root)).unwrap();
        Arc::new(Certified::new(&id, request, &[pem], Arc::new(roots)).unwrap())
    }

    /// A certificate that `Certified` would not take, signed all the same.
    pub fn odd(&self, params: &CertificateParams) -> Presented {
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (vec![der], key)
    }
}

/// The chain that a client presents, and its key.
pub type Presented = (Vec<CertificateDer<'static>>, KeyPair);

/// A leaf with these URI SANs.
pub fn leaf(uris: &[&str], from: SystemTime, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = from.into();
    params.not_after = (from + life).into();
    params.subject_alt_names =
        uris.iter().map(|u| SanType::URI((*u).to_owned().try_into().unwrap())).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// A client that trusts everybody and presents what it is given.
pub fn client_config(presented: Option<Presented>, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match presented {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    config.enable_sni = false;
    Arc::new(config)
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
