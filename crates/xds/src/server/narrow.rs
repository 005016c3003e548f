//! What a proxy gets of types that are everybody's: what its own resources lead to, and no more.
//!
//! Resources are of groups, and lead to groups. A proxy begins with the groups that the names of its
//! scoped resources end in.

use super::{Answer, Change, Session, Store, read};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
};

/// The resources of each group, with their types.
#[derive(Default)]
pub(super) struct Groups(HashMap<String, BTreeSet<(&'static str, Arc<str>)>>);

impl Groups {
    /// A resource is of other groups from now on.
    pub(super) fn replace(
        &mut self,
        type_url: &'static str,
        name: &Arc<str>,
        old: &[String],
        new: &[String],
    ) {
        let member = (type_url, name.clone());
        for g in old {
            if let Some(members) = self.0.get_mut(g) {
                members.remove(&member);
                if members.is_empty() {
                    self.0.remove(g);
                }
            }
        }
        for g in new {
            self.0.entry(g.clone()).or_default().insert(member.clone());
        }
    }
}

/// What a scope leads to.
#[derive(Default)]
pub(super) struct Reach {
    groups: HashSet<String>,
    names: BTreeMap<&'static str, BTreeSet<Arc<str>>>,
}

static NONE: BTreeSet<Arc<str>> = BTreeSet::new();

impl Reach {
    pub(super) fn names(&self, type_url: &str) -> &BTreeSet<Arc<str>> {
        self.names.get(type_url).unwrap_or(&NONE)
    }
}

impl Store {
    /// Whether a client of this scope gets a part of the type.
    pub(super) fn is_narrowed(&self, type_url: &str, scope: Option<&str>) -> bool {
        scope.is_some() && self.narrowed.contains(&type_url)
    }

    pub(super) fn reach(&self, scope: &str) -> Reach {
        let types = read(&self.types);
        let groups = read(&self.groups);
        let mut reach = Reach::default();
        let own = self.scoped.iter().filter_map(|t| types.get(t)).flat_map(|all| {
            let from = all.range::<str, _>((Bound::Included(scope), Bound::Unbounded));
            from.map_while(|(name, _)| name.strip_prefix(scope))
        });
        let mut open: Vec<&str> = own.collect();
        while let Some(group) = open.pop() {
            if !reach.groups.insert(group.to_owned()) {
                continue;
            }
            for (type_url, name) in groups.0.get(group).into_iter().flatten() {
                reach.names.entry(type_url).or_default().insert(name.clone());
                let found = types.get(type_url).and_then(|all| all.get(name));
                open.extend(found.into_iter().flat_map(|e| &e.leads).map(String::as_str));
            }
        }
        reach
    }
}

impl Session {
    /// Whether the scope may lead to other resources than before, or to others of the same names.
    pub(super) fn may_widen(&self, store: &Store, change: &Change, scope: &str) -> bool {
        let updated = || change.updated.iter().map(|n| &**n);
        let removed = || change.removed.iter().map(String::as_str);
        if !store.is_narrowed(change.type_url, Some(scope)) {
            let own = |n: &str| n.starts_with(scope);
            return store.scoped.contains(&change.type_url) && updated().chain(removed()).any(own);
        }
        let Some(sub) = self.types.get(change.type_url) else { return false };
        let has = |n: &str| sub.has.contains_key(n) || sub.names.contains(n);
        let leads_to = |n: &str| {
            let r = store.get(change.type_url, n);
            r.is_some_and(|r| r.groups.iter().any(|g| self.reach.groups.contains(g)))
        };
        removed().any(has) || updated().any(|n| has(n) || leads_to(n))
    }

    /// What the scope leads to now and the client does not have, and the other way round. What is
    /// named comes before what names it, and goes after.
    pub(super) fn narrow(&mut self, store: &Store, scope: &str) -> Vec<Answer> {
        self.reach = store.reach(scope);
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for (i, type_url) in store.narrowed.iter().enumerate() {
            let Some(sub) = self.types.get_mut(type_url) else { continue };
            // Whoever wants it still asks again.
            sub.names.retain(|n| store.get(type_url, n).is_some());
            let (updated, mut removed) =
                Self::difference(sub, store, type_url, Some(scope), &self.reach);
            if i + 1 < store.narrowed.len() && !removed.is_empty() {
                last.push((*type_url, std::mem::take(&mut removed)));
            }
            if !updated.is_empty() || !removed.is_empty() {
                first.push(self.answer(type_url, updated, removed));
            }
        }
        for (type_url, removed) in last.into_iter().rev() {
            first.push(self.answer(type_url, Vec::new(), removed));
        }
        first
    }
}
