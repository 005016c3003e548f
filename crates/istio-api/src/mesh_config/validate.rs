//! What Istio would refuse of MeshConfig. What Istio takes, and then cannot use, is warned of.

use super::providers::{is_provider, providers};
use crate::{
    destination_rule::{locality, tls_settings},
    diagnostic::Code,
    form,
    istio::mesh_config::{
        AuthenticationPolicy, LabelSelector, MeshConfig, MeshConfigTracing, PrivateKeyProvider,
        ProxyConfig, TlsConfig,
    },
    parse::{Found, nearest},
    virtual_service::span,
};
use std::{collections::BTreeSet, time::Duration};

const LONGEST_CONNECT: Duration = Duration::from_secs(3600);

/// What BoringSSL has, by which Istio goes.
const CURVES: [&str; 7] =
    ["P-224", "P-256", "P-384", "P-521", "X25519", "X25519Kyber768Draft00", "X25519MLKEM768"];

const SUITES: [&str; 15] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
];

pub(crate) fn mesh_config(m: &MeshConfig, found: &mut Found<'_>) {
    let at = |field: &str| format!("data.mesh.{field}");
    port(m.proxy_listen_port, &at("proxyListenPort"), found);
    span(m.connect_timeout, &at("connectTimeout"), found);
    if let Some(timeout) = m.connect_timeout.filter(|t| t.0 > LONGEST_CONNECT) {
        found.invalid(at("connectTimeout"), format!("{timeout:?}"), "from 1ms to 1h");
    }
    // 0s turns detection off.
    let detection = m.protocol_detection_timeout.filter(|t| !t.0.is_zero());
    span(detection, &at("protocolDetectionTimeout"), found);
    if let Some(domain) = &m.trust_domain {
        trust_domain(domain, &at("trustDomain"), found);
    }
    for (i, domain) in m.trust_domain_aliases.iter().enumerate() {
        trust_domain(domain, &at(&format!("trustDomainAliases[{i}]")), found);
    }
    if m.root_namespace.as_deref() == Some("") {
        found.invalid(at("rootNamespace"), "empty", "name a namespace");
    }
    if let Some(config) = &m.default_config {
        proxy_config(config, &at("defaultConfig"), found);
    }
    if let Some(setting) = &m.locality_lb_setting {
        // What ejects is each destination's own.
        locality(setting, true, &at("localityLbSetting"), found);
    }
    for (i, settings) in m.service_settings.iter().enumerate() {
        for (j, host) in settings.hosts.iter().enumerate() {
            if !form::is_wildcard_host(host) {
                let at = at(&format!("serviceSettings[{i}].hosts[{j}]"));
                found.invalid(at, format!("{host:?}"), "a service's host, or a wildcard");
            }
        }
    }
    for (i, selector) in m.discovery_selectors.iter().enumerate() {
        label_selector(selector, &at(&format!("discoverySelectors[{i}]")), found);
    }
    providers(&m.extension_providers, found);
    default_providers(m, found);
    if let Some(tls) = &m.mesh_mtls {
        if !tls.ecdh_curves.is_empty() {
            let remedy =
                "the mesh's own TLS chooses its curves: say it in tlsDefaults, or leave it out";
            found.invalid(at("meshMTLS.ecdhCurves"), "given", remedy);
        }
        suites(tls, &at("meshMTLS"), found);
    }
    if let Some(tls) = &m.tls_defaults {
        known(&tls.ecdh_curves, &CURVES, &at("tlsDefaults.ecdhCurves"), found);
        suites(tls, &at("tlsDefaults"), found);
    }
}

fn port(port: Option<i32>, path: &str, found: &mut Found<'_>) {
    if let Some(port) = port.filter(|p| !(1..=65_535).contains(p)) {
        found.invalid(path, port.to_string(), "a port is a number from 1 to 65535");
    }
}

