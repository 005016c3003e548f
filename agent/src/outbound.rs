//! One connection of a pod's application, from accept to its end.

use crate::{
    agent::Agent,
    capture::Asked,
    cause::with_likely_cause,
    connections::{Entry, baggage, endpoint},
    dial::PoolKey,
    dns, netlink, parting,
    pods::Pod,
    scope::Counted,
    sockets, workers,
};
use hbone::{Authority, ClientError, DialError, End, Forwarded, Lease, PoolError};
use http::{Method, Request, Uri};
use mesh::{Resolved, Service, Workload};
use policy::Request as PolicyRequest;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use telemetry::{CloseReason, Direction, FlowRecord, ResponseFlags, ServiceName, Transport};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};

pub async fn listen(agent: Arc<Agent>, pod: Arc<Pod>, listener: TcpListener) {
    accept_each(&agent, &pod, listener, |stream, peer, counted| {
        let (agent2, pod2) = (agent.clone(), pod.clone());
        let work = move |s| connection(agent2, pod2, s, peer, counted);
        agent.workers.place(&pod.scope, stream, work);
    })
    .await;
}

/// Accepts, whenever this agent serves, until the pod leaves or the agent drains.
pub async fn accept_each(
    agent: &Agent,
    pod: &Pod,
    listener: TcpListener,
    mut each: impl FnMut(TcpStream, SocketAddr, Counted),
) {
    // What it has yet to accept is open, too: it is counted before it is placed.
    let _counted = pod.scope.connection();
    let (mut leaving, mut serving) = (pod.leaving(), agent.serving.subscribe());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if *serving.borrow() => accepted,
            _ = serving.changed() => continue,
            _ = leaving.wait_for(|l| *l) => break,
        };
        match accepted {
            Ok((stream, peer)) => each(stream, peer, pod.scope.connection()),
            // The pod's own CAP_NET_ADMIN is enough to destroy any socket of its namespace.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::warn!(pod = %pod.uid, "a listener of the agent's was destroyed from within the \
                    pod, which takes no such connections until it is enrolled anew");
                return;
            }
            Err(error) => {
                // Out of descriptors, most likely: connections wait in the backlog meanwhile.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // Another agent accepts them, or they are captured still.
    if pod.is_released() && *serving.borrow() {
        accept_last(pod, &listener, each).await;
    }
}

/// How long a handshake may take that had begun when capture ended: kernels repeat a SYN-ACK after 1 and 3 s.
const LAST_HANDSHAKE: Duration = Duration::from_secs(4);

/// Between two looks whether there is one.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Accepts what was on its way when capture ended: it would be reset with the listener.
async fn accept_last(
    pod: &Pod,
    listener: &TcpListener,
    mut each: impl FnMut(TcpStream, SocketAddr, Counted),
) {
    let deadline = Instant::now() + LAST_HANDSHAKE;
    loop {
        // First: one that ends in between is there to be accepted. An application's own may keep it here, too. The
        // kernel walks through all connections of the node for it, some milliseconds.
        let netns = pod.netns.clone();
        let looking = tokio::task::spawn_blocking(move || netns.run(netlink::tcp_half_open));
        let half_open = matches!(looking.await, Ok(Ok(Ok(true))));
        match timeout(LOOK_AGAIN, listener.accept()).await {
            Ok(Ok((stream, peer))) => each(stream, peer, pod.scope.connection()),
            Err(_) if half_open => {}
            Ok(Err(_)) | Err(_) => return,
        }
        if Instant::now() >= deadline {
            return;
        }
    }
}

pub async fn connection(
    agent: Arc<Agent>,
    pod: Arc<Pod>,
    stream: TcpStream,
    peer: SocketAddr,
    counted: Counted,
) {
    let asked = agent.capture.original_destination(&stream);
    let downstream = stream;
    let Some(Asked { address: asked, elsewhere }) = asked else {
        tracing::warn!(pod = %pod.uid, "a connection without a recorded destination is reset");
        return;
    };
    // The pod's own address, where the application had bound itself to another (its loopback).
    let source = match pod.has_address(peer.ip()) {
        true => SocketAddr::new(peer.ip().to_canonical(), peer.port()),
        false => match pod.address_like(asked.ip()) {
            Some(ip) => SocketAddr::new(ip, peer.port()),
            None => return,
        },
    };
    if pod.dns && asked.port() == capture_abi::DNS_PORT {
        // Boxed: few connections are of this kind.
        Box::pin(dns::over_tcp(&agent, &pod, downstream, || {
            let (near, far) = sockets::stream_pair()?;
            let (agent, pod2) = (agent.clone(), pod.clone());
            pod.scope.spawn(async move {
                let begun = Begun { agent: &agent, pod: &pod2, source, asked };
                carry(&begun, far, false, pod2.scope.connection()).await;
            });
            Ok(near)
        }))
        .await;
        return;
    }
    carry(&Begun { agent: &agent, pod: &pod, source, asked }, downstream, elsewhere, counted).await;
}

