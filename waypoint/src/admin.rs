//! Metrics and readiness, for whoever asks over HTTP.

use crate::proxy::Proxy;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    fmt::Write as _,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{net::TcpListener, sync::Semaphore};

/// Connections at once.
const MOST: usize = 64;

pub async fn listen(proxy: Arc<Proxy>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(MOST));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let proxy = proxy.clone();
        tokio::spawn(async move {
            let service = service_fn(|r| {
                let proxy = proxy.clone();
                async move { Ok::<_, Infallible>(answer(&proxy, &r)) }
            });
            let serving = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(Duration::from_secs(60), serving).await;
            drop(permit);
        });
    }
}

fn answer(proxy: &Proxy, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, body) = match request.uri().path() {
        "/metrics" | "/stats/prometheus" => (StatusCode::OK, metrics(proxy)),
        "/healthz/ready" => match *proxy.ready.borrow() && !*proxy.draining.borrow() {
            true => (StatusCode::OK, "ready\n".to_owned()),
            false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
        },
        _ => (StatusCode::NOT_FOUND, "there is /metrics and /healthz/ready\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

fn metrics(proxy: &Proxy) -> String {
    let mut out = String::with_capacity(16 * 1024);
    proxy.requests.encode(&mut out);
    proxy.flows.encode(&mut out);
    let held = [
        ("workload", proxy.mesh.workloads().len()),
        ("service", proxy.mesh.services().len()),
        ("policy", proxy.mesh.policies().len()),
    ];
    let _ = writeln!(
        out,
        "# HELP culvert_waypoint_held What is held of the mesh: what is served, and who asked.\n\
         # TYPE culvert_waypoint_held gauge"
    );
    for (kind, n) in held {
        let _ = writeln!(out, "culvert_waypoint_held{{type=\"{kind}\"}} {n}");
    }
    let (open, refused) = proxy.doors.counts();
    let _ = writeln!(
        out,
        "# HELP culvert_waypoint_connections Connections from without.\n\
         # TYPE culvert_waypoint_connections gauge\nculvert_waypoint_connections {open}\n\
         # HELP culvert_waypoint_connections_refused_total Connections that there was no room for.\n\
         # TYPE culvert_waypoint_connections_refused_total counter\n\
         culvert_waypoint_connections_refused_total {refused}"
    );
    let (live, waiting) = proxy.tables.counts();
    let _ = writeln!(
        out,
        "# HELP culvert_waypoint_hosts Hosts with routes.\n# TYPE culvert_waypoint_hosts gauge\n\
         culvert_waypoint_hosts{{state=\"live\"}} {live}\n\
         culvert_waypoint_hosts{{state=\"waiting\"}} {waiting}"
    );
    let _ = writeln!(
        out,
        "# HELP culvert_waypoint_spans_lost_total Spans that no collector has taken.\n\
         # TYPE culvert_waypoint_spans_lost_total counter\nculvert_waypoint_spans_lost_total {}",
        proxy.spans.lost.load(Ordering::Relaxed)
    );
    let _ = writeln!(
        out,
        "# HELP culvert_log_lines_lost Log lines dropped because the reader was slow.\n\
         # TYPE culvert_log_lines_lost gauge\nculvert_log_lines_lost {}",
        telemetry::log::lost()
    );
    out
}
