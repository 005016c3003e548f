//! The endpoints of one port of one subset at run time: who is there, who is well, and how much may
//! be under way.

use crate::{proxy::Proxy, tls::ClientTls};
use mesh::{NamespacedHostname, Workload};
use routes::{
    balance::{Endpoint, Endpoints, Outcome, Present},
    execute::DestinationPort,
    names::ServiceName,
};
use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

pub type To = Endpoint<Arc<Workload>>;

pub struct Cluster {
    name: Arc<str>,
    pub service: NamespacedHostname,
    pub settings: Arc<DestinationPort>,
    pub labels: Vec<(String, String)>,
    tls: Option<ClientTls>,
    endpoints: Mutex<Known>,
    requests: Arc<AtomicU32>,
    retries: Arc<AtomicU32>,
    /// Over HTTP/1, of which a connection carries one at a time; more wait.
    connections: Arc<AtomicU32>,
    waiting: Arc<AtomicU32>,
    freed: tokio::sync::Notify,
}

/// The endpoints as of some epochs of the mesh and of the resolver.
#[derive(Default)]
struct Known {
    epochs: (u64, u64),
    endpoints: Arc<Endpoints<Arc<Workload>>>,
    /// Those whose addresses they have; the resolver follows a name as long as somebody uses it.
    names: Vec<Arc<resolver::Name>>,
}

