//! Nothing of an enrolled pod crosses the wire in the clear.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use culvert_tests::dialogue::serve;
use culvert_tests::{Mesh, MeshPod, SOON, Spec, Traffic, at, exchange};
use testbed::{Capture, LeakVerdict, Serve, Token, eventually, libc, sockaddr};

const PORT: u16 = 8080;
const BY_HAND: u16 = 8081;

struct Pair {
    mesh: Mesh,
    a: MeshPod,
    b: MeshPod,
}

/// A pod on each node, not enrolled yet, with a server each.
fn pair(name: &str) -> Pair {
    let mesh = Mesh::new(name);
    let (a, b) = (mesh.pod(1, "a"), mesh.pod(2, "b"));
    for pod in [&a, &b] {
        serve(pod, PORT, Serve::Script);
    }
    Pair { mesh, a, b }
}

impl Pair {
    /// Tokens in both directions, over connections that either pod begins, by both families.
    fn exchange(&self, tokens: &[Token; 2]) {
        for (from, to) in [(&self.a, &self.b), (&self.b, &self.a)] {
            let listener = serve(to, BY_HAND, Serve::Manual);
            for ip in [IpAddr::from(to.ipv4()), to.ipv6().into()] {
                exchange(from, &at(ip, BY_HAND), &tokens[0], &listener, &tokens[1]);
            }
            listener.close().unwrap();
        }
    }

    fn judge(&self, tokens: &[Token], capture: Capture) -> LeakVerdict {
        let report = capture.stop().unwrap();
        self.mesh.leak_check(tokens, &[&self.a, &self.b]).check(&report).unwrap()
    }
}

#[test]
fn tokens_are_seen_before_enrolment_and_not_after() {
    let p = pair("tokens");
    let tokens = [Token::new(), Token::new()];
    let link = || p.mesh.agent(1).node.capture_link("link").unwrap();

    // The proof that they would be found.
    let capture = link();
    p.exchange(&tokens);
    let verdict = p.judge(&tokens, capture);
    for token in tokens {
        assert!(verdict.tokens.iter().any(|s| s.token == token), "{verdict}");
    }
    assert!(!verdict.plaintext.is_empty(), "{verdict}");

    p.mesh.enroll_all(&[p.a.clone(), p.b.clone()]);
    let capture = link();
    let traffic = [
        Traffic::start(&p.a, &at(p.b.ipv4(), PORT), tokens[0]),
        Traffic::start(&p.b, &at(p.a.ipv6(), PORT), tokens[1]),
    ];
    p.exchange(&tokens);
    for t in traffic {
        t.succeeds(100);
        assert_eq!(t.stop().failed, 0);
    }
    let verdict = p.judge(&tokens, capture);
    println!("{verdict}");
    assert!(verdict.is_clean(), "{verdict}");
    assert!(verdict.hbone_streams >= 2 && verdict.hbone_bytes > 0, "{verdict}");
}

#[test]
fn between_pods_of_one_node_nothing_leaves_in_the_clear_either() {
    let mesh = Mesh::builder("near").agent_args(&["--same-node", "hbone"]).build();
    let (a, b) = (mesh.pod(1, "a"), mesh.pod(1, "b"));
    mesh.enroll_all(&[a.clone(), b.clone()]);
    let tokens = [Token::new(), Token::new()];
    let capture = b.capture_host_end("b").unwrap();
    let listener = serve(&b, BY_HAND, Serve::Manual);
    exchange(&a, &at(b.ipv4(), BY_HAND), &tokens[0], &listener, &tokens[1]);
    exchange(&a, &at(b.ipv6(), BY_HAND), &tokens[0], &listener, &tokens[1]);
    let report = capture.stop().unwrap();
    let verdict = mesh.leak_check(&tokens, &[&a, &b]).check(&report).unwrap();
    assert!(verdict.is_clean() && verdict.hbone_bytes > 0, "{verdict}");
}

#[test]
fn what_goes_round_capture_does_not_leave_the_pod() {
    let p = pair("round");
    p.mesh.enroll_all(&[p.a.clone(), p.b.clone()]);
    let agent = p.mesh.agent(1);
    let before = agent.counter(&p.a, "dropped_syn");
    let token = Token::new();
    let capture = agent.node.capture_link("link").unwrap();
    for ip in [IpAddr::from(p.b.ipv4()), p.b.ipv6().into()] {
        // In the pod's network namespace and outside its cgroup, where no hook sees the connect.
        let connected = p.a.inside(|| {
            let to = SocketAddr::new(ip, PORT);
            Ok(TcpStream::connect_timeout(&to, Duration::from_secs(2))?)
        });
        assert!(connected.is_err(), "an unannounced connection to {ip} was made");
    }
    eventually(SOON, || {
        let dropped = agent.counter(&p.a, "dropped_syn") - before;
        anyhow::ensure!(dropped >= 2, "{dropped} SYNs were dropped");
        Ok(())
    })
    .unwrap();
    let verdict = p.judge(&[token], capture);
    assert!(verdict.is_clean(), "{verdict}");
}

