//! Objects that are good and do nothing: nobody serves what they are about.

use super::{Changed, Compiler, policy, route_api, select, view::View};
use crate::names::whole;
use istio_api::{Kind, Object, ObjectKey, Resolution, Spec};
use std::collections::{BTreeMap, BTreeSet};

/// An object that does nothing, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Idle {
    pub key: ObjectKey,
    pub path: &'static str,
    pub found: String,
    pub remedy: &'static str,
}

/// What is known of it, and what may have made it wrong: to ask every object after each change took
/// some 60 ms with 10,000 of them.
#[derive(Default)]
pub(super) struct Known {
    idle: BTreeMap<ObjectKey, Idle>,
    /// Hosts that a waypoint has begun or ceased to serve.
    pub served: BTreeSet<String>,
    /// Hosts that somebody has begun or ceased to send to.
    pub sent_to: BTreeSet<String>,
}

impl Compiler {
    /// What has no effect as things are. An AuthorizationPolicy among it guards nothing.
    pub fn idle(&self, view: View<'_>) -> Vec<Idle> {
        let servers: BTreeSet<_> = self.gateways.values().flat_map(|g| &g.refused).collect();
        let servers = servers.into_iter().map(idle_server);
        let telling = super::telemetry::idle(view, &self.rules).into_iter().map(idle_telling);
        self.known.idle.values().cloned().chain(servers).chain(telling).collect()
    }

