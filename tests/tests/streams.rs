//! A connection through the mesh is a TCP connection: every byte, both ends, and how it breaks.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use culvert_tests::dialogue::{by_hand, connect, echo, echo_to, serve};
use culvert_tests::{Mesh, MeshPod, SOON, at, fetch};
use testbed::{Serve, Sock, eventually, pattern};

const PORT: u16 = 8080;
/// Connections here are accepted by the test.
const BY_HAND: u16 = 8081;
const MIB: u64 = 1 << 20;

/// A client, and a server on its own node and on the other.
struct Ends {
    mesh: Mesh,
    client: MeshPod,
    near: MeshPod,
    far: MeshPod,
}

fn ends(name: &str) -> Ends {
    let mesh = Mesh::new(name);
    let (client, near, far) = (mesh.pod(1, "client"), mesh.pod(1, "near"), mesh.pod(2, "far"));
    for server in [&near, &far] {
        serve(server, PORT, Serve::Script);
    }
    mesh.enroll_all(&[client.clone(), near.clone(), far.clone()]);
    Ends { mesh, client, near, far }
}

impl Ends {
    /// Both ends of a connection, with the server on the client's node, then on the other.
    fn pairs(&self) -> Vec<(&'static str, Sock, Sock)> {
        [("one node", &self.near), ("across nodes", &self.far)]
            .map(|(place, server)| {
                let listener = serve(server, BY_HAND, Serve::Manual);
                let (c, s) = by_hand(&self.client, &at(server.ipv4(), BY_HAND), &listener);
                listener.close().unwrap();
                (place, c, s)
            })
            .into()
    }
}

#[test]
fn a_server_may_speak_first() {
    let t = ends("server-first");
    for server in [&t.near, &t.far] {
        let listener = serve(server, 0, Serve::Banner("220 ready\n".to_owned()));
        let sock = connect(&t.client, &at(server.ipv4(), listener.port()));
        assert_eq!(sock.read_exact(10).unwrap(), b"220 ready\n");
        sock.write(b"EHLO").unwrap();
        assert_eq!(sock.read_exact(4).unwrap(), b"EHLO");
    }
}

#[test]
fn a_gibibyte_each_way_arrives_unchanged() {
    let t = ends("gibibyte");
    let (bytes, patience) = (1024 * MIB, Duration::from_secs(300));
    for (place, client, server) in t.pairs() {
        let (client, server) = (client.within(patience), server.within(patience));
        // Both directions at once.
        let senders = [(client.clone(), 1), (server.clone(), 2)]
            .map(|(sock, seed)| std::thread::spawn(move || sock.send_pattern(bytes, seed)));
        let receivers =
            [server, client].map(|sock| std::thread::spawn(move || sock.recv_pattern(Some(bytes))));
        let sent = senders.map(|s| s.join().unwrap().unwrap());
        let received = receivers.map(|r| r.join().unwrap().unwrap());
        for (sent, received) in sent.iter().zip(&received) {
            assert_eq!((sent.bytes, received.bytes), (bytes, bytes), "{place}");
            assert_eq!(sent.sha256, received.sha256, "{place}");
            println!(
                "{place}: {:.1} Gbit/s while the other direction was as busy",
                received.bytes as f64 * 8e-9 / received.elapsed.as_secs_f64()
            );
        }
    }
}

#[test]
fn the_server_goes_on_after_the_clients_half_close() {
    let t = ends("half-client");
    for (place, client, server) in t.pairs() {
        client.write(b"question").unwrap();
        client.shutdown_write().unwrap();
        assert_eq!(server.read_to_end().unwrap(), b"question", "{place}");
        let sent = server.clone();
        let sending = std::thread::spawn(move || {
            let sent = sent.send_pattern(5 * MIB, 7).unwrap();
            (sent, server.close())
        });
        let received = client.recv_pattern(None).unwrap();
        let (sent, closed) = sending.join().unwrap();
        closed.unwrap();
        assert_eq!((received.bytes, received.sha256), (5 * MIB, sent.sha256), "{place}");
    }
}

#[test]
fn the_client_goes_on_after_the_servers_half_close() {
    let t = ends("half-server");
    for (place, client, server) in t.pairs() {
        server.write(b"enough").unwrap();
        server.shutdown_write().unwrap();
        assert_eq!(client.read_to_end().unwrap(), b"enough", "{place}");
        let sent = client.clone();
        let sending = std::thread::spawn(move || {
            let sent = sent.send_pattern(5 * MIB, 8).unwrap();
            (sent, client.close())
        });
        let received = server.recv_pattern(None).unwrap();
        let (sent, closed) = sending.join().unwrap();
        closed.unwrap();
        assert_eq!((received.bytes, received.sha256), (5 * MIB, sent.sha256), "{place}");
    }
}

#[test]
fn the_clients_reset_reaches_the_server() {
    let t = ends("reset-client");
    for (place, client, server) in t.pairs() {
        client.write(b"x").unwrap();
        server.read_exact(1).unwrap();
        client.reset().unwrap();
        assert_eq!(server.read_to_end().unwrap_err().kind(), "ECONNRESET", "{place}");
    }
}

