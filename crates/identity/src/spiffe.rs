//! `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, as Istio writes it.

use std::{fmt, str::FromStr, sync::Arc};

/// A workload's identity. Cheap to clone; compared whole, trust domain included.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// With its scheme.
    text: Arc<str>,
    /// Lengths of the trust domain and of the namespace, by which the parts are found.
    trust_domain: u16,
    namespace: u16,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{id:?} is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>: {reason}")]
pub struct SpiffeIdError {
    id: String,
    reason: &'static str,
}

/// SPIFFE's own limit on an id (SPIFFE-ID, section 2.3).
const MAX_LEN: usize = 2048;

const SCHEME: &str = "spiffe://";

impl SpiffeId {
    pub fn new(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeIdError> {
        let text = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}");
        let err = |reason| SpiffeIdError { id: shorten(&text), reason };
        if text.len() > MAX_LEN {
            return Err(err("longer than 2048 bytes"));
        }
        // SPIFFE-ID section 2.1: lower case only in the trust domain.
        if trust_domain.is_empty() || trust_domain.len() > 255 {
            return Err(err("the trust domain must have 1 to 255 characters"));
        }
        let trust_domain_char =
            |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'-' | b'_');
        if !trust_domain.bytes().all(trust_domain_char) {
            return Err(err("the trust domain has a character outside a-z 0-9 . - _"));
        }
        for part in [namespace, service_account] {
            if part.is_empty() {
                return Err(err("a part is empty"));
            }
            let segment_char =
                |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_' | b':');
            if !part.bytes().all(segment_char) {
                return Err(err("a part has a character outside a-z A-Z 0-9 . - _"));
            }
            if part == "." || part == ".." {
                return Err(err("a part is a relative path"));
            }
        }
        Ok(SpiffeId {
            trust_domain: u16::try_from(trust_domain.len()).map_err(|_| err("too long"))?,
            namespace: u16::try_from(namespace.len()).map_err(|_| err("too long"))?,
            text: text.into(),
        })
    }

    /// The id with its scheme.
    pub fn text(&self) -> Arc<str> {
        self.text.clone()
    }

    /// The id without its scheme, as policies compare it.
    pub fn principal(&self) -> &str {
        self.text.get(SCHEME.len()..).unwrap_or_default()
    }

    pub fn trust_domain(&self) -> &str {
        self.part(0, self.trust_domain as usize)
    }

    pub fn namespace(&self) -> &str {
        self.part(self.trust_domain as usize + "/ns/".len(), self.namespace as usize)
    }

    pub fn service_account(&self) -> &str {
        let at = self.trust_domain as usize + "/ns/".len() + self.namespace as usize + "/sa/".len();
        self.principal().get(at..).unwrap_or_default()
    }

    fn part(&self, at: usize, len: usize) -> &str {
        self.principal().get(at..at + len).unwrap_or_default()
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let err = |reason| SpiffeIdError { id: shorten(s), reason };
        let rest = s.strip_prefix(SCHEME).ok_or_else(|| err("the scheme is not spiffe://"))?;
        let mut parts = rest.split('/');
        let mut part = || parts.next();
        match (part(), part(), part(), part(), part(), part()) {
            (Some(td), Some("ns"), Some(ns), Some("sa"), Some(sa), None) => Self::new(td, ns, sa),
            _ => Err(err("the path is not /ns/<namespace>/sa/<service account>")),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An error does not carry a peer's megabytes into a log.
fn shorten(s: &str) -> String {
    s.chars().take(128).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_whole() {
        let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews".parse().unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.namespace(), "default");
        assert_eq!(id.service_account(), "bookinfo-reviews");
        assert_eq!(id.principal(), "cluster.local/ns/default/sa/bookinfo-reviews");
        assert_eq!(id.to_string().parse::<SpiffeId>().unwrap(), id);
    }

    #[test]
    fn what_is_refused() {
        for bad in [
            "",
            "spiffe://",
            "SPIFFE://td/ns/a/sa/b",
            "https://td/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/extra",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a%2fb/sa/c",
            "spiffe://td/ns/a/sa/..",
            "spiffe://TD/ns/a/sa/b",
            "spiffe://td:1/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b?x",
            "spiffe://td/ns/a/sa/b\0",
            "spiffe://td/sa/a/ns/b",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?}");
        }
    }
}
