//! A collector of spans: OTLP over gRPC.

use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use serde_json::{Value, json};
use telemetry::otlp::{self, ExportRequest, KeyValue, Span};
use tokio::net::TcpListener;

pub async fn collect(port: u16) -> anyhow::Result<()> {
    let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(at).await?;
    println!("listens on {at}");
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let service =
                service_fn(|r| async move { Ok::<_, Infallible>(answer(r).await.unwrap()) });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Body =
    StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

async fn answer(request: Request<Incoming>) -> anyhow::Result<Response<Body>> {
    assert_eq!(request.uri().path(), otlp::EXPORT);
    assert_eq!(request.headers()["content-type"], "application/grpc");
    let body = request.into_body().collect().await?.to_bytes();
    // Not compressed, and of the length that is said.
    assert_eq!(body[0], 0);
    assert_eq!(u32::from_be_bytes(body[1..5].try_into()?) as usize, body.len() - 5);
    for resource in ExportRequest::decode(&body[5..])?.resource_spans {
        let of = resource.resource.map(|r| attributes(&r.attributes)).unwrap_or_default();
        for span in resource.scope_spans.iter().flat_map(|s| &s.spans) {
            println!("{}", told(span, &of));
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse()?);
    let empty = Bytes::from_static(&[0; 5]);
    let frames = vec![Ok(Frame::data(empty)), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
    response.headers_mut().insert("content-type", "application/grpc".parse()?);
    Ok(response)
}

fn told(s: &Span, of: &Value) -> Value {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    json!({
        "trace": hex(&s.trace_id), "span": hex(&s.span_id), "parent": hex(&s.parent_span_id),
        "name": s.name, "kind": s.kind, "took": s.end.checked_sub(s.start),
        "attributes": attributes(&s.attributes), "resource": of,
        "error": s.status.as_ref().is_some_and(|s| s.code == otlp::ERROR),
    })
}

fn attributes(all: &[KeyValue]) -> Value {
    let one = |kv: &KeyValue| {
        let value = match kv.value.as_ref().and_then(|v| v.value.as_ref()) {
            Some(otlp::Value::Text(text)) => json!(text),
            None => Value::Null,
        };
        (kv.key.clone(), value)
    };
    Value::Object(all.iter().map(one).collect())
}