    /// Asks those again whom changes concern. `of_proxies`: there are other gateways than before.
    /// The answer is how many.
    pub(super) fn judge(
        &mut self,
        view: View<'_>,
        changes: &[&Changed<'_>],
        of_proxies: bool,
    ) -> usize {
        let served = std::mem::take(&mut self.known.served);
        let sent_to = std::mem::take(&mut self.known.sent_to);
        let changed = changes.iter().filter(|c| may_be_idle(c.key.kind));
        let mut asked: BTreeSet<ObjectKey> = changed.map(|c| c.key.clone()).collect();
        let about = self.rules.virtual_services_about(view, &served).into_iter();
        asked.extend(about.map(|o| o.key.clone()));
        for host in &served {
            asked.extend(self.rules.routes(view, host).map(|o| o.key.clone()));
        }
        for host in served.union(&sent_to) {
            asked.extend(self.rules.objects_of(host).cloned());
        }
        // What a policy names may be another's name now; a waypoint's class is the whole mesh's to name.
        let of_class =
            |c: &&Changed<'_>| matches!(c.key.kind, Kind::KubernetesGateway | Kind::MeshConfig);
        let any = of_proxies || !served.is_empty() || changes.iter().any(of_class);
        let is_target =
            |c: &&&Changed<'_>| matches!(c.key.kind, Kind::Service | Kind::ServiceEntry);
        let of: BTreeSet<&str> =
            changes.iter().filter(is_target).map(|c| c.key.namespace.as_str()).collect();
        let targeted = self.rules.targeted(view).map(|o| &o.key);
        asked.extend(targeted.filter(|key| any || of.contains(key.namespace.as_str())).cloned());
        if of_proxies {
            let routes = view.of_kind(Kind::HttpRoute).chain(view.of_kind(Kind::GrpcRoute));
            asked.extend(routes.map(|o| o.key.clone()));
        }
        let count = asked.len();
        for key in asked {
            let idle = view.objects.get(&key).and_then(|o| match key.kind {
                Kind::VirtualService => self.idle_routes(view, o),
                Kind::ServiceEntry => self.idle_names(view, o),
                Kind::HttpRoute | Kind::GrpcRoute => self.idle_route(view, o),
                Kind::AuthorizationPolicy => self.idle_policy(view, o),
                _ => None,
            });
            match idle {
                Some(idle) => self.known.idle.insert(key, idle),
                None => self.known.idle.remove(&key),
            };
        }
        count
    }

    fn idle_route(&self, view: View<'_>, o: &Object) -> Option<Idle> {
        let proxies = super::gateways::proxies(view, &self.rules);
        let served = route_api::parents(o).any(|p| {
            if p.is_gateway() {
                proxies.keys().any(|g| g.namespace == p.namespace && g.name == p.name)
            } else {
                p.is_service()
                    && self.by_hostname.contains_key(&whole(p.name, p.namespace, view.domain))
            }
        });
        (!served).then(|| Idle {
            key: o.key.clone(),
            path: "spec.parentRefs",
            found: "no service of a waypoint, and no Gateway that has a proxy".to_owned(),
            remedy: "it routes nothing: put istio.io/use-waypoint on the service or its namespace, or \
                     start the Gateway's pods, which carry gateway.networking.k8s.io/gateway-name",
        })
    }

    /// A host outside that is found by its name takes a proxy that resolves it.
    fn idle_names(&self, view: View<'_>, o: &Object) -> Option<Idle> {
        let Spec::ServiceEntry(s) = &o.spec else { return None };
        if !matches!(s.resolution, Resolution::Dns | Resolution::DnsRoundRobin) {
            return None;
        }
        let served = view.services_of(o).iter().any(|s| {
            let host = &s.name.hostname;
            let index = [&self.by_hostname, &self.destinations_by_hostname];
            index.iter().any(|i| i.get(host).is_some_and(|u| u.iter().any(|u| u.1 == s.name)))
        });
        (!served).then(|| Idle {
            key: o.key.clone(),
            path: "spec.resolution",
            found: format!("{:?}, and no waypoint or gateway sends there", s.resolution),
            remedy: "whoever asks for the host resolves it, and its connections pass through: put \
                     istio.io/use-waypoint on the ServiceEntry or its namespace",
        })
    }

    fn idle_policy(&self, view: View<'_>, o: &Object) -> Option<Idle> {
        let Spec::AuthorizationPolicy(p) = &o.spec else { return None };
        if !p.has_targets() {
            return None;
        }
        // Nearly all name a Service, which is found by its name.
        let service = p.target_ref.iter().chain(&p.target_refs).any(|t| {
            let named = || whole(&t.name, &o.key.namespace, view.domain);
            t.kind == "Service" && self.by_hostname.contains_key(&named())
        });
        let mut units = self.by_hostname.values().flatten();
        let of_unit = service || units.any(|unit| policy::binds(view, &self.rules, o, unit));
        let of_gateway = || {
            let proxies = super::gateways::proxies(view, &self.rules);
            proxies.iter().any(|(p, labels)| policy::binds_gateway(view, o, p, labels))
        };
        (!of_unit && !of_gateway()).then(|| Idle {
            key: o.key.clone(),
            path: "spec.targetRefs",
            found: "nothing that a waypoint or gateway serves".to_owned(),
            remedy: "it guards nothing: put istio.io/use-waypoint on the service or its namespace, \
                     or bind the policy to pods with a selector",
        })
    }

    fn idle_routes(&self, view: View<'_>, o: &Object) -> Option<Idle> {
        let Spec::VirtualService(v) = &o.spec else { return None };
        // Delegates and gateways' rules are somebody else's to use.
        if v.hosts.is_empty() || v.gateways.iter().any(|g| g != select::MESH) {
            return None;
        }
        let hosts = select::Rules::hosts_of(view, o);
        let served = hosts.iter().any(|h| !self.units_matching(h).is_empty());
        (!served).then(|| Idle {
            key: o.key.clone(),
            path: "spec.hosts",
            found: format!("{hosts:?}, which no waypoint serves"),
            remedy: "it routes nothing: put istio.io/use-waypoint on the service or its namespace",
        })
    }
}

/// What [`Compiler::judge`] asks; servers and Telemetry are few.
fn may_be_idle(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::VirtualService
            | Kind::ServiceEntry
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::AuthorizationPolicy
    )
}

fn idle_telling(key: ObjectKey) -> Idle {
    Idle {
        key,
        path: "spec",
        found: "no waypoint or gateway that goes by it".to_owned(),
        remedy: "it changes nothing: of several about the same the oldest counts, and agents tell of \
                 connections what they always tell",
    }
}

fn idle_server((key, port): &(ObjectKey, u16)) -> Idle {
    Idle {
        key: key.clone(),
        path: "spec.servers.port",
        found: format!("port {port}, where an older Gateway's server takes another protocol"),
        remedy: "the server takes nothing: plaintext HTTP, TLS and TCP cannot share a port of a \
                 gateway; give it another port, or pods of its own",
    }
}
