//! What Istio would refuse of a DestinationRule.

use crate::{
    diagnostic::Code,
    form,
    istio::destination_rule::{
        ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, ConsistentHash, DestinationRule,
        LoadBalancerSettings, LocalityLoadBalancerSetting, OutlierDetection, TrafficPolicy,
    },
    parse::Found,
    virtual_service::{export_to, label_map, port_number, span},
};
use std::collections::BTreeSet;

/// The largest table that Maglev may have.
const LARGEST_TABLE: u64 = 5_000_011;

/// Labels by which `failover` goes.
const TOPOLOGY: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

pub(crate) fn destination_rule(d: &DestinationRule, namespace: &str, found: &mut Found<'_>) {
    if !form::is_wildcard_host(&d.host) {
        found.invalid("spec.host", format!("{:?}", d.host), "a service's host, or a wildcard");
    }
    export_to(&d.export_to, "spec.exportTo", found);
    if d.workload_selector.is_some()
        && !matches!(&*d.export_to, [one] if one == "." || one == namespace)
        && !d.export_to.is_empty()
    {
        found.invalid(
            "spec.exportTo",
            "beyond this namespace",
            "one with a workloadSelector is for its own namespace",
        );
    }
    if let Some(t) = &d.traffic_policy {
        policy(t, "spec.trafficPolicy", found);
    }
    let mut names = BTreeSet::new();
    for (i, s) in d.subsets.iter().enumerate() {
        let path = format!("spec.subsets[{i}]");
        if !form::is_label(&s.name) {
            found.invalid(
                format!("{path}.name"),
                format!("{:?}", s.name),
                "a name of letters, digits and -",
            );
        } else if !names.insert(&s.name) {
            found.invalid(
                format!("{path}.name"),
                format!("{:?} twice", s.name),
                "each subset has a name of its own",
            );
        }
        label_map(&s.labels, &format!("{path}.labels"), found);
        if let Some(t) = &s.traffic_policy {
            policy(t, &format!("{path}.trafficPolicy"), found);
        }
    }
}

fn policy(t: &TrafficPolicy, path: &str, found: &mut Found<'_>) {
    if *t == TrafficPolicy::default() {
        found.push(Code::MissingValue, path, "empty", "give at least one setting, or leave it out");
    }
    if t.tunnel.is_some() && t.proxy_protocol.is_some() {
        found.invalid(
            format!("{path}.tunnel"),
            "together with proxyProtocol",
            "they exclude each other",
        );
    }
    blocks(
        t.load_balancer.as_ref(),
        t.connection_pool.as_ref(),
        t.outlier_detection.as_ref(),
        t.tls.as_ref(),
        path,
        found,
    );
    for (i, p) in t.port_level_settings.iter().enumerate() {
        let path = format!("{path}.portLevelSettings[{i}]");
        match &p.port {
            Some(port) => port_number(port.number, false, &format!("{path}.port.number"), found),
            None => {
                found.push(Code::MissingValue, format!("{path}.port"), "none", "say which port")
            }
        }
        let lb = p.load_balancer.as_ref();
        let (pool, outliers) = (p.connection_pool.as_ref(), p.outlier_detection.as_ref());
        if lb.is_none() && pool.is_none() && outliers.is_none() && p.tls.is_none() {
            found.push(Code::MissingValue, &path, "empty", "give at least one setting");
        }
        blocks(lb, pool, outliers, p.tls.as_ref(), &path, found);
    }
    if let Some(t) = &t.tunnel {
        let path = format!("{path}.tunnel");
        if !["", "CONNECT", "POST"].contains(&t.protocol.as_str()) {
            found.invalid(
                format!("{path}.protocol"),
                format!("{:?}", t.protocol),
                "CONNECT or POST",
            );
        }
        if !form::is_host(&t.target_host) && !form::is_ip(&t.target_host) {
            found.invalid(
                format!("{path}.targetHost"),
                format!("{:?}", t.target_host),
                "a host or an address",
            );
        }
        port_number(t.target_port, false, &format!("{path}.targetPort"), found);
    }
    if let Some(percent) = t.retry_budget.as_ref().and_then(|b| b.percent) {
        hundred(percent, &format!("{path}.retryBudget.percent"), found);
    }
}

