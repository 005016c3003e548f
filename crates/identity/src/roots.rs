//! Whom to trust: root certificates per trust domain.

use rustls::{RootCertStore, pki_types::CertificateDer};
use rustls_pki_types::pem::PemObject as _;
use std::{collections::BTreeMap, sync::Arc};

/// The roots of each trust domain. A peer's chain is checked against the roots of the domain that
/// its certificate names, and no other.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    by_domain: BTreeMap<Arc<str>, Arc<RootCertStore>>,
}

#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    #[error("the root certificates of trust domain {domain} are not PEM certificates: {why}")]
    Pem { domain: String, why: String },
    #[error(
        "no root certificate for trust domain {domain} is in the file; it must hold at least one"
    )]
    Empty { domain: String },
}

impl Roots {
    /// Roots of one trust domain, from PEM.
    pub fn from_pem(trust_domain: &str, pem: &[u8]) -> Result<Self, RootsError> {
        let ders = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| RootsError::Pem { domain: trust_domain.into(), why: e.to_string() })?;
        Self::from_ders(trust_domain, &ders)
    }

    pub fn from_ders(
        trust_domain: &str,
        ders: &[CertificateDer<'static>],
    ) -> Result<Self, RootsError> {
        let mut store = RootCertStore::empty();
        for der in ders {
            store
                .add(der.clone())
                .map_err(|e| RootsError::Pem { domain: trust_domain.into(), why: e.to_string() })?;
        }
        if store.is_empty() {
            return Err(RootsError::Empty { domain: trust_domain.into() });
        }
        let mut roots = Roots::default();
        roots.by_domain.insert(trust_domain.into(), Arc::new(store));
        Ok(roots)
    }

    pub(crate) fn of(&self, trust_domain: &str) -> Option<&Arc<RootCertStore>> {
        self.by_domain.get(trust_domain)
    }

    pub(crate) fn subjects(&self) -> Vec<rustls::DistinguishedName> {
        self.by_domain.values().flat_map(|s| s.subjects()).collect()
    }

    /// Makes `alias` another name of `trust_domain`: its certificates are held to the same roots.
    pub fn alias(&mut self, trust_domain: &str, alias: &str) {
        if let Some(store) = self.by_domain.get(trust_domain).cloned() {
            self.by_domain.entry(alias.into()).or_insert(store);
        }
    }
}
