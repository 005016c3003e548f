//! A request to an endpoint: chosen, judged, sent, and sent again where that is asked for.

use crate::{
    body::{InBody, OutBody, Received, Replay},
    cluster::{Cluster, Counted, Overflow, Slot, To},
    exchange::Exchange,
    head::Head,
    http::Downstream,
    inbound::Io,
    interim::ToClient,
    proxy::Proxy,
    reply::Refusal,
    retry::{Attempts, Tried},
    upstream::{self, Answered, Attempt, GoesBack, TryError},
};
use hbone::StreamIo;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use identity::SpiffeId;
use mesh::Workload;
use policy::{Decision, Request as Connection};
use rand::Rng as _;
use routes::{
    balance::{Active, Outcome, hash},
    execute::{HashOf, Retry, Route},
    proto::Protocol,
};
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use telemetry::RequestRecord;
use tokio::sync::oneshot;

/// A request as it is to be sent, whoever gets it.
pub struct Given {
    pub proxy: Arc<Proxy>,
    pub downstream: Arc<Downstream>,
    pub head: Head,
    pub client_http2: bool,
    /// Whoever takes interim answers.
    pub interim: Option<ToClient>,
}

/// An answer's head, and what is to be done when its body has gone through.
pub struct Forwarded {
    pub response: Response<Received>,
    pub back: Option<GoesBack>,
    pub to: Arc<To>,
    pub active: Active<Arc<Workload>>,
    pub request: Counted,
}

pub fn telemetry_end(
    address: Option<SocketAddr>,
    workload: Option<&Workload>,
    identity: Option<&SpiffeId>,
) -> telemetry::Endpoint {
    let identity = identity.map(SpiffeId::text);
    match workload {
        Some(w) => telemetry::Endpoint {
            address,
            workload: w.workload_name.clone(),
            namespace: w.namespace.clone(),
            canonical_service: w.canonical_name.clone(),
            canonical_revision: w.canonical_revision.clone(),
            cluster: w.cluster.clone(),
            identity,
        },
        None => telemetry::Endpoint { address, identity, ..telemetry::Endpoint::default() },
    }
}

/// Sends, and tries again as the route asks. What is refused here has not been answered by anybody.
pub async fn forward(
    given: &Given,
    route: &Route,
    cluster: &Arc<Cluster>,
    body: &Replay,
    record: &mut RequestRecord,
) -> Result<Forwarded, Refusal> {
    let mut asked = None;
    let all = attempts(given, route, cluster, body, record, &mut asked);
    let Some(limit) = route.timeout else { return all.await };
    match tokio::time::timeout(limit, all).await {
        Ok(outcome) => outcome,
        Err(_) => {
            if let Some(to) = asked {
                record.upstream_host = Some(to.address);
                // Whoever has not got all of the request is not to blame.
                if body.is_whole() {
                    cluster.report(&to, Outcome::Local);
                }
            }
            Err(Refusal::timeout(format!("no answer within {limit:?}")))
        }
    }
}

/// `asked`: whoever has been sent the request and has not answered yet.
async fn attempts(
    given: &Given,
    route: &Route,
    cluster: &Arc<Cluster>,
    body: &Replay,
    record: &mut RequestRecord,
    asked: &mut Option<Arc<To>>,
) -> Result<Forwarded, Refusal> {
    let request = cluster.begin_request()?;
    let (hash, cookie) = hash_of(given, cluster);
    let mut tried: Vec<Arc<To>> = Vec::new();
    let mut attempts = Attempts::new(route.retry.as_ref());
    let mut retrying: Option<Counted> = None;
    loop {
        record.attempts = attempts.number();
        let mut again = |tried: Tried<'_>| {
            // One retry ends where the next begins.
            drop(retrying.take());
            let room = || {
                retrying = cluster.begin_retry();
                retrying.is_some() && body.again()
            };
            attempts.next(tried, room, || rand::rng().random_range(0.0..1.0))
        };
        let attempt = one(given, route.retry.as_ref(), cluster, hash, &tried, body, asked).await;
        *asked = None;
        let (to, active, outcome) = match attempt {
            Err(refusal) => return Err(refusal),
            Ok(tried) => tried,
        };
        record.upstream_host = Some(to.address);
        let pause = match outcome {
            Ok(Answered { mut response, back }) => {
                let status = response.status();
                match again(Tried::Answered(status.as_u16(), response.headers())) {
                    None => {
                        if let Some(cookie) = cookie {
                            response.headers_mut().append(header::SET_COOKIE, cookie);
                        }
                        return Ok(Forwarded { response, back, to, active, request });
                    }
                    Some(pause) => {
                        cluster.report(&to, Outcome::Status(status.as_u16()));
                        pause
                    }
                }
            }
            Err(e) => {
                // Whoever has not got all of the request in time, or gets no more of it, is not to blame.
                let is_late = matches!(e, TryError::Timeout(_)) && !body.is_whole();
                if !is_late && !body.is_broken() {
                    cluster.report(&to, Outcome::Local);
                }
                let (tried, refusal) = match &e {
                    TryError::Connect { .. } => {
                        (Tried::NotConnected, Refusal::not_connected(e.to_string()))
                    }
                    TryError::Refused { .. } => (Tried::Refused, Refusal::reset(e.to_string())),
                    TryError::Reset { .. } => (Tried::Reset, Refusal::reset(e.to_string())),
                    TryError::Timeout(_) => (Tried::TimedOut, Refusal::timeout(e.to_string())),
                };
                match again(tried) {
                    None => return Err(refusal),
                    Some(pause) => pause,
                }
            }
        };
        drop(active);
        tokio::time::sleep(pause).await;
        tried.push(to);
    }
}

