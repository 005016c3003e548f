//! What a policy is, and what it is asked about.

use identity::SpiffeId;
use ipnet::IpNet;
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// `namespace/name` of a policy.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PolicyName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    Global,
    Namespace,
    /// Binds the workloads that name it.
    WorkloadSelector,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Allow,
    Deny,
}

/// `istio.security.Authorization`: an OR of rules; without rules it never matches.
#[derive(Clone, PartialEq, Debug)]
pub struct Policy {
    pub name: PolicyName,
    pub scope: Scope,
    pub action: Action,
    pub rules: Vec<Rule>,
    /// Evaluated and reported, never enforced.
    pub dry_run: bool,
}

/// An AND of clauses; without clauses it is true.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Rule {
    pub clauses: Vec<Clause>,
}

/// An OR of matches; without matches it is true.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Clause {
    pub matches: Vec<Match>,
}

/// An AND over the kinds that are present, an OR inside each kind, and none of the negatives. An
/// empty match never matches.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Match {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub service_accounts: Vec<ServiceAccountMatch>,
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    pub source_ips: Vec<IpNet>,
    pub not_source_ips: Vec<IpNet>,
    pub destination_ips: Vec<IpNet>,
    pub not_destination_ips: Vec<IpNet>,
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StringMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
    /// Any value, as long as there is one.
    Presence,
}

/// A service account of the workload's own trust domain or one of its aliases.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceAccountMatch {
    pub namespace: String,
    pub service_account: String,
}

/// Who is asking: a peer with an identity, or plaintext.
pub type Peer = Option<SpiffeId>;

/// One connection, as policy sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct Request {
    pub peer: Peer,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// The destination's trust domain, then its aliases: where service accounts are looked for.
    pub trust_domains: Arc<[Arc<str>]>,
}

impl Request {
    pub(crate) fn source_ip(&self) -> IpAddr {
        self.source.ip().to_canonical()
    }

    pub(crate) fn destination_ip(&self) -> IpAddr {
        self.destination.ip().to_canonical()
    }
}
