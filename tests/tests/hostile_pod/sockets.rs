//! Sockets of the pod's own kernel, used in ways that applications do not use them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use culvert_tests::dialogue::{connect, serve};
use culvert_tests::{MeshPod, SOON, attempt};
use testbed::{Puppet, PuppetError, RawSocket, Serve, Token, eventually, forge, libc};

use crate::scene::{PORT, Scene, address_of, index_of, run_in};

const TCP: i32 = libc::IPPROTO_TCP;
const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_WINDOW: i32 = 29;

/// The server that this connection ends at sees the hostile pod's own address, and the token arrives.
fn arrives_as_itself(scene: &Scene, socket: RawSocket, to: SocketAddr, token: &Token) {
    let sock = socket.into_sock().unwrap().within(SOON);
    sock.write(b"whoami\n").unwrap();
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.extend(sock.read_exact(1).unwrap());
    }
    let line = String::from_utf8(line).unwrap();
    let own = scene.own(to);
    let peer = if own.is_ipv4() { format!("\"{own}:") } else { format!("\"[{own}]:") };
    assert!(line.contains(&peer), "{own} is seen as {line}");
    assert_eq!(sock.names().unwrap().peer, to);
    sock.write(token.bytes()).unwrap();
    assert_eq!(sock.read_exact(32).unwrap(), token.bytes());
}

/// Either it works like any other connection, or it fails; the token is in the clear in neither case.
pub(crate) fn works_or_fails(
    scene: &Scene,
    socket: RawSocket,
    connected: Result<(), PuppetError>,
    to: SocketAddr,
    token: &Token,
) {
    match connected {
        Ok(()) => arrives_as_itself(scene, socket, to, token),
        Err(e) => println!("{to}: {e}"),
    }
}

/// Runs `each` for every target, on a fresh socket; where the node's own traffic is encrypted, and where
/// it goes past the agent.
fn with_sockets(name: &str, each: impl Fn(&Scene, RawSocket, SocketAddr, &Token)) {
    with_sockets_in(&Scene::new(name), &each);
    let scene = Scene::past_the_agent(&format!("{name}-direct"));
    for to in scene.targets() {
        for _ in 0..2 {
            culvert_tests::attempt(&scene.hostile, &to.to_string()).unwrap();
        }
    }
    with_sockets_in(&scene, &each);
    assert!(scene.counted("direct") > 0);
}

fn with_sockets_in(scene: &Scene, each: &impl Fn(&Scene, RawSocket, SocketAddr, &Token)) {
    let token = Token::new();
    let watch = scene.watch();
    for to in scene.targets() {
        each(scene, scene.puppet().tcp_socket(to).unwrap(), to, &token);
    }
    watch.ends_quietly(&[token]);
    for (agent, server) in [(1, &scene.near), (2, &scene.far)] {
        for line in scene.mesh.agent(agent).access_log() {
            let inbound =
                line.contains("direction=\"inbound\"") && line.contains(&server.identity());
            assert!(
                !inbound
                    || line.contains(&scene.hostile.identity())
                    || line.contains(&scene.client.identity()),
                "{line}"
            );
        }
    }
}

#[test]
fn fast_open_is_captured_like_any_connect() {
    with_sockets("fastopen", |scene, socket, to, token| {
        // 0x607: without a cookie at either end, and on listeners that did not ask for it.
        for setting in ["3", "0x607"] {
            let value = i64::from_str_radix(setting.trim_start_matches("0x"), 16).unwrap();
            for pod in [&scene.hostile, &scene.near, &scene.far] {
                pod.sysctl("net.ipv4.tcp_fastopen", &value.to_string()).unwrap();
            }
            for _ in 0..2 {
                let direct = scene.puppet().tcp_socket(to).unwrap();
                let data = [b"echo\n", token.bytes()].concat();
                let sent =
                    direct.send_to(&data, libc::MSG_FASTOPEN, &testbed::sockaddr(to)).unwrap();
                assert_eq!(sent, data.len());
                assert_eq!(direct.into_sock().unwrap().read_exact(32).unwrap(), token.bytes());
                let deferred = scene.puppet().tcp_socket(to).unwrap();
                deferred.set_int(TCP, libc::TCP_FASTOPEN_CONNECT, 1).unwrap();
                deferred.connect(to).unwrap();
                arrives_as_itself(scene, deferred, to, token);
            }
        }
        drop(socket);
    });
}

