//! Connections to a pod: over HBONE from the mesh, or in plaintext from outside it. Both are judged
//! by the same policies, and reach the application from the client's own address.

use crate::{
    agent::{Agent, PATIENCE},
    cause::with_likely_cause,
    connections::{Entry, Judged, baggage, endpoint},
    fault,
    outbound::accept_each,
    pods::Pod,
    scope::Counted,
    sockets,
};
use hbone::{Authority, Baggage, End, InboundStream};
use http::StatusCode;
use identity::SpiffeId;
use policy::{Decision, Request, Verdict};
use std::{net::SocketAddr, sync::Arc, time::SystemTime};
use telemetry::{CloseReason, Direction, FlowRecord, ResponseFlags, Transport, Whose};
use tokio::net::{TcpListener, TcpStream};

/// Never a final target: a loop, or somebody reaching for the mesh's own machinery.
pub const ILLEGAL_PORTS: [u16; 4] = [15001, 15006, 15008, 15053];

pub async fn listen_hbone(agent: Arc<Agent>, pod: Arc<Pod>, listener: TcpListener) {
    accept_each(&agent, &pod, listener, |stream, peer, counted| {
        let (agent2, pod2) = (agent.clone(), pod.clone());
        Whose::pod(pod.owner).caused_by(peer.ip()).within(|| {
            let work = move |s| hbone_connection(agent2, pod2, s, peer, counted);
            agent.workers.place(&pod.scope, stream, work);
        });
    })
    .await;
}

async fn hbone_connection(
    agent: Arc<Agent>,
    pod: Arc<Pod>,
    stream: TcpStream,
    peer: SocketAddr,
    // Beside its streams: the last of them has ended before its last frame has left.
    _counted: Counted,
) {
    // From within the pod the listener itself can be reached, on loopback: no peer comes that way.
    if !stream.local_addr().is_ok_and(|to| pod.has_address(to.ip())) {
        tracing::debug!(pod = %pod.uid, %peer, "refused: HBONE not to an address of this pod");
        let _ = stream.set_zero_linger();
        return;
    }
    let Some(room) = pod.scope.room_for_handshake(peer.ip()) else {
        tracing::debug!(pod = %pod.uid, %peer, "too many handshakes are under way");
        let _ = stream.set_zero_linger();
        return;
    };
    let Some(_held) = pod.scope.room_for_connection(peer.ip()) else {
        tracing::debug!(pod = %pod.uid, %peer, "it has too many connections already");
        let _ = stream.set_zero_linger();
        return;
    };
    pod.scope.count_handshake();
    fault::point("handshake-accepted");
    let certified = match agent.certs.fetch(&pod.identity, PATIENCE).await {
        Ok(c) => c,
        Err(why) => {
            tracing::warn!(pod = %pod.uid, %peer, %why, "HBONE connection refused");
            let _ = stream.set_zero_linger();
            return;
        }
    };
    let accepted = Box::pin(hbone::accept(stream, certified.server.clone())).await;
    let connection = match accepted {
        Ok(c) => c,
        Err(error) => {
            let error = with_likely_cause(&error.to_string());
            tracing::warn!(pod = %pod.uid, %peer, error, "HBONE handshake failed");
            return;
        }
    };
    drop(room);
    fault::point("handshake-done");
    let identity = connection.peer.clone();
    // It ends with its certificates, the client's (in `run`) and the pod's own.
    let own_end = hbone_expiry(certified.not_after);
    let streams = connection.run(pod.leaving(), |stream| {
        let (agent, pod2, identity) = (agent.clone(), pod.clone(), identity.clone());
        pod.scope.spawn(hbone_stream(agent, pod2, identity, peer, stream));
    });
    tokio::select! {
        ended = streams => if let Err(error) = ended {
            tracing::debug!(pod = %pod.uid, %peer, %error, "HBONE connection ended");
        },
        () = own_end => tracing::info!(pod = %pod.uid, "the pod's certificate has expired"),
    }
}

async fn hbone_expiry(not_after: SystemTime) {
    while let Ok(left) = not_after.duration_since(SystemTime::now()) {
        // The clock on the wall may be set meanwhile.
        tokio::time::sleep(left.min(std::time::Duration::from_secs(30))).await;
    }
}

pub async fn hbone_stream(
    agent: Arc<Agent>,
    pod: Arc<Pod>,
    identity: SpiffeId,
    peer: SocketAddr,
    stream: InboundStream,
) {
    let counted = pod.scope.connection();
    let open = open_stream(agent, pod.clone(), identity, peer, stream).await;
    // A task of its own: what it takes to open a stream is several times what it takes to keep one.
    if let Some((entry, downstream, upstream)) = open {
        pod.scope.spawn(entry.relay(downstream, upstream, counted));
    }
}

