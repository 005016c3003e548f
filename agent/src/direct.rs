//! Past the agent: connections between two pods of this node that policy allows by who they are and
//! the port alone.
//!
//! The first of them goes through the agent like any other. If the ends are of this node, it becomes
//! a way (`capture_abi::Way`), by which the kernel lets the ones that follow go straight from pod to
//! pod. Whatever a way rests on is looked at again whenever it may have changed: policy, workloads,
//! services, certificates. A way that no longer holds is taken away, and connections that came by it
//! are ended if policy does not allow them any more. All ways rest on a lease, too, which the agent
//! renews: without an agent they end with it.

use crate::{
    agent::Agent,
    capture::Admitted,
    connections::{self, Entry, Judged, endpoint},
    inbound, netlink,
    pods::{Pod, lock},
    sys,
};
use capture_abi::{Event, Flow, FlowKey, MOST_TARGETS, Target, Way, WayKey, event_kind, pod_flags};
use mesh::{Service, Workload};
use policy::Request;
use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};
use telemetry::{
    CloseReason, Direction, FlowRecord, ResponseFlags, Series, ServiceName, Transport, Whose,
};
use tokio::{
    io::unix::AsyncFd,
    sync::{Notify, watch},
};

/// How long ways and what came by them outlive the agent that has allowed them.
const LEASE: Duration = Duration::from_secs(30);

/// How often the lease is renewed and certificates are looked at.
const RENEWAL: Duration = Duration::from_secs(5);

/// How often the kernel's news are read, which wake nobody unless many wait.
const NEWS: Duration = Duration::from_millis(100);

/// Ways that are kept; connections by others go through the agent.
const MOST_WAYS: usize = 16_384;

#[derive(Default)]
pub struct Direct {
    state: Mutex<State>,
    /// Goes up with whatever ways rest on. The lock is held until the kernel has it, too.
    generation: Mutex<u64>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    ways: HashMap<WayKey, Kept>,
    /// By the cookie of the socket that connected.
    flows: HashMap<u64, Open>,
}

/// A way, and what it was made from.
struct Kept {
    source: Arc<Pod>,
    asked: SocketAddr,
    way: Way,
    ends: Vec<End>,
}

/// A pod that a way leads to.
struct End {
    pod: Arc<Pod>,
    address: SocketAddr,
    records: Records,
}

/// What is said of a connection at its source and at its destination, and where it is counted.
#[derive(Clone)]
struct Records {
    outbound: FlowRecord,
    inbound: FlowRecord,
    series: [Arc<Series>; 2],
    judged: Judged,
}

/// A connection under way.
struct Open {
    source: Arc<Pod>,
    destination: Arc<Pod>,
    client: SocketAddr,
    server: SocketAddr,
    outbound: Entry,
    inbound: Entry,
    /// The kernel did not have it when it was looked for last.
    missed: bool,
}

impl Direct {
    /// `generation`: the kernel's, by which ways of an earlier agent may be good.
    pub fn after(generation: u64) -> Self {
        Self { generation: Mutex::new(generation.wrapping_add(1)), ..Self::default() }
    }

    /// Called when a connection that the agent carried has come about: the next one may go by itself.
    pub fn learn(&self, agent: &Agent, source: &Arc<Pod>, asked: SocketAddr) {
        let by_the_resolver = source.dns && asked.port() == capture_abi::DNS_PORT;
        if source.flags & pod_flags::DIRECT == 0 || by_the_resolver || !*agent.serving.borrow() {
            return;
        }
        let key = key(source, asked);
        let mut state = lock(&self.state);
        if state.ways.contains_key(&key) || !has_room(&state.ways, source.owner) {
            return;
        }
        // What changes from here on makes the way one of an earlier generation.
        let generation = *lock(&self.generation);
        if let Some(kept) = find(agent, source, asked, generation) {
            agent.capture.set_way(key, kept.way);
            state.ways.insert(key, kept);
        }
    }

    /// Something that ways rest on has changed: none is used until it has been looked at again.
    pub fn expire(&self, agent: &Agent) {
        let mut generation = lock(&self.generation);
        *generation = generation.wrapping_add(1);
        if *agent.serving.borrow() {
            agent.capture.set_generation(*generation);
            self.changed.notify_one();
        }
    }

