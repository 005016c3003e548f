//! One request, from its head to the end of its answer.

use crate::{
    body::{Ended, InBody, OutBody, Passing, Received, Replay, Watch},
    cluster::{Cluster, Counted, Overflow, To},
    exchange::Exchange,
    forward::{self, Given, OnClient},
    gateway::Shown,
    head::{self, Head},
    proxy::Proxy,
    reply::{self, Refusal},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use identity::SpiffeId;
use mesh::{NamespacedHostname, Service, Workload};
use policy::Request as Connection;
use rand::Rng as _;
use routes::{
    balance::Active,
    execute::{
        Abort, Action, HostTable, HttpVerdict, Normal, Preflight, RequestView, Route, Source,
        Target, Weighted, normal, without_port,
    },
};
use std::{net::SocketAddr, sync::Arc};
use telemetry::ServiceName;

/// Whoever sends requests on one connection, and where they were going.
pub struct Downstream {
    pub peer: Option<SpiffeId>,
    pub client: SocketAddr,
    /// The client's own record, where its address and its certificate agree on it.
    pub workload: Option<Arc<Workload>>,
    /// What it connected to.
    pub asked: SocketAddr,
    pub came: Came,
    pub own: Arc<Workload>,
    pub http2: bool,
}

/// By which way.
pub enum Came {
    /// Within the mesh, to a service's virtual address.
    ToService(Arc<Service>),
    /// From wherever, to a port of a gateway.
    ToGateway {
        /// None in plaintext.
        tls: Option<Shown>,
        redirected: Arc<[String]>,
    },
}

impl Downstream {
    /// The host's table: of the service that was connected to, or at a gateway of the most specific
    /// host that the request's is one of.
    pub fn table(&self, proxy: &Proxy, authority: &str) -> Option<Arc<HostTable>> {
        match &self.came {
            Came::ToService(service) => proxy.tables.host(&service.key),
            Came::ToGateway { .. } => {
                let namespace = routes::compile::gateway_namespace(self.asked.port());
                let namespace: Arc<str> = namespace.into();
                routes::names::patterns(without_port(authority)).find_map(|hostname| {
                    let hostname = hostname.into();
                    proxy
                        .tables
                        .host(&NamespacedHostname { namespace: namespace.clone(), hostname })
                })
            }
        }
    }

    pub fn scheme(&self) -> &'static str {
        match self.came {
            Came::ToGateway { tls: Some(_), .. } => "https",
            _ => "http",
        }
    }

    fn sni(&self) -> Option<&str> {
        match &self.came {
            Came::ToGateway { tls, .. } => tls.as_ref()?.name.as_deref(),
            Came::ToService(_) => None,
        }
    }

    pub fn is_gateway(&self) -> bool {
        matches!(self.came, Came::ToGateway { .. })
    }

    pub fn service_name(&self) -> ServiceName {
        match &self.came {
            Came::ToService(s) => ServiceName {
                hostname: s.key.hostname.clone(),
                name: s.name.clone(),
                namespace: s.key.namespace.clone(),
            },
            // Known when it is known where the request goes.
            Came::ToGateway { .. } => ServiceName::default(),
        }
    }

    pub fn source(&self) -> Source<'_> {
        Source {
            address: Some(self.client),
            namespace: self.peer.as_ref().map_or("", |p| p.namespace()),
            labels: self.workload.as_ref().map_or(&[], |w| &*w.labels),
        }
    }

    pub fn connection(&self, proxy: &Proxy) -> Connection {
        Connection {
            peer: self.peer.clone(),
            source: self.client,
            destination: self.asked,
            trust_domains: proxy.trust_domains(&self.own),
        }
    }
}

