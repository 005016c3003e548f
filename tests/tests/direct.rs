//! Past the agent: pods of one node, after the first connection that policy has allowed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use culvert_tests::dialogue::{ask_whoami, by_hand, connect, echo, echo_to, serve};
use culvert_tests::{Mesh, MeshPod, SOON, Service, Spec, at, attempt, denied, whoami};
use testbed::pcapng::Reader;
use testbed::{ConnectOpts, Serve, eventually, libc};

const PORT: u16 = 8080;
const HBONE: u16 = 15008;

/// A client and a server on one node, the way between them taken once.
struct Near {
    mesh: Mesh,
    client: MeshPod,
    server: MeshPod,
}

#[track_caller]
fn until(deadline: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let seen = eventually(deadline, || {
        anyhow::ensure!(is_so(), "{what}");
        Ok(())
    });
    seen.unwrap();
}

fn near(name: &str) -> Near {
    near_with(name, &[])
}

fn near_with(name: &str, agent_args: &[&str]) -> Near {
    let mesh = Mesh::builder(name).agent_args(agent_args).build();
    let (client, server) = (mesh.pod(1, "client"), mesh.pod(1, "server"));
    serve(&server, PORT, Serve::Script);
    mesh.enroll_all(&[client.clone(), server.clone()]);
    Near { mesh, client, server }
}

impl Near {
    fn v4(&self) -> String {
        at(self.server.ipv4(), PORT)
    }

    fn v6(&self) -> String {
        at(self.server.ipv6(), PORT)
    }

    /// Connects of the client's that went past the agent.
    fn went_direct(&self) -> u64 {
        self.mesh.agent_of(&self.client).counter(&self.client, "direct")
    }

    fn captured(&self) -> u64 {
        self.mesh.agent_of(&self.client).counter(&self.client, "captured")
    }

    /// From here on policy lets nobody connect to the server.
    fn nobody_to_the_server(&self) {
        let spec = "{ selector: { matchLabels: { app: server } }, action: DENY, rules: [{}] }";
        self.mesh.policy("default", "nobody", spec);
        self.mesh.policy_bound("default/nobody", &self.server);
    }

    /// Connects until one goes past the agent.
    #[track_caller]
    fn warm(&self, to: &str) {
        let before = self.went_direct();
        until(SOON, "a connection past the agent", || {
            attempt(&self.client, to).unwrap();
            self.went_direct() > before
        });
    }
}

#[test]
fn the_second_connection_goes_by_itself_and_looks_like_the_first() {
    let t = near("direct");
    let service = t.mesh.service("server", 80, PORT, &[&t.server]);
    for asked in [t.v4(), t.v6(), service.at4(), service.at6()] {
        let (captured, direct) = (t.captured(), t.went_direct());
        let first = whoami(&t.client, &asked).unwrap();
        assert_eq!((t.captured(), t.went_direct()), (captured + 1, direct), "{asked}");
        let second = whoami(&t.client, &asked).unwrap();
        assert_eq!((t.captured(), t.went_direct()), (captured + 1, direct + 1), "{asked}");
        assert_eq!(second.peer.ip(), first.peer.ip());
        assert_eq!(second.local, first.local);
        assert_eq!(second.client.local.ip(), first.client.local.ip());
        assert_eq!(second.client.peer, first.client.peer);
        assert_eq!(second.client.peer.to_string(), asked);
        // What only plain TCP can be: the server sees the very port that the client has.
        assert_eq!(second.peer, second.client.local);
    }
}

