//! What clients' bytes go through, for fuzz targets: no mesh, and nobody to send to.

use crate::{
    gateway,
    head::{self, Head},
    inbound,
    telling::Telling,
    trace::{Context, is_of_it},
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rand::{SeedableRng as _, rngs::SmallRng};
use routes::{
    execute::{Normal, normal},
    proto,
};
use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context as Task, Poll},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// A client that has said all it will say, and takes whatever it is answered.
struct Client<'a>(&'a [u8]);

impl AsyncRead for Client<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Task<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // In pieces, as a network has it.
        let n = self.0.len().min(buf.remaining()).min(97);
        let (now, later) = self.0.split_at(n);
        buf.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Task<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Requests of HTTP/1 as a client sends them. What an endpoint gets for each is one request, with the
/// body that the client sent, and nothing that was for this hop.
pub fn http1(data: &[u8]) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else {
        return;
    };
    // Borrowed by the service, which is called for one request after another.
    let passed: Arc<Mutex<Vec<(Head, Vec<u8>)>>> = Arc::default();
    runtime.block_on(async {
        let service = service_fn(|request: Request<Incoming>| {
            let passed = passed.clone();
            async move { Ok::<_, Infallible>(take(request, &passed).await) }
        });
        let _ = inbound::http1().serve_connection(TokioIo::new(Client(data)), service).await;
        let passed = std::mem::take(&mut *passed.lock().unwrap_or_else(PoisonError::into_inner));
        for (head, body) in passed {
            let (got, bytes) = forwarded(&head, &body).await;
            assert_eq!(got, (head.method.to_string(), head.authority.clone()), "{head:?}");
            assert_eq!(bytes, body, "the endpoint has another body: {head:?}");
        }
    });
}

async fn take(
    mut request: Request<Incoming>,
    passed: &Mutex<Vec<(Head, Vec<u8>)>>,
) -> Response<Full<Bytes>> {
    let answer = |status| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        response
    };
    let Ok(Normal { path, authority }) = normal(request.uri(), request.headers()) else {
        return answer(StatusCode::BAD_REQUEST);
    };
    let context = Context::of(request.headers(), 500_000, &mut SmallRng::seed_from_u64(1));
    context.apply(request.headers_mut());
    let upgrade = head::end_of_hop(request.headers_mut());
    for name in ["connection", "transfer-encoding", "upgrade", "keep-alive", "expect"] {
        assert!(!request.headers().contains_key(name), "{name} goes on");
    }
    assert!(request.headers().contains_key("traceparent"), "{:?}", request.headers());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let (parts, body) = request.into_parts();
    // A part of a body is not passed for the whole.
    let Ok(body) = body.collect().await else { return answer(StatusCode::BAD_REQUEST) };
    let head =
        Head { method: parts.method, headers: parts.headers, path, query, authority, upgrade };
    let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
    passed.push((head, body.to_bytes().to_vec()));
    answer(StatusCode::OK)
}

/// Method, host and body of the one request that comes out at the other end.
async fn forwarded(head: &Head, body: &[u8]) -> ((String, String), Vec<u8>) {
    let same = (head.method.to_string(), head.authority.clone());
    let Ok(mut request) = head.request(false, "http", Full::new(Bytes::copy_from_slice(body)))
    else {
        return (same, body.to_vec());
    };
    // As the waypoint frames what it passes on: by the client's length, or in chunks.
    request.headers_mut().remove(header::CONTENT_LENGTH);
    let (ours, mut theirs) = tokio::io::duplex(4 * 1024 * 1024);
    let Ok((mut send, connection)) = http1::handshake(TokioIo::new(ours)).await else {
        return (same, body.to_vec());
    };
    let endpoint = async {
        let mut all = Vec::new();
        let _ = theirs
            .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            .await;
        let _ = theirs.read_to_end(&mut all).await;
        all
    };
    let sending = async {
        let sent = send.send_request(request).await.is_ok();
        drop(send);
        sent
    };
    let (sent, _, all) = tokio::join!(sending, connection, endpoint);
    if !sent && all.is_empty() {
        return (same, body.to_vec());
    }
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut parsed = httparse::Request::new(&mut fields);
    let Ok(httparse::Status::Complete(end)) = parsed.parse(&all) else {
        panic!("the endpoint gets no request: {:?}", String::from_utf8_lossy(&all));
    };
    let one = |name: &str| {
        let mut of = parsed.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name));
        let first = of.next().map(|h| String::from_utf8_lossy(h.value).into_owned());
        assert!(of.next().is_none(), "{name} twice: {:?}", String::from_utf8_lossy(&all));
        first
    };
    let length: usize = one("content-length").map_or(0, |n| n.parse().expect("a length"));
    assert!(one("transfer-encoding").is_none(), "of a body whose length is known");
    let rest = all.get(end..).unwrap_or_default();
    assert_eq!(rest.len(), length, "more than one request: {:?}", String::from_utf8_lossy(&all));
    let method = parsed.method.unwrap_or_default().to_owned();
    ((method, one("host").unwrap_or_default()), rest.to_vec())
}

/// What a port of a gateway does, as discovery says it: who is served by it, or why nobody can be.
pub fn listener(body: &[u8], name: &str) -> Result<(), String> {
    let listener = proto::Listener::decode(body).map_err(|e| e.to_string())?;
    gateway::loads(&listener, name);
    Ok(())
}

/// What is logged and traced, as discovery says it.
pub fn telemetry(body: &[u8]) -> Result<(), String> {
    Telling::load(body).map(drop)
}

/// Headers about traces: whatever a client says, what goes on is one trace in every form.
pub fn trace(mut headers: HeaderMap) {
    let context = Context::of(&headers, 500_000, &mut SmallRng::seed_from_u64(1));
    context.apply(&mut headers);
    let again = Context::of(&headers, 0, &mut SmallRng::seed_from_u64(2));
    assert_eq!(
        (again.trace, again.parent, again.sampled),
        (context.trace, Some(context.span), context.sampled),
        "{headers:?}"
    );
    // Each form alone says the same.
    for form in [&["b3"][..], &["x-b3-traceid", "x-b3-spanid", "x-b3-sampled"]] {
        let alone: HeaderMap = headers
            .iter()
            .filter(|(n, _)| form.contains(&n.as_str()) && is_of_it(n))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect();
        if alone.is_empty() {
            continue;
        }
        let alone = Context::of(&alone, 0, &mut SmallRng::seed_from_u64(3));
        assert_eq!((alone.trace, alone.sampled), (context.trace, context.sampled), "{headers:?}");
    }
}
