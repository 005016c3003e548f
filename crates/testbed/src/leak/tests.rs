//! Synthetic captures: each holds exactly one thing that a check must notice, or must not.

use std::time::SystemTime;

use etherparse::{PacketBuilder, PacketBuilderStep, TcpHeader, VlanId};

use super::*;
use crate::pcapng::Writer;

const A: ([u8; 4], u16) = ([10, 10, 1, 2], 40000);
const B: [u8; 4] = [10, 10, 2, 2];

/// A capture in the making: one direction from A to a port of B.
struct Scene {
    writer: Writer<Vec<u8>>,
    packets: u64,
    port: u16,
    drops: u64,
}

impl Scene {
    fn to(port: u16) -> Self {
        Self { writer: Writer::new(Vec::new(), 1 << 18).unwrap(), packets: 0, port, drops: 0 }
    }

    fn frame(mut self, frame: &[u8]) -> Self {
        self.writer.packet(SystemTime::now(), frame, frame.len()).unwrap();
        self.packets += 1;
        self
    }

    fn syn(self, isn: u32) -> Self {
        let mut tcp = TcpHeader::new(A.1, self.port, isn, 1000);
        tcp.syn = true;
        let frame = build(tcp, &[]);
        self.frame(&frame)
    }

    fn data(self, seq: u32, payload: &[u8]) -> Self {
        let mut tcp = TcpHeader::new(A.1, self.port, seq, 1000);
        tcp.ack = true;
        let frame = build(tcp, payload);
        self.frame(&frame)
    }

    fn judge(self, tokens: &[Token]) -> LeakVerdict {
        static N: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = N.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("leak-test-{}-{n}.pcapng", std::process::id()));
        std::fs::write(&path, self.writer.finish().unwrap()).unwrap();
        let check = LeakCheck {
            tokens: tokens.to_vec(),
            enrolled: HashSet::from([A.0.into(), B.into()]),
            ..LeakCheck::default()
        };
        let report = CaptureReport { packets: self.packets, drops: self.drops, path: path.clone() };
        let verdict = check.check(&report).unwrap();
        std::fs::remove_file(path).unwrap();
        verdict
    }
}

fn build(tcp: TcpHeader, payload: &[u8]) -> Vec<u8> {
    finish(PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(A.0, B, 64).tcp_header(tcp), payload)
}

fn finish(step: PacketBuilderStep<TcpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    step.write(&mut frame, payload).unwrap();
    frame
}

fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut record = vec![kind, 3, 3];
    record.extend((body.len() as u16).to_be_bytes());
    record.extend(body);
    record
}

#[test]
fn tls_to_the_hbone_port_is_clean() {
    let stream = [record(22, &[1; 300]), record(20, &[1]), record(23, &[9; 16_384])].concat();
    let mut scene = Scene::to(15008).syn(u32::MAX - 100);
    // Cut anywhere, over the wrap of sequence numbers, with a retransmission and out of order.
    let isn = u32::MAX - 99;
    let at = |from: usize, to: usize| (isn.wrapping_add(from as u32), &stream[from..to]);
    for (seq, data) in
        [at(0, 3), at(3, 400), at(3, 400), at(900, 2000), at(300, 900), at(2000, stream.len())]
    {
        scene = scene.data(seq, data);
    }
    let verdict = scene.judge(&[Token::new()]);
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!((verdict.hbone_streams, verdict.hbone_bytes), (1, stream.len() as u64));
}

#[test]
fn a_token_in_one_frame_is_found_raw_and_as_hex() {
    let token = Token::new();
    for form in [
        token.bytes().to_vec(),
        token.to_string().into_bytes(),
        token.to_string().to_uppercase().into(),
    ] {
        let verdict = Scene::to(80).syn(0).data(1, &form).judge(&[Token::new(), token]);
        assert_eq!(verdict.tokens.len(), 1, "{verdict}");
        assert_eq!((verdict.tokens[0].token, verdict.tokens[0].packet), (token, 2));
    }
}

#[test]
fn a_token_across_segments_is_found_in_any_order() {
    let token = Token::new();
    let t = token.bytes();
    for verdict in [
        Scene::to(80).syn(0).data(1, &t[..10]).data(11, &t[10..]).judge(&[token]),
        Scene::to(80).syn(0).data(11, &t[10..]).data(1, &t[..10]).judge(&[token]),
        Scene::to(80)
            .data(1, &t[..10])
            .data(11, &t[10..12])
            .data(1, &t[..10])
            .data(13, &t[12..])
            .judge(&[token]),
        Scene::to(80)
            .syn(0)
            .data(1, &t[..20])
            .data(5, &t[4..31])
            .data(32, &t[31..])
            .judge(&[token]),
    ] {
        assert_eq!(verdict.tokens.len(), 1, "{verdict}");
    }
}

