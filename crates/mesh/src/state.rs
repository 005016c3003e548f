//! The tables, and how discovery changes them.

use crate::{
    claims::{Claims, Place},
    convert::{self, Invalid},
    endpoints::EndpointSet,
    hash::{HashMap, HashSet},
    judged::PolicySets,
    model::{
        ByKey, ByUid, LoadBalancing, Local, NamespacedHostname, PortMapping, Service, Workload,
    },
    names::Hostnames,
    resolve::{Ends, Unreachable},
    shared::{Shared, undecodable},
    vips::Vips,
};
use policy::{Policy, PolicyName, Scope};
use prost::Message as _;
use rand::Rng;
use std::{
    collections::{self, BTreeMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::watch;
use xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, Version,
    client::{Apply, Delivered, Rejected},
    proto::{security::Authorization, workload as pb},
    wire::{Fields, Malformed},
};

/// Resources applied under one hold of the lock: a first answer with a hundred thousand of them
/// must not keep connections waiting.
const SLICE: usize = 256;

/// What has arrived since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Synced {
    pub addresses: bool,
    pub policies: bool,
    pub connected: bool,
}

impl Synced {
    /// Whether connections may be judged at all.
    pub fn ready(&self) -> bool {
        self.addresses && self.policies
    }
}

pub struct Mesh {
    tables: RwLock<Tables>,
    shared: Mutex<Shared>,
    pub(crate) sets: Mutex<PolicySets>,
    synced: watch::Sender<Synced>,
    /// Told which addresses of this network have come to be, or have ceased to be, those of
    /// workloads that are reached by HBONE.
    meshed: OnceLock<MeshedSink>,
    /// Told that something has changed, before whoever sent it hears that it is taken.
    changed: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Goes up with every change of workloads and services.
    pub(crate) epoch: AtomicU64,
    /// Goes up when policies, or the workloads that name them, have changed.
    judged: watch::Sender<u64>,
}

type MeshedSink = Box<dyn Fn(&[(IpAddr, bool)]) + Send + Sync>;

#[derive(Default)]
pub(crate) struct Tables {
    local: Local,
    /// Addresses whose holder has changed since somebody was told.
    moved: Vec<IpAddr>,
    workloads: HashSet<ByUid>,
    /// `metadata.uid` of the pods of this node.
    here: HashMap<Box<str>, Arc<str>>,
    by_address: Claims<ByUid>,
    pub(crate) services: HashSet<ByKey>,
    pub(crate) hostnames: Hostnames,
    vips: Vips,
    /// Addresses of workloads and services that were refused and of which there is no earlier
    /// version: nobody knows how to reach them, so nobody is let through to them.
    refused: HashMap<String, Vec<IpAddr>>,
    pub(crate) endpoints: HashMap<NamespacedHostname, EndpointSet>,
    pub(crate) policies: HashMap<PolicyName, Arc<Policy>>,
    pub(crate) global: BTreeMap<PolicyName, Arc<Policy>>,
    pub(crate) by_namespace: HashMap<Arc<str>, BTreeMap<PolicyName, Arc<Policy>>>,
}

impl Mesh {
    pub fn new(local: Local) -> Arc<Self> {
        Arc::new(Self {
            tables: RwLock::new(Tables { local, ..Tables::default() }),
            shared: Mutex::default(),
            sets: Mutex::default(),
            meshed: OnceLock::new(),
            changed: OnceLock::new(),
            synced: watch::Sender::default(),
            epoch: AtomicU64::new(0),
            judged: watch::Sender::default(),
        })
    }

    pub fn synced(&self) -> watch::Receiver<Synced> {
        self.synced.subscribe()
    }

    /// Changes when a verdict may have changed.
    pub fn judgements(&self) -> watch::Receiver<u64> {
        self.judged.subscribe()
    }

    /// The network that this node is in.
    pub fn local_network(&self) -> Arc<str> {
        self.tables().local.network.clone()
    }

    pub fn workload(&self, uid: &str) -> Option<Arc<Workload>> {
        self.tables().workloads.get(uid).map(|w| w.0.clone())
    }

