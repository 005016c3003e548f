//! From objects to what agents read, incrementally: a change makes anew what depends on it, and
//! nothing else. Pure: changes in, resources out.

use crate::{
    policies,
    snapshot::Snapshot,
    source::Change,
    vips::Vips,
    workloads::{self, Cluster, selects},
};
use istio_api::{
    Code, Diagnostic, Kind, LabelSelector, Labels, Object, ObjectKey, SAME_NODE, Spec,
};
use routes::{
    DESTINATION_TYPE, HOST_TABLE_TYPE, LISTENER_TYPE, TELEMETRY_TYPE,
    compile::{Changed, Compiler as RouteCompiler, serves},
};
use sha2::{Digest as _, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use telemetry::Format;
use xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    proto::{
        security::{Authorization, Scope},
        workload as pb,
    },
    server::Encoded,
};

/// What one batch of changes comes to.
#[derive(Debug, Default)]
pub struct Output {
    pub addresses: Delta,
    pub authorizations: Delta,
    pub host_tables: Delta,
    pub destinations: Delta,
    pub listeners: Delta,
    pub telemetry: Delta,
    /// Objects that were compiled.
    pub compiled: usize,
}

#[derive(Debug, Default)]
pub struct Delta {
    pub updated: Vec<(String, Encoded)>,
    pub removed: Vec<String>,
}

pub struct Compiler {
    cluster: Cluster,
    snapshot: Snapshot,
    vips: Vips,
    routes: RouteCompiler,
    /// What each object has become, by name, so that what it no longer becomes can be removed.
    made: HashMap<ObjectKey, BTreeSet<Made>>,
    makers: HashMap<Made, BTreeSet<ObjectKey>>,
}

/// A resource's name, and whether it is a policy.
type Made = (bool, String);

impl Compiler {
    pub fn new(cluster: Cluster, vips: Vips) -> Self {
        Self {
            cluster,
            snapshot: Snapshot::default(),
            vips,
            routes: RouteCompiler::default(),
            made: HashMap::new(),
            makers: HashMap::new(),
        }
    }

