//! Gateway API's GRPCRoute as an HTTPRoute: gRPC's methods are paths, `/<service>/<method>`.

use istio_api::gateway_api::{
    grpc_route::{
        GrpcHeaderMatch, GrpcHeaderMatchType, GrpcMethodMatch, GrpcMethodMatchType,
        GrpcRouteFilter, GrpcRouteFilterType, GrpcRouteSpec,
    },
    http_route::{
        HeaderMatchType, HttpBackendRef, HttpHeaderMatch, HttpPathMatch, HttpRouteFilter,
        HttpRouteFilterType, HttpRouteMatch, HttpRouteRule, HttpRouteSpec, PathMatchType,
    },
};

pub fn as_http(g: &GrpcRouteSpec) -> HttpRouteSpec {
    let rules = g.rules.iter().map(|r| HttpRouteRule {
        name: r.name.clone(),
        matches: r
            .matches
            .iter()
            .map(|m| HttpRouteMatch {
                path: m.method.as_ref().and_then(path_of),
                headers: m.headers.iter().map(header_of).collect(),
                ..HttpRouteMatch::default()
            })
            .collect(),
        filters: r.filters.iter().map(filter_of).collect(),
        backend_refs: r
            .backend_refs
            .iter()
            .map(|b| HttpBackendRef {
                group: b.group.clone(),
                kind: b.kind.clone(),
                name: b.name.clone(),
                namespace: b.namespace.clone(),
                port: b.port,
                weight: b.weight,
                filters: b.filters.iter().map(filter_of).collect(),
            })
            .collect(),
        ..HttpRouteRule::default()
    });
    HttpRouteSpec {
        parent_refs: g.parent_refs.clone(),
        hostnames: g.hostnames.clone(),
        rules: rules.collect(),
    }
}

fn path_of(m: &GrpcMethodMatch) -> Option<HttpPathMatch> {
    let path = |kind, value| Some(HttpPathMatch { r#type: Some(kind), value });
    let any =
        |s: &str, otherwise: &str| if s.is_empty() { otherwise.to_owned() } else { s.to_owned() };
    if m.r#type == Some(GrpcMethodMatchType::RegularExpression) {
        let (service, method) = (any(&m.service, "[^/]+"), any(&m.method, "[^/]+"));
        return path(PathMatchType::RegularExpression, format!("/(?:{service})/(?:{method})"));
    }
    match (m.service.as_str(), m.method.as_str()) {
        ("", "") => None,
        (service, "") => path(PathMatchType::PathPrefix, format!("/{service}")),
        ("", method) => {
            path(PathMatchType::RegularExpression, format!("/[^/]+/{}", regex::escape(method)))
        }
        (service, method) => path(PathMatchType::Exact, format!("/{service}/{method}")),
    }
}

fn header_of(h: &GrpcHeaderMatch) -> HttpHeaderMatch {
    HttpHeaderMatch {
        r#type: h.r#type.map(|t| match t {
            GrpcHeaderMatchType::Exact => HeaderMatchType::Exact,
            GrpcHeaderMatchType::RegularExpression => HeaderMatchType::RegularExpression,
        }),
        name: h.name.clone(),
        value: h.value.clone(),
    }
}

fn filter_of(f: &GrpcRouteFilter) -> HttpRouteFilter {
    HttpRouteFilter {
        r#type: f.r#type.map(|t| match t {
            GrpcRouteFilterType::ResponseHeaderModifier => {
                HttpRouteFilterType::ResponseHeaderModifier
            }
            GrpcRouteFilterType::RequestHeaderModifier => {
                HttpRouteFilterType::RequestHeaderModifier
            }
            GrpcRouteFilterType::RequestMirror => HttpRouteFilterType::RequestMirror,
            GrpcRouteFilterType::ExtensionRef => HttpRouteFilterType::ExtensionRef,
        }),
        request_header_modifier: f.request_header_modifier.clone(),
        response_header_modifier: f.response_header_modifier.clone(),
        request_mirror: f.request_mirror.clone(),
        extension_ref: f.extension_ref.clone(),
        ..HttpRouteFilter::default()
    }
}
