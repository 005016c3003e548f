//! Certificates out of Secrets, as Istio's `credentialName` finds them: in the proxy's own namespace.

use super::view::View;
use crate::names::ProxyName;
use istio_api::{Kind, Secret, Spec};

pub struct Credential {
    pub chain_pem: Vec<u8>,
    pub key_pem: Vec<u8>,
    /// From the Secret itself, or from the one beside it that ends in `-cacert`.
    pub roots_pem: Option<Vec<u8>>,
}

pub fn credential(view: View<'_>, proxy: &ProxyName, name: &str) -> Result<Credential, String> {
    let namespace = &proxy.namespace;
    let secret = secret(view, namespace, name)
        .ok_or_else(|| format!("there is no Secret {namespace}/{name}"))?;
    let either = |a, b| secret.value(a).or_else(|| secret.value(b));
    let beside = || self::secret(view, namespace, &format!("{name}-cacert"));
    Ok(Credential {
        chain_pem: either("tls.crt", "cert").unwrap_or_default(),
        key_pem: either("tls.key", "key").unwrap_or_default(),
        roots_pem: either("ca.crt", "cacert")
            .or_else(|| beside().and_then(|s| s.value("ca.crt").or_else(|| s.value("cacert")))),
    })
}

fn secret<'a>(view: View<'a>, namespace: &str, name: &str) -> Option<&'a Secret> {
    match &view.get(Kind::Secret, namespace, name)?.spec {
        Spec::Secret(s) => Some(s),
        _ => None,
    }
}
