//! Connections to endpoints: HTTP inside an HBONE stream to a pod of the mesh, in plaintext to
//! others, and within TLS where a DestinationRule asks for it. HTTP/1.1 connections are reused when their answer has been read; HTTP/2 ones are shared.

use crate::{
    body::{OutBody, Received},
    cluster::{Slot, To},
    http2::client::Requests,
    interim::ToClient,
    parting::{InOrder, Parting},
    proxy::Proxy,
    tls::{ClientTls, Within},
};
use hbone::{Authority, Forwarded, StreamIo};
use http::{Method, Request, Response, Uri};
use hyper::{client::conn::http1, ext::on_informational};
use hyper_util::rt::TokioIo;
use identity::SpiffeId;
use mesh::Workload;
use socket2::{SockRef, TcpKeepalive};
use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

/// Connections are shared by requests that agree in this. The workload's record is part of it: what
/// has another identity now is another endpoint.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    address: SocketAddr,
    workload: Arc<str>,
    identity: Option<SpiffeId>,
    http2: bool,
    /// Of the TLS that was begun.
    tls: Option<u64>,
}

#[derive(Default)]
pub struct Connections {
    idle: Mutex<HashMap<Key, Vec<Idle>>>,
    /// More than one where endpoints take fewer requests at a time than there are.
    shared: Mutex<HashMap<Key, Vec<Shared>>>,
}

struct Idle {
    send: http1::SendRequest<OutBody>,
    since: Instant,
    /// As the rule of its last request has it.
    idle_for: Duration,
    fresh_until: Option<Instant>,
    requests: u32,
    in_order: InOrder,
}

impl Idle {
    fn is_usable(&self, now: Instant, idle_for: Duration) -> bool {
        now.saturating_duration_since(self.since) < idle_for
            && is_fresh(self.fresh_until)
            && !self.send.is_closed()
    }
}

/// A connection of HTTP/2, whose requests share it.
struct Shared {
    send: Requests,
    fresh_until: Option<Instant>,
    requests: u32,
    /// Held for each request under way.
    places: Arc<()>,
    /// Since when it is known to have none.
    idle_since: Option<Instant>,
    idle_for: Duration,
}

impl Shared {
    fn is_usable(&mut self, now: Instant, idle_for: Duration) -> bool {
        let rests = |since: Instant| now.saturating_duration_since(since) < idle_for;
        is_fresh(self.fresh_until) && self.idle_since.is_none_or(rests) && self.send.is_open()
    }

    fn under_way(&self) -> usize {
        Arc::strong_count(&self.places) - 1
    }
}

/// What lies in an HBONE stream ends with the certificates of the connection beneath, and takes
/// nothing new once that takes nothing new.
fn is_fresh(until: Option<Instant>) -> bool {
    until.is_none_or(|until| Instant::now() < until)
}

/// Idle connections of HTTP/1 that are kept per endpoint.
const IDLE: usize = 64;

/// How long they are kept, where nothing is said (Envoy's default is an hour; an application's own
/// patience is often less than a minute, and a connection that it has just closed costs a retry).
const IDLE_FOR: Duration = Duration::from_secs(60);

/// The same for HTTP/2, where who closes says first that he will (GOAWAY).
const SHARED_IDLE_FOR: Duration = Duration::from_secs(3600);

/// Why an attempt came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum TryError {
    /// Nothing of the request has reached anybody.
    #[error("connecting to {to}: {why}")]
    Connect { to: SocketAddr, why: String },
    #[error("{to} refused the request before looking at it")]
    Refused { to: SocketAddr },
    #[error("{to} broke off: {why}")]
    Reset { to: SocketAddr, why: String },
    #[error("{0} did not answer in time")]
    Timeout(SocketAddr),
}

/// An answer whose connection goes back when its body has been read.
pub struct Answered {
    pub response: Response<Received>,
    pub back: Option<GoesBack>,
}

/// A connection of HTTP/1 that is in use.
pub struct GoesBack {
    proxy: Arc<Proxy>,
    key: Key,
    send: http1::SendRequest<OutBody>,
    fresh_until: Option<Instant>,
    requests: u32,
    most: Option<u32>,
    idle_for: Duration,
    in_order: InOrder,
    _slot: Slot,
}

