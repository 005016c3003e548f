//! Who stands before a destination: the way to a waypoint, and who may come from one.

use crate::{
    model::{NamespacedHostname, Service, Waypoint, Workload},
    resolve::{Resolved, Unreachable},
    state::{Mesh, Tables},
};
use identity::SpiffeId;
use rand::Rng;
use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
};

/// Where waypoints take HBONE (Istio's, for all of them).
pub const WAYPOINT_PORT: u16 = 15008;

/// Those who may reach a port of a workload, because waypoints stand before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guard {
    /// For a log: the waypoints by name.
    pub waypoints: String,
    pub identities: Vec<SpiffeId>,
}

impl Mesh {
    /// The service that an address means to `source`.
    pub fn service_at(&self, source: &Workload, ip: IpAddr) -> Option<Arc<Service>> {
        self.tables().service_by_address(source, ip.to_canonical()).cloned()
    }

    /// Goes up with every change of workloads and services.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub fn service(&self, key: &NamespacedHostname) -> Option<Arc<Service>> {
        self.tables().service(key).cloned()
    }

    /// Where `own`, a proxy, sends what is for a service that has a waypoint which it is not of: to
    /// that waypoint's proxies, who are asked for the service's own address. None: there is no such
    /// waypoint.
    pub fn through_waypoint(
        &self,
        own: &Workload,
        key: &NamespacedHostname,
        port: u16,
    ) -> Option<Vec<(Arc<Workload>, SocketAddr)>> {
        let t = self.tables();
        let service = t.service(key)?;
        let waypoint = service.waypoint.as_ref()?;
        if t.waypoint_key(waypoint).is_some_and(|w| own.services.get(w).is_some()) {
            return None;
        }
        let own_network = service.addresses.iter().find(|(n, _)| *n == own.network);
        let Some((_, ip)) = own_network else { return Some(Vec::new()) };
        let asked = SocketAddr::new(*ip, port);
        let fit = |w: &&Arc<Workload>| w.hbone && w.healthy && !w.addresses.is_empty();
        Some(t.proxies(waypoint).filter(fit).map(|w| (w.clone(), asked)).collect())
    }

    /// The endpoints that may be chosen for a port of a service, with their addresses there.
    pub fn endpoints(
        &self,
        key: &NamespacedHostname,
        port: u16,
    ) -> Vec<(Arc<Workload>, SocketAddr)> {
        self.with_port(key, port, |w| w.addresses.first().copied())
            .into_iter()
            .map(|(w, ip, port)| (w, SocketAddr::new(ip, port)))
            .collect()
    }

    /// Those that are known by a name only, with their port.
    pub fn named_endpoints(
        &self,
        key: &NamespacedHostname,
        port: u16,
    ) -> Vec<(Arc<Workload>, u16)> {
        let named = |w: &Workload| (w.addresses.is_empty() && w.hostname.is_some()).then_some(());
        self.with_port(key, port, named).into_iter().map(|(w, (), port)| (w, port)).collect()
    }

    fn with_port<T>(
        &self,
        key: &NamespacedHostname,
        port: u16,
        of: impl Fn(&Workload) -> Option<T>,
    ) -> Vec<(Arc<Workload>, T, u16)> {
        let t = self.tables();
        let of_service = t
            .service(key)
            .and_then(|s| s.ports.iter().find(|p| p.service_port == port))
            .map_or(port, |p| if p.target_port == 0 { port } else { p.target_port });
        let Some(set) = t.endpoints.get(key) else { return Vec::new() };
        set.with_ports()
            .filter_map(|(w, ports)| {
                let own = ports.iter().find(|p| p.service_port == port)?;
                let target = if own.target_port == 0 { of_service } else { own.target_port };
                Some((w.clone(), of(w)?, target))
            })
            .collect()
    }

    /// Who stands before `port` of `own`: the waypoints of its own traffic, and those of the services
    /// that have the port. None: nobody.
    pub fn guard(&self, own: &Workload, port: u16) -> Option<Guard> {
        let t = self.tables();
        let of_services = own.services.iter().filter_map(|(key, ports)| {
            let service = t.service(key)?;
            let waypoint = service.waypoint.as_ref()?;
            let serves = ports.iter().any(|p| {
                let of_service = || {
                    let same = service.ports.iter().find(|s| s.service_port == p.service_port);
                    same.map(|s| s.target_port).filter(|target| *target != 0)
                };
                match p.target_port {
                    0 => of_service().unwrap_or(p.service_port) == port,
                    target => target == port,
                }
            });
            serves.then_some(waypoint)
        });
        let all: Vec<&Waypoint> = own.waypoint.iter().chain(of_services).collect();
        if all.is_empty() {
            return None;
        }
        let mut guard = Guard { waypoints: String::new(), identities: Vec::new() };
        for waypoint in all {
            if !guard.waypoints.is_empty() {
                guard.waypoints.push_str(", ");
            }
            guard.waypoints.push_str(&waypoint.to_string());
            for w in t.proxies(waypoint) {
                if let Ok(id) = w.identity()
                    && !guard.identities.contains(&id)
                {
                    guard.identities.push(id);
                }
            }
        }
        Some(guard)
    }
}

impl Tables {
    fn waypoint_key<'a>(&'a self, waypoint: &'a Waypoint) -> Option<&'a NamespacedHostname> {
        match waypoint {
            Waypoint::Named(key) => Some(key),
            Waypoint::At(network, ip) => self
                .services
                .iter()
                .map(|s| &s.0)
                .find(|s| s.addresses.iter().any(|(n, a)| *n == *network && a == ip))
                .map(|s| &s.key),
            Waypoint::Unreadable => None,
        }
    }

    /// All of a waypoint's proxies that are there, fit or not.
    fn proxies<'a>(&'a self, waypoint: &'a Waypoint) -> impl Iterator<Item = &'a Arc<Workload>> {
        let set = self.waypoint_key(waypoint).and_then(|key| self.endpoints.get(key));
        set.into_iter().flat_map(|set| set.all())
    }

    /// The way through a waypoint to `asked`. None: `source` is the waypoint itself.
    pub(crate) fn through(
        &self,
        source: &Workload,
        waypoint: &Waypoint,
        asked: SocketAddr,
        service: Option<&Arc<Service>>,
        dice: &mut impl Rng,
    ) -> Option<Resolved> {
        let unreachable = || Resolved::Unreachable(Unreachable::NoWaypoint(waypoint.to_string()));
        let Some(key) = self.waypoint_key(waypoint) else { return Some(unreachable()) };
        if source.services.get(key).is_some() {
            return None;
        }
        let Some(proxies) = self.service(key) else { return Some(unreachable()) };
        let at = SocketAddr::new(asked.ip(), WAYPOINT_PORT);
        let chosen = self.choose(proxies, at, dice).ok();
        let Some((proxy, address)) = chosen.filter(|(w, _)| w.hbone) else {
            return Some(unreachable());
        };
        Some(Resolved::Waypoint { proxy: proxy.clone(), address, asked, service: service.cloned() })
    }
}