type Outcomes = (Arc<To>, Active<Arc<Workload>>, Result<Answered, TryError>);

/// One attempt at one endpoint.
async fn one(
    given: &Given,
    retry: Option<&Retry>,
    cluster: &Arc<Cluster>,
    hash: Option<u64>,
    tried: &[Arc<To>],
    body: &Replay,
    asked: &mut Option<Arc<To>>,
) -> Result<Outcomes, Refusal> {
    let to = choose(
        given,
        cluster,
        hash,
        if retry.is_some_and(|r| r.same_host_again) { &[] } else { tried },
    )
    .await?;
    judge(&given.proxy, &given.downstream, cluster, &to.workload, to.address)?;
    let active = Active::new(to.clone());
    let room = room(given, cluster).await?;
    *asked = Some(to.clone());
    let outcome = try_one(given, retry, cluster, &to, room, body.attempt()).await?;
    Ok((to, active, outcome))
}

/// Room for a connection of HTTP/1, where that is what is spoken.
async fn room(given: &Given, cluster: &Arc<Cluster>) -> Result<Option<Slot>, Overflow> {
    Ok(if speaks_http2(given, cluster) { None } else { Some(cluster.slot().await?) })
}

async fn try_one(
    given: &Given,
    retry: Option<&Retry>,
    cluster: &Arc<Cluster>,
    to: &Arc<To>,
    slot: Option<Slot>,
    body: OutBody,
) -> Result<Result<Answered, TryError>, Refusal> {
    let policy = &cluster.settings.policy;
    let http2 = slot.is_none();
    let attempt = Attempt {
        to,
        http2,
        tls: cluster.tls_to(to),
        connect_timeout: policy.connect_timeout,
        idle_timeout: policy.idle_timeout,
        most_requests: policy.max_requests_per_connection,
        client: given.downstream.client,
        interim: given.interim.clone(),
        slot,
    };
    let scheme = if attempt.tls.is_some() { "https" } else { "http" };
    let request = given.head.request(http2, scheme, body)?;
    let sending = upstream::send(&given.proxy, attempt, request);
    Ok(match retry.and_then(|r| r.per_try_timeout) {
        None => sending.await,
        Some(limit) => {
            tokio::time::timeout(limit, sending).await.unwrap_or(Err(TryError::Timeout(to.address)))
        }
    })
}

/// As the destination's port says, and where it says nothing as the client does.
fn speaks_http2(given: &Given, cluster: &Cluster) -> bool {
    if given.head.upgrade.is_some() {
        return false;
    }
    let settings = &cluster.settings;
    if settings.policy.use_client_protocol {
        return given.client_http2;
    }
    match settings.protocol {
        Protocol::Http2 | Protocol::Grpc => true,
        Protocol::Http1 => settings.policy.upgrade_to_http2,
        _ => given.client_http2 || settings.policy.upgrade_to_http2,
    }
}

async fn choose(
    given: &Given,
    cluster: &Cluster,
    hash: Option<u64>,
    avoid: &[Arc<To>],
) -> Result<Arc<To>, Refusal> {
    let endpoints = cluster.endpoints(&given.proxy, &given.downstream.own).await;
    let policy = &cluster.settings.policy;
    let chosen = endpoints.pick(policy, Instant::now(), &mut rand::rng(), hash, avoid);
    chosen.ok_or_else(|| Refusal::no_endpoint(cluster.name()))
}

/// The destination's own policies, asked about the client: the destination sees this proxy only. An
/// ALLOW for this proxy itself counts as well.
pub fn judge(
    proxy: &Proxy,
    downstream: &Downstream,
    cluster: &Cluster,
    workload: &Workload,
    address: SocketAddr,
) -> Result<(), Refusal> {
    // Elsewhere the destination's own agent, or its waypoint, judges what it sees: this proxy.
    let is_endpoint = workload.services.get(&cluster.service).is_some();
    // A ServiceEntry's endpoint outside the mesh is not one of its namespace's workloads.
    let outside = !workload.hbone && workload.uid.contains("/networking.istio.io/ServiceEntry/");
    if downstream.is_gateway() || !is_endpoint || outside {
        return Ok(());
    }
    let set = proxy.mesh.policies_for(workload);
    let about = |peer: Option<SpiffeId>| Connection {
        peer,
        source: downstream.client,
        destination: address,
        trust_domains: proxy.trust_domains(workload),
    };
    let connection = about(downstream.peer.clone());
    let verdict = set.evaluate(&connection);
    let for_this_proxy = || {
        matches!(verdict.decision, Decision::NoAllowMatched { .. })
            && set.evaluate(&about(Some(proxy.identity.clone()))).allowed
    };
    if verdict.allowed || for_this_proxy() {
        return Ok(());
    }
    Err(Refusal::denied(policy::in_words(&set, &connection, &verdict)))
}

