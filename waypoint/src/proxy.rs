//! What every part of a waypoint shares.

use crate::{
    clients::Clients, doors::Doors, gateway::Listeners, spans::Spans, tables::Tables,
    telling::Telling, upstream::Connections,
};
use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use hbone::{Baggage, Dial, DialError, Dialled, Expected, Pool};
use identity::{CertStore, SpiffeId};
use mesh::{Mesh, Workload};
use resolver::Resolver;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use telemetry::{Metrics, RequestMetrics};
use tokio::{net::TcpStream, sync::watch};

pub struct Proxy {
    pub identity: SpiffeId,
    /// This proxy's own record.
    pub uid: String,
    pub mesh: Arc<Mesh>,
    pub clients: Clients,
    pub resolver: Arc<Resolver>,
    pub tables: Tables,
    pub listeners: Listeners,
    pub certs: Arc<CertStore>,
    pub pool: Arc<Pool<PeerKey, Dialler>>,
    pub doors: Arc<Doors>,
    pub connections: Connections,
    pub requests: RequestMetrics,
    pub flows: Metrics,
    /// Other names of the trust domain, for service accounts in policies.
    pub trust_domain_aliases: Vec<Arc<str>>,
    /// What is told of requests, but for lines where nobody wants them.
    pub telling: ArcSwap<Telling>,
    pub access_log: bool,
    pub spans: Spans,
    /// True once no new work is taken.
    pub draining: watch::Receiver<bool>,
    /// True once everything that is needed has come.
    pub ready: watch::Sender<bool>,
}

/// How long a connection waits for discovery's first answer and for a certificate.
pub const PATIENCE: Duration = Duration::from_secs(10);

impl Proxy {
    pub fn own(&self) -> Option<Arc<Workload>> {
        self.mesh.workload(&self.uid)
    }

    /// What this proxy says of itself.
    pub fn baggage(&self) -> String {
        let Some(w) = self.own() else { return String::new() };
        let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        let baggage = Baggage {
            cluster: text(&w.cluster),
            namespace: text(&w.namespace),
            workload: text(&w.workload_name),
            workload_type: Some(w.workload_type),
            service: text(&w.canonical_name),
            revision: text(&w.canonical_revision),
            region: text(&w.site.locality.region),
            zone: text(&w.site.locality.zone),
        };
        baggage.encode()
    }

    pub fn trust_domains(&self, w: &Workload) -> Arc<[Arc<str>]> {
        std::iter::once(w.trust_domain.clone())
            .chain(self.trust_domain_aliases.iter().cloned())
            .collect()
    }

    /// Before everything has come once, nobody knows what goes where: connections wait.
    pub async fn is_ready(&self) -> bool {
        let mut ready = self.ready.subscribe();
        tokio::time::timeout(PATIENCE, ready.wait_for(|r| *r)).await.is_ok_and(|r| r.is_ok())
    }
}

/// Connections over HBONE are shared by streams that agree in this.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PeerKey {
    pub identity: SpiffeId,
    pub address: SocketAddr,
}

pub struct Dialler {
    pub own: SpiffeId,
    pub certs: Arc<CertStore>,
}

impl Dial<PeerKey> for Dialler {
    fn dial(&self, key: PeerKey) -> BoxFuture<'static, Result<Dialled, DialError>> {
        let (own, certs) = (self.own.clone(), self.certs.clone());
        Box::pin(async move {
            let certified = certs.fetch(&own, PATIENCE).await.map_err(DialError::Identity)?;
            let stream = TcpStream::connect(key.address).await?;
            stream.set_nodelay(true)?;
            let expected = Expected(vec![key.identity]);
            let (connection, driver, _) = hbone::handshake(stream, &certified, &expected).await?;
            let generation = certified.generation;
            Ok(Dialled { connection, generation, driver: Box::pin(driver) })
        })
    }

    fn generation(&self, _: &PeerKey) -> u64 {
        self.certs.current(&self.own).map_or(0, |c| c.generation)
    }

    fn spawn(&self, _: &PeerKey, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }
}
