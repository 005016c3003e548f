//! The certificate authority. Of a CSR it takes the public key alone, after checking that the
//! asker has the private one; all else comes from the identity that was authorized.

use anyhow::{Context as _, bail};
use identity::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use sha2::Digest as _;
use std::{fs, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};
use time::OffsetDateTime;

/// Clocks of nodes differ: a certificate is valid from this long ago.
const BACKDATE: Duration = Duration::from_secs(120);

/// Life of a root that this control plane makes itself.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// PEM: intermediates, then roots. What is sent behind a leaf.
    chain: Vec<String>,
    /// PEM of the roots alone.
    pub roots: String,
    max_life: Duration,
}

/// An authority as PEM, under Istio's names for its parts.
pub struct Pems {
    /// `ca-cert.pem`
    pub certificate: String,
    /// `ca-key.pem`
    pub key: String,
    /// `cert-chain.pem`: from the authority's certificate to below the root; empty for a root itself.
    pub chain: String,
    /// `root-cert.pem`: one, or several while one takes another's place.
    pub roots: String,
}

pub const PARTS: [&str; 4] = ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"];

impl Pems {
    /// Its parts as `read` has them by their names.
    pub fn read(mut read: impl FnMut(&str) -> anyhow::Result<String>) -> anyhow::Result<Self> {
        let [certificate, key, chain, roots] = PARTS;
        Ok(Self {
            certificate: read(certificate)?,
            key: read(key)?,
            chain: read(chain)?,
            roots: read(roots)?,
        })
    }

    /// A root of its own.
    pub fn self_signed(trust_domain: &str) -> anyhow::Result<Self> {
        let (certificate, key) = new_root(trust_domain)?;
        Ok(Self { roots: certificate.clone(), certificate, key, chain: String::new() })
    }
}

impl Authority {
    pub fn new(pems: &Pems, max_life: Duration) -> anyhow::Result<Self> {
        let key = KeyPair::from_pem(&pems.key).context("ca-key.pem is no private key")?;
        let issuer = Issuer::from_ca_cert_pem(&pems.certificate, key)
            .context("ca-cert.pem is no CA certificate")?;
        let roots = pems.roots.clone();
        let chain = match pems.chain.is_empty() {
            true => vec![roots.clone()],
            false => vec![pems.chain.clone(), roots.clone()],
        };
        let authority = Self { issuer, chain, roots, max_life };
        authority.is_under_its_roots()?;
        Ok(authority)
    }

    /// Another authority has another.
    pub fn fingerprint(&self) -> [u8; 32] {
        let parts = self.chain.iter().map(String::as_bytes);
        let key = self.issuer.key().public_key_raw();
        sha2::Sha256::digest(parts.chain([key]).collect::<Vec<_>>().concat()).into()
    }

    /// What nobody could verify is not issued.
    fn is_under_its_roots(&self) -> anyhow::Result<()> {
        let nobody = SpiffeId::new("check", "check", "check")?;
        let request = identity::new_request(&nobody)?;
        let chain = self.certify(&nobody, &request.csr_pem, Duration::from_secs(60))?;
        let roots = identity::Roots::from_pem("check", self.roots.as_bytes())
            .context("root-cert.pem has no certificate")?;
        identity::Certified::from_ca(&nobody, request, &chain, roots.into()).context(
            "what ca-cert.pem and ca-key.pem issue does not lead to root-cert.pem by cert-chain.pem",
        )?;
        Ok(())
    }

    /// A plugged-in authority, in Istio's file names.
    pub fn plugged_in(dir: &Path, max_life: Duration) -> anyhow::Result<Self> {
        let pems = Pems::read(|name| {
            let path = dir.join(name);
            fs::read_to_string(&path).with_context(|| {
                format!("reading {}: a plugged-in CA has {}", path.display(), PARTS.join(", "))
            })
        })?;
        Self::new(&pems, max_life).with_context(|| format!("the CA of {}", dir.display()))
    }

    /// The authority of this state directory, made there the first time.
    pub fn self_signed(
        state: &Path,
        trust_domain: &str,
        max_life: Duration,
    ) -> anyhow::Result<Self> {
        let (cert_path, key_path) = (state.join("ca-cert.pem"), state.join("ca-key.pem"));
        if !cert_path.exists() || !key_path.exists() {
            let new = Pems::self_signed(trust_domain)?;
            write_secret(&key_path, &new.key)?;
            fs::write(&cert_path, new.certificate)
                .with_context(|| format!("writing {}", cert_path.display()))?;
        }
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
        };
        let certificate = read(&cert_path)?;
        let pems = Pems {
            roots: certificate.clone(),
            certificate,
            key: read(&key_path)?,
            chain: String::new(),
        };
        Self::new(&pems, max_life).with_context(|| format!("the CA of {}", state.display()))
    }

    /// A certificate for `identity`, and the chain behind it: PEM, leaf first.
    pub fn certify(
        &self,
        identity: &SpiffeId,
        csr_pem: &str,
        asked: Duration,
    ) -> anyhow::Result<Vec<String>> {
        // Checks the signature: proof that the asker has the key.
        let csr = CertificateSigningRequestParams::from_pem(csr_pem)
            .context("the CSR cannot be read, or its signature is not by its key")?;
        if *csr.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 {
            bail!("the CSR's key is not ECDSA P-256");
        }
        let life = match asked.is_zero() {
            true => self.max_life,
            false => asked.min(self.max_life),
        };
        let mut params = leaf(life)?;
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&csr.public_key, &self.issuer)?;
        Ok(std::iter::once(certificate.pem()).chain(self.chain.iter().cloned()).collect())
    }

    /// The control plane's own certificate, under a DNS name that no workload can get: workloads
    /// get none.
    pub fn own(&self, name: &str) -> anyhow::Result<(String, String)> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = leaf(ROOT_LIFE / 10)?;
        params.subject_alt_names = vec![SanType::DnsName(name.to_owned().try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let chain: String =
            std::iter::once(certificate.pem()).chain(self.chain.iter().cloned()).collect();
        Ok((chain, key.serialize_pem()))
    }
}

