//! What a proxy tells of its requests, access log and spans: as MeshConfig has them, and as Telemetry
//! objects change that, the root namespace's, then the proxy's own namespace's, then those about the
//! proxy itself. Of several of a kind, the oldest counts.

use super::{
    select::{Rules, age},
    view::{GATEWAY_NAME, View},
};
use crate::{names::ProxyName, proto};
use istio_api::{
    Kind, Labels, Object, Spec,
    istio::telemetry::{CustomTag, ProviderRef, Telemetry, WorkloadMode},
};
use proto::telemetry::Log;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The namespace of the unit that names a proxy's collector.
pub const UNIT: &str = "telemetry:";

/// Istio's name for lines on standard output in the mesh's own format, which no provider need define.
const ENVOY: &str = "envoy";

/// Every proxy, a waypoint's or a gateway's, with its pods' labels.
pub fn proxies(view: View<'_>, rules: &Rules) -> BTreeMap<ProxyName, Labels> {
    let mut out = BTreeMap::new();
    for o in rules.gateway_pods(view) {
        if let Some(name) = o.meta.labels.get(GATEWAY_NAME) {
            let proxy = ProxyName { namespace: o.key.namespace.clone(), name: name.clone() };
            out.entry(proxy).or_insert_with(|| o.meta.labels.clone());
        }
    }
    out
}

/// How near a Telemetry is to a proxy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Mesh,
    Namespace,
    Proxy,
}

fn level(
    view: View<'_>,
    o: &Object,
    t: &Telemetry,
    proxy: &ProxyName,
    labels: &Labels,
) -> Option<Level> {
    let own = o.key.namespace == proxy.namespace;
    let root = o.key.namespace == view.mesh.root_namespace;
    let mut targets = t.target_ref.iter().chain(&t.target_refs).peekable();
    if targets.peek().is_some() {
        let class = match view.get(Kind::KubernetesGateway, &proxy.namespace, &proxy.name) {
            Some(o) => match &o.spec {
                Spec::KubernetesGateway(g) => g.gateway_class_name.as_str(),
                _ => "",
            },
            None => "",
        };
        let names = targets.any(|t| match t.kind.as_str() {
            "Gateway" => own && t.name == proxy.name,
            "GatewayClass" => root && t.name == class,
            _ => false,
        });
        return names.then_some(Level::Proxy);
    }
    if let Some(selector) = &t.selector {
        let met = selector.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v));
        return (met && (own || root)).then_some(Level::Proxy);
    }
    match (own, root) {
        (_, true) => Some(Level::Mesh),
        (true, false) => Some(Level::Namespace),
        (false, false) => None,
    }
}

/// The Telemetry objects that count for a proxy, the farthest first.
fn about<'a>(
    view: View<'a>,
    proxy: &ProxyName,
    labels: &Labels,
) -> Vec<(&'a Arc<Object>, &'a Telemetry)> {
    let mut nearest: BTreeMap<Level, (&Arc<Object>, &Telemetry)> = BTreeMap::new();
    for o in view.of_kind(Kind::Telemetry) {
        let Spec::Telemetry(t) = &o.spec else { continue };
        let Some(level) = level(view, o, t, proxy, labels) else { continue };
        let known = nearest.entry(level).or_insert((o, t));
        if age(o) < age(known.0) {
            *known = (o, t);
        }
    }
    nearest.into_values().collect()
}

/// Telemetry objects that no proxy goes by.
pub fn idle(view: View<'_>, rules: &Rules) -> Vec<istio_api::ObjectKey> {
    let proxies = proxies(view, rules);
    let used: BTreeSet<_> = proxies
        .iter()
        .flat_map(|(proxy, labels)| about(view, proxy, labels))
        .map(|(o, _)| o.key.clone())
        .collect();
    let all = view.of_kind(Kind::Telemetry).map(|o| o.key.clone());
    all.filter(|key| !used.contains(key)).collect()
}

pub fn compile(
    view: View<'_>,
    rules: &Rules,
    proxy: &ProxyName,
    labels: &Labels,
) -> proto::Telemetry {
    // As in Istio, a gateway asks for its clients, and a waypoint serves for its services.
    let mode = match view.waypoint(proxy) {
        Some(_) => WorkloadMode::Server,
        None => WorkloadMode::Client,
    };
    let about = about(view, proxy, labels);
    let (silent, log) = log(view, &about, mode);
    proto::Telemetry { silent, log, tracing: tracing(view, rules, proxy, &about, mode) }
}