/// Answers one request.
pub async fn serve(
    proxy: Arc<Proxy>,
    downstream: Arc<Downstream>,
    mut request: Request<Received>,
) -> Response<InBody> {
    head::as_upgrade(&mut request);
    let mut exchange = Exchange::new(&proxy, &downstream, &request);
    if *request.method() == Method::CONNECT {
        return exchange.refuse(&Refusal::bad_request("CONNECT is for HBONE".to_owned()));
    }
    if request.uri().path() == "*" && *request.method() != Method::OPTIONS {
        return exchange.refuse(&Refusal::bad_request("* is for OPTIONS".to_owned()));
    }
    let form = match normal(request.uri(), request.headers()) {
        Ok(form) => form,
        Err(e) => return exchange.refuse(&Refusal::bad_request(e.to_string())),
    };
    exchange.record.authority.clone_from(&form.authority);
    if let Came::ToGateway { redirected, .. } = &downstream.came
        && let Some(location) = to_https(redirected, &form, request.uri().query())
    {
        return exchange.redirect(StatusCode::MOVED_PERMANENTLY, location);
    }
    if let Came::ToGateway { tls: Some(shown), .. } = &downstream.came
        && !shown.is_for(without_port(&form.authority))
    {
        return exchange.refuse(&Refusal::misdirected());
    }
    let table = downstream.table(&proxy, &form.authority);
    let found = table.as_ref().and_then(|t| Some((t, t.port(downstream.asked.port())?)));
    let Some((table, port)) = found else {
        let refusal = match downstream.is_gateway() {
            true => Refusal::no_route(),
            false => Refusal::no_routes(),
        };
        return exchange.refuse(&refusal);
    };
    clean(request.headers_mut(), &downstream, &mut exchange);
    exchange.traced(request.headers_mut());
    let chosen = {
        let view = view(&request, &form, &downstream);
        if let Some(refusal) = judge(&proxy, table, &view, &downstream) {
            return exchange.refuse(&refusal);
        }
        port.route(&view).map(|(route, matched)| (route.clone(), matched))
    };
    let Some((route, matched)) = chosen else {
        return exchange.refuse(&Refusal::no_route());
    };
    exchange.record.route_name = route.name.clone();
    Box::pin(along(exchange, route, matched, form, request)).await
}

/// Where a request is sent that is to come by HTTPS.
fn to_https(redirected: &[String], form: &Normal, query: Option<&str>) -> Option<HeaderValue> {
    let host = without_port(&form.authority);
    if !redirected.iter().any(|p| routes::names::matches(p, host)) {
        return None;
    }
    let query = query.map(|q| format!("?{q}")).unwrap_or_default();
    HeaderValue::from_str(&format!("https://{host}{}{query}", form.path)).ok()
}

fn view<'a>(
    request: &'a Request<Received>,
    form: &'a Normal,
    downstream: &'a Downstream,
) -> RequestView<'a> {
    RequestView {
        method: request.method(),
        path: &form.path,
        query: request.uri().query().unwrap_or_default(),
        authority: &form.authority,
        scheme: downstream.scheme(),
        headers: request.headers(),
        sni: downstream.sni(),
        source: downstream.source(),
    }
}

/// Takes off what only proxies may say, and what ends here (RFC 9110, section 7.6.1); puts on who
/// asks.
fn clean(headers: &mut HeaderMap, downstream: &Downstream, exchange: &mut Exchange) {
    let taken: Vec<HeaderName> =
        headers.keys().filter(|n| is_of_proxies(n.as_str())).cloned().collect();
    for name in taken {
        headers.remove(name);
    }
    if let Some(peer) = &downstream.peer {
        let own = &exchange.proxy.identity;
        if let Ok(value) = HeaderValue::from_str(&format!("By={own};URI={peer}")) {
            headers.insert("x-forwarded-client-cert", value);
        }
    }
    headers.insert("x-forwarded-proto", HeaderValue::from_static(downstream.scheme()));
    if downstream.is_gateway() {
        let client = downstream.client.ip().to_string();
        let before = headers.get("x-forwarded-for").and_then(|v| v.to_str().ok());
        let all = before.map_or(client.clone(), |b| format!("{b},{client}"));
        if let Ok(value) = HeaderValue::from_str(&all) {
            headers.insert("x-forwarded-for", value);
        }
    }
    let id = headers.get("x-request-id").and_then(|v| v.to_str().ok()).map(ToOwned::to_owned);
    let id = id.filter(|id| !id.is_empty() && id.len() <= 128).unwrap_or_else(reply::request_id);
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", value);
    }
    exchange.record.request_id = id;
}

