//! The objects, as compilation asks for them.

use super::ingress;
use crate::{
    names::{ProxyName, ServiceName, whole},
    proto::Protocol,
};
use istio_api::{
    Kind, Labels, MeshConfig, Object, ObjectKey, Resolution, Spec,
    gateway_api::gateway::RouteNamespaces,
};
use std::{collections::BTreeMap, ops::Bound, sync::Arc};

/// All objects by kind, namespace and name.
pub type Objects = BTreeMap<ObjectKey, Arc<Object>>;

#[derive(Clone, Copy)]
pub struct View<'a> {
    pub objects: &'a Objects,
    pub mesh: &'a MeshConfig,
    /// What the names of the cluster's services end in.
    pub domain: &'a str,
}

/// A host that requests can be sent to.
#[derive(Clone, PartialEq, Debug)]
pub struct ServiceView {
    pub name: ServiceName,
    /// Of the object.
    pub short: String,
    /// When it was made.
    pub created: Option<String>,
    pub ports: Vec<(u16, Protocol)>,
    pub export_to: Vec<String>,
    /// Connections go where they were going.
    pub passthrough: bool,
    /// What certificates of its endpoints have.
    pub subject_alt_names: Vec<String>,
}

/// What a waypoint is for: `istio.io/waypoint-for`.
#[derive(Clone, PartialEq, Debug)]
pub struct Serves {
    pub services: bool,
    /// Other namespaces whose services may ask for it.
    pub admits: Option<RouteNamespaces>,
}

/// Gateway classes of waypoints.
pub const WAYPOINT_CLASSES: [&str; 2] = ["istio-waypoint", "culvert-waypoint"];