    pub fn vips(&mut self) -> &mut Vips {
        &mut self.vips
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    pub fn apply(&mut self, changes: Vec<Change>) -> Output {
        let mut dirty = BTreeSet::new();
        let mut done = Vec::with_capacity(changes.len());
        for change in changes {
            let new = change.object.clone();
            let before = self.static_strict_name();
            let old = self.snapshot.apply(&change.key, change.object);
            self.mark(&change.key, old.as_deref(), new.as_deref(), &mut dirty);
            if before != self.static_strict_name() {
                self.mark_all(&mut dirty);
            }
            done.push((change.key, old, new));
        }
        let mut out = Output::default();
        self.compile_routes(&done, &mut out);
        while let Some(key) = dirty.pop_first() {
            dirty.extend(self.compile(&key, &mut out));
        }
        out.settle();
        out
    }

    /// What is taken and does nothing, as things are.
    pub fn without_effect(&self) -> Vec<Diagnostic> {
        let view = self.snapshot.view(&self.cluster.domain);
        let idle = self.routes.idle(view).into_iter();
        let idle = idle.map(|i| Diagnostic {
            file: "-".to_owned(),
            object: i.key.to_string(),
            path: i.path.to_owned(),
            code: Code::Warning,
            found: i.found,
            remedy: i.remedy.to_owned(),
        });
        idle.chain(self.untold()).chain(self.unprovided()).collect()
    }

    /// Providers that Telemetry objects name, and that MeshConfig does not have.
    fn unprovided(&self) -> Vec<Diagnostic> {
        let known = &self.snapshot.mesh().extension_providers;
        // Istio's own, which need no definition.
        let is_known = |name: &str| {
            matches!(name, "envoy" | "prometheus") || known.iter().any(|p| p.name == name)
        };
        let of = |o: &Arc<Object>| {
            let Spec::Telemetry(t) = &o.spec else { return Vec::new() };
            let logs = t.access_logging.iter().map(|l| ("accessLogging", &l.providers));
            let all = logs.chain(t.tracing.iter().map(|t| ("tracing", &t.providers)));
            all.flat_map(|(of, all)| all.iter().map(move |p| (of, p.name.clone())))
                .filter(|(_, name)| !is_known(name))
                .map(|(of, found)| Diagnostic {
                    file: "-".to_owned(),
                    object: o.key.to_string(),
                    path: format!("spec.{of}.providers"),
                    code: Code::Warning,
                    found,
                    remedy: "nothing is sent there: name one of MeshConfig's extensionProviders"
                        .to_owned(),
                })
                .collect()
        };
        self.snapshot.of_kind(Kind::Telemetry).flat_map(of).collect()
    }

    /// What of MeshConfig's words on telemetry nobody can follow.
    fn untold(&self) -> Vec<Diagnostic> {
        let mesh = self.snapshot.mesh();
        let told = |path: &str, code, found: String, remedy: &str| Diagnostic {
            file: "-".to_owned(),
            object: format!("MeshConfig {}/istio", mesh.root_namespace),
            path: format!("data.mesh.{path}"),
            code,
            found,
            remedy: remedy.to_owned(),
        };
        let mut out = Vec::new();
        const REMEDY: &str = "the format before stays in use: correct it, by Envoy's operators";
        let format = match mesh.access_log_encoding.eq_ignore_ascii_case("JSON") {
            true => Format::object(&mesh.access_log_format),
            false => Format::text(&mesh.access_log_format),
        };
        if let Err(why) = format {
            out.push(told("accessLogFormat", Code::InvalidValue, why, REMEDY));
        }
        for p in &mesh.extension_providers {
            let of = p.envoy_file_access_log.as_ref().and_then(|f| f.log_format.as_ref());
            let format = match of.map(|f| (&f.labels, &f.text)) {
                Some((Some(labels), _)) => Format::object(&labels.to_string()),
                Some((None, Some(text))) => Format::text(text),
                _ => continue,
            };
            if let Err(why) = format {
                let path = format!("extensionProviders.{}.envoyFileAccessLog.logFormat", p.name);
                out.push(told(&path, Code::InvalidValue, why, REMEDY));
            }
        }
        let wanted = mesh.default_providers.tracing.first().filter(|_| mesh.enable_tracing);
        if let Some(name) = wanted {
            let is_it = |p: &&istio_api::Provider| p.name == *name && p.opentelemetry.is_some();
            if mesh.extension_providers.iter().find(is_it).is_none() {
                let remedy =
                    "no spans are sent: name one of extensionProviders, with opentelemetry";
                out.push(told("defaultProviders.tracing", Code::Warning, name.clone(), remedy));
            }
        }
        out
    }

    fn compile_routes(&mut self, done: &[Done], out: &mut Output) {
        let changed: Vec<Changed<'_>> = done
            .iter()
            .map(|(key, old, new)| Changed { key, old: old.as_deref(), new: new.as_deref() })
            .collect();
        let view = self.snapshot.view(&self.cluster.domain);
        let made = self.routes.apply(view, &changed, policies::of_requests);
        for (type_url, name, body) in made.updated {
            let encoded = Encoded { version: version(&body), body, ..Encoded::default() };
            out.of_routes(type_url).updated.push((name, encoded));
        }
        for (type_url, name) in made.removed {
            out.of_routes(type_url).removed.push(name);
        }
    }

    fn static_strict_name(&self) -> String {
        self.snapshot.mesh().root_namespace.clone()
    }

    /// What must be made anew because `key` has changed.
    fn mark(
        &self,
        key: &ObjectKey,
        old: Option<&Object>,
        new: Option<&Object>,
        dirty: &mut BTreeSet<ObjectKey>,
    ) {
        dirty.insert(key.clone());
        let both = || old.into_iter().chain(new);
        let same_node = |o: &Object| o.meta.annotations.get(SAME_NODE).cloned();
        match key.kind {
            Kind::KubernetesGateway => {
                let serves = |o: Option<&Object>| o.and_then(serves);
                if serves(old) != serves(new) {
                    for kind in [Kind::Pod, Kind::Service, Kind::ServiceEntry] {
                        self.mark_kind(kind, None, dirty, |_| true);
                    }
                }
            }
            Kind::Pod
            | Kind::WorkloadEntry
            | Kind::ServiceAccount
            | Kind::VirtualService
            | Kind::DestinationRule
            | Kind::Gateway
            | Kind::Secret
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::ReferenceGrant
            | Kind::Telemetry => {}
            Kind::Namespace => {
                let read = |o: Option<&Object>| o.map(|o| (o.meta.labels.clone(), same_node(o)));
                if read(old) != read(new) {
                    for kind in [Kind::Pod, Kind::Service, Kind::ServiceEntry] {
                        self.mark_kind(kind, Some(&key.name), dirty, |_| true);
                    }
                }
            }
            Kind::Node => {
                for (o, _) in self.snapshot.pods_on(&key.name) {
                    dirty.insert(o.key.clone());
                }
            }
            Kind::Service => {
                let spec = |o: Option<&Object>| match o.map(|o| (o, &o.spec)) {
                    Some((o, Spec::Service(s))) => {
                        Some((s.spec.selector.clone(), s.spec.ports.clone(), same_node(o)))
                    }
                    _ => None,
                };
                if spec(old) == spec(new) {
                    return;
                }
                for o in both() {
                    if let Spec::Service(s) = &o.spec {
                        let selector = &s.spec.selector;
                        self.mark_labelled(&key.namespace, dirty, |l| selects(selector, l));
                    }
                }
                self.mark_slices_of(key, dirty);
            }
            Kind::EndpointSlice => {
                for o in both() {
                    self.mark_pods_of_slice(o, dirty);
                }
            }
            Kind::ServiceEntry => {
                for o in both() {
                    if let Spec::ServiceEntry(s) = &o.spec
                        && let Some(selector) = &s.workload_selector
                    {
                        self.mark_labelled(&key.namespace, dirty, |l| selects(&selector.labels, l));
                    }
                }
            }
            Kind::AuthorizationPolicy => {
                let selector = |o: Option<&Object>| match o.map(|o| &o.spec) {
                    Some(Spec::AuthorizationPolicy(p)) if policies::is_served(p.action) => {
                        p.selector.clone()
                    }
                    _ => None,
                };
                if selector(old) != selector(new) || old.is_none() || new.is_none() {
                    for s in [selector(old), selector(new)].into_iter().flatten() {
                        self.mark_selected(&key.namespace, Some(&s), dirty);
                    }
                }
            }
            Kind::PeerAuthentication => {
                for o in both() {
                    if let Spec::PeerAuthentication(p) = &o.spec {
                        self.mark_selected(&key.namespace, p.selector.as_ref(), dirty);
                    }
                }
                // Those with ports of their own take the rest from here.
                let root = self.snapshot.mesh().root_namespace == key.namespace;
                let namespace = (!root).then_some(key.namespace.as_str());
                self.mark_kind(Kind::PeerAuthentication, namespace, dirty, |_| true);
            }
            Kind::MeshConfig => {
                if old.map(|o| &o.spec) != new.map(|o| &o.spec) {
                    self.mark_all(dirty);
                }
            }
        }
    }

    fn mark_all(&self, dirty: &mut BTreeSet<ObjectKey>) {
        for kind in [
            Kind::Pod,
            Kind::WorkloadEntry,
            Kind::Service,
            Kind::ServiceEntry,
            Kind::EndpointSlice,
            Kind::AuthorizationPolicy,
            Kind::PeerAuthentication,
        ] {
            self.mark_kind(kind, None, dirty, |_| true);
        }
    }

    fn mark_kind(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        dirty: &mut BTreeSet<ObjectKey>,
        wanted: impl Fn(&Object) -> bool,
    ) {
        let mut add = |o: &Arc<Object>| {
            if wanted(o) {
                dirty.insert(o.key.clone());
            }
        };
        match namespace {
            Some(ns) => self.snapshot.in_namespace(kind, ns).for_each(&mut add),
            None => self.snapshot.of_kind(kind).for_each(&mut add),
        }
    }

    fn mark_labelled(
        &self,
        namespace: &str,
        dirty: &mut BTreeSet<ObjectKey>,
        wanted: impl Fn(&Labels) -> bool,
    ) {
        for kind in [Kind::Pod, Kind::WorkloadEntry] {
            self.mark_kind(kind, Some(namespace), dirty, |o| wanted(&labels_of(o)));
        }
    }

    /// The workloads that a policy of this namespace with this selector binds.
    fn mark_selected(
        &self,
        namespace: &str,
        selector: Option<&LabelSelector>,
        dirty: &mut BTreeSet<ObjectKey>,
    ) {
        let root = self.snapshot.mesh().root_namespace == namespace;
        let scope = (!root).then_some(namespace);
        let met = |o: &Object| selector.is_none_or(|s| s.matches(&labels_of(o)));
        for kind in [Kind::Pod, Kind::WorkloadEntry] {
            self.mark_kind(kind, scope, dirty, met);
        }
        // Endpoints within a ServiceEntry are workloads, too, with labels of their own.
        let has_endpoints =
            |o: &Object| matches!(&o.spec, Spec::ServiceEntry(s) if !s.endpoints.is_empty());
        self.mark_kind(Kind::ServiceEntry, scope, dirty, has_endpoints);
    }

    fn mark_slices_of(&self, service: &ObjectKey, dirty: &mut BTreeSet<ObjectKey>) {
        for o in self.snapshot.in_namespace(Kind::EndpointSlice, &service.namespace) {
            if o.meta.labels.get("kubernetes.io/service-name") == Some(&service.name) {
                dirty.insert(o.key.clone());
                self.mark_pods_of_slice(o, dirty);
            }
        }
    }

    fn mark_pods_of_slice(&self, o: &Object, dirty: &mut BTreeSet<ObjectKey>) {
        let Spec::EndpointSlice(slice) = &o.spec else { return };
        for target in slice.endpoints.iter().filter_map(|e| e.target_ref.as_ref()) {
            let key = ObjectKey {
                kind: Kind::Pod,
                namespace: o.key.namespace.clone(),
                name: target.name.clone(),
            };
            if target.kind == "Pod" && self.snapshot.get(&key).is_some() {
                dirty.insert(key);
            }
        }
    }

    /// Compiles `key`. The answer is what must be compiled in turn: objects that make something
    /// that this one no longer makes.
    fn compile(&mut self, key: &ObjectKey, out: &mut Output) -> Vec<ObjectKey> {
        out.compiled += 1;
        let mut addresses = BTreeMap::new();
        let mut authorizations = BTreeMap::new();
        if let Some(o) = self.snapshot.get(key).cloned() {
            self.resources(&o, &mut addresses, &mut authorizations);
        }
        let mut heirs = Vec::new();
        let made: BTreeSet<Made> = addresses
            .keys()
            .map(|n| (false, n.clone()))
            .chain(authorizations.keys().map(|n| (true, n.clone())))
            .collect();
        let before = self.made.remove(key).unwrap_or_default();
        for gone in before.difference(&made) {
            let Some(makers) = self.makers.get_mut(gone) else { continue };
            let first = makers.first() == Some(key);
            makers.remove(key);
            match makers.first() {
                Some(heir) if first => heirs.push(heir.clone()),
                Some(_) => {}
                None => {
                    self.makers.remove(gone);
                    let (is_policy, name) = gone.clone();
                    out.delta(is_policy).removed.push(name);
                }
            }
        }
        // Of several that make the same thing the first counts, whichever came last.
        let mut ours = |is_policy: bool, name: &String| {
            let makers = self.makers.entry((is_policy, name.clone())).or_default();
            makers.insert(key.clone());
            makers.first() == Some(key)
        };
        addresses.retain(|name, _| ours(false, name));
        authorizations.retain(|name, _| ours(true, name));
        if !made.is_empty() {
            self.made.insert(key.clone(), made);
        }
        out.addresses.updated.extend(addresses);
        out.authorizations.updated.extend(authorizations);
        heirs
    }

    fn resources(
        &mut self,
        o: &Object,
        addresses: &mut BTreeMap<String, Encoded>,
        authorizations: &mut BTreeMap<String, Encoded>,
    ) {
        let (snapshot, cluster) = (&self.snapshot, &self.cluster);
        let mut workload = |w: pb::Workload| {
            let (name, encoded) = encoded_workload(w);
            addresses.insert(name, encoded);
        };
        match &o.spec {
            Spec::Pod(p) => workloads::pod(o, p, snapshot, cluster).into_iter().for_each(workload),
            Spec::WorkloadEntry(w) => {
                workloads::workload_entry(o, w, snapshot, cluster).into_iter().for_each(workload);
            }
            Spec::EndpointSlice(s) => {
                workloads::slice(o, s, snapshot, cluster).into_iter().for_each(workload);
            }
            Spec::ServiceEntry(s) => {
                let (services, own) =
                    workloads::service_entry(o, s, snapshot, cluster, &mut self.vips);
                own.into_iter().for_each(&mut workload);
                for s in services {
                    insert_service(s, addresses);
                }
            }
            Spec::Service(s) => {
                if let Some(s) = workloads::service(o, s, snapshot, cluster) {
                    insert_service(s, addresses);
                }
            }
            Spec::AuthorizationPolicy(p) => {
                let a =
                    policies::authorization(&o.key, p, policies::is_dry_run(o), snapshot.mesh());
                a.into_iter().for_each(|a| insert_authorization(a, authorizations));
            }
            Spec::PeerAuthentication(p) => {
                insert_authorization(policies::static_strict(snapshot.mesh()), authorizations);
                if let Some(a) = policies::converted(o, p, snapshot) {
                    insert_authorization(a, authorizations);
                }
            }
            // Agents have no use for them.
            Spec::VirtualService(_)
            | Spec::DestinationRule(_)
            | Spec::Gateway(_)
            | Spec::Secret(_)
            | Spec::KubernetesGateway(_)
            | Spec::HttpRoute(_)
            | Spec::GrpcRoute(_)
            | Spec::ReferenceGrant(_)
            | Spec::Telemetry(_)
            | Spec::Namespace(_)
            | Spec::Node(_)
            | Spec::ServiceAccount(_)
            | Spec::MeshConfig(_) => {}
        }
    }
}

fn labels_of(o: &Object) -> Labels {
    let mut labels = o.meta.labels.clone();
    if let Spec::WorkloadEntry(w) = &o.spec {
        labels.extend(w.labels.clone());
    }
    labels
}

/// Of its services; leads to the policies that bind it.
fn encoded_workload(w: pb::Workload) -> (String, Encoded) {
    let aliases = w.addresses.iter().filter_map(|a| alias(&w.network, a)).collect();
    let groups = w.services.keys().cloned().collect();
    let named = w.authorization_policies.iter().map(|p| group_of_policy(p));
    let everybodys = [group_of_policies(""), group_of_policies(&w.namespace)];
    let leads = named.chain(everybodys).collect();
    let uid = w.uid.clone();
    let body = pb::Address { r#type: Some(pb::address::Type::Workload(w)) };
    (uid, Encoded { groups, leads, ..encoded(&body, aliases) })
}

/// Leads to its endpoints, and to the waypoint before them.
fn insert_service(s: pb::Service, into: &mut BTreeMap<String, Encoded>) {
    let name = format!("{}/{}", s.namespace, s.hostname);
    let aliases: Vec<String> =
        s.addresses.iter().filter_map(|a| alias(&a.network, &a.address)).collect();
    use pb::gateway_address::Destination;
    let waypoint = s.waypoint.as_ref().and_then(|w| match w.destination.as_ref()? {
        Destination::Hostname(h) => Some(format!("{}/{}", h.namespace, h.hostname)),
        Destination::Address(a) => alias(&a.network, &a.address),
    });
    let leads = std::iter::once(name.clone()).chain(waypoint).collect();
    // A waypoint may be known by its address.
    let groups = aliases.iter().cloned().chain([name.clone()]).collect();
    let body = pb::Address { r#type: Some(pb::address::Type::Service(s)) };
    into.insert(name, Encoded { groups, leads, ..encoded(&body, aliases) });
}

fn insert_authorization(a: Authorization, into: &mut BTreeMap<String, Encoded>) {
    let name = format!("{}/{}", a.namespace, a.name);
    let group = match a.scope() {
        Scope::Global => group_of_policies(""),
        Scope::Namespace => group_of_policies(&a.namespace),
        Scope::WorkloadSelector => group_of_policy(&name),
    };
    into.insert(name, Encoded { groups: vec![group], ..encoded(&a, Vec::new()) });
}

/// Of a policy that workloads name.
fn group_of_policy(name: &str) -> String {
    format!("policy {name}")
}

/// Of those that bind a whole namespace, or with none the whole mesh.
fn group_of_policies(namespace: &str) -> String {
    format!("policies {namespace}")
}

/// `network/ip`
fn alias(network: &str, address: &[u8]) -> Option<String> {
    let ip = match address.len() {
        4 => std::net::IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        _ => std::net::IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    Some(format!("{network}/{ip}"))
}

fn encoded(message: &impl prost::Message, aliases: Vec<String>) -> Encoded {
    let body = message.encode_to_vec();
    Encoded { version: version(&body), body, aliases, ..Encoded::default() }
}

fn version(body: &[u8]) -> String {
    Sha256::digest(body).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// A change that has been made: the object's key, what it was and what it is.
type Done = (ObjectKey, Option<Arc<Object>>, Option<Arc<Object>>);

impl Output {
    fn delta(&mut self, is_policy: bool) -> &mut Delta {
        if is_policy { &mut self.authorizations } else { &mut self.addresses }
    }

    fn of_routes(&mut self, type_url: &str) -> &mut Delta {
        match type_url {
            HOST_TABLE_TYPE => &mut self.host_tables,
            LISTENER_TYPE => &mut self.listeners,
            TELEMETRY_TYPE => &mut self.telemetry,
            _ => &mut self.destinations,
        }
    }

    /// What was removed and made again, by another object, is an update.
    fn settle(&mut self) {
        let all = [
            &mut self.addresses,
            &mut self.authorizations,
            &mut self.host_tables,
            &mut self.destinations,
            &mut self.listeners,
            &mut self.telemetry,
        ];
        for delta in all {
            let made: BTreeSet<&String> = delta.updated.iter().map(|(n, _)| n).collect();
            delta.removed.retain(|n| !made.contains(n));
        }
    }

    /// The deltas with their types, in the order in which they are served: policies come before
    /// the workloads that name them, and go after nobody does. A policy that is named and not
    /// known denies, and ends live connections. In the same way host tables name destinations; and
    /// agents send to a waypoint once it has had its table.
    pub fn into_deltas(self) -> [(&'static str, Delta); 8] {
        let split = |Delta { updated, removed }| {
            (Delta { updated, ..Delta::default() }, Delta { removed, ..Delta::default() })
        };
        let (policies, no_policies) = split(self.authorizations);
        let (destinations, no_destinations) = split(self.destinations);
        [
            (DESTINATION_TYPE, destinations),
            (HOST_TABLE_TYPE, self.host_tables),
            (DESTINATION_TYPE, no_destinations),
            (LISTENER_TYPE, self.listeners),
            (TELEMETRY_TYPE, self.telemetry),
            (AUTHORIZATION_TYPE, policies),
            (ADDRESS_TYPE, self.addresses),
            (AUTHORIZATION_TYPE, no_policies),
        ]
    }
}

#[cfg(test)]
mod tests;