/// Why a request may not be sent now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Overflow {
    #[error("as many requests are under way as connectionPool.http.http2MaxRequests allows")]
    Requests,
    #[error("as many connections are open as connectionPool.tcp.maxConnections allows")]
    Connections,
    #[error("as many requests wait as connectionPool.http.http1MaxPendingRequests allows")]
    Pending,
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
        let port = settings.port;
        Self {
            name: format!("outbound|{port}|{subset}|{}", name.hostname).into(),
            service: NamespacedHostname {
                namespace: name.namespace.as_str().into(),
                hostname: name.hostname.as_str().into(),
            },
            tls: settings.policy.tls.clone().map(ClientTls::new),
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

    /// The TLS that is begun with an endpoint. A waypoint, which is none, begins it itself.
    pub fn tls_to(&self, to: &To) -> Option<&ClientTls> {
        self.tls.as_ref().filter(|_| to.workload.services.get(&self.service).is_some())
    }

    /// As Envoy names clusters.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Those that are there now. Who comes first to names waits until they are resolved.
    pub async fn endpoints(&self, proxy: &Proxy, own: &Workload) -> Arc<Endpoints<Arc<Workload>>> {
        let epochs = (proxy.mesh.epoch(), proxy.resolver.epoch());
        {
            let known = self.lock();
            if known.epochs == epochs && epochs.0 != 0 {
                known.names.iter().for_each(|n| n.used());
                return known.endpoints.clone();
            }
        }
        // A waypoint resolves its own.
        let beyond = proxy.mesh.through_waypoint(own, &self.service, self.settings.port);
        let named = match &beyond {
            Some(_) => Vec::new(),
            None => proxy.mesh.named_endpoints(&self.service, self.settings.port),
        };
        let name = |(w, port): (Arc<Workload>, u16)| {
            let name = proxy.resolver.name(w.hostname.as_deref().unwrap_or_default());
            (w, port, name)
        };
        let named: Vec<_> = named.into_iter().map(name).collect();
        let settled = futures_util::future::join_all(named.iter().map(|(.., n)| n.settled()));
        let _ = tokio::time::timeout(self.settings.policy.connect_timeout, settled).await;
        let names = named.iter().map(|(.., n)| n.clone()).collect();
        let present = self.present(proxy, own, beyond, named);
        let mut held = self.lock();
        held.names = names;
        // What is the same as before keeps its turn.
        let known: HashSet<_> = held
            .endpoints
            .all()
            .iter()
            .map(|e| (Arc::as_ptr(&e.workload), e.address, e.distance))
            .collect();
        let is_known =
            |p: &Present<_>| known.contains(&(Arc::as_ptr(&p.workload), p.address, p.distance));
        if present.len() != known.len() || !present.iter().all(is_known) {
            let start = usize::from(rand::random::<u16>());
            let policy = &self.settings.policy;
            held.endpoints = Arc::new(Endpoints::new(present, &held.endpoints, policy, start));
        }
        held.epochs = epochs;
        held.endpoints.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn present(
        &self,
        proxy: &Proxy,
        own: &Workload,
        beyond: Option<Vec<(Arc<Workload>, SocketAddr)>>,
        named: Vec<(Arc<Workload>, u16, Arc<resolver::Name>)>,
    ) -> Vec<Present<Arc<Workload>>> {
        let port = self.settings.port;
        let has = |w: &Workload| {
            self.labels
                .iter()
                .all(|(k, v)| w.labels.iter().any(|(ok, ov)| **ok == **k && **ov == **v))
        };
        let present = |key: String, workload: Arc<Workload>, address| Present {
            key,
            distance: self.distance(&workload, own),
            workload,
            address,
        };
        // A waypoint chooses among the endpoints itself.
        if let Some(beyond) = beyond {
            return beyond.into_iter().map(|(w, at)| present(w.uid.to_string(), w, at)).collect();
        }
        let numbered = proxy.mesh.endpoints(&self.service, port).into_iter();
        let numbered = numbered.filter(|(w, _)| has(w));
        let mut all: Vec<_> = numbered.map(|(w, at)| present(w.uid.to_string(), w, at)).collect();
        for (w, port, name) in named.into_iter().filter(|(w, ..)| has(w)) {
            let reachable =
                |ip: &&IpAddr| own.addresses.iter().any(|a| a.is_ipv4() == ip.is_ipv4());
            for ip in name.addresses().iter().filter(reachable) {
                let at = SocketAddr::new(*ip, port);
                all.push(present(format!("{}/{ip}", w.uid), w.clone(), at));
            }
        }
        all
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
    pub fn begin_retry(&self) -> Option<Counted> {
        let policy = &self.settings.policy;
        let limit = match policy.retry_budget {
            Some((hundredths, least)) => {
                let active = u64::from(self.requests.load(Ordering::Relaxed));
                let share = active.saturating_mul(u64::from(hundredths)) / 10_000;
                Some(u32::try_from(share).unwrap_or(u32::MAX).max(least))
            }
            None => policy.max_retries,
        };
        Counted::take(&self.retries, limit)
    }

    /// Room for a connection, now or not at all: those of bytes last for as long as their ends like.
    pub fn connection(self: &Arc<Self>) -> Result<Slot, Overflow> {
        let most = self.settings.policy.max_connections;
        let counted = Counted::take(&self.connections, most).ok_or(Overflow::Connections)?;
        Ok(Slot { cluster: self.clone(), counted: Some(counted) })
    }

    /// Room for a connection of HTTP/1, waited for as far as others may be waiting.
    pub async fn slot(self: &Arc<Self>) -> Result<Slot, Overflow> {
        let policy = &self.settings.policy;
        if let Ok(slot) = self.connection() {
            return Ok(slot);
        }
        let _waiting = Counted::take(&self.waiting, policy.max_pending).ok_or(Overflow::Pending)?;
        loop {
            let freed = self.freed.notified();
            if let Ok(slot) = self.connection() {
                return Ok(slot);
            }
            freed.await;
        }
    }

    /// Hears how an attempt ended: what may be ejected is a share of those that are there now.
    pub fn report(&self, to: &To, outcome: Outcome) {
        let Some(outlier) = &self.settings.policy.outlier else { return };
        let endpoints = self.lock().endpoints.clone();
        if endpoints.report(to, outlier, outcome, Instant::now()) {
            tracing::warn!(cluster = %self.name, endpoint = %to.address, workload = to.workload.name(),
                "ejected: too many errors in a row");
        }
    }
}