#[test]
fn a_connect_by_io_uring_is_captured_like_any() {
    with_sockets("io-uring", |scene, socket, to, token| {
        let connected = socket.connect_by_io_uring(to);
        if let Err(e) = &connected {
            assert!(["ENOSYS", "EPERM"].contains(&e.kind()), "{e}");
        }
        works_or_fails(scene, socket, connected, to, token);
    });
}

#[test]
fn socket_marks_change_nothing() {
    with_sockets("marks", |scene, _, to, token| {
        // The agent's own for its last hop, its table's number, and others.
        for mark in [0x0c75_0001, 0x0c75, 1, -1] {
            let socket = scene.puppet().tcp_socket(to).unwrap();
            socket.set_int(libc::SOL_SOCKET, libc::SO_MARK, mark).unwrap();
            let connected = socket.connect(to);
            connected.as_ref().unwrap();
            works_or_fails(scene, socket, connected, to, token);
        }
    });
}

#[test]
fn a_socket_bound_to_a_device_is_captured() {
    with_sockets("device", |scene, _, to, token| {
        for device in ["eth0", "lo"] {
            let socket = scene.puppet().tcp_socket(to).unwrap();
            socket.set(libc::SOL_SOCKET, libc::SO_BINDTODEVICE, device.as_bytes()).unwrap();
            let connected = socket.connect(to);
            works_or_fails(scene, socket, connected, to, token);
        }
    });
}

#[test]
fn an_mptcp_socket_is_not_to_be_had() {
    let scene = Scene::new("mptcp");
    for domain in [libc::AF_INET, libc::AF_INET6] {
        let made = scene.puppet().raw_socket(domain, libc::SOCK_STREAM, libc::IPPROTO_MPTCP);
        assert_eq!(made.unwrap_err().kind(), "EPROTONOSUPPORT");
    }
}

/// One that was made before the enrolment, or where no hook sees it, gets no further than any other.
#[test]
fn mptcp_sockets_from_elsewhere_do_not_get_out() {
    let scene = Scene::new("mptcp-before");
    let late = scene.mesh.pod(1, "late");
    let domains = scene.targets();
    let made: Vec<(SocketAddr, Result<RawSocket, PuppetError>)> = domains
        .iter()
        .map(|to| {
            let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            let puppet = late.puppet().unwrap();
            (*to, puppet.raw_socket(domain, libc::SOCK_STREAM, libc::IPPROTO_MPTCP))
        })
        .collect();
    scene.mesh.enroll(&late);
    let token = Token::new();
    let watch = scene.watch().and(&late);
    let stray = late.stray_puppet().unwrap();
    for (to, before) in made {
        let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let beyond = stray.raw_socket(domain, libc::SOCK_STREAM, libc::IPPROTO_MPTCP);
        for socket in [before, beyond] {
            let Ok(socket) = socket else { continue };
            socket.patience(Duration::from_secs(2)).unwrap();
            let outcome = socket.connect(to).and_then(|()| socket.send(token.bytes()));
            println!("MPTCP to {to}: {outcome:?}");
        }
    }
    watch.ends_quietly(&[token]);
}

