//! A peer's leaf certificate, before anybody has checked its signature.

#![no_main]

use identity::peer_identity;
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;

fuzz_target!(|der: &[u8]| {
    let chain = [CertificateDer::from(der)];
    if let Ok((id, _)) = peer_identity(Some(&chain)) {
        let mut longer = der.to_vec();
        longer.push(0);
        let longer = [CertificateDer::from(longer)];
        assert!(peer_identity(Some(&longer)).is_err(), "{id} with a byte behind it");
    }
});
