//! The objects as they stand, indexed by what compilation asks of them.

use istio_api::{
    AuthorizationPolicy, Kind, Labels, MeshConfig, Object, ObjectKey, PeerAuthentication, Pod, Spec,
};
use routes::compile::View;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

#[derive(Default)]
pub struct Snapshot {
    /// Ordered by kind, then namespace: a namespace's pods lie together.
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    pods_by_node: HashMap<String, BTreeSet<ObjectKey>>,
    mesh: MeshConfig,
}

impl Snapshot {
    /// Puts the object in its place and gives back what was there.
    pub fn apply(&mut self, key: &ObjectKey, object: Option<Arc<Object>>) -> Option<Arc<Object>> {
        let old = match object {
            Some(o) => {
                if let Spec::MeshConfig(m) = &o.spec {
                    self.mesh = m.clone();
                }
                if let Spec::Pod(p) = &o.spec {
                    let node = self.pods_by_node.entry(p.spec.node_name.clone()).or_default();
                    node.insert(key.clone());
                }
                self.objects.insert(key.clone(), o)
            }
            None => {
                if key.kind == Kind::MeshConfig {
                    self.mesh = MeshConfig::default();
                }
                self.objects.remove(key)
            }
        };
        if let Some(Spec::Pod(p)) = old.as_deref().map(|o| &o.spec) {
            let moved = match self.objects.get(key).map(|o| &o.spec) {
                Some(Spec::Pod(now)) => now.spec.node_name != p.spec.node_name,
                _ => true,
            };
            if moved && let Some(set) = self.pods_by_node.get_mut(&p.spec.node_name) {
                set.remove(key);
            }
        }
        old
    }

    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// The objects, as routing reads them.
    pub fn view<'a>(&'a self, domain: &'a str) -> View<'a> {
        View { objects: &self.objects, mesh: &self.mesh, domain }
    }

    pub fn mesh(&self) -> &MeshConfig {
        &self.mesh
    }

    pub fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        self.namespace(name).map(|o| &o.meta.labels)
    }

    pub fn namespace_annotations(&self, name: &str) -> Option<&Labels> {
        self.namespace(name).map(|o| &o.meta.annotations)
    }

    fn namespace(&self, name: &str) -> Option<&Object> {
        let key =
            ObjectKey { kind: Kind::Namespace, namespace: String::new(), name: name.to_owned() };
        self.objects.get(&key).map(|o| &**o)
    }

    pub fn node_labels(&self, name: &str) -> Option<&Labels> {
        let key = ObjectKey { kind: Kind::Node, namespace: String::new(), name: name.to_owned() };
        self.objects.get(&key).map(|o| &o.meta.labels)
    }

    /// Objects of a kind in one namespace.
    pub fn in_namespace<'a>(
        &'a self,
        kind: Kind,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Object>> {
        self.view("").in_namespace(kind, namespace)
    }

    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.view("").of_kind(kind)
    }

    pub fn pods_on<'a>(&'a self, node: &str) -> impl Iterator<Item = (&'a Arc<Object>, &'a Pod)> {
        self.pods_by_node.get(node).into_iter().flatten().filter_map(|key| {
            let object = self.objects.get(key)?;
            match &object.spec {
                Spec::Pod(p) => Some((object, &**p)),
                _ => None,
            }
        })
    }

    /// Selector policies that can bind a workload of `namespace`: its own, and the root's.
    pub fn authorization_for<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Object, &'a AuthorizationPolicy)> {
        let root = self.mesh.root_namespace.as_str();
        let root = (root != namespace).then_some(root);
        [Some(namespace), root]
            .into_iter()
            .flatten()
            .flat_map(|ns| self.in_namespace(Kind::AuthorizationPolicy, ns))
            .filter_map(|o| match &o.spec {
                Spec::AuthorizationPolicy(p) => Some((&**o, &**p)),
                _ => None,
            })
    }

    /// PeerAuthentications of one namespace, oldest first.
    pub fn peer_authentications<'a>(
        &'a self,
        namespace: &'a str,
    ) -> Vec<(&'a Object, &'a PeerAuthentication)> {
        let mut all: Vec<_> = self
            .in_namespace(Kind::PeerAuthentication, namespace)
            .filter_map(|o| match &o.spec {
                Spec::PeerAuthentication(p) => Some((&**o, p)),
                _ => None,
            })
            .collect();
        all.sort_by(|(a, _), (b, _)| {
            let age = |o: &Object| (o.meta.creation_timestamp.clone(), o.key.name.clone());
            age(a).cmp(&age(b))
        });
        all
    }
}
