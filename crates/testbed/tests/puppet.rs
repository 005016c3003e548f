//! What a puppet is told, it does; what happens to it, it says.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use testbed::{Bed, ConnectOpts, Pod, Puppet, Serve, Sock, pattern};

const SOON: Duration = Duration::from_secs(30);

struct Pair {
    _bed: Bed,
    server: Pod,
    client: Pod,
}

fn pair(name: &str) -> Pair {
    let bed = Bed::new(name).unwrap();
    let node = bed.node("n1").unwrap();
    let (server, client) = (node.pod("server").unwrap(), node.pod("client").unwrap());
    Pair { _bed: bed, server, client }
}

impl Pair {
    fn serve(&self, serve: Serve) -> String {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        let listener = self.server.puppet().unwrap().listen(any, serve).unwrap();
        SocketAddr::new(self.server.ipv4().into(), listener.port()).to_string()
    }

    fn client(&self) -> Puppet {
        self.client.puppet().unwrap()
    }

    fn connect(&self, addr: &str) -> Sock {
        self.client().connect(addr, ConnectOpts::default()).unwrap()
    }

    /// Both ends of a connection.
    fn by_hand(&self) -> (Sock, Sock) {
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let listener = self.server.puppet().unwrap().listen(any, Serve::Manual).unwrap();
        let client = self.connect(&format!("{}:{}", self.server.ipv4(), listener.port()));
        (client, listener.accept(SOON).unwrap())
    }
}

fn text(sock: &Sock) -> String {
    String::from_utf8(sock.read_to_end().unwrap()).unwrap()
}

#[test]
fn bytes_go_both_ways_and_half_close_works() {
    let p = pair("bytes");
    let (client, server) = p.by_hand();
    client.write(b"hello").unwrap();
    assert_eq!(server.read_exact(5).unwrap(), b"hello");
    client.shutdown_write().unwrap();
    assert_eq!(server.read_some(10).unwrap(), b"");
    server.write(b"still here").unwrap();
    server.close().unwrap();
    assert_eq!(client.read_to_end().unwrap(), b"still here");
    assert_eq!(client.names().unwrap_err().kind(), "ENOTCONN");
}

#[test]
fn errors_keep_their_errno() {
    let p = pair("errors");
    let (client, server) = p.by_hand();
    server.write(b"four").unwrap();
    assert_eq!(client.read_exact(4).unwrap(), b"four");
    server.reset().unwrap();
    let reset = client.read_to_end().unwrap_err();
    assert_eq!((reset.kind(), reset.errno), ("ECONNRESET", Some(104)));

    let refused = p.client().connect(format!("{}:1", p.server.ipv4()), ConnectOpts::default());
    assert_eq!(refused.unwrap_err().kind(), "ECONNREFUSED");
    let unresolved = p.client().connect("nobody:1", ConnectOpts::default());
    assert_eq!(unresolved.unwrap_err().kind(), "resolve");
    let taken = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 7777);
    p.client().listen(taken, Serve::Echo).unwrap();
    assert_eq!(p.client().listen(taken, Serve::Echo).unwrap_err().kind(), "EADDRINUSE");
}

#[test]
fn deadlines_pass_and_the_socket_stays_usable() {
    let p = pair("deadline");
    let (client, server) = p.by_hand();
    let late = client.within(Duration::from_millis(50)).read_some(1).unwrap_err();
    assert_eq!(late.kind(), "timeout");
    server.write(b"x").unwrap();
    assert_eq!(client.read_exact(1).unwrap(), b"x");
    let short = ConnectOpts { timeout: Duration::from_millis(50), ..ConnectOpts::default() };
    // Nobody answers for an address of the bridge that no pod has.
    assert_eq!(p.client().connect("10.10.1.99:1", short).unwrap_err().kind(), "timeout");
    server.close().unwrap();
    assert_eq!(client.read_exact(1).unwrap_err().kind(), "eof");
}

#[test]
fn a_blocked_read_does_not_block_others_and_ends_with_a_close() {
    let p = pair("blocked");
    let (client, server) = p.by_hand();
    let reader = client.clone();
    let blocked = std::thread::spawn(move || reader.read_some(1));
    client.write(b"meanwhile").unwrap();
    assert_eq!(server.read_exact(9).unwrap(), b"meanwhile");
    client.close().unwrap();
    assert_eq!(blocked.join().unwrap().unwrap_err().kind(), "closed");
    assert_eq!(server.read_to_end().unwrap(), b"");
}

#[test]
fn a_dropped_socket_closes() {
    let p = pair("dropped");
    let (client, server) = p.by_hand();
    drop(client);
    assert_eq!(server.read_to_end().unwrap(), b"");
}

#[test]
fn a_killed_puppet_is_told_from_a_failed_call() {
    let p = pair("killed");
    let (client, server) = p.by_hand();
    let old = p.client();
    old.kill().unwrap();
    assert_eq!(client.write(b"x").unwrap_err().kind(), "gone");
    assert_eq!(server.read_to_end().unwrap(), b"");
    assert_ne!(p.client().pid(), old.pid());
}

