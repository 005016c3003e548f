//! The kernel's table of connections is shared by a node's pods: one of them must not take all of its room.

use std::net::SocketAddr;
use std::time::Duration;

use culvert_tests::dialogue::{echo, echo_to, serve};
use culvert_tests::{Mesh, MeshPod, SOON, at, attempt};
use testbed::{ConnectOpts, Serve, Sock, eventually, libc};

use crate::scene::{PORT, run_in};

/// As many as the table has room for, and more.
const MANY: usize = 1100;

struct Node {
    mesh: Mesh,
    hostile: MeshPod,
    /// Enrolled, on the same node as the hostile pod.
    bystander: MeshPod,
    /// Enrolled, on the other node.
    server: MeshPod,
    /// Not enrolled, on the other node: each connection to it is one of the agent's own.
    outside: MeshPod,
}

fn node(name: &str) -> Node {
    let mesh = Mesh::builder(name).agent_args(&["--max-flows", "1024"]).build();
    let (hostile, bystander) = (mesh.pod(1, "hostile"), mesh.pod(1, "bystander"));
    let (server, outside) = (mesh.pod(2, "server"), mesh.pod(2, "outside"));
    for pod in [&server, &outside, &hostile, &bystander] {
        serve(pod, PORT, Serve::Script);
    }
    mesh.enroll_all(&[hostile.clone(), bystander.clone(), server.clone()]);
    Node { mesh, hostile, bystander, server, outside }
}

impl Node {
    /// The bystander connects and is connected to, as if nothing had happened.
    fn bystander_is_well(&self) {
        for _ in 0..20 {
            attempt(&self.bystander, &at(self.server.ipv4(), PORT)).unwrap();
            attempt(&self.bystander, &at(self.outside.ipv6(), PORT)).unwrap();
            attempt(&self.server, &at(self.bystander.ipv4(), PORT)).unwrap();
            attempt(&self.outside, &at(self.bystander.ipv4(), PORT)).unwrap();
        }
        assert_eq!(self.mesh.agent(1).counter(&self.bystander, "announce_failed"), 0);
    }
}

#[test]
fn connections_out_of_one_pod_leave_room_for_others() {
    let n = node("room-out");
    let to = at(n.outside.ipv4(), PORT);
    let puppet = n.hostile.puppet().unwrap();
    let opened: Vec<_> = (0..MANY).map(|_| puppet.connect(&*to, ConnectOpts::default())).collect();
    let (open, refused): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
    println!("{} connections are open, {} were refused", open.len(), refused.len());
    let mut late = 0;
    for e in refused {
        match e.unwrap_err().kind() {
            "ENOBUFS" => {}
            // There was room for its own half when it began, and none for the agent's when that came.
            "ECONNRESET" | "ECONNREFUSED" => late += 1,
            other => panic!("{other}"),
        }
    }
    assert!(late < 10, "{late} were refused late");
    n.bystander_is_well();
    // What is given back can be used again.
    drop(open);
    eventually(SOON, || Ok(attempt(&n.hostile, &to)?)).unwrap();
}

#[test]
fn connects_that_hang_leave_room_for_others() {
    let n = node("room-hang");
    run_in(&n.hostile, "ip link set lo down");
    let puppet = n.hostile.puppet().unwrap();
    let to = at(n.server.ipv4(), PORT).parse().unwrap();
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
    let mut hanging = Vec::new();
    for _ in 0..MANY {
        let socket = puppet.raw_socket(libc::AF_INET, kind, 0).unwrap();
        let e = socket.connect(to).unwrap_err();
        if e.kind() == "EINPROGRESS" {
            hanging.push(socket);
        } else {
            assert_eq!(e.kind(), "ENOBUFS", "{e}");
        }
    }
    println!("{} connects hang", hanging.len());
    assert!(!hanging.is_empty());
    n.bystander_is_well();
    drop(hanging);
    run_in(&n.hostile, "ip link set lo up");
    eventually(SOON, || Ok(attempt(&n.hostile, &at(n.server.ipv4(), PORT))?)).unwrap();
}

/// With TCP Fast Open a connect is let go at once, and begins when there is something to send.
#[test]
fn connects_that_are_put_off_leave_room_for_others() {
    let n = node("room-put-off");
    // Without a cookie, so that none has to be fetched first.
    n.hostile.sysctl("net.ipv4.tcp_fastopen", "7").unwrap();
    run_in(&n.hostile, "ip link set lo down");
    let puppet = n.hostile.puppet().unwrap();
    let to = at(n.server.ipv4(), PORT).parse().unwrap();
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
    let put_off: Vec<_> = (0..MANY)
        .map(|_| {
            let socket = puppet.raw_socket(libc::AF_INET, kind, 0).unwrap();
            socket.set_int(libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1).unwrap();
            socket.connect(to).unwrap();
            socket
        })
        .collect();
    for socket in &put_off {
        assert_eq!(socket.send(b"x").unwrap(), 1);
    }
    let refused = n.mesh.agent(1).counter(&n.hostile, "announce_failed");
    println!("{refused} of {MANY} were not announced");
    assert!(refused > 0);
    n.bystander_is_well();
    drop(put_off);
    run_in(&n.hostile, "ip link set lo up");
    eventually(SOON, || Ok(attempt(&n.hostile, &at(n.server.ipv4(), PORT))?)).unwrap();
}

