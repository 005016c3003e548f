//! A certificate authority per test, good certificates from it, and bad ones.

use identity::{Certified, Roots, SpiffeId, new_request};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::CertificateDer;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

pub const HOUR: Duration = Duration::from_secs(3600);

/// The authority of one trust domain: its root, or an intermediate below it.
pub struct Pki {
    domain: String,
    issuer: Issuer<'static, KeyPair>,
    root: Certificate,
    /// What leads from this authority to the root, itself first; empty for the root.
    chain: Vec<CertificateDer<'static>>,
}

/// The chain that a peer presents, and its key.
pub type Presented = (Vec<CertificateDer<'static>>, KeyPair);

impl Pki {
    pub fn new(domain: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority("root");
        let root = params.self_signed(&key).unwrap();
        Pki { domain: domain.to_owned(), issuer: Issuer::new(params, key), root, chain: vec![] }
    }

    /// An authority that exists already, such as culvertd's own.
    pub fn from_pem(domain: &str, certificate: &str, key: &str) -> Self {
        let key = KeyPair::from_pem(key).unwrap();
        let issuer = Issuer::from_ca_cert_pem(certificate, key).unwrap();
        // The parameters that a certificate was made from cannot be had back; nobody asks for them.
        let own = KeyPair::generate().unwrap();
        let root = authority("root").self_signed(&own).unwrap();
        Pki { domain: domain.to_owned(), issuer, root, chain: vec![] }
    }

    /// An authority below this one.
    pub fn intermediate(&self) -> Self {
        self.intermediate_with(KeyPair::generate().unwrap())
    }

    /// The same with a key of the caller's choice.
    pub fn intermediate_with(&self, key: KeyPair) -> Self {
        let params = authority(&format!("intermediate {}", self.chain.len()));
        let own = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let chain = std::iter::once(own).chain(self.chain.iter().cloned()).collect();
        let root = self.root.clone();
        Pki { domain: self.domain.clone(), issuer: Issuer::new(params, key), root, chain }
    }

    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub fn root_pem(&self) -> String {
        self.root.pem()
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
        let pem = self.certify(&request.csr_pem, &leaf(&[&id.to_string()], from, life));
        let roots = Roots::from_ders(&self.domain, &[self.root.der().clone()]).unwrap();
        Arc::new(Certified::new(&id, request, &[pem], Arc::new(roots)).unwrap())
    }

    /// Signs what `params` say for the key of a CSR, as PEM; of the CSR nothing else counts.
    pub fn certify(&self, csr_pem: &str, params: &CertificateParams) -> String {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        params.signed_by(&csr.public_key, &self.issuer).unwrap().pem()
    }

    /// The same for a key that the asker does not have.
    pub fn certify_another_key(&self, params: &CertificateParams) -> String {
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().pem()
    }

    /// A certificate that `Certified` would not take, signed all the same.
    pub fn odd(&self, params: &CertificateParams) -> Presented {
        self.odd_key(params, KeyPair::generate().unwrap())
    }

    /// The same, for a key of the caller's choice.
    pub fn odd_key(&self, params: &CertificateParams, key: KeyPair) -> Presented {
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (std::iter::once(der).chain(self.chain.iter().cloned()).collect(), key)
    }

    /// A server's certificate for a DNS name, as a control plane has it: PEM of certificate and key.
    pub fn dns(&self, name: &str) -> (String, String) {
        let mut params = leaf(&[], SystemTime::now() - HOUR, HOUR * 24);
        params.subject_alt_names = vec![SanType::DnsName(name.to_owned().try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

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

/// A sound leaf for an hour.
pub fn good_leaf(uri: &str) -> CertificateParams {
    leaf(&[uri], SystemTime::now() - HOUR, HOUR * 2)
}
