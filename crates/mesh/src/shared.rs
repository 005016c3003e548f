//! What many workloads have in common is kept once: the pods of one Deployment differ in their uid,
//! name, address and node, and in nothing else.

use crate::model::Workload;
use std::{collections::HashSet, hash::Hash, sync::Arc};

#[derive(Debug, Default)]
pub(crate) struct Shared {
    words: Pool<str>,
    policies: Pool<[policy::PolicyName]>,
    services: Pool<crate::model::Services>,
    labels: Pool<crate::model::Labels>,
}

impl Shared {
    /// Replaces what `w` has by what others have already, where it is the same.
    pub(crate) fn share(&mut self, w: &mut Workload) {
        for word in [
            &mut w.namespace,
            &mut w.network,
            &mut w.trust_domain,
            &mut w.service_account,
            &mut w.node,
            &mut w.canonical_name,
            &mut w.canonical_revision,
            &mut w.workload_name,
            &mut w.cluster,
            &mut w.locality.region,
            &mut w.locality.zone,
            &mut w.locality.subzone,
        ] {
            self.words.share(word);
        }
        self.policies.share(&mut w.policies);
        self.services.share(&mut w.services);
        self.labels.share(&mut w.labels);
    }
}

#[derive(Debug)]
struct Pool<T: ?Sized> {
    all: HashSet<Arc<T>>,
    /// When it grows beyond this, what nobody has any more is let go.
    sweep_above: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { all: HashSet::new(), sweep_above: 0 }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn share(&mut self, value: &mut Arc<T>) {
        if let Some(there) = self.all.get(value) {
            *value = there.clone();
            return;
        }
        if self.all.len() > self.sweep_above {
            self.all.retain(|v| Arc::strong_count(v) > 1);
            self.sweep_above = self.all.len() * 2 + 64;
        }
        self.all.insert(value.clone());
    }
}
