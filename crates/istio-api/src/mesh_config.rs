//! What is read of MeshConfig.

mod providers;
pub(crate) mod validate;

use crate::kubernetes::nullable;
use serde::Deserialize;

/// What is read of the `mesh` key of the ConfigMap `istio` in the root namespace; all that it may have
/// is in [`crate::istio::mesh_config`].
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshConfig {
    pub trust_domain: String,
    #[serde(deserialize_with = "nullable")]
    pub trust_domain_aliases: Vec<String>,
    pub root_namespace: String,
    /// Where access logs go: nowhere, if it is empty. None: nothing is said.
    pub access_log_file: Option<String>,
    pub access_log_format: String,
    /// `TEXT` or `JSON`.
    pub access_log_encoding: String,
    pub enable_tracing: bool,
    pub default_providers: DefaultProviders,
    #[serde(deserialize_with = "nullable")]
    pub extension_providers: Vec<Provider>,
    pub default_config: ProxyConfig,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DefaultProviders {
    #[serde(deserialize_with = "nullable")]
    pub access_logging: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub tracing: Vec<String>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Provider {
    pub name: String,
    pub opentelemetry: Option<OpenTelemetry>,
    pub envoy_file_access_log: Option<FileAccessLog>,
}

/// Lines on standard output.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FileAccessLog {
    pub log_format: Option<LogFormat>,
}

/// A text with Envoy's operators, or an object of such.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LogFormat {
    pub text: Option<String>,
    pub labels: Option<serde_json::Value>,
}

/// A collector that takes OTLP over gRPC.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct OpenTelemetry {
    /// `[<namespace>/]<hostname>`
    pub service: String,
    pub port: u32,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ProxyConfig {
    pub tracing: ProxyTracing,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ProxyTracing {
    /// Percent of the requests that nobody has decided about. None: Istio's 1.
    pub sampling: Option<f64>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        MeshConfig {
            trust_domain: "cluster.local".to_owned(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
            access_log_file: None,
            access_log_format: String::new(),
            access_log_encoding: String::new(),
            enable_tracing: false,
            default_providers: DefaultProviders::default(),
            extension_providers: Vec::new(),
            default_config: ProxyConfig::default(),
        }
    }
}
