//! What is known about one request, and the L7 metrics and access log made of it, in Istio's names.

use crate::{Endpoint, SeriesLimits, ServiceName, metrics::LabelSet};
use serde::Serialize;
use std::{
    collections::{HashMap, hash_map::RandomState},
    fmt::Write as _,
    hash::{BuildHasher as _, Hash as _, Hasher as _},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// One request, from its head to the end of its answer, or what a connection of bytes has of it. The
/// field names are those of Istio's JSON access log.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RequestRecord {
    /// RFC 3339.
    pub start_time: String,
    /// Connections of bytes have neither method nor path nor protocol.
    #[serde(skip_serializing_if = "is_empty")]
    pub method: String,
    #[serde(skip_serializing_if = "is_empty")]
    pub path: String,
    #[serde(skip_serializing_if = "is_empty")]
    pub protocol: &'static str,
    pub response_code: u16,
    /// Envoy's, or `-`.
    pub response_flags: &'static str,
    /// In words, where it was not the application that answered.
    pub response_code_details: String,
    /// In words, where a connection of bytes did not end by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_termination_details: Option<String>,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Milliseconds.
    pub duration: u64,
    pub authority: String,
    pub user_agent: String,
    pub request_id: String,
    pub upstream_host: Option<SocketAddr>,
    pub upstream_cluster: Arc<str>,
    pub route_name: Arc<str>,
    pub attempts: u32,
    pub downstream_remote_address: Option<SocketAddr>,
    pub downstream_local_address: Option<SocketAddr>,
    pub downstream_peer: Option<String>,
    /// What a client of TLS has asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_server_name: Option<String>,
    /// `waypoint`, or `source` for a gateway.
    #[serde(skip)]
    pub reporter: &'static str,
    #[serde(skip)]
    pub source: Endpoint,
    #[serde(skip)]
    pub destination: Endpoint,
    #[serde(skip)]
    pub service: ServiceName,
    /// `http` or `grpc`.
    #[serde(skip)]
    pub request_protocol: &'static str,
    /// [`GRPC_UNKNOWN`] where it is no gRPC.
    #[serde(skip)]
    pub grpc_status: u32,
    /// Of gRPC.
    #[serde(skip)]
    pub request_messages: u64,
    #[serde(skip)]
    pub response_messages: u64,
    #[serde(skip)]
    pub mutual_tls: bool,
    #[serde(skip)]
    pub took: Duration,
}

pub const GRPC_UNKNOWN: u32 = u32::MAX;

fn is_empty(text: &impl AsRef<str>) -> bool {
    text.as_ref().is_empty()
}

impl RequestRecord {
    /// One line of JSON.
    pub fn line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Istio's buckets, in milliseconds or bytes.
const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    /// In thousandths.
    sum: AtomicU64,
}

impl Histogram {
    fn add(&self, value: f64) {
        let at = BUCKETS.partition_point(|b| *b < value);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        // Negative values do not occur.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        self.sum.fetch_add((value * 1000.0) as u64, Ordering::Relaxed);
    }

    #[allow(clippy::cast_precision_loss)]
    fn encode(&self, name: &str, labels: &str, out: &mut String) {
        let mut below = 0;
        for (limit, bucket) in BUCKETS.iter().zip(&self.buckets) {
            below += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{limit}\"}} {below}");
        }
        let count = self.count.load(Ordering::Relaxed);
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1000.0;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}");
        let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
    }
}

struct Series {
    labels: String,
    touched: Mutex<Instant>,
    requests: AtomicU64,
    duration: Histogram,
    received: Histogram,
    sent: Histogram,
    /// Messages of gRPC's requests and answers, of what is gRPC.
    messages: Option<[AtomicU64; 2]>,
}

/// The metrics of one proxy. A series is found by a keyed hash of its label values: the text is made
/// once per series, not per request.
pub struct RequestMetrics {
    limits: SeriesLimits,
    hasher: RandomState,
    series: Mutex<HashMap<u64, Arc<Series>>>,
}

impl RequestMetrics {
    pub fn new(limits: SeriesLimits) -> Self {
        Self { limits, hasher: RandomState::new(), series: Mutex::default() }
    }

    pub fn observe(&self, r: &RequestRecord) {
        let series = self.of(r);
        series.requests.fetch_add(1, Ordering::Relaxed);
        series.duration.add(r.took.as_secs_f64() * 1000.0);
        #[allow(clippy::cast_precision_loss)]
        series.received.add(r.bytes_received as f64);
        #[allow(clippy::cast_precision_loss)]
        series.sent.add(r.bytes_sent as f64);
        if let Some([requests, answers]) = &series.messages {
            requests.fetch_add(r.request_messages, Ordering::Relaxed);
            answers.fetch_add(r.response_messages, Ordering::Relaxed);
        }
    }

