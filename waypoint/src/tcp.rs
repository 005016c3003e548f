//! Connections whose bytes are not looked into, beyond the server's name that a TLS client asks for.

use crate::{
    forward,
    http::Downstream,
    http::resolve,
    inbound::Prefixed,
    proxy::Proxy,
    reply::{self, Refusal},
    tls::Within,
    upstream::{self, Resets},
};
use mesh::Workload;
use routes::{
    balance::{Active, Endpoint, Outcome},
    execute::TcpView,
};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use telemetry::{
    Direction, FlowRecord, GRPC_UNKNOWN, Logged, RequestRecord, ResponseFlags, Transport,
};
use tokio::io::{AsyncRead, AsyncWrite};

/// How long a client may take to show a TLS hello, and how long that may be.
const HELLO: Duration = Duration::from_secs(5);
const HELLO_BYTES: usize = 16 * 1024;

/// `name`: what a TLS client has asked for.
pub async fn serve<I: AsyncRead + AsyncWrite + Resets + Unpin + Send>(
    proxy: Arc<Proxy>,
    downstream: Downstream,
    mut io: Prefixed<I>,
    name: Option<String>,
) {
    let begun = Instant::now();
    let mut told = Told::new(&downstream);
    let outcome = carry(&proxy, &downstream, &mut io, name.as_deref(), &mut told).await;
    (told.flow.sent, told.flow.received) = io.moved;
    told.flow.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    told.end(&proxy, &downstream, name, outcome.err());
}

/// Why a connection did not end by itself.
struct Broken {
    is_denied: bool,
    /// Envoy's.
    flags: &'static str,
    why: String,
}

impl Broken {
    fn denied(why: String) -> Self {
        Self { is_denied: true, flags: "-", why }
    }

    fn failed(r: Refusal) -> Self {
        Self { is_denied: false, flags: r.flags, why: r.why }
    }

    fn reset(e: &std::io::Error) -> Self {
        Self { is_denied: false, flags: "-", why: e.to_string() }
    }
}

/// What is told of a connection: it counts in the metrics, and becomes a line of the access log.
struct Told {
    flow: FlowRecord,
    is_open: bool,
    cluster: Arc<str>,
    attempts: u32,
}

impl Told {
    fn new(d: &Downstream) -> Self {
        let flow = FlowRecord {
            id: 0,
            direction: if d.is_gateway() { Direction::Outbound } else { Direction::Inbound },
            source: forward::telemetry_end(Some(d.client), d.workload.as_deref(), d.peer.as_ref()),
            destination: telemetry::Endpoint {
                address: Some(d.asked),
                ..telemetry::Endpoint::default()
            },
            service: Some(d.service_name()),
            hbone_address: None,
            transport: if d.is_gateway() { Transport::Passthrough } else { Transport::Hbone },
            verdict: None,
            sent: 0,
            received: 0,
            opened: SystemTime::now(),
            duration_ms: 0,
            flags: ResponseFlags::None,
            close: None,
        };
        Self { flow, is_open: false, cluster: Arc::default(), attempts: 0 }
    }

    /// From here on it is known where the connection goes, under which names it counts.
    fn opened(&mut self, proxy: &Proxy) {
        self.is_open = true;
        proxy.flows.opened(&self.flow);
    }

    fn end(mut self, proxy: &Proxy, d: &Downstream, name: Option<String>, broken: Option<Broken>) {
        if self.is_open {
            proxy.flows.closed(&self.flow);
        } else {
            let is_denied = broken.as_ref().is_some_and(|b| b.is_denied);
            self.flow.flags = if is_denied { ResponseFlags::Deny } else { ResponseFlags::Connect };
            proxy.flows.failed(&self.flow);
        }
        let telling = proxy.telling.load();
        let Some(log) = telling.log.as_ref().filter(|_| proxy.access_log) else { return };
        let line = RequestRecord {
            start_time: reply::rfc3339(self.flow.opened),
            response_flags: broken.as_ref().map_or("-", |b| b.flags),
            connection_termination_details: broken.map(|b| b.why),
            bytes_received: self.flow.sent,
            bytes_sent: self.flow.received,
            duration: self.flow.duration_ms,
            upstream_host: self.flow.destination.address.filter(|_| self.attempts > 0),
            upstream_cluster: self.cluster,
            attempts: self.attempts,
            downstream_remote_address: Some(d.client),
            downstream_local_address: Some(d.asked),
            downstream_peer: d.peer.as_ref().map(ToString::to_string),
            requested_server_name: name,
            grpc_status: GRPC_UNKNOWN,
            ..RequestRecord::default()
        };
        log.write(&line, &Logged::default());
    }
}

