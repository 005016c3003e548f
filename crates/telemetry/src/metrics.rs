//! L4 metrics under Istio's names, in Prometheus' text format.
//!
//! A series is one set of label values. Series whose connections have all ended are dropped after
//! a time, and their number has a limit: workloads come and go, and an agent lives for months.

use crate::{Endpoint, FlowRecord, ResponseFlags, ServiceName};
use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

#[derive(Clone, Copy, Debug)]
pub struct SeriesLimits {
    /// A series that nothing has touched for this long is dropped.
    pub idle: Duration,
    /// Beyond this many, connections are counted under empty labels.
    pub most: usize,
}

impl Default for SeriesLimits {
    fn default() -> Self {
        SeriesLimits { idle: Duration::from_secs(30 * 60), most: 20_000 }
    }
}

/// The counters of one set of labels.
#[derive(Debug, Default)]
pub struct Series {
    opened: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    /// Since the last sweep.
    touched: AtomicBool,
}

impl Series {
    /// Counts a connection of this series. Finding a series costs more than many of these: who has
    /// many connections of one keeps it.
    pub fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.touched.store(true, Ordering::Relaxed);
    }

    /// Counts the end of one that [`Series::opened`] counted.
    pub fn closed(&self, sent: u64, received: u64) {
        self.closed.fetch_add(1, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
        self.received.fetch_add(received, Ordering::Relaxed);
        self.touched.store(true, Ordering::Relaxed);
    }
}

struct Entry {
    series: Arc<Series>,
    touched: Instant,
}

pub struct Metrics {
    limits: SeriesLimits,
    series: Mutex<HashMap<Arc<str>, Entry>>,
}

impl Metrics {
    pub fn new(limits: SeriesLimits) -> Self {
        Self { limits, series: Mutex::default() }
    }

    pub fn opened(&self, r: &FlowRecord) {
        self.series(r).opened();
    }

    /// Counts a connection that [`Metrics::opened`] counted, at its end.
    pub fn closed(&self, r: &FlowRecord) {
        self.series(r).closed(r.sent, r.received);
    }

    /// Counts a connection that never opened.
    pub fn failed(&self, r: &FlowRecord) {
        self.series(r).failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Drops what nothing has touched; call it now and then.
    pub fn sweep(&self, now: Instant) {
        let idle = self.limits.idle;
        self.lock().retain(|_, e| {
            if e.series.touched.swap(false, Ordering::Relaxed) {
                e.touched = now;
            }
            // Connections that are still open hold their series, and so does whoever keeps it.
            let open =
                e.series.opened.load(Ordering::Relaxed) > e.series.closed.load(Ordering::Relaxed);
            open || Arc::strong_count(&e.series) > 1
                || now.saturating_duration_since(e.touched) < idle
        });
    }

    /// Prometheus' text format.
    pub fn encode(&self, out: &mut String) {
        type Value = fn(&Series) -> u64;
        let rows: [(&str, &str, Value); 5] = [
            ("istio_tcp_connections_opened_total", "Connections opened.", |s| {
                s.opened.load(Ordering::Relaxed)
            }),
            ("istio_tcp_connections_closed_total", "Connections closed.", |s| {
                s.closed.load(Ordering::Relaxed)
            }),
            ("istio_tcp_connections_failed_total", "Connections that never opened.", |s| {
                s.failed.load(Ordering::Relaxed)
            }),
            ("istio_tcp_sent_bytes_total", "Bytes from client to server.", |s| {
                s.sent.load(Ordering::Relaxed)
            }),
            ("istio_tcp_received_bytes_total", "Bytes from server to client.", |s| {
                s.received.load(Ordering::Relaxed)
            }),
        ];
        let mut all: Vec<(Arc<str>, Arc<Series>)> =
            self.lock().iter().map(|(l, e)| (l.clone(), e.series.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, help, value) in rows {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
            for (labels, series) in &all {
                let v = value(series);
                if v > 0 {
                    let _ = writeln!(out, "{name}{{{labels}}} {v}");
                }
            }
        }
    }

    /// The series that the connection counts in.
    pub fn series(&self, r: &FlowRecord) -> Arc<Series> {
        let labels = labels(r);
        let now = Instant::now();
        let mut all = self.lock();
        if let Some(e) = all.get_mut(labels.as_str()) {
            e.touched = now;
            return e.series.clone();
        }
        let labels: Arc<str> = if all.len() < self.limits.most {
            labels.into()
        } else {
            format!("reporter={:?},overflow=\"true\"", r.reporter().as_str()).into()
        };
        let e = all.entry(labels).or_insert_with(|| Entry { series: Arc::default(), touched: now });
        e.touched = now;
        e.series.clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Entry>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const SOURCE: [&str; 8] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
];

const DESTINATION: [&str; 8] = [
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
];

/// Labels as Prometheus' text format has them.
pub(crate) struct LabelSet(pub(crate) String);

impl LabelSet {
    pub(crate) fn add(&mut self, name: &str, value: &str) {
        let out = &mut self.0;
        let value = if value.is_empty() { "unknown" } else { value };
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(name);
        out.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }

    pub(crate) fn ends(&mut self, source: &Endpoint, destination: &Endpoint) {
        for (names, e) in [(&SOURCE, source), (&DESTINATION, destination)] {
            let values: [&str; 8] = [
                &e.workload,
                &e.canonical_service,
                &e.canonical_revision,
                &e.namespace,
                e.identity.as_deref().unwrap_or_default(),
                &e.canonical_service,
                &e.canonical_revision,
                &e.cluster,
            ];
            for (name, value) in names.iter().zip(values) {
                self.add(name, value);
            }
        }
    }

    pub(crate) fn service(&mut self, service: &ServiceName) {
        self.add("destination_service", &service.hostname);
        self.add("destination_service_name", &service.name);
        self.add("destination_service_namespace", &service.namespace);
    }
}

fn labels(r: &FlowRecord) -> String {
    let mut out = LabelSet(String::with_capacity(640));
    out.add("reporter", r.reporter().as_str());
    out.ends(&r.source, &r.destination);
    out.service(&r.service.clone().unwrap_or_default());
    out.add("request_protocol", "tcp");
    out.add("response_flags", flags(r));
    let security = if r.mutual_tls() { "mutual_tls" } else { "unknown" };
    out.add("connection_security_policy", security);
    out.0
}

/// A live connection that policy ends keeps the labels under which it was opened.
fn flags(r: &FlowRecord) -> &'static str {
    match r.flags {
        ResponseFlags::None => "-",
        other => other.as_str(),
    }
}