/// A connection of MPTCP that is older than the enrolment goes on by the subflows that it has; what the
/// kernel would add to it is captured as any connection is, and is none of that one's.
#[test]
fn an_earlier_mptcp_connection_gets_no_more_subflows() {
    let scene = Scene::new("mptcp-subflows");
    let (old, peer) = (scene.mesh.pod(1, "old"), scene.mesh.pod(2, "peer"));
    for pod in [&old, &peer] {
        run_in(pod, "ip mptcp limits set subflows 8 add_addr_accepted 8");
    }
    let mptcp = |puppet: &Puppet| {
        puppet.raw_socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap()
    };
    let at = SocketAddr::new(peer.ipv4().into(), 9000);
    let (puppet, at_peer) = (old.puppet().unwrap(), peer.puppet().unwrap());
    let listener = mptcp(&at_peer);
    listener.bind(at).unwrap();
    listener.listen(8).unwrap();
    let there = mptcp(&puppet);
    there.connect(at).unwrap();
    let here = listener.accept().unwrap();
    let carries = || {
        for (from, to) in [(&there, &here), (&here, &there)] {
            from.send(b"over the first subflow").unwrap();
            assert_eq!(to.receive(100).unwrap(), b"over the first subflow");
        }
    };
    carries();
    let more = |pod: &MeshPod, address: &str, how: &str| {
        run_in(pod, &format!("ip addr add {address}/32 dev eth0"));
        run_in(pod, &format!("ip mptcp endpoint add {address} dev eth0 {how}"));
    };
    let joins = |pod: &MeshPod, which: &str| -> u64 {
        let all = run_in(pod, "cat /proc/net/netstat");
        let lines: Vec<&str> = all.lines().filter(|l| l.starts_with("MPTcpExt:")).collect();
        let at = lines[0].split(' ').position(|name| name == which).unwrap();
        lines[1].split(' ').nth(at).unwrap().parse().unwrap()
    };
    // Before the enrolment it gets one: what follows would work.
    more(&old, "10.10.1.201", "subflow");
    eventually(SOON, || {
        anyhow::ensure!(joins(&peer, "MPJoinSynRx") == 1, "no subflow came");
        Ok(())
    })
    .unwrap();
    scene.mesh.enroll(&old);
    scene.mesh.enroll(&peer);
    let watch = scene.watch();
    carries();
    more(&old, "10.10.1.202", "subflow");
    // Those that the other end offers are joined from this one.
    more(&peer, "10.10.2.203", "signal");
    eventually(SOON, || {
        let tried = joins(&old, "MPJoinSynTx") + joins(&old, "MPJoinSynTxConnectErr");
        anyhow::ensure!(tried == 3, "{tried} subflows were tried");
        // What they were connected to instead does not know them.
        let given_up = joins(&old, "MPRstTx");
        anyhow::ensure!(given_up == 2, "{given_up} subflows were given up");
        Ok(())
    })
    .unwrap();
    assert_eq!(joins(&peer, "MPJoinSynRx"), 1);
    carries();
    watch.ends_quietly(&[]);
}

#[test]
fn a_socket_that_connects_again_goes_where_it_asked_last() {
    with_sockets("again", |scene, socket, to, token| {
        let others =
            scene.targets().into_iter().filter(|t| t.is_ipv4() == to.is_ipv4() && *t != to);
        for other in others {
            socket.connect(other).unwrap();
            socket.disconnect().unwrap();
        }
        socket.connect(to).unwrap();
        arrives_as_itself(scene, socket, to, token);
    });
}

/// What a socket was once connected to says nothing of what it accepts.
#[test]
fn a_socket_that_was_connected_and_listens_names_its_clients() {
    let scene = Scene::new("listens");
    for to in scene.targets() {
        let socket = scene.puppet().tcp_socket(to).unwrap();
        let any: IpAddr = if to.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        };
        let port = 7000 + u16::from(to.is_ipv6());
        socket.set_int(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
        socket.bind(SocketAddr::new(any, port)).unwrap();
        socket.connect(to).unwrap();
        socket.disconnect().unwrap();
        socket.listen(1).unwrap();
        let client = connect(&scene.client, &SocketAddr::new(scene.own(to), port).to_string());
        let accepted = socket.accept().unwrap().into_sock().unwrap();
        let names = accepted.names().unwrap();
        assert_eq!(names.peer.ip().to_canonical(), address_of(&scene.client, to), "{names:?}");
        assert_eq!(names.local.ip().to_canonical(), scene.own(to), "{names:?}");
        drop(client);
    }
}

/// TCP_REPAIR makes a socket "connected" without a packet.
#[test]
fn a_socket_that_was_repaired_into_a_connection_reaches_nobody() {
    let scene = Scene::new("repair");
    let token = Token::new();
    let watch = scene.watch();
    let before = scene.counted("dropped_segment");
    let stray = scene.hostile.stray_puppet().unwrap();
    for (n, puppet) in [scene.puppet(), stray].iter().enumerate() {
        for to in scene.targets() {
            for port in [PORT, 15008] {
                let to = SocketAddr::new(to.ip(), port);
                let socket = puppet.tcp_socket(to).unwrap();
                socket.set_int(TCP, TCP_REPAIR, 1).unwrap();
                socket.bind(SocketAddr::new(scene.own(to), 0)).unwrap();
                socket.connect(to).unwrap();
                // struct tcp_repair_window: the peer would take 64 KiB.
                let window = [0u32, 65535, 65535, 65535, 0].map(u32::to_ne_bytes).concat();
                socket.set(TCP, TCP_REPAIR_WINDOW, &window).unwrap();
                // Without the window probe, which the other end would answer with a reset.
                socket.set_int(TCP, TCP_REPAIR, -1).unwrap();
                // Taken by the kernel, and by nobody else.
                let sent = socket.send(token.bytes());
                println!("process {n} to {to}: {sent:?}");
            }
        }
    }
    eventually(SOON, || {
        let dropped = scene.counted("dropped_segment") - before;
        anyhow::ensure!(dropped > 0, "nothing was dropped");
        Ok(())
    })
    .unwrap();
    watch.ends_quietly(&[token]);
    scene.never_heard_of(&scene.hostile);
}

