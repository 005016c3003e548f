//! The policies that bind a workload, indexed once for all workloads that the same policies bind.

use crate::{
    hash::HashMap,
    model::Workload,
    state::{Mesh, Tables},
};
use policy::{PolicyName, PolicySet, Scope};
use std::sync::{Arc, MutexGuard, PoisonError};

/// Made when first asked for, and forgotten whenever a policy changes.
#[derive(Debug, Default)]
pub(crate) struct PolicySets {
    /// Goes up with every change, so that a set that was being made meanwhile is not kept.
    generation: u64,
    /// By namespace, then by the list of names, which is shared: its address stands for it.
    sets: HashMap<Arc<str>, HashMap<usize, Kept>>,
}

/// The list keeps its address for as long as the set is kept.
type Kept = (Arc<[PolicyName]>, Arc<PolicySet>);

impl PolicySets {
    pub(crate) fn forget(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.sets.clear();
    }
}

impl Mesh {
    /// The policies that bind `workload`: global, its namespace's, and those that it names.
    pub fn policies_for(&self, workload: &Workload) -> Arc<PolicySet> {
        let names = workload.policies.as_ptr().addr();
        let generation = {
            let sets = self.sets();
            let of_namespace = sets.sets.get(&workload.namespace);
            if let Some((_, set)) = of_namespace.and_then(|s| s.get(&names)) {
                return set.clone();
            }
            sets.generation
        };
        let set = Arc::new(self.tables().policies_of(workload));
        let mut sets = self.sets();
        if sets.generation == generation {
            let kept = (workload.policies.clone(), set.clone());
            sets.sets.entry(workload.namespace.clone()).or_default().insert(names, kept);
        }
        set
    }

    pub(crate) fn sets(&self) -> MutexGuard<'_, PolicySets> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn policies_of(&self, workload: &Workload) -> PolicySet {
        let mut known: Vec<_> = self.global.values().cloned().collect();
        if let Some(own) = self.by_namespace.get(&workload.namespace) {
            known.extend(own.values().cloned());
        }
        let mut missing = Vec::new();
        for name in workload.policies.iter() {
            match self.policies.get(name) {
                Some(p) if p.scope == Scope::WorkloadSelector => known.push(p.clone()),
                // Applies by its scope already.
                Some(_) => {}
                None => missing.push(name.clone()),
            }
        }
        PolicySet::new(known, missing)
    }
}