/// To wherever `asked` is, for the pod. What it takes to open a connection is several times what it takes to keep
/// one: that is a task of its own.
async fn carry(begun: &Begun<'_>, downstream: TcpStream, elsewhere: bool, counted: Counted) {
    if let Some(open) = open(begun, downstream, elsewhere).await {
        let Open { entry, downstream, upstream, lease } = open;
        let relaying = entry.relay(End::Tcp(downstream), upstream, (counted, lease));
        begun.pod.scope.spawn(relaying);
    }
}

/// A connection whose other end is open, too.
struct Open {
    entry: Entry,
    downstream: TcpStream,
    upstream: End,
    lease: Option<Lease>,
}

async fn open(begun: &Begun<'_>, downstream: TcpStream, elsewhere: bool) -> Option<Open> {
    let Begun { agent, pod, .. } = begun;
    if !agent.synced().await {
        begun.failed(None, ResponseFlags::Connect, "discovery has not answered yet");
        return None;
    }
    let Some(own) = agent.mesh.workload(&pod.uid) else {
        begun.failed(None, ResponseFlags::Connect, "the control plane no longer has this pod");
        return None;
    };
    match resolve(begun, &own, elsewhere) {
        Resolved::Unreachable(why) => {
            begun.failed(None, ResponseFlags::Connect, &why.to_string());
            None
        }
        Resolved::Waypoint { proxy, address, asked, service } => {
            over_hbone(begun, &own, downstream, proxy, address, asked, service).await
        }
        Resolved::Outside(to) => passthrough(begun, &own, downstream, to, None, None).await,
        Resolved::Workload { workload, address, service } if workload.uid == own.uid => {
            to_itself(begun, &workload, downstream, address, service).await
        }
        Resolved::Workload { workload, address, service } if workload.hbone => {
            let hbone = SocketAddr::new(address.ip(), capture_abi::HBONE_PORT);
            over_hbone(begun, &own, downstream, workload, hbone, address, service).await
        }
        Resolved::Workload { workload, address, service } => {
            passthrough(begun, &own, downstream, address, Some(workload), service).await
        }
    }
}

/// Where it goes. The kernel has chosen among all endpoints of a service already; what it leaves to
/// the agent is for those that it cannot reach by itself.
fn resolve(begun: &Begun<'_>, own: &Workload, elsewhere: bool) -> Resolved {
    let resolve = || begun.agent.mesh.resolve(own, begun.asked, &mut rand::rng());
    let mut resolved = resolve();
    if elsewhere {
        let is_here = |w: &Workload| begun.agent.direct.leads_to(begun.pod, begun.asked, &w.uid);
        // As often as it takes where one endpoint of many is meant; they may all be here by now.
        for _ in 0..ENOUGH_DRAWS {
            match &resolved {
                Resolved::Workload { workload, .. } if is_here(workload) => resolved = resolve(),
                _ => break,
            }
        }
    }
    resolved
}

/// One endpoint of seventeen is missed by so many draws once in fifty.
const ENOUGH_DRAWS: usize = 64;

/// A connection whose destination is known.
struct Begun<'a> {
    agent: &'a Arc<Agent>,
    pod: &'a Arc<Pod>,
    source: SocketAddr,
    asked: SocketAddr,
}

/// Where it goes.
struct Route<'a> {
    own: Option<&'a Workload>,
    workload: Option<&'a Workload>,
    service: Option<&'a Service>,
    address: SocketAddr,
    hbone: Option<SocketAddr>,
    transport: Transport,
    peer: Option<Arc<str>>,
}

