//! The access log and the metrics, as those read them who wrote their tools for ztunnel's.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, UNIX_EPOCH},
};
use telemetry::{
    CloseReason, Direction, Endpoint, FlowRecord, Metrics, ResponseFlags, SeriesLimits,
    ServiceName, Transport, access_log_line,
};

fn endpoint(name: &str, address: &str) -> Endpoint {
    Endpoint {
        address: Some(address.parse().unwrap()),
        workload: format!("{name}-v1").into(),
        namespace: "ns".into(),
        canonical_service: name.into(),
        canonical_revision: "v1".into(),
        cluster: "Kubernetes".into(),
        identity: Some(format!("spiffe://cluster.local/ns/ns/sa/{name}").into()),
    }
}

fn record() -> FlowRecord {
    FlowRecord {
        id: 1,
        direction: Direction::Outbound,
        source: endpoint("web", "10.0.0.1:40000"),
        destination: endpoint("reviews", "10.0.0.2:9080"),
        service: Some(ServiceName {
            hostname: "reviews.ns.svc".into(),
            name: "reviews".into(),
            namespace: "ns".into(),
        }),
        hbone_address: Some("10.0.0.2:15008".parse().unwrap()),
        transport: Transport::Hbone,
        verdict: None,
        sent: 10,
        received: 20,
        opened: UNIX_EPOCH,
        duration_ms: 30,
        flags: ResponseFlags::None,
        close: Some(CloseReason::Finished),
    }
}

#[test]
fn a_line_has_ztunnels_fields_in_its_order() {
    assert_eq!(
        access_log_line(&record()),
        "src.addr=\"10.0.0.1:40000\" src.workload=\"web-v1\" src.namespace=\"ns\" \
         src.identity=\"spiffe://cluster.local/ns/ns/sa/web\" src.cluster=\"Kubernetes\" \
         dst.addr=\"10.0.0.2:9080\" dst.hbone_addr=\"10.0.0.2:15008\" \
         dst.service=\"reviews.ns.svc\" dst.workload=\"reviews-v1\" dst.namespace=\"ns\" \
         dst.identity=\"spiffe://cluster.local/ns/ns/sa/reviews\" dst.cluster=\"Kubernetes\" \
         direction=\"outbound\" bytes_sent=10 bytes_recv=20 duration=\"30ms\""
    );
}

#[test]
fn what_is_not_known_is_left_out() {
    let r = FlowRecord {
        direction: Direction::Inbound,
        source: Endpoint { address: record().source.address, ..Endpoint::default() },
        destination: Endpoint::default(),
        service: None,
        hbone_address: None,
        ..record()
    };
    assert_eq!(
        access_log_line(&r),
        "src.addr=\"10.0.0.1:40000\" direction=\"inbound\" bytes_sent=10 bytes_recv=20 \
         duration=\"30ms\""
    );
}

#[test]
fn an_end_that_was_not_clean_says_why() {
    for (close, error) in [
        (Some(CloseReason::Denied("ns/p".into())), Some("denied by policy: ns/p")),
        (Some(CloseReason::Failed("no route".into())), Some("no route")),
        (Some(CloseReason::Reset("upstream".into())), Some("upstream")),
        (Some(CloseReason::Stopped), Some("the pod or its agent went away")),
        (Some(CloseReason::Finished), None),
        (None, None),
    ] {
        let line = access_log_line(&FlowRecord { close, ..record() });
        let found = line.split_once(" error=").map(|(_, e)| e.to_owned());
        assert_eq!(found, error.map(|e| format!("{e:?}")));
    }
}

/// A name that a peer or a manifest chose cannot forge a field, nor a line.
#[test]
fn a_line_is_one_line_whatever_is_in_it() {
    let mut r = record();
    r.source.workload = "a\" dst.workload=\"forged\nbytes_sent=0 \u{1b}[2J".into();
    r.close = Some(CloseReason::Failed("x\r\ny\"".into()));
    let line = access_log_line(&r);
    assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
    let quoted = r#"src.workload="a\" dst.workload=\"forged\nbytes_sent=0 \u{1b}[2J" "#;
    assert!(line.contains(quoted), "{line}");
}

fn metrics(most: usize) -> Metrics {
    Metrics::new(SeriesLimits { idle: Duration::from_secs(60), most })
}

fn text(m: &Metrics) -> String {
    let mut out = String::new();
    m.encode(&mut out);
    out
}

fn to(name: &str) -> FlowRecord {
    FlowRecord { destination: endpoint(name, "10.0.0.2:9080"), ..record() }
}

/// Samples of one metric: labels by name, and the value.
fn samples(m: &Metrics, name: &str) -> Vec<(BTreeMap<String, String>, u64)> {
    text(m).lines().filter_map(|l| l.strip_prefix(name)?.strip_prefix('{')).map(parse).collect()
}