fn blocks(
    lb: Option<&LoadBalancerSettings>,
    pool: Option<&ConnectionPoolSettings>,
    outliers: Option<&OutlierDetection>,
    tls: Option<&ClientTlsSettings>,
    path: &str,
    found: &mut Found<'_>,
) {
    if let Some(x) = lb {
        load_balancer(x, outliers.is_some(), &format!("{path}.loadBalancer"), found);
    }
    if let Some(x) = pool {
        connection_pool(x, &format!("{path}.connectionPool"), found);
    }
    if let Some(x) = outliers {
        outlier_detection(x, &format!("{path}.outlierDetection"), found);
    }
    if let Some(x) = tls {
        client_tls(x, &format!("{path}.tls"), found);
    }
}

fn hundred(value: f64, path: &str, found: &mut Found<'_>) {
    if !(0.0..=100.0).contains(&value) {
        found.invalid(path, value.to_string(), "from 0 to 100");
    }
}

fn outlier_detection(o: &OutlierDetection, path: &str, found: &mut Found<'_>) {
    span(o.interval, &format!("{path}.interval"), found);
    span(o.base_ejection_time, &format!("{path}.baseEjectionTime"), found);
    hundred(o.max_ejection_percent.into(), &format!("{path}.maxEjectionPercent"), found);
    hundred(o.min_health_percent.into(), &format!("{path}.minHealthPercent"), found);
    if o.consecutive_local_origin_failures.is_some_and(|n| n > 0)
        && !o.split_external_local_origin_errors
    {
        found.invalid(
            format!("{path}.consecutiveLocalOriginFailures"),
            "without splitExternalLocalOriginErrors",
            "failures of this side are counted apart only with it: set it, too",
        );
    }
    if o.consecutive_errors != 0 {
        found.push(
            Code::Warning,
            format!("{path}.consecutiveErrors"),
            "deprecated",
            "it does nothing: use consecutive5xxErrors",
        );
    }
    for (i, c) in o.outlier_detection_http_error_codes.iter().enumerate() {
        if !(100..=599).contains(c) {
            found.invalid(
                format!("{path}.outlierDetectionHttpErrorCodes[{i}]"),
                c.to_string(),
                "from 100 to 599",
            );
        }
    }
}

fn connection_pool(c: &ConnectionPoolSettings, path: &str, found: &mut Found<'_>) {
    if c.tcp.is_none() && c.http.is_none() {
        found.push(Code::MissingValue, path, "empty", "give tcp or http");
    }
    let natural = |field: &str, value: i32, found: &mut Found<'_>| {
        if value < 0 {
            found.invalid(format!("{path}.{field}"), value.to_string(), "0 or more");
        }
    };
    if let Some(t) = &c.tcp {
        natural("tcp.maxConnections", t.max_connections, found);
        span(t.connect_timeout, &format!("{path}.tcp.connectTimeout"), found);
        span(t.max_connection_duration, &format!("{path}.tcp.maxConnectionDuration"), found);
        // 0s turns it off.
        span(t.idle_timeout.filter(|s| !s.0.is_zero()), &format!("{path}.tcp.idleTimeout"), found);
        if let Some(k) = &t.tcp_keepalive {
            span(k.time, &format!("{path}.tcp.tcpKeepalive.time"), found);
            span(k.interval, &format!("{path}.tcp.tcpKeepalive.interval"), found);
        }
    }
    if let Some(h) = &c.http {
        natural("http.http1MaxPendingRequests", h.http1_max_pending_requests, found);
        natural("http.http2MaxRequests", h.http2_max_requests, found);
        natural("http.maxRequestsPerConnection", h.max_requests_per_connection, found);
        natural("http.maxRetries", h.max_retries, found);
        natural("http.maxConcurrentStreams", h.max_concurrent_streams, found);
        span(h.idle_timeout, &format!("{path}.http.idleTimeout"), found);
        if let Some(k) = &h.http2_keep_alive
            && (k.interval.is_none() || k.timeout.is_none())
        {
            found.push(
                Code::MissingValue,
                format!("{path}.http.http2KeepAlive"),
                "half",
                "give interval and timeout",
            );
        }
    }
}

