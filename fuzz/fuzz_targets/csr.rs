//! A certificate signing request, read as culvertd's authority reads it: PEM from whoever holds a
//! token. A tag byte says whether the rest is PEM or the DER to wrap in it, which mutates better.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rcgen::{CertificateSigningRequestParams, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::CertificateSigningRequestDer;

fuzz_target!(|data: &[u8]| {
    let Some((tag, rest)) = data.split_first() else { return };
    let csr = if tag % 2 == 0 {
        CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(rest))
    } else {
        let Ok(pem) = std::str::from_utf8(rest) else { return };
        CertificateSigningRequestParams::from_pem(pem)
    };
    if let Ok(csr) = csr {
        let _ = *csr.public_key.algorithm() == PKCS_ECDSA_P256_SHA256;
    }
});