impl GoesBack {
    /// The answer has been read whole, and the request sent: the connection can be used again.
    pub fn finished(self) {
        self.in_order.set(true);
        if self.most.is_some_and(|most| self.requests >= most) || self.send.is_closed() {
            return;
        }
        let Self { send, fresh_until, requests, idle_for, in_order, .. } = self;
        let idle = Idle { send, since: Instant::now(), idle_for, fresh_until, requests, in_order };
        let mut all = lock(&self.proxy.connections.idle);
        let own = all.entry(self.key).or_default();
        if own.len() < IDLE {
            own.push(idle);
        }
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connections {
    /// Closes what has been idle for too long.
    pub fn sweep(&self, now: Instant) {
        lock(&self.idle).retain(|_, own| {
            own.retain(|i| i.is_usable(now, i.idle_for));
            !own.is_empty()
        });
        lock(&self.shared).retain(|_, own| {
            // One stays for the next request, for its time; of the others those that are in use.
            let mut first = true;
            own.retain_mut(|s| {
                if s.under_way() > 0 {
                    s.idle_since = None;
                } else {
                    s.idle_since.get_or_insert(now);
                }
                s.is_usable(now, s.idle_for)
                    && (std::mem::take(&mut first) || s.idle_since.is_none())
            });
            !own.is_empty()
        });
    }

    /// A connection for one more request; one that has carried as many as it may is given up to those
    /// that it carries still.
    fn share(
        &self,
        key: &Key,
        most: Option<u32>,
        idle_for: Duration,
    ) -> Option<(Requests, Arc<()>)> {
        let mut all = lock(&self.shared);
        let own = all.get_mut(key)?;
        let now = Instant::now();
        own.retain_mut(|s| s.is_usable(now, idle_for));
        // Beyond what the endpoint takes at a time, requests would wait for one another.
        let at = own.iter().position(|s| s.under_way() < s.send.at_a_time())?;
        let shared = own.get_mut(at)?;
        shared.requests += 1;
        (shared.idle_since, shared.idle_for) = (None, idle_for);
        let taken = (shared.send.clone(), shared.places.clone());
        if most.is_some_and(|most| shared.requests >= most) {
            own.remove(at);
        }
        Some(taken)
    }

    /// One that has not been idle for longer than this.
    fn take(&self, key: &Key, idle_for: Duration) -> Option<Idle> {
        let mut all = lock(&self.idle);
        let own = all.get_mut(key)?;
        while let Some(idle) = own.pop() {
            if idle.is_usable(Instant::now(), idle_for) {
                idle.in_order.set(false);
                return Some(idle);
            }
        }
        None
    }
}

/// What a request is sent with.
pub struct Attempt<'a> {
    pub to: &'a To,
    pub http2: bool,
    pub tls: Option<&'a ClientTls>,
    pub connect_timeout: Duration,
    pub idle_timeout: Option<Duration>,
    pub most_requests: Option<u32>,
    /// The client, for whom this proxy asks.
    pub client: SocketAddr,
    /// Whoever takes interim answers.
    pub interim: Option<ToClient>,
    /// Room for a connection of HTTP/1.
    pub slot: Option<Slot>,
}

/// Sends one request to one endpoint, over a connection that is there or a new one.
pub async fn send(
    proxy: &Arc<Proxy>,
    mut attempt: Attempt<'_>,
    request: Request<OutBody>,
) -> Result<Answered, TryError> {
    let to = attempt.to.address;
    let workload = &attempt.to.workload;
    let identity = if workload.hbone {
        let id = workload.identity();
        Some(id.map_err(|e| TryError::Connect { to, why: e.to_string() })?)
    } else {
        None
    };
    let key = Key {
        address: to,
        workload: (&*workload.uid).into(),
        identity,
        http2: attempt.http2,
        tls: attempt.tls.map(|t| t.id),
    };
    if attempt.http2 {
        return send_http2(proxy, attempt, key, request).await;
    }
    let mut request = request;
    if let Some(client) = attempt.interim.take() {
        on_informational(&mut request, move |a| client.send(a.status(), a.headers()));
    }
    let idle_for = attempt.idle_timeout.unwrap_or(IDLE_FOR);
    let most = attempt.most_requests;
    let Some(slot) = attempt.slot.take() else {
        return Err(TryError::Connect { to, why: "no room for a connection".to_owned() });
    };
    // One that the endpoint closes just now has not taken the request: the next is tried.
    while let Some(mut idle) = proxy.connections.take(&key, idle_for) {
        // One whose endpoint has answered, and does not read what is left of the request, is never ready.
        let ready = tokio::time::timeout(attempt.connect_timeout, idle.send.ready());
        if !matches!(ready.await, Ok(Ok(()))) {
            continue;
        }
        match idle.send.try_send_request(request).await {
            Ok(response) => {
                let requests = idle.requests + 1;
                let back = GoesBack {
                    proxy: proxy.clone(),
                    key,
                    send: idle.send,
                    fresh_until: idle.fresh_until,
                    requests,
                    most,
                    idle_for,
                    in_order: idle.in_order,
                    _slot: slot,
                };
                return Ok(Answered { response: response.map(Received::Http1), back: Some(back) });
            }
            Err(mut e) => match e.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(TryError::Reset { to, why: e.error().to_string() }),
            },
        }
    }
    let io = attempt.connect(proxy, &key).await?;
    let fresh_until = io.fresh_until();
    let in_order = InOrder::default();
    let io = Parting::new(io, in_order.clone());
    let shaken = http1::Builder::new().handshake(TokioIo::new(io)).await;
    let (mut send, connection) =
        shaken.map_err(|e| TryError::Connect { to, why: e.to_string() })?;
    tokio::spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    match send.try_send_request(request).await {
        Ok(response) => {
            let proxy = proxy.clone();
            let back = GoesBack {
                proxy,
                key,
                send,
                fresh_until,
                requests: 1,
                most,
                idle_for,
                in_order,
                _slot: slot,
            };
            Ok(Answered { response: response.map(Received::Http1), back: Some(back) })
        }
        Err(e) => Err(TryError::Reset { to, why: e.error().to_string() }),
    }
}

