//! Bookinfo's four services in one small program: the names, ports, paths and JSON of Istio's
//! sample, with texts of its own.
//!
//! `bookinfo serve --service reviews --version v2` is one of them; `bookinfo get URL` is a client.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::HeaderName,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    io::{BufRead as _, BufReader},
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};

#[derive(Parser)]
enum Cli {
    /// Be one of the services
    Serve(Serve),
    #[command(flatten)]
    Client(Client),
}

#[derive(Subcommand)]
enum Client {
    /// Fetch a URL and print the body
    Get {
        url: String,
        /// Sent as the header end-user
        #[arg(long)]
        user: Option<String>,
        /// Sent as the header x-proof
        #[arg(long)]
        proof: Option<String>,
    },
    /// Fetch a URL per line of stdin, until it ends
    Shell,
}

#[derive(clap::Args, Clone)]
struct Serve {
    #[arg(long, value_parser = ["productpage", "details", "reviews", "ratings"])]
    service: String,
    #[arg(long, default_value = "v1")]
    version: String,
    #[arg(long, default_value_t = 9080)]
    port: u16,
    /// A file that says how it is today, read for each request: `flaky` (every other request fails),
    /// `broken` (every one) or `slow` (two seconds each)
    #[arg(long)]
    mood: Option<PathBuf>,
    /// Put into every request to another service and every answer, to be looked for on the wire
    #[arg(long, default_value = "")]
    proof: String,
}

/// Passed on from a request to those that it causes.
const PASSED_ON: [&str; 12] = [
    "end-user",
    "x-request-id",
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-ot-span-context",
    "user-agent",
];

const PROOF: &str = "x-proof";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse() {
        Cli::Serve(serve) => run(serve).await,
        Cli::Client(Client::Get { url, user, proof }) => {
            let mut headers = HeaderMap::new();
            for (name, value) in [("end-user", user), (PROOF, proof)] {
                if let Some(v) = value {
                    headers.insert(HeaderName::from_static(name), v.parse()?);
                }
            }
            let (status, body) = fetch(&url, &headers).await?;
            println!("{body}");
            anyhow::ensure!(status.is_success(), "{url} answered {status}");
            Ok(())
        }
        Cli::Client(Client::Shell) => {
            for line in BufReader::new(std::io::stdin()).lines() {
                match fetch(line?.trim(), &HeaderMap::new()).await {
                    Ok((status, body)) => println!("{status}\n{body}"),
                    Err(e) => println!("{e:#}"),
                }
            }
            Ok(())
        }
    }
}

async fn run(serve: Serve) -> anyhow::Result<()> {
    let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, serve.port));
    let listener = TcpListener::bind(at).await.with_context(|| format!("binding {at}"))?;
    println!("{} {} listens on {at}", serve.service, serve.version);
    let serve = Arc::new(serve);
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let serve = serve.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(serve.clone(), request));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    serve: Arc<Serve>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let mut headers = HeaderMap::new();
    for name in PASSED_ON {
        if let Some(v) = request.headers().get(name) {
            headers.insert(HeaderName::from_static(name), v.clone());
        }
    }
    if let Ok(v) = serve.proof.parse() {
        headers.insert(PROOF, v);
    }
    println!("{} {path} for {:?}", request.method(), request.headers().get("host"));
    if mood(&serve).await {
        let body = json!({"error": format!("{} has a bad day", serve.service)});
        return Ok(respond(
            &serve,
            StatusCode::INTERNAL_SERVER_ERROR,
            "application/json",
            body.to_string(),
        ));
    }
    let (status, body) = match (serve.service.as_str(), path.as_str()) {
        (_, "/health") => {
            (StatusCode::OK, json!({"status": format!("{} is healthy", serve.service)}))
        }
        ("productpage", "/" | "/productpage") => return Ok(page(&serve, &headers).await),
        ("productpage", "/login" | "/logout") => (StatusCode::OK, json!({"ok": path})),
        ("productpage", p) if p.starts_with("/static/") => (StatusCode::OK, json!({"file": p})),
        ("productpage", "/api/v1/products") => (StatusCode::OK, json!([product()])),
        ("productpage", "/api/v1/products/0") => {
            passed(fetch("http://details:9080/details/0", &headers).await)
        }
        ("productpage", "/api/v1/products/0/reviews") => {
            passed(fetch("http://reviews:9080/reviews/0", &headers).await)
        }
        ("productpage", "/api/v1/products/0/ratings") => {
            passed(fetch("http://ratings:9080/ratings/0", &headers).await)
        }
        ("details", "/details/0") => (StatusCode::OK, details()),
        ("ratings", "/ratings/0") => {
            (StatusCode::OK, json!({"id": 0, "ratings": {"Reviewer1": 5, "Reviewer2": 4}}))
        }
        ("reviews", "/reviews/0") => (StatusCode::OK, reviews(&serve, &headers).await),
        _ => (StatusCode::NOT_FOUND, json!({"error": format!("{path} is not here")})),
    };
    Ok(respond(&serve, status, "application/json", body.to_string()))
}

