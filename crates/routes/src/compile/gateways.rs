//! Istio's Gateways: what a gateway's proxies listen on, and the hosts that VirtualServices bind to
//! them. A host of a gateway is a unit as a service of a waypoint is; its namespace is
//! `gateway:<port>`, which no Kubernetes namespace can be called.

use super::{
    Changed,
    credential::credential,
    http::{Resolved, Scope},
    ingress,
    select::{Rules, age},
    tcp,
    view::View,
};
use crate::{
    names::{ProxyName, ServiceName, exported, matches, patterns, whole},
    proto,
};
use istio_api::{
    Kind, Labels, Object, ObjectKey, Spec, TargetPort,
    istio::{
        gateway::{Gateway, Server, ServerTlsMode, ServerTlsSettings, TlsProtocol},
        virtual_service::VirtualService,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The namespace of a gateway's hosts.
pub fn unit_namespace(port: u16) -> String {
    format!("gateway:{port}")
}

/// A gateway's proxy, compiled: whole, or as far as VirtualServices have changed.
#[derive(Default)]
pub struct Compiled {
    pub listeners: BTreeMap<u16, proto::Listener>,
    pub hosts: BTreeMap<ServiceName, proto::HostTable>,
    /// The hosts that were looked at, where it is not all.
    pub looked_at: Option<BTreeSet<ServiceName>>,
    /// Gateways with servers whose port takes something else already, and the port.
    pub refused: BTreeSet<(ObjectKey, u16)>,
}

/// Hosts of VirtualServices, in full, each with the namespace of its rule.
pub type Named = BTreeSet<(String, String)>;

/// The hosts that changes name, if nothing else of a gateway can be another after them: those of
/// VirtualServices, but for delegates, which are part of others.
pub fn named(view: View<'_>, changes: &[Changed<'_>]) -> Option<Named> {
    let mut all = Named::new();
    for c in changes {
        for o in [c.old, c.new].into_iter().flatten().filter(|o| concerns(c.key.kind, o)) {
            match &o.spec {
                // Hosts are looked up by whole labels: with a part of one everything is looked at.
                Spec::VirtualService(v)
                    if !v.hosts.is_empty()
                        && v.hosts
                            .iter()
                            .all(|h| !h.starts_with('*') || h == "*" || h.starts_with("*.")) =>
                {
                    let own = &c.key.namespace;
                    all.extend(v.hosts.iter().map(|h| (whole(h, own, view.domain), own.clone())));
                }
                _ => return None,
            }
        }
    }
    Some(all)
}

/// The gateways' proxies: pods that carry a gateway's name and are no waypoint's.
pub fn proxies(view: View<'_>, rules: &Rules) -> BTreeMap<ProxyName, Labels> {
    let mut out = BTreeMap::new();
    for o in rules.gateway_pods(view) {
        let Some(name) = o.meta.labels.get(super::GATEWAY_NAME) else { continue };
        let proxy = ProxyName { namespace: o.key.namespace.clone(), name: name.clone() };
        if view.waypoint(&proxy).is_none() {
            out.entry(proxy).or_insert_with(|| o.meta.labels.clone());
        }
    }
    out
}

/// A server of a Gateway that binds a proxy.
struct Bound<'a> {
    object: &'a Object,
    server: &'a Server,
    /// As the Gateway says, and as clients see it.
    port: u16,
    /// What the proxy listens on.
    listens: u16,
}

/// What goes through a server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carries {
    Http,
    /// TLS that goes on as it comes.
    Passed,
    /// Bytes within TLS that ends here.
    Ended,
    Bytes,
}

/// What a port takes of all who connect to it: which it is nobody can tell from the first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Takes {
    Http,
    Tls,
    Bytes,
}

