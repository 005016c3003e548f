//! What became of each object, as its status says it. Pure: objects and diagnostics in, conditions out.

use crate::snapshot::Snapshot;
use istio_api::{
    Diagnostic, Kind, Object, ObjectKey, Spec, gateway_api::http_route::ParentReference,
};
use routes::{
    compile::{GATEWAY_NAME, WAYPOINT_CLASSES, granted},
    names::ProxyName,
};
use std::collections::{BTreeMap, HashMap};

/// Whose conditions in a route's `parents` ours are, and whose classes.
pub const CONTROLLER: &str = "culvert.io/gateway-controller";

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    pub r#type: &'static str,
    pub met: bool,
    pub reason: &'static str,
    pub message: String,
}

/// The part of an object's status that is ours.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict {
    Conditions(Vec<Condition>),
    Gateway { conditions: Vec<Condition>, listeners: Vec<ListenerVerdict>, addresses: Vec<String> },
    Route(Vec<(ParentReference, Vec<Condition>)>),
}

#[derive(Clone, PartialEq, Debug)]
pub struct ListenerVerdict {
    pub name: String,
    pub attached: usize,
    pub conditions: Vec<Condition>,
}

/// Istio's name for what a Service says of its waypoint.
const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";

/// Kinds of Istio's whose status says whether they are obeyed.
const JUDGED: [Kind; 8] = [
    Kind::VirtualService,
    Kind::DestinationRule,
    Kind::Gateway,
    Kind::ServiceEntry,
    Kind::WorkloadEntry,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::Telemetry,
];

/// With the generation of the object that it is about, where that is known.
pub type Judged = (Option<i64>, Verdict);

/// Of every object whose status is ours to write. `refused` has the generation of those that are not taken as
/// they are now.
pub fn verdicts(
    snapshot: &Snapshot,
    domain: &str,
    diagnostics: &[Diagnostic],
    refused: &BTreeMap<ObjectKey, i64>,
) -> BTreeMap<ObjectKey, Judged> {
    let mut told: HashMap<&str, Vec<&Diagnostic>> = HashMap::new();
    for d in diagnostics {
        told.entry(d.object.as_str()).or_default().push(d);
    }
    let mut out = BTreeMap::new();
    let generation = |o: &ObjectKey, taken: Option<i64>| refused.get(o).copied().or(taken);
    let untaken = told.keys().filter_map(|name| key(name));
    let taken = JUDGED.iter().flat_map(|kind| snapshot.of_kind(*kind)).map(|o| o.key.clone());
    for key in taken.chain(untaken) {
        let object = snapshot.get(&key);
        let about = told.get(key.to_string().as_str()).map_or(&[][..], Vec::as_slice);
        let condition = accepted(condition_type(object.map(|o| &**o)), about);
        let generation = generation(&key, object.and_then(|o| o.meta.generation));
        out.insert(key, (generation, Verdict::Conditions(vec![condition])));
    }
    let judge = Judge { snapshot, domain, told };
    for o in snapshot.of_kind(Kind::HttpRoute).chain(snapshot.of_kind(Kind::GrpcRoute)) {
        if let Some(verdict) = judge.route(o) {
            out.insert(o.key.clone(), (generation(&o.key, o.meta.generation), verdict));
        }
    }
    for o in snapshot.of_kind(Kind::KubernetesGateway) {
        if let Some(verdict) = judge.gateway(o) {
            out.insert(o.key.clone(), (generation(&o.key, o.meta.generation), verdict));
        }
    }
    for o in snapshot.of_kind(Kind::Service) {
        let bound = judge.bound(o);
        // One that is not bound any more says nothing of it.
        if bound.is_some() || says(o, WAYPOINT_BOUND) {
            out.insert(o.key.clone(), (None, Verdict::Conditions(bound.into_iter().collect())));
        }
    }
    out
}

/// Whether there is such a condition in a Service's status.
fn says(o: &Object, condition: &str) -> bool {
    matches!(&o.spec, Spec::Service(s) if s.status.conditions.iter().any(|c| c.r#type == condition))
}

/// A judged object, by the name that diagnostics have for it.
fn key(name: &str) -> Option<ObjectKey> {
    let (kind, name) = name.split_once(' ')?;
    let (namespace, name) = name.split_once('/')?;
    let kind = *JUDGED.iter().find(|k| format!("{k:?}") == kind)?;
    Some(ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() })
}

/// Istio says by whom a policy was taken.
fn condition_type(object: Option<&Object>) -> &'static str {
    match object.map(|o| &o.spec) {
        Some(Spec::AuthorizationPolicy(p)) if p.has_targets() => "WaypointAccepted",
        Some(Spec::AuthorizationPolicy(_)) => "ZtunnelAccepted",
        _ => "Accepted",
    }
}