/// What only a proxy says, or says anew. By many applications `_` is read as `-`, so such a name is one of these as
/// well, beside or instead of what the proxy says.
fn is_of_proxies(name: &str) -> bool {
    const CERTIFICATE: &str = "x-forwarded-client-cert";
    const SAID_ANEW: [&str; 4] =
        [CERTIFICATE, "x-forwarded-proto", "x-forwarded-for", "x-request-id"];
    if !name.contains('_') {
        return name.starts_with("x-envoy-") || name == CERTIFICATE;
    }
    let dashed = name.replace('_', "-");
    dashed.starts_with("x-envoy-") || SAID_ANEW.contains(&dashed.as_str())
}

fn judge(
    proxy: &Proxy,
    table: &HostTable,
    view: &RequestView<'_>,
    downstream: &Downstream,
) -> Option<Refusal> {
    if table.policies.is_empty() {
        return None;
    }
    let connection = downstream.connection(proxy);
    for name in table.policies.on_trial(view, &connection) {
        tracing::info!(policy = %name, source = %downstream.client, path = view.path,
            "a dry-run policy matches");
    }
    match table.policies.judge(view, &connection) {
        HttpVerdict::Allowed => None,
        denied => Some(Refusal::denied(denied.to_string())),
    }
}

/// What the route says, in Envoy's order: CORS, faults, then the answer.
async fn along(
    mut exchange: Exchange,
    route: Arc<Route>,
    matched: usize,
    form: Normal,
    mut request: Request<Received>,
) -> Response<InBody> {
    if let Some(cors) = &route.cors
        && let Preflight::Answer(headers) = cors.preflight(request.method(), request.headers())
    {
        let mut response = Response::new(InBody::empty());
        *response.headers_mut() = headers;
        exchange.answered(&response);
        return response;
    }
    if let Some(fault) = &route.fault {
        let draw = || rand::rng().random_range(0..1_000_000);
        if let Some((delay, share)) = fault.delay
            && share.includes(draw())
        {
            exchange.record.response_flags = "DI";
            tokio::time::sleep(delay).await;
        }
        if let Some((abort, share)) = fault.abort
            && share.includes(draw())
        {
            let refusal = match abort {
                Abort::Http(status) => Refusal::fault(status, None),
                Abort::Grpc(status) => Refusal::fault(StatusCode::OK, Some(status)),
            };
            return exchange.refuse(&refusal);
        }
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    let weighted = match &route.action {
        Action::Redirect(r) => {
            let asked = exchange.downstream.asked.port();
            let to = r.location(
                exchange.downstream.scheme(),
                &form.authority,
                asked,
                &form.path,
                &query,
                matched,
            );
            let location = to.and_then(|uri| HeaderValue::from_str(&uri.to_string()).ok());
            let Some(location) = location else {
                return exchange
                    .refuse(&Refusal::bad_request("it cannot be redirected".to_owned()));
            };
            let mut response = exchange.redirect(r.code, location);
            route.response_headers.apply(response.headers_mut());
            return response;
        }
        Action::Direct(d) => {
            let mut response = Response::new(InBody::of(d.body.clone()));
            *response.status_mut() = d.status;
            if !d.body.is_empty() {
                let text = HeaderValue::from_static("text/plain");
                response.headers_mut().insert(header::CONTENT_TYPE, text);
            }
            route.response_headers.apply(response.headers_mut());
            exchange.record.bytes_sent = d.body.len() as u64;
            exchange.answered(&response);
            return response;
        }
        Action::Forward(f) => match f.pick() {
            Some(weighted) => weighted,
            None => return exchange.refuse(&Refusal::nowhere("no destination has a weight")),
        },
    };
    let origin = request.headers().get(header::ORIGIN).cloned();
    let upgrade = head::end_of_hop(request.headers_mut());
    let on_client = upgrade.is_some().then(|| OnClient::of(&mut request));
    let (mut parts, body) = request.into_parts();
    let interim = match &body {
        Received::Http2(body) => body.client(),
        _ => parts.extensions.remove(),
    };
    let form = changed(&route, weighted, matched, form, &mut parts.headers);
    let body = Replay::new(body, route.retry.is_some(), exchange.is_grpc);
    exchange.received = Some(body.taken());
    mirror(&exchange, &route, &parts, &form, &query, &body);
    let given = Given {
        proxy: exchange.proxy.clone(),
        downstream: exchange.downstream.clone(),
        head: Head {
            method: parts.method.clone(),
            headers: parts.headers,
            path: form.path,
            query,
            authority: form.authority,
            upgrade,
        },
        client_http2: exchange.downstream.http2,
        interim,
    };
    let cluster = match resolve(&exchange.proxy, &weighted.target) {
        Ok(cluster) => cluster,
        Err(refusal) => return exchange.refuse(&refusal),
    };
    exchange.record.upstream_cluster = cluster.name().clone();
    if exchange.downstream.is_gateway()
        && let Some(s) = exchange.proxy.mesh.service(&cluster.service)
    {
        exchange.record.service = ServiceName {
            hostname: s.key.hostname.clone(),
            name: s.name.clone(),
            namespace: s.key.namespace.clone(),
        };
    }
    // Not counted from before an injected delay.
    let deadline = route.timeout.map(|t| tokio::time::Instant::now() + t);
    let forwarded = forward::forward(&given, &route, &cluster, &body, &mut exchange.record).await;
    let mut answered = match forwarded {
        Ok(answered) => answered,
        Err(refusal) => return exchange.refuse(&refusal),
    };
    // To a client of HTTP/2 any success would say that it speaks WebSocket from here on.
    if given.head.upgrade.is_some()
        && exchange.downstream.http2
        && answered.response.status().is_success()
    {
        return exchange.refuse(&Refusal::reset("the endpoint does not switch".to_owned()));
    }
    let end = forward::telemetry_end(
        Some(answered.to.address),
        Some(&answered.to.workload),
        answered.to.workload.identity().ok().as_ref().filter(|_| answered.to.workload.hbone),
    );
    exchange.record.destination = end;
    let headers = answered.response.headers_mut();
    let switching =
        headers.contains_key(header::UPGRADE).then(|| headers.get(header::UPGRADE).cloned());
    head::clean_response(headers);
    weighted.response_headers.apply(headers);
    route.response_headers.apply(headers);
    if let (Some(cors), Some(origin)) = (&route.cors, origin) {
        let asked: HeaderMap = [(header::ORIGIN, origin)].into_iter().collect();
        cors.permit_response(&asked, headers);
    }
    exchange.record.response_code = answered.response.status().as_u16();
    exchange.grpc(answered.response.headers());
    exchange.log_headers(answered.response.headers());
    if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return forward::switch(exchange, answered, on_client, switching.flatten());
    }
    let deadline = deadline.map(|d| Box::pin(tokio::time::sleep_until(d)));
    let (parts, from) = answered.response.into_parts();
    let finish = Finish {
        exchange: Some(exchange),
        back: answered.back,
        asking: (!body.is_whole()).then_some(body),
        cluster: cluster.clone(),
        active: answered.active,
        _request: answered.request,
    };
    let passing = Passing { from, deadline, done: Some(Box::new(finish)) };
    Response::from_parts(parts, InBody::Passing(Box::new(passing)))
}

