//! Objects that are good and do nothing: nobody serves what they are about.

use super::{Compiler, policy, select, view::View};
use crate::names::whole;
use istio_api::{Kind, Object, ObjectKey, Resolution, Spec};
use std::collections::BTreeSet;

/// An object that does nothing, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Idle {
    pub key: ObjectKey,
    pub path: &'static str,
    pub found: String,
    pub remedy: &'static str,
}

impl Compiler {
    /// What has no effect as things are. An AuthorizationPolicy among it guards nothing.
    pub fn idle(&self, view: View<'_>) -> Vec<Idle> {
        let policies = self.rules.targeted(view).filter_map(|o| self.idle_policy(view, o));
        let rules = view.of_kind(Kind::VirtualService).filter_map(|o| self.idle_routes(view, o));
        let entries = view.of_kind(Kind::ServiceEntry).filter_map(|o| self.idle_names(view, o));
        let routes = view.of_kind(Kind::HttpRoute).chain(view.of_kind(Kind::GrpcRoute));
        let routes = routes.filter_map(|o| self.idle_route(view, o));
        let servers: BTreeSet<_> = self.gateways.values().flat_map(|g| &g.refused).collect();
        let servers = servers.into_iter().map(idle_server);
        let telling = super::telemetry::idle(view, &self.rules).into_iter().map(idle_telling);
        let objects = policies.chain(rules).chain(entries).chain(routes);
        objects.chain(servers).chain(telling).collect()
    }

    fn idle_route(&self, view: View<'_>, o: &Object) -> Option<Idle> {
        let proxies = super::gateways::proxies(view, &self.rules);
        let served = super::route_api::parents(o).any(|p| {
            if p.is_gateway() {
                proxies.keys().any(|g| g.namespace == p.namespace && g.name == p.name)
            } else {
                self.by_hostname.contains_key(&whole(p.name, p.namespace, view.domain))
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
        // Nearly all name a Service, which is found by its name.
        let service = p.target_ref.iter().chain(&p.target_refs).any(|t| {
            let named = || whole(&t.name, &o.key.namespace, view.domain);
            t.kind == "Service" && self.by_hostname.contains_key(&named())
        });
        let of_unit =
            service || self.units.keys().any(|unit| policy::binds(view, &self.rules, o, unit));
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
