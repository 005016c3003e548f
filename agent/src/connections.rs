//! The connections of this node's pods: listed, counted, judged again when policy changes.

use crate::fault;
use hbone::{Baggage, Relayed};
use mesh::Workload;
use policy::Request;
use serde::Serialize;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};
use telemetry::{CloseReason, FlowRecord, Metrics, ResponseFlags, Series, Whose, log};
use tokio::sync::Notify;
use tracing::Level;

#[derive(Default)]
pub struct Connections {
    next: AtomicU64,
    live: Mutex<HashMap<u64, Arc<Live>>>,
}

/// A connection under way.
pub struct Live {
    pub record: FlowRecord,
    pub relayed: Arc<Relayed>,
    /// What policy was asked, for a connection that policy judges here.
    pub judged: Option<Judged>,
    /// Its entry may be dropped where somebody else's work is done.
    whose: Whose,
    ended_by: Mutex<Option<String>>,
    /// That there is a reason now. The relay alone waits for it.
    ended: Notify,
    begun: Instant,
}

#[derive(Clone, Debug)]
pub struct Judged {
    pub destination_uid: Arc<str>,
    pub request: Request,
    /// The node's kubelet has made it: no policy counts.
    pub by_kubelet: bool,
}

/// A row of `culvertctl connections`.
#[derive(Serialize)]
pub struct Row {
    #[serde(flatten)]
    record: FlowRecord,
}

/// A connection's entry; removed, logged and counted when it is dropped or finished.
pub struct Entry {
    all: Arc<Connections>,
    series: Arc<Series>,
    live: Arc<Live>,
    close: Option<CloseReason>,
    forgotten: bool,
}

impl Connections {
    pub fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub fn open(
        self: &Arc<Self>,
        metrics: &Metrics,
        record: FlowRecord,
        judged: Option<Judged>,
    ) -> Entry {
        let series = metrics.series(&record);
        self.open_in(series, record, judged)
    }

    /// The same, where the series that it counts in is known.
    pub fn open_in(
        self: &Arc<Self>,
        series: Arc<Series>,
        record: FlowRecord,
        judged: Option<Judged>,
    ) -> Entry {
        series.opened();
        let live = Arc::new(Live {
            record,
            relayed: Arc::default(),
            judged,
            whose: Whose::now(),
            ended_by: Mutex::new(None),
            ended: Notify::new(),
            begun: Instant::now(),
        });
        self.lock().insert(live.record.id, live.clone());
        Entry { all: self.clone(), series, live, close: None, forgotten: false }
    }

    /// A connection that never opened.
    pub fn failed(
        &self,
        metrics: &Metrics,
        mut record: FlowRecord,
        flags: ResponseFlags,
        close: CloseReason,
    ) {
        record.flags = flags;
        record.close = Some(close);
        metrics.failed(&record);
        log::access(Level::WARN, &record);
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> =
            self.lock().values().map(|l| Row { record: l.snapshot(None) }).collect();
        rows.sort_by_key(|r| r.record.id);
        rows
    }

    /// Ends every connection that `verdict` no longer allows; it answers with the reason.
    pub fn judge_again(&self, verdict: impl Fn(&Judged) -> Option<String>) -> usize {
        let all: Vec<Arc<Live>> = self.lock().values().cloned().collect();
        let mut ended = 0;
        for live in all {
            fault::point("policy-applied");
            ended += usize::from(live.judge_again(&verdict));
        }
        ended
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn judge_again(&self, verdict: &impl Fn(&Judged) -> Option<String>) -> bool {
        let Some(why) = self.judged.as_ref().and_then(verdict) else { return false };
        self.end(why);
        true
    }

    fn end(&self, why: String) {
        *self.ended_by() = Some(why);
        self.ended.notify_one();
    }

    fn ended_by(&self) -> MutexGuard<'_, Option<String>> {
        self.ended_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshot(&self, close: Option<CloseReason>) -> FlowRecord {
        let mut record = self.record.clone();
        record.sent = self.relayed.forward.load(Ordering::Relaxed);
        record.received = self.relayed.backward.load(Ordering::Relaxed);
        record.duration_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        record.close = close;
        record
    }
}

impl Entry {
    /// Asks again what policy says: it may have changed between the verdict and the registration.
    pub fn judge_again(&self, verdict: impl Fn(&Judged) -> Option<String>) {
        self.live.judge_again(&verdict);
    }

