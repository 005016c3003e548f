//! Who may ask for what: node agents by their token, and identities by the pods that really run.

use crate::{ca::Authority, control::Control, kubernetes::Reviews};
use arc_swap::ArcSwap;
use identity::SpiffeId;
use prost_types::value::Kind;
use std::{
    collections::HashMap, fmt, fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration,
};
use tonic::{Request, Response, Status, metadata::MetadataMap};
use xds::proto::ca::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::IstioCertificateService,
};

/// Who asks the CA.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Caller {
    /// An agent: impersonates the pods that run on its node.
    Node(String),
    /// A waypoint or gateway: itself.
    Workload(Account),
}

/// A service account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service account {}/{}", self.namespace, self.name)
    }
}

impl Caller {
    /// A node's name has no slash; `<namespace>/<service account>` has one.
    fn named(name: &str) -> Self {
        match name.split_once('/') {
            Some((namespace, name)) => {
                Self::Workload(Account { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            None => Self::Node(name.to_owned()),
        }
    }
}

/// Tokens: a file of lines `<node> <token>` and `<namespace>/<service account> <token>`, read anew for each call, since it rotates.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub file: PathBuf,
}

/// Who vouches for tokens.
pub enum Callers {
    File(Tokens),
    Kubernetes(Box<Reviews>),
}

impl Callers {
    /// Whose token the call carries, that comes from this address.
    pub async fn caller(
        &self,
        metadata: &MetadataMap,
        from: Option<SocketAddr>,
    ) -> Result<Caller, Status> {
        let presented = metadata
            .get("authorization")
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix("Bearer "))
            .ok_or_else(|| Status::unauthenticated("no bearer token in the call's metadata"))?;
        match self {
            Self::File(tokens) => tokens.caller(presented),
            Self::Kubernetes(reviews) => reviews.caller(presented, from.map(|a| a.ip())).await,
        }
    }
}

impl Tokens {
    fn caller(&self, presented: &str) -> Result<Caller, Status> {
        let text = fs::read_to_string(&self.file).map_err(|e| {
            tracing::error!(file = %self.file.display(), error = %e, "the node tokens cannot be read");
            Status::unavailable("the control plane cannot read its node tokens")
        })?;
        let known: HashMap<&str, &str> = text
            .lines()
            .filter_map(|l| l.split_once(char::is_whitespace))
            .map(|(node, token)| (node, token.trim()))
            .collect();
        // Every token is compared, and whole: how long it takes tells nothing.
        let mut found = None;
        for (node, token) in known {
            if same(token.as_bytes(), presented.as_bytes()) && !token.is_empty() {
                found = Some(Caller::named(node));
            }
        }
        found
            .ok_or_else(|| Status::unauthenticated("the token is not that of any node or workload"))
    }
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

pub struct CertificateService {
    pub control: Arc<Control>,
    pub authority: Arc<ArcSwap<Authority>>,
    pub callers: Arc<Callers>,
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = self.callers.caller(request.metadata(), request.remote_addr()).await?;
        let request = request.into_inner();
        let asked =
            request.metadata.as_ref().and_then(|m| m.fields.get("ImpersonatedIdentity")).and_then(
                |v| match &v.kind {
                    Some(Kind::StringValue(s)) => Some(s.as_str()),
                    _ => None,
                },
            );
        let parsed = asked.map(str::parse::<SpiffeId>).transpose();
        let asked = parsed.map_err(|e| Status::invalid_argument(format!("{e}")))?;
        let identity = match (&caller, asked) {
            (Caller::Node(node), Some(identity)) => {
                self.control.may_impersonate(node, &identity).await?;
                identity
            }
            (Caller::Node(_), None) => {
                return Err(Status::permission_denied(
                    "a node has no identity of its own: ImpersonatedIdentity is missing",
                ));
            }
            (Caller::Workload(account), asked) => {
                let own =
                    SpiffeId::new(&self.control.trust_domain(), &account.namespace, &account.name);
                let own = own.map_err(|e| Status::invalid_argument(format!("{e}")))?;
                let identity = asked.unwrap_or(own);
                self.control.may_be(account, &identity).await?;
                identity
            }
        };
        let life = Duration::from_secs(u64::try_from(request.validity_duration).unwrap_or(0));
        let cert_chain = self
            .authority
            .load()
            .certify(&identity, &request.csr, life)
            .map_err(|e| Status::invalid_argument(format!("{e:#}")))?;
        tracing::info!(%identity, ?caller, "certificate issued");
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