/// Reads a sample as Prometheus does (its text format, "Line format").
fn parse(mut rest: &str) -> (BTreeMap<String, String>, u64) {
    let mut labels = BTreeMap::new();
    while let Some((name, after)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("a value ends") {
                (_, '\\') => match chars.next().expect("an escape ends").1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    c => panic!("no such escape: {c}"),
                },
                (i, '"') => break i,
                (_, c) => value.push(c),
            }
        };
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        assert!(labels.insert(name.to_owned(), value).is_none(), "{name} comes twice");
        rest = after[end + 1..].trim_start_matches(',');
    }
    (labels, rest.strip_prefix("} ").unwrap().parse().unwrap())
}

const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";

#[test]
fn a_connection_counts_once_under_each_name() {
    let m = metrics(10);
    m.opened(&record());
    m.opened(&record());
    m.closed(&record());
    m.failed(&record());
    for (name, value) in [
        (OPENED, 2),
        (CLOSED, 1),
        ("istio_tcp_connections_failed_total", 1),
        ("istio_tcp_sent_bytes_total", 10),
        ("istio_tcp_received_bytes_total", 20),
    ] {
        let all = samples(&m, name);
        assert_eq!(all.len(), 1, "{name}");
        assert_eq!(all[0].1, value, "{name}");
        let text = text(&m);
        assert_eq!(text.matches(&format!("# TYPE {name} counter\n")).count(), 1);
        assert_eq!(text.matches(&format!("# HELP {name} ")).count(), 1);
    }
}

#[test]
fn labels_are_istios() {
    let m = metrics(10);
    m.opened(&record());
    let (labels, _) = samples(&m, OPENED).remove(0);
    for (name, value) in [
        ("reporter", "source"),
        ("source_workload", "web-v1"),
        ("source_canonical_service", "web"),
        ("source_canonical_revision", "v1"),
        ("source_workload_namespace", "ns"),
        ("source_principal", "spiffe://cluster.local/ns/ns/sa/web"),
        ("destination_service", "reviews.ns.svc"),
        ("destination_service_name", "reviews"),
        ("destination_service_namespace", "ns"),
        ("destination_principal", "spiffe://cluster.local/ns/ns/sa/reviews"),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
    ] {
        assert_eq!(labels[name], value, "{name}");
    }
    let m = metrics(10);
    m.opened(&FlowRecord {
        direction: Direction::Inbound,
        source: Endpoint::default(),
        service: None,
        transport: Transport::Passthrough,
        flags: ResponseFlags::Deny,
        ..record()
    });
    let (labels, _) = samples(&m, OPENED).remove(0);
    for (name, value) in [
        ("reporter", "destination"),
        ("source_workload", "unknown"),
        ("source_principal", "unknown"),
        ("destination_service", "unknown"),
        ("response_flags", "DENY"),
        ("connection_security_policy", "unknown"),
    ] {
        assert_eq!(labels[name], value, "{name}");
    }
}

#[test]
fn label_values_are_escaped() {
    let m = metrics(10);
    let odd = "a\"},b=\"\\\nistio_tcp_connections_opened_total{} 7";
    let mut r = record();
    r.source.workload = odd.into();
    m.opened(&r);
    let all = samples(&m, OPENED);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].0["source_workload"], odd);
    assert_eq!(all[0].1, 1);
}

#[test]
fn series_that_nothing_touches_are_dropped_and_open_ones_stay() {
    let m = metrics(10);
    m.opened(&to("ended"));
    m.closed(&to("ended"));
    m.opened(&to("open"));
    m.failed(&to("failed"));
    m.sweep(Instant::now());
    assert_eq!(samples(&m, OPENED).len(), 2, "nothing is idle for long");
    let later = Instant::now() + Duration::from_secs(61);
    m.sweep(later);
    let left = samples(&m, OPENED);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].0["destination_canonical_service"], "open");
    assert!(samples(&m, "istio_tcp_connections_failed_total").is_empty());
    m.closed(&to("open"));
    m.sweep(later);
    assert_eq!(samples(&m, OPENED).len(), 1, "touched since the last sweep");
    m.sweep(later + Duration::from_secs(61));
    assert!(samples(&m, OPENED).is_empty());
}

#[test]
fn beyond_the_limit_connections_are_counted_together() {
    let m = metrics(2);
    for name in ["a", "b", "c", "d", "e"] {
        m.opened(&to(name));
    }
    let all = samples(&m, OPENED);
    assert_eq!(all.len(), 3, "two, and the overflow");
    let (overflow, known): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(labels, _)| labels.contains_key("overflow"));
    assert_eq!(overflow[0].1, 3);
    assert_eq!(overflow[0].0["reporter"], "source");
    assert_eq!(known.iter().map(|(_, n)| n).sum::<u64>(), 2);
    // Those that have a series keep it.
    m.opened(&to("a"));
    let all = samples(&m, OPENED);
    assert!(all.iter().any(|(l, n)| l.get("destination_app").is_some_and(|a| a == "a") && *n == 2));
}
