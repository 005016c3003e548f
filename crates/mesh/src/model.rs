//! Workloads and services, parsed.

use identity::{SpiffeId, SpiffeIdError};
use policy::PolicyName;
use serde::Serialize;
use std::{
    borrow::Borrow,
    collections::BTreeMap,
    fmt,
    hash::{Hash, Hasher},
    net::IpAddr,
    num::NonZeroU64,
    ops::Deref,
    sync::Arc,
};
use xds::Version;

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

/// A waypoint: the service that its proxies are behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Waypoint {
    Named(NamespacedHostname),
    /// By network and virtual address.
    At(Arc<str>, IpAddr),
    /// It has one, and what was said of it cannot be understood here: there is no way to it.
    Unreadable,
}

impl fmt::Display for Waypoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(key) => key.fmt(f),
            Self::At(_, ip) => ip.fmt(f),
            Self::Unreadable => f.write_str("(in a form that is not known here)"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct PortMapping {
    pub service_port: u16,
    /// Zero: as the service says.
    pub target_port: u16,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub subzone: String,
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

/// The services that workloads serve, each with its ports there, in order of their names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Services(Box<[(NamespacedHostname, Arc<[PortMapping]>)]>);

impl Services {
    pub fn iter(&self) -> impl Iterator<Item = (&NamespacedHostname, &Arc<[PortMapping]>)> {
        self.0.iter().map(|(key, ports)| (key, ports))
    }

    pub(crate) fn iter_mut(
        &mut self,
    ) -> impl Iterator<Item = &mut (NamespacedHostname, Arc<[PortMapping]>)> {
        self.0.iter_mut()
    }

    pub fn get(&self, key: &NamespacedHostname) -> Option<&[PortMapping]> {
        let at = self.0.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
        self.0.get(at).map(|(_, ports)| &**ports)
    }
}

impl FromIterator<(NamespacedHostname, Arc<[PortMapping]>)> for Services {
    fn from_iter<I: IntoIterator<Item = (NamespacedHostname, Arc<[PortMapping]>)>>(all: I) -> Self {
        let sorted: BTreeMap<_, _> = all.into_iter().collect();
        Self(sorted.into_iter().collect())
    }
}

/// In order of their names.
pub type Labels = Box<[(Arc<str>, Arc<str>)]>;

/// The addresses of a workload; nearly always one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Addresses {
    One(IpAddr),
    Others(Box<[IpAddr]>),
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match self {
            Self::One(ip) => std::slice::from_ref(ip),
            Self::Others(all) => all,
        }
    }
}

impl From<Vec<IpAddr>> for Addresses {
    fn from(all: Vec<IpAddr>) -> Self {
        match *all {
            [one] => Self::One(one),
            _ => Self::Others(all.into()),
        }
    }
}

/// A pod, or another endpoint. There may be a hundred thousand: what it has in common with others
/// is behind [`Kin`] and [`Site`], and reads as its own.
#[derive(Clone, PartialEq, Debug)]
pub struct Workload {
    pub uid: Box<str>,
    pub(crate) version: Version,
    /// Where it is not the last part of the uid: so seldom that a second pointer is less.
    pub(crate) other_name: Option<Box<Box<str>>>,
    pub addresses: Addresses,
    /// Which of the pods that have had its name one after another it is.
    pub incarnation: Option<NonZeroU64>,
    pub site: Arc<Site>,
    pub kin: Arc<Kin>,
}

/// Where workloads run.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Site {
    pub node: String,
    pub locality: Locality,
}

/// What the pods of one Deployment have in common.
#[derive(Clone, PartialEq, Debug)]
pub struct Kin {
    pub namespace: Arc<str>,
    pub network: Arc<str>,
    /// Reached by HBONE; otherwise in plaintext.
    pub hbone: bool,
    pub healthy: bool,
    pub trust_domain: Arc<str>,
    pub service_account: Arc<str>,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    /// `deployment`, `cronjob`, `job` or `pod`.
    pub workload_type: &'static str,
    pub workload_name: Arc<str>,
    pub policies: Arc<[PolicyName]>,
    pub cluster: Arc<str>,
    pub services: Services,
    /// Shares its node's addresses, which therefore name no workload.
    pub host_network: bool,
    pub labels: Labels,
    /// Whom traffic to its own addresses goes through.
    pub waypoint: Option<Waypoint>,
    /// Its namespace or its own label wants it in the mesh: it must not start uncaptured.
    pub enroll: bool,
    /// It may speak protocols that are dropped elsewhere.
    pub other_protocols: bool,
    /// What a control plane says about its names; most workloads need none of it.
    pub dns: Option<Box<Dns>>,
    /// It wants its connections with others of its node encrypted, too.
    pub encrypted_within: bool,
    /// The name that its addresses are found by, where it has none of its own.
    pub hostname: Option<Box<str>>,
}

impl Deref for Workload {
    type Target = Kin;

    fn deref(&self) -> &Kin {
        &self.kin
    }
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

impl Kin {
    pub fn identity(&self) -> Result<SpiffeId, SpiffeIdError> {
        SpiffeId::new(&self.trust_domain, &self.namespace, &self.service_account)
    }
}

impl Workload {
    pub fn name(&self) -> &str {
        match &self.other_name {
            Some(name) => name,
            None => last_part(&self.uid),
        }
    }

    /// Whether it can be found: at an address, or by a name.
    pub(crate) fn is_somewhere(&self) -> bool {
        !self.addresses.is_empty() || self.hostname.is_some()
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

/// A short form of `metadata.uid`, to be compared only: FNV-1a.
pub fn incarnation(pod_uid: &str) -> NonZeroU64 {
    let hash = pod_uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN)
}

/// A workload as a key: two versions of one are the same.
#[derive(Clone, Debug)]
pub(crate) struct ByUid(pub(crate) Arc<Workload>);

impl PartialEq for ByUid {
    fn eq(&self, other: &Self) -> bool {
        self.0.uid == other.0.uid
    }
}

impl Eq for ByUid {}

impl Hash for ByUid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.uid.hash(state);
    }
}

impl Borrow<str> for ByUid {
    fn borrow(&self) -> &str {
        &self.0.uid
    }
}

/// A service as a key: two versions of one are the same.
#[derive(Clone, Debug)]
pub(crate) struct ByKey(pub(crate) Arc<Service>);

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for ByKey {}

impl Hash for ByKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

impl Borrow<NamespacedHostname> for ByKey {
    fn borrow(&self) -> &NamespacedHostname {
        &self.0.key
    }
}

/// `cluster//Pod/namespace/name` ends in what the workload is called.
pub(crate) fn last_part(uid: &str) -> &str {
    uid.rsplit('/').next().unwrap_or(uid)
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
    pub addresses: Box<[(Arc<str>, IpAddr)]>,
    pub ports: Arc<[PortMapping]>,
    pub subject_alt_names: Vec<String>,
    pub load_balancing: LoadBalancing,
    /// Whom its traffic goes through.
    pub waypoint: Option<Waypoint>,
    pub private: bool,
    pub(crate) version: Version,
}