/// What is hashed, and the cookie that the client is to keep for it.
fn hash_of(given: &Given, cluster: &Cluster) -> (Option<u64>, Option<HeaderValue>) {
    let Some(key) = cluster.settings.policy.hash.as_ref() else { return (None, None) };
    let value = match &key.of {
        HashOf::Header(name) => given.head.headers.get(name).map(|v| v.as_bytes().to_vec()),
        HashOf::SourceIp => Some(given.downstream.client.ip().to_string().into_bytes()),
        HashOf::Query(name) => given
            .head
            .query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.as_bytes().to_vec()),
        HashOf::Cookie { name, path, ttl } => match cookie(&given.head.headers, name) {
            Some(value) => Some(value.into_bytes()),
            None => {
                let Some(ttl) = ttl else { return (None, None) };
                let value = format!("{:016x}", rand::rng().random::<u64>());
                let mut text = format!("{name}=\"{value}\"; HttpOnly");
                if !ttl.is_zero() {
                    text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
                }
                if !path.is_empty() {
                    text.push_str(&format!("; Path={path}"));
                }
                return (Some(hash(value.as_bytes())), HeaderValue::from_str(&text).ok());
            }
        },
    };
    (value.map(|v| hash(&v)), None)
}

fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
    let mut pairs = all.flat_map(|v| v.split(';')).filter_map(|p| p.trim().split_once('='));
    pairs.find(|(k, _)| *k == name).map(|(_, v)| v.trim_matches('"').to_owned())
}

/// A copy: whatever becomes of it, nobody hears of it.
pub async fn mirror(given: Given, cluster: Arc<Cluster>, body: OutBody) {
    /// A mirror that takes longer is given up.
    const PATIENCE: Duration = Duration::from_secs(60);
    let sending = async {
        let _request = cluster.begin_request().ok()?;
        let to = choose(&given, &cluster, None, &[]).await.ok()?;
        judge(&given.proxy, &given.downstream, &cluster, &to.workload, to.address).ok()?;
        let _active = Active::new(to.clone());
        let room = room(&given, &cluster).await.ok()?;
        let answered = try_one(&given, None, &cluster, &to, room, body).await.ok()?.ok()?;
        // Read to its end, so that the connection can be used again.
        let mut from = answered.response.into_body();
        while let Some(frame) = http_body_util::BodyExt::frame(&mut from).await {
            frame.ok()?;
        }
        answered.back?.finished();
        Some(())
    };
    if tokio::time::timeout(PATIENCE, sending).await.ok().flatten().is_none() {
        tracing::debug!(cluster = %cluster.name(), "a mirrored request came to nothing");
    }
}

/// A client that asks to switch to another protocol.
pub enum OnClient {
    Http1(OnUpgrade),
    Http2(oneshot::Receiver<StreamIo>),
}

impl OnClient {
    /// Takes it from the client's request.
    pub fn of(request: &mut Request<Received>) -> Self {
        match request.body_mut() {
            Received::Switched(stream) => {
                Self::Http2(std::mem::replace(stream, oneshot::channel().1))
            }
            _ => Self::Http1(hyper::upgrade::on(request)),
        }
    }

    async fn switched(self) -> Option<Box<dyn Io>> {
        Some(match self {
            Self::Http1(upgrade) => Box::new(TokioIo::new(upgrade.await.ok()?)),
            Self::Http2(stream) => Box::new(stream.await.ok()?),
        })
    }
}

/// Both ends speak another protocol from here on: bytes go through until both directions have ended.
pub fn switch(
    mut exchange: Exchange,
    mut answered: Forwarded,
    on_client: Option<OnClient>,
    to: Option<HeaderValue>,
) -> Response<InBody> {
    let on_endpoint = hyper::upgrade::on(&mut answered.response);
    let mut response = Response::new(InBody::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = std::mem::take(answered.response.headers_mut());
    let headers = response.headers_mut();
    if exchange.downstream.http2 {
        // There the answer is that of a CONNECT (RFC 8441, section 5).
        headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        *response.status_mut() = StatusCode::OK;
    } else {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(to) = to {
            headers.insert(header::UPGRADE, to);
        }
    }
    let Some(on_client) = on_client else {
        // Nobody asked for it.
        return exchange.refuse(&Refusal::reset("it switched protocols unasked".to_owned()));
    };
    tokio::spawn(async move {
        // Held until the end: the connection is in use.
        let draining = exchange.draining();
        let _held = (answered.back, answered.active, answered.request, draining);
        if let (Some(mut client), Ok(endpoint)) = tokio::join!(on_client.switched(), on_endpoint) {
            let mut endpoint = TokioIo::new(endpoint);
            let moved = tokio::io::copy_bidirectional(&mut client, &mut endpoint).await;
            exchange.switched(moved);
        }
    });
    response
}
