//! Which rule counts for a host: indexes over VirtualServices, DestinationRules and services.

use super::{
    route_api,
    view::{GATEWAY_NAME, ServiceView, View},
};
use crate::{
    names::{ProxyName, ServiceName, exported, patterns, whole},
    proto,
};
use istio_api::{
    Kind, Object, ObjectKey, Spec,
    istio::{destination_rule::DestinationRule, virtual_service::VirtualService},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

#[derive(Default)]
pub struct Rules {
    /// By host as written, in full.
    virtual_services: HashMap<String, BTreeSet<ObjectKey>>,
    destination_rules: HashMap<String, BTreeSet<ObjectKey>>,
    /// By hostname, then by namespace.
    services: HashMap<String, BTreeMap<String, BTreeMap<ObjectKey, ServiceView>>>,
    /// Gateway API's routes by the hosts of the services that they are attached to.
    routes: HashMap<String, BTreeSet<ObjectKey>>,
    /// Policies that name what they bind: of all that there are, few.
    targeted: BTreeSet<ObjectKey>,
    /// Pods that carry a gateway's name: of all that there are, few.
    gateway_pods: BTreeSet<ObjectKey>,
}

/// The gateway that stands for traffic within the mesh.
pub const MESH: &str = "mesh";

impl Rules {
    /// Follows a change of one object.
    pub fn follow(
        &mut self,
        view: View<'_>,
        key: &ObjectKey,
        old: Option<&Object>,
        new: Option<&Object>,
    ) {
        let mut keep = |object: Option<&Object>, add: bool| {
            let Some(o) = object else { return };
            match &o.spec {
                Spec::VirtualService(v) => {
                    for host in &v.hosts {
                        let host = whole(host, &key.namespace, view.domain);
                        note(&mut self.virtual_services, host, key, add);
                    }
                }
                Spec::DestinationRule(d) => {
                    let host = whole(&d.host, &key.namespace, view.domain);
                    note(&mut self.destination_rules, host, key, add);
                }
                Spec::HttpRoute(_) | Spec::GrpcRoute(_) => {
                    for host in Self::hosts_of(view, o) {
                        note(&mut self.routes, host, key, add);
                    }
                }
                Spec::AuthorizationPolicy(p) if p.has_targets() => {
                    keep_in(&mut self.targeted, key, add);
                }
                Spec::Pod(_) if o.meta.labels.contains_key(GATEWAY_NAME) => {
                    keep_in(&mut self.gateway_pods, key, add);
                }
                Spec::Service(_) | Spec::ServiceEntry(_) => {
                    for s in view.services_of(o) {
                        let ServiceName { namespace, hostname } = s.name.clone();
                        let by_namespace = self.services.entry(hostname.clone()).or_default();
                        let own = by_namespace.entry(namespace.clone()).or_default();
                        if add {
                            own.insert(key.clone(), s);
                        } else {
                            own.remove(key);
                            if own.is_empty() {
                                by_namespace.remove(&namespace);
                            }
                            if by_namespace.is_empty() {
                                self.services.remove(&hostname);
                            }
                        }
                    }
                }
                _ => {}
            }
        };
        keep(old, false);
        keep(new, true);
    }

    /// A service by its name; of two objects that stand for one the first counts.
    pub fn service(&self, name: &ServiceName) -> Option<(&ObjectKey, &ServiceView)> {
        self.services.get(&name.hostname)?.get(&name.namespace)?.iter().next()
    }

    /// The Services and ServiceEntries that stand for a host.
    pub fn objects_of(&self, hostname: &str) -> impl Iterator<Item = &ObjectKey> {
        let all = self.services.get(hostname).into_iter().flat_map(|n| n.values());
        all.flat_map(|own| own.keys())
    }

    /// Gateway API's routes that are attached to a service of this host.
    pub fn routes<'a>(
        &'a self,
        view: View<'a>,
        hostname: &str,
    ) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        self.routes.get(hostname).into_iter().flatten().filter_map(move |key| view.objects.get(key))
    }

    /// Pods of waypoints and gateways.
    pub fn gateway_pods<'a>(&'a self, view: View<'a>) -> impl Iterator<Item = &'a Arc<Object>> {
        self.gateway_pods.iter().filter_map(move |key| view.objects.get(key))
    }

    /// AuthorizationPolicies with targetRefs.
    pub fn targeted<'a>(&'a self, view: View<'a>) -> impl Iterator<Item = &'a Arc<Object>> {
        self.targeted.iter().filter_map(move |key| view.objects.get(key))
    }

    /// Every service there is.
    pub fn services(&self) -> impl Iterator<Item = &ServiceView> {
        self.services.values().flat_map(|n| n.values()).filter_map(|own| own.values().next())
    }

    /// The service that a host means to whoever is in `from`: its own, or that of the others that it may
    /// see which is a Service, and then the oldest: nobody takes over a host by an entry for it.
    pub fn visible_service(&self, hostname: &str, from: &[&str]) -> Option<&ServiceView> {
        let by_namespace = self.services.get(hostname)?;
        let is_seen = |(_, s): &(&ObjectKey, &ServiceView)| {
            from.iter().any(|ns| exported(&s.export_to, &s.name.namespace, ns))
        };
        let mut own = from.iter().filter_map(|ns| by_namespace.get(*ns)).filter_map(first);
        let others = || by_namespace.values().filter_map(first).filter(is_seen).min_by_key(rank);
        own.find(is_seen).or_else(others).map(|(_, s)| s)
    }

    /// All VirtualServices that may be part of the tables of these hosts.
    pub fn virtual_services_about<'a>(
        &self,
        view: View<'a>,
        hosts: &BTreeSet<String>,
    ) -> Vec<&'a Arc<Object>> {
        let keys: BTreeSet<&ObjectKey> = hosts
            .iter()
            .flat_map(|h| patterns(h))
            .filter_map(|pattern| self.virtual_services.get(&pattern))
            .flatten()
            .collect();
        keys.into_iter().filter_map(|key| view.objects.get(key)).collect()
    }

    /// The VirtualServices that say something about a host, the one that counts first: the most
    /// specific host, then the oldest. `allowed` are the namespaces that may.
    pub fn virtual_services<'a>(
        &'a self,
        view: View<'a>,
        hostname: &str,
        allowed: &'a [&'a str],
        from: &'a str,
    ) -> impl Iterator<Item = (&'a Arc<Object>, &'a VirtualService)> + use<'a> {
        let specific: Vec<String> = patterns(hostname).collect();
        specific.into_iter().flat_map(move |pattern| {
            let mut found: Vec<(&Arc<Object>, &VirtualService)> = self
                .virtual_services
                .get(&pattern)
                .into_iter()
                .flatten()
                .filter(|key| allowed.contains(&key.namespace.as_str()))
                .filter_map(|key| match view.objects.get(key) {
                    Some(o) => match &o.spec {
                        Spec::VirtualService(v) => Some((o, &**v)),
                        _ => None,
                    },
                    None => None,
                })
                .filter(|(o, v)| exported(&v.export_to, &o.key.namespace, from))
                .collect();
            found.sort_by(|(a, _), (b, _)| age(a).cmp(&age(b)));
            found
        })
    }

    /// The DestinationRules that count for a host, in the order in which they count: those of the
    /// client's namespace, or else the service's, or else the root's; of these the most specific
    /// host, the oldest first.
    pub fn destination_rules<'a>(
        &self,
        view: View<'a>,
        service: &ServiceName,
        client: &str,
    ) -> Vec<(&'a Arc<Object>, &'a DestinationRule)> {
        let namespaces = [client, &service.namespace, &view.mesh.root_namespace];
        for namespace in namespaces {
            for pattern in patterns(&service.hostname) {
                let mut found: Vec<(&Arc<Object>, &DestinationRule)> = self
                    .destination_rules
                    .get(&pattern)
                    .into_iter()
                    .flatten()
                    .filter(|key| key.namespace == namespace)
                    .filter_map(|key| {
                        let o = view.objects.get(key)?;
                        let Spec::DestinationRule(d) = &o.spec else { return None };
                        // Bound to certain pods, of which a proxy is none.
                        let mine = d.workload_selector.is_none()
                            && exported(&d.export_to, namespace, client);
                        mine.then_some((o, &**d))
                    })
                    .collect();
                if !found.is_empty() {
                    found.sort_by(|(a, _), (b, _)| age(a).cmp(&age(b)));
                    return found;
                }
            }
        }
        Vec::new()
    }

    /// What a route's destination is, or why it cannot be one.
    #[allow(clippy::too_many_arguments)]
    pub fn destination(
        &self,
        view: View<'_>,
        proxy: &ProxyName,
        host: &str,
        subset: &str,
        asked: u32,
        came_to: u16,
        namespace: &str,
    ) -> proto::DestinationRef {
        let hostname = whole(host, namespace, view.domain);
        let broken = |why: String| proto::DestinationRef {
            namespace: namespace.to_owned(),
            hostname: hostname.clone(),
            port: asked,
            subset: subset.to_owned(),
            broken: why,
        };
        let Some(service) = self.visible_service(&hostname, &[namespace, &proxy.namespace]) else {
            return broken(format!("no service {hostname} is known in namespace {namespace}"));
        };
        let port = match (asked, service.ports.as_slice()) {
            (0, [(only, _)]) => u32::from(*only),
            (0, _) => u32::from(came_to),
            (asked, _) => asked,
        };
        if !service.ports.iter().any(|(p, _)| u32::from(*p) == port) {
            return broken(format!("service {hostname} has no port {port}"));
        }
        if !subset.is_empty() {
            let rules = self.destination_rules(view, &service.name, &proxy.namespace);
            if !rules.iter().any(|(_, d)| d.subsets.iter().any(|s| s.name == subset)) {
                return broken(format!("no DestinationRule has a subset {subset} of {hostname}"));
            }
        }
        proto::DestinationRef {
            namespace: service.name.namespace.clone(),
            hostname,
            port,
            subset: subset.to_owned(),
            broken: String::new(),
        }
    }

    /// Hosts that an object says something about, in full.
    pub fn hosts_of(view: View<'_>, o: &Object) -> Vec<String> {
        let namespace = &o.key.namespace;
        match &o.spec {
            Spec::VirtualService(v) => {
                v.hosts.iter().map(|h| whole(h, namespace, view.domain)).collect()
            }
            Spec::DestinationRule(d) => vec![whole(&d.host, namespace, view.domain)],
            Spec::Service(_) | Spec::ServiceEntry(_) => {
                view.services_of(o).into_iter().map(|s| s.name.hostname).collect()
            }
            Spec::HttpRoute(_) | Spec::GrpcRoute(_) => route_api::parents(o)
                .filter(route_api::Parent::is_service)
                .map(|p| whole(p.name, p.namespace, view.domain))
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// Older first; of the same age by name, and only then by namespace, as Istio sorts them.
pub fn age(o: &Object) -> (Option<&str>, &str, &str) {
    let created = o.meta.creation_timestamp.as_deref();
    // Without a time it is new: one that has a time was there before.
    (created.or(Some("~")), &o.key.name, &o.key.namespace)
}

/// Services before entries, and the older before the younger; without a time it is new.
fn rank<'a>((key, s): &(&'a ObjectKey, &'a ServiceView)) -> (bool, &'a str, &'a str) {
    (key.kind != Kind::Service, s.created.as_deref().unwrap_or("~"), &key.namespace)
}

/// Of two objects that stand for one service the first counts.
fn first(own: &BTreeMap<ObjectKey, ServiceView>) -> Option<(&ObjectKey, &ServiceView)> {
    own.iter().next()
}

fn note(
    index: &mut HashMap<String, BTreeSet<ObjectKey>>,
    host: String,
    key: &ObjectKey,
    add: bool,
) {
    if add {
        index.entry(host).or_default().insert(key.clone());
    } else if let Some(keys) = index.get_mut(&host) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(&host);
        }
    }
}

fn keep_in(set: &mut BTreeSet<ObjectKey>, key: &ObjectKey, add: bool) {
    if add {
        set.insert(key.clone());
    } else {
        set.remove(key);
    }
}

/// Whether a VirtualService speaks for traffic of the mesh.
pub fn of_mesh(v: &VirtualService) -> bool {
    v.gateways.is_empty() || v.gateways.iter().any(|g| g == MESH)
}

/// Whether routing depends on objects of this kind.
pub fn is_routing(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::VirtualService
            | Kind::DestinationRule
            | Kind::Service
            | Kind::ServiceEntry
            | Kind::Namespace
            | Kind::KubernetesGateway
            | Kind::AuthorizationPolicy
            | Kind::MeshConfig
            | Kind::Pod
            | Kind::Secret
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::ReferenceGrant
    )
}
