//! From objects to resources, incrementally.
//!
//! A unit is one host as one proxy serves it. What a unit depends on is found through indexes by
//! host ([`Rules`]) and through what its compilation asked for by name; a change marks the units that
//! depend on it, and each marked unit is compiled anew. Compiling a change gives what compiling the
//! whole would.

mod credential;
mod destination;
mod gateways;
mod grpc_route;
mod http;
mod idle;
mod ingress;
mod policy;
mod route_api;
mod select;
mod tcp;
mod telemetry;
mod view;

pub use gateways::unit_namespace as gateway_namespace;
pub use idle::Idle;
pub use route_api::granted;
pub use select::Rules;
pub use view::{
    GATEWAY_NAME, Objects, Serves, ServiceView, View, WAYPOINT_CLASSES, protocol, serves,
};

use crate::{
    DESTINATION_TYPE, HOST_TABLE_TYPE, LISTENER_TYPE, TELEMETRY_TYPE,
    names::{ProxyName, ServiceName},
    proto,
};
use http::{Resolved, Scope};
use istio_api::{Kind, Object, ObjectKey};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// One host at one proxy.
pub type UnitKey = (ProxyName, ServiceName);

/// A policy as an object says it, in the part that a proxy judges.
pub type PolicyOf = fn(&Object, &istio_api::MeshConfig) -> Option<proto::HttpPolicy>;

#[derive(Default)]
pub struct Compiler {
    rules: Rules,
    units: BTreeMap<UnitKey, Unit>,
    /// Units by their hostname.
    by_hostname: HashMap<String, BTreeSet<UnitKey>>,
    /// Units that a delegate, present or not, is part of.
    users: HashMap<ObjectKey, BTreeSet<UnitKey>>,
    /// Destinations, and how many units name each.
    destinations: BTreeMap<UnitKey, BTreeSet<UnitKey>>,
    /// The same by their hostname.
    destinations_by_hostname: HashMap<String, BTreeSet<UnitKey>>,
    /// What gateways' proxies were sent.
    gateways: BTreeMap<ProxyName, Sent>,
    /// What all proxies were.
    telemetry: BTreeMap<ProxyName, proto::Telemetry>,
    known: idle::Known,
}

/// What a gateway's proxy was sent.
#[derive(Default)]
struct Sent {
    listeners: BTreeMap<u16, proto::Listener>,
    /// Encoded, as which a large one is compared at once.
    hosts: BTreeMap<ServiceName, Vec<u8>>,
    refused: BTreeSet<(ObjectKey, u16)>,
}

#[derive(Default)]
struct Unit {
    used: BTreeSet<ObjectKey>,
    destinations: BTreeSet<UnitKey>,
}

/// A change of an object: its key, and what it was.
pub struct Changed<'a> {
    pub key: &'a ObjectKey,
    pub old: Option<&'a Object>,
    pub new: Option<&'a Object>,
}

