//! How a service is reached, ready to be asked.

use super::table::{Bad, duration};
use crate::{
    names::ServiceName,
    proto::{self, Balancer, Protocol, hash_key},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

#[derive(Debug, PartialEq)]
pub struct Destination {
    pub name: ServiceName,
    /// The DestinationRule's name, for whoever asks why.
    pub origin: String,
    ports: Vec<Arc<DestinationPort>>,
    subsets: BTreeMap<String, Subset>,
}

#[derive(Debug, PartialEq)]
pub struct Subset {
    pub labels: Vec<(String, String)>,
    ports: Vec<Arc<DestinationPort>>,
}

#[derive(Debug, PartialEq)]
pub struct DestinationPort {
    pub port: u16,
    pub protocol: Protocol,
    pub policy: TrafficPolicy,
}

#[derive(Debug, PartialEq, Clone)]
pub struct TrafficPolicy {
    pub balancer: Balancer,
    pub hash: Option<HashKey>,
    pub locality: Option<Locality>,
    pub connect_timeout: Duration,
    pub idle_timeout: Option<Duration>,
    pub max_connections: Option<u32>,
    pub max_pending: Option<u32>,
    pub max_requests: Option<u32>,
    pub max_requests_per_connection: Option<u32>,
    pub max_retries: Option<u32>,
    pub retry_budget: Option<(u32, u32)>,
    pub outlier: Option<Outlier>,
    pub upgrade_to_http2: bool,
    pub use_client_protocol: bool,
    /// Begun with endpoints.
    pub tls: Option<proto::ClientTls>,
}

#[derive(Debug, PartialEq, Clone)]
pub struct HashKey {
    pub of: HashOf,
    pub minimum_ring_size: u64,
}

#[derive(Debug, PartialEq, Clone)]
pub enum HashOf {
    Header(String),
    /// With a life, a client that has none is given one; of no life, for its session.
    Cookie {
        name: String,
        path: String,
        ttl: Option<Duration>,
    },
    SourceIp,
    Query(String),
}

#[derive(Debug, PartialEq, Clone)]
pub struct Locality {
    /// From a region to the one that stands in for it.
    pub failover: BTreeMap<String, String>,
}

#[derive(Debug, PartialEq, Clone)]
pub struct Outlier {
    /// 0: not looked at.
    pub consecutive_5xx: u32,
    pub consecutive_gateway: u32,
    pub consecutive_local: u32,
    pub split_local: bool,
    pub interval: Duration,
    pub base_ejection: Duration,
    pub max_ejection_percent: u32,
    pub min_health_percent: u32,
}

/// Settings of a port, and the labels that its endpoints have.
pub type PortOf<'a> = (&'a Arc<DestinationPort>, &'a [(String, String)]);

impl Destination {
    pub fn load(d: &proto::Destination) -> Result<Self, Bad> {
        let bad = |why: String| Bad { at: format!("{}/{}", d.namespace, d.hostname), why };
        let ports = |all: &[proto::DestinationPort]| {
            all.iter()
                .map(|p| {
                    Ok(Arc::new(DestinationPort {
                        port: u16::try_from(p.port)
                            .map_err(|_| bad(format!("{} is no port", p.port)))?,
                        protocol: Protocol::try_from(p.protocol).unwrap_or(Protocol::Detect),
                        policy: policy(&p.policy.clone().unwrap_or_default()).map_err(bad)?,
                    }))
                })
                .collect::<Result<Vec<_>, Bad>>()
        };
        let mut subsets = BTreeMap::new();
        for s in &d.subsets {
            let labels = s.labels.clone().into_iter().collect();
            subsets.insert(s.name.clone(), Subset { labels, ports: ports(&s.ports)? });
        }
        Ok(Self {
            name: ServiceName { namespace: d.namespace.clone(), hostname: d.hostname.clone() },
            origin: d.origin.clone(),
            ports: ports(&d.ports)?,
            subsets,
        })
    }

    pub fn port(&self, subset: &str, port: u16) -> Option<PortOf<'_>> {
        let find = |all: &'_ [Arc<DestinationPort>]| all.iter().position(|p| p.port == port);
        if subset.is_empty() {
            return Some((self.ports.get(find(&self.ports)?)?, &[]));
        }
        let s = self.subsets.get(subset)?;
        Some((s.ports.get(find(&s.ports)?)?, &s.labels))
    }
}

fn policy(p: &proto::TrafficPolicy) -> Result<TrafficPolicy, String> {
    let limit = |n: u32| (n > 0).then_some(n);
    let balancer = Balancer::try_from(p.balancer).map_err(|e| e.to_string())?;
    let hash = p.hash.as_ref().map(|h| {
        let of = match &h.of {
            Some(hash_key::Of::Header(name)) => HashOf::Header(name.clone()),
            Some(hash_key::Of::Cookie(name)) => HashOf::Cookie {
                name: name.clone(),
                path: h.cookie_path.clone(),
                ttl: h.cookie_is_given.then(|| Duration::from_secs(h.cookie_ttl_s)),
            },
            Some(hash_key::Of::Query(name)) => HashOf::Query(name.clone()),
            Some(hash_key::Of::SourceIp(_)) => HashOf::SourceIp,
            None => return Err("a hash of nothing".to_owned()),
        };
        Ok(HashKey { of, minimum_ring_size: h.minimum_ring_size })
    });
    Ok(TrafficPolicy {
        balancer,
        hash: hash.transpose()?,
        locality: p
            .locality
            .as_ref()
            .filter(|l| l.enabled)
            .map(|l| Locality { failover: l.failover.clone() }),
        connect_timeout: duration(p.connect_timeout_ms).unwrap_or(Duration::from_secs(10)),
        idle_timeout: duration(p.idle_timeout_ms),
        max_connections: limit(p.max_connections),
        max_pending: limit(p.max_pending),
        max_requests: limit(p.max_requests),
        max_requests_per_connection: limit(p.max_requests_per_connection),
        max_retries: limit(p.max_retries),
        retry_budget: p.retry_budget.map(|b| (b.percent_hundredths, b.min_concurrency)),
        outlier: p.outlier.as_ref().map(|o| Outlier {
            consecutive_5xx: o.consecutive_5xx,
            consecutive_gateway: o.consecutive_gateway,
            consecutive_local: o.consecutive_local,
            split_local: o.split_local,
            interval: Duration::from_millis(o.interval_ms.max(1)),
            base_ejection: Duration::from_millis(o.base_ejection_ms.max(1)),
            max_ejection_percent: o.max_ejection_percent,
            min_health_percent: o.min_health_percent,
        }),
        upgrade_to_http2: p.upgrade_to_http2,
        use_client_protocol: p.use_client_protocol,
        tls: p.tls.clone(),
    })
}