impl Begun<'_> {
    fn record(&self, route: &Route<'_>) -> FlowRecord {
        FlowRecord {
            id: self.agent.connections.next_id(),
            direction: Direction::Outbound,
            source: endpoint(Some(self.source), route.own, Some(self.pod.identity.text())),
            destination: endpoint(Some(route.address), route.workload, route.peer.clone()),
            service: route.service.map(|s| ServiceName {
                hostname: s.key.hostname.clone(),
                name: s.name.clone(),
                namespace: s.key.namespace.clone(),
            }),
            hbone_address: route.hbone,
            transport: route.transport,
            verdict: None,
            sent: 0,
            received: 0,
            opened: SystemTime::now(),
            duration_ms: 0,
            flags: ResponseFlags::None,
            close: None,
        }
    }

    fn opened(&self, route: &Route<'_>) -> Entry {
        self.agent.connections.open(&self.agent.metrics, self.record(route), None)
    }

    fn failed(&self, route: Option<&Route<'_>>, flags: ResponseFlags, why: &str) {
        let unknown = Route {
            own: None,
            workload: None,
            service: None,
            address: self.asked,
            hbone: None,
            transport: Transport::Passthrough,
            peer: None,
        };
        let record = self.record(route.unwrap_or(&unknown));
        let close = match flags {
            ResponseFlags::Deny => CloseReason::Denied(why.to_owned()),
            _ => CloseReason::Failed(why.to_owned()),
        };
        self.agent.connections.failed(&self.agent.metrics, record, flags, close);
    }
}

/// To what is not in the mesh, or not reached by HBONE: in plaintext, and counted as such.
async fn passthrough(
    begun: &Begun<'_>,
    own: &Workload,
    downstream: TcpStream,
    address: SocketAddr,
    workload: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
) -> Option<Open> {
    let route = Route {
        own: Some(own),
        workload: workload.as_deref(),
        service: service.as_deref(),
        address,
        hbone: None,
        transport: Transport::Passthrough,
        peer: None,
    };
    match in_plaintext(begun, address).await {
        Ok(upstream) => {
            let (entry, upstream) = (begun.opened(&route), End::Tcp(upstream));
            Some(Open { entry, downstream, upstream, lease: None })
        }
        Err(e) => {
            begun.failed(Some(&route), ResponseFlags::Connect, &format!("{address}: {e}"));
            None
        }
    }
}