    pub fn workloads(&self) -> Vec<Arc<Workload>> {
        self.tables().workloads.iter().map(|w| w.0.clone()).collect()
    }

    /// The pods of this node, each with its `metadata.uid`.
    pub fn pods_here(&self) -> Vec<(Arc<Workload>, Arc<str>)> {
        let t = self.tables();
        let known = |(uid, pod_uid): (&str, &Arc<str>)| {
            Some((t.workloads.get(uid)?.0.clone(), pod_uid.clone()))
        };
        t.here.iter().map(|(uid, pod_uid)| (&**uid, pod_uid)).filter_map(known).collect()
    }

    /// `metadata.uid` of a pod of this node.
    pub fn pod_uid(&self, uid: &str) -> Option<Arc<str>> {
        self.tables().here.get(uid).cloned()
    }

    /// Each service, with its healthy and its known endpoints.
    pub fn services(&self) -> Vec<(Arc<Service>, (usize, usize))> {
        let t = self.tables();
        t.services
            .iter()
            .map(|ByKey(s)| (s.clone(), t.endpoints.get(&s.key).map_or((0, 0), EndpointSet::len)))
            .collect()
    }

    pub fn policies(&self) -> Vec<Arc<Policy>> {
        self.tables().policies.values().cloned().collect()
    }

    pub(crate) fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, f: impl FnOnce(&mut Tables)) {
        let moved = {
            let mut t = self.tables.write().unwrap_or_else(PoisonError::into_inner);
            f(&mut t);
            let moved = std::mem::take(&mut t.moved);
            match self.meshed.get() {
                Some(_) => moved.into_iter().map(|ip| (ip, t.is_meshed(ip))).collect(),
                None => Vec::new(),
            }
        };
        if let Some(tell) = self.meshed.get().filter(|_| !moved.is_empty()) {
            tell(&moved);
        }
    }

    /// `tell` hears of every address of this network that from then on comes to be, or ceases to
    /// be, that of a workload that is reached by HBONE. Only the first who asks is told.
    pub fn tell_meshed(&self, tell: impl Fn(&[(IpAddr, bool)]) + Send + Sync + 'static) {
        let _ = self.meshed.set(Box::new(tell));
    }

    /// `tell` hears of every change. Only the first who asks is told.
    pub fn tell_changed(&self, tell: impl Fn() + Send + Sync + 'static) {
        let _ = self.changed.set(Box::new(tell));
    }

    /// Whether a workload of this network has the address, and is reached by HBONE.
    pub fn is_meshed(&self, ip: IpAddr) -> bool {
        self.tables().is_meshed(ip)
    }

    fn apply_addresses(&self, resources: &[Delivered<'_>], removed: &[String]) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        let mut policies_moved = false;
        // Parsed without the tables' lock.
        let mut parsed = Vec::with_capacity(resources.len());
        let mut refused = Vec::new();
        let here = self.tables().local.node.clone();
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in resources {
            match parse_address(&mut shared, &here, resource) {
                Ok(address) => parsed.push(address),
                Err((e, addresses)) => {
                    let name = resource.name.to_owned();
                    if !addresses.is_empty() {
                        refused.push((name.clone(), addresses));
                    }
                    rejected.push(Rejected { name, reason: e.to_string() });
                }
            }
        }
        drop(shared);
        for names in removed.chunks(SLICE) {
            self.change(|t| {
                for name in names {
                    policies_moved |= t.remove_address(name);
                }
            });
        }
        self.change(|t| {
            for (name, addresses) in refused {
                if !t.holds(&name) {
                    t.refused.insert(name, addresses);
                }
            }
        });
        let mut parsed = parsed.into_iter().peekable();
        while parsed.peek().is_some() {
            self.change(|t| {
                for address in parsed.by_ref().take(SLICE) {
                    match address {
                        Address::Workload(w, pod_uid) => {
                            t.note_here(&w, pod_uid);
                            policies_moved |= t.insert_workload(w);
                        }
                        Address::Service(s) => policies_moved |= t.insert_service(s),
                    }
                }
            });
        }
        self.epoch.fetch_add(1, Ordering::Release);
        if policies_moved {
            self.judged.send_modify(|n| *n = n.wrapping_add(1));
        }
        rejected
    }

    fn apply_policies(&self, resources: &[Delivered<'_>], removed: &[String]) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        self.change(|t| {
            for name in removed {
                if let Some(name) = split_policy_name(name) {
                    t.remove_policy(&name);
                }
            }
            for Delivered { name, body, .. } in resources {
                match parse_policy(name, body) {
                    Ok(p) => t.insert_policy(p),
                    Err((e, stand_in)) => {
                        rejected.push(Rejected { name: name.to_string(), reason: e.to_string() });
                        // The last good version stays; without one, nothing passes.
                        if let Some(p) = stand_in
                            && !t.policies.contains_key(&p.name)
                        {
                            t.insert_policy(p);
                        }
                    }
                }
            }
        });
        self.sets().forget();
        self.judged.send_modify(|n| *n = n.wrapping_add(1));
        rejected
    }
}

