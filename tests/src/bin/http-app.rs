//! An application of HTTP/1.1 and HTTP/2 that does as it is asked, and a client for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use clap::{Parser, Subcommand};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Answers with what it was asked. In the query: `status`, `delay` (ms), `fail` (that many of the
    /// requests with the same `key` are answered 503), `size` (bytes of the answer), `trailer`.
    Serve {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        name: String,
    },
    Ask(Box<Ask>),
}

#[derive(clap::Args, Clone)]
struct Ask {
    url: String,
    #[arg(long, default_value = "GET")]
    method: String,
    #[arg(long = "header")]
    headers: Vec<String>,
    #[arg(long, default_value = "")]
    body: String,
    #[arg(long)]
    http2: bool,
    #[arg(long, default_value_t = 1)]
    times: usize,
    #[arg(long, default_value_t = 1)]
    at_once: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Cmd::Serve { port, name } => serve(port, name).await,
        Cmd::Ask(ask) => ask_all(&ask).await,
    }
}

struct App {
    name: String,
    /// Requests so far, by key.
    seen: Mutex<HashMap<String, u64>>,
}

type Body = BoxBody<Bytes, Infallible>;

async fn serve(port: u16, name: String) -> anyhow::Result<()> {
    let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(at).await?;
    println!("{name} listens on {at}");
    let app = Arc::new(App { name, seen: Mutex::default() });
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let app = app.clone();
        tokio::spawn(async move {
            let service = service_fn(move |r| {
                let app = app.clone();
                async move { Ok::<_, Infallible>(answer(&app, r).await) }
            });
            let mut first = [0; 3];
            let n = stream.peek(&mut first).await.unwrap_or(0);
            let io = TokioIo::new(stream);
            if first[..n] == *b"PRI" {
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
        });
    }
}

fn text(headers: &HeaderMap) -> Value {
    let mut all = serde_json::Map::new();
    for name in headers.keys() {
        let values = headers.get_all(name).iter();
        let joined: Vec<String> =
            values.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect();
        all.insert(name.to_string(), joined.join(",").into());
    }
    all.into()
}

async fn answer(app: &App, mut request: Request<Incoming>) -> Response<Body> {
    let query: HashMap<String, String> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|p| p.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    let number = |name: &str| query.get(name).and_then(|v| v.parse::<u64>().ok());
    let key = query.get("key").cloned().unwrap_or_default();
    let before = {
        let mut seen = app.seen.lock().unwrap();
        let n = seen.entry(key.clone()).or_default();
        *n += 1;
        *n - 1
    };
    if request.headers().contains_key(http::header::UPGRADE) {
        let upgrade = request.headers()[http::header::UPGRADE].clone();
        let on = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            // Says again what it hears, in capitals.
            let Ok(io) = on.await else { return };
            let mut io = TokioIo::new(io);
            let mut buffer = [0; 1024];
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            while let Ok(n) = io.read(&mut buffer).await {
                if n == 0 || io.write_all(&buffer[..n].to_ascii_uppercase()).await.is_err() {
                    break;
                }
            }
            let _ = io.shutdown().await;
        });
        let mut response = Response::new(full(Bytes::new()));
        *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
        response
            .headers_mut()
            .insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(http::header::UPGRADE, upgrade);
        return response;
    }
    let (parts, body) = request.into_parts();
    let collected = body.collect().await;
    let (bytes, trailers) = match collected {
        Ok(c) => {
            let trailers = c.trailers().map(text).unwrap_or_default();
            (c.to_bytes(), trailers)
        }
        Err(_) => (Bytes::new(), Value::Null),
    };
    if let Some(ms) = number("delay") {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    let mut status = number("status").and_then(|s| u16::try_from(s).ok()).unwrap_or(200);
    if number("fail").is_some_and(|fail| before < fail) {
        status = 503;
    }
    let said = json!({
        "pod": app.name,
        "method": parts.method.as_str(),
        "path": parts.uri.path_and_query().map(|p| p.as_str()),
        "authority": parts.uri.authority().map(|a| a.as_str()),
        "version": format!("{:?}", parts.version),
        "headers": text(&parts.headers),
        "body": String::from_utf8_lossy(&bytes),
        "trailers": trailers,
        "count": before + 1,
    });
    let body = match number("size") {
        Some(size) => Bytes::from(vec![b'x'; usize::try_from(size).unwrap_or(0)]),
        None => Bytes::from(said.to_string()),
    };
    let mut trailers = HeaderMap::new();
    if let Some(value) = query.get("trailer") {
        trailers.insert("x-trailer", value.parse().unwrap());
    }
    let frames = [Frame::data(body)]
        .into_iter()
        .chain((!trailers.is_empty()).then(|| Frame::trailers(trailers.clone())));
    let mut response = match trailers.is_empty() {
        true => {
            let frame = frames.into_iter().next().and_then(|f| f.into_data().ok());
            Response::new(full(frame.unwrap_or_default()))
        }
        false => {
            let all =
                futures_util::stream::iter(frames.map(Ok::<_, Infallible>).collect::<Vec<_>>());
            Response::new(BodyExt::boxed(StreamBody::new(all)))
        }
    };
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert("x-pod", app.name.parse().unwrap());
    if !trailers.is_empty() {
        response.headers_mut().insert("trailer", HeaderValue::from_static("x-trailer"));
    }
    response
}

