//! `/ready`, `/metrics` and `/debug/diagnostics`.

use crate::control::Control;
use anyhow::Context as _;
use http::StatusCode;
use http_body_util::Full;
use hyper::{Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::TcpListener;

pub async fn serve(control: Arc<Control>, at: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(at).await.with_context(|| format!("binding {at}"))?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors, most likely, which a spin would not mend.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let control = control.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let (status, body) = answer(&control, request.uri().path());
                    let mut response = Response::new(Full::new(Bytes::from(body)));
                    *response.status_mut() = status;
                    async move { Ok::<_, Infallible>(response) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(10))
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Ok(())
}

fn answer(control: &Control, path: &str) -> (StatusCode, String) {
    match path {
        "/ready" if control.is_ready() => (StatusCode::OK, "ready\n".into()),
        "/ready" => (StatusCode::SERVICE_UNAVAILABLE, "not loaded yet\n".into()),
        "/metrics" => (StatusCode::OK, control.metrics()),
        "/debug/diagnostics" => (
            StatusCode::OK,
            serde_json::to_string_pretty(&control.diagnostics()).unwrap_or_default(),
        ),
        _ => (StatusCode::NOT_FOUND, "here are /ready, /metrics and /debug/diagnostics\n".into()),
    }
}
