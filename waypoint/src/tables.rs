//! Routes and destinations as discovery changes them. A host table goes live when all that it names
//! is there; the one before it serves until then.

use crate::cluster::Cluster;
use bytes::Bytes;
use mesh::NamespacedHostname;
use prost::Message as _;
use routes::{
    execute::{Destination, HostTable},
    names::ServiceName,
    proto,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};
use tokio::sync::watch;

#[derive(Default)]
pub struct Tables {
    state: Mutex<State>,
    live: RwLock<HashMap<NamespacedHostname, Arc<HostTable>>>,
    destinations: RwLock<HashMap<ServiceName, Arc<Reachable>>>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    /// Not live yet.
    waiting: HashMap<NamespacedHostname, HostTable>,
}

/// A destination, with what is known of its endpoints by port and subset.
pub struct Reachable {
    pub config: Destination,
    clusters: Mutex<HashMap<(u16, String), Arc<Cluster>>>,
}

impl Reachable {
    /// The endpoints of a port of a subset, and how they are treated.
    pub fn cluster(&self, port: u16, subset: &str) -> Option<Arc<Cluster>> {
        let key = (port, subset.to_owned());
        let mut clusters = lock(&self.clusters);
        if let Some(c) = clusters.get(&key) {
            return Some(c.clone());
        }
        let (settings, labels) = self.config.port(subset, port)?;
        let name = &self.config.name;
        let cluster = Arc::new(Cluster::new(name, subset, settings.clone(), labels.to_vec()));
        clusters.insert(key, cluster.clone());
        Some(cluster)
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(name: &ServiceName) -> NamespacedHostname {
    NamespacedHostname {
        namespace: name.namespace.as_str().into(),
        hostname: name.hostname.as_str().into(),
    }
}

/// `<namespace>/<gateway>/<namespace>/<hostname>`
fn service_of(resource: &str) -> Option<ServiceName> {
    let mut parts = resource.splitn(4, '/').skip(2);
    Some(ServiceName { namespace: parts.next()?.to_owned(), hostname: parts.next()?.to_owned() })
}

impl Tables {
    /// The table in use for a host.
    pub fn host(&self, key: &NamespacedHostname) -> Option<Arc<HostTable>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub fn destination(&self, name: &ServiceName) -> Option<Arc<Reachable>> {
        self.destinations.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Told when a host has another table.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Hosts that are served, and those that wait for what they name.
    pub fn counts(&self) -> (usize, usize) {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner).len();
        (live, lock(&self.state).waiting.len())
    }

    /// Takes a host table. The error names the resource's fault; the table before it stays.
    pub fn put_host(&self, name: &str, body: &[u8]) -> Result<(), String> {
        let before = service_of(name).and_then(|service| self.host(&key(&service)));
        let seed = usize::try_from(rand::random::<u32>()).unwrap_or(0);
        let load = |bytes: &[u8]| mesh::match_from_bytes(bytes).map_err(|e| e.to_string());
        let body = Bytes::copy_from_slice(body);
        let table = HostTable::load(body, before.as_deref(), &load, seed);
        let table = table.map_err(|e| e.to_string())?;
        if service_of(name).as_ref() != Some(&table.name) {
            return Err(format!("it is {}", table.name));
        }
        lock(&self.state).waiting.insert(key(&table.name), table);
        self.go_live();
        Ok(())
    }

    pub fn remove_host(&self, name: &str) {
        let Some(name) = service_of(name) else { return };
        lock(&self.state).waiting.remove(&key(&name));
        self.live.write().unwrap_or_else(PoisonError::into_inner).remove(&key(&name));
        self.changed.send_replace(());
    }

    pub fn put_destination(&self, name: &str, body: &[u8]) -> Result<(), String> {
        let destination = proto::Destination::decode(body).map_err(|e| e.to_string())?;
        let config = Destination::load(&destination).map_err(|e| e.to_string())?;
        if service_of(name).as_ref() != Some(&config.name) {
            return Err(format!("it is {}", config.name));
        }
        {
            let mut all = self.destinations.write().unwrap_or_else(PoisonError::into_inner);
            let before = all.get(&config.name);
            // What has not changed keeps what it has learned.
            let kept = before.map(|b| lock(&b.clusters).clone()).unwrap_or_default();
            let same = |(port, subset): &(u16, String), c: &Arc<Cluster>| {
                config.port(subset, *port).is_some_and(|(settings, labels)| {
                    *c.settings == **settings && c.labels == labels
                })
            };
            let clusters = kept.into_iter().filter(|(k, c)| same(k, c)).collect();
            let name = config.name.clone();
            all.insert(name, Arc::new(Reachable { config, clusters: Mutex::new(clusters) }));
        }
        self.go_live();
        Ok(())
    }

    pub fn remove_destination(&self, name: &str) {
        if let Some(name) = service_of(name) {
            self.destinations.write().unwrap_or_else(PoisonError::into_inner).remove(&name);
        }
    }

    fn go_live(&self) {
        let mut state = lock(&self.state);
        let known = self.destinations.read().unwrap_or_else(PoisonError::into_inner);
        let whole = |t: &HostTable| t.destinations.iter().all(|d| known.contains_key(d));
        let ready: Vec<NamespacedHostname> =
            state.waiting.iter().filter(|(_, t)| whole(t)).map(|(k, _)| k.clone()).collect();
        drop(known);
        if ready.is_empty() {
            return;
        }
        let now: Vec<_> = ready
            .into_iter()
            .filter_map(|key| Some((state.waiting.remove(&key)?, key)))
            .map(|(table, key)| (key, Arc::new(table)))
            .collect();
        // Those before may be large: they go when nobody waits for the lock any more.
        let mut before = Vec::with_capacity(now.len());
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        before.extend(now.into_iter().map(|(key, table)| live.insert(key, table)));
        drop(live);
        self.changed.send_replace(());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn host(to: &str) -> Vec<u8> {
        let to = proto::DestinationRef {
            namespace: "ns".into(),
            hostname: to.into(),
            port: 80,
            ..Default::default()
        };
        let forward = proto::Forward {
            destinations: vec![proto::WeightedDestination {
                to: Some(to),
                weight: 1,
                ..Default::default()
            }],
        };
        proto::HostTable {
            namespace: "ns".into(),
            hostname: "a".into(),
            ports: vec![proto::PortTable {
                port: 80,
                http: vec![proto::HttpRoute {
                    action: Some(proto::http_route::Action::Forward(forward)),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }
        .encode_to_vec()
    }

    fn destination(name: &str) -> Vec<u8> {
        let d = proto::Destination {
            namespace: "ns".into(),
            hostname: name.into(),
            ..Default::default()
        };
        d.encode_to_vec()
    }

    #[test]
    fn a_table_waits_for_what_it_names_and_the_one_before_serves() {
        let tables = Tables::default();
        let a = key(&ServiceName { namespace: "ns".into(), hostname: "a".into() });
        let goes_to =
            |t: &Tables| t.host(&a).map(|t| t.destinations.iter().next().unwrap().hostname.clone());
        tables.put_host("p/w/ns/a", &host("b")).unwrap();
        assert_eq!(goes_to(&tables), None);
        tables.put_destination("p/w/ns/b", &destination("b")).unwrap();
        assert_eq!(goes_to(&tables).unwrap(), "b");
        tables.put_host("p/w/ns/a", &host("c")).unwrap();
        assert_eq!(goes_to(&tables).unwrap(), "b");
        assert_eq!(tables.counts(), (1, 1));
        tables.put_destination("p/w/ns/c", &destination("c")).unwrap();
        assert_eq!(goes_to(&tables).unwrap(), "c");
        assert!(tables.put_host("p/w/ns/x", &host("b")).is_err());
        assert!(tables.put_host("p/w/ns/a", &[0xff]).is_err());
        assert_eq!(goes_to(&tables).unwrap(), "c");
        tables.remove_host("p/w/ns/a");
        assert_eq!(goes_to(&tables), None);
    }
}