impl Bound<'_> {
    fn takes(&self) -> Takes {
        match self.carries() {
            Carries::Bytes => Takes::Bytes,
            Carries::Passed | Carries::Ended => Takes::Tls,
            Carries::Http if self.certified().is_some() => Takes::Tls,
            Carries::Http => Takes::Http,
        }
    }

    /// The TLS that ends here, but for a port that only sends clients to another.
    fn certified(&self) -> Option<&ServerTlsSettings> {
        let protocol = self.server.port.as_ref().map(|p| p.protocol.to_ascii_uppercase());
        let redirects = protocol.as_deref() != Some("HTTPS");
        self.server.tls.as_ref().filter(|tls| !(tls.https_redirect && redirects))
    }

    fn carries(&self) -> Carries {
        let protocol = self.server.port.as_ref().map(|p| p.protocol.to_ascii_uppercase());
        let passed = self.server.tls.as_ref().is_none_or(|t| t.mode == ServerTlsMode::Passthrough);
        match protocol.as_deref().unwrap_or_default() {
            "HTTPS" | "TLS" if passed => Carries::Passed,
            "TLS" => Carries::Ended,
            "TCP" | "MONGO" | "MYSQL" | "REDIS" => Carries::Bytes,
            _ => Carries::Http,
        }
    }

    /// Where nobody says which host is meant, all are one.
    fn table_of(&self, host: String) -> ServiceName {
        let all = self.carries() == Carries::Bytes;
        let hostname = if all { "*".to_owned() } else { host };
        ServiceName { namespace: unit_namespace(self.listens), hostname }
    }
}

/// As Istio has it, a Gateway names the port of the proxies' Service, and the proxies listen on what
/// that port leads to; where no Service has the port, on the port itself.
pub fn listens(view: View<'_>, proxy: &ProxyName, labels: &Labels, port: u16) -> u16 {
    let target = |o: &Arc<Object>| {
        let Spec::Service(s) = &o.spec else { return None };
        let selects = !s.spec.selector.is_empty()
            && s.spec.selector.iter().all(|(k, v)| labels.get(k) == Some(v));
        let own = s.spec.ports.iter().find(|p| p.port == port)?;
        match &own.target_port {
            Some(TargetPort::Number(n)) if selects && *n != 0 => Some(*n),
            _ => None,
        }
    };
    view.in_namespace(Kind::Service, &proxy.namespace).find_map(target).unwrap_or(port)
}

pub fn compile(
    view: View<'_>,
    rules: &Rules,
    proxy: &ProxyName,
    labels: &Labels,
    policies: &dyn Fn(&ProxyName, &Labels) -> Vec<proto::HttpPolicy>,
    only: Option<&Named>,
) -> Compiled {
    let mut out = Compiled::default();
    let (servers, refused) = servers(view, proxy, labels);
    out.refused = refused.iter().map(|b| (b.object.key.clone(), b.port)).collect();
    let policies = policies(proxy, labels);
    // A table may be of several servers, and each has its part of it.
    out.looked_at =
        only.map(|named| servers.iter().flat_map(|b| tables(b, &servers, named)).collect());
    let only = out.looked_at.clone();
    for b in &servers {
        let listener = out.listeners.entry(b.listens).or_insert_with(|| proto::Listener {
            port: u32::from(b.listens),
            ..proto::Listener::default()
        });
        listen(view, proxy, b, listener);
        hosts(view, rules, proxy, b, &servers, &policies, only.as_ref(), &mut out);
    }
    ingress::open(view, rules, proxy, labels, &policies, only.as_ref(), &mut out);
    out
}

