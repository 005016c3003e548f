//! The cluster's authority: one root for the API server, its clients and the kubelets.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};

/// Issues certificates into files of one folder, as Kubernetes' programs take them.
pub(crate) struct Pki {
    dir: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Pki {
    pub fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("kubernetes", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let pki = Self { dir: dir.to_owned(), authority };
        fs::write(pki.root(), pki.authority.pem())?;
        let tokens = KeyPair::generate()?;
        write_key(&pki.token_key(), &tokens)?;
        fs::write(pki.token_public_key(), tokens.public_key_pem())?;
        Ok(pki)
    }

    /// What everyone trusts.
    pub fn root(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// For a server that is called by these names.
    pub fn server(&self, name: &str, names: &[&str], addresses: &[IpAddr]) -> Result<Issued> {
        let mut params = leaf(named(name, None), ExtendedKeyUsagePurpose::ServerAuth);
        for name in names {
            params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
        }
        params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        self.issue(name, params)
    }

    /// For a client whom Kubernetes knows as this user, of this group.
    pub fn client(&self, user: &str, group: Option<&str>) -> Result<Issued> {
        let params = leaf(named(user, group), ExtendedKeyUsagePurpose::ClientAuth);
        self.issue(&format!("client-{}", user.replace([':', '/'], "-")), params)
    }

    /// The key that signs the tokens of service accounts.
    pub fn token_key(&self) -> PathBuf {
        self.dir.join("service-account.key")
    }

    /// What checks their signatures.
    pub fn token_public_key(&self) -> PathBuf {
        self.dir.join("service-account.pub")
    }

    fn issue(&self, file: &str, params: CertificateParams) -> Result<Issued> {
        let own = KeyPair::generate()?;
        let certificate = params.signed_by(&own, &self.authority)?;
        let issued = Issued {
            certificate: self.dir.join(format!("{file}.crt")),
            key: self.dir.join(format!("{file}.key")),
        };
        fs::write(&issued.certificate, certificate.pem())
            .with_context(|| format!("cannot write {}", issued.certificate.display()))?;
        write_key(&issued.key, &own)?;
        Ok(issued)
    }
}

fn leaf(name: DistinguishedName, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params
}

/// Kubernetes reads a client's user from the common name and its group from the organization.
fn named(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name
}

fn write_key(path: &Path, key: &KeyPair) -> Result<()> {
    use std::io::Write as _;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(path).and_then(|mut f| f.write_all(key.serialize_pem().as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))
}