    /// Whether a way of the pod's to `asked` leads to the workload.
    pub fn leads_to(&self, source: &Pod, asked: SocketAddr, uid: &str) -> bool {
        let state = lock(&self.state);
        let kept = state.ways.get(&key(source, asked));
        kept.is_some_and(|k| k.ends.iter().any(|e| *e.pod.uid == *uid))
    }

    /// Ways from and to a pod that leaves the mesh.
    pub fn forget(&self, agent: &Agent, owner: u32) {
        // By them it is known whose the connections were that have come and gone: those have lines of the log, too.
        self.hear(agent);
        let mut state = lock(&self.state);
        state.ways.retain(|key, kept| {
            let stays = key.owner != owner && kept.ends.iter().all(|e| e.pod.owner != owner);
            if !stays {
                agent.capture.remove_way(key);
            }
            stays
        });
    }

    /// Takes up what an earlier agent has left: none of its ways, and the connections that are open.
    fn begin(&self, agent: &Agent) {
        let mut state = lock(&self.state);
        agent.capture.clear_ways();
        // The agent before this one may have gone on counting.
        *lock(&self.generation) = agent.capture.generation();
        self.expire(agent);
        if let Err(error) = agent.capture.take_up_news() {
            tracing::error!(error = format!("{error:#}"), "news of connections past the agent");
        }
        state.take_up(agent, &agent.capture.direct_flows());
        state.renew(agent);
    }

    /// Another agent has them now.
    fn end(&self) {
        let mut state = lock(&self.state);
        state.ways.clear();
        for (_, open) in state.flows.drain() {
            open.outbound.forget();
            open.inbound.forget();
        }
    }

    /// What the kernel says has happened since the last time.
    pub fn hear(&self, agent: &Agent) {
        // Of two agents that share the news, the one that serves reads them.
        if !*agent.serving.borrow() {
            return;
        }
        let mut state = lock(&self.state);
        let mut news = Vec::new();
        agent.capture.news(|event| news.push(*event));
        // A socket that connects again keeps its cookie: one after the other.
        let mut begun: HashMap<u64, Event> = HashMap::new();
        for event in &news {
            match (event.kind, begun.remove(&event.cookie)) {
                (event_kind::OPENED, _) => drop(begun.insert(event.cookie, *event)),
                // Most are short, and nobody has seen them open.
                (_, Some(opened)) if let Some((_, end)) = state.end_of_way(&opened) => {
                    came_and_went(agent, &end.pod, &end.records, &opened, event);
                }
                (_, Some(opened)) => {
                    state.opened(agent, &opened);
                    state.closed(agent, event);
                }
                (_, None) => state.closed(agent, event),
            }
        }
        for event in begun.values() {
            state.opened(agent, event);
        }
    }

    /// Asks the kernel how many bytes the connections that are open have moved.
    pub fn count_bytes(&self) {
        let state = lock(&self.state);
        let mut by_pod = HashMap::new();
        for open in state.flows.values() {
            let netns = &open.source.netns;
            let bytes = by_pod.entry(netns.cookie()).or_insert_with(|| {
                netns.run(netlink::tcp_bytes).and_then(|bytes| bytes).unwrap_or_default()
            });
            if let Some((sent, received)) = bytes.get(&(open.client, open.server)) {
                open.outbound.has_moved(*sent, *received);
                open.inbound.has_moved(*sent, *received);
            }
        }
    }

    /// Looks again at everything that ways and connections rest on.
    fn look_again(&self, agent: &Agent) -> Duration {
        // Not all tell of themselves: a pod that fills the ring, or that has its kernel believe it was
        // connected to. What carries packets is announced.
        let flows = agent.capture.direct_flows();
        let mut state = lock(&self.state);
        state.take_up(agent, &flows);
        let generation = *lock(&self.generation);
        state.ways.retain(|key, kept| match find(agent, &kept.source, kept.asked, generation) {
            Some(now) => {
                if now.way != kept.way {
                    agent.capture.set_way(*key, now.way);
                }
                *kept = now;
                true
            }
            None => {
                agent.capture.remove_way(key);
                false
            }
        });
        for open in state.flows.values() {
            // At each look, for as long as the kernel has it: what did not end then may now.
            if let Some(why) = forbidden(agent, open) {
                open.end(agent, &why);
            }
        }
        state.renew(agent)
    }
}

