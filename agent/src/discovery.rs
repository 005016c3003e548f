//! The agent's line to the control plane: discovery and certificates, over TLS to a name that no
//! workload can get, with the node's token.

use crate::fault;
use anyhow::Context as _;
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use identity::{CaError, CertificateAuthority, SpiffeId};
use mesh::Mesh;
use prost_types::{Any, Struct, Value, value::Kind};
use std::{fs, path::PathBuf, sync::Arc, time::Duration};
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig},
};
use xds::{
    AUTHORIZATION_TYPE,
    client::{Apply, Connect, Rejected},
    proto::{
        ca::{
            IstioCertificateRequest,
            istio_certificate_service_client::IstioCertificateServiceClient,
        },
        discovery::Node,
    },
};

/// Where the control plane is and how it is known. Root and token are read anew each time: both
/// rotate.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    pub address: String,
    pub name: String,
    pub root_cert: PathBuf,
    pub token: Option<PathBuf>,
    pub cluster: String,
    /// Life of a certificate, asked for.
    pub validity: Duration,
}

/// For TCP; TLS has as much again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl ControlPlane {
    async fn channel(&self) -> anyhow::Result<Channel> {
        let root = fs::read(&self.root_cert).with_context(|| {
            format!(
                "reading the control plane's root certificate {} (culvertd writes it into its \
                 state directory; copy it here)",
                self.root_cert.display()
            )
        })?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(root))
            .domain_name(self.name.clone());
        let endpoint = xds::client::endpoint(&self.address)?
            .tls_config(tls)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true);
        // The endpoint's own limit is on TCP alone: one that accepts and says nothing would be waited
        // for without end.
        tokio::time::timeout(CONNECT_TIMEOUT * 2, endpoint.connect())
            .await
            .with_context(|| format!("connecting to {}: no answer in TLS", self.address))?
            .with_context(|| format!("connecting to {}", self.address))
    }

    fn read_token(&self) -> anyhow::Result<Option<String>> {
        self.token
            .as_ref()
            .map(|path| {
                fs::read_to_string(path)
                    .map(|t| t.trim().to_owned())
                    .with_context(|| format!("reading the token {}", path.display()))
            })
            .transpose()
    }
}

impl Connect for ControlPlane {
    fn connect(&self) -> BoxFuture<'_, Result<Channel, String>> {
        Box::pin(async { self.channel().await.map_err(|e| format!("{e:#}")) })
    }

    fn token(&self) -> Result<Option<String>, String> {
        self.read_token().map_err(|e| format!("{e:#}"))
    }
}

#[async_trait]
impl CertificateAuthority for ControlPlane {
    async fn certify(&self, identity: &SpiffeId, csr_pem: &str) -> Result<Vec<String>, CaError> {
        self.ask(identity, csr_pem)
            .await
            .map_err(|e| CaError { identity: identity.clone(), why: format!("{e:#}") })
    }
}

impl ControlPlane {
    async fn ask(&self, identity: &SpiffeId, csr_pem: &str) -> anyhow::Result<Vec<String>> {
        let mut client = IstioCertificateServiceClient::new(self.channel().await?);
        let impersonated = Value { kind: Some(Kind::StringValue(identity.to_string())) };
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr_pem.to_owned(),
            validity_duration: i64::try_from(self.validity.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct {
                fields: [("ImpersonatedIdentity".to_owned(), impersonated)].into(),
            }),
        });
        if let Some(token) = self.read_token()? {
            let value = MetadataValue::try_from(format!("Bearer {token}"))
                .context("the token holds characters that no header can carry")?;
            request.metadata_mut().insert("authorization", value);
        }
        if let Ok(cluster) = MetadataValue::try_from(self.cluster.as_str()) {
            request.metadata_mut().insert("clusterid", cluster);
        }
        let answer = client
            .create_certificate(request)
            .await
            .map_err(|s| anyhow::anyhow!("{:?}: {}", s.code(), s.message()))?;
        Ok(answer.into_inner().cert_chain)
    }
}

/// The mesh, as discovery changes it.
pub struct Following(pub Arc<Mesh>);

impl Apply for Following {
    fn apply(
        &self,
        type_url: &str,
        resources: Vec<(Arc<str>, Any)>,
        removed: Vec<String>,
    ) -> Vec<Rejected> {
        // What comes first changes nothing yet.
        if type_url == AUTHORIZATION_TYPE && self.0.synced().borrow().policies {
            fault::point("policy-received");
        }
        self.0.apply(type_url, resources, removed)
    }

    fn apply_part(
        &self,
        type_url: &str,
        resources: Vec<(Arc<str>, Any)>,
        removed: Vec<String>,
    ) -> Vec<Rejected> {
        self.0.apply_part(type_url, resources, removed)
    }

    fn connected(&self, connected: bool) {
        self.0.connected(connected);
    }
}

/// How this agent introduces itself.
pub fn node(name: &str, ip: &str, cluster: &str) -> Node {
    let text = |s: &str| Value { kind: Some(Kind::StringValue(s.to_owned())) };
    let namespace = "culvert-system";
    Node {
        id: format!("ztunnel~{ip}~culvert-agent-{name}.{namespace}~{namespace}.svc.cluster.local"),
        cluster: String::new(),
        metadata: Some(Struct {
            fields: [
                ("NAME".to_owned(), text(&format!("culvert-agent-{name}"))),
                ("NAMESPACE".to_owned(), text(namespace)),
                ("INSTANCE_IPS".to_owned(), text(ip)),
                ("NODE_NAME".to_owned(), text(name)),
                ("CLUSTER_ID".to_owned(), text(cluster)),
            ]
            .into(),
        }),
    }
}