/// To a pod that leaves the mesh again and again, until its node knows that it does.
async fn in_plaintext(begun: &Begun<'_>, address: SocketAddr) -> io::Result<TcpStream> {
    let from = same_family(begun.source.ip(), address.ip());
    loop {
        match sockets::connect(&begun.agent.capture, begun.pod, from, address).await {
            Err(e)
                if e.kind() == io::ErrorKind::ConnectionRefused
                    && begun.agent.parting.is(Instant::now(), address.ip().to_canonical()) =>
            {
                tokio::time::sleep(parting::PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// A pod to itself, by its own address or through a service: within its namespace, judged like any
/// other connection.
async fn to_itself(
    begun: &Begun<'_>,
    own: &Arc<Workload>,
    downstream: TcpStream,
    address: SocketAddr,
    service: Option<Arc<Service>>,
) -> Option<Open> {
    let route = Route {
        own: Some(own),
        workload: Some(own),
        service: service.as_deref(),
        address,
        hbone: None,
        transport: Transport::Local,
        peer: Some(begun.pod.identity.text()),
    };
    let request = PolicyRequest {
        peer: Some(begun.pod.identity.clone()),
        source: begun.source,
        destination: address,
        trust_domains: begun.agent.trust_domains(own),
    };
    let verdict = begun.agent.judge(own, &request);
    if !verdict.allowed {
        let why = begun.agent.in_words(own, &request, &verdict);
        begun.failed(Some(&route), ResponseFlags::Deny, &why);
        return None;
    }
    let from = same_family(begun.source.ip(), address.ip());
    match sockets::connect(&begun.agent.capture, begun.pod, from, address).await {
        Ok(upstream) => {
            let mut record = begun.record(&route);
            record.verdict = Some(verdict.decision.to_string());
            let judged = crate::connections::Judged {
                destination_uid: begun.pod.uid.clone(),
                request,
                by_kubelet: false,
            };
            let entry = begun.agent.connections.open(&begun.agent.metrics, record, Some(judged));
            entry.judge_again(|judged| begun.agent.no_longer_allowed(judged));
            Some(Open { entry, downstream, upstream: End::Tcp(upstream), lease: None })
        }
        Err(e) => {
            begun.failed(Some(&route), ResponseFlags::Connect, &format!("{address}: {e}"));
            None
        }
    }
}

/// To `address`, by way of `workload`: its own, or the one that a waypoint is asked for.
#[allow(clippy::too_many_arguments)]
async fn over_hbone(
    begun: &Begun<'_>,
    own: &Workload,
    downstream: TcpStream,
    workload: Arc<Workload>,
    hbone_address: SocketAddr,
    address: SocketAddr,
    service: Option<Arc<Service>>,
) -> Option<Open> {
    let mut route = Route {
        own: Some(own),
        workload: Some(&workload),
        service: service.as_deref(),
        address,
        hbone: Some(hbone_address),
        transport: Transport::Hbone,
        peer: None,
    };
    let destination = match workload.identity() {
        Ok(id) => id,
        Err(e) => {
            begun.failed(Some(&route), ResponseFlags::IdentityError, &e.to_string());
            return None;
        }
    };
    route.peer = Some(destination.text());
    let Some(source_address) = same_family(begun.source.ip(), hbone_address.ip())
        .or_else(|| begun.pod.address_like(hbone_address.ip()))
    else {
        let why = format!("this pod has no address of the family of {hbone_address}");
        begun.failed(Some(&route), ResponseFlags::Connect, &why);
        return None;
    };
    let key = PoolKey {
        worker: workers::here(),
        pod: begun.pod.clone(),
        source: begun.pod.identity.clone(),
        source_address,
        destination,
        address: hbone_address,
    };
    let request = || connect_request(begun, own, address, service.as_deref());
    match begun.agent.pool.open(&key, request).await {
        Ok((stream, lease)) => {
            let entry = begun.opened(&route);
            begun.agent.direct.learn(begun.agent, begun.pod, begun.asked);
            let upstream = End::H2(stream.send, stream.receive);
            Some(Open { entry, downstream, upstream, lease: Some(lease) })
        }
        Err(e) => {
            let (flags, why) = explain(&e, hbone_address);
            begun.failed(Some(&route), flags, &why);
            None
        }
    }
}

fn connect_request(
    begun: &Begun<'_>,
    own: &Workload,
    address: SocketAddr,
    service: Option<&Service>,
) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    if let Ok(uri) = Uri::builder().authority(Authority::Address(address).to_string()).build() {
        *request.uri_mut() = uri;
    }
    let forwarded =
        Forwarded { client: begun.source, host: service.map(|s| s.key.hostname.to_string()) };
    for (name, value) in [("baggage", baggage(own).encode()), ("forwarded", forwarded.encode())] {
        if let Ok(value) = value.parse() {
            request.headers_mut().insert(name, value);
        }
    }
    request
}

fn explain(e: &PoolError, to: SocketAddr) -> (ResponseFlags, String) {
    match e {
        PoolError::Open(e) => match &**e {
            ClientError::Refused(status) if status.as_u16() == 401 => (
                ResponseFlags::Deny,
                "the destination's policy refused it; its node's access log names the policy"
                    .into(),
            ),
            ClientError::Refused(status) if status.as_u16() == 503 => (
                ResponseFlags::Connect,
                "the destination's application did not take the connection".into(),
            ),
            // A server that refuses the client's certificate says so when the handshake is over (TLS 1.3).
            e => (ResponseFlags::Connect, with_likely_cause(&format!("{to}: {e}"))),
        },
        PoolError::Dial(e) => match &**e {
            DialError::Io(e) => (
                ResponseFlags::Connect,
                format!(
                    "{to}: {e} (is the destination enrolled, and does a NetworkPolicy block \
                     HBONE port {}?)",
                    to.port()
                ),
            ),
            DialError::Identity(why) => (ResponseFlags::IdentityError, why.to_string()),
            DialError::Client(ClientError::Handshake(_)) => {
                (ResponseFlags::H2HandshakeFailure, with_likely_cause(&format!("{to}: {e}")))
            }
            DialError::Client(e) => {
                (ResponseFlags::TlsFailure, with_likely_cause(&format!("{to}: {e}")))
            }
        },
    }
}

fn same_family(ip: IpAddr, like: IpAddr) -> Option<IpAddr> {
    (ip.is_ipv4() == like.is_ipv4()).then_some(ip)
}