impl Apply for Mesh {
    fn apply(
        &self,
        type_url: &str,
        resources: &[Delivered<'_>],
        removed: &[String],
    ) -> Vec<Rejected> {
        let rejected = self.apply_part(type_url, resources, removed);
        self.synced.send_modify(|s| match type_url {
            ADDRESS_TYPE => s.addresses = true,
            AUTHORIZATION_TYPE => s.policies = true,
            _ => {}
        });
        rejected
    }

    fn apply_part(
        &self,
        type_url: &str,
        resources: &[Delivered<'_>],
        removed: &[String],
    ) -> Vec<Rejected> {
        let rejected = match type_url {
            ADDRESS_TYPE => self.apply_addresses(resources, removed),
            AUTHORIZATION_TYPE => self.apply_policies(resources, removed),
            _ => Vec::new(),
        };
        if let Some(tell) = self.changed.get() {
            tell();
        }
        rejected
    }

    fn keeps_versions(&self, type_url: &str) -> bool {
        type_url == ADDRESS_TYPE
    }

    fn holds(&self, type_url: &str, name: &str) -> bool {
        self.keeps_versions(type_url) && self.tables().holds(name)
    }

    fn versions(&self, type_url: &str) -> collections::HashMap<String, String> {
        if !self.keeps_versions(type_url) {
            return collections::HashMap::new();
        }
        let t = self.tables();
        let workloads = t.workloads.iter().map(|ByUid(w)| (w.uid.to_string(), &w.version));
        let services = t.services.iter().map(|ByKey(s)| (s.key.to_string(), &s.version));
        workloads.chain(services).map(|(name, version)| (name, version.to_string())).collect()
    }

    fn connected(&self, connected: bool) {
        self.synced.send_modify(|s| s.connected = connected);
    }
}

enum Address {
    /// With its `metadata.uid`.
    Workload(Arc<Workload>, Option<Arc<str>>),
    Service(Arc<Service>),
}

/// `istio.workload.Address`, with what is inside left as it came.
#[derive(Default)]
struct Unopened<'a> {
    workload: Option<&'a [u8]>,
    service: Option<&'a [u8]>,
}

impl<'a> Unopened<'a> {
    fn of(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut address = Self::default();
        for field in Fields::of(message) {
            let field = field?;
            match field.tag {
                1 => address.workload = Some(field.bytes()?),
                2 => address.service = Some(field.bytes()?),
                _ => {}
            }
        }
        Ok(address)
    }
}

/// The error comes with the addresses of what cannot be taken.
fn parse_address(
    shared: &mut Shared,
    here: &str,
    resource: &Delivered<'_>,
) -> Result<Address, (Invalid, Vec<IpAddr>)> {
    let bad = |why: &str| (convert::invalid("resource", why), Vec::new());
    let version = Version::from(resource.version);
    let address = Unopened::of(resource.body).map_err(|e| (undecodable(&e), Vec::new()))?;
    match (address.workload, address.service) {
        (Some(message), None) => {
            let (w, pod_uid) = shared.workload(resource.name, version, message)?;
            let pod_uid = (*w.site.node == *here && !here.is_empty()).then(|| pod_uid.into());
            Ok(Address::Workload(Arc::new(w), pod_uid))
        }
        (None, Some(message)) => {
            let s = pb::Service::decode(message).map_err(|e| (undecodable(&e), Vec::new()))?;
            let addresses = convert::readable_vips(&s);
            match convert::service_from_proto(s) {
                Ok(mut s) if s.key.to_string() == resource.name => {
                    shared.service(&mut s);
                    s.version = version;
                    Ok(Address::Service(Arc::new(s)))
                }
                Ok(s) => Err((convert::invalid("resource", format!("it is {}", s.key)), addresses)),
                Err(e) => Err((e, addresses)),
            }
        }
        (None, None) => Err(bad("is neither a workload nor a service")),
        (Some(_), Some(_)) => Err(bad("is a workload and a service at once")),
    }
}

type RejectedPolicy = (Invalid, Option<Policy>);

fn parse_policy(name: &str, bytes: &[u8]) -> Result<Policy, RejectedPolicy> {
    let bad = |why: String| convert::invalid("resource", why);
    let stand_in = |scope| split_policy_name(name).map(|name| convert::deny_instead(name, scope));
    let authorization = Authorization::decode(bytes)
        .map_err(|e| (bad(format!("cannot be decoded: {e}")), stand_in(Scope::Namespace)))?;
    // What this version does not know is dropped by the decoder, and may have been a restriction:
    // then the message is shorter again than it came.
    let all_known = authorization.encoded_len() == bytes.len();
    let scope = match authorization.scope {
        0 => Scope::Global,
        2 => Scope::WorkloadSelector,
        _ => Scope::Namespace,
    };
    let policy = convert::policy_from_proto(authorization).map_err(|e| (e, stand_in(scope)))?;
    if !all_known {
        return Err((bad("has fields that are not known here".into()), stand_in(scope)));
    }
    if policy.name.to_string() != name {
        return Err((bad(format!("it is {}", policy.name)), stand_in(scope)));
    }
    Ok(policy)
}

/// The addresses by which a workload is found: of a node's own, which many share, none.
fn places(w: &Workload) -> impl Iterator<Item = Place> {
    let own = if w.host_network { &[][..] } else { &*w.addresses };
    own.iter().map(|ip| (w.network.clone(), *ip))
}

/// Where an endpoint serves a service's port.
fn target_port(of_service: &PortMapping, own: PortMapping) -> u16 {
    match (own.target_port, of_service.target_port) {
        (0, 0) => of_service.service_port,
        (0, target) => target,
        (own, _) => own,
    }
}

fn split_policy_name(name: &str) -> Option<PolicyName> {
    let (namespace, name) = name.split_once('/')?;
    Some(PolicyName { namespace: namespace.into(), name: name.into() })
}

fn service_key(name: &str) -> Option<NamespacedHostname> {
    let (namespace, hostname) = name.split_once('/')?;
    Some(NamespacedHostname { namespace: namespace.into(), hostname: hostname.into() })
}

impl Tables {
    pub(crate) fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services.get(key).map(|s| &s.0)
    }

