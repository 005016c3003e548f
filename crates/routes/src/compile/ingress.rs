//! Gateway API's Gateways: what their proxies listen on, and the routes that attach to them.

use super::{
    credential::credential,
    gateways::{Compiled, Takes, listens, unit_namespace},
    route_api::{self, Parent, Place, Ranked, in_order, older, parents},
    select::Rules,
    view::View,
};
use crate::{
    names::{ProxyName, ServiceName, matches, patterns},
    proto,
};
use istio_api::{
    Kind, Labels, Object, Spec,
    gateway_api::gateway::{
        GatewaySpec, LabelSelector, LabelSelectorOperator, Listener, RouteNamespaces,
        RouteNamespacesFromNamespaces, TlsModeType,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

fn listeners<'a>(
    view: View<'a>,
    proxy: &ProxyName,
    labels: &Labels,
) -> Vec<(&'a Listener, u16, u16, Takes)> {
    let object = view.get(Kind::KubernetesGateway, &proxy.namespace, &proxy.name);
    let Some(Spec::KubernetesGateway(spec)) = object.map(|o| &o.spec) else { return Vec::new() };
    let mut known = BTreeMap::new();
    let of = |l: &'a Listener| {
        let port = l.port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0)?;
        let takes = match l.protocol.as_str() {
            "HTTP" => Takes::Http,
            "HTTPS" => Takes::Tls,
            _ => return None,
        };
        let listens = listens(view, proxy, labels, port);
        (*known.entry(listens).or_insert(takes) == takes).then_some((l, port, listens, takes))
    };
    spec.listeners.iter().filter_map(of).collect()
}

/// What the ports take that the Gateway of the proxy's name asks for.
pub fn takes(view: View<'_>, proxy: &ProxyName, labels: &Labels) -> BTreeMap<u16, Takes> {
    let all = listeners(view, proxy, labels).into_iter();
    all.map(|(_, _, listens, takes)| (listens, takes)).collect()
}

/// Opens what the Gateway of the proxy's name asks for. `only`: the tables that are looked at.
pub fn open(
    view: View<'_>,
    rules: &Rules,
    proxy: &ProxyName,
    labels: &Labels,
    policies: &[proto::HttpPolicy],
    only: Option<&BTreeSet<ServiceName>>,
    out: &mut Compiled,
) {
    let object = view.get(Kind::KubernetesGateway, &proxy.namespace, &proxy.name);
    let Some(Spec::KubernetesGateway(spec)) = object.map(|o| &o.spec) else { return };
    let mut routes: Vec<&Arc<Object>> =
        view.of_kind(Kind::HttpRoute).chain(view.of_kind(Kind::GrpcRoute)).collect();
    routes.sort_by(|a, b| older(a).cmp(&older(b)));
    let mut hosts: BTreeMap<ServiceName, Vec<Ranked>> = BTreeMap::new();
    let all = listeners(view, proxy, labels);
    for (l, port, listens, takes) in all.iter().copied() {
        let listener = out.listeners.entry(listens).or_insert_with(|| proto::Listener {
            port: u32::from(listens),
            ..proto::Listener::default()
        });
        if let Some(o) = object.filter(|_| takes == Takes::Tls) {
            listener.certificates.extend(certificates(view, o, proxy, spec, l));
        }
        let unit = |hostname: String| ServiceName { namespace: unit_namespace(listens), hostname };
        // A host is the most specific listener's alone: what is not routed there is not routed by a
        // wider one.
        let of_port = all.iter().filter(|(_, _, other, _)| *other == listens);
        let names: BTreeSet<String> = of_port.map(|(l, ..)| pattern(&l.hostname)).collect();
        let own = pattern(&l.hostname);
        let is_own =
            |host: &String| patterns(host).find(|p| names.contains(p)).as_ref() == Some(&own);
        let looked_at = |key: &ServiceName| only.is_none_or(|only| only.contains(key));
        if looked_at(&unit(own.clone())) {
            hosts.entry(unit(own.clone())).or_default();
        }
        let place = Place { view, rules, proxy, port };
        for o in routes.iter().filter(|o| attaches(view, proxy, l, port, o)) {
            let common = common(&l.hostname, route_api::hostnames(o)).into_iter();
            for key in common.filter(is_own).map(unit).filter(looked_at) {
                hosts.entry(key).or_default().extend(place.routes(o));
            }
        }
    }
    for (key, routes) in hosts {
        let table = table(out, key, &proxy.name, policies);
        if let Some(port) = table.ports.first_mut() {
            port.http.splice(0..0, in_order(routes));
        }
    }
}

