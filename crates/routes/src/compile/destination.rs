//! DestinationRule, merged over what is said nowhere, as a proxy executes it.

use super::{
    credential::credential,
    http::millis,
    select::Rules,
    view::{ServiceView, View},
};
use crate::{names::ProxyName, proto};
use istio_api::istio::destination_rule::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, DestinationRule, H2UpgradePolicy,
    LoadBalancerSettings, OutlierDetection, SimpleLb, TrafficPolicy,
};

/// Istio's default.
const CONNECT_TIMEOUT_MS: u64 = 10_000;

pub fn destination(
    view: View<'_>,
    rules: &Rules,
    proxy: &ProxyName,
    service: &ServiceView,
) -> proto::Destination {
    let found = rules.destination_rules(view, &service.name, &proxy.namespace);
    let to = To { view, proxy, service };
    // Several of one host in one namespace are one, as Istio merges them: each subset's first, and
    // the first that says something of the whole.
    let whole = found.iter().find_map(|(_, d)| d.traffic_policy.as_ref());
    let mut subsets: Vec<proto::Subset> = Vec::new();
    for s in found.iter().flat_map(|(_, d): &(_, &DestinationRule)| &d.subsets) {
        if subsets.iter().any(|known| known.name == s.name) {
            continue;
        }
        subsets.push(proto::Subset {
            name: s.name.clone(),
            labels: s.labels.clone(),
            ports: to.ports(&[s.traffic_policy.as_ref(), whole]),
        });
    }
    proto::Destination {
        namespace: service.name.namespace.clone(),
        hostname: service.name.hostname.clone(),
        ports: to.ports(&[whole]),
        subsets,
        origin: found
            .first()
            .map(|(o, _)| format!("{}/{}", o.key.namespace, o.key.name))
            .unwrap_or_default(),
    }
}

/// A service, as a proxy reaches it.
struct To<'a> {
    view: View<'a>,
    proxy: &'a ProxyName,
    service: &'a ServiceView,
}

impl To<'_> {
    /// `layers`: the more specific first.
    fn ports(&self, layers: &[Option<&TrafficPolicy>]) -> Vec<proto::DestinationPort> {
        let port = |(port, protocol): &(u16, proto::Protocol)| proto::DestinationPort {
            port: u32::from(*port),
            protocol: *protocol as i32,
            policy: Some(self.policy(u32::from(*port), layers)),
        };
        self.service.ports.iter().map(port).collect()
    }

    /// A port's own settings stand in for the whole of what its layer says (Istio: they do not
    /// inherit).
    fn policy(&self, port: u32, layers: &[Option<&TrafficPolicy>]) -> proto::TrafficPolicy {
        let mut lb: Option<&LoadBalancerSettings> = None;
        let mut pool: Option<&ConnectionPoolSettings> = None;
        let mut outlier: Option<&OutlierDetection> = None;
        let mut tls: Option<&ClientTlsSettings> = None;
        let mut budget = None;
        for layer in layers.iter().flatten() {
            let own = layer
                .port_level_settings
                .iter()
                .find(|p| p.port.as_ref().is_some_and(|p| p.number == port));
            match own {
                Some(own) => {
                    lb = lb.or(own.load_balancer.as_ref());
                    pool = pool.or(own.connection_pool.as_ref());
                    outlier = outlier.or(own.outlier_detection.as_ref());
                    tls = tls.or(own.tls.as_ref());
                }
                None => {
                    lb = lb.or(layer.load_balancer.as_ref());
                    pool = pool.or(layer.connection_pool.as_ref());
                    outlier = outlier.or(layer.outlier_detection.as_ref());
                    tls = tls.or(layer.tls.as_ref());
                }
            }
            budget = budget.or(layer.retry_budget.as_ref());
        }
        let mut out = proto::TrafficPolicy {
            connect_timeout_ms: CONNECT_TIMEOUT_MS,
            ..proto::TrafficPolicy::default()
        };
        balance(lb, self.service.passthrough, outlier.is_some(), &mut out);
        if let Some(pool) = pool {
            limits(pool, &mut out);
        }
        out.outlier = outlier.map(outlier_detection);
        out.retry_budget = budget.map(|b| proto::RetryBudget {
            // In range by the clamp.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            percent_hundredths: (b.percent.unwrap_or(20.0).clamp(0.0, 100.0) * 100.0) as u32,
            min_concurrency: if b.min_retry_concurrency == 0 { 3 } else { b.min_retry_concurrency },
        });
        out.tls = tls.and_then(|t| self.tls(t));
        out
    }

    /// What the mesh does not do by itself. ISTIO_MUTUAL and DISABLE say nothing of endpoints of the
    /// mesh, which are reached by HBONE, and others know neither.
    fn tls(&self, t: &ClientTlsSettings) -> Option<proto::ClientTls> {
        if !matches!(t.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual) {
            return None;
        }
        let either = |own: &[String], other: &[String]| {
            if own.is_empty() { other.to_vec() } else { own.to_vec() }
        };
        let mut out = proto::ClientTls {
            sni: t.sni.clone(),
            subject_alt_names: either(&t.subject_alt_names, &self.service.subject_alt_names),
            unverified: t.insecure_skip_verify == Some(true),
            roots_file: t.ca_certificates.clone(),
            ..proto::ClientTls::default()
        };
        if out.sni.is_empty() {
            out.sni.clone_from(&self.service.name.hostname);
        }
        let mutual = t.mode == ClientTlsMode::Mutual;
        if t.credential_name.is_empty() {
            if mutual {
                out.chain_file.clone_from(&t.client_certificate);
                out.key_file.clone_from(&t.private_key);
            }
            return Some(out);
        }
        match credential(self.view, self.proxy, &t.credential_name) {
            Ok(c) => {
                if mutual {
                    (out.chain_pem, out.key_pem) = (c.chain_pem, c.key_pem);
                    if out.chain_pem.is_empty() || out.key_pem.is_empty() {
                        out.broken = format!(
                            "Secret {} has no tls.crt, or no tls.key, which MUTUAL needs",
                            t.credential_name
                        );
                    }
                }
                match c.roots_pem {
                    Some(roots) => out.roots_pem = roots,
                    None if out.unverified => {}
                    None => out.broken = format!("Secret {} has no ca.crt", t.credential_name),
                }
            }
            Err(why) => out.broken = why,
        }
        Some(out)
    }
}