#[test]
fn listeners_do_as_they_are_told() {
    let p = pair("serve");
    let sock = p.connect(&p.serve(Serve::Echo));
    sock.write(b"echo").unwrap();
    assert_eq!(sock.read_exact(4).unwrap(), b"echo");

    let sum = |data: &[u8]| {
        use sha2::{Digest, Sha256};
        pattern::hex(&Sha256::digest(data))
    };
    let sock = p.connect(&p.serve(Serve::Sink));
    sock.write(b"down the drain").unwrap();
    sock.shutdown_write().unwrap();
    assert_eq!(text(&sock), format!("14 {}\n", sum(b"down the drain")));

    let sock = p.connect(&p.serve(Serve::Banner("220 ready\n".to_owned())));
    assert_eq!(sock.read_exact(10).unwrap(), b"220 ready\n");
    sock.write(b"EHLO").unwrap();
    assert_eq!(sock.read_exact(4).unwrap(), b"EHLO");
}

#[test]
fn scripts_do_as_the_first_line_says() {
    let p = pair("script");
    let addr = p.serve(Serve::Script);
    let say = |line: &str| {
        let sock = p.connect(&addr);
        sock.write(line.as_bytes()).unwrap();
        sock
    };
    assert_eq!(say("source 1000 7\n").read_to_end().unwrap(), pattern::bytes(1000, 7));
    let sock = say("reply-after-eof\nabc");
    sock.shutdown_write().unwrap();
    assert!(text(&sock).starts_with("got 3 ba7816bf"));
    let sock = say("sink\n");
    sock.shutdown_write().unwrap();
    assert!(text(&sock).starts_with("0 e3b0c442"));
    let sock = say("echo\nback");
    assert_eq!(sock.read_exact(4).unwrap(), b"back");
    let sock = say("whoami\n");
    let names = sock.names().unwrap();
    sock.shutdown_write().unwrap();
    let line = text(&sock);
    assert!(
        line.contains(&names.local.to_string()) && line.contains(&names.peer.to_string()),
        "{line}"
    );
    assert_eq!(say("rst\n").read_to_end().unwrap_err().kind(), "ECONNRESET");
    assert_eq!(say("close-now\n").read_to_end().unwrap(), b"");
    let stalled = say("stall\n").within(Duration::from_millis(100)).read_some(1);
    assert_eq!(stalled.unwrap_err().kind(), "timeout");
}

#[test]
fn patterns_arrive_as_they_were_sent() {
    let p = pair("pattern");
    let (client, server) = p.by_hand();
    let bytes = 50_000_001;
    let there = client.clone();
    let sending = std::thread::spawn(move || {
        let sent = there.send_pattern(bytes, 3).unwrap();
        there.shutdown_write().unwrap();
        sent
    });
    let received = server.recv_pattern(None).unwrap();
    let sent = sending.join().unwrap();
    assert_eq!((sent.bytes, &sent.sha256), (received.bytes, &received.sha256));
    assert_eq!(sent.sha256, pattern::sha256(bytes, 3));
}

#[test]
fn connections_are_made_as_asked() {
    let p = pair("opts");
    let addr = p.serve(Serve::Echo);
    let opts = ConnectOpts::default;
    let bind = SocketAddr::new(p.client.ipv4().into(), 4321);
    let sock = p.client().connect(&addr, ConnectOpts { bind: Some(bind), ..opts() }).unwrap();
    assert_eq!(sock.names().unwrap().local, bind);

    let sock = p.client().connect(&addr, ConnectOpts { mapped: true, ..opts() }).unwrap();
    let names = sock.names().unwrap();
    assert!(names.local.ip().to_string().starts_with("::ffff:10.10.1."), "{names:?}");

    let device = |name: &str| ConnectOpts { bind_device: Some(name.to_owned()), ..opts() };
    p.client().connect(&addr, device("eth0")).unwrap();
    assert_eq!(p.client().connect(&addr, device("nosuch")).unwrap_err().kind(), "ENODEV");

    let only = ConnectOpts { v6only: Some(true), ..opts() };
    let port = addr.rsplit_once(':').unwrap().1;
    p.client().connect(format!("[{}]:{port}", p.server.ipv6()), only.clone()).unwrap();
    assert_eq!(p.client().connect(&addr, only).unwrap_err().kind(), "resolve");
}

#[test]
fn many_connections_are_held_open_at_once() {
    let p = pair("bulk");
    let addr = p.serve(Serve::Echo);
    let report = p.client().hold_open(&addr, 10_000, 1000, 1, SOON).unwrap();
    assert_eq!((report.opened, report.ok), (10_000, 10_000), "{report:?}");
    let refused = p.client().hold_open(format!("{}:1", p.server.ipv4()), 10, 1, 1, SOON).unwrap();
    assert_eq!((refused.opened, refused.failed["ECONNREFUSED"]), (0, 10));
}

#[test]
fn many_short_connections_are_counted() {
    let p = pair("short");
    let report = p.client().short_connections(p.serve(Serve::Echo), 2000, 32, SOON).unwrap();
    assert_eq!((report.ok, report.failed.len()), (2000, 0), "{report:?}");
    assert!(report.median <= report.p99 && report.p99 > Duration::ZERO);
}
