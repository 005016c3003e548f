//! DNS by hand: one datagram, one answer, and no second try that would hide a lost one.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RData};
use testbed::{Pod, PuppetError, RawSocket};

pub use hickory_proto::op::ResponseCode;
pub use hickory_proto::rr::RecordType;

/// A question as a resolver asks it; `payload` is what EDNS says of the largest answer.
pub fn question(id: u16, name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new();
    message.set_id(id).set_recursion_desired(true);
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload).set_version(0);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

pub fn parse(answer: &[u8]) -> Message {
    Message::from_vec(answer).unwrap_or_else(|e| panic!("no DNS message: {e}: {answer:?}"))
}

/// The addresses in an answer, sorted.
pub fn addresses(answer: &Message) -> Vec<IpAddr> {
    let of = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::from(a.0)),
        RData::AAAA(a) => Some(a.0.into()),
        _ => None,
    };
    let mut all: Vec<IpAddr> = answer.answers().iter().filter_map(|r| of(r.data())).collect();
    all.sort();
    all
}

/// The pod's own name server.
pub fn server_of(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.node().gateway4().into(), 53)
}

/// A UDP socket in the pod, connected to the server.
pub fn asker(pod: &Pod, server: SocketAddr) -> RawSocket {
    let socket = pod.puppet().unwrap().udp_socket(server).unwrap();
    socket.connect(server).unwrap();
    socket
}

/// One datagram there and one back.
pub fn ask(socket: &RawSocket, question: &[u8]) -> Result<Vec<u8>, PuppetError> {
    socket.send(question)?;
    socket.receive(65_535)
}

/// What the server that the pod's `resolv.conf` names says, by a socket that is used once.
pub fn lookup(pod: &Pod, name: &str, kind: RecordType) -> Result<Message, PuppetError> {
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(1);
    let id = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let answer = parse(&ask(&asker(pod, server_of(pod)), &question(id, name, kind, None))?);
    assert_eq!(answer.id(), id);
    Ok(answer)
}
