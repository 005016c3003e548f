//! The certificates of the measurements' control plane.

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::{fs, path::Path};
use tonic::transport::{Certificate, Identity};

/// What agents expect the control plane's certificate to be for.
pub const NAME: &str = "culvertd.culvert-system.svc";

pub fn write(dir: &Path) -> anyhow::Result<()> {
    let root_key = KeyPair::generate()?;
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(dir.join("root-cert.pem"), root.self_signed(&root_key)?.pem())?;
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(vec![NAME.to_owned()])?.signed_by(&key, &issuer)?;
    fs::write(dir.join("cert.pem"), leaf.pem())?;
    fs::write(dir.join("key.pem"), key.serialize_pem())?;
    Ok(())
}

fn read(dir: &Path, file: &str) -> anyhow::Result<Vec<u8>> {
    fs::read(dir.join(file)).with_context(|| format!("reading {file} in {}", dir.display()))
}

pub fn identity(dir: &Path) -> anyhow::Result<Identity> {
    Ok(Identity::from_pem(read(dir, "cert.pem")?, read(dir, "key.pem")?))
}

pub fn root(dir: &Path) -> anyhow::Result<Certificate> {
    Ok(Certificate::from_pem(read(dir, "root-cert.pem")?))
}
