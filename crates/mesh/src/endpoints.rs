//! The endpoints of one service, sorted by how near they are, so that a choice costs the same at
//! ten endpoints and at ten thousand.

use crate::model::{HealthPolicy, LoadBalancing, Local, Mode, Scope, Workload};
use rand::Rng;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Endpoints that may be chosen, by rank: how many of the service's scopes match, in order.
#[derive(Debug, Default)]
pub(crate) struct EndpointSet {
    ranks: BTreeMap<usize, Vec<Arc<Workload>>>,
    places: HashMap<Arc<str>, (usize, usize)>,
    /// Not healthy, and not to be chosen unless the service says so.
    unhealthy: HashMap<Arc<str>, Arc<Workload>>,
}

impl EndpointSet {
    pub(crate) fn insert(&mut self, w: Arc<Workload>, lb: &LoadBalancing, local: &Local) {
        self.remove(&w.uid);
        if !w.healthy && lb.health == HealthPolicy::OnlyHealthy {
            self.unhealthy.insert(w.uid.clone(), w);
            return;
        }
        let rank = rank(&w, lb, local);
        let bucket = self.ranks.entry(rank).or_default();
        self.places.insert(w.uid.clone(), (rank, bucket.len()));
        bucket.push(w);
    }

    pub(crate) fn remove(&mut self, uid: &str) {
        self.unhealthy.remove(uid);
        let Some((rank, at)) = self.places.remove(uid) else { return };
        let Some(bucket) = self.ranks.get_mut(&rank) else { return };
        if at < bucket.len() {
            bucket.swap_remove(at);
        }
        if let Some(moved) = bucket.get(at) {
            self.places.insert(moved.uid.clone(), (rank, at));
        }
        if bucket.is_empty() {
            self.ranks.remove(&rank);
        }
    }

    /// Sorts anew, for another preference or another place.
    pub(crate) fn rerank(&mut self, lb: &LoadBalancing, local: &Local) {
        let all: Vec<Arc<Workload>> = self.iter().cloned().collect();
        *self = EndpointSet::default();
        for w in all {
            self.insert(w, lb, local);
        }
    }

    /// A random endpoint of the best rank that serves the port.
    pub(crate) fn choose(
        &self,
        lb: &LoadBalancing,
        serves: impl Fn(&Workload) -> bool,
        rng: &mut impl Rng,
    ) -> Option<&Arc<Workload>> {
        for (rank, bucket) in self.ranks.iter().rev() {
            if lb.mode == Mode::Strict && *rank < lb.preference.len() {
                return None;
            }
            let start =
                if bucket.is_empty() { continue } else { rng.random_range(0..bucket.len()) };
            // All endpoints of a service nearly always serve the same ports: the first will do.
            let (before, after) = bucket.split_at(start);
            if let Some(w) = after.iter().chain(before).find(|w| serves(w)) {
                return Some(w);
            }
        }
        None
    }

    /// Those that may be chosen, the nearest first.
    pub(crate) fn eligible(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.ranks.values().rev().flatten()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.ranks.values().flatten().chain(self.unhealthy.values())
    }

    pub(crate) fn len(&self) -> (usize, usize) {
        (self.places.len(), self.places.len() + self.unhealthy.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty() && self.unhealthy.is_empty()
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
