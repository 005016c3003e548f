//! The file that says whom to trust. It may change at any time: Kubernetes swaps what it has mounted.

use crate::{CertStore, Roots, RootsError};
use std::{
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Root certificates of a trust domain and of its other names, PEM.
#[derive(Debug)]
pub struct RootsFile {
    path: PathBuf,
    trust_domain: String,
    aliases: Vec<String>,
    /// What was last read, good or not.
    seen: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum RootsFileError {
    #[error("reading the mesh's root certificates {path} (--root-cert): {error}")]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{path} (--root-cert): {error}")]
    Unusable { path: PathBuf, error: RootsError },
}

/// How often the file is looked at. A kubelet takes a minute to bring a change.
const LOOK: Duration = Duration::from_secs(2);

impl RootsFile {
    pub fn open(
        path: &Path,
        trust_domain: &str,
        aliases: &[String],
    ) -> Result<(Self, Roots), RootsFileError> {
        let mut file = Self {
            path: path.to_owned(),
            trust_domain: trust_domain.to_owned(),
            aliases: aliases.to_vec(),
            seen: Vec::new(),
        };
        file.seen = file.bytes()?;
        let roots = file.roots()?;
        Ok((file, roots))
    }

    /// Has `certs` trust what the file says, whenever that has become something else. What cannot be
    /// read or used changes nothing.
    pub async fn follow(mut self, certs: &CertStore) -> Infallible {
        let mut complained = false;
        loop {
            tokio::time::sleep(LOOK).await;
            match self.look() {
                Ok(Some(roots)) => {
                    tracing::info!(path = %self.path.display(), "the mesh's roots have changed");
                    certs.trust(roots);
                    complained = false;
                }
                Ok(None) => {}
                Err(error @ RootsFileError::Unusable { .. }) => {
                    tracing::error!(%error, "the roots that were there before stay trusted");
                }
                Err(error) if !complained => {
                    tracing::warn!(%error, "the roots that were there before stay trusted");
                    complained = true;
                }
                Err(_) => {}
            }
        }
    }

    /// What has become of it since it was last looked at.
    fn look(&mut self) -> Result<Option<Roots>, RootsFileError> {
        let bytes = self.bytes()?;
        if bytes == self.seen {
            return Ok(None);
        }
        self.seen = bytes;
        self.roots().map(Some)
    }

    fn bytes(&self) -> Result<Vec<u8>, RootsFileError> {
        fs::read(&self.path)
            .map_err(|error| RootsFileError::Unreadable { path: self.path.clone(), error })
    }

    fn roots(&self) -> Result<Roots, RootsFileError> {
        let mut roots = Roots::from_pem(&self.trust_domain, &self.seen)
            .map_err(|error| RootsFileError::Unusable { path: self.path.clone(), error })?;
        for alias in &self.aliases {
            roots.alias(&self.trust_domain, alias);
        }
        Ok(roots)
    }
}