#[test]
fn a_token_inside_tls_bytes_on_the_hbone_port_is_still_a_leak() {
    let token = Token::new();
    let verdict = Scene::to(15008).syn(0).data(1, &record(23, token.bytes())).judge(&[token]);
    assert!(!verdict.is_clean() && verdict.plaintext.is_empty() && verdict.tokens.len() == 1);
}

#[test]
fn anything_but_tls_to_the_hbone_port_is_found() {
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], &[22, 3, 9], &[22, 3, 3, 0xff, 0xff], &[24]] {
        let verdict = Scene::to(15008).syn(0).data(1, bytes).judge(&[]);
        assert_eq!(verdict.plaintext.len(), 1, "{verdict}");
    }
    // Behind a good record as well.
    let verdict =
        Scene::to(15008).syn(0).data(1, &record(22, &[0; 5])).data(11, b"hello").judge(&[]);
    assert_eq!(verdict.plaintext.len(), 1, "{verdict}");
    assert_eq!(verdict.plaintext[0].packet, 3);
}

#[test]
fn any_payload_outside_hbone_is_found_even_if_it_is_tls() {
    let verdict = Scene::to(443).syn(0).data(1, &record(22, &[0; 5])).judge(&[]);
    assert_eq!(verdict.plaintext.len(), 1, "{verdict}");
    let verdict = Scene::to(443).data(1, b"older than the capture").judge(&[]);
    assert_eq!((verdict.unparsed.len(), verdict.is_clean()), (1, false), "{verdict}");
}

#[test]
fn an_hbone_stream_older_than_the_capture_is_not_judged() {
    let verdict = Scene::to(15008).data(77, b"the middle of a record").judge(&[]);
    assert!(verdict.is_clean() && verdict.hbone_unchecked == 1, "{verdict}");
}

#[test]
fn a_port_that_is_used_again_is_another_stream() {
    let verdict = Scene::to(15008)
        .syn(0)
        .data(1, &record(22, &[0; 5]))
        .syn(0)
        .syn(5000)
        .data(5001, &record(22, &[0; 5]))
        .judge(&[]);
    assert!(verdict.is_clean() && verdict.hbone_streams == 2, "{verdict}");
}

#[test]
fn a_capture_with_drops_is_not_clean() {
    let mut scene = Scene::to(15008).syn(0);
    scene.drops = 1;
    let verdict = scene.judge(&[]);
    assert!(!verdict.is_clean() && verdict.to_string().contains("1 dropped"));
}

#[test]
fn tcp_fragments_are_found() {
    let mut frame = build(TcpHeader::new(A.1, 15008, 1, 0), &[22; 64]);
    frame[20] |= 0x20; // more fragments
    let verdict = Scene::to(15008).frame(&frame).judge(&[]);
    assert_eq!(verdict.plaintext.len(), 1, "{verdict}");
}

#[test]
fn ipv6_vlan_and_zero_lengths_are_understood() {
    let tcp = || TcpHeader::new(A.1, 80, 1, 0);
    let (a, b): ([u8; 16], [u8; 16]) = ([1; 16], [2; 16]);
    let plain6 =
        finish(PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(a, b, 64).tcp_header(tcp()), b"x");
    let mut big6 = plain6.clone();
    big6[18..20].fill(0);
    // Hop-by-hop options (8 bytes of padding) between the headers.
    let mut extended = plain6.clone();
    extended[20] = 0;
    extended.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
    extended[19] += 8;
    let mut big4 = build(tcp(), b"x");
    big4[16..18].fill(0);
    let vlan = PacketBuilder::ethernet2([2; 6], [4; 6])
        .single_vlan(VlanId::try_new(5).unwrap())
        .ipv4(A.0, B, 64)
        .tcp_header(tcp());
    for frame in [plain6, big6, extended, big4, finish(vlan, b"x")] {
        let frame::Content::Tcp(segment) = frame::parse(&frame) else { panic!("not TCP") };
        assert_eq!((segment.direction.to.port(), segment.payload), (80, &b"x"[..]));
    }
}

#[test]
fn no_frame_is_too_broken() {
    let good = build(TcpHeader::new(A.1, 15008, 1, 0), &record(22, &[0; 40]));
    let mut scene = Scene::to(15008);
    for cut in 0..good.len() {
        scene = scene.frame(&good[..cut]);
        let mut bent = good.clone();
        bent[cut] ^= 0xff;
        scene = scene.frame(&bent);
    }
    scene.judge(&[Token::new()]);
}