/// The servers that bind a proxy, the oldest Gateway's first, and those that cannot be: their port
/// takes something else already. The proxy's own Gateway of the Gateway API comes before all.
fn servers<'a>(
    view: View<'a>,
    proxy: &ProxyName,
    labels: &Labels,
) -> (Vec<Bound<'a>>, Vec<Bound<'a>>) {
    let mut gateways: Vec<(&Arc<Object>, &Gateway)> = view
        .of_kind(Kind::Gateway)
        .filter_map(|o| match &o.spec {
            Spec::Gateway(g) if g.selector.iter().all(|(k, v)| labels.get(k) == Some(v)) => {
                Some((o, &**g))
            }
            _ => None,
        })
        .collect();
    gateways.sort_by(|(a, _), (b, _)| age(a).cmp(&age(b)));
    let mut takes = ingress::takes(view, proxy, labels);
    gateways
        .into_iter()
        .flat_map(|(o, g)| g.servers.iter().map(move |s| (o, s)))
        .filter_map(|(object, server)| {
            let port = server.port.as_ref()?;
            let port = u16::try_from(port.number).ok().filter(|p| *p != 0)?;
            Some(Bound { object, server, port, listens: listens(view, proxy, labels, port) })
        })
        .partition(|b| *takes.entry(b.listens).or_insert(b.takes()) == b.takes())
}

fn listen(view: View<'_>, proxy: &ProxyName, b: &Bound<'_>, listener: &mut proto::Listener) {
    let hosts: Vec<String> = b.server.hosts.iter().map(|h| host_of(h).to_owned()).collect();
    match b.carries() {
        Carries::Bytes => listener.bytes = true,
        Carries::Passed => listener.passed.extend(hosts.iter().map(|h| h.to_ascii_lowercase())),
        Carries::Http | Carries::Ended => {}
    }
    if matches!(b.carries(), Carries::Bytes | Carries::Passed) {
        return;
    }
    let Some(tls) = b.certified() else {
        if b.server.tls.is_some() {
            listener.redirected.extend(hosts);
        }
        return;
    };
    let mut certificate = proto::Certificate {
        hosts,
        client_optional: tls.mode == ServerTlsMode::OptionalMutual,
        bytes: b.carries() == Carries::Ended,
        only_tls13: tls.min_protocol_version == TlsProtocol::Tlsv13,
        ..proto::Certificate::default()
    };
    match credential(view, proxy, &tls.credential_name) {
        Ok(c) => {
            (certificate.chain_pem, certificate.key_pem) = (c.chain_pem, c.key_pem);
            if matches!(tls.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual) {
                match c.roots_pem {
                    Some(roots) => certificate.client_roots_pem = roots,
                    None => {
                        certificate.broken =
                            format!("Secret {} has no ca.crt", tls.credential_name);
                    }
                }
            }
        }
        Err(why) => certificate.broken = why,
    }
    listener.certificates.push(certificate);
}

/// `namespace/host` or `host`.
fn host_of(h: &str) -> &str {
    h.split_once('/').map_or(h, |(_, host)| host)
}

/// The hosts that a server takes of a VirtualService's, of that namespace: of both, the more
/// specific. Where TLS ends, or goes on, a host is that server's alone which is the most specific for
/// it: its clients have been asked for what it asks.
fn common<'a>(
    b: &'a Bound<'_>,
    servers: &'a [Bound<'_>],
    host: &'a str,
    namespace: &'a str,
) -> impl Iterator<Item = String> + 'a {
    let both = move |h: &String| {
        let (from, pattern) = h.split_once('/').unwrap_or(("*", h));
        let seen = match from {
            "*" => true,
            "." => b.object.key.namespace == namespace,
            other => other == namespace,
        };
        let pattern = pattern.to_ascii_lowercase();
        let common = if pattern == host || matches(&pattern, host) {
            host.to_owned()
        } else if matches(host, &pattern) {
            pattern.clone()
        } else {
            return None;
        };
        let is_own = || b.takes() != Takes::Tls || pattern == owner(servers, b.listens, &common);
        (seen && is_own()).then_some(common)
    };
    b.server.hosts.iter().filter_map(both)
}

/// The most specific of the hosts of a port's servers that match `host`.
fn owner(servers: &[Bound<'_>], listens: u16, host: &str) -> String {
    let own = servers.iter().filter(|b| b.listens == listens).flat_map(|b| &b.server.hosts);
    let own: BTreeSet<String> = own.map(|h| host_of(h).to_ascii_lowercase()).collect();
    patterns(host).find(|p| own.contains(p)).unwrap_or_default()
}

/// The tables of a server that these hosts are part of.
fn tables(b: &Bound<'_>, servers: &[Bound<'_>], named: &Named) -> Vec<ServiceName> {
    let of = |(host, namespace): &(String, String)| {
        common(b, servers, host, namespace).map(|h| b.table_of(h)).collect::<Vec<_>>()
    };
    named.iter().flat_map(of).collect()
}

