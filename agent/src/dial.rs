//! How a pooled HBONE connection is made: from the source pod's namespace, with its certificate.

use crate::{agent::Agent, fault, pods::Pod, sockets};
use futures_util::future::BoxFuture;
use hbone::{Dial, DialError, Dialled, Expected};
use identity::{CertStore, SpiffeId};
use std::{
    hash::{Hash, Hasher},
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock, Weak},
};

/// Connections are shared by streams that agree in all of this.
#[derive(Clone)]
pub struct PoolKey {
    /// So that a connection and its streams are on one thread.
    pub worker: usize,
    pub pod: Arc<Pod>,
    pub source: SpiffeId,
    pub source_address: IpAddr,
    pub destination: SpiffeId,
    pub address: SocketAddr,
}

impl PoolKey {
    fn parts(&self) -> (usize, u32, &SpiffeId, IpAddr, &SpiffeId, SocketAddr) {
        (
            self.worker,
            self.pod.owner,
            &self.source,
            self.source_address,
            &self.destination,
            self.address,
        )
    }
}

impl PartialEq for PoolKey {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for PoolKey {}

impl Hash for PoolKey {
    fn hash<H: Hasher>(&self, h: &mut H) {
        self.parts().hash(h);
    }
}

/// Dials for the agent, which holds the pool that holds this.
pub struct AgentDial {
    pub agent: Arc<OnceLock<Weak<Agent>>>,
    pub certs: Arc<CertStore>,
}

impl Dial<PoolKey> for AgentDial {
    fn dial(&self, key: PoolKey) -> BoxFuture<'static, Result<Dialled, DialError>> {
        let agent = self.agent.clone();
        let certs = self.certs.clone();
        Box::pin(async move {
            let gone = || DialError::Io(std::io::Error::other("the agent is stopping"));
            let agent = agent.get().and_then(Weak::upgrade).ok_or_else(gone)?;
            let certified = certs
                .fetch(&key.source, crate::agent::PATIENCE)
                .await
                .map_err(DialError::Identity)?;
            key.pod.scope.count_handshake();
            let stream =
                sockets::connect(&agent.capture, &key.pod, Some(key.source_address), key.address)
                    .await?;
            fault::point("dial-connected");
            let expected = Expected(vec![key.destination.clone()]);
            let (connection, driver, _) = hbone::handshake(stream, &certified, &expected).await?;
            fault::point("dial-shaken");
            let generation = certified.generation;
            Ok(Dialled { connection, generation, driver: Box::pin(driver) })
        })
    }

    fn generation(&self, key: &PoolKey) -> u64 {
        self.certs.current(&key.source).map_or(0, |c| c.generation)
    }

    fn spawn(&self, key: &PoolKey, task: BoxFuture<'static, ()>) {
        key.pod.scope.spawn(task);
    }
}