/// Of what there is a pod takes no more than it leaves free: one that connects to ever more ports keeps nobody else's
/// connections from going by themselves.
fn has_room<K>(ways: &HashMap<WayKey, K>, owner: u32) -> bool {
    let free = MOST_WAYS.saturating_sub(ways.len());
    // Counted only where it can be too many.
    ways.len() < free || ways.keys().filter(|key| key.owner == owner).count() < free
}

impl State {
    /// The connections that are open in the kernel.
    fn take_up(&mut self, agent: &Agent, flows: &[(FlowKey, u32, Flow)]) {
        for (key, leads_to, flow) in flows {
            let event = Event {
                kind: event_kind::OPENED,
                cookie: flow.cookie,
                flow: *key,
                peer: *leads_to,
                asked: flow.destination,
                asked_port: flow.port,
                ..Event::default()
            };
            self.opened(agent, &event);
        }
        // Those whose end was not told, after two looks: an end may be on its way.
        let there: HashSet<u64> = flows.iter().map(|(.., flow)| flow.cookie).collect();
        self.flows.retain(|cookie, open| {
            let gone = !there.contains(cookie);
            let stays = !(gone && open.missed);
            open.missed = gone;
            stays
        });
    }

    /// The lease ends no later than the first certificate of those that use it.
    fn renew(&self, agent: &Agent) -> Duration {
        // Not before policies are known.
        if *agent.draining.borrow() || !agent.mesh.synced().borrow().ready() {
            return LEASE;
        }
        let now = SystemTime::now();
        let of_ways = self
            .ways
            .values()
            .flat_map(|k| std::iter::once(&k.source).chain(k.ends.iter().map(|e| &e.pod)));
        let of_flows = self.flows.values().flat_map(|o| [&o.source, &o.destination]);
        let lease = of_ways
            .chain(of_flows)
            .filter_map(|pod| agent.certs.current(&pod.identity).ok())
            .filter_map(|c| c.not_after.duration_since(now).ok())
            .fold(LEASE, Duration::min);
        agent.capture.renew_lease(lease);
        lease
    }

    fn opened(&mut self, agent: &Agent, event: &Event) {
        match self.flows.get(&event.cookie) {
            Some(known) if known.is_of(event) => return,
            // The socket has connected to somebody else since, and the end of what was before got lost.
            Some(_) => drop(self.flows.remove(&event.cookie)),
            None => {}
        }
        let Some(open) = self.open(agent, event) else { return };
        if let Some(why) = open.inbound.denied() {
            open.end(agent, &why);
        }
        self.flows.insert(event.cookie, open);
    }

    fn closed(&mut self, agent: &Agent, event: &Event) {
        let open = match self.flows.remove(&event.cookie) {
            Some(open) => open,
            None if event.state == TCP_SYN_SENT => return self.never_opened(agent, event),
            None => match self.open(agent, event) {
                Some(open) => open,
                None => return,
            },
        };
        let close = close_reason(event);
        let (sent, received) = payload(event);
        open.outbound.finish(sent, received, close.clone());
        open.inbound.finish(sent, received, close);
    }

    fn never_opened(&self, agent: &Agent, event: &Event) {
        let Some((source, _, records)) = self.ends_of(agent, event) else { return };
        let mut record = records.outbound;
        record.id = agent.connections.next_id();
        let why = "the destination's application refused the connection, or did not answer";
        let close = CloseReason::Failed(why.to_owned());
        let failed =
            || agent.connections.failed(&agent.metrics, record, ResponseFlags::Connect, close);
        Whose::pod(source.owner).within(failed);
    }

    /// The entries of a connection, at both its ends.
    fn open(&self, agent: &Agent, event: &Event) -> Option<Open> {
        let (source, destination, records) = self.ends_of(agent, event)?;
        let client = crate::capture::address(&event.flow.local, event.flow.local_port);
        let server = crate::capture::address(&event.flow.remote, event.flow.remote_port);
        let Records { mut outbound, mut inbound, series: [from, to], mut judged } = records;
        for record in [&mut outbound, &mut inbound] {
            record.id = agent.connections.next_id();
            record.opened = time_of(event);
            record.source.address = Some(client);
        }
        judged.request.source = client;
        let [by_source, by_destination] = whose(source.owner, &destination, client);
        let outbound = by_source.within(|| agent.connections.open_in(from, outbound, None));
        let inbound =
            by_destination.within(|| agent.connections.open_in(to, inbound, Some(judged)));
        if self.end_of_way(event).is_none() {
            inbound.judge_again(|judged| agent.no_longer_allowed(judged));
        }
        Some(Open { source, destination, client, server, outbound, inbound, missed: false })
    }