async fn send_http2(
    proxy: &Arc<Proxy>,
    attempt: Attempt<'_>,
    key: Key,
    request: Request<OutBody>,
) -> Result<Answered, TryError> {
    let to = attempt.to.address;
    let most = attempt.most_requests;
    let idle_for = attempt.idle_timeout.unwrap_or(SHARED_IDLE_FOR);
    let (send, place) = match proxy.connections.share(&key, most, idle_for) {
        Some(shared) => shared,
        None => {
            let io = attempt.connect(proxy, &key).await?;
            let fresh_until = io.fresh_until();
            // HTTP/2 ends only when nothing is under way, or with a word of its own.
            let in_order = InOrder::default();
            in_order.set(true);
            let shaken = Requests::connect(Parting::new(io, in_order)).await;
            let send = shaken.map_err(|e| TryError::Connect { to, why: e.to_string() })?;
            let places = Arc::new(());
            let place = places.clone();
            if most != Some(1) {
                let shared = Shared {
                    send: send.clone(),
                    fresh_until,
                    requests: 1,
                    places,
                    idle_since: None,
                    idle_for,
                };
                lock(&proxy.connections.shared).entry(key).or_default().push(shared);
            }
            (send, place)
        }
    };
    match send.ask(request, attempt.interim).await {
        Ok(mut response) => {
            response.body_mut().hold(place);
            Ok(Answered { response: response.map(Received::Http2), back: None })
        }
        Err(e) if e.is_unprocessed() => Err(TryError::Refused { to }),
        Err(e) => Err(TryError::Reset { to, why: e.to_string() }),
    }
}

/// Small writes go at once, and an end that is gone without a word is noticed within two minutes, unless something is
/// on its way to it: then when the kernel gives up.
pub fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let often = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    let _ = SockRef::from(stream).set_tcp_keepalive(&often);
}

/// What bytes go through.
pub enum Io {
    /// The lease keeps the connection beneath counted as in use.
    Hbone(Box<StreamIo>, hbone::Lease),
    Tcp(TcpStream),
    Tls(Box<TlsStream<Io>>),
}

impl Attempt<'_> {
    async fn connect(&self, proxy: &Proxy, key: &Key) -> Result<Io, TryError> {
        let within = if self.http2 { Within::Http2 } else { Within::Http1 };
        connect(
            proxy,
            &self.to.workload,
            key.address,
            key.identity.as_ref(),
            self.tls.map(|tls| (tls, within)),
            self.client,
            self.connect_timeout,
        )
        .await
    }
}

/// Whose end, when it is dropped, is a reset or an end.
pub trait Resets {
    fn resets(&self, yes: bool);
}