/// Whether it fails this time.
async fn mood(serve: &Serve) -> bool {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let Some(path) = &serve.mood else { return false };
    match std::fs::read_to_string(path).unwrap_or_default().trim() {
        "flaky" => ASKED.fetch_add(1, Ordering::Relaxed).is_multiple_of(2),
        "broken" => true,
        "slow" => {
            tokio::time::sleep(Duration::from_secs(2)).await;
            false
        }
        _ => false,
    }
}

fn respond(serve: &Serve, status: StatusCode, kind: &str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    if let Ok(v) = kind.parse() {
        response.headers_mut().insert("content-type", v);
    }
    if let Ok(v) = serve.proof.parse() {
        response.headers_mut().insert(PROOF, v);
    }
    response
}

fn product() -> Value {
    json!({
        "id": 0,
        "title": "The Comedy of Errors",
        "descriptionHtml": "An early play of Shakespeare's: two pairs of twins, one town, one day."
    })
}

fn details() -> Value {
    json!({
        "id": 0,
        "author": "William Shakespeare",
        "year": 1595,
        "type": "paperback",
        "pages": 200,
        "publisher": "PublisherA",
        "language": "English",
        "ISBN-10": "1234567890",
        "ISBN-13": "123-1234567890"
    })
}

/// v1 shows no stars, v2 black ones, v3 red ones.
async fn reviews(serve: &Serve, headers: &HeaderMap) -> Value {
    let color = match serve.version.as_str() {
        "v2" => Some("black"),
        "v3" => Some("red"),
        _ => None,
    };
    let stars = match color {
        None => None,
        Some(_) => Some(fetch("http://ratings:9080/ratings/0", headers).await),
    };
    let rating = |reviewer: &str| -> Option<Value> {
        let color = color?;
        let stars = match stars.as_ref()? {
            Ok((status, body)) if status.is_success() => serde_json::from_str::<Value>(body)
                .ok()
                .and_then(|v| v.pointer(&format!("/ratings/{reviewer}")).cloned()),
            _ => None,
        };
        Some(match stars {
            Some(n) => json!({"stars": n, "color": color}),
            None => json!({"error": "Ratings service is currently unavailable"}),
        })
    };
    let review = |reviewer: &str, text: &str| {
        let mut review = json!({"reviewer": reviewer, "text": text});
        if let (Some(map), Some(r)) = (review.as_object_mut(), rating(reviewer)) {
            map.insert("rating".into(), r);
        }
        review
    };
    json!({
        "id": "0",
        "podname": std::env::var("HOSTNAME").unwrap_or_else(|_| format!("reviews-{}", serve.version)),
        "clustername": "null",
        "reviews": [
            review("Reviewer1", "I laughed until the second pair of twins arrived, and then some more."),
            review("Reviewer2", "Confusing on purpose, and over before one tires of it."),
        ]
    })
}

async fn page(serve: &Serve, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let details = passed(fetch("http://details:9080/details/0", headers).await).1;
    let reviews = passed(fetch("http://reviews:9080/reviews/0", headers).await).1;
    let user = headers.get("end-user").and_then(|v| v.to_str().ok()).unwrap_or("nobody");
    let body = format!(
        "<!doctype html><title>Simple Bookstore App</title><h1>{}</h1><p>Signed in: {user}</p>\n\
         <h2>Book Details</h2><pre>{details:#}</pre>\n<h2>Book Reviews</h2><pre>{reviews:#}</pre>\n",
        "The Comedy of Errors"
    );
    respond(serve, StatusCode::OK, "text/html; charset=utf-8", body)
}

fn passed(fetched: anyhow::Result<(StatusCode, String)>) -> (StatusCode, Value) {
    match fetched {
        Ok((status, body)) => {
            (status, serde_json::from_str(&body).unwrap_or_else(|_| json!({"error": body})))
        }
        Err(e) => (StatusCode::SERVICE_UNAVAILABLE, json!({"error": format!("{e:#}")})),
    }
}

/// One request on a connection of its own.
async fn fetch(url: &str, headers: &HeaderMap) -> anyhow::Result<(StatusCode, String)> {
    let uri: hyper::Uri = url.parse()?;
    let authority = uri.authority().context("the URL has no host")?.clone();
    let exchange = async {
        let stream = TcpStream::connect(authority.as_str())
            .await
            .with_context(|| format!("connecting to {authority}"))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mut request = Request::get(path).header("host", authority.as_str());
        if let Some(h) = request.headers_mut() {
            h.extend(headers.clone());
        }
        let response = sender.send_request(request.body(Full::<Bytes>::default())?).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::time::timeout(Duration::from_secs(10), exchange)
        .await
        .with_context(|| format!("{url} did not answer within ten seconds"))?
}
