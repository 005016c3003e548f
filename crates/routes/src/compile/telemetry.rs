//! What a proxy tells of its requests: access log and spans, as MeshConfig has them.

use super::{
    select::Rules,
    view::{GATEWAY_NAME, View},
};
use crate::{names::ProxyName, proto};
use std::collections::BTreeSet;

/// The namespace of the unit that names a proxy's collector.
pub const UNIT: &str = "telemetry:";

/// Every proxy, a waypoint's or a gateway's.
pub fn proxies(view: View<'_>, rules: &Rules) -> BTreeSet<ProxyName> {
    let name = |o: &std::sync::Arc<istio_api::Object>| {
        let name = o.meta.labels.get(GATEWAY_NAME)?.clone();
        Some(ProxyName { namespace: o.key.namespace.clone(), name })
    };
    rules.gateway_pods(view).filter_map(name).collect()
}

pub fn compile(view: View<'_>, rules: &Rules, proxy: &ProxyName) -> proto::Telemetry {
    use proto::telemetry::Log;
    let mesh = view.mesh;
    let json = mesh.access_log_encoding.eq_ignore_ascii_case("JSON");
    let format = mesh.access_log_format.clone();
    proto::Telemetry {
        silent: mesh.access_log_file.as_deref() == Some(""),
        log: match (json, mesh.access_log_encoding.is_empty() && format.is_empty()) {
            // Nothing is said.
            (_, true) => None,
            (true, _) => Some(Log::Object(format)),
            (false, _) => Some(Log::Text(format)),
        },
        tracing: tracing(view, rules, proxy),
    }
}

fn tracing(view: View<'_>, rules: &Rules, proxy: &ProxyName) -> Option<proto::Tracing> {
    let mesh = view.mesh;
    let named = mesh.default_providers.tracing.first().filter(|_| mesh.enable_tracing)?;
    let provider = mesh.extension_providers.iter().find(|p| p.name == *named)?;
    let collector = provider.opentelemetry.as_ref()?;
    let (namespace, host) =
        collector.service.split_once('/').unwrap_or((&mesh.root_namespace, &collector.service));
    let to = rules.destination(view, proxy, host, "", collector.port, 0, namespace);
    let percent = mesh.default_config.tracing.sampling.unwrap_or(1.0).clamp(0.0, 100.0);
    // In range by the clamp.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let sampled = proto::Percent { ppm: (percent * 10_000.0).round() as u32 };
    Some(proto::Tracing { to: Some(to), sampled: Some(sampled) })
}