fn balance(
    lb: Option<&LoadBalancerSettings>,
    passthrough: bool,
    with_outlier: bool,
    out: &mut proto::TrafficPolicy,
) {
    use proto::{Balancer, hash_key::Of};
    let simple = lb.and_then(|lb| lb.simple).unwrap_or_default();
    let mut balancer = match simple {
        SimpleLb::RoundRobin => Balancer::RoundRobin,
        SimpleLb::Random => Balancer::Random,
        SimpleLb::Passthrough => Balancer::Passthrough,
        SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest => {
            Balancer::LeastRequest
        }
    };
    if passthrough {
        balancer = Balancer::Passthrough;
    }
    if let Some(hash) = lb.and_then(|lb| lb.consistent_hash.as_ref()) {
        let mut key = proto::HashKey {
            minimum_ring_size: hash
                .ring_hash
                .as_ref()
                .map_or(hash.minimum_ring_size.0, |r| r.minimum_ring_size.0),
            ..proto::HashKey::default()
        };
        key.of = if let Some(name) = &hash.http_header_name {
            Some(Of::Header(name.to_ascii_lowercase()))
        } else if let Some(cookie) = &hash.http_cookie {
            key.cookie_is_given = cookie.ttl.is_some();
            key.cookie_ttl_s = cookie.ttl.map_or(0, |t| t.0.as_secs());
            key.cookie_path.clone_from(&cookie.path);
            Some(Of::Cookie(cookie.name.clone()))
        } else if hash.use_source_ip == Some(true) {
            Some(Of::SourceIp(true))
        } else {
            hash.http_query_parameter_name.clone().map(Of::Query)
        };
        if key.of.is_some() {
            balancer = Balancer::ConsistentHash;
            out.hash = Some(key);
        }
    }
    out.balancer = balancer as i32;
    // As Istio: locality counts where something can eject what is broken.
    let setting = lb.and_then(|lb| lb.locality_lb_setting.as_ref());
    let enabled = setting.and_then(|s| s.enabled).unwrap_or(true) && with_outlier;
    if enabled {
        out.locality = Some(proto::Locality {
            enabled,
            failover: setting
                .map(|s| s.failover.iter().map(|f| (f.from.clone(), f.to.clone())).collect())
                .unwrap_or_default(),
        });
    }
}

fn limits(pool: &ConnectionPoolSettings, out: &mut proto::TrafficPolicy) {
    let count = |n: i32| u32::try_from(n).unwrap_or(0);
    if let Some(tcp) = &pool.tcp {
        out.max_connections = count(tcp.max_connections);
        if let Some(t) = tcp.connect_timeout {
            out.connect_timeout_ms = millis(t.0);
        }
    }
    if let Some(http) = &pool.http {
        out.max_pending = count(http.http1_max_pending_requests);
        out.max_requests = count(http.http2_max_requests);
        out.max_requests_per_connection = count(http.max_requests_per_connection);
        out.max_retries = count(http.max_retries);
        out.idle_timeout_ms = http.idle_timeout.map_or(0, |t| millis(t.0));
        out.upgrade_to_http2 = http.h2_upgrade_policy == H2UpgradePolicy::Upgrade;
        out.use_client_protocol = http.use_client_protocol;
    }
}

fn outlier_detection(o: &OutlierDetection) -> proto::Outlier {
    // Istio's defaults, of which 5xx is Envoy's.
    let old = u32::try_from(o.consecutive_errors).unwrap_or(0);
    proto::Outlier {
        consecutive_5xx: o.consecutive5xx_errors.unwrap_or(5),
        consecutive_gateway: o.consecutive_gateway_errors.unwrap_or(old),
        consecutive_local: o.consecutive_local_origin_failures.unwrap_or(5),
        split_local: o.split_external_local_origin_errors,
        interval_ms: o.interval.map_or(10_000, |t| millis(t.0)),
        base_ejection_ms: o.base_ejection_time.map_or(30_000, |t| millis(t.0)),
        max_ejection_percent: match u32::try_from(o.max_ejection_percent) {
            Ok(0) | Err(_) => 10,
            Ok(n) => n.min(100),
        },
        min_health_percent: u32::try_from(o.min_health_percent).unwrap_or(0).min(100),
    }
}
