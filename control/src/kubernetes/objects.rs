//! The API server's objects as they stand, from what its watches tell. Pure: events in, changes out.
//!
//! An object that is refused keeps the last good state that it had. Nothing goes out before every kind
//! has been listed once: half a configuration could allow what the other half forbids.

use crate::source::{Batch, Change, closed_instead};
use istio_api::{Diagnostic, Kind, Object, ObjectKey, parse_object};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

/// What a watch of one kind tells.
#[derive(Debug)]
pub enum Event {
    /// All objects of the kind will be named from here on.
    Listing,
    Listed,
    /// As the API server has it.
    Is(Box<Value>),
    Gone {
        namespace: String,
        name: String,
    },
}

/// Where diagnostics say that an object is from.
const ORIGIN: &str = "kubernetes";

#[derive(Default)]
pub struct Objects {
    taken: BTreeMap<ObjectKey, Arc<Object>>,
    /// Of refused objects, and of those that are taken with a warning.
    diagnostics: BTreeMap<ObjectKey, Vec<Diagnostic>>,
    /// Generations of refused objects.
    refused: BTreeMap<ObjectKey, i64>,
    /// Those that have been named since the list of their kind began.
    listing: HashMap<Kind, BTreeSet<ObjectKey>>,
    listed: HashSet<Kind>,
    begun: bool,
    changes: Vec<Change>,
    dirty: bool,
}

impl Objects {
    pub fn apply(&mut self, kind: Kind, event: Event) {
        match event {
            Event::Listing => drop(self.listing.insert(kind, BTreeSet::new())),
            Event::Listed => {
                if let Some(named) = self.listing.remove(&kind) {
                    let of_kind = |k: &&ObjectKey| k.kind == kind && !named.contains(*k);
                    let known = self.taken.keys().chain(self.diagnostics.keys());
                    let gone: BTreeSet<ObjectKey> = known.filter(of_kind).cloned().collect();
                    gone.into_iter().for_each(|key| self.remove(key));
                }
                self.listed.insert(kind);
            }
            Event::Is(object) => self.take(kind, *object),
            Event::Gone { namespace, name } => self.remove(ObjectKey { kind, namespace, name }),
        }
    }