#[test]
fn the_servers_reset_reaches_the_client() {
    let t = ends("reset-server");
    for (place, client, server) in t.pairs() {
        client.write(b"x").unwrap();
        server.read_exact(1).unwrap();
        server.reset().unwrap();
        assert_eq!(client.read_to_end().unwrap_err().kind(), "ECONNRESET", "{place}");
    }
}

#[test]
fn a_reset_reaches_a_peer_that_is_only_writing() {
    let t = ends("reset-writer");
    for (place, client, server) in t.pairs() {
        let writing = std::thread::spawn(move || client.send_pattern(1024 * MIB, 1));
        server.recv_pattern(Some(MIB)).unwrap();
        server.reset().unwrap();
        let error = writing.join().unwrap().unwrap_err();
        assert!(["ECONNRESET", "EPIPE"].contains(&error.kind()), "{place}: {error}");
    }
}

#[test]
fn a_refused_connection_ends_in_a_reset_and_not_in_a_clean_end() {
    let t = ends("refused");
    for server in [&t.near, &t.far, &t.client] {
        for to in [at(server.ipv4(), 9), at(server.ipv6(), 9)] {
            let connected = t.client.puppet().unwrap().connect(to, Default::default());
            // What is refused is known only after the application's connect() has returned.
            let error = connected.and_then(|sock| sock.read_to_end()).unwrap_err();
            let kinds = ["ECONNRESET", "ECONNREFUSED"];
            assert!(kinds.contains(&error.kind()), "{server:?}: {error}");
        }
    }
}

#[test]
fn an_address_that_nobody_has_ends_in_an_error() {
    let t = ends("nobody");
    let to = at(std::net::Ipv4Addr::new(10, 10, 1, 250), PORT);
    let connected = t.client.puppet().unwrap().connect(to, Default::default());
    assert!(connected.and_then(|sock| sock.read_to_end()).is_err());
}

/// More than all buffers on the way hold together.
const NEGLECTED: u64 = 64 * MIB;

/// A connection that was there before goes on, and so do new ones.
fn others_go_on(t: &Ends, old: &Sock, server: &MeshPod) {
    echo(old, 4 * MIB, 1).unwrap();
    for n in 0..5 {
        let new = echo_to(&t.client, &at(server.ipv4(), PORT)).unwrap();
        echo(&new, 4 * MIB, n).unwrap();
    }
    let new = fetch(&t.client, &at(server.ipv4(), PORT), 16 * MIB, 3).unwrap();
    assert_eq!(new.recv_pattern(None).unwrap().sha256, pattern::sha256(16 * MIB, 3));
}

#[test]
fn downloads_that_nobody_reads_hold_up_no_others() {
    let t = ends("downloads");
    for server in [&t.near, &t.far] {
        let to = at(server.ipv4(), PORT);
        let old = echo_to(&t.client, &to).unwrap();
        echo(&old, MIB, 1).unwrap();
        let neglected: Vec<Sock> =
            (0..5).map(|n| fetch(&t.client, &to, NEGLECTED, n).unwrap()).collect();
        others_go_on(&t, &old, server);
        // Nothing of them is lost either.
        for (n, sock) in neglected.iter().enumerate() {
            let received = sock.recv_pattern(None).unwrap();
            assert_eq!(received.sha256, pattern::sha256(NEGLECTED, n as u64));
        }
    }
}

#[test]
fn uploads_that_nobody_reads_hold_up_no_others() {
    let t = ends("uploads");
    for server in [&t.near, &t.far] {
        let to = at(server.ipv4(), PORT);
        let old = echo_to(&t.client, &to).unwrap();
        echo(&old, MIB, 1).unwrap();
        let listener = serve(server, BY_HAND, Serve::Manual);
        let by_hand_at = at(server.ipv4(), BY_HAND);
        let neglected: Vec<(Sock, Sock)> =
            (0..5).map(|_| by_hand(&t.client, &by_hand_at, &listener)).collect();
        let patience = Duration::from_secs(300);
        let sending: Vec<_> = neglected
            .iter()
            .enumerate()
            .map(|(n, (client, _))| {
                let client = client.within(patience);
                std::thread::spawn(move || client.send_pattern(NEGLECTED, n as u64).unwrap())
            })
            .collect();
        // Each has begun.
        eventually(SOON, || {
            let begun = t.mesh.agent(1).connections().iter().filter(|c| begun(c)).count();
            anyhow::ensure!(begun >= 5, "{begun} uploads have begun");
            Ok(())
        })
        .unwrap();
        others_go_on(&t, &old, server);
        assert!(sending.iter().all(|s| !s.is_finished()), "buffers hold more than was thought");
        for ((_, server), sending) in neglected.iter().zip(sending) {
            let received = server.recv_pattern(Some(NEGLECTED)).unwrap();
            assert_eq!(received.sha256, sending.join().unwrap().sha256);
        }
        listener.close().unwrap();
    }
}

fn begun(connection: &serde_json::Value) -> bool {
    let by_hand = connection["destination"]["address"]
        .as_str()
        .is_some_and(|a| a.ends_with(&format!(":{BY_HAND}")));
    by_hand
        && connection["direction"] == "outbound"
        && connection["sent"].as_u64().is_some_and(|n| n > 0)
}
