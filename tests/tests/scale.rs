//! Many at once, many after each other, and nothing left behind.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use culvert_tests::dialogue::{connect, echo_to, serve};
use culvert_tests::{Mesh, MeshPod, SOON, Spec, at, attempt};
use testbed::{ConnectOpts, Serve, Sock, eventually, pattern};

const PORT: u16 = 8080;

/// A client on the first node and an echo server on the second.
fn echo_pair(mesh: &Mesh) -> (MeshPod, MeshPod) {
    let (client, server) = (mesh.pod(1, "client"), mesh.pod(2, "server"));
    serve(&server, PORT, Serve::Echo);
    mesh.enroll_all(&[client.clone(), server.clone()]);
    (client, server)
}

#[test]
fn two_thousand_connections_are_open_at_once() {
    const COUNT: usize = 2000;
    const BYTES: u64 = 64 * 1024;
    let mesh = Mesh::new("two-thousand");
    let (client, server) = echo_pair(&mesh);
    let to = at(server.ipv4(), PORT);
    let idle = [1, 2].map(|n| mesh.agent(n).resident_kib());
    let socks: Vec<Sock> = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| (0..COUNT / 8).map(|_| connect(&client, &to)).collect::<Vec<_>>())
            })
            .collect();
        parts.into_iter().flat_map(|p| p.join().unwrap()).collect()
    });
    for number in [1, 2] {
        eventually(SOON, || {
            let open = mesh.agent(number).status()["connections"].as_u64().unwrap();
            anyhow::ensure!(open == COUNT as u64, "{open} are open on n{number}");
            Ok(())
        })
        .unwrap();
    }
    let open = [1, 2].map(|n| mesh.agent(n).resident_kib());
    std::thread::scope(|scope| {
        for (part, socks) in socks.chunks(COUNT / 16).enumerate() {
            scope.spawn(move || {
                for (n, sock) in socks.iter().enumerate() {
                    let seed = (part * COUNT + n) as u64;
                    // 64 KiB fit into the buffers on the way.
                    sock.send_pattern(BYTES, seed).unwrap();
                    let back = sock.recv_pattern(Some(BYTES)).unwrap();
                    assert_eq!(back.sha256, pattern::sha256(BYTES, seed));
                }
            });
        }
    });
    for number in [1, 2] {
        assert_eq!(mesh.agent(number).status()["connections"], COUNT);
        let used = mesh.agent(number).resident_kib();
        let (idle, open) = (idle[number - 1], open[number - 1]);
        println!(
            "n{number}: VmRSS {idle} KiB idle, {open} KiB with {COUNT} connections, {used} KiB after their traffic"
        );
    }
    drop(socks);
    for number in [1, 2] {
        eventually(SOON, || {
            let open = mesh.agent(number).status()["connections"].as_u64().unwrap();
            anyhow::ensure!(open == 0, "{open} are still open on n{number}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn twenty_thousand_short_connections_lose_no_syn() {
    const COUNT: u32 = 20_000;
    let mesh = Mesh::new("short");
    let (client, server) = echo_pair(&mesh);
    let retransmitted = || [&client, &server].map(|p| p.netstat("TCPSynRetrans").unwrap());
    let before = retransmitted();
    let report = client
        .puppet()
        .unwrap()
        .short_connections(at(server.ipv4(), PORT), COUNT, 64, Duration::from_secs(240))
        .unwrap();
    println!("{report:?}");
    assert_eq!((report.ok, report.failed.len()), (COUNT.into(), 0), "{report:?}");
    assert_eq!(retransmitted(), before, "SYNs were lost");
    assert_eq!(mesh.agent(1).counter(&client, "captured"), u64::from(COUNT));
    assert_eq!(mesh.agent(1).counter(&client, "announce_failed"), 0);
    for (agent, pod) in [(mesh.agent(1), &client), (mesh.agent(2), &server)] {
        assert_eq!(agent.counter(pod, "dropped_syn"), 0);
    }
}

/// What enrolment may have changed in a pod's namespace.
fn network_of(pod: &MeshPod) -> String {
    let mut all = String::new();
    for args in
        ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all", "-o addr"]
    {
        let mut cmd = std::process::Command::new("ip");
        cmd.args(["-n", &pod.netns_name()]).args(args.split(' '));
        let out = cmd.output().unwrap();
        assert!(out.status.success(), "ip {args}");
        all += &format!("ip {args}\n{}", String::from_utf8_lossy(&out.stdout));
    }
    let marks = ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"];
    for mark in marks.map(|m| format!("/proc/sys/net/{m}")) {
        let value = pod.inside(|| Ok(std::fs::read_to_string(&mark).unwrap_or_default()));
        all += &format!("{mark} {}", value.unwrap());
    }
    all
}

#[test]
fn fifty_pods_come_and_go_and_leave_nothing() {
    let mesh = Mesh::builder("fifty").agent_args(&["--pool-idle-seconds", "1"]).build();
    let agent = mesh.agent(1);
    let server = mesh.enrolled_pod(2, "server");
    serve(&server, PORT, Serve::Script);
    // Whatever is opened once and kept is open now.
    let first = mesh.enrolled_pod(1, "first");
    attempt(&first, &at(server.ipv4(), PORT)).unwrap();
    mesh.unenroll(&first);
    assert!(agent.pinned_for_pods().is_empty(), "{:?}", agent.pinned_for_pods());
    let descriptors = agent.descriptors();
    let resident = agent.resident_kib();

    let pods: Vec<MeshPod> =
        (0..50).map(|n| mesh.pod(1, Spec::named(&format!("p{n}")).account("many"))).collect();
    let untouched = network_of(&pods[0]);
    mesh.enroll_all(&pods);
    assert_eq!(agent.status()["pods"].as_array().unwrap().len(), 50);
    assert!(agent.pinned_for_pods().len() >= 100, "{:?}", agent.pinned_for_pods());
    for pod in &pods {
        attempt(pod, &at(server.ipv4(), PORT)).unwrap();
    }
    // Half leave as they are asked to, half after they are gone.
    let (alive, dead) = pods.split_at(25);
    for pod in alive {
        mesh.unenroll(pod);
    }
    // What connections still need stays for as long as they do.
    eventually(SOON, || {
        let now = network_of(&pods[0]);
        anyhow::ensure!(now == untouched, "{now}\nwas\n{untouched}");
        Ok(())
    })
    .unwrap();
    for pod in dead {
        let uid = pod.uid();
        mesh.delete_pod(pod.clone());
        let (namespace, name) = (pod.namespace(), pod.name());
        let out = agent.ctl(&["unenroll", "--namespace", namespace, "--name", name]);
        assert!(out.status.success(), "{uid}: {}", String::from_utf8_lossy(&out.stderr));
    }
    assert!(agent.pinned_for_pods().is_empty(), "{:?}", agent.pinned_for_pods());
    assert!(agent.saved_pods().is_empty(), "{:?}", agent.saved_pods());
    assert!(agent.status()["pods"].as_array().unwrap().is_empty());
    eventually(SOON, || {
        let held = agent.rows("certificates")?;
        anyhow::ensure!(held.is_empty(), "{held:?}");
        let now = agent.descriptors();
        anyhow::ensure!(now <= descriptors, "{now} descriptors are open, {descriptors} were");
        Ok(())
    })
    .unwrap();
    println!("VmRSS: {resident} KiB before, {} KiB after", agent.resident_kib());
    // Those that stayed are ordinary pods again.
    attempt(&pods[0], &at(server.ipv4(), PORT)).unwrap();
}

/// The kernel's table of connections has room for a thousand here. Those that were open when their pod was released
/// must not take up room for ever.
#[test]
fn released_pods_take_up_no_room_in_the_kernel() {
    let mesh = Mesh::builder("room").agent_args(&["--max-flows", "1024"]).build();
    let (client, server) = (mesh.enrolled_pod(1, "client"), mesh.pod(2, "server"));
    serve(&server, PORT, Serve::Script);
    let to = at(server.ipv4(), PORT);
    let untouched = network_of(&server);
    for round in 0..12 {
        mesh.enroll(&server);
        let open: Vec<Sock> = (0..100).map(|_| echo_to(&client, &to).unwrap()).collect();
        for sock in &open {
            sock.write(b"x").unwrap();
            assert_eq!(sock.read_exact(1).unwrap(), b"x", "in round {round}");
        }
        mesh.unenroll(&server);
        for sock in open {
            sock.reset().unwrap();
        }
    }
    mesh.enroll(&server);
    attempt(&client, &to).unwrap();
    for pod in [&client, &server] {
        assert_eq!(mesh.agent_of(pod).counter(pod, "announce_failed"), 0);
    }
    mesh.unenroll(&server);
    eventually(SOON, || {
        let now = network_of(&server);
        anyhow::ensure!(now == untouched, "{now}\nwas\n{untouched}");
        Ok(())
    })
    .unwrap();
}

/// The application sees the client's address, and some port of it: those must not run out, nor take ever longer to
/// find, as ended connections linger in TIME_WAIT.
#[test]
fn one_client_makes_more_connections_than_the_server_has_ports_to_give() {
    const COUNT: u32 = 5000;
    let mesh = Mesh::new("ports");
    let (client, server) = echo_pair(&mesh);
    server.sysctl("net.ipv4.ip_local_port_range", "40000 40999").unwrap();
    let report = client
        .puppet()
        .unwrap()
        .short_connections(at(server.ipv4(), PORT), COUNT, 16, Duration::from_secs(120))
        .unwrap();
    assert_eq!((report.ok, report.failed.len()), (COUNT.into(), 0), "{report:?}");
}

/// With the kernel's table of connections full, a connect fails where it can still fail; nothing leaves unannounced,
/// and room that is given back is used again.
#[test]
fn a_full_table_of_connections_refuses_and_recovers() {
    const ROOM: usize = 1024;
    let mesh = Mesh::builder("full").agent_args(&["--max-flows", "1024"]).build();
    let (client, server) = (mesh.enrolled_pod(1, "client"), mesh.pod(2, "server"));
    serve(&server, PORT, Serve::Echo);
    let to = at(server.ipv4(), PORT);
    let puppet = client.puppet().unwrap();
    let mut open = Vec::new();
    let refused = loop {
        // Where there was room for the connection and none for its last hop, it ends.
        let carried = puppet.connect(to.clone(), ConnectOpts::default()).and_then(|sock| {
            sock.write(b"x")?;
            sock.read_exact(1)?;
            Ok(sock)
        });
        match carried {
            Ok(sock) => open.push(sock),
            Err(e) => break e,
        }
        assert!(open.len() <= ROOM, "{} connections have room in {ROOM}", open.len());
    };
    assert!(["ENOBUFS", "ECONNRESET", "EPIPE"].contains(&refused.kind()), "{refused}");
    // One pod may have half of it, less the margin for what is under way.
    assert!(open.len() > ROOM / 3, "refused after {}", open.len());
    assert!(mesh.agent(1).counter(&client, "announce_failed") > 0);
    assert_eq!(mesh.agent(1).counter(&client, "dropped_syn"), 0);
    for sock in open {
        sock.reset().unwrap();
    }
    eventually(SOON, || Ok(echo_to(&client, &to)?)).unwrap();
}