/// What the route and its destination change of a request before it is sent.
fn changed(
    route: &Route,
    weighted: &Weighted,
    matched: usize,
    form: Normal,
    headers: &mut HeaderMap,
) -> Normal {
    let Normal { mut path, mut authority } = form;
    let of_route = route.request_headers.apply(headers);
    let of_destination = weighted.request_headers.apply(headers);
    if let Some(rewrite) = &route.rewrite {
        if let Some(to) = rewrite.path(&path, matched) {
            path = to;
        }
        if let Some(to) = &rewrite.authority {
            authority.clone_from(to);
        }
    }
    if let Some(to) = of_destination.authority.or(of_route.authority) {
        authority = to;
    }
    Normal { path, authority }
}

pub fn resolve(proxy: &Proxy, target: &Target) -> Result<Arc<Cluster>, Refusal> {
    if let Some(why) = &target.broken {
        return Err(Refusal::nowhere(why));
    }
    let found = proxy.tables.destination(&target.service);
    found
        .and_then(|d| d.cluster(target.port, &target.subset))
        .ok_or_else(|| Refusal::nowhere(&format!("{} is not known here", target.service)))
}

/// Sends copies that nobody waits for.
fn mirror(
    exchange: &Exchange,
    route: &Route,
    parts: &http::request::Parts,
    form: &Normal,
    query: &str,
    body: &Replay,
) {
    for m in &route.mirrors {
        if !m.share.includes(rand::rng().random_range(0..1_000_000)) {
            continue;
        }
        let Ok(cluster) = resolve(&exchange.proxy, &m.target) else { continue };
        let given = Given {
            proxy: exchange.proxy.clone(),
            downstream: exchange.downstream.clone(),
            head: Head {
                method: parts.method.clone(),
                headers: parts.headers.clone(),
                path: form.path.clone(),
                query: query.to_owned(),
                // Istio marks what is a shadow.
                authority: head::shadow(&form.authority),
                upgrade: None,
            },
            client_http2: exchange.downstream.http2,
            interim: None,
        };
        let body: OutBody = body.mirror();
        tokio::spawn(forward::mirror(given, cluster, body));
    }
}