fn full(bytes: Bytes) -> Body {
    BodyExt::boxed(Full::new(bytes))
}

async fn ask_all(ask: &Ask) -> anyhow::Result<()> {
    let each = ask.times.div_ceil(ask.at_once.max(1));
    let workers: Vec<_> = (0..ask.at_once)
        .map(|_| {
            let ask = ask.clone();
            tokio::spawn(async move { ask_in_turn(&ask, each).await })
        })
        .collect();
    for worker in workers {
        for line in worker.await?? {
            println!("{line}");
        }
    }
    Ok(())
}

enum Sender {
    Http1(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    Http2(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

async fn connect(ask: &Ask, uri: &Uri) -> anyhow::Result<Sender> {
    let host = uri.host().context("a URL has a host")?.trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((host, port)).await.context("connecting")?;
    let io = TokioIo::new(stream);
    Ok(if ask.http2 {
        let (send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Sender::Http2(send)
    } else {
        let (send, connection) = hyper::client::conn::http1::handshake(io).await?;
        tokio::spawn(connection);
        Sender::Http1(send)
    })
}

async fn ask_in_turn(ask: &Ask, times: usize) -> anyhow::Result<Vec<Value>> {
    let uri: Uri = ask.url.parse()?;
    let mut sender = None;
    let mut out = Vec::new();
    for _ in 0..times {
        let begun = Instant::now();
        let usable = match &mut sender {
            Some(Sender::Http1(s)) => s.ready().await.is_ok(),
            Some(Sender::Http2(s)) => s.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            sender = Some(connect(ask, &uri).await?);
        }
        let mut request = Request::new(Full::new(Bytes::from(ask.body.clone())));
        *request.method_mut() = Method::from_bytes(ask.method.as_bytes())?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let authority = uri.authority().context("a URL has a host")?;
        for header in &ask.headers {
            let (name, value) = header.split_once(':').context("a header is name: value")?;
            let name: HeaderName = name.trim().parse()?;
            request.headers_mut().append(name, value.trim().parse()?);
        }
        let response = match sender.as_mut().context("connected above")? {
            Sender::Http1(s) => {
                *request.uri_mut() = path.parse()?;
                if !request.headers().contains_key("host") {
                    request.headers_mut().insert("host", authority.as_str().parse()?);
                }
                s.send_request(request).await
            }
            Sender::Http2(s) => {
                let host = request.headers_mut().remove("host");
                let host = host.as_ref().map_or(Ok(authority.as_str()), |h| h.to_str())?;
                *request.uri_mut() = format!("http://{host}{path}").parse()?;
                s.send_request(request).await
            }
        }
        .context("sending")?;
        let (parts, body) = response.into_parts();
        let collected = body.collect().await.context("reading the answer")?;
        let trailers = collected.trailers().map(text).unwrap_or_default();
        let body = String::from_utf8_lossy(&collected.to_bytes()).into_owned();
        out.push(json!({
            "status": parts.status.as_u16(),
            "headers": text(&parts.headers),
            "trailers": trailers,
            "body": body,
            "took": begun.elapsed().as_secs_f64(),
        }));
    }
    Ok(out)
}
