//! Which AuthorizationPolicies a proxy judges for a host: those whose targetRefs name the host's
//! object, the proxy's Gateway, or its class.

use super::{UnitKey, select::Rules, view::View};
use crate::names::ProxyName;
use istio_api::{Kind, Labels, Object, Spec};

pub fn binds(view: View<'_>, rules: &Rules, o: &Object, (proxy, service): &UnitKey) -> bool {
    let Spec::AuthorizationPolicy(p) = &o.spec else { return false };
    let own = &o.key.namespace;
    p.target_ref.iter().chain(&p.target_refs).any(|t| match (t.group.as_str(), t.kind.as_str()) {
        ("" | "core", "Service") => {
            let named = rules.service(service).map(|(key, _)| key);
            *own == service.namespace
                && named.is_some_and(|key| key.kind == Kind::Service && key.name == t.name)
        }
        ("networking.istio.io", "ServiceEntry") => {
            let named = rules.service(service).map(|(key, _)| key);
            *own == service.namespace
                && named.is_some_and(|key| key.kind == Kind::ServiceEntry && key.name == t.name)
        }
        ("gateway.networking.k8s.io", "Gateway") => *own == proxy.namespace && t.name == proxy.name,
        ("gateway.networking.k8s.io", "GatewayClass") => {
            let class =
                view.get(Kind::KubernetesGateway, &proxy.namespace, &proxy.name).and_then(|g| {
                    match &g.spec {
                        Spec::KubernetesGateway(g) => Some(&g.gateway_class_name),
                        _ => None,
                    }
                });
            *own == view.mesh.root_namespace && class == Some(&t.name)
        }
        _ => false,
    })
}

/// Which bind a gateway's proxies: by their labels or their Gateway's name, and those of their
/// namespace or the root's that select nothing in particular.
pub fn binds_gateway(view: View<'_>, o: &Object, proxy: &ProxyName, labels: &Labels) -> bool {
    let Spec::AuthorizationPolicy(p) = &o.spec else { return false };
    let own = o.key.namespace == proxy.namespace;
    let root = o.key.namespace == view.mesh.root_namespace;
    if p.has_targets() {
        return own
            && p.target_ref.iter().chain(&p.target_refs).any(|t| {
                t.group == "gateway.networking.k8s.io"
                    && t.kind == "Gateway"
                    && t.name == proxy.name
            });
    }
    (own || root) && p.selector.as_ref().is_none_or(|s| s.matches(labels))
}