fn load_balancer(lb: &LoadBalancerSettings, ejects: bool, path: &str, found: &mut Found<'_>) {
    if let Some(c) = &lb.consistent_hash {
        consistent_hash(c, &format!("{path}.consistentHash"), found);
    }
    if let Some(l) = &lb.locality_lb_setting {
        if lb.zone_aware_lb_setting.is_some() {
            found.invalid(
                format!("{path}.localityLbSetting"),
                "together with zoneAwareLbSetting",
                "they exclude each other",
            );
        }
        locality(l, ejects, &format!("{path}.localityLbSetting"), found);
    }
    if let Some(w) = &lb.warmup {
        if w.duration.is_none() {
            found.push(
                Code::MissingValue,
                format!("{path}.warmup.duration"),
                "none",
                "say how long",
            );
        }
        if let Some(p) = w.minimum_percent {
            hundred(p, &format!("{path}.warmup.minimumPercent"), found);
        }
        if w.aggression.is_some_and(|a| a <= 0.0) {
            found.invalid(format!("{path}.warmup.aggression"), "0 or less", "more than 0");
        }
    }
}

fn consistent_hash(c: &ConsistentHash, path: &str, found: &mut Found<'_>) {
    if let Some(cookie) = &c.http_cookie
        && cookie.name.is_empty()
    {
        found.push(
            Code::MissingValue,
            format!("{path}.httpCookie.name"),
            "none",
            "name the cookie",
        );
    }
    if c.minimum_ring_size.0 > 0 {
        let at = format!("{path}.minimumRingSize");
        if c.ring_hash.is_some() || c.maglev.is_some() {
            found.invalid(at, "together with ringHash or maglev", "give the size in ringHash");
        } else {
            found.push(Code::Warning, at, "deprecated", "give the size in ringHash");
        }
    }
    if let Some(m) = &c.maglev
        && (m.table_size.0 >= LARGEST_TABLE || !is_prime(m.table_size.0))
    {
        found.invalid(
            format!("{path}.maglev.tableSize"),
            m.table_size.0.to_string(),
            format!("a prime below {LARGEST_TABLE}"),
        );
    }
}

fn is_prime(n: u64) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

pub(crate) fn locality(
    l: &LocalityLoadBalancerSetting,
    ejects: bool,
    path: &str,
    found: &mut Found<'_>,
) {
    if !l.distribute.is_empty() && !l.failover.is_empty() {
        found.invalid(
            format!("{path}.distribute"),
            "together with failover",
            "they exclude each other",
        );
    }
    if (!l.failover.is_empty() || !l.failover_priority.is_empty()) && !ejects {
        found.push(
            Code::Warning,
            path,
            "failover without outlierDetection",
            "nothing fails over until outlierDetection says what has failed",
        );
    }
    if !l.failover.is_empty() {
        for (i, label) in l.failover_priority.iter().enumerate() {
            if TOPOLOGY.contains(&label.as_str()) {
                let at = format!("{path}.failoverPriority[{i}]");
                let remedy = "failover says that already: leave one of them out";
                found.invalid(at, format!("{label:?} beside failover"), remedy);
            }
        }
    }
    let mut from: Vec<&String> = Vec::new();
    for (i, d) in l.distribute.iter().enumerate() {
        let at = format!("{path}.distribute[{i}]");
        place(&d.from, &mut from, format!("{at}.from"), found);
        let mut to = Vec::new();
        for name in d.to.keys() {
            place(name, &mut to, format!("{at}.to"), found);
        }
        let sum: u64 = d.to.values().map(|w| u64::from(*w)).sum();
        if sum != 100 || d.to.values().any(|w| *w == 0) {
            found.invalid(
                format!("{at}.to"),
                format!("weights that sum to {sum}"),
                "weights from 1 that sum to 100",
            );
        }
    }
    for (i, f) in l.failover.iter().enumerate() {
        let at = format!("{path}.failover[{i}]");
        let region = |r: &str| !r.contains(['/', '*']);
        if f.from == f.to || !region(&f.from) || !region(&f.to) {
            found.invalid(at, format!("{:?} to {:?}", f.from, f.to), "two different regions");
        }
    }
}