/// What was connected before the enrolment may go on. It may not begin again, and neither may what only looks as if it had
/// been connected.
#[test]
fn an_earlier_connection_is_not_a_licence_for_another() {
    let scene = Scene::new("earlier");
    let late = scene.mesh.pod(1, "late");
    let puppet = late.puppet().unwrap();
    let held: Vec<(RawSocket, SocketAddr, SocketAddr)> = scene
        .targets()
        .into_iter()
        .zip(5000..)
        .map(|(to, port)| {
            let socket = puppet.tcp_socket(to).unwrap();
            let from = SocketAddr::new(address_of(&late, to), port);
            socket.set_int(TCP, TCP_REPAIR, 1).unwrap();
            socket.bind(from).unwrap();
            socket.connect(to).unwrap();
            (socket, from, to)
        })
        .collect();
    scene.mesh.enroll(&late);
    assert_eq!(scene.mesh.agent(1).counter(&late, "earlier_connections"), held.len() as u64);
    let before = scene.mesh.agent(1).counter(&late, "dropped_syn");
    let watch = scene.watch().and(&late);
    for (_, from, to) in &held {
        let segment = forge::tcp(*from, *to, forge::SYN, 1, b"");
        let packet = forge::ip(from.ip(), to.ip(), forge::TCP, &segment);
        let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let raw = puppet.raw_socket(domain, libc::SOCK_RAW, libc::IPPROTO_RAW).unwrap();
        raw.send_to(&packet, 0, &testbed::sockaddr(SocketAddr::new(to.ip(), 0))).unwrap();
    }
    eventually(SOON, || {
        let dropped = scene.mesh.agent(1).counter(&late, "dropped_syn") - before;
        anyhow::ensure!(dropped == held.len() as u64, "{dropped} SYNs were dropped");
        Ok(())
    })
    .unwrap();
    watch.ends_quietly(&[]);
    scene.never_heard_of(&late);
}

/// It has no identity there is to speak of: TCP to link-local IPv6 addresses does not leave.
#[test]
fn tcp_to_a_neighbours_link_local_address_does_not_leave() {
    let scene = Scene::new("link-local");
    let token = Token::new();
    let line = run_in(&scene.near, "ip -6 -o addr show dev eth0 scope link");
    let ip = line.split_whitespace().find_map(|w| w.strip_suffix("/64")).unwrap().parse().unwrap();
    let scope = index_of(&scene.hostile, "eth0");
    let before = scene.counted("dropped_syn");
    let watch = scene.watch();
    let puppets = [scene.puppet(), scene.hostile.stray_puppet().unwrap()];
    for puppet in &puppets {
        for port in [PORT, 15008] {
            let to = SocketAddrV6::new(ip, port, 0, scope).into();
            let socket = puppet.tcp_socket(to).unwrap();
            socket.patience(Duration::from_secs(1)).unwrap();
            let outcome = socket.connect(to).and_then(|()| socket.send(token.bytes()));
            assert!(outcome.is_err(), "{to} took it");
        }
    }
    assert!(scene.counted("dropped_syn") >= before + 4);
    watch.ends_quietly(&[token]);
    scene.never_heard_of(&scene.hostile);
}

/// The hostile pod is a pod like any other when it behaves.
#[test]
fn a_pod_that_behaves_is_served() {
    let scene = Scene::new("behaves");
    let watch = scene.watch();
    for to in scene.targets() {
        attempt(&scene.hostile, &to.to_string()).unwrap();
    }
    serve(&scene.hostile, PORT + 1, Serve::Script);
    let back = SocketAddr::new(scene.hostile.ipv4().into(), PORT + 1).to_string();
    attempt(&scene.far, &back).unwrap();
    watch.ends_quietly(&[]);
}