    /// The way that a connection came by, if that is there still, and where on it.
    fn end_of_way(&self, event: &Event) -> Option<(&Kept, &End)> {
        let key = WayKey { owner: event.flow.owner, port: event.asked_port, address: event.asked };
        let kept = self.ways.get(&key)?;
        let server = crate::capture::address(&event.flow.remote, event.flow.remote_port);
        let is_it = |e: &&End| e.pod.owner == event.peer && e.address == server;
        Some((kept, kept.ends.iter().find(is_it)?))
    }

    /// The two pods, and what is said of connections between them. By the way that it came by, or
    /// anew where that is gone.
    fn ends_of(&self, agent: &Agent, event: &Event) -> Option<(Arc<Pod>, Arc<Pod>, Records)> {
        if let Some((kept, end)) = self.end_of_way(event) {
            return Some((kept.source.clone(), end.pod.clone(), end.records.clone()));
        }
        let pods = agent.pods.all();
        let by_owner = |owner| pods.iter().find(|p| p.owner == owner).cloned();
        let (source, destination) = (by_owner(event.flow.owner)?, by_owner(event.peer)?);
        let own = agent.mesh.workload(&source.uid)?;
        let target = agent.mesh.workload(&destination.uid)?;
        let server = crate::capture::address(&event.flow.remote, event.flow.remote_port);
        let asked = crate::capture::address(
            &event.asked,
            u16::try_from(event.asked_port).unwrap_or_default(),
        );
        let ends = agent.mesh.ends(&own, asked);
        let service = ends.as_ref().and_then(|e| e.service.as_deref());
        let request = request(agent, &source, &target, server)?;
        let decision = agent.judge(&target, &request).decision.to_string();
        let records =
            records(agent, (&source, &own), (&destination, &target), service, request, decision);
        Some((source, destination, records))
    }
}

impl Open {
    fn is_of(&self, event: &Event) -> bool {
        self.destination.owner == event.peer
            && self.client == crate::capture::address(&event.flow.local, event.flow.local_port)
            && self.server == crate::capture::address(&event.flow.remote, event.flow.remote_port)
    }

    /// Ends the connection in the kernel. The server's socket first, whose reset is all that the client
    /// sees; then the client's, which a reset may not have reached.
    fn end(&self, agent: &Agent, why: &str) {
        self.outbound.deny(why);
        self.inbound.deny(why);
        let (owner, client, server) = (self.destination.owner, self.client, self.server);
        let clients = match agent.capture.admitted(owner, client, server) {
            Admitted::PastTheAgent(cookie) => Some(cookie),
            // What the client made is gone, and its server's end may not be.
            Admitted::Nothing => None,
            Admitted::Otherwise => return,
        };
        let servers = || {
            let found = netlink::tcp_socket_anywhere(server, client)?;
            found.map_or(Ok(()), |found| netlink::destroy_tcp(server, client, found.cookie))
        };
        let own = || clients.map_or(Ok(()), |cookie| netlink::destroy_tcp(client, server, cookie));
        let ended = [self.destination.netns.run(servers), self.source.netns.run(own)];
        for error in ended.into_iter().filter_map(|e| e.and_then(|done| done).err()) {
            tracing::error!(%client, %server, %error, "a connection that is no longer allowed goes on");
        }
    }
}

