//! A new key, and the request to certify it.

use crate::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};

/// A private key that has not left this process, and its CSR.
pub struct KeyAndRequest {
    pub(crate) key: KeyPair,
    /// PEM: ECDSA P-256 with SHA-256, empty subject, one critical URI SAN.
    pub csr_pem: String,
}

/// A fresh P-256 key and a CSR for `identity`.
pub fn new_request(identity: &SpiffeId) -> Result<KeyAndRequest, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    let csr_pem = params.serialize_request(&key)?.pem()?;
    Ok(KeyAndRequest { key, csr_pem })
}