#[test]
fn both_ends_are_told_of_with_their_identities() {
    let t = near("direct-told");
    let agent = t.mesh.agent_of(&t.client);
    let (source, destination) = (t.client.identity(), t.server.identity());
    t.warm(&t.v4());
    let labels = |reporter| {
        [
            ("reporter", reporter),
            ("source_principal", source.as_str()),
            ("destination_principal", destination.as_str()),
        ]
    };
    let count = |name: &str, reporter| agent.metric(name, &labels(reporter));
    let opened = |reporter| count("istio_tcp_connections_opened_total", reporter);
    let before = (opened("source"), opened("destination"), t.went_direct());
    let sock = echo_to(&t.client, &t.v4()).unwrap();
    echo(&sock, 100_000, 7).unwrap();
    assert_eq!(t.went_direct(), before.2 + 1);
    until(SOON, "the opening in the metrics", || {
        (opened("source"), opened("destination")) == (before.0 + 1.0, before.1 + 1.0)
    });
    let rows = agent.connections();
    for direction in ["outbound", "inbound"] {
        let row = rows
            .iter()
            .find(|r| r["transport"] == "direct" && r["direction"] == direction)
            .unwrap_or_else(|| panic!("no {direction} row in {rows:?}"));
        assert_eq!(row["source"]["identity"], source.as_str());
        assert_eq!(row["destination"]["identity"], destination.as_str());
    }
    let sent = count("istio_tcp_sent_bytes_total", "source");
    sock.shutdown_write().unwrap();
    sock.read_to_end().unwrap();
    drop(sock);
    for direction in ["outbound", "inbound"] {
        agent.logged(&[
            &format!("src.identity={source:?}"),
            &format!("dst.identity={destination:?}"),
            &format!("direction={direction:?}"),
            "bytes_sent=100005 bytes_recv=100000",
        ]);
    }
    until(SOON, "the bytes in the metrics", || {
        count("istio_tcp_sent_bytes_total", "source") > sent
    });
}

/// The connections of a pod: from, to, and by which congestion control.
fn congestion_controls(pod: &MeshPod) -> Vec<(SocketAddr, SocketAddr, String)> {
    let mut ss = Command::new("ss");
    ss.args(["-tinHO", "state", "established"]);
    let ss = pod.spawn(ss).unwrap();
    assert!(ss.wait(SOON).unwrap().success(), "{}", ss.stderr());
    let address = |word: &str| {
        let a: SocketAddr = word.parse().unwrap();
        SocketAddr::new(a.ip().to_canonical(), a.port())
    };
    let of = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (address(words[2]), address(words[3]), words[4].to_owned())
    };
    ss.stdout().lines().map(of).collect()
}

#[test]
fn what_stays_on_the_node_is_not_paced() {
    let mesh = Mesh::new("direct-unpaced");
    let by_hbone =
        serde_json::json!({"metadata": {"annotations": {"culvert.io/same-node": "hbone"}}});
    let pods = [(1, "client"), (1, "near"), (2, "far")].map(|(node, name)| mesh.pod(node, name));
    let wary = mesh.pod(1, Spec::named("wary").with(by_hbone));
    let pods = pods.into_iter().chain([wary]).collect::<Vec<_>>();
    let available = "/proc/sys/net/ipv4/tcp_available_congestion_control";
    let paces = std::fs::read_to_string(available).unwrap().contains("bbr");
    let usual = if paces { "bbr" } else { "cubic" };
    for pod in &pods {
        pod.sysctl("net.ipv4.tcp_congestion_control", usual).unwrap();
    }
    let [client, near, far, wary] = pods.as_slice() else { unreachable!() };
    for pod in [near, far, wary] {
        serve(pod, PORT, Serve::Script);
    }
    mesh.enroll_all(&pods);
    let direct = || mesh.agent_of(client).counter(client, "direct");
    until(SOON, "a connection past the agent", || {
        attempt(client, &at(near.ipv4(), PORT)).unwrap();
        direct() > 0
    });
    let before = direct();
    let to_near = echo_to(client, &at(near.ipv4(), PORT)).unwrap();
    let to_far = echo_to(client, &at(far.ipv4(), PORT)).unwrap();
    let to_wary = echo_to(client, &at(wary.ipv4(), PORT)).unwrap();
    assert_eq!(direct(), before + 1);
    echo(&to_wary, 1_000_000, 3).unwrap();
    echo(&to_near, 1_000_000, 1).unwrap();
    echo(&to_far, 1_000_000, 2).unwrap();
    let between = |pod: &MeshPod, other: &MeshPod, port: u16| -> Vec<String> {
        let other = IpAddr::from(other.ipv4());
        let is_it = |from: &SocketAddr, to: &SocketAddr| {
            to.ip() == other && [from.port(), to.port()].contains(&port)
        };
        let all = congestion_controls(pod).into_iter();
        all.filter(|(from, to, _)| is_it(from, to)).map(|(_, _, name)| name).collect()
    };
    for (from, to) in [(client, wary), (wary, client)] {
        let all = between(from, to, HBONE);
        assert!(
            !all.is_empty() && all.iter().all(|name| name == "reno"),
            "within the node by HBONE: {all:?}"
        );
    }
    assert_eq!(between(client, near, PORT), ["reno"], "past the agent");
    assert_eq!(between(near, client, PORT), ["reno"], "its other end");
    let all = congestion_controls(client);
    let captured: Vec<_> = all.iter().filter(|(_, to, _)| to.ip().is_loopback()).collect();
    assert!(!captured.is_empty(), "{all:?}");
    assert!(captured.iter().all(|(_, _, name)| name == "reno"), "to the agent: {all:?}");
    assert_eq!(between(client, far, HBONE), [usual], "from node to node");
    assert_eq!(between(far, client, HBONE), [usual], "its other end");
    assert_eq!(between(far, far, PORT), ["reno"], "the last hop");
    assert_eq!(between(far, client, PORT), ["reno"], "its other end");
}

