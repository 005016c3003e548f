//! What a name means to the workload that asks for it.

use crate::{
    hash::HashMap,
    model::{NamespacedHostname, Service, Workload},
    state::{Mesh, Tables},
};
use std::{net::IpAddr, sync::Arc};

/// Most endpoints of a headless service that one answer names: what a DNS message over TCP holds
/// of either family, with room to spare.
const MOST_ENDPOINTS: usize = 1024;

/// A name that the mesh knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// The name that has the addresses, where it is not the one that was asked for.
    pub canonical: Option<String>,
    /// Of both families.
    pub addresses: Vec<IpAddr>,
}

/// Services by hostname, in lower case; several namespaces may have one of the same.
pub(crate) type Hostnames = HashMap<Arc<str>, Vec<NamespacedHostname>>;

impl Mesh {
    /// The addresses of `name`, in lower case and without the last dot: a service's virtual
    /// addresses, or its endpoints' where it has none. A name that ends in one of `searches` is
    /// looked for without it, too, so that a host outside the cluster takes one question and not as
    /// many as the asker's list is long. Nothing for a name that is not the mesh's.
    pub fn named(
        &self,
        source: &Workload,
        name: &str,
        searches: &[impl AsRef<str>],
    ) -> Option<Named> {
        let t = self.tables();
        let found = |name: &str| t.addresses_of(source, name);
        if let Some(addresses) = found(name) {
            return Some(Named { canonical: None, addresses });
        }
        searches.iter().find_map(|search| {
            let short = name.strip_suffix(search.as_ref())?.strip_suffix('.')?;
            let addresses = found(short)?;
            Some(Named { canonical: Some(short.to_owned()), addresses })
        })
    }
}

impl Tables {
    fn addresses_of(&self, source: &Workload, name: &str) -> Option<Vec<IpAddr>> {
        let own = |name: &str| self.visible(source, name);
        let service = own(name).or_else(|| {
            // The most specific wildcard, as in `*.example.com`.
            let mut rest = name;
            while let Some((_, parent)) = rest.split_once('.') {
                if let Some(service) = own(&format!("*.{parent}")) {
                    return Some(service);
                }
                rest = parent;
            }
            None
        });
        let addresses = match service {
            Some(s) => {
                let virtuals = virtual_addresses(source, s);
                if virtuals.is_empty() { self.endpoint_addresses(s, |_| true) } else { virtuals }
            }
            // One endpoint of a headless service by its own host name: a StatefulSet's.
            None => {
                let (host, parent) = name.split_once('.')?;
                let service = own(parent).filter(|s| s.addresses.is_empty())?;
                let (subdomain, _) = parent.split_once('.')?;
                self.endpoint_addresses(service, |w| {
                    w.dns.as_ref().is_some_and(|d| d.hostname == host && d.subdomain == subdomain)
                })
            }
        };
        (!addresses.is_empty()).then_some(addresses)
    }

    /// The asker's own namespace first, then the others in their order.
    fn visible(&self, source: &Workload, hostname: &str) -> Option<&Arc<Service>> {
        let keys = self.hostnames.get(hostname)?;
        let own = keys.iter().filter(|k| k.namespace == source.namespace);
        own.chain(keys)
            .filter_map(|k| self.service(k))
            .find(|s| !s.private || s.key.namespace == source.namespace)
    }

    fn endpoint_addresses(&self, s: &Service, wanted: impl Fn(&Workload) -> bool) -> Vec<IpAddr> {
        let Some(endpoints) = self.endpoints.get(&s.key) else { return Vec::new() };
        endpoints
            .eligible()
            .filter(|w| wanted(w))
            .flat_map(|w| w.addresses.iter().copied())
            .take(MOST_ENDPOINTS)
            .collect()
    }

    pub(crate) fn add_hostname(&mut self, key: &NamespacedHostname) {
        let hostname = key.hostname.to_lowercase();
        match self.hostnames.get_mut(hostname.as_str()) {
            Some(keys) => {
                if let Err(at) = keys.binary_search(key) {
                    keys.insert(at, key.clone());
                }
            }
            None => {
                let same = *hostname == *key.hostname;
                let name = if same { key.hostname.clone() } else { hostname.into() };
                self.hostnames.insert(name, vec![key.clone()]);
            }
        }
    }

    pub(crate) fn remove_hostname(&mut self, key: &NamespacedHostname) {
        let hostname = key.hostname.to_lowercase();
        if let Some(keys) = self.hostnames.get_mut(hostname.as_str()) {
            keys.retain(|k| k != key);
            if keys.is_empty() {
                self.hostnames.remove(hostname.as_str());
            }
        }
    }
}

fn virtual_addresses(source: &Workload, s: &Service) -> Vec<IpAddr> {
    s.addresses
        .iter()
        .filter(|(network, _)| network.is_empty() || *network == source.network)
        .map(|(_, ip)| *ip)
        .collect()
}