/// The table of a gateway's host, made where there is none yet.
pub fn table<'a>(
    out: &'a mut Compiled,
    key: ServiceName,
    service_name: &str,
    policies: &[proto::HttpPolicy],
) -> &'a mut proto::HostTable {
    let port = key.namespace.rsplit(':').next().and_then(|p| p.parse().ok()).unwrap_or_default();
    out.hosts.entry(key).or_insert_with_key(|key| proto::HostTable {
        namespace: key.namespace.clone(),
        hostname: key.hostname.clone(),
        service_name: service_name.to_owned(),
        ports: vec![proto::PortTable {
            port,
            protocol: proto::Protocol::Http1 as i32,
            ..proto::PortTable::default()
        }],
        policies: policies.to_vec(),
    })
}

fn pattern(hostname: &str) -> String {
    if hostname.is_empty() { "*".to_owned() } else { hostname.to_ascii_lowercase() }
}

/// The hosts that both have: of two that overlap, the more specific.
fn common(listener: &str, route: &[String]) -> Vec<String> {
    let listener = pattern(listener);
    if route.is_empty() {
        return vec![listener];
    }
    let both = |host: &String| {
        let host = host.to_ascii_lowercase();
        if host == listener || matches(&listener, &host) {
            Some(host)
        } else {
            matches(&host, &listener).then(|| listener.clone())
        }
    };
    let mut all: Vec<String> = route.iter().filter_map(both).collect();
    all.sort();
    all.dedup();
    all
}

fn attaches(view: View<'_>, proxy: &ProxyName, l: &Listener, port: u16, o: &Object) -> bool {
    let names = |p: Parent<'_>| {
        p.is_gateway()
            && p.namespace == proxy.namespace
            && p.name == proxy.name
            && (p.section.is_empty() || p.section == l.name)
            && p.port.is_none_or(|p| p == port)
    };
    let allowed = l.allowed_routes.as_ref();
    let kinds = allowed.map_or(&[][..], |a| &a.kinds);
    let kind = if o.key.kind == Kind::GrpcRoute { "GRPCRoute" } else { "HTTPRoute" };
    let of_group = |group: &str| group.is_empty() || group == route_api::GROUP;
    if !kinds.is_empty() && !kinds.iter().any(|k| k.kind == kind && of_group(&k.group)) {
        return false;
    }
    let from = allowed.and_then(|a| a.namespaces.as_ref());
    admits(view, from, &proxy.namespace, &o.key.namespace) && parents(o).any(names)
}

/// Whether a listener of a Gateway of the namespace `own` takes what is of another: its own, where it says
/// nothing.
pub fn admits(view: View<'_>, from: Option<&RouteNamespaces>, own: &str, namespace: &str) -> bool {
    match from.and_then(|f| f.from).unwrap_or(RouteNamespacesFromNamespaces::Same) {
        RouteNamespacesFromNamespaces::All => true,
        RouteNamespacesFromNamespaces::Same => own == namespace,
        RouteNamespacesFromNamespaces::Selector => {
            let labels = view.get(Kind::Namespace, "", namespace).map(|n| &n.meta.labels);
            match (from.and_then(|f| f.selector.as_ref()), labels) {
                (Some(selector), Some(labels)) => selects(selector, labels),
                _ => false,
            }
        }
    }
}

