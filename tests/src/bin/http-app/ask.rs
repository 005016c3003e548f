//! The client.

use crate::text;
use anyhow::Context as _;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, Method, Request, Response, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::Instant;
use testbed::pattern;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[derive(clap::Args, Clone)]
pub struct Ask {
    url: String,
    #[arg(long, default_value = "GET")]
    method: String,
    #[arg(long = "header")]
    headers: Vec<String>,
    #[arg(long, default_value = "")]
    body: String,
    /// A body of so many bytes of the testbed's pattern 1.
    #[arg(long)]
    pattern: Option<usize>,
    /// A trailer, `name: value`; the body's length is not said then.
    #[arg(long = "trailer")]
    trailers: Vec<String>,
    #[arg(long)]
    http2: bool,
    /// WebSocket by an extended CONNECT, which takes --http2; the body goes in what it opens.
    #[arg(long)]
    websocket: bool,
    #[arg(long, default_value_t = 1)]
    times: usize,
    #[arg(long, default_value_t = 1)]
    at_once: usize,
}

type Body = BoxBody<Bytes, Infallible>;

/// An answer's body is written up to here.
const SHOWN: usize = 64 * 1024;

pub async fn ask_all(ask: &Ask) -> anyhow::Result<()> {
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
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

async fn connect(ask: &Ask, uri: &Uri) -> anyhow::Result<Sender> {
    let host = uri.host().context("a URL has a host")?.trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((host, port)).await.context("connecting")?;
    let io = TokioIo::new(stream);
    Ok(if ask.http2 {
        let (send, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Sender::Http2(send)
    } else {
        let (send, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        Sender::Http1(send)
    })
}

fn headers(lines: &[String]) -> anyhow::Result<HeaderMap> {
    let mut all = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').context("a header is name: value")?;
        let name: HeaderName = name.trim().parse()?;
        all.append(name, value.trim().parse()?);
    }
    Ok(all)
}

fn request(ask: &Ask) -> anyhow::Result<Request<Body>> {
    let data = match ask.pattern {
        None if ask.websocket => Bytes::new(),
        Some(n) => Bytes::from(pattern::bytes(n, 1)),
        None => Bytes::from(ask.body.clone()),
    };
    let trailers = headers(&ask.trailers)?;
    let body = if trailers.is_empty() {
        Full::new(data).boxed()
    } else {
        let frames = [Ok(Frame::data(data)), Ok(Frame::trailers(trailers.clone()))];
        BodyExt::boxed(StreamBody::new(stream::iter(frames)))
    };
    let mut request = Request::new(body);
    *request.method_mut() = Method::from_bytes(ask.method.as_bytes())?;
    *request.headers_mut() = headers(&ask.headers)?;
    for name in trailers.keys() {
        request.headers_mut().append("trailer", name.as_str().parse()?);
    }
    Ok(request)
}

/// All that comes back for the body and its end.
async fn switched(ask: &Ask, response: Response<Incoming>) -> anyhow::Result<Value> {
    let (status, headers) = (response.status().as_u16(), text(response.headers()));
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.context("switching")?);
    io.write_all(ask.body.as_bytes()).await?;
    io.shutdown().await?;
    let mut all = String::new();
    io.read_to_string(&mut all).await?;
    Ok(json!({
        "status": status, "headers": headers, "trailers": {}, "length": all.len(), "body": all,
        "is_pattern": false, "took": 0.0,
    }))
}

async fn ask_in_turn(ask: &Ask, times: usize) -> anyhow::Result<Vec<Value>> {
    let uri: Uri = ask.url.parse()?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let authority = uri.authority().context("a URL has a host")?;
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
        let mut request = request(ask)?;
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
                if ask.websocket {
                    *request.method_mut() = Method::CONNECT;
                    request.extensions_mut().insert(Protocol::from_static("websocket"));
                }
                s.send_request(request).await
            }
        }
        .context("sending")?;
        if ask.websocket && response.status().is_success() {
            out.push(switched(ask, response).await?);
            continue;
        }
        let (parts, body) = response.into_parts();
        let collected = body.collect().await.context("reading the answer")?;
        let trailers = collected.trailers().map(text).unwrap_or_default();
        let bytes = collected.to_bytes();
        let expected = pattern::bytes(bytes.len(), 1);
        out.push(json!({
            "status": parts.status.as_u16(),
            "headers": text(&parts.headers),
            "trailers": trailers,
            "body": String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]),
            "length": bytes.len(),
            "is_pattern": bytes == expected,
            "took": begun.elapsed().as_secs_f64(),
        }));
    }
    Ok(out)
}
