//! A leak that is planted on the link between two nodes is found there.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use testbed::{Bed, ConnectOpts, LeakCheck, LeakVerdict, Node, Pod, Serve, Sock, Token};

struct Link {
    _bed: Bed,
    node: Node,
    a: Pod,
    b: Pod,
}

fn link(name: &str) -> Link {
    let bed = Bed::new(name).unwrap();
    let (n1, n2) = (bed.node("n1").unwrap(), bed.node("n2").unwrap());
    let (a, b) = (n1.pod("a").unwrap(), n2.pod("b").unwrap());
    Link { _bed: bed, node: n1, a, b }
}

impl Link {
    /// Both ends of a connection over the link.
    fn connect(&self, port: u16) -> (Sock, Sock) {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        let listener = self.b.puppet().unwrap().listen(any, Serve::Manual).unwrap();
        let to = SocketAddr::new(self.b.ipv6().into(), port).to_string();
        let client = self.a.puppet().unwrap().connect(to, ConnectOpts::default()).unwrap();
        (client, listener.accept(Duration::from_secs(30)).unwrap())
    }

    /// Records the link while `f` runs, and judges it.
    fn judge(&self, tokens: &[Token], f: impl FnOnce()) -> LeakVerdict {
        let capture = self.node.capture_link("link").unwrap();
        f();
        let report = capture.stop().unwrap();
        assert!(report.packets > 0 && report.drops == 0, "{report:?}");
        let pods: [[IpAddr; 2]; 2] = [&self.a, &self.b].map(|p| [p.ipv4().into(), p.ipv6().into()]);
        let enrolled = pods.concat().into_iter().collect();
        let check = LeakCheck { tokens: tokens.to_vec(), enrolled, ..LeakCheck::default() };
        check.check(&report).unwrap()
    }
}

#[test]
fn a_token_in_plaintext_is_found() {
    let (link, token) = (link("plain"), Token::new());
    let verdict = link.judge(&[token], || {
        let (client, server) = link.connect(8080);
        client.write(token.bytes()).unwrap();
        server.read_exact(32).unwrap();
    });
    assert_eq!((verdict.tokens.len(), verdict.plaintext.len()), (1, 1), "{verdict}");
    assert!(verdict.to_string().contains(&link.b.ipv6().to_string()), "{verdict}");
}

#[test]
fn a_token_split_over_two_segments_is_found() {
    let (link, token) = (link("split"), Token::new());
    let verdict = link.judge(&[token], || {
        let (client, server) = link.connect(8080);
        // Read in between, so that the halves cannot share a segment.
        for half in token.bytes().chunks(16) {
            client.write(half).unwrap();
            server.read_exact(16).unwrap();
        }
    });
    assert_eq!(verdict.tokens.len(), 1, "{verdict}");
    assert!(verdict.tokens[0].place.contains("across segments"), "{verdict}");
}

#[test]
fn plaintext_to_the_hbone_port_is_found() {
    let link = link("not-tls");
    let verdict = link.judge(&[], || {
        let (client, server) = link.connect(15008);
        client.write(b"CONNECT 10.10.2.2:80 HTTP/1.1\r\n").unwrap();
        server.read_exact(5).unwrap();
    });
    assert_eq!(verdict.plaintext.len(), 1, "{verdict}");
}

#[test]
fn tls_records_to_the_hbone_port_are_clean() {
    let (link, token) = (link("tls"), Token::new());
    let verdict = link.judge(&[token], || {
        let (client, server) = link.connect(15008);
        let record = [&[23, 3, 3, 0x40, 0][..], &[7; 0x4000]].concat();
        for _ in 0..100 {
            client.write(&record).unwrap();
            server.read_exact(record.len()).unwrap();
            server.write(&record).unwrap();
            client.read_exact(record.len()).unwrap();
        }
    });
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!((verdict.hbone_streams, verdict.hbone_bytes), (2, 200 * 0x4005), "{verdict}");
}

#[test]
fn a_bulk_transfer_is_recorded_without_drops() {
    let link = link("bulk");
    let bytes = 200_000_000;
    let verdict = link.judge(&[Token::new()], || {
        let (client, server) = link.connect(8080);
        let sending = std::thread::spawn(move || client.send_pattern(bytes, 1).unwrap());
        server.recv_pattern(Some(bytes)).unwrap();
        sending.join().unwrap();
    });
    assert!(verdict.tokens.is_empty() && verdict.drops == 0 && verdict.truncated == 0, "{verdict}");
}

#[test]
fn the_host_end_of_a_pod_shows_both_directions() {
    let link = link("host-end");
    let capture = link.a.capture_host_end("a").unwrap();
    let (client, server) = link.connect(8080);
    client.write(b"there").unwrap();
    server.read_exact(5).unwrap();
    server.write(b"and back").unwrap();
    client.read_exact(8).unwrap();
    let report = capture.stop().unwrap();
    let bytes = std::fs::read(&report.path).unwrap();
    let seen = |what: &[u8]| bytes.windows(what.len()).any(|w| w == what);
    assert!(seen(b"there") && seen(b"and back"), "{report:?}");
}
