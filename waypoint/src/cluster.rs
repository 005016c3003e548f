//! The endpoints of one port of one subset at run time: who is there, who is well, and how much may
//! be under way.

use mesh::{Mesh, NamespacedHostname, Workload};
use routes::{
    balance::{Endpoint, Endpoints, Outcome, Present},
    execute::DestinationPort,
    names::ServiceName,
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

pub type To = Endpoint<Arc<Workload>>;

pub struct Cluster {
    pub service: NamespacedHostname,
    pub subset: String,
    pub settings: Arc<DestinationPort>,
    pub labels: Vec<(String, String)>,
    endpoints: Mutex<(u64, Arc<Endpoints<Arc<Workload>>>)>,
    requests: Arc<AtomicU32>,
    retries: Arc<AtomicU32>,
    /// Over HTTP/1, of which a connection carries one at a time; more wait.
    connections: Arc<AtomicU32>,
    waiting: Arc<AtomicU32>,
    freed: tokio::sync::Notify,
}

/// Why a request may not be sent now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Overflow {
    #[error("as many requests are under way as connectionPool.http.http2MaxRequests allows")]
    Requests,
    #[error("as many requests wait as connectionPool.http.http1MaxPendingRequests allows")]
    Pending,
    #[error("as many retries are under way as connectionPool.http.maxRetries or the budget allows")]
    Retries,
}

/// One of a number that has a limit.
pub struct Counted(Arc<AtomicU32>);

impl Counted {
    fn take(of: &Arc<AtomicU32>, limit: Option<u32>) -> Option<Self> {
        let below = |n: u32| limit.is_none_or(|l| n < l).then(|| n.saturating_add(1));
        of.fetch_update(Ordering::AcqRel, Ordering::Acquire, below).ok()?;
        Some(Self(of.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A connection's worth of HTTP/1; the next who waits is told when it is given back.
pub struct Slot {
    cluster: Arc<Cluster>,
    counted: Option<Counted>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.counted.take();
        self.cluster.freed.notify_one();
    }
}

impl Cluster {
    pub fn new(
        name: &ServiceName,
        subset: &str,
        settings: Arc<DestinationPort>,
        labels: Vec<(String, String)>,
    ) -> Self {
        Self {
            service: NamespacedHostname {
                namespace: name.namespace.as_str().into(),
                hostname: name.hostname.as_str().into(),
            },
            subset: subset.to_owned(),
            settings,
            labels,
            endpoints: Mutex::default(),
            requests: Arc::default(),
            retries: Arc::default(),
            connections: Arc::default(),
            waiting: Arc::default(),
            freed: tokio::sync::Notify::new(),
        }
    }

    /// As Envoy names clusters.
    pub fn name(&self) -> String {
        let (port, subset) = (self.settings.port, &self.subset);
        format!("outbound|{port}|{subset}|{}", self.service.hostname)
    }

    /// Those that are there now.
    pub fn endpoints(&self, mesh: &Mesh, own: &Workload) -> Arc<Endpoints<Arc<Workload>>> {
        let epoch = mesh.epoch();
        let mut held = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 == epoch && epoch != 0 {
            return held.1.clone();
        }
        let has = |w: &Workload| {
            self.labels
                .iter()
                .all(|(k, v)| w.labels.iter().any(|(ok, ov)| **ok == **k && **ov == **v))
        };
        // A waypoint chooses among the endpoints itself.
        let beyond = mesh.through_waypoint(own, &self.service, self.settings.port);
        let through = beyond.is_some();
        let all = beyond.unwrap_or_else(|| mesh.endpoints(&self.service, self.settings.port));
        let present: Vec<Present<Arc<Workload>>> = all
            .into_iter()
            .filter(|(w, _)| through || has(w))
            .map(|(workload, address)| Present {
                key: workload.uid.to_string(),
                distance: self.distance(&workload, own),
                workload,
                address,
            })
            .collect();
        // What is the same as before keeps its turn.
        let same = present.len() == held.1.all().len()
            && present.iter().all(|p| {
                held.1.all().iter().any(|e| {
                    e.address == p.address
                        && e.distance == p.distance
                        && Arc::ptr_eq(&e.workload, &p.workload)
                })
            });
        if !same {
            let start = usize::from(rand::random::<u16>());
            held.1 = Arc::new(Endpoints::new(present, &held.1, &self.settings.policy, start));
        }
        held.0 = epoch;
        held.1.clone()
    }

    /// 0 within the same subzone, then zone, then region, then where the region fails over to.
    fn distance(&self, w: &Workload, own: &Workload) -> u8 {
        let Some(locality) = &self.settings.policy.locality else { return 0 };
        let (a, b) = (&w.site.locality, &own.site.locality);
        if a == b {
            0
        } else if a.region == b.region && a.zone == b.zone {
            1
        } else if a.region == b.region {
            2
        } else if locality.failover.get(&b.region) == Some(&a.region) {
            3
        } else {
            4
        }
    }

    pub fn begin_request(&self) -> Result<Counted, Overflow> {
        Counted::take(&self.requests, self.settings.policy.max_requests).ok_or(Overflow::Requests)
    }

    /// Envoy's retry budget where there is one, else its limit, which is Istio's: 2^32-1.
    pub fn begin_retry(&self) -> Result<Counted, Overflow> {
        let policy = &self.settings.policy;
        let limit = match policy.retry_budget {
            Some((hundredths, least)) => {
                let active = u64::from(self.requests.load(Ordering::Relaxed));
                let share = active.saturating_mul(u64::from(hundredths)) / 10_000;
                Some(u32::try_from(share).unwrap_or(u32::MAX).max(least))
            }
            None => policy.max_retries,
        };
        Counted::take(&self.retries, limit).ok_or(Overflow::Retries)
    }

    /// Room for a connection of HTTP/1, waited for as far as others may be waiting.
    pub async fn slot(self: &Arc<Self>) -> Result<Slot, Overflow> {
        let policy = &self.settings.policy;
        let take = || {
            let counted = Counted::take(&self.connections, policy.max_connections)?;
            Some(Slot { cluster: self.clone(), counted: Some(counted) })
        };
        if let Some(slot) = take() {
            return Ok(slot);
        }
        let _waiting = Counted::take(&self.waiting, policy.max_pending).ok_or(Overflow::Pending)?;
        loop {
            let freed = self.freed.notified();
            if let Some(slot) = take() {
                return Ok(slot);
            }
            freed.await;
        }
    }

    /// Hears how an attempt ended: what may be ejected is a share of those that are there now.
    pub fn report(&self, to: &To, outcome: Outcome) {
        let Some(outlier) = &self.settings.policy.outlier else { return };
        let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner).1.clone();
        if endpoints.report(to, outlier, outcome, Instant::now()) {
            tracing::warn!(cluster = self.name(), endpoint = %to.address, workload = to.workload.name(),
                "ejected: too many errors in a row");
        }
    }
}