impl Resets for TcpStream {
    fn resets(&self, yes: bool) {
        let _ = SockRef::from(self).set_linger(yes.then_some(Duration::ZERO));
    }
}

/// A stream that was not ended is reset when it is dropped.
impl Resets for StreamIo {
    fn resets(&self, _: bool) {}
}

impl<T: Resets> Resets for Box<T> {
    fn resets(&self, yes: bool) {
        (**self).resets(yes);
    }
}

impl<T: Resets> Resets for tokio_rustls::server::TlsStream<T> {
    fn resets(&self, yes: bool) {
        self.get_ref().0.resets(yes);
    }
}

impl Resets for Io {
    fn resets(&self, yes: bool) {
        match self {
            Self::Hbone(stream, _) => stream.resets(yes),
            Self::Tcp(stream) => stream.resets(yes),
            Self::Tls(stream) => stream.get_ref().0.resets(yes),
        }
    }
}

impl Io {
    /// From when on nothing new should be begun on it.
    fn fresh_until(&self) -> Option<Instant> {
        match self {
            Self::Hbone(_, lease) => Some(lease.fresh_until),
            Self::Tcp(_) => None,
            Self::Tls(stream) => stream.get_ref().0.fresh_until(),
        }
    }
}

/// Opens a way to an endpoint for bytes of any kind.
pub async fn connect(
    proxy: &Proxy,
    workload: &Workload,
    to: SocketAddr,
    identity: Option<&SpiffeId>,
    tls: Option<(&ClientTls, Within)>,
    client: SocketAddr,
    limit: Duration,
) -> Result<Io, TryError> {
    let failed = |why: String| TryError::Connect { to, why };
    let opening = async {
        let io = reach(proxy, workload, to, identity, client).await?;
        Ok(match tls {
            None => io,
            Some((tls, within)) => {
                Io::Tls(Box::new(tls.connect(io, within).await.map_err(failed)?))
            }
        })
    };
    match tokio::time::timeout(limit, opening).await {
        Ok(opened) => opened,
        Err(_) => Err(failed(format!("no connection within {limit:?}"))),
    }
}

/// To a pod of the mesh by HBONE, to others straight.
async fn reach(
    proxy: &Proxy,
    workload: &Workload,
    to: SocketAddr,
    identity: Option<&SpiffeId>,
    client: SocketAddr,
) -> Result<Io, TryError> {
    let failed = |why: String| TryError::Connect { to, why };
    let Some(identity) = identity else {
        let stream = TcpStream::connect(to).await.map_err(|e| failed(e.to_string()))?;
        tune(&stream);
        return Ok(Io::Tcp(stream));
    };
    let key = crate::proxy::PeerKey {
        identity: identity.clone(),
        // A waypoint is asked for another address than its own.
        address: SocketAddr::new(
            match workload.addresses.contains(&to.ip()) {
                true => to.ip(),
                false => workload
                    .address_like(to.ip())
                    .ok_or_else(|| failed("it has no address".to_owned()))?,
            },
            mesh::WAYPOINT_PORT,
        ),
    };
    let request = || connect_request(proxy, to, client);
    let opened = proxy.pool.open(&key, request).await;
    let (stream, lease) = opened.map_err(|e| failed(e.to_string()))?;
    Ok(Io::Hbone(Box::new(StreamIo::new(stream.send, stream.receive)), lease))
}

fn connect_request(proxy: &Proxy, to: SocketAddr, client: SocketAddr) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    if let Ok(uri) = Uri::builder().authority(Authority::Address(to).to_string()).build() {
        *request.uri_mut() = uri;
    }
    let forwarded = Forwarded { client, host: None };
    for (name, value) in [("baggage", proxy.baggage()), ("forwarded", forwarded.encode())] {
        if let Ok(value) = value.parse() {
            request.headers_mut().insert(name, value);
        }
    }
    request
}

macro_rules! either {
    ($self:ident, $io:ident => $e:expr) => {
        match $self.get_mut() {
            Io::Hbone(stream, _) => {
                let $io = Pin::new(&mut **stream);
                $e
            }
            Io::Tcp(stream) => {
                let $io = Pin::new(stream);
                $e
            }
            Io::Tls(stream) => {
                let $io = Pin::new(&mut **stream);
                $e
            }
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => io.poll_shutdown(cx))
    }
}