    /// The service that the address means to `source`.
    pub(crate) fn service_by_address(
        &self,
        source: &Workload,
        ip: IpAddr,
    ) -> Option<&Arc<Service>> {
        self.vips.holder(source, ip)
    }

    /// A service that has the address, and that `source` may not see.
    pub(crate) fn hidden_service(
        &self,
        source: &Workload,
        ip: IpAddr,
    ) -> Option<&NamespacedHostname> {
        self.vips.hidden(source, ip).map(|s| &s.key)
    }

    pub(crate) fn workload_by_address(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        Some(&self.by_address.holder(network, ip)?.0)
    }

    fn is_meshed(&self, ip: IpAddr) -> bool {
        self.workload_by_address(&self.local.network, ip).is_some_and(|w| w.hbone)
    }

    pub(crate) fn is_refused(&self, ip: IpAddr) -> bool {
        self.refused.values().any(|addresses| addresses.contains(&ip))
    }

    /// Whether there is a version of the workload or service of this name.
    fn holds(&self, name: &str) -> bool {
        self.workloads.contains(name)
            || service_key(name).is_some_and(|key| self.services.contains(&key))
    }

    /// An endpoint of `service` for a connection to `asked`, and its address there.
    pub(crate) fn choose(
        &self,
        service: &Service,
        asked: SocketAddr,
        rng: &mut impl Rng,
    ) -> Result<(&Arc<Workload>, SocketAddr), Unreachable> {
        let port = asked.port();
        let Some(mapping) = service.ports.iter().find(|p| p.service_port == port) else {
            return Err(Unreachable::NoPort(service.key.to_string(), port));
        };
        self.endpoints
            .get(&service.key)
            .and_then(|e| e.choose(&service.load_balancing, port, rng))
            .and_then(|(w, own)| {
                Some((w, SocketAddr::new(w.address_like(asked.ip())?, target_port(mapping, own))))
            })
            .ok_or_else(|| Unreachable::NoEndpoint(service.key.to_string()))
    }