fn leaf(life: Duration) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE.min(life);
    params.not_after = now + life;
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(SerialNumber::from(rand::random::<[u8; 16]>().to_vec()));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn new_root(trust_domain: &str) -> anyhow::Result<(String, String)> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + ROOT_LIFE;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("creating {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use identity::{Certified, Roots, new_request};
    use std::sync::Arc;

    fn authority() -> (tempdir::Dir, Authority) {
        let dir = tempdir::Dir::new();
        let a = Authority::self_signed(&dir.0, "cluster.local", Duration::from_secs(3600)).unwrap();
        (dir, a)
    }

    mod tempdir {
        pub struct Dir(pub std::path::PathBuf);
        impl Dir {
            pub fn new() -> Self {
                let path =
                    std::env::temp_dir().join(format!("culvert-ca-{:x}", rand::random::<u64>()));
                std::fs::create_dir_all(&path).unwrap();
                Dir(path)
            }
        }
        impl Drop for Dir {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
    }

    #[test]
    fn the_certificate_is_the_authorized_identity_whatever_the_csr_says() {
        let (_dir, a) = authority();
        let granted = SpiffeId::new("cluster.local", "a", "granted").unwrap();
        let wanted = SpiffeId::new("cluster.local", "a", "wanted").unwrap();
        let request = new_request(&wanted).unwrap();
        let chain = a.certify(&granted, &request.csr_pem, Duration::from_secs(60)).unwrap();
        let roots = Arc::new(Roots::from_pem("cluster.local", a.roots.as_bytes()).unwrap());
        let error = Certified::new(&wanted, request, &chain, roots.clone()).err().unwrap();
        assert!(error.to_string().contains("sa/granted"), "{error}");
        let request = new_request(&granted).unwrap();
        let chain =
            a.certify(&granted, &request.csr_pem, Duration::from_secs(u64::MAX / 4)).unwrap();
        let certified = Certified::new(&granted, request, &chain, roots).unwrap();
        let life = certified.not_after.duration_since(certified.not_before).unwrap();
        assert!(life <= Duration::from_secs(3600) + BACKDATE, "life is capped: {life:?}");
    }

    #[test]
    fn a_plugged_in_authority_certifies_under_its_root() {
        let dir = tempdir::Dir::new();
        let (root, root_key) = new_root("cluster.local").unwrap();
        let issuer =
            Issuer::from_ca_cert_pem(&root, KeyPair::from_pem(&root_key).unwrap()).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = leaf(Duration::from_secs(3600)).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "intermediate");
        let intermediate = params.signed_by(&key, &issuer).unwrap().pem();
        for (name, text) in [
            ("ca-cert.pem", &intermediate),
            ("ca-key.pem", &key.serialize_pem()),
            ("cert-chain.pem", &intermediate),
            ("root-cert.pem", &root),
        ] {
            fs::write(dir.0.join(name), text).unwrap();
        }
        let a = Authority::plugged_in(&dir.0, Duration::from_secs(600)).unwrap();
        let id = SpiffeId::new("cluster.local", "a", "b").unwrap();
        let request = new_request(&id).unwrap();
        let chain = a.certify(&id, &request.csr_pem, Duration::ZERO).unwrap();
        assert_eq!(chain[1], intermediate, "the leaf's issuer comes behind it");
        let roots = Arc::new(Roots::from_pem("cluster.local", a.roots.as_bytes()).unwrap());
        Certified::new(&id, request, &chain, roots).unwrap();
        fs::remove_file(dir.0.join("cert-chain.pem")).unwrap();
        let error = Authority::plugged_in(&dir.0, Duration::ZERO).err().unwrap();
        assert!(format!("{error:#}").contains("cert-chain.pem"), "{error:#}");
    }

    #[test]
    fn an_authority_that_nobody_could_verify_is_not_used() {
        let own = Pems::self_signed("cluster.local").unwrap();
        let (other, other_key) = new_root("cluster.local").unwrap();
        let with = |certificate: &str, key: &str, roots: &str| {
            let (certificate, key, roots) = (certificate.into(), key.into(), roots.into());
            let pems = Pems { certificate, key, roots, chain: String::new() };
            Authority::new(&pems, Duration::from_secs(60)).map(drop)
        };
        with(&own.certificate, &own.key, &own.roots).unwrap();
        // While one takes another's place.
        with(&own.certificate, &own.key, &format!("{other}{}", own.roots)).unwrap();
        for (certificate, key, roots) in [
            (&own.certificate, &own.key, &other),
            (&own.certificate, &other_key, &own.roots),
            (&own.certificate, &own.key, &String::new()),
        ] {
            with(certificate, key, roots).unwrap_err();
        }
    }

    #[test]
    fn a_csr_that_is_not_signed_by_its_key_is_refused() {
        let (_dir, a) = authority();
        let id = SpiffeId::new("cluster.local", "a", "b").unwrap();
        let request = new_request(&id).unwrap();
        let mut lines: Vec<String> = request.csr_pem.lines().map(ToOwned::to_owned).collect();
        // The signature is at the end of the DER.
        let last = lines.len() - 2;
        let swapped: String =
            lines[last].chars().map(|c| if c == 'A' { 'B' } else { 'A' }).collect();
        lines[last] = swapped;
        assert!(a.certify(&id, &lines.join("\n"), Duration::ZERO).is_err());
        assert!(a.certify(&id, "nonsense", Duration::ZERO).is_err());
    }
}