#[derive(Debug, Default, PartialEq)]
pub struct Output {
    /// Type, name and encoded resource.
    pub updated: Vec<(&'static str, String, Vec<u8>)>,
    pub removed: Vec<(&'static str, String)>,
    /// Of how many objects it was asked whether they do anything.
    pub judged: usize,
}

/// `<proxy>/<namespace>/<hostname>`
pub fn resource_name((proxy, service): &UnitKey) -> String {
    format!("{proxy}/{service}")
}

impl Compiler {
    /// Applies changes; `view` already has them.
    pub fn apply(
        &mut self,
        view: View<'_>,
        changes: &[Changed<'_>],
        policy_of: PolicyOf,
    ) -> Output {
        let concerned = |c: &Changed<'_>| {
            [c.old, c.new].into_iter().flatten().any(|o| gateways::concerns(c.key.kind, o))
        };
        let of_gateways = changes.iter().any(concerned);
        let of_telemetry = changes.iter().any(|c| c.key.kind == Kind::Telemetry);
        let of_hosts = gateways::named(view, changes);
        let changes: Vec<_> = changes.iter().filter(|c| select::is_routing(c.key.kind)).collect();
        let mut dirty = BTreeSet::new();
        let mut moved = BTreeSet::new();
        let mut destinations = BTreeSet::new();
        for change in &changes {
            self.rules.follow(view, change.key, change.old, change.new);
        }
        for change in &changes {
            self.mark(view, change, &mut dirty, &mut moved);
            match change.key.kind {
                Kind::DestinationRule | Kind::Service | Kind::ServiceEntry => {
                    for host in self.hosts(view, change) {
                        destinations.extend(self.destinations_matching(&host));
                    }
                }
                Kind::MeshConfig => destinations.extend(self.destinations.keys().cloned()),
                // A client's certificates are its own namespace's.
                Kind::Secret => {
                    let own = |(proxy, _): &&UnitKey| proxy.namespace == change.key.namespace;
                    destinations.extend(self.destinations.keys().filter(own).cloned());
                }
                _ => {}
            }
        }
        for service in moved {
            self.bind(view, &service, &mut dirty);
        }
        let mut out = Output::default();
        // A gateway's hosts are compiled with the gateway.
        dirty.retain(|(_, s): &UnitKey| !s.namespace.contains(':'));
        for unit in dirty {
            self.compile(view, &unit, policy_of, &mut destinations, &mut out);
        }
        let mut of_proxies = false;
        if of_gateways {
            let before: Vec<ProxyName> = self.gateways.keys().cloned().collect();
            self.compile_gateways(view, policy_of, of_hosts.as_ref(), &mut destinations, &mut out);
            of_proxies = !self.gateways.keys().eq(&before);
        }
        // A collector is found as a gateway's destinations are.
        if of_gateways || of_telemetry {
            self.compile_telemetry(view, &mut destinations, &mut out);
        }
        for key in destinations {
            let name = resource_name(&key);
            let service = self.rules.service(&key.1).map(|(_, s)| s);
            match service.filter(|_| self.destinations.contains_key(&key)) {
                Some(s) => {
                    let d = destination::destination(view, &self.rules, &key.0, s);
                    out.updated.push((DESTINATION_TYPE, name, d.encode_to_vec()));
                }
                None => out.removed.push((DESTINATION_TYPE, name)),
            }
        }
        out.judged = self.judge(view, &changes, of_proxies);
        out
    }

    /// Hosts that the object names, or named.
    fn hosts(&self, view: View<'_>, change: &Changed<'_>) -> BTreeSet<String> {
        let both = change.old.into_iter().chain(change.new);
        both.flat_map(|o| Rules::hosts_of(view, o)).collect()
    }

    fn units_matching(&self, host: &str) -> Vec<UnitKey> {
        if host.contains('*') {
            let all = self.by_hostname.iter();
            // As rules are found for a host: `*a.example` is nobody's.
            let matching = all.filter(|(h, _)| crate::names::patterns(h).any(|p| p == host));
            return matching.flat_map(|(_, units)| units).cloned().collect();
        }
        self.by_hostname.get(host).into_iter().flatten().cloned().collect()
    }

    fn destinations_matching(&self, host: &str) -> Vec<UnitKey> {
        if host.contains('*') {
            let matching = |(_, s): &&UnitKey| crate::names::matches(host, &s.hostname);
            return self.destinations.keys().filter(matching).cloned().collect();
        }
        self.destinations_by_hostname.get(host).into_iter().flatten().cloned().collect()
    }

    /// Units to compile anew, and services whose proxy may be another now.
    fn mark(
        &self,
        view: View<'_>,
        change: &Changed<'_>,
        dirty: &mut BTreeSet<UnitKey>,
        moved: &mut BTreeSet<ServiceName>,
    ) {
        let key = change.key;
        match key.kind {
            Kind::VirtualService | Kind::HttpRoute | Kind::GrpcRoute => {
                for host in self.hosts(view, change) {
                    dirty.extend(self.units_matching(&host));
                }
                dirty.extend(self.users.get(key).into_iter().flatten().cloned());
            }
            Kind::DestinationRule => {
                // Whether a route's subset exists is part of the route.
                for host in self.hosts(view, change) {
                    dirty.extend(self.units_naming(&host));
                }
            }
            Kind::Service | Kind::ServiceEntry => {
                for o in change.old.into_iter().chain(change.new) {
                    moved.extend(view.services_of(o).into_iter().map(|s| s.name));
                }
                for host in self.hosts(view, change) {
                    dirty.extend(self.units_matching(&host));
                    dirty.extend(self.units_naming(&host));
                }
            }
            Kind::Namespace => {
                let of = self.rules.services().filter(|s| s.name.namespace == key.name);
                moved.extend(of.map(|s| s.name.clone()));
            }
            Kind::KubernetesGateway => {
                let serves = |o: Option<&Object>| o.and_then(serves);
                if serves(change.old) != serves(change.new) {
                    moved.extend(self.rules.services().map(|s| s.name.clone()));
                }
                // Its class may be a policy's target.
                let own = self
                    .units
                    .keys()
                    .filter(|(p, _)| p.namespace == key.namespace && p.name == key.name);
                dirty.extend(own.cloned());
            }
            Kind::AuthorizationPolicy => {
                let both: Vec<&Object> = change.old.into_iter().chain(change.new).collect();
                let bound = |unit: &&UnitKey| {
                    both.iter().any(|o| policy::binds(view, &self.rules, o, unit))
                };
                dirty.extend(self.units.keys().filter(bound).cloned());
            }
            // Whose routes it lets send where is not known ahead.
            Kind::MeshConfig | Kind::ReferenceGrant => dirty.extend(self.units.keys().cloned()),
            _ => {}
        }
    }

    /// Units that send to a host, or would if it were there.
    fn units_naming(&self, host: &str) -> BTreeSet<UnitKey> {
        let named = self.destinations_matching(host);
        named.iter().filter_map(|d| self.destinations.get(d)).flatten().cloned().collect()
    }

    /// Finds the proxy that serves a service now.
    fn bind(&mut self, view: View<'_>, name: &ServiceName, dirty: &mut BTreeSet<UnitKey>) {
        let now = self
            .rules
            .service(name)
            .and_then(|(key, _)| view.objects.get(key))
            .and_then(|o| view.waypoint_of_service(o))
            .map(|proxy| (proxy, name.clone()));
        let before: Vec<UnitKey> = self
            .by_hostname
            .get(&name.hostname)
            .into_iter()
            .flatten()
            .filter(|(_, s)| s == name)
            .cloned()
            .collect();
        if let Some(unit) = &now
            && !before.contains(unit)
        {
            self.units.insert(unit.clone(), Unit::default());
            self.known.served.insert(name.hostname.clone());
            self.by_hostname.entry(name.hostname.clone()).or_default().insert(unit.clone());
        }
        // What is no longer bound is compiled to nothing.
        dirty.extend(before.into_iter().chain(now));
    }

    fn compile(
        &mut self,
        view: View<'_>,
        unit: &UnitKey,
        policy_of: PolicyOf,
        destinations: &mut BTreeSet<UnitKey>,
        out: &mut Output,
    ) {
        let (proxy, name) = unit;
        let service = self.rules.service(name);
        let bound = service
            .filter(|(key, _)| {
                let proxy_now = view.objects.get(*key).and_then(|o| view.waypoint_of_service(o));
                proxy_now.as_ref() == Some(proxy)
            })
            .map(|(_, s)| s.clone());
        let Some(service) = bound else {
            self.forget(unit, destinations);
            out.removed.push((HOST_TABLE_TYPE, resource_name(unit)));
            return;
        };
        let mut used = BTreeSet::new();
        let table = self.table(view, proxy, &service, policy_of, &mut used);
        let now = Unit { used, destinations: named(proxy, &table) };
        self.relink(unit, now, destinations);
        out.updated.push((HOST_TABLE_TYPE, resource_name(unit), table.encode_to_vec()));
    }

    /// Gateways are few: each is compiled, and what has changed of it is sent. `only`: nothing but
    /// what these hosts are part of can have changed.
    fn compile_gateways(
        &mut self,
        view: View<'_>,
        policy_of: PolicyOf,
        only: Option<&gateways::Named>,
        destinations: &mut BTreeSet<UnitKey>,
        out: &mut Output,
    ) {
        let proxies = gateways::proxies(view, &self.rules);
        let policies = |proxy: &ProxyName, labels: &istio_api::Labels| {
            // Nobody else's bind a gateway.
            let of = BTreeSet::from([proxy.namespace.as_str(), &view.mesh.root_namespace]);
            of.into_iter()
                .flat_map(|ns| view.in_namespace(Kind::AuthorizationPolicy, ns))
                .filter(|o| policy::binds_gateway(view, o, proxy, labels))
                .filter_map(|o| policy_of(o, view.mesh))
                .collect()
        };
        let mut before = std::mem::take(&mut self.gateways);
        for (proxy, labels) in proxies {
            let mut sent = before.remove(&proxy).unwrap_or_default();
            let new = gateways::compile(view, &self.rules, &proxy, &labels, &policies, only);
            self.gateway_changed(&proxy, &mut sent, new, destinations, out);
            self.gateways.insert(proxy, sent);
        }
        for (proxy, mut sent) in before {
            let none = gateways::Compiled::default();
            self.gateway_changed(&proxy, &mut sent, none, destinations, out);
        }
    }

    /// Proxies are few, and what they tell is the mesh's to say.
    fn compile_telemetry(
        &mut self,
        view: View<'_>,
        destinations: &mut BTreeSet<UnitKey>,
        out: &mut Output,
    ) {
        let mut before = std::mem::take(&mut self.telemetry);
        let unit = |proxy: &ProxyName| {
            let own =
                ServiceName { namespace: telemetry::UNIT.to_owned(), hostname: String::new() };
            (proxy.clone(), own)
        };
        for (proxy, labels) in telemetry::proxies(view, &self.rules) {
            let now = telemetry::compile(view, &self.rules, &proxy, &labels);
            if before.remove(&proxy).as_ref() != Some(&now) {
                let to = now.tracing.iter().filter_map(|t| t.to.as_ref());
                let named = to.map(|to| (proxy.clone(), service_of(to))).collect();
                let used = Unit { used: BTreeSet::new(), destinations: named };
                self.relink(&unit(&proxy), used, destinations);
                let name = format!("{proxy}/telemetry");
                out.updated.push((TELEMETRY_TYPE, name, now.encode_to_vec()));
            }
            self.telemetry.insert(proxy, now);
        }
        for proxy in before.into_keys() {
            self.forget(&unit(&proxy), destinations);
            out.removed.push((TELEMETRY_TYPE, format!("{proxy}/telemetry")));
        }
    }

    fn gateway_changed(
        &mut self,
        proxy: &ProxyName,
        sent: &mut Sent,
        mut new: gateways::Compiled,
        destinations: &mut BTreeSet<UnitKey>,
        out: &mut Output,
    ) {
        let mut old = std::mem::take(&mut sent.listeners);
        for (port, listener) in &new.listeners {
            if old.remove(port).as_ref() != Some(listener) {
                let name = format!("{proxy}/gateway/{port}");
                out.updated.push((LISTENER_TYPE, name, listener.encode_to_vec()));
            }
        }
        for port in old.keys() {
            out.removed.push((LISTENER_TYPE, format!("{proxy}/gateway/{port}")));
        }
        sent.listeners = new.listeners;
        sent.refused = new.refused;
        let looked_at = new
            .looked_at
            .take()
            .unwrap_or_else(|| new.hosts.keys().chain(sent.hosts.keys()).cloned().collect());
        for name in looked_at {
            let unit = (proxy.clone(), name.clone());
            match new.hosts.remove(&name).map(|table| (table.encode_to_vec(), table)) {
                Some((body, _)) if sent.hosts.get(&name) == Some(&body) => {}
                Some((body, table)) => {
                    let now = Unit { used: BTreeSet::new(), destinations: named(proxy, &table) };
                    self.relink(&unit, now, destinations);
                    sent.hosts.insert(name, body.clone());
                    out.updated.push((HOST_TABLE_TYPE, resource_name(&unit), body));
                }
                None if sent.hosts.remove(&name).is_some() => {
                    self.forget(&unit, destinations);
                    out.removed.push((HOST_TABLE_TYPE, resource_name(&unit)));
                }
                None => {}
            }
        }
    }

    fn table(
        &self,
        view: View<'_>,
        proxy: &ProxyName,
        service: &ServiceView,
        policy_of: PolicyOf,
        used: &mut BTreeSet<ObjectKey>,
    ) -> proto::HostTable {
        let name = &service.name;
        // Whoever owns the host, and whoever serves it, may route it; nobody else.
        let allowed = [name.namespace.as_str(), proxy.namespace.as_str()];
        let mut all = self
            .rules
            .virtual_services(view, &name.hostname, &allowed, &proxy.namespace)
            .filter(|(_, v)| select::of_mesh(v));
        let chosen = all.next();
        let ports = service
            .ports
            .iter()
            .map(|(port, protocol)| {
                let mut scope = Scope {
                    view,
                    rules: &self.rules,
                    proxy,
                    gateway: select::MESH,
                    port: *port,
                    used: &mut *used,
                    resolved: Resolved::default(),
                };
                let mut http = Vec::new();
                let mut tcp = Vec::new();
                if let Some((o, v)) = &chosen {
                    http = scope.http_routes(o, v);
                    tcp = tcp::routes(&scope, o, v);
                }
                // Where both speak of a service, Gateway API's routes are its HTTP.
                let place = route_api::Place { view, rules: &self.rules, proxy, port: *port };
                let attached = place.of_service(&name.namespace, &service.short, &name.hostname);
                if !attached.is_empty() {
                    http = attached;
                }
                if http.is_empty() {
                    http.push(http::default_route(name, *port));
                }
                if tcp.is_empty() {
                    tcp.push(tcp::default_route(name, *port));
                }
                proto::PortTable { port: u32::from(*port), protocol: *protocol as i32, http, tcp }
            })
            .collect();
        let unit = (proxy.clone(), name.clone());
        let policies = self
            .rules
            .targeted(view)
            .filter(|o| policy::binds(view, &self.rules, o, &unit))
            .filter_map(|o| policy_of(o, view.mesh))
            .collect();
        proto::HostTable {
            namespace: name.namespace.clone(),
            hostname: name.hostname.clone(),
            service_name: service.short.clone(),
            ports,
            policies,
        }
    }

    fn forget(&mut self, unit: &UnitKey, destinations: &mut BTreeSet<UnitKey>) {
        self.relink(unit, Unit::default(), destinations);
        self.units.remove(unit);
        // No gateway's host, which is in no such table.
        if self.by_hostname.contains_key(&unit.1.hostname) {
            self.known.served.insert(unit.1.hostname.clone());
        }
        drop_from(&mut self.by_hostname, unit);
    }

    /// Notes what a unit uses now. `changed` has what is no longer, or newly, named by anyone.
    fn relink(&mut self, unit: &UnitKey, now: Unit, changed: &mut BTreeSet<UnitKey>) {
        let before = self.units.insert(unit.clone(), now).unwrap_or_default();
        for key in before.used {
            if let Some(users) = self.users.get_mut(&key) {
                users.remove(unit);
                if users.is_empty() {
                    self.users.remove(&key);
                }
            }
        }
        let Some(now) = self.units.get(unit) else { return };
        for key in &now.used {
            self.users.entry(key.clone()).or_default().insert(unit.clone());
        }
        for gone in before.destinations.difference(&now.destinations) {
            if let Some(by) = self.destinations.get_mut(gone) {
                by.remove(unit);
                if by.is_empty() {
                    self.destinations.remove(gone);
                    drop_from(&mut self.destinations_by_hostname, gone);
                    self.known.sent_to.insert(gone.1.hostname.clone());
                    changed.insert(gone.clone());
                }
            }
        }
        for named in &now.destinations {
            let by = self.destinations.entry(named.clone()).or_default();
            if by.is_empty() {
                changed.insert(named.clone());
                self.known.sent_to.insert(named.1.hostname.clone());
                let same = self.destinations_by_hostname.entry(named.1.hostname.clone());
                same.or_default().insert(named.clone());
            }
            by.insert(unit.clone());
        }
    }
}

fn drop_from(index: &mut HashMap<String, BTreeSet<UnitKey>>, key: &UnitKey) {
    if let Some(same) = index.get_mut(&key.1.hostname) {
        same.remove(key);
        if same.is_empty() {
            index.remove(&key.1.hostname);
        }
    }
}

/// The services that a table names, broken ones too: they may come to be.
fn named(proxy: &ProxyName, table: &proto::HostTable) -> BTreeSet<UnitKey> {
    let mut out = BTreeSet::new();
    let mut last = None;
    for to in refs(table) {
        // Most routes lead where the one before them does.
        if last != Some((&to.namespace, &to.hostname)) {
            last = Some((&to.namespace, &to.hostname));
            out.insert((proxy.clone(), service_of(to)));
        }
    }
    out
}

fn refs(table: &proto::HostTable) -> impl Iterator<Item = &proto::DestinationRef> {
    let of_http = table.ports.iter().flat_map(|p| &p.http).flat_map(|r| {
        let forward = match &r.action {
            Some(proto::http_route::Action::Forward(f)) => Some(f),
            _ => None,
        };
        forward
            .into_iter()
            .flat_map(|f| f.destinations.iter().filter_map(|d| d.to.as_ref()))
            .chain(r.mirrors.iter().filter_map(|m| m.to.as_ref()))
    });
    let of_tcp = table
        .ports
        .iter()
        .flat_map(|p| &p.tcp)
        .flat_map(|r| r.destinations.iter().filter_map(|d| d.to.as_ref()));
    of_http.chain(of_tcp)
}

fn service_of(d: &proto::DestinationRef) -> ServiceName {
    ServiceName { namespace: d.namespace.clone(), hostname: d.hostname.clone() }
}