#[test]
fn other_protocols_pass_and_are_counted() {
    let p = pair("udp");
    p.mesh.enroll(&p.a);
    let agent = p.mesh.agent(1);
    let before = agent.counter(&p.a, "passed_udp");
    p.mesh.bed.dns("x.default.svc.cluster.local", &[p.b.ipv4().into()]);
    assert_eq!(p.a.puppet().unwrap().resolve("x").unwrap(), [IpAddr::from(p.b.ipv4())]);
    assert!(agent.counter(&p.a, "passed_udp") > before);
    // Echo requests of both families, and their answers.
    let v4 = [8, 0, 0xf7, 0xfd, 0, 1, 0, 1];
    let v6 = [128, 0, 0, 0, 0, 1, 0, 1];
    for (domain, protocol, to, asked) in [
        (libc::AF_INET, libc::IPPROTO_ICMP, IpAddr::from(p.b.ipv4()), v4),
        (libc::AF_INET6, libc::IPPROTO_ICMPV6, p.b.ipv6().into(), v6),
    ] {
        let before = agent.counter(&p.a, "passed_icmp");
        let socket = p.a.puppet().unwrap().raw_socket(domain, libc::SOCK_RAW, protocol).unwrap();
        socket.patience(Duration::from_secs(5)).unwrap();
        socket.send_to(&asked, 0, &sockaddr(SocketAddr::new(to, 0))).unwrap();
        // Among the kernel's own, such as neighbour solicitations.
        let is_answer = |got: &[u8]| match domain {
            libc::AF_INET => got.get(20) == Some(&0),
            _ => got.first() == Some(&129),
        };
        while !is_answer(&socket.receive(100).unwrap()) {}
        assert!(agent.counter(&p.a, "passed_icmp") > before, "{to}");
    }
}

/// What is neither TCP nor UDP nor ICMP leaves pods whose annotation says so, and no others.
#[test]
fn other_protocols_leave_pods_that_say_so() {
    const GRE: i32 = 47;
    let mesh = Mesh::new("other-protocols");
    let says = |value: &str| {
        let more = serde_json::json!({ "metadata": {
            "annotations": { "culvert.io/other-protocols": value }
        } });
        mesh.enrolled_pod(1, Spec::named(&format!("says-{value}")).with(more))
    };
    let (allowed, denied, silent) = (says("allow"), says("deny"), mesh.enrolled_pod(1, "silent"));
    let receiver = mesh.pod(2, "receiver");
    for domain in [libc::AF_INET, libc::AF_INET6] {
        let there = receiver.puppet().unwrap().raw_socket(domain, libc::SOCK_RAW, GRE).unwrap();
        there.patience(Duration::from_secs(5)).unwrap();
        let (to, header): (IpAddr, usize) = match domain {
            libc::AF_INET => (receiver.ipv4().into(), 20),
            _ => (receiver.ipv6().into(), 0),
        };
        let send = |from: &MeshPod| {
            let socket = from.puppet().unwrap().raw_socket(domain, libc::SOCK_RAW, GRE).unwrap();
            let bytes = [&[0, 0, 8, 0][..], from.name().as_bytes()].concat();
            socket.send_to(&bytes, 0, &sockaddr(SocketAddr::new(to, 0))).unwrap();
        };
        let dropped = |pod: &MeshPod| mesh.agent(1).counter(pod, "dropped_protocol");
        for pod in [&denied, &silent] {
            let before = dropped(pod);
            send(pod);
            assert!(dropped(pod) > before, "{pod:?}");
        }
        send(&allowed);
        // The first that comes.
        let come = there.receive(100).unwrap();
        assert_eq!(come.get(header + 4..), Some(allowed.name().as_bytes()));
        assert_eq!(dropped(&allowed), 0);
    }
}

#[test]
fn a_pod_that_was_let_go_is_as_before() {
    let p = pair("released");
    p.mesh.enroll_all(&[p.a.clone(), p.b.clone()]);
    let tokens = [Token::new(), Token::new()];
    p.exchange(&tokens);
    p.mesh.unenroll(&p.a);
    p.mesh.unenroll(&p.b);
    let capture = p.mesh.agent(1).node.capture_link("link").unwrap();
    p.exchange(&tokens);
    let verdict = p.judge(&tokens, capture);
    assert_eq!(verdict.hbone_bytes, 0, "{verdict}");
    assert!(!verdict.tokens.is_empty(), "{verdict}");
}
