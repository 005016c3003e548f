//! VirtualService's `tcp` and `tls`.

use super::http::Scope;
use crate::{names::ServiceName, proto};
use istio_api::{
    Object,
    istio::virtual_service::{RouteDestination, TcpRoute, TlsRoute, VirtualService},
};

/// Routes that can match at this port: by SNI first, which is known before anything else.
pub fn routes(scope: &Scope<'_>, o: &Object, v: &VirtualService) -> Vec<proto::TcpRoute> {
    let mut all = of_tls(scope, o, v);
    all.extend(of_tcp(scope, o, v));
    all
}

fn here(scope: &Scope<'_>, o: &Object, port: u32, gateways: &[String]) -> bool {
    (port == 0 || port == u32::from(scope.port))
        && (gateways.is_empty() || gateways.iter().any(|g| scope.is_gateway(g, &o.key.namespace)))
}

fn route(
    scope: &Scope<'_>,
    o: &Object,
    matches: Vec<proto::TcpMatch>,
    given: bool,
    to: &[RouteDestination],
) -> Option<proto::TcpRoute> {
    let possible = !given || !matches.is_empty();
    possible.then(|| proto::TcpRoute {
        origin: format!("{}/{}", o.key.namespace, o.key.name),
        matches,
        destinations: destinations(scope, o, to),
    })
}

/// By the name that a TLS client asks for.
pub fn of_tls(scope: &Scope<'_>, o: &Object, v: &VirtualService) -> Vec<proto::TcpRoute> {
    let of_rule = |r: &TlsRoute| {
        let matches = r
            .r#match
            .iter()
            .filter(|m| here(scope, o, m.port, &m.gateways))
            .map(|m| proto::TcpMatch {
                sni_hosts: m.sni_hosts.iter().map(|h| h.to_ascii_lowercase()).collect(),
                destination_subnets: m.destination_subnets.clone(),
                source_labels: m.source_labels.clone(),
                source_namespace: m.source_namespace.clone(),
            })
            .collect();
        route(scope, o, matches, !r.r#match.is_empty(), &r.route)
    };
    v.tls.iter().filter_map(of_rule).collect()
}

pub fn of_tcp(scope: &Scope<'_>, o: &Object, v: &VirtualService) -> Vec<proto::TcpRoute> {
    let of_rule = |r: &TcpRoute| {
        let matches = r
            .r#match
            .iter()
            .filter(|m| here(scope, o, m.port, &m.gateways))
            .map(|m| proto::TcpMatch {
                sni_hosts: Vec::new(),
                destination_subnets: m.destination_subnets.clone(),
                source_labels: m.source_labels.clone(),
                source_namespace: m.source_namespace.clone(),
            })
            .collect();
        route(scope, o, matches, !r.r#match.is_empty(), &r.route)
    };
    v.tcp.iter().filter_map(of_rule).collect()
}

fn destinations(
    scope: &Scope<'_>,
    o: &Object,
    to: &[RouteDestination],
) -> Vec<proto::WeightedDestination> {
    let alone = to.len() == 1;
    to.iter()
        .map(|d| proto::WeightedDestination {
            to: d.destination.as_ref().map(|d| scope.destination(d, &o.key.namespace)),
            weight: if alone { 1 } else { u32::try_from(d.weight).unwrap_or(0) },
            ..proto::WeightedDestination::default()
        })
        .collect()
}

pub fn default_route(service: &ServiceName, port: u16) -> proto::TcpRoute {
    proto::TcpRoute {
        origin: service.to_string(),
        matches: Vec::new(),
        destinations: vec![proto::WeightedDestination {
            to: Some(proto::DestinationRef {
                namespace: service.namespace.clone(),
                hostname: service.hostname.clone(),
                port: u32::from(port),
                ..proto::DestinationRef::default()
            }),
            weight: 1,
            ..proto::WeightedDestination::default()
        }],
    }
}