impl<'a> View<'a> {
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<&'a Arc<Object>> {
        let key = ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        self.objects.get(&key)
    }

    pub fn of_kind(self, kind: Kind) -> impl Iterator<Item = &'a Arc<Object>> {
        let from = ObjectKey { kind, namespace: String::new(), name: String::new() };
        self.objects
            .range((Bound::Included(from), Bound::Unbounded))
            .map(|(_, o)| o)
            .take_while(move |o| o.key.kind == kind)
    }

    pub fn in_namespace(
        self,
        kind: Kind,
        namespace: &str,
    ) -> impl Iterator<Item = &'a Arc<Object>> {
        let from = ObjectKey { kind, namespace: namespace.to_owned(), name: String::new() };
        self.objects
            .range((Bound::Included(from), Bound::Unbounded))
            .map(|(_, o)| o)
            .take_while(move |o| o.key.kind == kind && o.key.namespace == namespace)
    }

    /// The hosts that a Service or ServiceEntry stands for.
    pub fn services_of(&self, o: &Object) -> Vec<ServiceView> {
        let namespace = o.key.namespace.as_str();
        match &o.spec {
            Spec::Service(s) if s.spec.r#type != "ExternalName" => {
                let export_to = o
                    .meta
                    .annotations
                    .get("networking.istio.io/exportTo")
                    .map(|e| e.split(',').map(|s| s.trim().to_owned()).collect())
                    .unwrap_or_default();
                vec![ServiceView {
                    name: ServiceName {
                        namespace: namespace.to_owned(),
                        hostname: whole(&o.key.name, namespace, self.domain),
                    },
                    short: o.key.name.clone(),
                    created: o.meta.creation_timestamp.clone(),
                    ports: s
                        .spec
                        .ports
                        .iter()
                        .filter(|p| matches!(p.protocol.as_str(), "" | "TCP"))
                        .map(|p| (p.port, protocol(&p.name, &p.app_protocol)))
                        .collect(),
                    export_to,
                    passthrough: false,
                    subject_alt_names: Vec::new(),
                }]
            }
            Spec::ServiceEntry(s) => s
                .hosts
                .iter()
                .map(|host| ServiceView {
                    name: ServiceName {
                        namespace: namespace.to_owned(),
                        hostname: host.to_ascii_lowercase(),
                    },
                    short: o.key.name.clone(),
                    created: o.meta.creation_timestamp.clone(),
                    ports: s
                        .ports
                        .iter()
                        .map(|p| (p.number, protocol(&p.protocol.to_ascii_lowercase(), "")))
                        .collect(),
                    export_to: s.export_to.clone(),
                    passthrough: s.resolution == Resolution::None,
                    subject_alt_names: s.subject_alt_names.clone(),
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    fn namespace_labels(&self, namespace: &str) -> Option<&'a Labels> {
        self.get(Kind::Namespace, "", namespace).map(|o| &o.meta.labels)
    }

    /// What a Gateway that stands for a waypoint serves.
    pub fn waypoint(&self, proxy: &ProxyName) -> Option<Serves> {
        let o = self.get(Kind::KubernetesGateway, &proxy.namespace, &proxy.name)?;
        serves(o)
    }

    /// The waypoint that this object's label, or its namespace's, names for its traffic, where there
    /// is such a waypoint.
    pub fn waypoint_of(&self, namespace: &str, labels: &Labels) -> Option<(ProxyName, Serves)> {
        const USE: &str = "istio.io/use-waypoint";
        const OF: &str = "istio.io/use-waypoint-namespace";
        let of_namespace = self.namespace_labels(namespace);
        let from = [Some(labels), of_namespace]
            .into_iter()
            .flatten()
            .find(|labels| labels.contains_key(USE))?;
        let name = from.get(USE).filter(|name| *name != "none")?;
        let proxy = ProxyName {
            namespace: from.get(OF).cloned().unwrap_or_else(|| namespace.to_owned()),
            name: name.clone(),
        };
        let serves = self.waypoint(&proxy)?;
        // Whoever is served by it is judged by it, and by what is said where it is: that is not for others to
        // choose.
        let admitted = ingress::admits(*self, serves.admits.as_ref(), &proxy.namespace, namespace);
        admitted.then_some((proxy, serves))
    }

    /// The waypoint of a Service or ServiceEntry.
    pub fn waypoint_of_service(&self, o: &Object) -> Option<ProxyName> {
        // A waypoint is not reached through a waypoint.
        if self
            .waypoint(&ProxyName { namespace: o.key.namespace.clone(), name: o.key.name.clone() })
            .is_some()
        {
            return None;
        }
        let (proxy, serves) = self.waypoint_of(&o.key.namespace, &o.meta.labels)?;
        serves.services.then_some(proxy)
    }
}

/// The label of a proxy's pods: the Gateway that they stand for.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// What a Gateway's object says that it serves, if it stands for a waypoint.
pub fn serves(o: &Object) -> Option<Serves> {
    let Spec::KubernetesGateway(g) = &o.spec else { return None };
    if !WAYPOINT_CLASSES.contains(&g.gateway_class_name.as_str()) {
        return None;
    }
    let kind = o.meta.labels.get("istio.io/waypoint-for").map(String::as_str);
    let services = !matches!(kind, Some("workload" | "none"));
    let mesh = g.listeners.iter().find(|l| l.protocol == "HBONE");
    let admits = mesh.and_then(|l| l.allowed_routes.as_ref()?.namespaces.clone());
    Some(Serves { services, admits })
}

/// By `appProtocol`, or by the port's name up to the first dash, as Istio reads them: in any case.
pub fn protocol(name: &str, app_protocol: &str) -> Protocol {
    let by_name = name.split('-').next().unwrap_or_default();
    let said = if app_protocol.is_empty() { by_name } else { app_protocol };
    match &*said.to_ascii_lowercase() {
        "http" | "kubernetes.io/ws" => Protocol::Http1,
        "http2" | "kubernetes.io/h2c" => Protocol::Http2,
        "grpc" | "grpc-web" => Protocol::Grpc,
        "tcp" | "mongo" | "mysql" | "redis" => Protocol::Tcp,
        "tls" | "https" | "kubernetes.io/wss" => Protocol::Tls,
        _ => Protocol::Detect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_port_speaks_is_its_app_protocol_or_the_beginning_of_its_name() {
        for (name, said, wanted) in [
            ("http-web", "", Protocol::Http1),
            ("HTTP", "", Protocol::Http1),
            ("web", "http", Protocol::Http1),
            ("web", "kubernetes.io/ws", Protocol::Http1),
            ("http", "kubernetes.io/h2c", Protocol::Http2),
            ("http2", "", Protocol::Http2),
            ("http", "grpc", Protocol::Grpc),
            ("grpc-web-x", "", Protocol::Grpc),
            ("http", "tcp", Protocol::Tcp),
            ("mysql", "", Protocol::Tcp),
            ("web", "kubernetes.io/wss", Protocol::Tls),
            ("https", "", Protocol::Tls),
            // What is not known says nothing, whatever the name.
            ("http", "example.com/own", Protocol::Detect),
            ("web", "", Protocol::Detect),
            ("", "", Protocol::Detect),
        ] {
            assert_eq!(protocol(name, said), wanted, "{name:?} {said:?}");
        }
    }
}