    pub fn judged(&self) -> Option<&Judged> {
        self.live.judged.as_ref()
    }

    /// Why it must end, if policy has said so.
    pub fn denied(&self) -> Option<String> {
        self.live.ended_by().clone()
    }

    /// What nothing relays cannot be ended here: it is noted, and whoever carries it does it.
    pub fn deny(&self, why: &str) {
        self.live.end(why.to_owned());
    }

    /// What a connection has moved that nothing relays.
    pub fn has_moved(&self, sent: u64, received: u64) {
        self.live.relayed.forward.store(sent, Ordering::Relaxed);
        self.live.relayed.backward.store(received, Ordering::Relaxed);
    }

    /// The end of such a connection.
    pub fn finish(mut self, sent: u64, received: u64, close: CloseReason) {
        self.has_moved(sent, received);
        self.close = Some(self.denied().map_or(close, CloseReason::Denied));
    }

    /// Another agent has it now, and tells of its end.
    pub fn forget(mut self) {
        self.forgotten = true;
    }

    /// Relays until both ends are done, one breaks, or policy ends it; keeps `held` until both are closed.
    pub fn relay<H: Send>(
        mut self,
        first: hbone::End,
        second: hbone::End,
        held: H,
    ) -> impl Future<Output = ()> + Send {
        // All made here and used where it is: each `async` function that it is handed through keeps room for it.
        let mut relaying = hbone::relay(first, second, self.live.relayed.clone());
        async move {
            let close = tokio::select! {
                // Before a byte moves.
                biased;
                () = self.live.ended.notified() => {
                    let why = self.live.ended_by().take();
                    CloseReason::Denied(why.unwrap_or_default())
                }
                done = &mut relaying => match done {
                    Ok(()) => CloseReason::Finished,
                    Err(broken) => CloseReason::Reset(broken.to_string()),
                },
            };
            self.close = Some(close);
            drop(self);
            drop(relaying);
            drop(held);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.all.lock().remove(&self.live.record.id);
        if self.forgotten {
            return;
        }
        let close = self.close.take().unwrap_or(CloseReason::Stopped);
        let record = self.live.snapshot(Some(close));
        self.series.closed(record.sent, record.received);
        self.live.whose.within(|| log::access(Level::INFO, &record));
    }
}

/// A connection of which nobody had to know while it was open: counted and told of.
pub fn came_and_went(series: &Series, record: &FlowRecord) {
    series.opened();
    series.closed(record.sent, record.received);
    log::access(Level::INFO, record);
}

/// The workload's part of a record.
pub fn endpoint(
    address: Option<std::net::SocketAddr>,
    workload: Option<&Workload>,
    identity: Option<Arc<str>>,
) -> telemetry::Endpoint {
    match workload {
        Some(w) => telemetry::Endpoint {
            address,
            workload: w.workload_name.clone(),
            namespace: w.namespace.clone(),
            canonical_service: w.canonical_name.clone(),
            canonical_revision: w.canonical_revision.clone(),
            cluster: w.cluster.clone(),
            identity,
        },
        None => telemetry::Endpoint { address, identity, ..telemetry::Endpoint::default() },
    }
}

/// What a workload says of itself to the other end.
pub fn baggage(w: &Workload) -> Baggage {
    let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    Baggage {
        cluster: text(&w.cluster),
        namespace: text(&w.namespace),
        workload: text(&w.workload_name),
        workload_type: Some(w.workload_type),
        service: text(&w.canonical_name),
        revision: text(&w.canonical_revision),
        region: text(&w.site.locality.region),
        zone: text(&w.site.locality.zone),
    }
}
