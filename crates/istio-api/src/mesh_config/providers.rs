//! What Istio finds wrong with extension providers. It takes them all the same, since nobody may use
//! them, and so they are warned of.

use crate::{
    diagnostic::Code, form, gateway::is_gateway_host, istio::mesh_config::ExtensionProvider,
    parse::Found,
};
use std::collections::BTreeSet;

/// Those that Istio has without being told.
const BUILT_IN: [&str; 3] = ["envoy", "prometheus", "stackdriver"];

pub(super) fn is_provider(name: &str, names: &[String]) -> bool {
    BUILT_IN.contains(&name) || names.iter().any(|n| n == name)
}

pub(super) fn providers(all: &[ExtensionProvider], found: &mut Found<'_>) {
    let mut names = BTreeSet::new();
    for (i, p) in all.iter().enumerate() {
        let path = format!("data.mesh.extensionProviders[{i}]");
        let at = format!("{path}.name");
        if p.name.is_empty() {
            found.push(Code::Warning, at, "empty", "nobody can name it: give it a name");
        } else if !names.insert(&p.name) {
            let what = format!("{:?} twice", p.name);
            found.push(Code::Warning, at, what, "each provider has a name of its own");
        }
        provider(p, &path, found);
    }
}

fn provider(p: &ExtensionProvider, path: &str, found: &mut Found<'_>) {
    macro_rules! service {
        ($($field:ident as $name:literal),*) => {
            [$(($name, p.$field.as_ref().map(|to| (to.service.as_str(), to.port)))),*]
        };
    }
    let services = service![
        envoy_ext_authz_http as "envoyExtAuthzHttp",
        envoy_ext_authz_grpc as "envoyExtAuthzGrpc",
        zipkin as "zipkin",
        lightstep as "lightstep",
        datadog as "datadog",
        opencensus as "opencensus",
        skywalking as "skywalking",
        opentelemetry as "opentelemetry",
        envoy_http_als as "envoyHttpAls",
        envoy_tcp_als as "envoyTcpAls",
        envoy_otel_als as "envoyOtelAls",
        sds as "sds"
    ];
    let mut warn = |field: &str, what: String, remedy: &str| {
        found.push(Code::Warning, format!("{path}.{field}"), what, remedy);
    };
    let with_service = services.iter().filter_map(|(kind, to)| Some((kind, (*to)?)));
    for (kind, (service, port)) in with_service {
        if !is_service(service) {
            let remedy = "a service's host, <namespace>/<host>, or an IP address";
            warn(&format!("{kind}.service"), format!("{service:?}"), remedy);
        }
        if port == 0 || port > u32::from(u16::MAX) {
            let remedy = "a port is a number from 1 to 65535";
            warn(&format!("{kind}.port"), port.to_string(), remedy);
        }
    }
    let without = p.prometheus.is_some() || p.stackdriver.is_some();
    let without = without || p.envoy_file_access_log.is_some();
    if !without && services.iter().all(|(_, to)| to.is_none()) {
        warn("name", format!("{:?} without a kind", p.name), "say what it is, as in opentelemetry");
    }
    let statuses = [
        ("envoyExtAuthzHttp", p.envoy_ext_authz_http.as_ref().map(|a| &a.status_on_error)),
        ("envoyExtAuthzGrpc", p.envoy_ext_authz_grpc.as_ref().map(|a| &a.status_on_error)),
    ];
    for (kind, status) in statuses {
        if let Some(status) = status.filter(|s| !s.is_empty() && !is_status(s)) {
            let remedy = "a status of HTTP that Envoy knows, as in 403";
            warn(&format!("{kind}.statusOnError"), format!("{status:?}"), remedy);
        }
    }
    if let Some(a) = &p.envoy_ext_authz_http
        && !a.path_prefix.is_empty()
        && !a.path_prefix.starts_with('/')
    {
        let what = format!("{:?}", a.path_prefix);
        warn("envoyExtAuthzHttp.pathPrefix", what, "a path begins with /");
    }
    if p.lightstep.as_ref().is_some_and(|l| l.access_token.is_empty()) {
        let remedy = "Lightstep takes nothing without it";
        warn("lightstep.accessToken", "none".to_owned(), remedy);
    }
    if p.opentelemetry.as_ref().is_some_and(|o| o.http.is_some() && o.grpc.is_some()) {
        warn("opentelemetry.http", "together with grpc".to_owned(), "give one of them");
    }
}

fn is_service(s: &str) -> bool {
    match s.contains('/') {
        true => is_gateway_host(s),
        false => form::is_host(s) || form::is_ip(s),
    }
}

/// Those that Envoy has names for.
fn is_status(s: &str) -> bool {
    let known = |n: u16| {
        matches!(n, 0 | 100 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=417 | 421..=424)
            || matches!(n, 426 | 428 | 429 | 431 | 500..=508 | 510 | 511)
    };
    s.parse().is_ok_and(known)
}