    fn take(&mut self, kind: Kind, object: Value) {
        let text = |field: &str| {
            let value = object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        let key = ObjectKey { kind, namespace: text("namespace"), name: text("name") };
        if let Some(named) = self.listing.get_mut(&kind) {
            named.insert(key.clone());
        }
        let generation = object.get("metadata").and_then(|m| m.get("generation")?.as_i64());
        let (object, diagnostics) = parse_object(ORIGIN, object);
        let refused = diagnostics.iter().any(|d| d.code.is_error());
        let before = match generation.filter(|_| refused) {
            Some(generation) => self.refused.insert(key.clone(), generation),
            None => self.refused.remove(&key),
        };
        self.dirty |= before != generation.filter(|_| refused);
        let now = match object {
            Some(object) => Some(Arc::new(object)),
            None if refused && self.taken.contains_key(&key) => self.taken.get(&key).cloned(),
            None if refused && !self.begun => {
                closed_instead(&diagnostics).find(|o| o.key == key).map(Arc::new)
            }
            None => None,
        };
        let before = match diagnostics.is_empty() {
            true => self.diagnostics.remove(&key),
            false => self.diagnostics.insert(key.clone(), diagnostics.clone()),
        };
        self.dirty |= before.unwrap_or_default() != diagnostics;
        self.set(key, now);
    }

    fn remove(&mut self, key: ObjectKey) {
        self.dirty |= self.diagnostics.remove(&key).is_some();
        self.refused.remove(&key);
        self.set(key, None);
    }

    fn set(&mut self, key: ObjectKey, object: Option<Arc<Object>>) {
        let same = self.taken.get(&key) == object.as_ref();
        match &object {
            Some(object) => drop(self.taken.insert(key.clone(), object.clone())),
            None => drop(self.taken.remove(&key)),
        }
        if !same {
            self.changes.push(Change { key, object });
        }
    }

    /// Kinds that have not been listed yet.
    pub fn awaited(&self) -> impl Iterator<Item = Kind> {
        let kinds = super::kinds::WATCHED.iter().map(|w| w.kind);
        kinds.filter(|k| !self.listed.contains(k))
    }

    /// What has changed since the last time, once everything is there.
    pub fn batch(&mut self) -> Option<Batch> {
        if !self.begun {
            if self.awaited().next().is_some() {
                return None;
            }
        } else if self.changes.is_empty() && !self.dirty {
            return None;
        }
        self.begun = true;
        self.dirty = false;
        let changes = crate::source::last_of_each(std::mem::take(&mut self.changes));
        let diagnostics = self.diagnostics.values().flatten().cloned().collect();
        Some(Batch { changes, diagnostics, refused: self.refused.clone() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::{super::kinds::WATCHED, *};
    use istio_api::{AuthorizationAction, Spec};
    use serde_json::json;

    fn policy(name: &str, action: &str) -> Event {
        Event::Is(Box::new(json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": "ns"}, "spec": {"action": action, "rules": [{}]},
        })))
    }

    fn list(objects: &mut Objects, kind: Kind, events: Vec<Event>) {
        objects.apply(kind, Event::Listing);
        events.into_iter().for_each(|e| objects.apply(kind, e));
        objects.apply(kind, Event::Listed);
    }

    /// With these policies at the start.
    fn begun(policies: Vec<Event>) -> (Objects, Batch) {
        let mut objects = Objects::default();
        let mut policies = Some(policies);
        for watched in WATCHED {
            assert!(objects.batch().is_none(), "{watched:?} is not there yet");
            let events = match watched.kind {
                Kind::AuthorizationPolicy => policies.take().unwrap(),
                _ => Vec::new(),
            };
            list(&mut objects, watched.kind, events);
        }
        let first = objects.batch().unwrap();
        (objects, first)
    }

    const KIND: Kind = Kind::AuthorizationPolicy;

    fn names(batch: &Batch) -> Vec<(&str, bool)> {
        batch.changes.iter().map(|c| (c.key.name.as_str(), c.object.is_some())).collect()
    }

    #[test]
    fn nothing_is_told_before_everything_is_there() {
        let (mut objects, first) = begun(vec![policy("a", "DENY")]);
        assert_eq!(names(&first), [("a", true)]);
        assert!(objects.batch().is_none(), "told once");
    }

    #[test]
    fn what_a_new_list_does_not_name_is_gone() {
        let (mut objects, _) = begun(vec![policy("a", "DENY"), policy("b", "DENY")]);
        list(&mut objects, KIND, vec![policy("b", "DENY"), policy("c", "ALLOW")]);
        assert_eq!(names(&objects.batch().unwrap()), [("c", true), ("a", false)]);
        list(&mut objects, KIND, vec![policy("b", "DENY"), policy("c", "ALLOW")]);
        assert!(objects.batch().is_none(), "the same again changes nothing");
    }

    #[test]
    fn a_list_that_breaks_off_takes_nothing_away() {
        let (mut objects, _) = begun(vec![policy("a", "DENY"), policy("b", "DENY")]);
        objects.apply(KIND, Event::Listing);
        objects.apply(KIND, policy("b", "DENY"));
        assert!(objects.batch().is_none());
        list(&mut objects, KIND, vec![policy("a", "DENY"), policy("b", "DENY")]);
        assert!(objects.batch().is_none());
    }

    #[test]
    fn a_refused_object_keeps_its_last_good_state() {
        let (mut objects, _) = begun(vec![policy("a", "DENY")]);
        objects.apply(KIND, policy("a", "DENNY"));
        let told = objects.batch().unwrap();
        assert_eq!((names(&told), told.diagnostics.len()), (vec![], 1));
        assert!(told.diagnostics[0].to_string().contains("DENY"), "{}", told.diagnostics[0]);
        objects.apply(KIND, policy("a", "ALLOW"));
        let mended = objects.batch().unwrap();
        assert_eq!((names(&mended), mended.diagnostics.len()), (vec![("a", true)], 0));
        objects.apply(KIND, policy("a", "DENNY"));
        objects.apply(KIND, Event::Gone { namespace: "ns".into(), name: "a".into() });
        let gone = objects.batch().unwrap();
        assert_eq!((names(&gone), gone.diagnostics.len()), (vec![("a", false)], 0));
    }

    #[test]
    fn one_that_is_refused_at_the_start_closes_its_namespace_and_later_does_nothing() {
        let (mut objects, first) = begun(vec![policy("a", "DENNY")]);
        let Spec::AuthorizationPolicy(p) = &first.changes[0].object.as_ref().unwrap().spec else {
            panic!("{first:?}")
        };
        assert_eq!((p.action, p.rules.len()), (AuthorizationAction::Deny, 1));
        objects.apply(KIND, policy("b", "DENNY"));
        assert_eq!(names(&objects.batch().unwrap()), []);
    }
}
