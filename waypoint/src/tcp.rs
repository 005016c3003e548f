//! Connections whose bytes are not looked into, beyond the server's name that a TLS client asks for.

use crate::{
    forward, http::Downstream, http::resolve, inbound::Prefixed, proxy::Proxy, reply::Refusal,
    tls::Within, upstream,
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
use telemetry::{CloseReason, Direction, FlowRecord, ResponseFlags, Transport};
use tokio::io::{AsyncRead, AsyncWrite};

/// How long a client may take to show a TLS hello, and how long that may be.
const HELLO: Duration = Duration::from_secs(5);
const HELLO_BYTES: usize = 16 * 1024;

/// `name`: what a TLS client has asked for.
pub async fn serve<I: AsyncRead + AsyncWrite + Unpin + Send>(
    proxy: Arc<Proxy>,
    downstream: Downstream,
    mut io: Prefixed<I>,
    name: Option<String>,
) {
    let begun = Instant::now();
    let mut record = record(&downstream);
    proxy.flows.opened(&record);
    let outcome = carry(&proxy, &downstream, &mut io, name.as_deref(), &mut record).await;
    (record.sent, record.received) = io.moved;
    record.duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    record.close = Some(match outcome {
        Ok(()) => CloseReason::Finished,
        Err(reason) => reason,
    });
    proxy.flows.closed(&record);
    if proxy.is_logged() {
        tracing::info!(target: "access", "{}", telemetry::access_log_line(&record));
    }
}

fn record(d: &Downstream) -> FlowRecord {
    FlowRecord {
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
    }
}

async fn carry<I: AsyncRead + AsyncWrite + Unpin + Send>(
    proxy: &Arc<Proxy>,
    downstream: &Downstream,
    io: &mut Prefixed<I>,
    sni: Option<&str>,
    record: &mut FlowRecord,
) -> Result<(), CloseReason> {
    let denied = |r: Refusal| CloseReason::Denied(r.why);
    let failed = |r: Refusal| CloseReason::Failed(r.why);
    let none = || CloseReason::Failed("no route matches".to_owned());
    let host = sni.unwrap_or_default();
    let mut verdicts = proxy.mesh.judgements();
    let mut changes = proxy.tables.changes();
    let table = downstream.table(proxy, host).ok_or_else(none)?;
    let port = table.port(downstream.asked.port()).ok_or_else(none)?;
    judge(proxy, &table, downstream)?;
    let view = TcpView { sni, destination: downstream.asked.ip(), source: downstream.source() };
    let route = port.tcp.iter().find(|r| r.matches(&view)).ok_or_else(none)?;
    let weighted = route.pick().ok_or_else(none)?;
    let cluster = resolve(proxy, &weighted.target).map_err(failed)?;
    let _connection = cluster.slot().await.map_err(|o| failed(o.into()))?;
    let endpoints = cluster.endpoints(proxy, &downstream.own).await;
    let mut tried: Vec<Arc<Endpoint<Arc<Workload>>>> = Vec::new();
    // A connection that could not be made may go elsewhere: nothing has been sent.
    let (to, mut up) = loop {
        let policy = &cluster.settings.policy;
        let chosen = endpoints.pick(policy, Instant::now(), &mut rand::rng(), None, &tried);
        let to = chosen.ok_or_else(|| failed(Refusal::no_endpoint(cluster.name())))?;
        forward::judge(proxy, downstream, &cluster, &to).map_err(denied)?;
        let identity = to.workload.identity().ok().filter(|_| to.workload.hbone);
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
                    return Err(CloseReason::Failed(e.to_string()));
                }
            }
        }
    };
    let _active = Active::new(to.clone());
    let identity = to.workload.identity().ok().filter(|_| to.workload.hbone);
    record.destination =
        forward::telemetry_end(Some(to.address), Some(&to.workload), identity.as_ref());
    if downstream.is_gateway()
        && let Some(s) = proxy.mesh.service(&cluster.service)
    {
        record.service = Some(telemetry::ServiceName {
            hostname: s.key.hostname.clone(),
            name: s.name.clone(),
            namespace: s.key.namespace.clone(),
        });
    }
    let mut moving = std::pin::pin!(tokio::io::copy_bidirectional(io, &mut up));
    loop {
        tokio::select! {
            moved = &mut moving => {
                return moved.map(drop).map_err(|e| CloseReason::Reset(e.to_string()));
            }
            Ok(()) = verdicts.changed() => {}
            Ok(()) = changes.changed() => {}
        }
        // What is no longer allowed ends.
        if let Some(table) = downstream.table(proxy, host) {
            judge(proxy, &table, downstream)?;
        }
        forward::judge(proxy, downstream, &cluster, &to).map_err(denied)?;
    }
}

/// Policies that ask for what only a request has deny a connection that has none, where they deny.
fn judge(
    proxy: &Proxy,
    table: &routes::execute::HostTable,
    downstream: &Downstream,
) -> Result<(), CloseReason> {
    match table.policies.judge_connection(&downstream.connection(proxy)) {
        routes::execute::HttpVerdict::Allowed => Ok(()),
        other => Err(CloseReason::Denied(other.to_string())),
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
