//! The endpoints of one service, sorted by how near they are and by the ports that they serve, so
//! that a choice is fair and costs the same at ten endpoints and at ten thousand.

use crate::model::{HealthPolicy, LoadBalancing, Local, Mode, PortMapping, Scope, Workload};
use rand::Rng;
use std::sync::Arc;

/// A service's endpoints. One is found by a walk over pointers: ten thousand take microseconds,
/// and a table of their places would weigh more than all else that is known of them here.
#[derive(Debug, Default)]
pub(crate) struct EndpointSet {
    /// Those that may be chosen, the best rank first; none is empty.
    groups: Vec<Alike>,
    /// Not to be chosen: not healthy, where the service asks for health, or without an address.
    ineligible: Vec<(Arc<Workload>, Arc<[PortMapping]>)>,
}

/// Endpoints as near as each other that serve the same ports.
#[derive(Debug)]
struct Alike {
    /// How many of the service's scopes match, in order.
    rank: usize,
    ports: Arc<[PortMapping]>,
    members: Vec<Arc<Workload>>,
}

impl Alike {
    fn push(&mut self, w: Arc<Workload>) {
        let len = self.members.len();
        if len == self.members.capacity() {
            // There are many sets, and most are small.
            self.members.reserve_exact((len / 4).max(3));
        }
        self.members.push(w);
    }
}

impl EndpointSet {
    /// `ports` are those of the service that `w` serves; `old` is its version before.
    pub(crate) fn insert(
        &mut self,
        w: Arc<Workload>,
        old: Option<&Arc<Workload>>,
        ports: &Arc<[PortMapping]>,
        lb: &LoadBalancing,
        local: &Local,
    ) {
        let unhealthy = !w.healthy && lb.health == HealthPolicy::OnlyHealthy;
        // One that has a name only is for those who resolve it; without either, for nobody.
        let eligible = !unhealthy && !w.addresses.is_empty();
        let rank = rank(&w, lb, local);
        if let Some((group, at)) = old.and_then(|old| self.find(old))
            && let Some(group) = self.groups.get_mut(group)
            && let Some(place) = group.members.get_mut(at)
            && eligible
            && group.rank == rank
            && group.ports == *ports
        {
            *place = w;
            return;
        }
        if let Some(old) = old {
            self.remove(old);
        }
        if !eligible {
            self.ineligible.push((w, ports.clone()));
            return;
        }
        let alike = |g: &Alike| g.rank == rank && g.ports == *ports;
        match self.groups.iter_mut().find(|g| alike(g)) {
            Some(group) => group.push(w),
            None => {
                let at = self.groups.partition_point(|g| g.rank >= rank);
                // Nearly always the only one.
                if self.groups.is_empty() {
                    self.groups.reserve_exact(1);
                }
                self.groups.insert(at, Alike { rank, ports: ports.clone(), members: vec![w] });
            }
        }
    }

    fn find(&self, w: &Arc<Workload>) -> Option<(usize, usize)> {
        self.groups
            .iter()
            .enumerate()
            .find_map(|(i, group)| Some((i, group.members.iter().position(|m| Arc::ptr_eq(m, w))?)))
    }

    pub(crate) fn remove(&mut self, w: &Arc<Workload>) {
        self.ineligible.retain(|(m, _)| !Arc::ptr_eq(m, w));
        let Some((i, at)) = self.find(w) else { return };
        let Some(Alike { members, .. }) = self.groups.get_mut(i) else { return };
        members.swap_remove(at);
        if members.is_empty() {
            self.groups.remove(i);
        } else if members.len() < members.capacity() / 4 {
            members.shrink_to(members.len() * 2);
        }
    }

    /// Sorts anew, for another preference or another place.
    pub(crate) fn rerank(&mut self, lb: &LoadBalancing, local: &Local) {
        let old = std::mem::take(self);
        for group in old.groups {
            for w in group.members {
                self.insert(w, None, &group.ports, lb, local);
            }
        }
        for (w, ports) in old.ineligible {
            self.insert(w, None, &ports, lb, local);
        }
    }

    /// A random endpoint of the best rank in which any serves the port, and how it does.
    pub(crate) fn choose(
        &self,
        lb: &LoadBalancing,
        service_port: u16,
        rng: &mut impl Rng,
    ) -> Option<(&Arc<Workload>, PortMapping)> {
        let serving = self.nearest(lb, service_port)?;
        let count: usize = serving.clone().map(|(members, _)| members.len()).sum();
        let mut chosen = rng.random_range(0..count);
        for (members, port) in serving {
            if let Some(w) = members.get(chosen) {
                return Some((w, port));
            }
            chosen -= members.len();
        }
        None
    }

    /// The endpoints of the best rank in which any serves the port, together with how they do: at least
    /// one.
    pub(crate) fn nearest(
        &self,
        lb: &LoadBalancing,
        service_port: u16,
    ) -> Option<impl Iterator<Item = (&[Arc<Workload>], PortMapping)> + Clone> {
        for groups in self.groups.chunk_by(|a, b| a.rank == b.rank) {
            if lb.mode == Mode::Strict && groups.iter().any(|g| g.rank < lb.preference.len()) {
                return None;
            }
            let serving = groups.iter().filter_map(move |g| {
                let port = g.ports.iter().find(|p| p.service_port == service_port)?;
                Some((&*g.members, *port))
            });
            if serving.clone().any(|(members, _)| !members.is_empty()) {
                return Some(serving);
            }
        }
        None
    }

    /// Those that may be chosen, the nearest first.
    pub(crate) fn eligible(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.groups.iter().flat_map(|g| &g.members)
    }

    /// Those that there are, fit to be chosen or not.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.eligible().chain(self.ineligible.iter().map(|(w, _)| w))
    }

    /// Each with its ports, in no order; those as well that have a name and no address.
    pub(crate) fn with_ports(&self) -> impl Iterator<Item = (&Arc<Workload>, &[PortMapping])> {
        let named = self.ineligible.iter().map(|(w, ports)| (w, &**ports));
        let named = named.filter(|(w, _)| w.healthy && w.addresses.is_empty() && w.is_somewhere());
        self.groups.iter().flat_map(|g| g.members.iter().map(|w| (w, &*g.ports))).chain(named)
    }

    /// How many may be chosen, and how many there are.
    pub(crate) fn len(&self) -> (usize, usize) {
        let eligible = self.groups.iter().map(|g| g.members.len()).sum();
        (eligible, eligible + self.ineligible.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.ineligible.is_empty()
    }
}

fn rank(w: &Workload, lb: &LoadBalancing, local: &Local) -> usize {
    if lb.mode == Mode::Any {
        return 0;
    }
    let matches = |scope: &&Scope| match scope {
        Scope::Network => w.network == local.network,
        Scope::Cluster => w.cluster == local.cluster,
        Scope::Node => *w.site.node == *local.node && !w.site.node.is_empty(),
        Scope::Region => w.site.locality.region == local.locality.region,
        Scope::Zone => {
            w.site.locality.region == local.locality.region
                && w.site.locality.zone == local.locality.zone
        }
        Scope::Subzone => w.site.locality == local.locality,
    };
    lb.preference.iter().take_while(matches).count()
}
