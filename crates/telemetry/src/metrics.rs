//! L4 metrics under Istio's names, in Prometheus' text format.
//!
//! A series is one set of label values. Series whose connections have all ended are dropped after
//! a time, and their number has a limit: workloads come and go, and an agent lives for months.

use crate::{FlowRecord, ResponseFlags};
use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
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
        self.of(r).opened.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that [`Metrics::opened`] counted, at its end.
    pub fn closed(&self, r: &FlowRecord) {
        let s = self.of(r);
        s.closed.fetch_add(1, Ordering::Relaxed);
        s.sent.fetch_add(r.sent, Ordering::Relaxed);
        s.received.fetch_add(r.received, Ordering::Relaxed);
    }

    /// Counts a connection that never opened.
    pub fn failed(&self, r: &FlowRecord) {
        self.of(r).failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Drops what nothing has touched; call it now and then.
    pub fn sweep(&self, now: Instant) {
        let idle = self.limits.idle;
        self.lock().retain(|_, e| {
            // Connections that are still open hold their series.
            let open =
                e.series.opened.load(Ordering::Relaxed) > e.series.closed.load(Ordering::Relaxed);
            open || now.saturating_duration_since(e.touched) < idle
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

    fn of(&self, r: &FlowRecord) -> Arc<Series> {
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

fn labels(r: &FlowRecord) -> String {
    let mut out = String::with_capacity(640);
    let mut label = |name: &str, value: &str| {
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
    };
    label("reporter", r.reporter().as_str());
    for (side, e) in [("source", &r.source), ("destination", &r.destination)] {
        label(&format!("{side}_workload"), &e.workload);
        label(&format!("{side}_canonical_service"), &e.canonical_service);
        label(&format!("{side}_canonical_revision"), &e.canonical_revision);
        label(&format!("{side}_workload_namespace"), &e.namespace);
        label(&format!("{side}_principal"), e.identity.as_deref().unwrap_or_default());
        label(&format!("{side}_app"), &e.canonical_service);
        label(&format!("{side}_version"), &e.canonical_revision);
        label(&format!("{side}_cluster"), &e.cluster);
    }
    let service = r.service.clone().unwrap_or_default();
    label("destination_service", &service.hostname);
    label("destination_service_name", &service.name);
    label("destination_service_namespace", &service.namespace);
    label("request_protocol", "tcp");
    label("response_flags", flags(r));
    label("connection_security_policy", if r.mutual_tls() { "mutual_tls" } else { "unknown" });
    out
}

/// A live connection that policy ends keeps the labels under which it was opened.
fn flags(r: &FlowRecord) -> &'static str {
    match r.flags {
        ResponseFlags::None => "-",
        other => other.as_str(),
    }
}
