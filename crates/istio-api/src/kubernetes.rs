//! The parts of Kubernetes' own objects that a mesh reads. Fields that are not here are ignored.

use serde::{Deserialize, Deserializer};
use std::{collections::BTreeMap, net::IpAddr};

pub type Labels = BTreeMap<String, String>;

/// Kubernetes writes `null` where it means nothing.
pub(crate) fn nullable<'de, D, T>(d: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub uid: String,
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    #[serde(deserialize_with = "nullable")]
    pub labels: Labels,
    #[serde(deserialize_with = "nullable")]
    pub annotations: Labels,
    pub creation_timestamp: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub owner_references: Vec<OwnerReference>,
    pub deletion_timestamp: Option<String>,
    /// Counts the changes of what the object asks for.
    pub generation: Option<i64>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct OwnerReference {
    pub kind: String,
    pub name: String,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
pub struct Namespace {}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
pub struct ServiceAccount {}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
pub struct Node {}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
pub struct ConfigMap {
    #[serde(default, deserialize_with = "nullable")]
    pub data: BTreeMap<String, String>,
}

/// Its values are shown to nobody.
#[derive(Clone, PartialEq, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Secret {
    #[serde(deserialize_with = "nullable")]
    data: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    string_data: BTreeMap<String, String>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// A value as it is meant.
    pub fn value(&self, key: &str) -> Option<Vec<u8>> {
        let plain = self.string_data.get(key).map(|s| s.clone().into_bytes());
        let encoded = || {
            let text = self.data.get(key)?;
            let joined = text.split_whitespace().collect::<String>();
            Some(crate::schema::Base64(joined).bytes())
        };
        plain.or_else(encoded).filter(|v| !v.is_empty())
    }
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub spec: PodSpec,
    pub status: PodStatus,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    #[serde(deserialize_with = "nullable")]
    pub node_name: String,
    #[serde(deserialize_with = "nullable")]
    pub service_account_name: String,
    #[serde(deserialize_with = "nullable")]
    pub host_network: bool,
    #[serde(deserialize_with = "nullable")]
    pub containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    pub hostname: String,
    #[serde(deserialize_with = "nullable")]
    pub subdomain: String,
    #[serde(deserialize_with = "nullable")]
    pub dns_policy: String,
    #[serde(deserialize_with = "nullable")]
    pub dns_config: PodDnsConfig,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodDnsConfig {
    #[serde(deserialize_with = "nullable")]
    pub searches: Vec<String>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Container {
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ContainerPort>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    pub container_port: u16,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    #[serde(deserialize_with = "nullable")]
    pub phase: String,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs", deserialize_with = "nullable")]
    pub pod_ips: Vec<PodIp>,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<PodCondition>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct PodIp {
    pub ip: IpAddr,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct PodCondition {
    pub r#type: String,
    pub status: String,
}

impl Pod {
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = self.status.pod_ips.iter().map(|p| p.ip).collect();
        if let Some(ip) = self.status.pod_ip
            && !all.contains(&ip)
        {
            all.insert(0, ip);
        }
        all
    }

    pub fn ready(&self) -> bool {
        self.status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True")
    }

    /// Pending or running: it may have an identity.
    pub fn live(&self) -> bool {
        matches!(self.status.phase.as_str(), "Pending" | "Running" | "")
    }

    pub fn service_account(&self) -> &str {
        match self.spec.service_account_name.as_str() {
            "" => "default",
            name => name,
        }
    }

    pub fn named_port(&self, name: &str) -> Option<u16> {
        self.spec
            .containers
            .iter()
            .flat_map(|c| &c.ports)
            .find(|p| p.name == name)
            .map(|p| p.container_port)
    }
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    pub spec: ServiceSpec,
    #[serde(deserialize_with = "nullable")]
    pub status: ServiceStatus,
}

/// Which conditions somebody has told of, and no more: what they say changes nothing here.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceStatus {
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<ConditionType>,
}

/// Whatever else is in it: a Service is not refused for what others say of it.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConditionType {
    #[serde(deserialize_with = "nullable")]
    pub r#type: String,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    #[serde(deserialize_with = "nullable")]
    pub selector: Labels,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ServicePort>,
    #[serde(rename = "clusterIP", deserialize_with = "nullable")]
    pub cluster_ip: String,
    #[serde(rename = "clusterIPs", deserialize_with = "nullable")]
    pub cluster_ips: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub r#type: String,
    #[serde(deserialize_with = "nullable")]
    pub traffic_distribution: String,
    #[serde(deserialize_with = "nullable")]
    pub internal_traffic_policy: String,
    #[serde(deserialize_with = "nullable")]
    pub publish_not_ready_addresses: bool,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    #[serde(default, deserialize_with = "nullable")]
    pub name: String,
    pub port: u16,
    pub target_port: Option<TargetPort>,
    #[serde(default, deserialize_with = "nullable")]
    pub protocol: String,
    #[serde(default, deserialize_with = "nullable")]
    pub app_protocol: String,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    Number(u16),
    Name(String),
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    #[serde(deserialize_with = "nullable")]
    pub endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<EndpointPort>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint {
    pub addresses: Vec<IpAddr>,
    pub conditions: EndpointConditions,
    pub node_name: Option<String>,
    pub hostname: Option<String>,
    pub target_ref: Option<TargetRef>,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointConditions {
    pub ready: Option<bool>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct TargetRef {
    pub kind: String,
    pub name: String,
    #[serde(default)]
    pub namespace: String,
}

#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    pub port: Option<u16>,
}

crate::schema::messages! {
    /// Istio's selectors: equality only.
    LabelSelector = "WorkloadSelector" {
        match_labels: Labels,
    }
}

impl LabelSelector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
    }
}

crate::schema::messages! {
    /// Who, in another namespace, may name what in this one
    ReferenceGrant = "ReferenceGrantSpec" {
        from: Vec<GrantFrom>,
        to: Vec<GrantTo>,
    }

    /// `ReferenceGrantFrom`
    GrantFrom = "ReferenceGrantFrom" {
        group: String,
        kind: String,
        namespace: String,
    }

    /// `ReferenceGrantTo`
    GrantTo = "ReferenceGrantTo" {
        group: String,
        kind: String,
        // Empty: all.
        name: String,
    }
}
