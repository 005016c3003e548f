//! Istio's objects. Every field that Istio has is here, so that an unknown one is a mistake.

use crate::kubernetes::{LabelSelector, Labels, nullable};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// security.istio.io AuthorizationPolicy
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicy {
    pub selector: Option<LabelSelector>,
    pub target_ref: Option<Value>,
    #[serde(deserialize_with = "nullable")]
    pub target_refs: Vec<Value>,
    #[serde(deserialize_with = "nullable")]
    pub rules: Vec<Rule>,
    #[serde(deserialize_with = "nullable")]
    pub action: AuthorizationAction,
    pub provider: Option<Value>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AuthorizationAction {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    #[serde(deserialize_with = "nullable")]
    pub from: Vec<From>,
    #[serde(deserialize_with = "nullable")]
    pub to: Vec<To>,
    #[serde(deserialize_with = "nullable")]
    pub when: Vec<Condition>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct From {
    pub source: Source,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    #[serde(deserialize_with = "nullable")]
    pub principals: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub not_principals: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub request_principals: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub not_request_principals: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub namespaces: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub not_namespaces: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub service_accounts: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub not_service_accounts: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub ip_blocks: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub not_ip_blocks: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub remote_ip_blocks: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub not_remote_ip_blocks: Vec<String>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct To {
    pub operation: Operation,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Operation {
    #[serde(deserialize_with = "nullable")]
    pub hosts: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub not_hosts: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub not_ports: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub methods: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub not_methods: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub paths: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub not_paths: Vec<String>,
}

impl Operation {
    /// Says something that only an L7 proxy can know.
    pub fn has_l7(&self) -> bool {
        let l7 = [
            &self.hosts,
            &self.not_hosts,
            &self.methods,
            &self.not_methods,
            &self.paths,
            &self.not_paths,
        ];
        l7.iter().any(|f| !f.is_empty())
    }
}

impl Source {
    /// Says something that only an L7 proxy can know.
    pub fn has_l7(&self) -> bool {
        let l7 = [
            &self.request_principals,
            &self.not_request_principals,
            &self.remote_ip_blocks,
            &self.not_remote_ip_blocks,
        ];
        l7.iter().any(|f| !f.is_empty())
    }
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    pub key: String,
    #[serde(deserialize_with = "nullable")]
    pub values: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub not_values: Vec<String>,
}

/// security.istio.io PeerAuthentication
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthentication {
    pub selector: Option<LabelSelector>,
    pub mtls: Option<MutualTls>,
    #[serde(deserialize_with = "nullable")]
    pub port_level_mtls: BTreeMap<String, MutualTls>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MutualTls {
    pub mode: MutualTlsMode,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MutualTlsMode {
    #[default]
    Unset,
    Disable,
    Permissive,
    Strict,
}

/// networking.istio.io WorkloadEntry
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadEntry {
    pub address: String,
    #[serde(deserialize_with = "nullable")]
    pub ports: BTreeMap<String, u16>,
    #[serde(deserialize_with = "nullable")]
    pub labels: Labels,
    #[serde(deserialize_with = "nullable")]
    pub network: String,
    #[serde(deserialize_with = "nullable")]
    pub locality: String,
    pub weight: Option<u32>,
    #[serde(deserialize_with = "nullable")]
    pub service_account: String,
}

/// networking.istio.io ServiceEntry
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceEntry {
    pub hosts: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ServiceEntryPort>,
    pub location: Option<Value>,
    #[serde(deserialize_with = "nullable")]
    pub resolution: Resolution,
    #[serde(deserialize_with = "nullable")]
    pub endpoints: Vec<WorkloadEntry>,
    pub workload_selector: Option<EntrySelector>,
    #[serde(deserialize_with = "nullable")]
    pub export_to: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub subject_alt_names: Vec<String>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EntrySelector {
    #[serde(deserialize_with = "nullable")]
    pub labels: Labels,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceEntryPort {
    pub number: u16,
    pub protocol: String,
    pub name: String,
    pub target_port: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub enum Resolution {
    #[default]
    #[serde(rename = "NONE")]
    None,
    #[serde(rename = "STATIC")]
    Static,
    #[serde(rename = "DNS")]
    Dns,
    #[serde(rename = "DNS_ROUND_ROBIN")]
    DnsRoundRobin,
    #[serde(rename = "DYNAMIC_DNS")]
    DynamicDns,
}

/// The `mesh` key of the ConfigMap `istio` in the root namespace. Istio's has many more fields;
/// those that nothing here reads are kept out of the way.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MeshConfig {
    pub trust_domain: String,
    #[serde(deserialize_with = "nullable")]
    pub trust_domain_aliases: Vec<String>,
    pub root_namespace: String,
}

impl Default for MeshConfig {
    fn default() -> Self {
        MeshConfig {
            trust_domain: "cluster.local".to_owned(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
        }
    }
}