/// Keeps ways and their lease for as long as this agent serves.
pub async fn keep(agent: Arc<Agent>, mut taken_up: watch::Receiver<bool>) {
    if taken_up.wait_for(|t| *t).await.is_err() {
        return;
    }
    let mut serving = agent.serving.subscribe();
    while serving.wait_for(|s| *s).await.is_ok() {
        agent.direct.begin(&agent);
        let mut tick = tokio::time::interval(NEWS);
        let behind = agent.capture.news_descriptor().and_then(sys::readable);
        let (mut renewed, mut due) = (Instant::now(), RENEWAL);
        while *serving.borrow_and_update() {
            let has_changed = tokio::select! {
                _ = tick.tick() => false,
                () = agent.direct.changed.notified() => true,
                () = unread(behind.as_ref().ok()) => false,
                changed = serving.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            agent.direct.hear(&agent);
            if has_changed || renewed.elapsed() >= due {
                renewed = Instant::now();
                // A lease that a certificate cuts short is looked at when it ends.
                due = agent.direct.look_again(&agent).min(RENEWAL);
                // However often it changes, no more than half of a processor is spent on this.
                tokio::time::sleep(renewed.elapsed()).await;
            }
        }
        agent.direct.end();
    }
}

/// Returns when the kernel says that news are left unread for too long.
async fn unread(news: Option<&AsyncFd<OwnedFd>>) {
    match news {
        Some(news) => match news.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn key(source: &Pod, asked: SocketAddr) -> WayKey {
    WayKey {
        owner: source.owner,
        port: u32::from(asked.port()),
        address: crate::capture::addr(asked.ip()),
    }
}

/// The way of `source` to `asked`, if there is one now.
fn find(agent: &Agent, source: &Arc<Pod>, asked: SocketAddr, generation: u64) -> Option<Kept> {
    let own = agent.mesh.workload(&source.uid)?;
    let ends = agent.mesh.ends(&own, asked)?;
    let here: Vec<End> = ends
        .here
        .iter()
        .filter_map(|(target, address)| {
            end(agent, source, &own, target, *address, ends.service.as_deref())
        })
        .take(MOST_TARGETS)
        .collect();
    if here.is_empty() {
        return None;
    }
    let mut way = Way {
        generation,
        endpoints: u32::try_from(ends.all).ok()?,
        here: u32::try_from(here.len()).ok()?,
        ..Way::default()
    };
    for (slot, end) in way.targets.iter_mut().zip(&here) {
        *slot = Target {
            owner: end.pod.owner,
            port: u32::from(end.address.port()),
            address: crate::capture::addr(end.address.ip()),
        };
    }
    Some(Kept { source: source.clone(), asked, way, ends: here })
}

/// `target` at `address`, if connections from `source` may go there without the agent.
fn end(
    agent: &Agent,
    source: &Arc<Pod>,
    own: &Workload,
    target: &Workload,
    address: SocketAddr,
    service: Option<&Service>,
) -> Option<End> {
    let pod = agent.pods.by_uid(&target.uid)?;
    let directly = !own.encrypted_within && !target.encrypted_within;
    let is_as_enrolled = |p: &Pod, w: &Workload| {
        w.hbone && w.identity().is_ok_and(|id| id == p.identity) && is_certified(agent, p)
    };
    let may = directly
        && pod.owner != source.owner
        && pod.has_address(address.ip())
        && !inbound::ILLEGAL_PORTS.contains(&address.port())
        && is_as_enrolled(source, own)
        && is_as_enrolled(&pod, target)
        && agent.mesh.guard(target, address.port()).is_none();
    if !may {
        return None;
    }
    let request = request(agent, source, target, address)?;
    // Not by `Agent::judge`, which tells of each dry-run policy that matches.
    let verdict = agent.mesh.policies_for(target).evaluate(&request);
    // Dry-run policies are told of each connection that they match.
    if !verdict.allowed || !verdict.dry_run.is_empty() {
        return None;
    }
    let decision = verdict.decision.to_string();
    let records = records(agent, (source, own), (&pod, target), service, request, decision);
    Some(End { pod, address, records })
}

fn is_certified(agent: &Agent, pod: &Pod) -> bool {
    agent.certs.current(&pod.identity).is_ok_and(|c| !c.expired(SystemTime::now()))
}

/// Why a connection must end. One that would merely not go by this way any more may finish.
fn forbidden(agent: &Agent, open: &Open) -> Option<String> {
    if let Some(why) = open.inbound.denied() {
        return Some(why);
    }
    let pods = [&open.source, &open.destination];
    if let Some(pod) = pods.into_iter().find(|p| agent.certs.has_expired(&p.identity)) {
        return Some(format!("the certificate of {} has expired", pod.identity));
    }
    open.inbound.judged().and_then(|judged| agent.no_longer_allowed(judged))
}

fn request(agent: &Agent, source: &Pod, target: &Workload, to: SocketAddr) -> Option<Request> {
    Some(Request {
        peer: Some(source.identity.clone()),
        source: SocketAddr::new(source.address_like(to.ip())?, 0),
        destination: to,
        trust_domains: agent.trust_domains(target),
    })
}

fn records(
    agent: &Agent,
    (source, own): (&Pod, &Workload),
    (pod, target): (&Pod, &Workload),
    service: Option<&Service>,
    request: Request,
    decision: String,
) -> Records {
    let from = endpoint(None, Some(own), Some(source.identity.text()));
    let to = endpoint(Some(request.destination), Some(target), Some(pod.identity.text()));
    let outbound = FlowRecord {
        id: 0,
        direction: Direction::Outbound,
        source: from,
        destination: to,
        service: service.map(|s| ServiceName {
            hostname: s.key.hostname.clone(),
            name: s.name.clone(),
            namespace: s.key.namespace.clone(),
        }),
        hbone_address: None,
        transport: Transport::Direct,
        verdict: None,
        sent: 0,
        received: 0,
        opened: SystemTime::now(),
        duration_ms: 0,
        flags: ResponseFlags::None,
        close: None,
    };
    let inbound = FlowRecord {
        direction: Direction::Inbound,
        service: None,
        verdict: Some(decision),
        ..outbound.clone()
    };
    let series = [agent.metrics.series(&outbound), agent.metrics.series(&inbound)];
    Records {
        outbound,
        inbound,
        series,
        judged: Judged { destination_uid: pod.uid.clone(), request, by_kubelet: false },
    }
}

/// A connection whose end is known with its beginning.
fn came_and_went(agent: &Agent, to: &Pod, records: &Records, opened: &Event, closed: &Event) {
    let client = crate::capture::address(&opened.flow.local, opened.flow.local_port);
    let (sent, received) = payload(closed);
    let ends = [&records.outbound, &records.inbound].into_iter().zip(&records.series);
    for ((record, series), whose) in ends.zip(whose(opened.flow.owner, to, client)) {
        let mut record = FlowRecord {
            id: agent.connections.next_id(),
            opened: time_of(opened),
            duration_ms: closed.at.saturating_sub(opened.at) / 1_000_000,
            sent,
            received,
            close: Some(close_reason(closed)),
            ..record.clone()
        };
        record.source.address = Some(client);
        whose.within(|| connections::came_and_went(series, &record));
    }
}

/// In whose share of the log the two ends are told of.
fn whose(source: u32, destination: &Pod, client: SocketAddr) -> [Whose; 2] {
    [Whose::pod(source), Whose::pod(destination.owner).caused_by(client.ip())]
}

/// Nothing has a time where an earlier agent heard of it.
fn time_of(event: &Event) -> SystemTime {
    let ago = match event.at {
        0 => Duration::ZERO,
        at => sys::monotonic().saturating_sub(Duration::from_nanos(at)),
    };
    SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn close_reason(closed: &Event) -> CloseReason {
    match closed.state {
        TCP_FIN_WAIT2 | TCP_LAST_ACK | TCP_CLOSING | TCP_TIME_WAIT => CloseReason::Finished,
        _ => CloseReason::Reset("one of the two ends reset it, or is gone".to_owned()),
    }
}

/// Bytes that applications have sent and received. The kernel counts the SYN and the FINs, too.
fn payload(event: &Event) -> (u64, u64) {
    let own_fin = matches!(event.state, TCP_FIN_WAIT2 | TCP_TIME_WAIT | TCP_LAST_ACK | TCP_CLOSING);
    let its_fin = own_fin || event.state == TCP_CLOSE_WAIT;
    (
        event.sent.saturating_sub(1 + u64::from(own_fin)),
        event.received.saturating_sub(u64::from(its_fin)),
    )
}

// States of net/tcp_states.h.
const TCP_SYN_SENT: u32 = 2;
const TCP_FIN_WAIT2: u32 = 5;
const TCP_TIME_WAIT: u32 = 6;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;

#[cfg(test)]
mod tests {
    use super::*;
    use capture_abi::Addr;

    #[test]
    fn a_pod_takes_no_more_ways_than_it_leaves_to_others() {
        let mut ways: HashMap<WayKey, ()> = HashMap::new();
        let way = |owner: u32, n: u32| WayKey { owner, port: 80, address: Addr::v4(n) };
        let mut take = |owner: u32| {
            let taken = (0..u32::MAX).take_while(|n| {
                let room = has_room(&ways, owner);
                if room {
                    ways.insert(way(owner, *n), ());
                }
                room
            });
            taken.count()
        };
        assert_eq!(take(1), MOST_WAYS / 2);
        assert_eq!(take(2), MOST_WAYS / 4);
        assert_eq!(take(1), 0);
        assert!(take(3) > 0);
    }
}
