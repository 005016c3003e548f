//! The endpoints of one service, sorted by how near they are and by the ports that they serve, so
//! that a choice is fair and costs the same at ten endpoints and at ten thousand.

use crate::model::{HealthPolicy, LoadBalancing, Local, Mode, PortMapping, Scope, Workload};
use rand::Rng;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Endpoints that may be chosen, by rank: how many of the service's scopes match, in order.
#[derive(Debug, Default)]
pub(crate) struct EndpointSet {
    ranks: BTreeMap<usize, Vec<Alike>>,
    places: HashMap<Arc<str>, Position>,
    /// Not to be chosen: not healthy, where the service asks for health, or without an address.
    ineligible: HashMap<Arc<str>, (Arc<Workload>, Vec<PortMapping>)>,
}

/// Endpoints that serve the same ports: nearly always all of a service's.
#[derive(Debug)]
struct Alike {
    ports: Vec<PortMapping>,
    members: Vec<Arc<Workload>>,
}

#[derive(Clone, Copy, Debug)]
struct Position {
    rank: usize,
    alike: usize,
    at: usize,
}

impl EndpointSet {
    /// `ports` are those of the service that `w` serves.
    pub(crate) fn insert(
        &mut self,
        w: Arc<Workload>,
        ports: &[PortMapping],
        lb: &LoadBalancing,
        local: &Local,
    ) {
        self.remove(&w.uid);
        let unhealthy = !w.healthy && lb.health == HealthPolicy::OnlyHealthy;
        // One that is known by a host name alone has no address to go to.
        if unhealthy || w.addresses.is_empty() {
            self.ineligible.insert(w.uid.clone(), (w, ports.to_vec()));
            return;
        }
        let rank = rank(&w, lb, local);
        let groups = self.ranks.entry(rank).or_default();
        let alike = groups.iter().position(|g| g.ports == ports).unwrap_or_else(|| {
            groups.push(Alike { ports: ports.to_vec(), members: Vec::new() });
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(alike) {
            let at = group.members.len();
            self.places.insert(w.uid.clone(), Position { rank, alike, at });
            group.members.push(w);
        }
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        self.ineligible.remove(uid);
        let Some(place) = self.places.remove(uid) else { return };
        let Some(groups) = self.ranks.get_mut(&place.rank) else { return };
        let Some(group) = groups.get_mut(place.alike) else { return };
        if place.at < group.members.len() {
            group.members.swap_remove(place.at);
        }
        if let Some(moved) = group.members.get(place.at) {
            self.places.insert(moved.uid.clone(), place);
        }
        // Groups before the last keep their place, empty or not.
        while groups.last().is_some_and(|g| g.members.is_empty()) {
            groups.pop();
        }
        if groups.is_empty() {
            self.ranks.remove(&place.rank);
        }
    }

    /// Sorts anew, for another preference or another place.
    pub(crate) fn rerank(&mut self, lb: &LoadBalancing, local: &Local) {
        let old = std::mem::take(self);
        for group in old.ranks.into_values().flatten() {
            for w in group.members {
                self.insert(w, &group.ports, lb, local);
            }
        }
        for (w, ports) in old.ineligible.into_values() {
            self.insert(w, &ports, lb, local);
        }
    }

    /// A random endpoint of the best rank in which any serves the port, and how it does.
    pub(crate) fn choose(
        &self,
        lb: &LoadBalancing,
        service_port: u16,
        rng: &mut impl Rng,
    ) -> Option<(&Arc<Workload>, PortMapping)> {
        for (rank, groups) in self.ranks.iter().rev() {
            if lb.mode == Mode::Strict && *rank < lb.preference.len() {
                return None;
            }
            let serving = || {
                groups.iter().filter_map(|g| {
                    let port = g.ports.iter().find(|p| p.service_port == service_port)?;
                    Some((g, *port))
                })
            };
            let count: usize = serving().map(|(g, _)| g.members.len()).sum();
            if count == 0 {
                continue;
            }
            let mut chosen = rng.random_range(0..count);
            for (group, port) in serving() {
                if let Some(w) = group.members.get(chosen) {
                    return Some((w, port));
                }
                chosen -= group.members.len();
            }
        }
        None
    }

    /// Those that may be chosen, the nearest first.
    pub(crate) fn eligible(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.ranks.values().rev().flatten().flat_map(|g| &g.members)
    }

    /// How many may be chosen, and how many there are.
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.places.len(), self.places.len() + self.ineligible.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty() && self.ineligible.is_empty()
    }
}

fn rank(w: &Workload, lb: &LoadBalancing, local: &Local) -> usize {
    if lb.mode == Mode::Any {
        return 0;
    }
    let matches = |scope: &&Scope| match scope {
        Scope::Network => w.network == local.network,
        Scope::Cluster => w.cluster == local.cluster,
        Scope::Node => w.node == local.node && !w.node.is_empty(),
        Scope::Region => w.locality.region == local.locality.region,
        Scope::Zone => {
            w.locality.region == local.locality.region && w.locality.zone == local.locality.zone
        }
        Scope::Subzone => w.locality == local.locality,
    };
    lb.preference.iter().take_while(matches).count()
}