/// A locality, which none of those before it covers.
fn place<'a>(name: &'a String, before: &mut Vec<&'a String>, path: String, found: &mut Found<'_>) {
    let wild = name.find('*').is_some_and(|at| at + 1 != name.len());
    if name.is_empty() || wild || name.split('/').any(str::is_empty) {
        found.invalid(
            path,
            format!("{name:?}"),
            "region, region/zone or region/zone/subzone, with * at the end for all",
        );
    } else if let Some(other) = before.iter().find(|other| covers(other, name)) {
        found.invalid(path, format!("{name:?}"), format!("{other:?} has it: give each place once"));
    }
    before.push(name);
}

/// As Istio has it: what is more specific may come first, and then the rest.
fn covers(earlier: &str, later: &str) -> bool {
    let parts = earlier.split('/').zip(later.split('/'));
    parts.take_while(|(e, _)| *e != "*").all(|(e, l)| e == l)
}

fn client_tls(t: &ClientTlsSettings, path: &str, found: &mut Found<'_>) {
    match t.mode {
        // What the mesh does in any case.
        ClientTlsMode::IstioMutual => return,
        ClientTlsMode::Disable => {
            found.push(
                Code::Warning,
                format!("{path}.mode"),
                "DISABLE",
                "endpoints in the mesh are reached by mutual TLS all the same; others in plaintext",
            );
            return;
        }
        ClientTlsMode::Simple | ClientTlsMode::Mutual => {}
    }
    if !t.sni.is_empty() && !form::is_host(&t.sni) {
        found.invalid(format!("{path}.sni"), format!("{:?}", t.sni), "a host's whole name");
    }
    tls_settings(t, path, found);
}

/// How TLS is begun, to whomever.
pub(crate) fn tls_settings(t: &ClientTlsSettings, path: &str, found: &mut Found<'_>) {
    if !matches!(t.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual) {
        return;
    }
    let files = [
        ("clientCertificate", !t.client_certificate.is_empty()),
        ("privateKey", !t.private_key.is_empty()),
        ("caCertificates", !t.ca_certificates.is_empty()),
        ("caCrl", !t.ca_crl.is_empty()),
    ];
    if !t.credential_name.is_empty() {
        for (field, _) in files.iter().filter(|(_, given)| *given) {
            found.invalid(
                format!("{path}.{field}"),
                "together with credentialName",
                "the secret has it: give one of them",
            );
        }
    } else if t.mode == ClientTlsMode::Mutual {
        for (field, _) in files.iter().take(2).filter(|(_, given)| !given) {
            found.push(
                Code::MissingValue,
                format!("{path}.{field}"),
                "none",
                "MUTUAL needs it, or credentialName",
            );
        }
    }
    let secret = t.mode == ClientTlsMode::Simple && !t.credential_name.is_empty();
    if t.insecure_skip_verify == Some(true)
        && (secret || !t.ca_certificates.is_empty() || !t.subject_alt_names.is_empty())
    {
        found.invalid(
            format!("{path}.insecureSkipVerify"),
            "beside what is to be verified",
            "leave caCertificates, subjectAltNames and SIMPLE's credentialName out, or verify",
        );
    }
}