    /// What `choose` chooses among; of this node, those that have an address of the family that was
    /// asked for.
    pub(crate) fn ends_of(&self, service: &Arc<Service>, asked: SocketAddr) -> Option<Ends> {
        let mapping = service.ports.iter().find(|p| p.service_port == asked.port())?;
        let set = self.endpoints.get(&service.key)?;
        let nearest = set.nearest(&service.load_balancing, asked.port())?;
        let mut ends = Ends { all: 0, here: Vec::new(), service: Some(service.clone()) };
        for (members, own) in nearest {
            ends.all += members.len();
            for w in members.iter().filter(|w| self.is_here(w)) {
                let ip = w.address_like(asked.ip()).filter(|ip| ip.is_ipv4() == asked.is_ipv4());
                let at = ip.map(|ip| SocketAddr::new(ip, target_port(mapping, own)));
                ends.here.extend(at.map(|at| (w.clone(), at)));
            }
        }
        Some(ends)
    }

    /// Whether it runs on this node.
    pub(crate) fn is_here(&self, w: &Workload) -> bool {
        *w.site.node == *self.local.node && w.cluster == self.local.cluster
    }

    /// Keeps the `metadata.uid` of what runs here; of all others it would be 36 B each for nothing.
    fn note_here(&mut self, w: &Workload, pod_uid: Option<Arc<str>>) {
        match pod_uid.filter(|uid| !uid.is_empty() && self.is_here(w)) {
            Some(pod_uid) => drop(self.here.insert(w.uid.clone(), pod_uid)),
            None => drop(self.here.remove(&*w.uid)),
        }
    }

    /// Whether the change can change a verdict.
    fn insert_workload(&mut self, w: Arc<Workload>) -> bool {
        if !self.refused.is_empty() {
            self.refused.remove(&*w.uid);
        }
        let old = self.workloads.replace(ByUid(w.clone())).map(|old| old.0);
        let judged = old.as_ref().is_none_or(|o| {
            o.policies != w.policies
                || o.trust_domain != w.trust_domain
                || o.namespace != w.namespace
                || o.service_account != w.service_account
                || o.waypoint != w.waypoint
                // One of them may have a waypoint.
                || o.services != w.services
        });
        if let Some(old) = &old {
            self.unindex(old, Some(&w));
        }
        let unmoved = |o: &Arc<Workload>| o.hbone == w.hbone && o.addresses == w.addresses;
        if !old.as_ref().is_some_and(unmoved) {
            self.moved.extend(places(&w).map(|(_, ip)| ip));
        }
        // Local workloads tell where this node is.
        if !self.local.node.is_empty()
            && *w.site.node == *self.local.node
            && w.site.locality != self.local.locality
        {
            self.local.locality = w.site.locality.clone();
            self.rerank_all();
        }
        for place in places(&w) {
            self.by_address.claim(place, ByUid(w.clone()));
        }
        let plain = LoadBalancing::default();
        for (key, ports) in w.services.iter() {
            let lb = self.services.get(key).map_or(&plain, |s| &s.0.load_balancing);
            let set = match self.endpoints.get_mut(key) {
                Some(set) => set,
                None => self.endpoints.entry(key.clone()).or_default(),
            };
            set.insert(w.clone(), old.as_ref(), ports, lb, &self.local);
        }
        // Only what runs here is judged here.
        judged && self.is_local(&w)
    }