#[allow(clippy::too_many_arguments)]
fn hosts(
    view: View<'_>,
    rules: &Rules,
    proxy: &ProxyName,
    b: &Bound<'_>,
    servers: &[Bound<'_>],
    policies: &[proto::HttpPolicy],
    only: Option<&BTreeSet<ServiceName>>,
    out: &mut Compiled,
) {
    let name = format!("{}/{}", b.object.key.namespace, b.object.key.name);
    let candidates: Vec<&Arc<Object>> = match only {
        // Where all hosts are one, each has its part in it.
        Some(only) if b.carries() != Carries::Bytes => {
            let hosts = only.iter().map(|s| s.hostname.clone()).collect();
            rules.virtual_services_about(view, &hosts)
        }
        _ => view.of_kind(Kind::VirtualService).collect(),
    };
    let mut bound: Vec<(&Arc<Object>, &VirtualService)> = candidates
        .into_iter()
        .filter_map(|o| match &o.spec {
            Spec::VirtualService(v) => Some((o, &**v)),
            _ => None,
        })
        .filter(|(o, v)| {
            let own = &o.key.namespace;
            let names = |g: &String| *g == name || !g.contains('/') && format!("{own}/{g}") == name;
            v.gateways.iter().any(names) && exported(&v.export_to, own, &proxy.namespace)
        })
        .collect();
    bound.sort_by(|(a, _), (b, _)| age(a).cmp(&age(b)));
    for (o, v) in bound {
        // The same host twice in one rule is one.
        let own = v.hosts.iter().map(|h| whole(h, &o.key.namespace, view.domain));
        let hosts: BTreeSet<String> = own
            .flat_map(|h| common(b, servers, &h, &o.key.namespace).collect::<Vec<_>>())
            .collect();
        for host in hosts {
            let key = b.table_of(host);
            if only.is_some_and(|only| !only.contains(&key)) {
                continue;
            }
            let mut used = BTreeSet::<ObjectKey>::new();
            let mut scope = Scope {
                view,
                rules,
                proxy,
                gateway: &name,
                port: b.port,
                used: &mut used,
                resolved: Resolved::default(),
            };
            let (mut http, mut tcp) = (Vec::new(), Vec::new());
            let protocol = match b.carries() {
                Carries::Http => {
                    http = scope.http_routes(o, v);
                    proto::Protocol::Http1
                }
                Carries::Passed => {
                    tcp = tcp::of_tls(&scope, o, v);
                    proto::Protocol::Tls
                }
                Carries::Ended | Carries::Bytes => {
                    tcp = tcp::of_tcp(&scope, o, v);
                    proto::Protocol::Tcp
                }
            };
            let table = ingress::table(out, key, &b.object.key.name, policies);
            // Rules of one host are one, the older first.
            if let Some(port) = table.ports.first_mut() {
                port.protocol = protocol as i32;
                port.http.extend(http);
                port.tcp.extend(tcp);
            }
        }
    }
}

/// Whether a gateway may be another after a change of such an object.
pub fn concerns(kind: Kind, object: &Object) -> bool {
    match kind {
        Kind::Gateway
        | Kind::VirtualService
        | Kind::DestinationRule
        | Kind::Service
        | Kind::ServiceEntry
        | Kind::Secret
        | Kind::KubernetesGateway
        | Kind::AuthorizationPolicy
        | Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::ReferenceGrant
        | Kind::Namespace
        | Kind::MeshConfig => true,
        Kind::Pod => object.meta.labels.contains_key(super::GATEWAY_NAME),
        _ => false,
    }
}
