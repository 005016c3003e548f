//! The control plane's own certificate, and connections under it. When the authority changes the
//! certificate does; connections that are open stay.

use crate::ca::Authority;
use anyhow::Context as _;
use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

/// A hand-shake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Hand-shakes under way at a time: those beyond wait in the listener's queue.
const HANDSHAKES: usize = 1024;

/// The control plane's own certificate is made anew this often, long before it ends.
const RENEWED: Duration = Duration::from_secs(24 * 60 * 60);

/// How often the clock on the wall is looked at: a certificate that begins later than now, as the clock
/// was set back, is nobody's.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

/// What is shown to whoever connects.
#[derive(Debug)]
pub struct Serving {
    name: String,
    now: ArcSwap<Own>,
}

#[derive(Debug)]
struct Own {
    key: Arc<CertifiedKey>,
    /// By the clock on the wall, and by the one that nobody sets.
    issued: SystemTime,
    since: Instant,
}

impl Own {
    fn is_due(&self, now: SystemTime) -> bool {
        let young = now.duration_since(self.issued).is_ok_and(|age| age < RENEWED);
        !young || self.since.elapsed() >= RENEWED
    }
}

impl Serving {
    pub fn new(name: &str, authority: &Authority) -> anyhow::Result<Arc<Self>> {
        let now = ArcSwap::from_pointee(issue(name, authority)?);
        Ok(Arc::new(Self { name: name.to_owned(), now }))
    }

    /// From now on, by this authority.
    pub fn renew(&self, authority: &Authority) -> anyhow::Result<()> {
        self.now.store(Arc::new(issue(&self.name, authority)?));
        Ok(())
    }

    /// Renews it from time to time, for as long as the program runs.
    pub async fn keep(&self, authority: &ArcSwap<Authority>) -> ! {
        loop {
            tokio::time::sleep(CLOCK_CHECK).await;
            if !self.now.load().is_due(SystemTime::now()) {
                continue;
            }
            match self.renew(&authority.load()) {
                Ok(()) => tracing::info!("the own certificate is renewed"),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(error, "the own certificate is not renewed");
                }
            }
        }
    }

    /// For connections that speak one of these protocols.
    pub fn config(self: &Arc<Self>, protocols: &[&[u8]]) -> anyhow::Result<Arc<ServerConfig>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now.load().key.clone())
    }
}

fn issue(name: &str, authority: &Authority) -> anyhow::Result<Own> {
    // Before it is made: it begins no later.
    let (issued, since) = (SystemTime::now(), Instant::now());
    let (chain, key) = authority.own(name)?;
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("the control plane's own certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    let key = aws_lc_rs::sign::any_supported_type(&key)?;
    Ok(Own { key: Arc::new(CertifiedKey::new(chain, key)), issued, since })
}

/// Connections whose hand-shakes are done. Those that are slow about it hold up no other.
pub fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (tx, rx) = mpsc::channel(16);
    let acceptor = TlsAcceptor::from(config);
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = tx.closed() => return,
            };
            let Ok((stream, _)) = accepted else {
                // Out of descriptors, most likely, which a spin would not mend.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let (acceptor, tx) = (acceptor.clone(), tx.clone());
            tokio::spawn(async move {
                let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
                drop(place);
                if let Ok(Ok(stream)) = shaken {
                    let _ = tx.send(Ok(stream)).await;
                }
            });
        }
    });
    ReceiverStream::new(rx)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_own_certificate_is_another_each_day() {
        let dir = std::env::temp_dir().join(format!("culvert-tls-{:x}", rand::random::<u64>()));
        std::fs::create_dir_all(&dir).unwrap();
        let life = Duration::from_secs(3600);
        let authority = Authority::self_signed(&dir, "cluster.local", life);
        std::fs::remove_dir_all(&dir).unwrap();
        let authority = Arc::new(ArcSwap::from_pointee(authority.unwrap()));
        let serving = Serving::new("culvertd.system.svc", &authority.load()).unwrap();
        let shown = || serving.now.load().key.cert[0].clone();
        let first = shown();
        let kept = tokio::spawn({
            let serving = serving.clone();
            async move { serving.keep(&authority).await }
        });
        tokio::time::sleep(RENEWED - Duration::from_secs(60)).await;
        assert_eq!(shown(), first);
        tokio::time::sleep(Duration::from_secs(120)).await;
        let second = shown();
        assert_ne!(second, first);
        tokio::time::sleep(RENEWED).await;
        assert_ne!(shown(), second);
        kept.abort();
    }
}
