//! What comes and goes under traffic: enrolment, certificates, the control plane, the agent.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;
use std::time::Duration;

use culvert_tests::dialogue::{ask_whoami, by_hand, connect, echo, echo_to, serve};
use culvert_tests::{Agent, Mesh, MeshPod, SOON, Traffic, at, attempt, denied, fetch};
use testbed::{Serve, Sock, Token, eventually, pattern};

const PORT: u16 = 8080;
const BY_HAND: u16 = 8081;

struct Pair {
    mesh: Mesh,
    client: MeshPod,
    server: MeshPod,
    to: String,
}

/// An enrolled client on the first node, an enrolled server on the second.
fn pair(mesh: Mesh) -> Pair {
    let (client, server) = (mesh.pod(1, "client"), mesh.pod(2, "server"));
    serve(&server, PORT, Serve::Script);
    serve(&client, PORT, Serve::Script);
    mesh.enroll_all(&[client.clone(), server.clone()]);
    let to = at(server.ipv4(), PORT);
    Pair { mesh, client, server, to }
}

#[test]
fn a_connection_made_before_enrolment_goes_on_after_it() {
    let mesh = Mesh::new("earlier");
    let (client, server) = (mesh.pod(1, "client"), mesh.pod(2, "server"));
    serve(&server, PORT, Serve::Script);
    let to = at(server.ipv4(), PORT);
    let earlier = echo_to(&client, &to).unwrap();
    echo(&earlier, 100_000, 1).unwrap();
    for pod in [&client, &server] {
        mesh.enroll(pod);
        echo(&earlier, 1_000_000, 2).unwrap();
        assert!(mesh.agent_of(pod).counter(pod, "earlier_connections") >= 1);
    }
    attempt(&client, &to).unwrap();
    // Forgotten once it has ended; a reset leaves no TIME_WAIT behind, which would be a minute more.
    earlier.reset().unwrap();
    for pod in [&client, &server] {
        eventually(SOON, || {
            let left = mesh.agent_of(pod).counter(pod, "earlier_connections");
            anyhow::ensure!(left == 0, "{left} earlier connections are left");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_connection_made_while_enrolled_goes_on_after_release() {
    let p = pair(Mesh::new("released"));
    let live = echo_to(&p.client, &p.to).unwrap();
    for pod in [&p.client, &p.server] {
        echo(&live, 100_000, 1).unwrap();
        p.mesh.unenroll(pod);
        echo(&live, 1_000_000, 2).unwrap();
        attempt(&p.client, &p.to).unwrap();
    }
    live.shutdown_write().unwrap();
    assert_eq!(live.read_to_end().unwrap(), b"");
}

/// What the connections of one enrolment need is not taken away by the end of another.
#[test]
fn connections_of_two_enrolments_end_each_on_their_own() {
    let p = pair(Mesh::new("twice"));
    let first = echo_to(&p.client, &p.to).unwrap();
    echo(&first, 1000, 1).unwrap();
    p.mesh.unenroll(&p.server);
    p.mesh.enroll(&p.server);
    let second = echo_to(&p.client, &p.to).unwrap();
    echo(&second, 1000, 1).unwrap();
    p.mesh.unenroll(&p.server);
    echo(&first, 100_000, 2).unwrap();
    first.reset().unwrap();
    let open = || p.mesh.agent(2).status()["connections"].as_u64().unwrap();
    eventually(SOON, || {
        anyhow::ensure!(open() == 1, "{} are open", open());
        Ok(())
    })
    .unwrap();
    echo(&second, 1_000_000, 3).unwrap();
    p.mesh.enroll(&p.server);
    echo(&second, 1_000_000, 4).unwrap();
    second.reset().unwrap();
    attempt(&p.client, &p.to).unwrap();
    for n in 0..20 {
        echo(&echo_to(&p.client, &p.to).unwrap(), 1000, n).unwrap();
    }
}

/// Waits until the identity has another certificate than the one of this serial number, and gives that one's.
fn renewed(agent: &Agent, identity: &str, old: &str) -> String {
    eventually(SOON, || {
        let (now, _) = agent.certificate(identity)?;
        anyhow::ensure!(now != old, "{identity} still has certificate {old}");
        Ok(now)
    })
    .unwrap()
}

fn serial(agent: &Agent, identity: &str) -> String {
    agent.certificate(identity).unwrap().0
}

/// What is on its way to the application when capture ends arrives there.
#[test]
fn a_pod_that_comes_and_goes_refuses_nobody() {
    let p = pair(Mesh::new("come-and-go"));
    let outside = p.mesh.pod(1, "outside");
    let traffic: Vec<Traffic> =
        (0..12).map(|_| Traffic::start(&outside, &p.to, Token::new())).collect();
    for _ in 0..40 {
        p.mesh.release(&p.server);
        traffic[0].succeeds(2);
        p.mesh.capture(&p.server);
        traffic[0].succeeds(2);
    }
    for traffic in traffic {
        let failure = traffic.last_failure(p.mesh.agents());
        let tally = traffic.stop();
        assert!(tally.ok > 80 && tally.failed == 0, "{tally:?}: {failure}");
    }
}

/// A client that is far away: its SYN came while the pod was captured, and its ACK comes after that.
#[test]
fn a_handshake_that_is_under_way_when_capture_ends_is_finished() {
    let p = pair(Mesh::new("half-open"));
    let outside = p.mesh.pod(1, "outside");
    let nft = |words: &str| {
        let mut command = std::process::Command::new("nft");
        command.args(words.split_whitespace());
        let nft = outside.spawn(command).unwrap();
        assert!(nft.wait(SOON).unwrap().success(), "nft {words}: {}", nft.stderr());
    };
    nft("add table inet far");
    nft("add chain inet far out { type filter hook output priority 0 ; }");
    nft("add rule inet far out tcp flags & (syn|ack) == ack drop");
    let sock = connect(&outside, &p.to);
    let asking = std::thread::spawn(move || ask_whoami(&sock));
    p.mesh.release(&p.server);
    nft("delete table inet far");
    assert_eq!(asking.join().unwrap().unwrap().peer.ip(), outside.ipv4());
}

#[test]
fn a_connection_outlives_the_renewal_of_its_certificate() {
    let p = pair(Mesh::builder("renewal").cert_ttl_seconds(20).build());
    let (client, server) = (p.client.identity(), p.server.identity());
    // From here on the server's certificate is good for a whole life, and the client is renewed within half of one.
    renewed(p.mesh.agent(2), &server, &serial(p.mesh.agent(2), &server));
    let first = serial(p.mesh.agent(1), &client);
    let live = echo_to(&p.client, &p.to).unwrap();
    echo(&live, 100_000, 1).unwrap();
    let busy = live.clone();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let working = std::thread::spawn(move || {
        let mut rounds = 0;
        while matches!(stopped.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
            echo(&busy, 10_000, rounds).unwrap();
            rounds += 1;
        }
        rounds
    });
    renewed(p.mesh.agent(1), &client, &first);
    attempt(&p.client, &p.to).unwrap();
    drop(stop);
    assert!(working.join().unwrap() > 0);
    echo(&live, 100_000, 2).unwrap();
}

#[test]
fn new_connections_work_across_several_lives_of_certificates() {
    const LIFE: u64 = 10;
    let p = pair(Mesh::builder("lives").cert_ttl_seconds(10).build());
    let identity = p.client.identity();
    let traffic = Traffic::start(&p.client, &p.to, Token::new());
    traffic.succeeds(1);
    let (_, first_ends) = p.mesh.agent(1).certificate(&identity).unwrap();
    // The certificate in use ends two lives after the first did, so at least one has passed entirely.
    eventually(SOON, || {
        let (_, ends) = p.mesh.agent(1).certificate(&identity)?;
        anyhow::ensure!(
            ends >= first_ends + 2 * LIFE,
            "it ends at {ends}, the first at {first_ends}"
        );
        Ok(())
    })
    .unwrap();
    traffic.succeeds(100);
    let tally = traffic.stop();
    let asked = format!("certificate issued identity={identity} ");
    let issued = p.mesh.control.log().matches(&asked).count() as u64;
    println!("{tally:?}, {issued} certificates");
    // A connection ends with the certificates that made it: what is under way then breaks, and nothing else does.
    assert!(tally.failed <= 2 * issued, "{tally:?} with {issued} certificates");
    // Half a life each makes five; asking all the time makes hundreds.
    assert!(issued <= 12, "{issued} certificates were asked for in less than four lives");
}

#[test]
fn the_control_plane_may_go_and_come_back() {
    let p = pair(Mesh::new("control"));
    let traffic = Traffic::start(&p.client, &p.to, Token::new());
    traffic.succeeds(1);
    let live = echo_to(&p.client, &p.to).unwrap();
    p.mesh.control.kill();
    for number in [1, 2] {
        eventually(SOON, || {
            let status = p.mesh.agent(number).status();
            anyhow::ensure!(status["discovery_connected"] == false, "{status}");
            Ok(())
        })
        .unwrap();
    }
    traffic.succeeds(50);
    echo(&live, 100_000, 1).unwrap();
    // What changes meanwhile is learnt later.
    p.mesh.write_policy(
        "default",
        "closed",
        "{ action: DENY, rules: [{ to: [{ operation: { ports: ['9999'] } }] }] }",
    );
    p.mesh.control.restart(&p.mesh.bed);
    p.mesh.policy_known("default/closed");
    traffic.succeeds(50);
    echo(&live, 100_000, 2).unwrap();
    assert_eq!(traffic.stop().failed, 0);
    // A pod that is new is certified by the same authority.
    let late = p.mesh.enrolled_pod(1, "late");
    attempt(&late, &p.to).unwrap();
}

/// Tokens are read anew for each attempt: one that has run out is nothing but a control plane that is away.
#[test]
fn a_token_that_is_no_longer_good_costs_nothing_and_the_next_one_counts() {
    let p = pair(Mesh::new("token"));
    let agent = p.mesh.agent(1);
    let file = agent.node.dir().join("token");
    let good = std::fs::read_to_string(&file).unwrap();
    let live = echo_to(&p.client, &p.to).unwrap();
    std::fs::write(&file, "one that has run out").unwrap();
    p.mesh.control.kill();
    p.mesh.control.restart(&p.mesh.bed);
    p.mesh.write_policy(
        "default",
        "closed",
        "{ action: DENY, rules: [{ to: [{ operation: { ports: ['9999'] } }] }] }",
    );
    let is_refused = || {
        let (log, status) = (agent.log(), agent.status());
        anyhow::ensure!(log.to_lowercase().contains("unauthenticated"), "{log}");
        anyhow::ensure!(status["discovery_connected"] == false, "{status}");
        Ok(())
    };
    eventually(SOON, is_refused).unwrap();
    // What it has of before holds.
    echo(&live, 100_000, 1).unwrap();
    attempt(&p.client, &p.to).unwrap();
    let knows = agent.rows("policies").unwrap();
    assert!(!knows.iter().any(|p| p["name"] == "default/closed"), "{knows:?}");
    std::fs::write(&file, good).unwrap();
    p.mesh.policy_known("default/closed");
    let late = p.mesh.enrolled_pod(1, "late");
    attempt(&late, &p.to).unwrap();
    echo(&live, 100_000, 2).unwrap();
}

/// Kills the agent of one node under traffic in both directions, then starts it again.
fn killed_and_back(p: &Pair, number: usize) {
    let tokens = [Token::new(), Token::new()];
    let capture = p.mesh.agent(1).node.capture_link("link").unwrap();
    let back = at(p.client.ipv4(), PORT);
    let traffic =
        [Traffic::start(&p.client, &p.to, tokens[0]), Traffic::start(&p.server, &back, tokens[1])];
    let live = echo_to(&p.client, &p.to).unwrap();
    echo(&live, 100_000, 1).unwrap();
    for t in &traffic {
        t.succeeds(20);
    }
    let agent = p.mesh.agent(number);
    let uids = |agent: &Agent| -> BTreeSet<String> {
        let status = agent.status();
        let pods = status["pods"].as_array().unwrap();
        pods.iter().map(|p| p["uid"].as_str().unwrap().to_owned()).collect()
    };
    let enrolled = uids(agent);
    agent.kill();
    // What it carried is over, and nothing takes its place.
    let _ = live.read_to_end();
    for t in &traffic {
        t.fails(5);
    }
    let during = traffic.each_ref().map(Traffic::tally);
    for t in &traffic {
        t.fails(5);
    }
    let plain = p.mesh.pod(if number == 1 { 2 } else { 1 }, "plain");
    let victim = if number == 1 { &p.client } else { &p.server };
    assert!(attempt(&plain, &at(victim.ipv4(), PORT)).is_err());
    for (before, t) in during.iter().zip(&traffic) {
        assert_eq!(before.ok, t.tally().ok, "a connection was made without an agent");
    }

    agent.restart();
    assert_eq!(uids(agent), enrolled);
    for t in &traffic {
        t.succeeds(20);
    }
    attempt(&plain, &at(victim.ipv4(), PORT)).unwrap();
    for t in traffic {
        let settled = t.tally();
        t.succeeds(20);
        assert_eq!(t.stop().failed, settled.failed);
    }
    let report = capture.stop().unwrap();
    let verdict = p.mesh.leak_check(&tokens, &[&p.client, &p.server]).check(&report).unwrap();
    println!("{verdict}");
    assert!(verdict.is_clean() && verdict.hbone_bytes > 0, "{verdict}");
}

#[test]
fn the_clients_agent_is_killed_and_comes_back() {
    let p = pair(Mesh::new("kill-client"));
    killed_and_back(&p, 1);
}

#[test]
fn the_servers_agent_is_killed_and_comes_back() {
    let p = pair(Mesh::new("kill-server"));
    killed_and_back(&p, 2);
}

/// A stream that was cut must not look like one that was finished.
#[test]
fn streams_cut_by_an_agents_death_end_in_a_reset_at_both_ends() {
    let p = pair(Mesh::new("cut"));
    let listener = serve(&p.server, BY_HAND, Serve::Manual);
    let to = at(p.server.ipv4(), BY_HAND);
    for number in [1, 2] {
        let (client, server) = by_hand(&p.client, &to, &listener);
        client.write(b"there").unwrap();
        server.read_exact(5).unwrap();
        server.write(b"back").unwrap();
        client.read_exact(4).unwrap();
        p.mesh.agent(number).kill();
        for (end, sock) in [("client", client), ("server", server)] {
            match sock.read_to_end() {
                Ok(_) => panic!("n{number} died: the {end} saw a clean end"),
                Err(e) => assert_eq!(e.kind(), "ECONNRESET", "n{number} died, the {end}: {e}"),
            }
        }
        p.mesh.agent(number).restart();
    }
}

#[test]
fn policy_holds_right_after_an_agent_came_back() {
    let p = pair(Mesh::new("kill-policy"));
    let rule =
        format!("{{ from: [{{ source: {{ principals: ['{}'] }} }}] }}", p.client.principal());
    p.mesh.policy("default", "no-client", &format!("{{ action: DENY, rules: [{rule}] }}"));
    denied(&p.client, &p.to);
    p.mesh.agent(2).kill();
    p.mesh.agent(2).restart();
    denied(&p.client, &p.to);
}

const DRAINED: usize = 100;
const DRAINED_BYTES: u64 = 2 << 20;

/// Streams that are under way: half are downloads, half are uploads whose server waits for the end.
enum UnderWay {
    Down(Sock, u64),
    Up(Sock, Sock, u64),
}

/// Ends the agent of one node by SIGTERM while a hundred streams are under way.
fn drained(p: &Pair, number: usize) {
    let listener = serve(&p.server, BY_HAND, Serve::Manual);
    let uploads_to = at(p.server.ipv4(), BY_HAND);
    let streams: Vec<UnderWay> = (0..DRAINED as u64)
        .map(|seed| {
            if seed % 2 == 0 {
                UnderWay::Down(fetch(&p.client, &p.to, DRAINED_BYTES, seed).unwrap(), seed)
            } else {
                let (client, server) = by_hand(&p.client, &uploads_to, &listener);
                client.write(b"begun").unwrap();
                assert_eq!(server.read_exact(5).unwrap(), b"begun");
                UnderWay::Up(client, server, seed)
            }
        })
        .collect();
    let agent = p.mesh.agent(number);
    eventually(SOON, || {
        let open = agent.status()["connections"].as_u64().unwrap();
        anyhow::ensure!(open == DRAINED as u64, "{open} are open");
        Ok(())
    })
    .unwrap();
    agent.drain();
    eventually(SOON, || {
        anyhow::ensure!(agent.log().contains("draining"), "it does not drain");
        Ok(())
    })
    .unwrap();
    std::thread::scope(|scope| {
        for stream in streams {
            scope.spawn(move || match stream {
                UnderWay::Down(sock, seed) => {
                    let received = sock.recv_pattern(None).unwrap();
                    assert_eq!(received.sha256, pattern::sha256(DRAINED_BYTES, seed));
                }
                UnderWay::Up(client, server, seed) => {
                    let sending = std::thread::spawn(move || {
                        let sent = client.send_pattern(DRAINED_BYTES, seed).unwrap();
                        client.shutdown_write().unwrap();
                        (sent, client)
                    });
                    let received = server.recv_pattern(None).unwrap();
                    server.close().unwrap();
                    let (sent, client) = sending.join().unwrap();
                    assert_eq!(received.sha256, sent.sha256);
                    assert_eq!(client.read_to_end().unwrap(), b"");
                }
            });
        }
    });
    agent.wait_for_exit(SOON);
    assert!(agent.log().contains("every connection has finished"), "it did not wait for them");
    // The next agent takes over.
    agent.restart();
    attempt(&p.client, &p.to).unwrap();
}

#[test]
fn the_clients_agent_drains() {
    let p = pair(Mesh::builder("drain-client").agent_args(&["--drain-seconds", "300"]).build());
    drained(&p, 1);
}

#[test]
fn the_servers_agent_drains() {
    let p = pair(Mesh::builder("drain-server").agent_args(&["--drain-seconds", "300"]).build());
    drained(&p, 2);
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let p = pair(Mesh::builder("drain-late").agent_args(&["--drain-seconds", "1"]).build());
    let live = echo_to(&p.client, &p.to).unwrap();
    echo(&live, 1000, 1).unwrap();
    p.mesh.agent(1).drain();
    p.mesh.agent(1).wait_for_exit(SOON);
    assert_eq!(
        live.within(Duration::from_secs(20)).read_to_end().unwrap_err().kind(),
        "ECONNRESET"
    );
    p.mesh.agent(1).restart();
    attempt(&p.client, &p.to).unwrap();
}
