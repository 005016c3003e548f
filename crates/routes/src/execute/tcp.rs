//! Routes of connections whose bytes are not looked into.

use super::request::Source;
use super::table::{Forward, Target, Weighted};
use crate::{names, proto};
use ipnet::IpNet;
use std::net::IpAddr;

#[derive(Debug)]
pub struct TcpRoute {
    pub origin: String,
    matches: Vec<Match>,
    forward: Forward,
}

#[derive(Debug)]
struct Match {
    sni_hosts: Vec<String>,
    subnets: Vec<IpNet>,
    source_labels: Vec<(String, String)>,
    source_namespace: String,
}

/// A connection, as routing sees it.
#[derive(Clone, Copy, Debug)]
pub struct TcpView<'a> {
    pub sni: Option<&'a str>,
    pub destination: IpAddr,
    pub source: Source<'a>,
}

impl TcpRoute {
    pub fn load(r: &proto::TcpRoute, seed: usize) -> Result<Self, String> {
        let matches = r
            .matches
            .iter()
            .map(|m| {
                let subnets = m
                    .destination_subnets
                    .iter()
                    .map(|s| {
                        s.parse::<IpNet>()
                            .or_else(|_| s.parse::<IpAddr>().map(IpNet::from))
                            .map_err(|_| format!("{s:?} is no block of addresses"))
                    })
                    .collect::<Result<_, String>>()?;
                Ok(Match {
                    sni_hosts: m.sni_hosts.clone(),
                    subnets,
                    source_labels: m.source_labels.clone().into_iter().collect(),
                    source_namespace: m.source_namespace.clone(),
                })
            })
            .collect::<Result<_, String>>()?;
        Ok(Self {
            origin: r.origin.clone(),
            matches,
            forward: Forward::load(&r.destinations, seed)?,
        })
    }

    pub fn matches(&self, c: &TcpView<'_>) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|m| m.holds(c))
    }

    pub fn pick(&self) -> Option<&Weighted> {
        self.forward.pick()
    }

    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.forward.targets().filter(|t| t.broken.is_none())
    }
}

impl Match {
    fn holds(&self, c: &TcpView<'_>) -> bool {
        let sni = |pattern: &String| c.sni.is_some_and(|sni| names::matches(pattern, sni));
        (self.sni_hosts.is_empty() || self.sni_hosts.iter().any(sni))
            && (self.subnets.is_empty() || self.subnets.iter().any(|n| n.contains(&c.destination)))
            && (self.source_namespace.is_empty() || self.source_namespace == c.source.namespace)
            && c.source.has_labels(self.source_labels.iter().map(|(k, v)| (k, v)))
    }
}
