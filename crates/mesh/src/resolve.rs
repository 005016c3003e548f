//! Where a connection of a source to an address goes.

use crate::{
    model::{Service, Workload},
    state::Mesh,
};
use rand::Rng;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

#[derive(Clone, Debug)]
pub enum Resolved {
    /// A workload, by HBONE or in plaintext as it says itself.
    Workload {
        workload: Arc<Workload>,
        address: SocketAddr,
        service: Option<Arc<Service>>,
    },
    /// By HBONE to `address`, a waypoint's proxy, which takes it on from there.
    Waypoint {
        proxy: Arc<Workload>,
        address: SocketAddr,
        asked: SocketAddr,
        service: Option<Arc<Service>>,
    },
    /// Nothing that the mesh knows.
    Outside(SocketAddr),
    Unreachable(Unreachable),
}

/// The endpoints that a connection is for, one as likely as the other.
#[derive(Debug)]
pub struct Ends {
    pub all: usize,
    /// Those on this node, and their addresses.
    pub here: Vec<(Arc<Workload>, SocketAddr)>,
    pub service: Option<Arc<Service>>,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unreachable {
    #[error("service {0} has no healthy endpoint")]
    NoEndpoint(String),
    #[error("service {0} has no port {1}")]
    NoPort(String, u16),
    #[error("service {0} is visible in its own namespace only")]
    NotVisible(String),
    #[error(
        "its waypoint {0} has no healthy proxy (is the Gateway's Deployment ready, and does its \
         Service have port 15008?)"
    )]
    NoWaypoint(String),
    #[error(
        "the workload or service at {0} was refused: the log says which field of it could not be read"
    )]
    Refused(IpAddr),
}

impl Mesh {
    /// `source` is the workload that asks: what a name or address means, and what may be reached,
    /// depends on it. Of endpoints that are as good as one another, `dice` choose.
    pub fn resolve(
        &self,
        source: &Workload,
        destination: SocketAddr,
        dice: &mut impl Rng,
    ) -> Resolved {
        let ip = destination.ip().to_canonical();
        let destination = SocketAddr::new(ip, destination.port());
        let t = self.tables();
        if let Some(service) = t.service_by_address(source, ip) {
            if let Some(waypoint) = &service.waypoint
                && let Some(way) = t.through(source, waypoint, destination, Some(service), dice)
            {
                return way;
            }
            return match t.choose(service, destination, dice) {
                Ok((workload, address)) => Resolved::Workload {
                    workload: workload.clone(),
                    address,
                    service: Some(service.clone()),
                },
                Err(e) => Resolved::Unreachable(e),
            };
        }
        if let Some(w) = t.workload_by_address(&source.network, ip) {
            if let Some(waypoint) = &w.waypoint
                && w.uid != source.uid
                && let Some(way) = t.through(source, waypoint, destination, None, dice)
            {
                return way;
            }
            return Resolved::Workload { workload: w.clone(), address: destination, service: None };
        }
        if let Some(key) = t.hidden_service(source, ip) {
            return Resolved::Unreachable(Unreachable::NotVisible(key.to_string()));
        }
        if t.is_refused(ip) {
            return Resolved::Unreachable(Unreachable::Refused(ip));
        }
        Resolved::Outside(destination)
    }

    /// Where connections of `source` to an address may end without anything between, and which of the
    /// ends are on this node. None: a waypoint is between, or nobody of the mesh is there.
    pub fn ends(&self, source: &Workload, destination: SocketAddr) -> Option<Ends> {
        let ip = destination.ip().to_canonical();
        let asked = SocketAddr::new(ip, destination.port());
        let t = self.tables();
        if let Some(service) = t.service_by_address(source, ip) {
            return service.waypoint.is_none().then(|| t.ends_of(service, asked))?;
        }
        let w = t.workload_by_address(&source.network, ip)?;
        let here = (w.waypoint.is_none() && t.is_here(w)).then(|| vec![(w.clone(), asked)])?;
        Some(Ends { all: 1, here, service: None })
    }

    /// Whoever has this address.
    pub fn workload_at(&self, network: &str, ip: IpAddr) -> Option<Arc<Workload>> {
        self.tables().workload_by_address(network, ip.to_canonical()).cloned()
    }
}
