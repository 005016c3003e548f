//! The control plane of the simulation: the truth, and a delta stream that tells of it in any
//! order that the protocol leaves open.

use crate::objects::Object;
use sim::Run;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
};
use xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
};

pub const TYPES: [&str; 2] = [ADDRESS_TYPE, AUTHORIZATION_TYPE];

type Named<T> = BTreeMap<String, T>;

/// What a response says, beside its form on the wire.
#[derive(Clone, Debug)]
pub struct Response {
    pub type_url: &'static str,
    pub nonce: u64,
    pub updated: Vec<(String, String, Object)>,
    pub removed: Vec<String>,
}

impl Response {
    pub fn encode(&self) -> DeltaDiscoveryResponse {
        let resource = |(name, version, object): &(String, String, Object)| Resource {
            name: name.clone(),
            version: version.clone(),
            resource: Some(object.encode()),
            ..Default::default()
        };
        DeltaDiscoveryResponse {
            type_url: self.type_url.to_owned(),
            nonce: self.nonce.to_string(),
            resources: self.updated.iter().map(resource).collect(),
            removed_resources: self.removed.clone(),
            ..Default::default()
        }
    }
}

/// A hash of the content, as culvertd's and istiod's are.
fn version(incarnation: u64, object: &Object) -> String {
    let mut hasher = DefaultHasher::new();
    format!("{object:?}").hash(&mut hasher);
    format!("{incarnation}.{:x}", hasher.finish())
}

#[derive(Default)]
pub struct Control {
    truth: BTreeMap<&'static str, Named<Object>>,
    /// What was there once: an object comes back as it was, and with the version that it had.
    deleted: Vec<(String, Object)>,
    /// Another one gives the same content another version.
    incarnation: u64,
    nonce: u64,
    /// By type: what the stream has sent or was told that the client has.
    sent: BTreeMap<&'static str, Named<String>>,
    /// Types whose first answer has not been sent: it comes even when it is empty.
    unanswered: BTreeSet<&'static str>,
    /// Sent and not yet delivered. One type's responses do not overtake each other.
    on_the_way: BTreeMap<&'static str, VecDeque<Response>>,
}

impl Control {
    pub fn all(&self, type_url: &str) -> impl Iterator<Item = (&String, &Object)> {
        self.truth.get(type_url).into_iter().flatten()
    }

    pub fn put(&mut self, name: String, object: Object) {
        self.truth.entry(object.type_url()).or_default().insert(name, object);
    }

    pub fn remove(&mut self, name: &str) {
        for all in self.truth.values_mut() {
            self.deleted.extend(all.remove(name).map(|object| (name.to_owned(), object)));
        }
    }

    /// Puts back something that was deleted.
    pub fn restore(&mut self, run: &mut Run) -> Option<String> {
        if self.deleted.is_empty() {
            return None;
        }
        let (name, object) = run.pick(&self.deleted.iter().collect::<Vec<_>>()).clone();
        self.put(name.clone(), object);
        Some(name)
    }

    /// The version of what is served under this name now, and what that is.
    pub fn current(&self, type_url: &str, name: &str) -> Option<(String, &Object)> {
        let object = self.truth.get(type_url)?.get(name)?;
        Some((version(self.incarnation, object), object))
    }

    /// Another control plane with the same truth takes over.
    pub fn replace(&mut self) {
        self.incarnation += 1;
    }

    /// A new stream: what was on the way is lost.
    pub fn open(&mut self, requests: &[DeltaDiscoveryRequest]) {
        self.on_the_way.clear();
        self.sent.clear();
        for request in requests {
            let type_url = *TYPES.iter().find(|t| **t == request.type_url).unwrap();
            let has: HashMap<String, String> = request.initial_resource_versions.clone();
            self.sent.insert(type_url, has.into_iter().collect());
            self.unanswered.insert(type_url);
        }
    }

    /// Sends some or all of what the client does not have.
    pub fn flush(&mut self, run: &mut Run, type_url: &'static str) {
        let truth = self.truth.get(type_url).cloned().unwrap_or_default();
        let sent = self.sent.entry(type_url).or_default();
        let incarnation = self.incarnation;
        let stale: Vec<String> = truth
            .iter()
            .filter(|(name, object)| sent.get(*name) != Some(&version(incarnation, object)))
            .map(|(name, _)| name.clone())
            .chain(sent.keys().filter(|name| !truth.contains_key(*name)).cloned())
            .collect();
        let first = self.unanswered.remove(type_url);
        // The first answer is whole: the client may go by it.
        let names = if first { stale } else { run.some(stale) };
        if names.is_empty() && !first {
            return;
        }
        self.nonce += 1;
        let mut response =
            Response { type_url, nonce: self.nonce, updated: Vec::new(), removed: Vec::new() };
        for name in names {
            match truth.get(&name) {
                Some(object) => {
                    let version = version(incarnation, object);
                    sent.insert(name.clone(), version.clone());
                    response.updated.push((name, version, object.clone()));
                }
                None => {
                    sent.remove(&name);
                    response.removed.push(name);
                }
            }
        }
        self.on_the_way.entry(type_url).or_default().push_back(response);
    }

    /// The next response of some type.
    pub fn arrival(&mut self, run: &mut Run) -> Option<Response> {
        let waiting: Vec<&'static str> = TYPES
            .into_iter()
            .filter(|t| self.on_the_way.get(t).is_some_and(|q| !q.is_empty()))
            .collect();
        if waiting.is_empty() {
            return None;
        }
        let type_url = run.pick(&waiting);
        self.on_the_way.get_mut(type_url)?.pop_front()
    }
}