async fn open_stream(
    agent: Arc<Agent>,
    pod: Arc<Pod>,
    identity: SpiffeId,
    peer: SocketAddr,
    mut stream: InboundStream,
) -> Option<(Entry, End, End)> {
    let to = match &stream.authority {
        Authority::Address(to)
            if pod.has_address(to.ip()) && !ILLEGAL_PORTS.contains(&to.port()) =>
        {
            *to
        }
        other => {
            tracing::warn!(pod = %pod.uid, peer = %identity, authority = %other,
                "HBONE stream refused: its authority is not an address of this pod, or a reserved port");
            stream.refuse(StatusCode::BAD_REQUEST);
            return None;
        }
    };
    let sent = stream
        .headers
        .get("baggage")
        .and_then(|v| v.to_str().ok())
        .map(Baggage::decode)
        .unwrap_or_default();
    let source = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    // A reset ends what was begun for the stream. HTTP/2's limit on streams does not count those
    // that were reset, so a client could otherwise have any number of them under way.
    let judged = tokio::select! {
        judged = judge(&agent, &pod, Some(identity), source, to, Some(&sent)) => judged,
        () = stream.abandoned() => return None,
    };
    let Some(incoming) = judged else {
        stream.refuse(StatusCode::SERVICE_UNAVAILABLE);
        return None;
    };
    if !incoming.verdict.allowed {
        incoming.denied(&agent);
        stream.refuse(StatusCode::UNAUTHORIZED);
        return None;
    }
    let connected = tokio::select! {
        connected = incoming.last_hop(&agent, &pod) => connected,
        () = stream.abandoned() => {
            incoming.failed(&agent, "not connected yet when the client reset the stream");
            return None;
        }
    };
    match connected {
        Err(why) => {
            stream.refuse(StatusCode::SERVICE_UNAVAILABLE);
            incoming.failed(&agent, &why.to_string());
            None
        }
        Ok(upstream) => {
            let entry = incoming.open(&agent);
            let own = agent.mesh.workload(&pod.uid).map(|w| baggage(&w).encode());
            let (send, receive) = stream.accept(own).ok()?;
            Some((entry, End::H2(send, receive), End::Tcp(upstream)))
        }
    }
}

pub async fn listen_plaintext(agent: Arc<Agent>, pod: Arc<Pod>, listener: TcpListener) {
    accept_each(&agent, &pod, listener, |stream, peer, counted| {
        let (agent2, pod2) = (agent.clone(), pod.clone());
        Whose::pod(pod.owner).caused_by(peer.ip()).within(|| {
            let work = move |s| plaintext_connection(agent2, pod2, s, peer, counted);
            agent.workers.place(&pod.scope, stream, work);
        });
    })
    .await;
}

pub async fn plaintext_connection(
    agent: Arc<Agent>,
    pod: Arc<Pod>,
    stream: TcpStream,
    peer: SocketAddr,
    counted: Counted,
) {
    let source = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    // sk_lookup leaves the address that the client asked for.
    let asked = stream.local_addr().ok();
    let Some(to) = asked.map(|a| SocketAddr::new(a.ip().to_canonical(), a.port())) else {
        return;
    };
    if !pod.has_address(to.ip()) {
        tracing::warn!(pod = %pod.uid, %source, %to, "refused: not an address of this pod");
        return;
    }
    let noted = pod.note_accepted(to.port(), source);
    if let Some((entry, upstream)) = open_plaintext(&agent, &pod, source, to).await {
        let relaying = entry.relay(End::Tcp(stream), End::Tcp(upstream), (counted, noted));
        pod.scope.spawn(relaying);
    }
}

async fn open_plaintext(
    agent: &Agent,
    pod: &Pod,
    source: SocketAddr,
    to: SocketAddr,
) -> Option<(Entry, TcpStream)> {
    let mut incoming = judge(agent, pod, None, source, to, None).await?;
    if !incoming.verdict.allowed && agent.kubelet.has_made(source, to).await {
        incoming.is_by_kubelet();
    }
    if incoming.verdict.allowed && incoming.source_is_meshed {
        // Its agent would have come by HBONE: this is either forged, or discovery's delay.
        incoming.verdict.allowed = false;
        incoming.denied_because(
            agent,
            "the source is a workload of the mesh and must come by HBONE, not in plaintext: its capture is not \
             complete (is it enrolled on its node?), or somebody else has its address",
        );
        return None;
    }
    if !incoming.verdict.allowed {
        incoming.denied(agent);
        return None;
    }
    match incoming.last_hop(agent, pod).await {
        Ok(upstream) => Some((incoming.open(agent), upstream)),
        Err(why) => {
            incoming.failed(agent, &why.to_string());
            None
        }
    }
}