#[test]
fn a_rate_that_an_application_asks_for_is_kept() {
    let t = near("direct-rate");
    t.warm(&t.v4());
    let to = t.v4().parse().unwrap();
    let socket = t.client.puppet().unwrap().tcp_socket(to).unwrap();
    socket.set_int(libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, 1_000_000).unwrap();
    let before = t.went_direct();
    socket.connect(to).unwrap();
    assert_eq!(t.went_direct(), before + 1);
    let sock = socket.into_sock().unwrap();
    sock.write(b"echo\n").unwrap();
    let begun = Instant::now();
    echo(&sock, 2_000_000, 1).unwrap();
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn a_policy_that_changes_ends_what_it_forbids() {
    let t = near("direct-policy");
    t.warm(&t.v4());
    let open = echo_to(&t.client, &t.v4()).unwrap();
    echo(&open, 1000, 1).unwrap();
    t.nobody_to_the_server();
    let end = open.within(SOON).read_exact(1).unwrap_err();
    assert_eq!(end.kind(), "ECONNRESET", "{end}");
    denied(&t.client, &t.v4());
    t.mesh.agent_of(&t.client).logged(&["denied by policy", "default/nobody"]);
    t.mesh.remove_policy("default", "nobody");
    until(SOON, "allowed again", || attempt(&t.client, &t.v4()).is_ok());
    t.warm(&t.v4());
}

/// A way holds no longer than the certificates of both pods, though nobody encrypts anything.
#[test]
fn without_a_control_plane_ways_end_with_the_certificates() {
    let mesh = Mesh::builder("direct-expiry").cert_ttl_seconds(15).build();
    let (client, server) = (mesh.pod(1, "client"), mesh.pod(1, "server"));
    serve(&server, PORT, Serve::Script);
    mesh.enroll_all(&[client.clone(), server.clone()]);
    let t = Near { mesh, client, server };
    t.warm(&t.v4());
    let open = echo_to(&t.client, &t.v4()).unwrap();
    echo(&open, 1000, 1).unwrap();
    t.mesh.control.kill();
    until(Duration::from_secs(60), "nobody to connect", || attempt(&t.client, &t.v4()).is_err());
    until(SOON, "the end of what is open", || echo(&open, 10, 2).is_err());
    t.mesh.control.restart(&t.mesh.bed);
    until(SOON, "connections again", || attempt(&t.client, &t.v4()).is_ok());
    t.warm(&t.v4());
}

/// The kernel looks for what it is to end by the interface, too, where a socket is bound to one.
#[test]
fn a_policy_ends_connections_of_sockets_that_are_bound_to_an_interface() {
    let t = near("direct-bound");
    let to: SocketAddr = at(t.server.ipv4(), 8081).parse().unwrap();
    let by_any = serve(&t.server, 8081, Serve::Script);
    t.warm(&to.to_string());
    // The agent's last hop comes over `lo`: only by the way past it can this one be reached.
    by_any.close().unwrap();
    let listener = t.server.puppet().unwrap().tcp_socket(to).unwrap();
    listener.set(libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"eth0").unwrap();
    listener.set_int(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
    listener.bind(to).unwrap();
    listener.listen(4).unwrap();
    let before = t.went_direct();
    let client = connect(&t.client, &to.to_string());
    assert_eq!(t.went_direct(), before + 1);
    let server = listener.accept().unwrap().into_sock().unwrap();
    client.write(b"x").unwrap();
    assert_eq!(server.read_exact(1).unwrap(), b"x");
    t.nobody_to_the_server();
    for end in [client, server] {
        let end = end.within(SOON).read_exact(1).unwrap_err();
        assert!(["ECONNRESET", "ECONNABORTED"].contains(&end.kind()), "{end}");
    }
}

/// A second socket of the tuple of the first is in nobody's way where the first is bound to an interface. What it began
/// under the first one's announcement nobody would hear of, and no policy end.
#[test]
fn one_announcement_lets_one_connection_in() {
    let t = near("direct-once");
    let listener = serve(&t.server, 8081, Serve::Manual);
    let to: SocketAddr = at(t.server.ipv4(), 8081).parse().unwrap();
    let before = t.went_direct();
    while t.went_direct() == before {
        drop(by_hand(&t.client, &to.to_string(), &listener));
    }
    t.server.sysctl("net.ipv4.tcp_fin_timeout", "1").unwrap();
    let reusing = || {
        let socket = t.client.puppet().unwrap().tcp_socket(to).unwrap();
        socket.set_int(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
        socket
    };
    let (first, before) = (reusing(), t.went_direct());
    first.connect(to).unwrap();
    assert_eq!(t.went_direct(), before + 1);
    first.set(libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"eth0").unwrap();
    let server = listener.accept(SOON).unwrap();
    let first = first.into_sock().unwrap();
    let own = first.names().unwrap().local;
    server.close().unwrap();
    assert_eq!(first.read_to_end().unwrap(), b"");
    let port = format!(":{:04X} ", own.port());
    until(SOON, "the end of the server's socket", || {
        let listed = t.server.inside(|| Ok(std::fs::read_to_string("/proc/thread-self/net/tcp6")?));
        !listed.unwrap().lines().any(|l| l.contains(&port))
    });
    let second = reusing();
    second.bind(own).unwrap();
    let error = second.connect(to).unwrap_err();
    assert_eq!(error.kind(), "ECONNREFUSED", "{error}");
    // The tuple is free once the first has gone.
    drop((first, second));
    until(SOON, "a connection by the same tuple", || {
        let third = reusing();
        third.bind(own).is_ok() && third.connect(to).is_ok()
    });
}

/// The kernel, asked to end a connection that it does not have, would find the listener by its tuple.
#[test]
fn a_policy_ends_connections_and_no_listener() {
    let t = near("direct-listener");
    let listener = serve(&t.server, 8081, Serve::Manual);
    let to = at(t.server.ipv4(), 8081);
    drop(by_hand(&t.client, &to, &listener));
    let before = t.went_direct();
    let (client, server) = by_hand(&t.client, &to, &listener);
    assert_eq!(t.went_direct(), before + 1);
    let port = format!(":{:04X} ", client.names().unwrap().local.port());
    let gone = || {
        let listed = t.server.inside(|| Ok(std::fs::read_to_string("/proc/thread-self/net/tcp6")?));
        !listed.unwrap().lines().any(|l| l.contains(&port))
    };
    assert!(!gone(), "the server's socket is to be found while it is there");
    // The server's end goes, and its kernel does not wait long for the client's.
    t.server.sysctl("net.ipv4.tcp_fin_timeout", "1").unwrap();
    server.close().unwrap();
    assert_eq!(client.read_to_end().unwrap(), b"");
    until(SOON, "the end of the server's socket", gone);
    t.nobody_to_the_server();
    until(SOON, "the end of the client's connection", || client.write(b"x").is_err());
    t.mesh.remove_policy("default", "nobody");
    drop(by_hand(&t.client, &to, &listener));
}

#[test]
fn a_policy_of_principals_is_asked_for_each_pair() {
    let t = near("direct-pairs");
    let other = t.mesh.enrolled_pod(1, "other");
    t.mesh.policy(
        "default",
        "client-only",
        &format!(
            "{{ selector: {{ matchLabels: {{ app: server }} }}, action: ALLOW, rules: [{{ from: [{{ \
             source: {{ principals: [{:?}] }} }}] }}] }}",
            t.client.principal()
        ),
    );
    t.mesh.policy_bound("default/client-only", &t.server);
    t.warm(&t.v4());
    for _ in 0..3 {
        denied(&other, &t.v4());
    }
    assert_eq!(t.mesh.agent_of(&other).counter(&other, "direct"), 0);
}

#[test]
fn a_service_is_spread_over_pods_here_and_elsewhere() {
    let mesh = Mesh::new("direct-spread");
    let client = mesh.enrolled_pod(1, "client");
    let pods: Vec<MeshPod> = [(1, "web1"), (1, "web2"), (2, "web3"), (2, "web4")]
        .map(|(node, name)| mesh.pod(node, Spec::named(name).label("app", "web")))
        .into();
    for pod in &pods {
        serve(pod, PORT, Serve::Script);
    }
    mesh.enroll_all(&pods);
    let all: Vec<&MeshPod> = pods.iter().collect();
    let service: Service = mesh.service("web", 80, PORT, &all);
    // Until the agent has seen one of its own node.
    until(SOON, "a way", || {
        attempt(&client, &service.at4()).unwrap();
        mesh.agent_of(&client).counter(&client, "direct") > 0
    });
    let mut met = [0u32; 4];
    for _ in 0..200 {
        let seen = whoami(&client, &service.at4()).unwrap();
        assert_eq!(seen.client.peer.to_string(), service.at4());
        let which = pods.iter().position(|p| IpAddr::from(p.ipv4()) == seen.local.ip()).unwrap();
        met[which] += 1;
    }
    // 50 each are expected; less than 20 has a chance of one in ten million.
    assert!(met.iter().all(|n| *n > 20), "{met:?}");
}

#[test]
fn half_closed_and_reset_and_refused_as_tcp_does() {
    let t = near("direct-ends");
    t.warm(&t.v4());
    let listener = serve(&t.server, 8081, Serve::Manual);
    let by_hand_at = at(t.server.ipv4(), 8081);
    let _ = by_hand(&t.client, &by_hand_at, &listener);
    let before = t.went_direct();
    let (client, server) = by_hand(&t.client, &by_hand_at, &listener);
    assert_eq!(t.went_direct(), before + 1);
    client.write(b"to the end").unwrap();
    client.shutdown_write().unwrap();
    assert_eq!(server.read_to_end().unwrap(), b"to the end");
    server.write(b"and back").unwrap();
    server.shutdown_write().unwrap();
    assert_eq!(client.read_to_end().unwrap(), b"and back");
    let (client, server) = by_hand(&t.client, &by_hand_at, &listener);
    client.write(b"unread").unwrap();
    server.reset().unwrap();
    let end = client.within(SOON).read_to_end().unwrap_err();
    assert_eq!(end.kind(), "ECONNRESET", "{end}");
    // Nobody listens any more: the application is told at once, which no proxy can do.
    listener.close().unwrap();
    let refused = t.client.puppet().unwrap().connect(&by_hand_at, ConnectOpts::default());
    assert_eq!(refused.unwrap_err().kind(), "ECONNREFUSED");
    t.mesh.agent_of(&t.client).logged(&["refused the connection", "8081"]);
}

#[test]
fn nobody_goes_direct_who_does_not_want_to() {
    let mesh = Mesh::new("direct-annotated");
    let annotated = |name: &str, way: &str| {
        let more = serde_json::json!({"metadata": {"annotations": {"culvert.io/same-node": way}}});
        mesh.pod(1, Spec::named(name).with(more))
    };
    let (client, wary) = (annotated("client", "direct"), annotated("wary", "hbone"));
    let plain = mesh.pod(1, "plain");
    for pod in [&wary, &plain] {
        serve(pod, PORT, Serve::Script);
    }
    mesh.enroll_all(&[client.clone(), wary.clone(), plain.clone()]);
    let direct = || mesh.agent_of(&client).counter(&client, "direct");
    for _ in 0..5 {
        attempt(&client, &at(wary.ipv4(), PORT)).unwrap();
    }
    assert_eq!(direct(), 0);
    for _ in 0..5 {
        attempt(&client, &at(plain.ipv4(), PORT)).unwrap();
    }
    assert_eq!(direct(), 4);
    // A Service says it for its pods.
    let goes_direct = || {
        let before = direct();
        attempt(&client, &at(plain.ipv4(), PORT)).unwrap();
        direct() > before
    };
    mesh.apply(
        "service-wary",
        "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: default\n  name: plain\n  annotations: \
         { culvert.io/same-node: hbone }\nspec: { clusterIP: None, selector: { app: plain }, \
         ports: [{ port: 80, targetPort: 8080 }] }\n",
    );
    until(SOON, "the Service's annotation counts", || !goes_direct());
    assert!((0..5).all(|_| !goes_direct()));
    mesh.delete("service-wary");
    until(SOON, "the pod is without annotations again", goes_direct);
    drop(mesh);
    let t = near_with("direct-off", &["--same-node", "hbone"]);
    for _ in 0..5 {
        attempt(&t.client, &t.v4()).unwrap();
    }
    assert_eq!(t.went_direct(), 0);
}

#[test]
fn flows_outlive_an_agent_that_comes_back_and_not_its_lease() {
    let t = near("direct-death");
    t.warm(&t.v4());
    let agent = t.mesh.agent_of(&t.client);
    let open = echo_to(&t.client, &t.v4()).unwrap();
    echo(&open, 1000, 1).unwrap();
    agent.kill();
    echo(&open, 1000, 2).unwrap();
    attempt(&t.client, &t.v4()).unwrap();
    agent.start_again();
    agent.wait_until_ready();
    echo(&open, 1000, 3).unwrap();
    // It knows of the connection, though another agent saw it begin.
    until(SOON, "the connection's rows", || {
        agent.connections().iter().filter(|r| r["transport"] == "direct").count() == 2
    });
    t.nobody_to_the_server();
    let end = open.within(SOON).read_exact(1).unwrap_err();
    assert_eq!(end.kind(), "ECONNRESET", "{end}");
    t.mesh.remove_policy("default", "nobody");
    t.warm(&t.v4());
    let open = echo_to(&t.client, &t.v4()).unwrap();
    echo(&open, 1000, 1).unwrap();
    agent.kill();
    // The lease is of thirty seconds.
    let begun = Instant::now();
    until(Duration::from_secs(60), "the end of the lease", || attempt(&t.client, &t.v4()).is_err());
    assert!(begun.elapsed() > Duration::from_secs(20), "{:?}", begun.elapsed());
    open.write(b"still there?").unwrap();
    let silent = open.within(Duration::from_secs(2)).read_exact(1).unwrap_err();
    assert_eq!(silent.kind(), "timeout", "{silent}");
    // An agent that comes back lets go on what policy still allows.
    agent.start_again();
    agent.wait_until_ready();
    assert_eq!(open.within(SOON).read_exact(12).unwrap(), b"still there?");
}

/// More opens and ends while the agent looks away than the kernel keeps news of: it says how much was
/// lost, and believes in nothing that is over.
#[test]
fn news_that_were_lost_leave_no_connection_behind() {
    const MANY: u32 = 4000;
    let t = near("direct-lost");
    let echoes = at(t.server.ipv4(), 8090);
    let _listener = t.server.puppet().unwrap().listen(culvert_tests::any(8090), Serve::Echo);
    let puppet = t.client.puppet().unwrap();
    let connect = |n: u32| puppet.short_connections(&*echoes, n, 8, SOON);
    until(SOON, "the way is taken", || {
        let before = t.went_direct();
        connect(1).unwrap();
        t.went_direct() > before
    });
    let agent = t.mesh.agent_of(&t.client);
    let untold = || agent.metric("culvert_direct_untold", &[]);
    assert!(untold() < 1.0);
    let pid = nix::unistd::Pid::from_raw(agent.pid());
    let before = t.went_direct();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let report = connect(MANY);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    let report = report.unwrap();
    assert_eq!(report.ok, u64::from(MANY), "{report:?}");
    assert_eq!(t.went_direct() - before, u64::from(MANY));
    assert!(untold() > 0.0);
    let left = || {
        let rows = agent.connections();
        rows.iter().filter(|r| r["transport"] == "direct").count()
    };
    until(SOON, "nothing is open", || left() == 0);
    // What opens after that is heard of, from its beginning to its end.
    t.warm(&t.v4());
    until(SOON, "nothing is open", || left() == 0);
    let open = echo_to(&t.client, &t.v4()).unwrap();
    until(SOON, "the next one is seen", || left() == 2);
    open.reset().unwrap();
    until(SOON, "its end is seen", || left() == 0);
}

#[test]
fn a_pod_that_leaves_takes_its_ways_along() {
    let t = near("direct-leaves");
    t.warm(&t.v4());
    let open = echo_to(&t.client, &t.v4()).unwrap();
    t.mesh.unenroll(&t.server);
    // What is open goes on: it is plain TCP.
    echo(&open, 1000, 1).unwrap();
    let before = t.went_direct();
    attempt(&t.client, &t.v4()).unwrap();
    assert_eq!(t.went_direct(), before);
    t.mesh.enroll(&t.server);
    t.warm(&t.v4());
    t.mesh.unenroll(&t.client);
    // In plaintext, as from any pod that is not of the mesh.
    let denied_plaintext =
        "{ action: ALLOW, rules: [{ from: [{ source: { principals: ['*'] } }] }] }";
    t.mesh.policy("default", "of-the-mesh", denied_plaintext);
    denied(&t.client, &t.v4());
}

#[test]
fn by_the_mapped_address_and_with_a_bound_socket() {
    let t = near("direct-mapped");
    let mapped = at(t.server.ipv4().to_ipv6_mapped(), PORT);
    t.warm(&mapped);
    let seen = whoami(&t.client, &mapped).unwrap();
    assert_eq!(seen.client.peer.to_string(), mapped);
    assert_eq!(seen.peer.ip(), IpAddr::from(t.client.ipv4()));
    let opts =
        |bind: String| ConnectOpts { bind: Some(bind.parse().unwrap()), ..ConnectOpts::default() };
    t.warm(&t.v4());
    let before = t.went_direct();
    let puppet = t.client.puppet().unwrap();
    let own = puppet.connect(t.v4(), opts(at(t.client.ipv4(), 0))).unwrap();
    own.write(b"echo\nx").unwrap();
    assert_eq!(own.read_exact(1).unwrap(), b"x");
    assert_eq!(t.went_direct(), before + 1);
    // Bound to what is not the pod's own address: the agent's business, as before.
    let loopback = puppet.connect(t.v4(), opts("127.0.0.1:0".to_owned())).unwrap();
    loopback.write(b"echo\nx").unwrap();
    assert_eq!(loopback.read_exact(1).unwrap(), b"x");
    assert_eq!(t.went_direct(), before + 1);
    drop(connect(&t.client, &t.v4()));
}

/// The guards know packets by their sockets; what does not look like its socket's segment is known by what was announced.
#[test]
fn segments_with_options_of_ip_pass_in_both_directions() {
    let t = near("direct-options");
    let listener = serve(&t.server, 8081, Serve::Manual);
    let to = at(t.server.ipv4(), 8081);
    let before = t.went_direct();
    let (client, server) = loop {
        let ends = by_hand(&t.client, &to, &listener);
        if t.went_direct() > before {
            break ends;
        }
    };
    let wire = t.client.capture_host_end("options").unwrap();
    for (from, other) in [(&client, &server), (&server, &client)] {
        from.set_empty_ip_options().unwrap();
        from.write(b"with options").unwrap();
        assert_eq!(other.read_exact(12).unwrap(), b"with options");
    }
    let frames = Reader::new(File::open(wire.stop().unwrap().path).unwrap()).unwrap();
    let frames: Vec<Vec<u8>> = frames.map(|p| p.unwrap().frame).collect();
    for from in [t.client.ipv4(), t.server.ipv4()] {
        let longer = |f: &&Vec<u8>| f[14] == 0x46 && f[26..30] == from.octets();
        assert!(frames.iter().any(|f| longer(&f)), "none of {from} had options");
    }
    // Policy ends it like any.
    t.nobody_to_the_server();
    until(SOON, "the end of the connection", || client.write(b"x").is_err());
}

/// On the last hop the agent has a port of the client's, with which the client itself can reach nobody past it.
#[test]
fn no_connection_takes_the_tuple_of_a_last_hop() {
    let t = near("direct-tuple");
    for (asked, own) in [(t.v4(), at(t.client.ipv4(), 0)), (t.v6(), at(t.client.ipv6(), 0))] {
        let first = connect(&t.client, &asked);
        let port = ask_whoami(&first).unwrap().peer.port();
        // What the client's kernel does not choose by itself.
        assert!(port < 32768, "{port}");
        t.warm(&asked);
        let (captured, direct) = (t.captured(), t.went_direct());
        let mut same: SocketAddr = own.parse().unwrap();
        same.set_port(port);
        let opts = ConnectOpts { bind: Some(same), ..ConnectOpts::default() };
        let second = t.client.puppet().unwrap().connect(&asked, opts).unwrap();
        let seen = ask_whoami(&second).unwrap();
        assert_eq!(seen.client.local, same);
        assert_ne!(seen.peer.port(), port);
        assert_eq!((t.captured(), t.went_direct()), (captured + 1, direct));
        for sock in [&first, &second] {
            sock.write(b"x").unwrap();
            assert_eq!(sock.read_exact(1).unwrap(), b"x");
        }
    }
}
