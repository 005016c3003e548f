//! Spans on their way to the collector: in batches, as OTLP over gRPC, by way of the mesh. Nobody waits
//! for them, and those that there is no room for are lost, and counted.

use crate::{
    body::OutBody,
    http::{Downstream, resolve},
    proxy::Proxy,
    telling::Tracing,
    trace::Context,
    upstream::{self, Attempt},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderValue, Method, Request, header};
use http_body_util::{BodyExt as _, Limited};
use mesh::Workload;
use prost::Message as _;
use routes::balance::Active;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use telemetry::{
    GRPC_UNKNOWN, RequestRecord,
    otlp::{self, ExportRequest, KeyValue, Resource, ResourceSpans, ScopeSpans, Span},
};
use tokio::sync::mpsc;

/// Spans that may wait.
const QUEUE: usize = 2048;

/// Spans of one batch, and how long the first of them waits.
const BATCH: usize = 512;
const EVERY: Duration = Duration::from_secs(1);

/// A collector that takes longer has lost the batch.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of its answer.
const ANSWER: usize = 64 * 1024;

pub struct Spans {
    queue: mpsc::Sender<Span>,
    pub lost: AtomicU64,
}

impl Spans {
    pub fn new() -> (Self, mpsc::Receiver<Span>) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        (Self { queue, lost: AtomicU64::new(0) }, waiting)
    }

    pub fn put(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A request's span, with Envoy's attributes.
pub fn span(
    r: &RequestRecord,
    context: &Context,
    tags: Vec<(String, String)>,
    downstream: &Downstream,
) -> Span {
    let end = SystemTime::now();
    let nanos = |t: SystemTime| {
        let since = t.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    };
    let mut attributes = vec![
        KeyValue::text("http.method", r.method.as_str()),
        KeyValue::text("http.url", format!("{}://{}{}", downstream.scheme(), r.authority, r.path)),
        KeyValue::text("http.protocol", r.protocol),
        KeyValue::text("http.status_code", r.response_code.to_string()),
        KeyValue::text("response_flags", r.response_flags),
        KeyValue::text("request_size", r.bytes_received.to_string()),
        KeyValue::text("response_size", r.bytes_sent.to_string()),
        KeyValue::text("upstream_cluster.name", &*r.upstream_cluster),
        KeyValue::text("user_agent", r.user_agent.as_str()),
        KeyValue::text("guid:x-request-id", r.request_id.as_str()),
    ];
    if let Some(peer) = &r.downstream_peer {
        attributes.push(KeyValue::text("peer.principal", peer.as_str()));
    }
    if r.grpc_status != GRPC_UNKNOWN {
        attributes.push(KeyValue::text("grpc.status_code", r.grpc_status.to_string()));
    }
    attributes.extend(tags.into_iter().map(|(name, value)| KeyValue::text(&name, value)));
    let failed = r.response_code >= 500 || r.response_code == 0;
    Span {
        trace_id: context.trace.to_be_bytes().to_vec(),
        span_id: context.span.to_be_bytes().to_vec(),
        parent_span_id: context.parent.map(|p| p.to_be_bytes().to_vec()).unwrap_or_default(),
        name: r.authority.clone(),
        kind: if downstream.is_gateway() { otlp::CLIENT } else { otlp::SERVER },
        start: nanos(end - r.took),
        end: nanos(end),
        attributes,
        status: failed.then_some(otlp::Status { code: otlp::ERROR }),
    }
}

/// Until nobody can put any more.
pub async fn export(proxy: Arc<Proxy>, mut waiting: mpsc::Receiver<Span>) {
    let mut failing = false;
    while let Some(first) = waiting.recv().await {
        let mut batch = vec![first];
        let until = tokio::time::Instant::now() + EVERY;
        while batch.len() < BATCH
            && let Ok(Some(span)) = tokio::time::timeout_at(until, waiting.recv()).await
        {
            batch.push(span);
        }
        let telling = proxy.telling.load_full();
        let Some(tracing) = &telling.tracing else { continue };
        let count = batch.len() as u64;
        let sent = tokio::time::timeout(PATIENCE, send(&proxy, tracing, batch)).await;
        let why = match sent {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(why),
            Err(_) => Some(format!("no answer within {PATIENCE:?}")),
        };
        if let Some(why) = &why {
            proxy.spans.lost.fetch_add(count, Ordering::Relaxed);
            if !failing {
                tracing::warn!(collector = %tracing.collector.service, why, "spans are lost");
            }
        }
        failing = why.is_some();
    }
}

async fn send(proxy: &Arc<Proxy>, to: &Tracing, spans: Vec<Span>) -> Result<(), String> {
    let own = proxy.own().ok_or("discovery has no record of this proxy")?;
    let cluster = resolve(proxy, &to.collector).map_err(|r| r.why)?;
    let endpoints = cluster.endpoints(proxy, &own).await;
    let policy = &cluster.settings.policy;
    let chosen = endpoints.pick(policy, Instant::now(), &mut rand::rng(), None, &[]);
    let chosen = chosen.ok_or_else(|| format!("{} has no healthy endpoint", cluster.name()))?;
    let _active = Active::new(chosen.clone());
    let attempt = Attempt {
        to: &chosen,
        http2: true,
        tls: cluster.tls_to(&chosen),
        connect_timeout: policy.connect_timeout,
        idle_timeout: None,
        most_requests: policy.max_requests_per_connection,
        client: SocketAddr::new(
            own.addresses.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            0,
        ),
        interim: None,
        slot: None,
    };
    let host = format!("{}:{}", to.collector.service.hostname, to.collector.port);
    let request = call(&host, &own, spans).ok_or("the collector's name is none")?;
    let sent = upstream::send(proxy, attempt, request).await.map_err(|e| e.to_string())?;
    let (head, body) = sent.response.into_parts();
    let body = Limited::new(body, ANSWER).collect().await.map_err(|e| e.to_string())?;
    let status = head.headers.get("grpc-status");
    let status = status.or_else(|| body.trailers()?.get("grpc-status"));
    match status.map(HeaderValue::as_bytes) {
        Some(b"0") => Ok(()),
        other => Err(format!("it answered {}, gRPC's status {other:?}", head.status)),
    }
}

/// One call of gRPC: a message with its length before it.
fn call(host: &str, own: &Workload, spans: Vec<Span>) -> Option<Request<OutBody>> {
    let message = ExportRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![
                    KeyValue::text(
                        "service.name",
                        format!("{}.{}", own.canonical_name, own.namespace),
                    ),
                    KeyValue::text("k8s.pod.name", own.name()),
                    KeyValue::text("k8s.namespace.name", &*own.namespace),
                ],
            }),
            scope_spans: vec![ScopeSpans { spans }],
        }],
    };
    let mut body = BytesMut::with_capacity(message.encoded_len() + 5);
    body.put_u8(0);
    body.put_u32(u32::try_from(message.encoded_len()).ok()?);
    message.encode(&mut body).ok()?;
    let mut request = Request::new(OutBody::Whole(Some(Bytes::from(body))));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = format!("http://{host}{}", otlp::EXPORT).parse().ok()?;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    Some(request)
}