fn is_for(said: Option<WorkloadMode>, mode: WorkloadMode) -> bool {
    said.is_none_or(|said| said == WorkloadMode::ClientAndServer || said == mode)
}

fn log(
    view: View<'_>,
    about: &[(&Arc<Object>, &Telemetry)],
    mode: WorkloadMode,
) -> (bool, Option<Log>) {
    let mesh = view.mesh;
    let json = mesh.access_log_encoding.eq_ignore_ascii_case("JSON");
    let format = mesh.access_log_format.clone();
    let of_mesh = match (json, mesh.access_log_encoding.is_empty() && format.is_empty()) {
        // Nothing is said.
        (_, true) => None,
        (true, _) => Some(Log::Object(format)),
        (false, _) => Some(Log::Text(format)),
    };
    let of_provider = |name: &str| {
        let provider = mesh.extension_providers.iter().find(|p| p.name == name);
        match provider.map(|p| p.envoy_file_access_log.as_ref()) {
            None if name == ENVOY => Some(of_mesh.clone()),
            Some(Some(file)) => Some(match file.log_format.as_ref() {
                None => of_mesh.clone(),
                Some(f) => match (&f.labels, &f.text) {
                    (Some(labels), _) => Some(Log::Object(labels.to_string())),
                    (None, text) => Some(Log::Text(text.clone().unwrap_or_default())),
                },
            }),
            _ => None,
        }
    };
    let mut silent = mesh.access_log_file.as_deref() == Some("");
    let mut log = of_mesh.clone();
    if let Some(format) = mesh.default_providers.access_logging.iter().find_map(|n| of_provider(n))
    {
        (silent, log) = (false, format);
    }
    for (_, t) in about {
        for entry in &t.access_logging {
            if !is_for(entry.r#match.as_ref().map(|m| m.mode), mode) {
                continue;
            }
            let named = entry.providers.iter().find_map(|p| of_provider(&p.name));
            match (entry.disabled == Some(true), named) {
                (true, named) => silent |= named.is_some() || entry.providers.is_empty(),
                (false, Some(format)) => (silent, log) = (false, format),
                // One that writes no lines here.
                (false, None) => silent &= !entry.providers.is_empty(),
            }
        }
    }
    (silent, log)
}

fn tracing(
    view: View<'_>,
    rules: &Rules,
    proxy: &ProxyName,
    about: &[(&Arc<Object>, &Telemetry)],
    mode: WorkloadMode,
) -> Option<proto::Tracing> {
    let mesh = view.mesh;
    let mut named = mesh.default_providers.tracing.first().filter(|_| mesh.enable_tracing);
    let mut percent = mesh.default_config.tracing.sampling.unwrap_or(1.0);
    let mut tags: Option<&BTreeMap<String, CustomTag>> = None;
    let mut reported = true;
    for t in about.iter().flat_map(|(_, t)| &t.tracing) {
        if !is_for(t.r#match.as_ref().map(|m| m.mode), mode) {
            continue;
        }
        named = t.providers.first().map(|ProviderRef { name }| name).or(named);
        percent = t.random_sampling_percentage.unwrap_or(percent);
        tags = Some(&t.custom_tags).filter(|tags| !tags.is_empty()).or(tags);
        reported = t.disable_span_reporting.map_or(reported, |disabled| !disabled);
    }
    let named = named.filter(|_| reported)?;
    let provider = mesh.extension_providers.iter().find(|p| p.name == *named)?;
    let collector = provider.opentelemetry.as_ref()?;
    let (namespace, host) =
        collector.service.split_once('/').unwrap_or((&mesh.root_namespace, &collector.service));
    let to = rules.destination(view, proxy, host, "", collector.port, 0, namespace);
    // In range by the clamp.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let sampled = proto::Percent { ppm: (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32 };
    let tags = tags.into_iter().flatten().filter_map(|(name, t)| tag(name, t)).collect();
    Some(proto::Tracing { to: Some(to), sampled: Some(sampled), tags })
}

fn tag(name: &str, t: &CustomTag) -> Option<proto::SpanTag> {
    use proto::span_tag::From;
    let (from, default) = match (&t.literal, &t.header, &t.environment) {
        (Some(l), ..) => (From::Literal(l.value.clone()), String::new()),
        (_, Some(h), _) => (From::Header(h.name.to_ascii_lowercase()), h.default_value.clone()),
        (.., Some(e)) => (From::Environment(e.name.clone()), e.default_value.clone()),
        _ => return None,
    };
    Some(proto::SpanTag { name: name.to_owned(), from: Some(from), default })
}