/// What is done when the answer has gone through.
struct Finish {
    exchange: Option<Exchange>,
    back: Option<crate::upstream::GoesBack>,
    /// The request's body, if the answer came before its end.
    asking: Option<Replay>,
    cluster: Arc<Cluster>,
    active: Active<Arc<Workload>>,
    _request: Counted,
}

impl Watch for Finish {
    fn data(&mut self, bytes: &Bytes) {
        if let Some(e) = &mut self.exchange {
            e.sent(bytes);
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(e) = &mut self.exchange {
            e.grpc(trailers);
        }
    }

    fn ended(&mut self, how: Ended) {
        use routes::balance::Outcome;
        let to: &To = &self.active.0;
        let Some(mut exchange) = self.exchange.take() else { return };
        let (flags, why) = match how {
            Ended::Whole => {
                let status = exchange.record.response_code;
                self.cluster.report(to, Outcome::Status(status));
                let is_asked = self.asking.take().is_none_or(|body| body.is_whole());
                if let Some(back) = self.back.take().filter(|_| is_asked) {
                    back.finished();
                }
                return;
            }
            Ended::Broken => ("UC", "the endpoint broke its answer off"),
            Ended::TimedOut => ("UT", "the request's time ran out"),
            Ended::Abandoned => ("DC", "the client wanted no more"),
        };
        if how != Ended::Abandoned {
            self.cluster.report(to, Outcome::Local);
        }
        exchange.record.response_flags = flags;
        why.clone_into(&mut exchange.record.response_code_details);
    }
}

impl From<Overflow> for Refusal {
    fn from(o: Overflow) -> Self {
        Refusal::overflow(o.to_string())
    }
}