/// SPIFFE's characters, in Istio's labels.
fn trust_domain(domain: &str, path: &str, found: &mut Found<'_>) {
    let labels = domain.strip_suffix('.').unwrap_or(domain);
    let is_small = !labels.bytes().any(|b| b.is_ascii_uppercase());
    if !(is_small && labels.split('.').all(form::is_label)) {
        let remedy = "a trust domain has labels of a-z, 0-9 and -, as in cluster.local";
        found.invalid(path, format!("{domain:?}"), remedy);
    }
}

fn address(text: &str, path: String, found: &mut Found<'_>) {
    if !form::is_address(text) {
        let remedy = "<host or IP address>:<port>, as in collector.istio-system:9411";
        found.invalid(path, format!("{text:?}"), remedy);
    }
}

fn proxy_config(c: &ProxyConfig, path: &str, found: &mut Found<'_>) {
    let at = |field: &str| format!("{path}.{field}");
    let never_empty = [
        ("configPath", &c.config_path),
        ("binaryPath", &c.binary_path),
        ("serviceCluster", &c.service_cluster),
    ];
    for (field, value) in never_empty {
        if value.as_deref() == Some("") {
            found.invalid(at(field), "empty", "give it, or leave the field out");
        }
    }
    span(c.drain_duration, &at("drainDuration"), found);
    if let Some(drain) = c.drain_duration.filter(|d| d.0.subsec_millis() != 0) {
        found.invalid(at("drainDuration"), format!("{drain:?}"), "whole seconds");
    }
    if let Some(discovery) = &c.discovery_address {
        address(discovery, at("discoveryAddress"), found);
    }
    if let Some(t) = &c.tracing {
        tracing(t, &at("tracing"), found);
    }
    let of = |service: &Option<crate::istio::mesh_config::RemoteService>| {
        service.as_ref().map(|s| s.address.clone()).unwrap_or_default()
    };
    let optional = [
        ("statsdUdpAddress", c.statsd_udp_address.clone()),
        ("envoyMetricsServiceAddress", c.envoy_metrics_service_address.clone()),
        ("envoyMetricsService.address", of(&c.envoy_metrics_service)),
        ("envoyAccessLogService.address", of(&c.envoy_access_log_service)),
    ];
    for (field, text) in optional.iter().filter(|(_, text)| !text.is_empty()) {
        address(text, at(field), found);
    }
    port(c.proxy_admin_port, &at("proxyAdminPort"), found);
    port(c.status_port, &at("statusPort"), found);
    if c.control_plane_auth_policy == AuthenticationPolicy::Inherit {
        found.invalid(at("controlPlaneAuthPolicy"), "INHERIT", "NONE or MUTUAL_TLS");
    }
    if let Some(p) = &c.private_key_provider {
        private_key_provider(p, &at("privateKeyProvider"), found);
    }
}

fn tracing(t: &MeshConfigTracing, path: &str, found: &mut Found<'_>) {
    // The address of a proxy's own node, which is known when it starts.
    let with_node = |text: &str| text.replacen("$(HOST_IP)", "127.0.0.1", 1);
    if let Some(zipkin) = &t.zipkin {
        address(&with_node(&zipkin.address), format!("{path}.zipkin.address"), found);
    }
    if let Some(datadog) = &t.datadog {
        address(&with_node(&datadog.address), format!("{path}.datadog.address"), found);
    }
    if let Some(lightstep) = &t.lightstep {
        address(&lightstep.address, format!("{path}.lightstep.address"), found);
        if lightstep.access_token.is_empty() {
            let at = format!("{path}.lightstep.accessToken");
            found.push(Code::MissingValue, at, "none", "Lightstep takes nothing without it");
        }
    }
    if let Some(tls) = &t.tls_settings {
        tls_settings(tls, &format!("{path}.tlsSettings"), found);
    }
    if !(0.0..=100.0).contains(&t.sampling) {
        let at = format!("{path}.sampling");
        let remedy = "a percentage is from 0 to 100: the nearer of them is used";
        found.push(Code::Warning, at, t.sampling.to_string(), remedy);
    }
}