fn accepted(r#type: &'static str, about: &[&Diagnostic]) -> Condition {
    let words = |errors: bool| {
        let those = about.iter().filter(|d| d.code.is_error() == errors);
        let each = those.map(|d| format!("{}: {}; {}", d.path, d.found, d.remedy));
        each.collect::<Vec<_>>().join("\n")
    };
    let errors = words(true);
    match errors.is_empty() {
        true => Condition { r#type, met: true, reason: "Accepted", message: words(false) },
        false => Condition { r#type, met: false, reason: "Invalid", message: errors },
    }
}

struct Judge<'a> {
    snapshot: &'a Snapshot,
    domain: &'a str,
    told: HashMap<&'a str, Vec<&'a Diagnostic>>,
}

impl Judge<'_> {
    fn told(&self, o: &Object) -> &[&Diagnostic] {
        self.told.get(o.key.to_string().as_str()).map_or(&[], Vec::as_slice)
    }

    /// For each parent that is ours: a Service of the mesh, or a Gateway of a class of ours. A route without any
    /// is judged, too: it may have had one.
    fn route(&self, o: &Object) -> Option<Verdict> {
        let (parents, backends) = parts(o)?;
        let resolved = self.resolved(o, &backends);
        let ours = parents.iter().filter(|p| self.is_ours(o, p));
        let each: Vec<_> =
            ours.map(|p| (p.clone(), vec![self.attached(o, p), resolved.clone()])).collect();
        Some(Verdict::Route(each))
    }

    fn is_ours(&self, o: &Object, p: &ParentReference) -> bool {
        match (p.group.as_str(), p.kind.as_str()) {
            ("" | "core", "Service") => true,
            (_, "" | "Gateway") => {
                let there = self.parent(Kind::KubernetesGateway, o, p);
                there.is_some_and(is_of_our_class)
            }
            _ => false,
        }
    }

    fn parent(&self, kind: Kind, o: &Object, p: &ParentReference) -> Option<&Object> {
        let namespace = if p.namespace.is_empty() { &o.key.namespace } else { &p.namespace };
        let key = ObjectKey { kind, namespace: namespace.clone(), name: p.name.clone() };
        self.snapshot.get(&key).map(|o| &**o)
    }

    fn attached(&self, o: &Object, p: &ParentReference) -> Condition {
        let refused = accepted("Accepted", self.told(o));
        if !refused.met {
            return refused;
        }
        let no =
            |reason, message: String| Condition { r#type: "Accepted", met: false, reason, message };
        if p.kind != "Service" {
            return no(
                "NoMatchingParent",
                "a waypoint takes routes for Services: name the Service as the parent".to_owned(),
            );
        }
        let Some(service) = self.parent(Kind::Service, o, p) else {
            return no("NoMatchingParent", format!("there is no Service {}", p.name));
        };
        let Spec::Service(s) = &service.spec else { return refused };
        let has_port = |port: i32| s.spec.ports.iter().any(|have| i32::from(have.port) == port);
        if let Some(port) = p.port.filter(|port| !has_port(*port)) {
            return no("NoMatchingParent", format!("Service {} has no port {port}", p.name));
        }
        refused
    }

    fn resolved(&self, o: &Object, backends: &[Backend<'_>]) -> Condition {
        let no = |reason, message: String| Condition {
            r#type: "ResolvedRefs",
            met: false,
            reason,
            message,
        };
        for b in backends {
            let namespace = if b.namespace.is_empty() { &o.key.namespace } else { b.namespace };
            match (b.group, b.kind) {
                ("" | "core", "" | "Service") => {}
                ("networking.istio.io", "Hostname") => continue,
                (group, kind) => {
                    return no("InvalidKind", format!("a backend cannot be a {group}/{kind}"));
                }
            }
            let view = self.snapshot.view(self.domain);
            if namespace != o.key.namespace && !granted(view, o, namespace, "Service", b.name) {
                return no(
                    "RefNotPermitted",
                    format!("no ReferenceGrant of {namespace} permits Service {}", b.name),
                );
            }
            if view.get(Kind::Service, namespace, b.name).is_none() {
                return no(
                    "BackendNotFound",
                    format!("there is no Service {namespace}/{}", b.name),
                );
            }
        }
        Condition {
            r#type: "ResolvedRefs",
            met: true,
            reason: "ResolvedRefs",
            message: String::new(),
        }
    }

    /// Of a waypoint.
    fn gateway(&self, o: &Object) -> Option<Verdict> {
        let Spec::KubernetesGateway(g) = &o.spec else { return None };
        if !is_of_our_class(o) {
            return None;
        }
        let accepted = accepted("Accepted", self.told(o));
        let ready = self.snapshot.in_namespace(Kind::Pod, &o.key.namespace).any(|p| {
            let Spec::Pod(pod) = &p.spec else { return false };
            p.meta.labels.get(GATEWAY_NAME) == Some(&o.key.name) && pod.live() && pod.ready()
        });
        let programmed = match ready {
            true => ("Programmed", "a proxy of it is ready".to_owned()),
            false => ("Pending", "no pod of it is ready yet".to_owned()),
        };
        let programmed = Condition {
            r#type: "Programmed",
            met: ready,
            reason: programmed.0,
            message: programmed.1,
        };
        let proxy = ProxyName { namespace: o.key.namespace.clone(), name: o.key.name.clone() };
        let attached = self.routes_through(&proxy);
        let fine = |r#type, reason| Condition { r#type, met: true, reason, message: String::new() };
        let listeners = g.listeners.iter().map(|l| ListenerVerdict {
            name: l.name.clone(),
            attached,
            conditions: vec![
                fine("Accepted", "Accepted"),
                Condition { message: String::new(), ..programmed.clone() },
                fine("ResolvedRefs", "ResolvedRefs"),
                fine("Conflicted", "NoConflicts").unmet(),
            ],
        });
        let listeners = listeners.collect();
        let own = ObjectKey { kind: Kind::Service, ..o.key.clone() };
        let addresses = match self.snapshot.get(&own).map(|o| &o.spec) {
            Some(Spec::Service(s)) if !s.spec.cluster_ip.is_empty() => {
                vec![s.spec.cluster_ip.clone()]
            }
            _ => Vec::new(),
        };
        Some(Verdict::Gateway { conditions: vec![accepted, programmed], listeners, addresses })
    }

    /// Routes whose Service this waypoint stands before.
    fn routes_through(&self, proxy: &ProxyName) -> usize {
        let view = self.snapshot.view(self.domain);
        let is_through = |o: &Object, p: &ParentReference| {
            let service = self.parent(Kind::Service, o, p).filter(|_| p.kind == "Service");
            service.and_then(|s| view.waypoint_of_service(s)).as_ref() == Some(proxy)
        };
        let routes = self.snapshot.of_kind(Kind::HttpRoute);
        let routes = routes.chain(self.snapshot.of_kind(Kind::GrpcRoute));
        routes
            .filter(|o| parts(o).is_some_and(|(all, _)| all.iter().any(|p| is_through(o, p))))
            .count()
    }

    /// Whether the waypoint that a Service, or its namespace, asks for stands before it.
    fn bound(&self, o: &Object) -> Option<Condition> {
        const USE: &str = "istio.io/use-waypoint";
        let of_namespace = || self.snapshot.namespace_labels(&o.key.namespace)?.get(USE);
        let wanted = o.meta.labels.get(USE).or_else(of_namespace).filter(|w| *w != "none")?;
        // A waypoint's own Service is not reached through one.
        if o.meta.labels.contains_key(GATEWAY_NAME) {
            return None;
        }
        let bound = self.snapshot.view(self.domain).waypoint_of_service(o);
        Some(match bound {
            Some(proxy) => Condition {
                r#type: WAYPOINT_BOUND,
                met: true,
                reason: "WaypointAccepted",
                message: format!("bound to waypoint {}/{}", proxy.namespace, proxy.name),
            },
            None => Condition {
                r#type: WAYPOINT_BOUND,
                met: false,
                reason: "WaypointMissing",
                message: format!(
                    "no Gateway {wanted} of a waypoint's class stands before Services there"
                ),
            },
        })
    }
}

impl Condition {
    fn unmet(self) -> Self {
        Self { met: false, ..self }
    }
}

fn is_of_our_class(o: &Object) -> bool {
    matches!(&o.spec, Spec::KubernetesGateway(g)
        if WAYPOINT_CLASSES.contains(&g.gateway_class_name.as_str()))
}

struct Backend<'a> {
    group: &'a str,
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
}

fn parts(o: &Object) -> Option<(&[ParentReference], Vec<Backend<'_>>)> {
    // Two messages with the same fields.
    macro_rules! of {
        ($route:expr) => {
            (
                $route.parent_refs.as_slice(),
                $route
                    .rules
                    .iter()
                    .flat_map(|rule| &rule.backend_refs)
                    .map(|b| Backend {
                        group: &b.group,
                        kind: &b.kind,
                        namespace: &b.namespace,
                        name: &b.name,
                    })
                    .collect(),
            )
        };
    }
    match &o.spec {
        Spec::HttpRoute(r) => Some(of!(r)),
        Spec::GrpcRoute(r) => Some(of!(r)),
        _ => None,
    }
}