async fn carry<I: AsyncRead + AsyncWrite + Resets + Unpin + Send>(
    proxy: &Arc<Proxy>,
    downstream: &Downstream,
    io: &mut Prefixed<I>,
    sni: Option<&str>,
    told: &mut Told,
) -> Result<(), Broken> {
    let none = || Broken::failed(Refusal::no_route());
    let host = sni.unwrap_or_default();
    let mut verdicts = proxy.mesh.judgements();
    let mut changes = proxy.tables.changes();
    let table = downstream.table(proxy, host).ok_or_else(none)?;
    let port = table.port(downstream.asked.port()).ok_or_else(none)?;
    judge(proxy, &table, downstream)?;
    let view = TcpView { sni, destination: downstream.asked.ip(), source: downstream.source() };
    let route = port.tcp.iter().find(|r| r.matches(&view)).ok_or_else(none)?;
    let weighted = route.pick().ok_or_else(none)?;
    let cluster = resolve(proxy, &weighted.target).map_err(Broken::failed)?;
    told.cluster = cluster.name().clone();
    let _connection = cluster.connection().map_err(|o| Broken::failed(o.into()))?;
    let endpoints = cluster.endpoints(proxy, &downstream.own).await;
    let mut tried: Vec<Arc<Endpoint<Arc<Workload>>>> = Vec::new();
    // A connection that could not be made may go elsewhere: nothing has been sent.
    let (to, mut up) = loop {
        let policy = &cluster.settings.policy;
        let chosen = endpoints.pick(policy, Instant::now(), &mut rand::rng(), None, &tried);
        let to = chosen.ok_or_else(|| Broken::failed(Refusal::no_endpoint(cluster.name())))?;
        forward::judge(proxy, downstream, &cluster, &to.workload, to.address)
            .map_err(|r| Broken::denied(r.why))?;
        let identity = to.workload.identity().ok().filter(|_| to.workload.hbone);
        told.attempts += 1;
        told.flow.destination =
            forward::telemetry_end(Some(to.address), Some(&to.workload), identity.as_ref());
        let opened = upstream::connect(
            proxy,
            &to.workload,
            to.address,
            identity.as_ref(),
            cluster.tls_to(&to).map(|tls| (tls, Within::Bytes)),
            downstream.client,
            policy.connect_timeout,
        );
        match opened.await {
            Ok(up) => break (to, up),
            Err(e) => {
                cluster.report(&to, Outcome::Local);
                tried.push(to);
                if tried.len() > 2 {
                    return Err(Broken::failed(Refusal::not_connected(e.to_string())));
                }
            }
        }
    };
    let _active = Active::new(to.clone());
    if downstream.is_gateway()
        && let Some(s) = proxy.mesh.service(&cluster.service)
    {
        told.flow.service = Some(telemetry::ServiceName {
            hostname: s.key.hostname.clone(),
            name: s.name.clone(),
            namespace: s.key.namespace.clone(),
        });
    }
    told.opened(proxy);
    // Whatever ends before both ends have ended is a reset to both: an end would pass for all there is.
    io.resets(true);
    up.resets(true);
    let moved = async {
        let mut moving = std::pin::pin!(tokio::io::copy_bidirectional(io, &mut up));
        loop {
            tokio::select! {
                moved = &mut moving => return moved.map(drop).map_err(|e| Broken::reset(&e)),
                Ok(()) = verdicts.changed() => {}
                Ok(()) = changes.changed() => {}
            }
            // What is no longer allowed ends.
            if let Some(table) = downstream.table(proxy, host) {
                judge(proxy, &table, downstream)?;
            }
            // By its record as it is now, which names the policies that bind it.
            let now = proxy.mesh.workload(&to.workload.uid).unwrap_or_else(|| to.workload.clone());
            forward::judge(proxy, downstream, &cluster, &now, to.address)
                .map_err(|r| Broken::denied(r.why))?;
        }
    };
    moved.await?;
    io.resets(false);
    up.resets(false);
    Ok(())
}

/// Policies that ask for what only a request has deny a connection that has none, where they deny.
fn judge(
    proxy: &Proxy,
    table: &routes::execute::HostTable,
    downstream: &Downstream,
) -> Result<(), Broken> {
    match table.policies.judge_connection(&downstream.connection(proxy)) {
        routes::execute::HttpVerdict::Allowed => Ok(()),
        other => Err(Broken::denied(other.to_string())),
    }
}

/// The name that a client asks for, if it begins TLS in time.
pub async fn hello<I: AsyncRead + Unpin>(io: &mut Prefixed<I>) -> Option<String> {
    tokio::time::timeout(HELLO, server_name(io)).await.ok().flatten()
}

/// The name in a TLS client's hello (RFC 8446, section 4.1.2; RFC 6066, section 3), as rustls reads
/// it. The bytes stay to be read again.
async fn server_name<I: AsyncRead + Unpin>(io: &mut Prefixed<I>) -> Option<String> {
    let mut acceptor = rustls::server::Acceptor::default();
    let mut fed = 0;
    while io.first.len() <= HELLO_BYTES {
        let mut new = io.first.get(fed..).unwrap_or_default();
        fed = io.first.len();
        while !new.is_empty() {
            acceptor.read_tls(&mut new).ok()?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return accepted.client_hello().server_name().map(str::to_ascii_lowercase);
            }
            Ok(None) => {}
            Err(_) => return None,
        }
        if io.peek_more().await.ok()? == 0 {
            return None;
        }
    }
    None
}
