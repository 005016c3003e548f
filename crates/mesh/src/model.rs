//! Workloads and services, parsed.

use identity::{SpiffeId, SpiffeIdError};
use policy::PolicyName;
use serde::Serialize;
use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

/// `namespace/hostname`: what a service is known by. A Kubernetes Service is one kind of it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NamespacedHostname {
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct PortMapping {
    pub service_port: u16,
    /// Zero: as the service says.
    pub target_port: u16,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}

/// Where the reader of this state is: what locality is measured from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Local {
    pub node: Arc<str>,
    pub cluster: Arc<str>,
    pub network: Arc<str>,
    /// Learned from the workloads that run on this node; the latest word counts.
    pub locality: Locality,
}

/// The services that a workload serves, and its ports there.
pub type Services = BTreeMap<NamespacedHostname, Box<[PortMapping]>>;

pub type Labels = BTreeMap<String, String>;

/// What workloads have in common they share, once they are in a mesh.
#[derive(Clone, PartialEq, Debug)]
pub struct Workload {
    pub uid: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub addresses: Vec<IpAddr>,
    pub network: Arc<str>,
    /// Reached by HBONE; otherwise in plaintext.
    pub hbone: bool,
    pub trust_domain: Arc<str>,
    pub service_account: Arc<str>,
    pub node: Arc<str>,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    /// `deployment`, `cronjob`, `job` or `pod`.
    pub workload_type: &'static str,
    pub workload_name: Arc<str>,
    pub policies: Arc<[PolicyName]>,
    pub healthy: bool,
    pub cluster: Arc<str>,
    pub services: Arc<Services>,
    pub locality: Locality,
    /// Shares its node's addresses, which therefore name no workload.
    pub host_network: bool,
    pub labels: Arc<Labels>,
    /// What a control plane says about its names; most workloads need none of it.
    pub dns: Option<Box<Dns>>,
}

/// A workload and the names around it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dns {
    /// Its own name within `subdomain`, a headless service of its namespace.
    pub hostname: String,
    pub subdomain: String,
    /// The search list of its resolver, where it is not the cluster's own.
    pub searches: Option<Vec<String>>,
    /// Its questions are its own affair.
    pub not_captured: bool,
}

impl Workload {
    pub fn identity(&self) -> Result<SpiffeId, SpiffeIdError> {
        SpiffeId::new(&self.trust_domain, &self.namespace, &self.service_account)
    }

    /// The workload's address of the same family as `like`, or any.
    pub fn address_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses
            .iter()
            .find(|a| a.is_ipv4() == like.is_ipv4())
            .or_else(|| self.addresses.first())
            .copied()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Every endpoint is as good as any other.
    #[default]
    Any,
    /// Only endpoints that match every scope.
    Strict,
    /// Endpoints that match more scopes first.
    Failover,
    /// To the address asked for.
    Passthrough,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HealthPolicy {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LoadBalancing {
    pub preference: Vec<Scope>,
    pub mode: Mode,
    pub health: HealthPolicy,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Service {
    pub key: NamespacedHostname,
    pub name: Arc<str>,
    /// Single virtual addresses, by network.
    pub addresses: Vec<(Arc<str>, IpAddr)>,
    pub ports: Vec<PortMapping>,
    pub subject_alt_names: Vec<String>,
    pub load_balancing: LoadBalancing,
    /// Whether a waypoint serves it. Agents here send to the endpoint; the waypoint's namespace
    /// and hostname are kept for those who ask.
    pub waypoint: Option<NamespacedHostname>,
    pub private: bool,
}
