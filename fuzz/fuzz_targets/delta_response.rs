//! The answers of a control plane to delta ADS, in sequence: each gets one reply with its nonce,
//! and what was rejected is never among what the client says it has a version of.

#![no_main]

use culvert_fuzz::messages;
use libfuzzer_sys::fuzz_target;
use mesh::{Local, Mesh};
use prost::Message as _;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
};
use xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    client::{Apply, Delivered, Rejected, Subscriptions},
    proto::discovery::{DeltaDiscoveryResponse, Node},
};

/// One call of `apply`: the type, the names that were taken, and those that were removed.
type Call = (String, Vec<String>, Vec<String>);

/// Passes on to the mesh, and remembers what of it was applied.
struct Watched {
    mesh: Arc<Mesh>,
    calls: Mutex<Vec<Call>>,
}

impl Apply for Watched {
    fn apply(
        &self,
        type_url: &str,
        resources: &[Delivered<'_>],
        removed: &[String],
    ) -> Vec<Rejected> {
        let names: Vec<String> = resources.iter().map(|r| r.name.to_owned()).collect();
        let rejected = self.mesh.apply(type_url, resources, removed);
        let taken = names.into_iter().filter(|n| rejected.iter().all(|r| r.name != *n)).collect();
        self.calls.lock().unwrap().push((type_url.to_owned(), taken, removed.to_vec()));
        rejected
    }

    fn apply_part(
        &self,
        type_url: &str,
        resources: &[Delivered<'_>],
        removed: &[String],
    ) -> Vec<Rejected> {
        self.apply(type_url, resources, removed)
    }

    fn keeps_versions(&self, type_url: &str) -> bool {
        self.mesh.keeps_versions(type_url)
    }

    fn holds(&self, type_url: &str, name: &str) -> bool {
        self.mesh.holds(type_url, name)
    }

    fn versions(&self, type_url: &str) -> HashMap<String, String> {
        self.mesh.versions(type_url)
    }

    fn connected(&self, connected: bool) {
        self.mesh.connected(connected);
    }
}

fuzz_target!(|data: &[u8]| {
    let watched = Watched { mesh: Mesh::new(Local::default()), calls: Default::default() };
    let types = [ADDRESS_TYPE, AUTHORIZATION_TYPE];
    let mut subscriptions = Subscriptions::new(&types);
    // By type and name: of what a version has been taken and not removed.
    let mut held = BTreeSet::<(String, String)>::new();
    for message in messages(data) {
        let Ok(mut response) = DeltaDiscoveryResponse::decode(message.body) else { continue };
        // A mutation rarely spells a type.
        if message.choice & 1 == 0 {
            let type_url = types[usize::from(message.choice >> 1) % types.len()];
            response.type_url = type_url.to_owned();
            for any in response.resources.iter_mut().filter_map(|r| r.resource.as_mut()) {
                if message.choice & 4 == 0 {
                    any.type_url = type_url.to_owned();
                }
            }
        }
        let (type_url, nonce) = (response.type_url.clone(), response.nonce.clone());
        let asked = types.contains(&type_url.as_str());
        let reply = subscriptions.handle(&response.into(), &watched).expect("it was encoded here");
        assert_eq!(reply.is_some(), asked);
        if let Some(reply) = reply {
            assert_eq!((reply.type_url, reply.response_nonce), (type_url, nonce));
            assert!(reply.initial_resource_versions.is_empty(), "only a stream's first says those");
        }
        for (type_url, taken, removed) in watched.calls.lock().unwrap().drain(..) {
            for name in removed {
                held.remove(&(type_url.clone(), name));
            }
            for name in taken {
                held.insert((type_url.clone(), name));
            }
        }
    }
    for request in subscriptions.first_requests(&Node::default(), &watched) {
        for (name, version) in request.initial_resource_versions {
            // Named without a version: rejected, and its removal is to be heard of.
            if version.is_empty() {
                continue;
            }
            let key = (request.type_url.clone(), name);
            assert!(held.contains(&key), "{key:?} was never taken, or is gone");
        }
    }
});
