//! The resolver of enrolled pods. It answers for names that the mesh knows; every other question
//! goes to the server that the pod asked, from the pod's own address, and the answer comes back as
//! it is.

use crate::{agent::Agent, pods::Pod, sockets};
use dns::{Answer, Query, TCP_LIMIT, Type};
use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::{
        TcpStream, UdpSocket,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, mpsc},
};

/// What a resolver waits for an answer; nobody asks later than this for what he has not got.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a client's TCP connection may be silent.
const IDLE: Duration = Duration::from_secs(60);

/// Clients of one pod that wait for servers at a time; each holds a socket. More are not heard.
const MOST_WAITING: usize = 512;

/// Datagrams taken in a row before other work has its turn.
const BATCH: usize = 32;

/// What the resolver has done for all pods, for the metrics.
#[derive(Debug, Default)]
pub struct Counters {
    pub asked: AtomicU64,
    pub answered: AtomicU64,
    pub forwarded: AtomicU64,
    /// Not forwarded: too many wait, or the server cannot be reached.
    pub failed: AtomicU64,
}

fn one_more(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One pod's questions over UDP, of one family.
struct Resolver {
    agent: Arc<Agent>,
    pod: Arc<Pod>,
    socket: UdpSocket,
    waiting: Mutex<HashMap<Asker, Waiting>>,
    /// Where answers of servers come in; the largest fits.
    buffer: Mutex<Vec<u8>>,
}

/// A client's socket, and the name server that it asks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Asker {
    client: SocketAddr,
    slot: u32,
}

struct Waiting {
    server: Arc<UdpSocket>,
    questions: usize,
}