    fn of(&self, r: &RequestRecord) -> Arc<Series> {
        let mut h = self.hasher.build_hasher();
        for e in [&r.source, &r.destination] {
            (&e.workload, &e.namespace, &e.canonical_service, &e.canonical_revision).hash(&mut h);
            (&e.identity, &e.cluster).hash(&mut h);
        }
        (&r.service.hostname, &r.service.namespace, r.request_protocol).hash(&mut h);
        (r.response_code, r.response_flags, r.grpc_status, r.mutual_tls).hash(&mut h);
        let mut key = h.finish();
        let now = Instant::now();
        let mut all = self.lock();
        if let Some(series) = all.get(&key) {
            *series.touched.lock().unwrap_or_else(PoisonError::into_inner) = now;
            return series.clone();
        }
        let mut text = labels(r);
        if all.len() >= self.limits.most {
            (key, text) = (0, "overflow=\"true\"".to_owned());
        }
        let new = || {
            Arc::new(Series {
                labels: text,
                touched: Mutex::new(now),
                requests: AtomicU64::new(0),
                duration: Histogram::default(),
                received: Histogram::default(),
                sent: Histogram::default(),
                messages: (r.request_protocol == "grpc").then(Default::default),
            })
        };
        all.entry(key).or_insert_with(new).clone()
    }

    /// Drops what nothing has touched; call it now and then.
    pub fn sweep(&self, now: Instant) {
        let idle = self.limits.idle;
        self.lock().retain(|_, s| {
            let touched = *s.touched.lock().unwrap_or_else(PoisonError::into_inner);
            now.saturating_duration_since(touched) < idle
        });
    }

    /// Prometheus' text format.
    pub fn encode(&self, out: &mut String) {
        let mut all: Vec<Arc<Series>> = self.lock().values().cloned().collect();
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        let _ = writeln!(
            out,
            "# HELP istio_requests_total Requests.\n# TYPE istio_requests_total counter"
        );
        for s in &all {
            let n = s.requests.load(Ordering::Relaxed);
            let _ = writeln!(out, "istio_requests_total{{{}}} {n}", s.labels);
        }
        type Of = fn(&Series) -> &Histogram;
        let histograms: [(&str, &str, Of); 3] = [
            (
                "istio_request_duration_milliseconds",
                "From a request's head to the end of its answer.",
                |s| &s.duration,
            ),
            ("istio_request_bytes", "Bytes of requests' bodies.", |s| &s.received),
            ("istio_response_bytes", "Bytes of answers' bodies.", |s| &s.sent),
        ];
        for (name, help, of) in histograms {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
            for s in &all {
                of(s).encode(name, &s.labels, out);
            }
        }
        let counters = [
            ("istio_request_messages_total", "Messages of gRPC's requests."),
            ("istio_response_messages_total", "Messages of gRPC's answers."),
        ];
        for (i, (name, help)) in counters.into_iter().enumerate() {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
            for s in &all {
                if let Some(n) = s.messages.as_ref().and_then(|m| m.get(i)) {
                    let _ = writeln!(out, "{name}{{{}}} {}", s.labels, n.load(Ordering::Relaxed));
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Series>>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn labels(r: &RequestRecord) -> String {
    let mut out = LabelSet(String::with_capacity(768));
    out.add("reporter", r.reporter);
    out.ends(&r.source, &r.destination);
    out.service(&r.service);
    out.add("request_protocol", r.request_protocol);
    out.add("response_code", &r.response_code.to_string());
    let status = match r.grpc_status {
        GRPC_UNKNOWN => String::new(),
        status => status.to_string(),
    };
    // Istio writes nothing where there is none.
    let _ = write!(out.0, ",grpc_response_status=\"{status}\"");
    out.add("response_flags", r.response_flags);
    out.add("connection_security_policy", if r.mutual_tls { "mutual_tls" } else { "unknown" });
    out.0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_their_labels() {
        let m = RequestMetrics::new(SeriesLimits::default());
        let record = |code| RequestRecord {
            response_code: code,
            reporter: "waypoint",
            response_flags: "-",
            request_protocol: "http",
            grpc_status: GRPC_UNKNOWN,
            took: Duration::from_millis(7),
            bytes_sent: 100,
            service: ServiceName { hostname: "h".into(), ..ServiceName::default() },
            ..RequestRecord::default()
        };
        m.observe(&record(200));
        m.observe(&record(200));
        m.observe(&record(503));
        let mut out = String::new();
        m.encode(&mut out);
        let line = |code: &str| {
            let has = |l: &&str| {
                l.starts_with("istio_requests_total{")
                    && l.contains(&format!("response_code=\"{code}\""))
            };
            out.lines().find(has).unwrap().rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!((line("200"), line("503")), ("2".to_owned(), "1".to_owned()));
        assert!(out.contains("grpc_response_status=\"\""));
        let bucket = |le: &str| {
            let has = |l: &&str| {
                l.starts_with("istio_request_duration_milliseconds_bucket{")
                    && l.contains("response_code=\"200\"")
                    && l.contains(&format!("le=\"{le}\""))
            };
            out.lines().find(has).unwrap().rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(
            (bucket("5"), bucket("10"), bucket("+Inf")),
            ("0".into(), "2".into(), "2".into())
        );
    }
}