/// As Kubernetes' label selectors are read.
fn selects(s: &LabelSelector, labels: &Labels) -> bool {
    let expressed = s.match_expressions.iter().all(|e| {
        let value = labels.get(&e.key);
        match e.operator {
            Some(LabelSelectorOperator::In) => value.is_some_and(|v| e.values.contains(v)),
            Some(LabelSelectorOperator::NotIn) => value.is_none_or(|v| !e.values.contains(v)),
            Some(LabelSelectorOperator::Exists) => value.is_some(),
            Some(LabelSelectorOperator::DoesNotExist) => value.is_none(),
            None => false,
        }
    });
    expressed && s.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
}

fn certificates(
    view: View<'_>,
    o: &Object,
    proxy: &ProxyName,
    spec: &GatewaySpec,
    l: &Listener,
) -> Vec<proto::Certificate> {
    let blank = proto::Certificate { hosts: vec![pattern(&l.hostname)], ..Default::default() };
    let broken = |why: String| proto::Certificate { broken: why, ..blank.clone() };
    let refs = l
        .tls
        .as_ref()
        .filter(|t| t.mode != Some(TlsModeType::Passthrough))
        .map_or(&[][..], |t| &t.certificate_refs);
    if refs.is_empty() {
        return vec![broken(format!("listener {} has no certificateRefs", l.name))];
    }
    let clients = client_roots(view, proxy, spec, l);
    let one = |name: &str, namespace: &str| {
        let namespace = if namespace.is_empty() { &proxy.namespace } else { namespace };
        if namespace != proxy.namespace && !route_api::granted(view, o, namespace, "Secret", name) {
            return Err(format!(
                "no ReferenceGrant in {namespace} lets Gateways of {} use its Secret {name}",
                proxy.namespace
            ));
        }
        let owner = ProxyName { namespace: namespace.to_owned(), name: proxy.name.clone() };
        let c = credential(view, &owner, name)?;
        let mut certificate =
            proto::Certificate { chain_pem: c.chain_pem, key_pem: c.key_pem, ..blank.clone() };
        if let Some(clients) = &clients {
            let (roots, optional) = clients.clone()?;
            (certificate.client_roots_pem, certificate.client_optional) = (roots, optional);
        }
        Ok(certificate)
    };
    refs.iter().map(|r| one(&r.name, &r.namespace).unwrap_or_else(broken)).collect()
}

/// Whom clients are to be certified by, and whether they may go without.
fn client_roots(
    view: View<'_>,
    proxy: &ProxyName,
    spec: &GatewaySpec,
    l: &Listener,
) -> Option<Result<(Vec<u8>, bool), String>> {
    use istio_api::gateway_api::gateway::FrontendValidationModeType::AllowInsecureFallback;
    let frontend = spec.tls.as_ref()?.frontend.as_ref()?;
    let own = frontend.per_port.iter().find(|p| p.port == l.port).map(|p| &p.tls);
    let tls = own.unwrap_or(&frontend.default).as_ref()?;
    let validation = tls.validation.as_ref()?;
    let mut roots = Vec::new();
    for r in &validation.ca_certificate_refs {
        let found = match r.kind.as_str() {
            "Secret" => credential(view, proxy, &r.name).and_then(|c| {
                c.roots_pem.ok_or_else(|| format!("Secret {} has no ca.crt", r.name))
            }),
            kind => Err(format!("roots of clients are read from Secrets, not from a {kind}")),
        };
        match found {
            Ok(pem) => roots.extend(pem),
            Err(why) => return Some(Err(why)),
        }
    }
    if roots.is_empty() {
        return Some(Err("caCertificateRefs names no roots of clients".to_owned()));
    }
    Some(Ok((roots, validation.mode == Some(AllowInsecureFallback))))
}