fn private_key_provider(p: &PrivateKeyProvider, path: &str, found: &mut Found<'_>) {
    let delay = match (&p.cryptomb, &p.qat) {
        (Some(c), _) => ("cryptomb", c.poll_delay),
        (None, Some(q)) => ("qat", q.poll_delay),
        (None, None) => {
            return found.push(Code::MissingValue, path, "none", "give cryptomb or qat");
        }
    };
    if delay.1.is_none_or(|d| d.0.is_zero()) {
        let at = format!("{path}.{}.pollDelay", delay.0);
        found.push(Code::MissingValue, at, "none", "say how long, more than 0s");
    }
}

fn label_selector(s: &LabelSelector, path: &str, found: &mut Found<'_>) {
    let mut warn = |at: String, what: String, remedy: &str| {
        found.push(Code::Warning, at, what, remedy);
    };
    for (key, value) in &s.match_labels {
        if !form::is_label_key(key) || !form::is_label_value(value) {
            warn(format!("{path}.matchLabels.{key}"), format!("{value:?}"), "no label can be so");
        }
    }
    for (i, e) in s.match_expressions.iter().enumerate() {
        let at = |field: &str| format!("{path}.matchExpressions[{i}].{field}");
        if !form::is_label_key(&e.key) {
            warn(at("key"), format!("{:?}", e.key), "no label's key can be so");
        }
        match (e.operator.as_str(), e.values.is_empty()) {
            ("In" | "NotIn", true) => {
                warn(at("values"), "none".to_owned(), "In and NotIn take at least one");
            }
            ("Exists" | "DoesNotExist", false) => {
                warn(at("values"), "given".to_owned(), "Exists and DoesNotExist take none");
            }
            ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
            (other, _) => {
                let remedy = "one of In, NotIn, Exists and DoesNotExist";
                warn(at("operator"), format!("{other:?}"), remedy);
            }
        }
    }
}

fn default_providers(m: &MeshConfig, found: &mut Found<'_>) {
    let Some(defaults) = &m.default_providers else { return };
    let names: Vec<String> = m.extension_providers.iter().map(|p| p.name.clone()).collect();
    let all = [
        ("tracing", &defaults.tracing),
        ("metrics", &defaults.metrics),
        ("accessLogging", &defaults.access_logging),
    ];
    for (field, list) in all {
        for (i, name) in list.iter().enumerate().filter(|(_, n)| !is_provider(n, &names)) {
            let remedy = match nearest(name, &names) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None => "nothing is sent there: name one of extensionProviders".to_owned(),
            };
            let at = format!("data.mesh.defaultProviders.{field}[{i}]");
            found.push(Code::Warning, at, format!("{name:?}"), remedy);
        }
    }
}

fn suites(tls: &TlsConfig, path: &str, found: &mut Found<'_>) {
    // Others are operators of OpenSSL's lists, as in -ALL.
    let is_name = |s: &&String| s.starts_with(|c: char| c.is_alphanumeric()) && *s != "ALL";
    let names: Vec<String> = tls.cipher_suites.iter().filter(is_name).cloned().collect();
    known(&names, &SUITES, &format!("{path}.cipherSuites"), found);
}

/// Istio leaves out those that it does not know, and those that come again.
fn known(names: &[String], all: &[&str], path: &str, found: &mut Found<'_>) {
    let mut seen = BTreeSet::new();
    for name in names.iter().filter(|n| !n.is_empty()) {
        if !all.contains(&name.as_str()) {
            let all: Vec<String> = all.iter().map(|s| (*s).to_owned()).collect();
            let remedy = match nearest(name, &all) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None => format!("one of {}", all.join(", ")),
            };
            found.push(Code::Warning, path, format!("{name:?}"), remedy);
        } else if !seen.insert(name) {
            found.push(Code::Warning, path, format!("{name:?} twice"), "once is enough");
        }
    }
}
