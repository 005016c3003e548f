//! One question to name servers (RFC 1035): over UDP, and over TCP where the answer does not fit.

use hickory_proto::{
    op::{Edns, Message, MessageType, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};

/// How long one server may take, and after how long it is asked again, as a datagram may be lost.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(700);

/// What passes any link unfragmented (DNS Flag Day 2020).
const UDP_LIMIT: u16 = 1232;

/// Names that an answer may send one to, one after another.
const ALIASES: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("it is no name")]
    NoName,
    #[error("there is no name server")]
    NoServer,
    #[error("{0}: {1}")]
    Io(SocketAddr, io::Error),
    #[error("{0} did not answer within {PATIENCE:?}")]
    TimedOut(SocketAddr),
    #[error("{0} answered {1}")]
    Refused(SocketAddr, ResponseCode),
}

#[derive(Debug, Default, PartialEq)]
pub struct Found {
    /// In order, of both families.
    pub addresses: Vec<IpAddr>,
    /// None where there are no addresses.
    pub ttl: Option<Duration>,
}

fn whole(name: &str) -> Result<Name, AskError> {
    Name::from_ascii(format!("{}.", name.trim_end_matches('.'))).map_err(|_| AskError::NoName)
}

pub fn addresses_in(message: &[u8], name: &str) -> Option<Vec<IpAddr>> {
    let message = Message::from_vec(message).ok()?;
    Some(read(&message, &whole(name).ok()?).addresses)
}

/// All addresses of a whole name: IPv4, and IPv6.
pub async fn lookup(servers: &[SocketAddr], name: &str) -> [Result<Found, AskError>; 2] {
    let Ok(name) = whole(name) else { return [Err(AskError::NoName), Err(AskError::NoName)] };
    tokio::join!(any(servers, &name, RecordType::A), any(servers, &name, RecordType::AAAA)).into()
}

/// The first server that knows.
async fn any(servers: &[SocketAddr], name: &Name, kind: RecordType) -> Result<Found, AskError> {
    let mut failed = AskError::NoServer;
    for server in servers {
        match tokio::time::timeout(PATIENCE, one(*server, name, kind)).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(e)) => failed = e,
            Err(_) => failed = AskError::TimedOut(*server),
        }
    }
    Err(failed)
}

async fn one(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Found, AskError> {
    let mut question = Message::new();
    question.set_id(rand::random()).set_recursion_desired(true);
    question.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_LIMIT).set_version(0);
    question.set_edns(edns);
    let bytes = question.to_vec().map_err(|_| AskError::NoName)?;
    let failed = |e| AskError::Io(server, e);
    let answer = over_udp(server, &question, &bytes).await.map_err(failed)?;
    let answer = match answer.truncated() {
        true => over_tcp(server, &question, &bytes).await.map_err(failed)?,
        false => answer,
    };
    match answer.response_code() {
        ResponseCode::NoError => Ok(read(&answer, name)),
        ResponseCode::NXDomain => Ok(Found::default()),
        other => Err(AskError::Refused(server, other)),
    }
}

/// Whether it is the answer to the question, and not somebody's guess.
fn answers(question: &Message, answer: &Message) -> bool {
    answer.id() == question.id()
        && answer.message_type() == MessageType::Response
        && answer.queries() == question.queries()
}

async fn over_udp(server: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = [0; UDP_LIMIT as usize];
    loop {
        let Ok(received) = tokio::time::timeout(AGAIN, socket.recv(&mut buffer)).await else {
            socket.send(bytes).await?;
            continue;
        };
        let n = received?;
        let message = Message::from_vec(buffer.get(..n).unwrap_or_default());
        if let Some(answer) = message.ok().filter(|a| answers(question, a)) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let invalid = |why: &'static str| io::Error::new(io::ErrorKind::InvalidData, why);
    let length = u16::try_from(bytes.len()).map_err(|_| invalid("the question is too long"))?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_u16(length).await?;
    stream.write_all(bytes).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    let answer = Message::from_vec(&answer).map_err(|_| invalid("it is no DNS message"))?;
    answers(question, &answer)
        .then_some(answer)
        .ok_or_else(|| invalid("it answers another question"))
}

/// The addresses that an answer gives a name, by its aliases or at once.
fn read(answer: &Message, name: &Name) -> Found {
    let mut owner = name;
    let mut ttl = u32::MAX;
    for _ in 0..ALIASES {
        let alias = answer.answers().iter().find_map(|r| match r.data() {
            RData::CNAME(to) if r.name() == owner => Some((&to.0, r.ttl())),
            _ => None,
        });
        let Some((to, lives)) = alias else { break };
        (owner, ttl) = (to, ttl.min(lives));
    }
    let mut found = Found::default();
    for r in answer.answers().iter().filter(|r| r.name() == owner) {
        let ip = match r.data() {
            RData::A(a) => IpAddr::from(a.0),
            RData::AAAA(a) => a.0.into(),
            _ => continue,
        };
        ttl = ttl.min(r.ttl());
        found.addresses.push(ip);
    }
    found.addresses.sort_unstable();
    found.ttl = (!found.addresses.is_empty()).then(|| Duration::from_secs(u64::from(ttl)));
    found
}
