//! Ports that are open to whoever is outside: plaintext or TLS in, HTTP from there on. What listens
//! where, and with which certificates, is discovery's to say, and may change at any time; a port's
//! open connections keep what they began with.

use crate::{
    http::{Came, Downstream},
    inbound::{HEAD, Io, Prefixed, admit, serve_http, shown},
    proxy::Proxy,
    tcp, upstream,
};
use arc_swap::ArcSwap;
use prost::Message as _;
use routes::{names::patterns, proto};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use rustls_pki_types::pem::PemObject as _;
use std::{
    collections::HashMap,
    net::{Ipv6Addr, SocketAddr, TcpListener as StdListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::sync::CancellationToken;

/// Ports that a gateway may not take: its own.
const OWN_PORTS: [u16; 2] = [15008, 15020];

/// A hand-shake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The ports that are open, each with what it does now.
#[derive(Default)]
pub struct Listeners(Mutex<HashMap<u16, Open>>);

struct Open {
    config: Arc<ArcSwap<Config>>,
    stop: CancellationToken,
}

/// What a port does.
struct Config {
    /// What comes is bytes.
    bytes: bool,
    /// Hosts whose TLS goes on as it comes.
    passed: Vec<String>,
    certificates: Vec<Certificate>,
    redirected: Arc<[String]>,
}

#[derive(Clone)]
struct Certificate {
    hosts: Arc<[String]>,
    /// What is within is bytes, and no HTTP.
    bytes: bool,
    /// What is asked of clients: a certificate of these roots, whether it may be left out, TLS 1.3
    /// alone. None where there is no Secret to serve from.
    demands: Option<(Vec<u8>, bool, bool)>,
    /// Or why there is none.
    server: Result<Arc<ServerConfig>, String>,
}

impl Config {
    fn load(l: &proto::Listener) -> Self {
        let certificates = l.certificates.iter().map(|c| Certificate {
            hosts: c.hosts.iter().map(|h| h.to_ascii_lowercase()).collect(),
            bytes: c.bytes,
            demands: c
                .broken
                .is_empty()
                .then(|| (c.client_roots_pem.clone(), c.client_optional, c.only_tls13)),
            server: match c.broken.as_str() {
                "" => server_config(c).map(Arc::new),
                why => Err(why.to_owned()),
            },
        });
        Self {
            bytes: l.bytes,
            passed: l.passed.iter().map(|h| h.to_ascii_lowercase()).collect(),
            certificates: certificates.collect(),
            redirected: l.redirected.iter().map(|h| h.to_ascii_lowercase()).collect(),
        }
    }

    /// Where the Secret's new certificate cannot be served, the one before stays, if it asks the same
    /// of clients.
    fn keeping(mut self, before: &Self) -> Self {
        let spoilt = |c: &&mut Certificate| c.server.is_err() && c.demands.is_some();
        for c in self.certificates.iter_mut().filter(spoilt) {
            let same =
                |b: &&Certificate| b.hosts == c.hosts && b.demands == c.demands && b.server.is_ok();
            if let Some(good) = before.certificates.iter().find(same) {
                c.server.clone_from(&good.server);
            }
        }
        self
    }

    /// What is for a name: the most specific. Of a client that names nobody, what is for all.
    fn server(&self, name: Option<&str>) -> Option<Server<'_>> {
        let has = |p: &str| {
            let mut own = self.certificates.iter().filter(|c| c.hosts.iter().any(|h| h == p));
            // Of several, the first that can be served.
            let first = own.clone().find(|c| c.server.is_ok()).or_else(|| own.next());
            let passed = || self.passed.iter().any(|h| h == p).then_some(Server::Passed);
            first.map(Server::Ended).or_else(passed)
        };
        match name {
            Some(name) => patterns(&name.to_ascii_lowercase()).find_map(|p| has(&p)),
            None => has("*"),
        }
    }
}

/// Loads it, and finds what a client that asks for `name` would be shown: whose certificate cannot be
/// served has a reason.
#[cfg(feature = "fuzzing")]
pub fn loads(l: &proto::Listener, name: &str) {
    let config = Config::load(l);
    for asked in [Some(name), None] {
        if let Some(Server::Ended(c)) = config.server(asked) {
            assert!(c.server.as_ref().err().is_none_or(|why| !why.is_empty()), "no reason");
        }
    }
    let _ = Config::load(l).keeping(&config);
}

enum Server<'a> {
    Passed,
    Ended(&'a Certificate),
}

/// The certificate that a client has been shown.
pub struct Shown {
    config: Arc<Config>,
    hosts: Arc<[String]>,
    /// What the client has asked for, in lower case.
    pub name: Option<String>,
}

impl Shown {
    /// Whether it is the one for that host, too: another's may ask more of a client.
    pub fn is_for(&self, host: &str) -> bool {
        match self.config.server(Some(host)) {
            Some(Server::Ended(c)) => Arc::ptr_eq(&c.hosts, &self.hosts),
            Some(Server::Passed) | None => false,
        }
    }
}

fn server_config(c: &proto::Certificate) -> Result<ServerConfig, String> {
    let chain = CertificateDer::pem_slice_iter(&c.chain_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("its certificate is no PEM: {e}"))?;
    if chain.is_empty() {
        return Err("the Secret has no certificate (tls.crt)".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(&c.key_pem)
        .map_err(|e| format!("the Secret has no private key (tls.key): {e}"))?;
    let versions: &[&rustls::SupportedProtocolVersion] =
        if c.only_tls13 { &[&TLS13] } else { &[&TLS13, &TLS12] };
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .map_err(|e| e.to_string())?;
    let builder = match c.client_roots_pem.as_slice() {
        [] => builder.with_no_client_auth(),
        pem => builder.with_client_cert_verifier(verifier(pem, c.client_optional)?),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|e| format!("certificate and key do not go together: {e}"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn verifier(pem: &[u8], optional: bool) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(pem) {
        let root = root.map_err(|e| format!("ca.crt is no PEM: {e}"))?;
        roots.add(root).map_err(|e| format!("ca.crt: {e}"))?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if optional {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map(|v| v as Arc<dyn ClientCertVerifier>).map_err(|e| e.to_string())
}

impl Listeners {
    fn lock(&self) -> MutexGuard<'_, HashMap<u16, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a port, or changes what it does.
    pub fn put(&self, proxy: &Arc<Proxy>, name: &str, body: &[u8]) -> Result<(), String> {
        let l = proto::Listener::decode(body).map_err(|e| e.to_string())?;
        let port = port_of(name).filter(|p| u32::from(*p) == l.port);
        let port = port.ok_or_else(|| format!("it is port {}", l.port))?;
        if OWN_PORTS.contains(&port) {
            return Err(format!("port {port} is this proxy's own"));
        }
        let config = Config::load(&l);
        for c in &config.certificates {
            if let Err(why) = &c.server {
                tracing::error!(port, hosts = ?c.hosts, why, "TLS cannot be served for these hosts");
            }
        }
        let mut open = self.lock();
        if let Some(known) = open.get(&port) {
            let config = config.keeping(&known.config.load());
            known.config.store(Arc::new(config));
            return Ok(());
        }
        let listener = bind(port).map_err(|e| format!("listening on port {port}: {e}"))?;
        let config = Arc::new(ArcSwap::from_pointee(config));
        let stop = CancellationToken::new();
        tokio::spawn(listen(proxy.clone(), listener, port, config.clone(), stop.clone()));
        tracing::info!(port, "a gateway's port is open");
        open.insert(port, Open { config, stop });
        Ok(())
    }

    pub fn remove(&self, name: &str) {
        if let Some(open) = port_of(name).and_then(|port| self.lock().remove(&port)) {
            open.stop.cancel();
        }
    }
}

/// `<namespace>/<gateway>/gateway/<port>`
fn port_of(name: &str) -> Option<u16> {
    name.rsplit_once("/gateway/")?.1.parse().ok()
}

/// Of both families.
fn bind(port: u16) -> std::io::Result<TcpListener> {
    let listener = StdListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn listen(
    proxy: Arc<Proxy>,
    listener: TcpListener,
    port: u16,
    config: Arc<ArcSwap<Config>>,
    stop: CancellationToken,
) {
    let mut draining = proxy.draining.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = draining.wait_for(|d| *d) => return,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(admitted) = admit(&proxy, &stream, peer) else { continue };
                let (proxy, config) = (proxy.clone(), config.load_full());
                tokio::spawn(async move {
                    connection(proxy, stream, peer, port, config).await;
                    drop(admitted);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(
    proxy: Arc<Proxy>,
    stream: TcpStream,
    peer: SocketAddr,
    port: u16,
    config: Arc<Config>,
) {
    upstream::tune(&stream);
    let client = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let own = match proxy.own() {
        Some(own) if proxy.is_ready().await => own,
        _ => {
            tracing::warn!(%client, "refused: discovery has not answered yet, or has no record of this proxy");
            return;
        }
    };
    let Ok(local) = stream.local_addr() else { return };
    let downstream = |tls| Downstream {
        peer: None,
        client,
        workload: None,
        asked: SocketAddr::new(local.ip().to_canonical(), port),
        came: Came::ToGateway { tls, redirected: config.redirected.clone() },
        own,
        http2: false,
    };
    if config.bytes {
        let stream = Prefixed::new(Vec::new(), stream);
        return Box::pin(tcp::serve(proxy, downstream(None), stream, None)).await;
    }
    if config.certificates.is_empty() && config.passed.is_empty() {
        return speak(proxy, downstream(None), Box::new(stream)).await;
    }
    let mut stream = Prefixed::new(Vec::new(), stream);
    if !config.passed.is_empty() {
        let name = tcp::hello(&mut stream).await;
        if matches!(config.server(name.as_deref()), Some(Server::Passed)) {
            return Box::pin(tcp::serve(proxy, downstream(None), stream, name)).await;
        }
    }
    let handshake = async {
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream)
            .await
            .map_err(|e| e.to_string())?;
        let name = hello.client_hello().server_name().map(str::to_owned);
        let asked = || name.as_deref().unwrap_or("no name");
        let Some(Server::Ended(certificate)) = config.server(name.as_deref()) else {
            return Err(format!("no server of the gateway is for {}", asked()));
        };
        let server = certificate.server.clone().map_err(|why| format!("{}: {why}", asked()))?;
        let stream = Box::new(hello.into_stream(server).await.map_err(|e| e.to_string())?);
        let name = name.map(|n| n.to_ascii_lowercase());
        let hosts = certificate.hosts.clone();
        let shown = Shown { config: config.clone(), hosts, name: name.clone() };
        Ok::<_, String>((stream, shown, certificate.bytes.then_some(name)))
    };
    match tokio::time::timeout(HANDSHAKE, Box::pin(handshake)).await {
        Ok(Ok((stream, shown, None))) => {
            speak(proxy, downstream(Some(shown)), stream).await;
        }
        Ok(Ok((stream, shown, Some(name)))) => {
            let stream = Prefixed::new(Vec::new(), stream);
            Box::pin(tcp::serve(proxy, downstream(Some(shown)), stream, name)).await;
        }
        Ok(Err(why)) => tracing::info!(%client, port, why, "TLS hand-shake failed"),
        Err(_) => tracing::info!(%client, port, "TLS hand-shake took too long"),
    }
}

/// HTTP/1 or HTTP/2, as the first bytes show.
async fn speak(proxy: Arc<Proxy>, mut downstream: Downstream, mut io: Box<dyn Io>) {
    let mut first = Vec::new();
    let Ok(Ok(shown)) = tokio::time::timeout(HEAD, shown(&mut io, &mut first)).await else {
        return;
    };
    downstream.http2 = shown.unwrap_or(false);
    serve_http(proxy, Arc::new(downstream), Prefixed::new(first, io)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_the_certificate_of_the_most_specific_host() {
        let c = |hosts: &[&str]| Certificate {
            hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
            bytes: false,
            demands: Default::default(),
            server: Err((*hosts[0]).to_owned()),
        };
        let config = Config {
            bytes: false,
            passed: vec!["c.example.com".to_owned(), "*.a.example.com".to_owned()],
            certificates: vec![c(&["*.example.com"]), c(&["a.example.com", "b.example.com"])],
            redirected: Arc::default(),
        };
        let of = |name| match config.server(name) {
            Some(Server::Ended(c)) => c.server.clone().err(),
            Some(Server::Passed) => Some("passed".to_owned()),
            None => None,
        };
        assert_eq!(of(Some("A.example.com")).as_deref(), Some("a.example.com"));
        assert_eq!(of(Some("x.example.com")).as_deref(), Some("*.example.com"));
        assert_eq!(of(Some("c.example.com")).as_deref(), Some("passed"));
        assert_eq!(of(Some("x.a.example.com")).as_deref(), Some("passed"));
        assert_eq!(of(Some("example.com")), None);
        assert_eq!(of(None), None);
        let config = Arc::new(config);
        let hosts = config.certificates[0].hosts.clone();
        let shown = Shown { config: config.clone(), hosts, name: None };
        let is_for = ["x.example.com", "a.example.com", "c.example.com", "example.com"];
        assert_eq!(is_for.map(|h| shown.is_for(h)), [true, false, false, false]);
    }
}
