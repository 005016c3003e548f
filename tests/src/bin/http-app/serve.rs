//! The application.

use crate::{text, tls};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

struct App {
    name: String,
    /// Connections so far.
    connections: AtomicU64,
    /// Requests so far, by key.
    seen: Mutex<HashMap<String, Seen>>,
}

#[derive(Default)]
struct Seen {
    count: u64,
    /// Of the last one.
    headers: Value,
    length: usize,
    /// Its body was not whole.
    broken: bool,
}

type Body = BoxBody<Bytes, io::Error>;

pub async fn serve(port: u16, name: String, tls: Option<TlsAcceptor>) -> anyhow::Result<()> {
    let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(at).await?;
    println!("{name} listens on {at}");
    let app = Arc::new(App { name, connections: AtomicU64::new(0), seen: Mutex::default() });
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (app, tls) = (app.clone(), tls.clone());
        tokio::spawn(async move {
            let Some(tls) = tls else {
                let mut first = [0; 3];
                let n = stream.peek(&mut first).await.unwrap_or(0);
                return connection(app, stream, first[..n] == *b"PRI", Value::Null).await;
            };
            let Ok(stream) = tls.accept(stream).await else { return };
            let shown = tls::shown(&stream);
            let http2 = shown["alpn"] == "h2";
            connection(app, stream, http2, shown).await;
        });
    }
}

async fn connection(
    app: Arc<App>,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    http2: bool,
    tls: Value,
) {
    let number = app.connections.fetch_add(1, Ordering::Relaxed);
    let service = service_fn(move |mut r: Request<Incoming>| {
        let app = app.clone();
        r.extensions_mut().insert(Shown(tls.clone()));
        async move { Ok::<_, Infallible>(answer(&app, number, r).await) }
    });
    let io = TokioIo::new(io);
    if http2 {
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(io, service)
            .await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new()
            .half_close(true)
            .serve_connection(io, service)
            .with_upgrades()
            .await;
    }
}

/// What the client has shown of TLS.
#[derive(Clone)]
struct Shown(Value);

struct Query(HashMap<String, String>);

impl Query {
    fn of(request: &Request<Incoming>) -> Self {
        let pairs = request.uri().query().unwrap_or_default().split('&');
        let pairs = pairs.map(|p| p.split_once('=').unwrap_or((p, "")));
        Self(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

async fn answer(app: &App, connection: u64, mut request: Request<Incoming>) -> Response<Body> {
    let query = Query::of(&request);
    if let Some(key) = query.text("peek") {
        let seen = app.seen.lock().unwrap();
        let seen = seen.get(key);
        let said = json!({
            "count": seen.map_or(0, |s| s.count),
            "headers": seen.map(|s| s.headers.clone()),
            "length": seen.map_or(0, |s| s.length),
            "broken": seen.is_some_and(|s| s.broken),
        });
        return Response::new(full(said.to_string()));
    }
    let key = query.text("key").unwrap_or_default().to_owned();
    let before = {
        let mut seen = app.seen.lock().unwrap();
        let seen = seen.entry(key.clone()).or_default();
        seen.headers = text(request.headers());
        seen.count += 1;
        seen.count - 1
    };
    if request.headers().contains_key(header::UPGRADE) {
        return switch(&mut request);
    }
    let failing = query.number("fail").is_some_and(|fail| before < fail)
        || query.text("failing").is_some_and(|pod| pod == app.name);
    let (parts, body) = request.into_parts();
    let (bytes, trailers) = match query.has("early") && failing {
        // Held, so that nothing is read and nothing closed.
        true => {
            tokio::spawn(async move {
                let _body = body;
                tokio::time::sleep(Duration::from_secs(5)).await;
            });
            (Bytes::new(), Value::Null)
        }
        false => match body.collect().await {
            Ok(c) => {
                let trailers = c.trailers().map(text).unwrap_or_default();
                (c.to_bytes(), trailers)
            }
            Err(_) => {
                app.seen.lock().unwrap().entry(key.clone()).or_default().broken = true;
                (Bytes::new(), Value::Null)
            }
        },
    };
    app.seen.lock().unwrap().entry(key).or_default().length = bytes.len();
    let here = query.text("delaying").is_none_or(|pod| pod == app.name);
    if let Some(ms) = query.number("delay").filter(|_| here) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    let mut status = query.number("status").and_then(|s| u16::try_from(s).ok()).unwrap_or(200);
    if failing {
        status = 503;
    }
    let said = json!({
        "pod": app.name,
        "connection": connection,
        "method": parts.method.as_str(),
        "path": parts.uri.path_and_query().map(|p| p.as_str()),
        "authority": parts.uri.authority().map(|a| a.as_str()),
        "version": format!("{:?}", parts.version),
        "headers": text(&parts.headers),
        "body": String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]),
        "length": bytes.len(),
        "trailers": trailers,
        "count": before + 1,
        "tls": parts.extensions.get::<Shown>().map(|s| s.0.clone()),
    });
    let mut response = Response::new(body_of(&query, bytes, &said));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    let headers = response.headers_mut();
    headers.insert("x-pod", app.name.parse().unwrap());
    if query.has("trailer") {
        headers.insert("trailer", HeaderValue::from_static("x-trailer"));
    }
    if query.has("grpc") {
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    }
    response
}

fn body_of(query: &Query, asked: Bytes, said: &Value) -> Body {
    let length = |name| query.number(name).and_then(|n| usize::try_from(n).ok());
    if let Some(n) = length("broken") {
        let part = Bytes::from(vec![b'x'; n]);
        // Time for what has been said to be sent.
        let end = stream::once(async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Err(io::Error::other("broken off"))
        });
        let all = stream::once(async { Ok(Frame::data(part)) }).chain(end);
        return BodyExt::boxed(StreamBody::new(Box::pin(all)));
    }
    if let Some(n) = length("chunks") {
        let every = Duration::from_millis(query.number("every").unwrap_or(0));
        let all = stream::iter(0..n).then(move |i| async move {
            if i > 0 {
                tokio::time::sleep(every).await;
            }
            Ok(Frame::data(Bytes::from(format!("chunk {i}\n"))))
        });
        return BodyExt::boxed(StreamBody::new(Box::pin(all)));
    }
    let data = if query.has("echo") {
        asked
    } else if let Some(size) = length("size") {
        Bytes::from(vec![b'x'; size])
    } else {
        Bytes::from(said.to_string())
    };
    let mut trailers = HeaderMap::new();
    for (param, name) in [("trailer", "x-trailer"), ("grpc", "grpc-status")] {
        if let Some(value) = query.text(param) {
            trailers.insert(name, value.parse().unwrap());
        }
    }
    if trailers.is_empty() {
        return full(data);
    }
    let frames = [Ok(Frame::data(data)), Ok(Frame::trailers(trailers))];
    BodyExt::boxed(StreamBody::new(stream::iter(frames)))
}

/// Says again what it hears, in capitals.
fn switch(request: &mut Request<Incoming>) -> Response<Body> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let upgrade = request.headers()[header::UPGRADE].clone();
    let on = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let Ok(io) = on.await else { return };
        let mut io = TokioIo::new(io);
        let mut buffer = [0; 1024];
        while let Ok(n) = io.read(&mut buffer).await {
            if n == 0 || io.write_all(&buffer[..n].to_ascii_uppercase()).await.is_err() {
                break;
            }
        }
        let _ = io.shutdown().await;
    });
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, upgrade);
    response
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}
