//! Objects, the compiler that follows them, and the resources as whoever subscribes has them.

use istio_api::{Kind, MeshConfig, Object, ObjectKey, Spec};
use prost::Message as _;
use routes::{
    DESTINATION_TYPE, HOST_TABLE_TYPE,
    compile::{Changed, Compiler, Objects, Output, View},
    proto::{self, http_route::Action},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

pub const DOMAIN: &str = "cluster.local";

/// Type and name, and the encoded resource.
pub type Resources = BTreeMap<(&'static str, String), Vec<u8>>;

#[derive(Default)]
pub struct World {
    pub objects: Objects,
    compiler: Compiler,
    pub resources: Resources,
}

/// An object, or that it is gone.
pub type Edit = (ObjectKey, Option<Object>);

/// Of an object's document. Kinds that nothing serves yet are refused where files are read, and are
/// wanted here all the same.
pub fn object(document: Value) -> Object {
    let mut document = document;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let meta = document["metadata"].clone();
    let name = text(&meta["name"]);
    let namespace = text(&meta["namespace"]);
    let kind = text(&document["kind"]);
    let is_service = kind == "Service";
    let spec = if is_service { document.clone() } else { document["spec"].take() };
    let (kind, spec) = match kind.as_str() {
        "Namespace" => (Kind::Namespace, Spec::Namespace(Default::default())),
        "Service" => (Kind::Service, Spec::Service(typed(spec))),
        "ServiceEntry" => (Kind::ServiceEntry, Spec::ServiceEntry(typed(spec))),
        "VirtualService" => (Kind::VirtualService, Spec::VirtualService(typed(spec))),
        "DestinationRule" => (Kind::DestinationRule, Spec::DestinationRule(typed(spec))),
        "Gateway" => (Kind::KubernetesGateway, Spec::KubernetesGateway(typed(spec))),
        "AuthorizationPolicy" => {
            (Kind::AuthorizationPolicy, Spec::AuthorizationPolicy(typed(spec)))
        }
        "HTTPRoute" => (Kind::HttpRoute, Spec::HttpRoute(typed(spec))),
        "ReferenceGrant" => (Kind::ReferenceGrant, Spec::ReferenceGrant(typed(spec))),
        "IstioGateway" => (Kind::Gateway, Spec::Gateway(typed(spec))),
        "Pod" => (Kind::Pod, Spec::Pod(Default::default())),
        "Telemetry" => (Kind::Telemetry, Spec::Telemetry(typed(spec))),
        "Secret" => (Kind::Secret, Spec::Secret(typed(document))),
        "MeshConfig" => (Kind::MeshConfig, Spec::MeshConfig(typed(spec))),
        other => panic!("no {other} is routed"),
    };
    let key = ObjectKey { kind, namespace, name };
    Object { key, meta: typed(meta), spec }
}

fn typed<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{e}: {value}"))
}

/// A policy in the part that these tests look at: its name, and what it takes from the mesh.
fn policy_of(o: &Object, mesh: &MeshConfig) -> Option<proto::HttpPolicy> {
    let of_mesh =
        proto::PolicyMatch { methods: vec![mesh.trust_domain.clone()], ..Default::default() };
    let clauses = vec![proto::PolicyClause { matches: vec![of_mesh] }];
    Some(proto::HttpPolicy {
        namespace: o.key.namespace.clone(),
        name: o.key.name.clone(),
        rules: vec![proto::PolicyRule { clauses }],
        ..proto::HttpPolicy::default()
    })
}

impl World {
    /// One batch, as a source of objects gives it: each object at most once, with what it was.
    pub fn apply(&mut self, edits: impl IntoIterator<Item = Edit>) -> Output {
        let mut before: BTreeMap<ObjectKey, Option<Arc<Object>>> = BTreeMap::new();
        for (key, object) in edits {
            let old = match object {
                Some(o) => self.objects.insert(key.clone(), Arc::new(o)),
                None => self.objects.remove(&key),
            };
            before.entry(key).or_insert(old);
        }
        let changes: Vec<Changed<'_>> = before
            .iter()
            .map(|(key, old)| Changed {
                key,
                old: old.as_deref(),
                new: self.objects.get(key).map(|o| &**o),
            })
            .collect();
        let mesh = mesh_config(&self.objects);
        let view = View { objects: &self.objects, mesh: &mesh, domain: DOMAIN };
        let out = self.compiler.apply(view, &changes, policy_of);
        for (kind, name) in &out.removed {
            self.resources.remove(&(*kind, name.clone()));
        }
        for (kind, name, bytes) in &out.updated {
            self.resources.insert((*kind, name.clone()), bytes.clone());
        }
        out
    }

    /// Objects that do nothing as things are, and what is said of them.
    pub fn idle(&self) -> Vec<(String, String)> {
        let mesh = mesh_config(&self.objects);
        let view = View { objects: &self.objects, mesh: &mesh, domain: DOMAIN };
        let all = self.compiler.idle(view).into_iter();
        all.map(|i| (i.key.to_string(), format!("{}: {}", i.path, i.found))).collect()
    }

    /// Documents of YAML, as one batch.
    pub fn put(&mut self, yaml: &str) -> Output {
        // As files are read: a rule called `y` is no boolean.
        let options = serde_saphyr::options! { strict_booleans: true };
        let documents: Vec<Value> =
            serde_saphyr::from_multiple_with_options(yaml, options).unwrap();
        self.apply(documents.into_iter().map(object).map(|o| (o.key.clone(), Some(o))))
    }

    /// `namespace/name`
    pub fn delete(&mut self, kind: Kind, name: &str) -> Output {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        let key = ObjectKey { kind, namespace: namespace.into(), name: name.into() };
        assert!(self.objects.contains_key(&key), "{key}");
        self.apply([(key, None)])
    }

    /// A VirtualService, by `namespace/name` and its spec.
    pub fn route(&mut self, name: &str, spec: &str) -> Output {
        self.put(&document("VirtualService", name, spec))
    }

    /// A DestinationRule.
    pub fn rule(&mut self, name: &str, spec: &str) -> Output {
        self.put(&document("DestinationRule", name, spec))
    }

    /// The one table of a host, whichever proxy has it.
    pub fn table(&self, hostname: &str) -> proto::HostTable {
        let mut all = self.tables().into_iter().filter(|(_, t)| t.hostname == hostname);
        let (_, table) = all.next().unwrap_or_else(|| panic!("no table of {hostname}"));
        assert_eq!(all.count(), 0, "{hostname}");
        table
    }

    /// With the proxy's name.
    pub fn tables(&self) -> Vec<(String, proto::HostTable)> {
        let all = self.resources.iter().filter(|((kind, _), _)| *kind == HOST_TABLE_TYPE);
        all.map(|((_, name), bytes)| (proxy_of(name), proto::HostTable::decode(&**bytes).unwrap()))
            .collect()
    }

    /// By proxy, then `namespace/hostname`.
    pub fn destinations(&self) -> BTreeMap<(String, String), proto::Destination> {
        let all = self.resources.iter().filter(|((kind, _), _)| *kind == DESTINATION_TYPE);
        all.map(|((_, name), bytes)| {
            let d = proto::Destination::decode(&**bytes).unwrap();
            ((proxy_of(name), format!("{}/{}", d.namespace, d.hostname)), d)
        })
        .collect()
    }

    /// The HTTP routes of a host at port 9080: where each comes from and where it goes.
    pub fn http(&self, hostname: &str) -> Vec<String> {
        self.http_at(hostname, 9080)
    }

    pub fn http_at(&self, hostname: &str, port: u32) -> Vec<String> {
        let table = self.table(hostname);
        let port = table.ports.iter().find(|p| p.port == port).unwrap();
        let said = |r: &proto::HttpRoute| match &r.action {
            Some(Action::Forward(f)) => {
                let to: Vec<String> =
                    f.destinations.iter().map(|d| refers(d.to.as_ref().unwrap())).collect();
                format!("{} to {}", r.origin, to.join(" and "))
            }
            other => format!("{}: {other:?}", r.origin),
        };
        port.http.iter().map(said).collect()
    }
}

/// Where a reference leads, or why nowhere.
pub fn refers(d: &proto::DestinationRef) -> String {
    if !d.broken.is_empty() {
        return format!("nothing, as {}", d.broken);
    }
    let host = d.hostname.trim_end_matches(".svc.cluster.local");
    match d.subset.as_str() {
        "" => format!("{host}:{}", d.port),
        subset => format!("{host}:{} {subset}", d.port),
    }
}

pub fn document(kind: &str, name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    // What follows an @ is the time of creation.
    let (name, created) = name.split_once('@').unwrap_or((name, "2024-01-01T00:00:00Z"));
    format!(
        "kind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}, \
         creationTimestamp: \"{created}\"}}\nspec: {spec}\n"
    )
}

pub fn mesh_config(objects: &Objects) -> MeshConfig {
    let found = objects.values().find_map(|o| match &o.spec {
        Spec::MeshConfig(m) => Some(m.clone()),
        _ => None,
    });
    found.unwrap_or_default()
}

/// Of `<namespace>/<gateway>/<namespace>/<hostname>`.
fn proxy_of(resource: &str) -> String {
    resource.splitn(3, '/').take(2).collect::<Vec<_>>().join("/")
}