/// Both entries of a connection past the agent are its client's.
#[test]
fn connections_past_the_agent_take_nothing_of_their_servers_room() {
    let n = node("room-direct");
    let to = at(n.bystander.ipv4(), PORT);
    let direct = || n.mesh.agent(1).counter(&n.hostile, "direct");
    eventually(SOON, || {
        attempt(&n.hostile, &to)?;
        anyhow::ensure!(direct() > 0, "still by the agent");
        Ok(())
    })
    .unwrap();
    let puppet = n.hostile.puppet().unwrap();
    let opened: Vec<_> = (0..MANY).map(|_| puppet.connect(&*to, ConnectOpts::default())).collect();
    let (open, refused): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
    println!("{} are open, {} were refused, {} went direct", open.len(), refused.len(), direct());
    assert!(direct() > 100 && !refused.is_empty());
    n.bystander_is_well();
    drop(open);
    eventually(SOON, || Ok(attempt(&n.hostile, &to)?)).unwrap();
}

#[test]
fn connections_into_one_pod_leave_room_for_others() {
    let n = node("room-in");
    let to = at(n.hostile.ipv4(), PORT);
    let puppet = n.outside.puppet().unwrap();
    // Each is one that the agent accepts, and one that it makes to the application.
    let opts = ConnectOpts { timeout: Duration::from_secs(1), ..ConnectOpts::default() };
    let open: Vec<Sock> =
        (0..MANY).filter_map(|_| puppet.connect(&*to, opts.clone()).ok()).collect();
    println!("{} connections are open", open.len());
    n.bystander_is_well();
    drop(open);
    eventually(SOON, || Ok(attempt(&n.outside, &to)?)).unwrap();
}

/// Many streams share a connection, but each has one of its own to the application.
#[test]
fn streams_into_one_pod_leave_room_for_others() {
    let n = node("room-streams");
    let to = at(n.hostile.ipv4(), PORT);
    // A stream that is refused is a reset, which may be there before connect() has returned.
    let puppet = n.server.puppet().unwrap();
    let open: Vec<Sock> =
        (0..MANY).filter_map(|_| puppet.connect(&*to, ConnectOpts::default()).ok()).collect();
    n.bystander_is_well();
    drop(open);
    eventually(SOON, || Ok(attempt(&n.server, &to)?)).unwrap();
}

/// The kernel's table of connections from before enrolments has 65,536 places on a node. A pod gets half
/// of what is left, at most; those of its connections that get none carry nothing, and others have room.
#[test]
fn connections_from_before_enrolment_leave_room_for_others() {
    const ROOM: usize = 32_768;
    const OF_EACH: usize = ROOM / 2 + 500;
    let mesh = Mesh::new("room-earlier");
    let (many, few) = (mesh.pod(1, "many"), mesh.pod(1, "few"));
    // Nobody accepts them, and no process has them all: it may have fewer descriptors than that.
    let servers = [mesh.pod(2, "left"), mesh.pod(2, "right")];
    let mut listening = Vec::new();
    let mut open: Vec<Sock> = Vec::new();
    let processes = [many.puppet().unwrap(), many.stray_puppet().unwrap()];
    for (server, puppet) in servers.iter().zip(&processes) {
        run_in(server, "echo 65535 > /proc/sys/net/core/somaxconn");
        let to = SocketAddr::new(server.ipv4().into(), 7000);
        let listener = server.puppet().unwrap().tcp_socket(to).unwrap();
        listener.bind(to).unwrap();
        listener.listen(65_535).unwrap();
        listening.push(listener);
        let one = || puppet.connect(to.to_string(), ConnectOpts::default()).unwrap();
        open.extend((0..OF_EACH).map(|_| one()));
    }
    serve(&servers[0], PORT, Serve::Script);
    let other = echo_to(&few, &at(servers[0].ipv4(), PORT)).unwrap();
    mesh.enroll(&many);
    mesh.enroll(&few);
    let told = format!("open={} room={ROOM}", 2 * OF_EACH);
    let log = mesh.agent(1).log();
    let line = log.lines().find(|l| l.contains("more connections from before its enrolment"));
    assert!(line.is_some_and(|l| l.contains(&told) && l.contains(&many.uid())), "{log}");
    echo(&other, 1000, 1).unwrap();
    for sock in &open {
        sock.write(b"x").unwrap();
    }
    // What has not come is still to be acknowledged.
    let carried = || -> usize {
        let all_sent = "ss -Htn state established dport = :7000 | awk '$2 == 0' | wc -l";
        run_in(&many, all_sent).trim().parse().unwrap()
    };
    eventually(SOON, || {
        let carried = carried();
        anyhow::ensure!(carried == ROOM, "{carried} carry");
        Ok(())
    })
    .unwrap();
    // A pod is no worse off for its past.
    serve(&many, PORT, Serve::Script);
    attempt(&servers[1], &at(many.ipv4(), PORT)).unwrap();
    attempt(&many, &at(servers[0].ipv4(), PORT)).unwrap();
    assert_eq!(carried(), ROOM);
}
