//! Kubeconfig files: where the API server is, whom to trust, and who one is.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::pki::Issued;

/// Who a client is to the API server.
pub(crate) enum Credential<'a> {
    Certificate(&'a Issued),
    Token(&'a str),
}

pub(crate) fn write(path: &Path, server: &str, root: &Path, who: &Credential<'_>) -> Result<()> {
    let user = match who {
        Credential::Certificate(issued) => {
            json!({"client-certificate": issued.certificate, "client-key": issued.key})
        }
        Credential::Token(token) => json!({"token": token}),
    };
    // JSON is YAML.
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bed", "cluster": {"server": server, "certificate-authority": root}}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "bed", "context": {"cluster": "bed", "user": "user"}}],
        "current-context": "bed",
    });
    std::fs::write(path, format!("{config:#}\n"))
        .with_context(|| format!("cannot write {}", path.display()))
}
