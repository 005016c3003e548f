//! What proxies send requests to: answers each with the same few bytes, in HTTP/1.1 or HTTP/2 as the
//! client speaks.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{convert::Infallible, net::Ipv6Addr};
use tokio::net::{TcpListener, TcpStream};

/// Its answer: as many bytes as a small JSON object has.
const BODY: &[u8] = &[b'x'; 128];

/// `<port>`
pub fn play(args: &[&str]) -> anyhow::Result<()> {
    let [port] = args else { bail!("wrong arguments: {args:?}") };
    let port: u16 = port.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener =
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await.context("listening")?;
        println!("listens on {port}");
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(serve(stream));
        }
    })
}

async fn serve(stream: TcpStream) {
    let service = service_fn(async |_: Request<Incoming>| {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(BODY))))
    });
    let mut first = [0; 3];
    let n = stream.peek(&mut first).await.unwrap_or(0);
    let io = TokioIo::new(stream);
    // A client that breaks off is none of its business.
    if first[..n] == *b"PRI" {
        let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = http2.serve_connection(io, service).await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    }
}