/// A judged connection, not yet open.
struct Incoming {
    record: FlowRecord,
    judged: Judged,
    verdict: Verdict,
    source_is_meshed: bool,
}

async fn judge(
    agent: &Agent,
    pod: &Pod,
    peer: Option<SpiffeId>,
    source: SocketAddr,
    to: SocketAddr,
    baggage: Option<&Baggage>,
) -> Option<Incoming> {
    if !agent.synced().await {
        tracing::warn!(pod = %pod.uid, %source, "refused: discovery has not answered yet");
        return None;
    }
    let Some(own) = agent.mesh.workload(&pod.uid) else {
        tracing::warn!(pod = %pod.uid, %source, "refused: the control plane no longer has this pod");
        return None;
    };
    let client = agent.mesh.workload_at(&own.network, source.ip());
    let request = Request {
        peer: peer.clone(),
        source,
        destination: to,
        trust_domains: agent.trust_domains(&own),
    };
    let verdict = agent.judge(&own, &request);
    let identity = peer.as_ref().map(SpiffeId::text);
    // Names in `baggage` are the peer's word: used where nothing better is known.
    let mut source_end = endpoint(Some(source), client.as_deref(), identity);
    if client.is_none()
        && let Some(b) = baggage
    {
        source_end.workload = b.workload.clone().unwrap_or_default().into();
        source_end.canonical_service = b.service.clone().unwrap_or_default().into();
        source_end.canonical_revision = b.revision.clone().unwrap_or_default().into();
        source_end.cluster = b.cluster.clone().unwrap_or_default().into();
        source_end.namespace = peer.as_ref().map_or("", |id| id.namespace()).into();
    }
    let record = FlowRecord {
        id: agent.connections.next_id(),
        direction: Direction::Inbound,
        source: source_end,
        destination: endpoint(Some(to), Some(&own), Some(pod.identity.text())),
        service: None,
        hbone_address: peer.is_some().then(|| SocketAddr::new(to.ip(), capture_abi::HBONE_PORT)),
        transport: if peer.is_some() { Transport::Hbone } else { Transport::Passthrough },
        verdict: Some(verdict.decision.to_string()),
        sent: 0,
        received: 0,
        opened: SystemTime::now(),
        duration_ms: 0,
        flags: ResponseFlags::None,
        close: None,
    };
    let judged = Judged { destination_uid: pod.uid.clone(), request, by_kubelet: false };
    let source_is_meshed = client.is_some_and(|c| c.hbone);
    Some(Incoming { record, judged, verdict, source_is_meshed })
}

impl Incoming {
    fn is_by_kubelet(&mut self) {
        self.judged.by_kubelet = true;
        self.verdict = Verdict { allowed: true, decision: Decision::Kubelet, dry_run: Vec::new() };
        self.record.verdict = Some(self.verdict.decision.to_string());
    }

    async fn last_hop(&self, agent: &Agent, pod: &Pod) -> std::io::Result<TcpStream> {
        let Request { source, destination, .. } = &self.judged.request;
        sockets::connect_as(&agent.capture, pod, source.ip(), *destination).await
    }

    fn open(self, agent: &Agent) -> Entry {
        let entry = agent.connections.open(&agent.metrics, self.record, Some(self.judged));
        entry.judge_again(|judged| agent.no_longer_allowed(judged));
        entry
    }

    fn denied(self, agent: &Agent) {
        let why = match agent.mesh.workload(&self.judged.destination_uid) {
            Some(own) => agent.in_words(&own, &self.judged.request, &self.verdict),
            None => self.verdict.decision.to_string(),
        };
        self.denied_because(agent, &why);
    }

    fn denied_because(self, agent: &Agent, why: &str) {
        let close = CloseReason::Denied(why.to_owned());
        agent.connections.failed(&agent.metrics, self.record, ResponseFlags::Deny, close);
    }

    fn failed(self, agent: &Agent, why: &str) {
        let close = CloseReason::Failed(format!("the application: {why}"));
        agent.connections.failed(&agent.metrics, self.record, ResponseFlags::Connect, close);
    }
}