    fn is_local(&self, w: &Workload) -> bool {
        self.local.node.is_empty() || *w.site.node == *self.local.node
    }

    /// Lets go of what `old` had and its next version, if any, has not.
    fn unindex(&mut self, old: &Arc<Workload>, new: Option<&Workload>) {
        let kept: Vec<Place> = new.into_iter().flat_map(places).collect();
        for place in places(old).filter(|p| !kept.contains(p)) {
            self.by_address.release(&place, &ByUid(old.clone()));
            self.moved.push(place.1);
        }
        for (key, _) in old.services.iter() {
            if new.is_some_and(|w| w.services.get(key).is_some()) {
                continue;
            }
            if let Some(set) = self.endpoints.get_mut(key) {
                set.remove(old);
                if set.is_empty() {
                    self.endpoints.remove(key);
                }
            }
        }
    }

    /// Whether the change can change a verdict.
    fn insert_service(&mut self, s: Arc<Service>) -> bool {
        if !self.refused.is_empty() {
            self.refused.remove(&s.key.to_string());
        }
        self.add_hostname(&s.key);
        let old = self.services.replace(ByKey(s.clone())).map(|old| old.0);
        self.vips.replace(old.as_ref(), Some(&s));
        let guard = |s: &Service| s.waypoint.clone().map(|w| (w, s.ports.clone()));
        let guarded = old.as_deref().and_then(guard) != guard(&s);
        let before = old.map(|o| o.load_balancing.clone()).unwrap_or_default();
        if before != s.load_balancing
            && let Some(set) = self.endpoints.get_mut(&s.key)
        {
            set.rerank(&s.load_balancing, &self.local);
        }
        guarded
    }

    /// A name may be a workload's and a service's, if the control plane is careless.
    fn remove_address(&mut self, name: &str) -> bool {
        self.refused.remove(name);
        self.here.remove(name);
        let workload = self.workloads.take(name).map(|w| w.0);
        if let Some(old) = &workload {
            self.unindex(old, None);
        }
        if let Some(key) = service_key(name) {
            self.remove_hostname(&key);
            let old = self.services.take(&key).map(|old| old.0);
            self.vips.replace(old.as_ref(), None);
            if old.is_some()
                && let Some(set) = self.endpoints.get_mut(&key)
            {
                set.rerank(&LoadBalancing::default(), &self.local);
            }
        }
        workload.is_some_and(|w| self.is_local(&w))
    }

    fn rerank_all(&mut self) {
        for (key, set) in &mut self.endpoints {
            if let Some(ByKey(s)) = self.services.get(key) {
                set.rerank(&s.load_balancing, &self.local);
            }
        }
    }

    fn insert_policy(&mut self, p: Policy) {
        self.remove_policy(&p.name);
        let p = Arc::new(p);
        self.policies.insert(p.name.clone(), p.clone());
        match p.scope {
            Scope::Global => {
                self.global.insert(p.name.clone(), p);
            }
            Scope::Namespace => {
                let own = self.by_namespace.entry(p.name.namespace.clone()).or_default();
                own.insert(p.name.clone(), p);
            }
            Scope::WorkloadSelector => {}
        }
    }

    fn remove_policy(&mut self, name: &PolicyName) {
        self.policies.remove(name);
        self.global.remove(name);
        if let Some(own) = self.by_namespace.get_mut(&name.namespace) {
            own.remove(name);
            if own.is_empty() {
                self.by_namespace.remove(&name.namespace);
            }
        }
    }
}
