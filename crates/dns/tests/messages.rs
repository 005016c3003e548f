//! Queries and answers against another implementation of the protocol.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use dns::{Answer, PLAIN_UDP_LIMIT, Query, TCP_LIMIT, Type, UDP_LIMIT, refuse};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query as Asked, ResponseCode},
    rr::{Name, RData, RecordType},
};
use proptest::prelude::*;
use std::{net::IpAddr, str::FromStr as _};

fn asked(name: &str, kind: RecordType) -> Message {
    let mut m = Message::new();
    m.set_id(0x1234).set_recursion_desired(true);
    m.add_query(Asked::query(Name::from_str(name).unwrap(), kind));
    m
}

fn ips(n: u32) -> Vec<IpAddr> {
    (0..n).map(|i| IpAddr::from((0x0a00_0000 + i).to_be_bytes())).collect()
}

#[test]
fn a_query_for_an_address_is_read() {
    let bytes = asked("Reviews.Default.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    let q = Query::parse(&bytes).unwrap();
    assert_eq!(q.name(), "reviews.default.svc.cluster.local");
    assert_eq!(q.kind(), Type::A);
    assert_eq!(q.udp_limit(), PLAIN_UDP_LIMIT);
}

#[test]
fn an_answer_holds_the_addresses_of_the_kind_asked_for() {
    let bytes = asked("reviews.default.svc.cluster.local.", RecordType::AAAA).to_vec().unwrap();
    let q = Query::parse(&bytes).unwrap();
    let mut a = Answer::new(&q, TCP_LIMIT);
    a.address("10.0.0.1".parse().unwrap());
    a.address("2001:db8::1".parse().unwrap());
    let m = Message::from_vec(&a.finish()).unwrap();
    assert_eq!(
        (m.id(), m.message_type(), m.response_code()),
        (0x1234, MessageType::Response, ResponseCode::NoError)
    );
    assert!(m.recursion_desired() && m.recursion_available() && !m.truncated());
    assert_eq!(m.answers().len(), 1);
    assert!(
        matches!(m.answers()[0].data(), RData::AAAA(ip) if ip.0 == "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap())
    );
    assert_eq!(m.queries(), Message::from_vec(&bytes).unwrap().queries());
}

#[test]
fn an_alias_comes_before_the_addresses_of_its_name() {
    let bytes =
        asked("api.example.com.default.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    let q = Query::parse(&bytes).unwrap();
    let mut a = Answer::new(&q, TCP_LIMIT);
    assert!(a.alias("api.example.com"));
    a.address("240.240.0.1".parse().unwrap());
    let m = Message::from_vec(&a.finish()).unwrap();
    assert!(
        matches!(m.answers()[0].data(), RData::CNAME(n) if n.0 == Name::from_str("api.example.com.").unwrap())
    );
    assert_eq!(*m.answers()[1].name(), Name::from_str("api.example.com.").unwrap());
    assert!(matches!(m.answers()[1].data(), RData::A(_)));
}

#[test]
fn what_does_not_fit_is_marked_as_missing() {
    let mut m = asked("many.default.svc.cluster.local.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_version(0);
    m.set_edns(edns);
    let bytes = m.to_vec().unwrap();
    let q = Query::parse(&bytes).unwrap();
    assert_eq!(q.udp_limit(), UDP_LIMIT);
    let mut a = Answer::new(&q, q.udp_limit());
    ips(1000).into_iter().for_each(|ip| a.address(ip));
    let udp = a.finish();
    assert!(udp.len() <= UDP_LIMIT);
    let m = Message::from_vec(&udp).unwrap();
    assert!(m.truncated() && m.extensions().is_some() && m.answers().len() > 60);
    let mut a = Answer::new(&q, TCP_LIMIT);
    ips(1000).into_iter().for_each(|ip| a.address(ip));
    let m = Message::from_vec(&a.finish()).unwrap();
    assert!(!m.truncated());
    assert_eq!(m.answers().len(), 1000);
}

#[test]
fn what_is_no_plain_query_is_nobodys_business_here() {
    let name = "reviews.default.svc.cluster.local.";
    let plain = asked(name, RecordType::A);
    let mut others = Vec::new();
    for op in [OpCode::Status, OpCode::Notify, OpCode::Update] {
        others.push(plain.clone().set_op_code(op).to_vec().unwrap());
    }
    others.push(plain.clone().set_message_type(MessageType::Response).to_vec().unwrap());
    others.push(plain.clone().set_truncated(true).to_vec().unwrap());
    let mut two = plain.clone();
    two.add_query(Asked::query(Name::from_str(name).unwrap(), RecordType::AAAA));
    others.push(two.to_vec().unwrap());
    let mut edns = Edns::new();
    edns.set_version(1);
    others.push(plain.clone().set_edns(edns).to_vec().unwrap());
    let good = plain.to_vec().unwrap();
    others.push([&good[..], &[0]].concat());
    others.push(good[..good.len() - 1].to_vec());
    // Class CHAOS; a compressed name; the root; a label with a dot in it.
    others.push([&good[..good.len() - 1], &[3]].concat());
    let head = &good[..12];
    others.push([head, &[0xc0, 0x0c, 0, 1, 0, 1]].concat());
    others.push([head, &[0, 0, 1, 0, 1]].concat());
    others.push([head, &[3, b'a', b'.', b'b', 0, 0, 1, 0, 1]].concat());
    for (i, other) in others.iter().enumerate() {
        assert_eq!(Query::parse(other), None, "message {i}");
    }
}

#[test]
fn a_refusal_is_a_servers_failure() {
    let bytes = asked("x.example.", RecordType::A).to_vec().unwrap();
    let m = Message::from_vec(&refuse(&Query::parse(&bytes).unwrap())).unwrap();
    assert_eq!((m.id(), m.response_code()), (0x1234, ResponseCode::ServFail));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Whatever arrives, parsing ends without a panic, and what is read is what another reader reads.
    #[test]
    fn any_bytes_are_read_alike(bytes in prop::collection::vec(any::<u8>(), 0..96)) {
        if let Some(q) = Query::parse(&bytes) {
            let m = Message::from_vec(&bytes).unwrap();
            prop_assert_eq!(m.queries().len(), 1);
            let read = m.queries()[0].name().to_lowercase().to_ascii();
            prop_assert_eq!(read.trim_end_matches('.'), q.name());
        }
    }

    #[test]
    fn every_name_survives(
        labels in prop::collection::vec("[A-Za-z0-9][A-Za-z0-9_-]{0,18}[a-z0-9]", 1..6),
        kind in prop::sample::select(vec![RecordType::A, RecordType::AAAA, RecordType::MX]),
        count in 0u32..200,
        limit in 0usize..2000,
    ) {
        let name = labels.join(".") + ".";
        let mut m = Message::new();
        m.add_query(Asked::query(Name::from_ascii(&name).unwrap(), kind));
        let bytes = m.to_vec().unwrap();
        let q = Query::parse(&bytes).unwrap();
        prop_assert_eq!(q.name(), name.trim_end_matches('.').to_ascii_lowercase());
        let mut a = Answer::new(&q, limit);
        ips(count).into_iter().for_each(|ip| a.address(ip));
        let answer = a.finish();
        let m = Message::from_vec(&answer).unwrap();
        let expected = if kind == RecordType::A { count as usize } else { 0 };
        prop_assert_eq!(m.truncated(), m.answers().len() < expected);
        prop_assert!(answer.len() <= limit.max(bytes.len()));
    }
}
