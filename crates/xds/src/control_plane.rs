//! The line to the control plane: discovery and certificates, over TLS to a name that no workload
//! can get, with the caller's token.

use crate::{
    client::{Connect, endpoint},
    proto::ca::{
        IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
    },
};
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use identity::{CaError, CertificateAuthority, SpiffeId};
use prost_types::{Struct, Value, value::Kind};
use std::{error::Error, fs, path::PathBuf, time::Duration};
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig},
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

/// An error with all that is behind it.
fn whole(e: &dyn Error) -> String {
    let mut out = e.to_string();
    let mut source = e.source();
    while let Some(e) = source {
        out.push_str(": ");
        out.push_str(&e.to_string());
        source = e.source();
    }
    out
}

impl ControlPlane {
    async fn channel(&self) -> Result<Channel, String> {
        let root = fs::read(&self.root_cert).map_err(|e| {
            format!(
                "reading the control plane's root certificate {} (culvertd writes it into its \
                 state directory; copy it here): {e}",
                self.root_cert.display()
            )
        })?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(root))
            .domain_name(self.name.clone());
        let endpoint = endpoint(&self.address)
            .and_then(|e| e.tls_config(tls))
            .map_err(|e| whole(&e))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true);
        // The endpoint's own limit is on TCP alone: one that accepts and says nothing would be waited
        // for without end.
        tokio::time::timeout(CONNECT_TIMEOUT * 2, endpoint.connect())
            .await
            .map_err(|_| format!("connecting to {}: no answer in TLS", self.address))?
            .map_err(|e| format!("connecting to {}: {}", self.address, whole(&e)))
    }

    fn read_token(&self) -> Result<Option<String>, String> {
        self.token
            .as_ref()
            .map(|path| {
                fs::read_to_string(path)
                    .map(|t| t.trim().to_owned())
                    .map_err(|e| format!("reading the token {}: {e}", path.display()))
            })
            .transpose()
    }

    async fn ask(&self, identity: &SpiffeId, csr_pem: &str) -> Result<Vec<String>, String> {
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
                .map_err(|_| "the token holds characters that no header can carry".to_owned())?;
            request.metadata_mut().insert("authorization", value);
        }
        if let Ok(cluster) = MetadataValue::try_from(self.cluster.as_str()) {
            request.metadata_mut().insert("clusterid", cluster);
        }
        let answer = client
            .create_certificate(request)
            .await
            .map_err(|s| format!("{:?}: {}", s.code(), s.message()))?;
        Ok(answer.into_inner().cert_chain)
    }
}

impl Connect for ControlPlane {
    fn connect(&self) -> BoxFuture<'_, Result<Channel, String>> {
        Box::pin(self.channel())
    }

    fn token(&self) -> Result<Option<String>, String> {
        self.read_token()
    }
}

#[async_trait]
impl CertificateAuthority for ControlPlane {
    async fn certify(&self, identity: &SpiffeId, csr_pem: &str) -> Result<Vec<String>, CaError> {
        self.ask(identity, csr_pem).await.map_err(|why| CaError { identity: identity.clone(), why })
    }
}