/// Answers until the pod leaves.
pub async fn listen(agent: Arc<Agent>, pod: Arc<Pod>, socket: UdpSocket) {
    let (mut leaving, mut serving) = (pod.leaving(), agent.serving.subscribe());
    let (waiting, answers) = (Mutex::new(HashMap::new()), Mutex::new(vec![0u8; TCP_LIMIT]));
    let resolver = Arc::new(Resolver { agent, pod, socket, waiting, buffer: answers });
    let mut buffer = vec![0u8; TCP_LIMIT];
    loop {
        tokio::select! {
            ready = resolver.socket.readable(), if *serving.borrow() => if ready.is_err() { return },
            _ = serving.changed() => continue,
            _ = leaving.wait_for(|l| *l) => return,
        }
        for _ in 0..BATCH {
            let received = resolver
                .socket
                .try_io(Interest::READABLE, || sockets::receive_for(&resolver.socket, &mut buffer));
            match received {
                Ok((length, client, to)) => {
                    if let Some(question) = buffer.get(..length) {
                        resolver.question(question, client, to);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // An answer that a client no longer wanted comes back as an error here.
                Err(_) => {}
            }
        }
        tokio::task::yield_now().await;
    }
}

impl Resolver {
    fn question(self: &Arc<Self>, question: &[u8], client: SocketAddr, to: IpAddr) {
        // A neighbour on the link may know the way to the IPv6 slots.
        let from = client.ip().to_canonical();
        if !from.is_loopback() && !self.pod.has_address(from) {
            return;
        }
        let Some(slot) = sockets::name_server_slot(to) else { return };
        let counters = &self.agent.dns;
        one_more(&counters.asked);
        // Nobody knows yet which names are the mesh's: the client asks again.
        if !self.agent.mesh.synced().borrow().ready() {
            return;
        }
        if let Some(answer) = answer(&self.agent, &self.pod, question, false) {
            one_more(&counters.answered);
            let _ = sockets::send_as(&self.socket, &answer, client, to);
            return;
        }
        if let Err(error) = self.forward(question, Asker { client, slot }, to) {
            one_more(&counters.failed);
            tracing::debug!(pod = %self.pod.uid, %error, "a DNS question could not be passed on");
            if let Some(q) = Query::parse(question) {
                let _ = sockets::send_as(&self.socket, &dns::refuse(&q), client, to);
            }
        }
    }

    /// As it is, by a socket of the asker's own.
    fn forward(self: &Arc<Self>, question: &[u8], asker: Asker, to: IpAddr) -> io::Result<()> {
        let mut waiting = lock(&self.waiting);
        let full = waiting.len() >= MOST_WAITING;
        let there = match waiting.entry(asker) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(_) if full => {
                return Err(io::Error::other("too many questions of this pod wait for an answer"));
            }
            Entry::Vacant(place) => {
                let capture = &self.agent.capture;
                let ip = capture
                    .name_server(self.pod.owner, asker.slot)
                    .ok_or_else(|| io::Error::other("the server's place is another's by now"))?;
                let server = Arc::new(sockets::ask_name_server(
                    capture,
                    &self.pod,
                    SocketAddr::new(ip, 53),
                )?);
                let resolver = self.clone();
                let socket = server.clone();
                self.pod.scope.spawn(async move { resolver.answers(asker, to, &socket).await });
                place.insert(Waiting { server, questions: 0 })
            }
        };
        // A full socket buffer loses a datagram, as the network does. Not `try_send`: a new socket
        // has not heard from the reactor yet that there is room, and would lose its first question.
        if socket2::SockRef::from(&*there.server).send(question).is_ok() {
            there.questions += 1;
            one_more(&self.agent.dns.forwarded);
        }
        Ok(())
    }

    /// What the server says, until it has answered everything or has nothing to say.
    async fn answers(&self, asker: Asker, to: IpAddr, server: &UdpSocket) {
        loop {
            let there = tokio::time::timeout(PATIENCE, server.readable()).await;
            let mut waiting = lock(&self.waiting);
            let mut buffer = lock(&self.buffer);
            let received = match there {
                Ok(Ok(())) => server.try_recv(&mut buffer),
                _ => Err(io::ErrorKind::TimedOut.into()),
            };
            match received {
                Ok(length) => {
                    if let Some(answer) = buffer.get(..length) {
                        let _ = sockets::send_as(&self.socket, answer, asker.client, to);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => {
                    waiting.remove(&asker);
                    one_more(&self.agent.dns.failed);
                    return;
                }
            }
            if let Some(w) = waiting.get_mut(&asker) {
                w.questions = w.questions.saturating_sub(1);
                if w.questions == 0 {
                    waiting.remove(&asker);
                    return;
                }
            }
        }
    }
}

/// The mesh's own answer, if the question is the mesh's to answer.
fn answer(agent: &Agent, pod: &Pod, question: &[u8], tcp: bool) -> Option<Vec<u8>> {
    let query = Query::parse(question)?;
    if matches!(query.kind(), Type::Other(_)) {
        return None;
    }
    let own = agent.mesh.workload(&pod.uid)?;
    let mut named = agent.mesh.named(&own, query.name(), &pod.searches)?;
    let mut answer = Answer::new(&query, if tcp { TCP_LIMIT } else { query.udp_limit() });
    if let Some(canonical) = &named.canonical
        && !answer.alias(canonical)
    {
        return None;
    }
    // Clients take the first.
    if named.addresses.len() > 1 {
        let first = rand::random_range(0..named.addresses.len());
        named.addresses.rotate_left(first);
    }
    for ip in named.addresses {
        answer.address(ip);
    }
    Some(answer.finish())
}

/// A captured connection to port 53: its questions are answered one by one, and those for others
/// go over a connection that `open` makes when the first of them comes.
pub async fn over_tcp(
    agent: &Arc<Agent>,
    pod: &Arc<Pod>,
    client: TcpStream,
    open: impl Fn() -> io::Result<TcpStream>,
) {
    let (mut questions, out) = client.into_split();
    let (answers, to_write) = mpsc::channel::<Vec<u8>>(4);
    let broken = Arc::new(Notify::new());
    let writing = write_messages(out, to_write);
    let reading = async {
        let mut upstream: Option<Upstream> = None;
        loop {
            let message = tokio::select! {
                m = tokio::time::timeout(IDLE, read_message(&mut questions)) => m,
                () = broken.notified() => return,
            };
            let Ok(Ok(Some(question))) = message else { break };
            one_more(&agent.dns.asked);
            // Nobody knows before which names are the mesh's.
            if !agent.synced().await {
                one_more(&agent.dns.failed);
                return;
            }
            if let Some(answer) = answer(agent, pod, &question, true) {
                one_more(&agent.dns.answered);
                if answers.send(answer).await.is_err() {
                    return;
                }
                continue;
            }
            if upstream.as_ref().is_none_or(Upstream::ended) {
                match open() {
                    Ok(s) => upstream = Some(Upstream::new(pod, s, &answers, &broken)),
                    Err(_) => {
                        one_more(&agent.dns.failed);
                        return;
                    }
                }
            }
            let Some(there) = &mut upstream else { return };
            one_more(&agent.dns.forwarded);
            there.unanswered.fetch_add(1, Ordering::AcqRel);
            if write_message(&mut there.out, &question).await.is_err() {
                one_more(&agent.dns.failed);
                return;
            }
        }
        // The client has no more questions; the answers still come.
        if let Some(mut there) = upstream {
            let _ = there.out.shutdown().await;
            let _ = tokio::time::timeout(PATIENCE, there.finished.notified()).await;
        }
        drop(answers);
    };
    let both = async {
        tokio::pin!(reading);
        tokio::pin!(writing);
        tokio::select! {
            () = &mut reading => {}
            () = &mut writing => return,
        }
        // Senders are gone by now, but for a server's that is not done.
        let _ = tokio::time::timeout(PATIENCE, writing).await;
    };
    both.await;
}

/// The connection to the server that the client asked.
struct Upstream {
    out: OwnedWriteHalf,
    unanswered: Arc<AtomicUsize>,
    finished: Arc<Notify>,
    over: Arc<AtomicBool>,
}

impl Upstream {
    fn new(
        pod: &Pod,
        stream: TcpStream,
        answers: &mpsc::Sender<Vec<u8>>,
        broken: &Arc<Notify>,
    ) -> Self {
        let (mut read, out) = stream.into_split();
        let upstream = Upstream {
            out,
            unanswered: Arc::default(),
            finished: Arc::default(),
            over: Arc::default(),
        };
        let (unanswered, finished, over) =
            (upstream.unanswered.clone(), upstream.finished.clone(), upstream.over.clone());
        let (answers, broken) = (answers.clone(), broken.clone());
        pod.scope.spawn(async move {
            while let Ok(Some(answer)) = read_message(&mut read).await {
                let _ = unanswered
                    .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1));
                if answers.send(answer).await.is_err() {
                    break;
                }
            }
            over.store(true, Ordering::Release);
            if unanswered.load(Ordering::Acquire) > 0 {
                broken.notify_one();
            }
            finished.notify_one();
        });
        upstream
    }

    fn ended(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// A message behind its length (RFC 1035, 4.2.2); nothing at the end of the stream.
async fn read_message(from: &mut OwnedReadHalf) -> io::Result<Option<Vec<u8>>> {
    let length = match from.read_u16().await {
        Ok(length) => usize::from(length),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut message = vec![0u8; length];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write_message(to: &mut OwnedWriteHalf, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend(length.to_be_bytes());
    framed.extend_from_slice(message);
    to.write_all(&framed).await
}

async fn write_messages(mut to: OwnedWriteHalf, mut messages: mpsc::Receiver<Vec<u8>>) {
    while let Some(message) = messages.recv().await {
        if write_message(&mut to, &message).await.is_err() {
            return;
        }
    }
    // Every answer has left: an end, and no reset.
    let _ = socket2::SockRef::from(to.as_ref()).set_linger(None);
    let _ = to.shutdown().await;
}

/// The search list that a cluster gives its pods.
pub fn cluster_searches(namespace: &str, domain: &str) -> Vec<String> {
    vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()]
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
