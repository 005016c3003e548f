//! The agent's listeners live in the pod's own namespace, where the pod can see them and their ports.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context as _;
use culvert_tests::dialogue::whoami;
use culvert_tests::{MeshPod, SOON, at, attempt};
use testbed::{ConnectOpts, Puppet, RawSocket, eventually, libc};

use crate::scene::{PORT, Scene, run_in};

/// Where the agent listens: loopback, and no process of the pod does.
fn agents_listeners(pod: &MeshPod) -> Vec<SocketAddr> {
    let text = run_in(pod, "cat /proc/net/tcp /proc/net/tcp6");
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace().skip(1);
        let (Some(local), Some(_), Some("0A")) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let (ip, port) = local.split_once(':').unwrap();
        let port = u16::from_str_radix(port, 16).unwrap();
        match ip {
            "0100007F" => found.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)),
            "00000000000000000000000001000000" => {
                found.push(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port));
            }
            _ => {}
        }
    }
    assert_eq!(found.len(), 6, "three listeners of each family are expected in\n{text}");
    found
}

/// What comes back to bytes sent there; a reset is nothing.
fn answer_to(puppet: &Puppet, to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let socket = puppet.tcp_socket(to).unwrap();
    socket.connect(to).unwrap();
    let sock = socket.into_sock().unwrap().within(SOON);
    let _ = sock.write(bytes);
    let mut answer = Vec::new();
    loop {
        match sock.read_some(65536) {
            Ok(data) if data.is_empty() => return answer,
            Ok(data) => answer.extend(data),
            Err(e) if e.kind() == "ECONNRESET" => return answer,
            Err(e) => panic!("{to} keeps the connection: {e}"),
        }
    }
}

#[test]
fn a_direct_connection_to_the_agents_listeners_is_not_served() {
    let scene = Scene::new("direct");
    let watch = scene.watch();
    let stray = scene.hostile.stray_puppet().unwrap();
    for to in agents_listeners(&scene.hostile) {
        for puppet in [&scene.puppet(), &stray] {
            let answer = answer_to(puppet, to, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nhello?");
            assert!(answer.is_empty(), "{to} answered {answer:02x?}");
        }
    }
    watch.ends_quietly(&[]);
    scene.never_heard_of(&scene.hostile);
    attempt(&scene.hostile, &scene.targets()[0].to_string()).unwrap();
}

#[test]
fn nobody_joins_or_shadows_the_agents_listeners() {
    let scene = Scene::new("join");
    let watch = scene.watch();
    let puppet = scene.puppet();
    let mut held = Vec::new();
    for at in agents_listeners(&scene.hostile) {
        let any: IpAddr =
            if at.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let own = scene.own(at);
        let other: IpAddr = if at.is_ipv4() { Ipv4Addr::new(127, 0, 0, 2).into() } else { own };
        for (ip, joins) in [(at.ip(), true), (any, true), (own, false), (other, false)] {
            let socket = puppet.tcp_socket(at).unwrap();
            for option in [libc::SO_REUSEADDR, libc::SO_REUSEPORT] {
                socket.set_int(libc::SOL_SOCKET, option, 1).unwrap();
            }
            let bound =
                socket.bind(SocketAddr::new(ip, at.port())).and_then(|()| socket.listen(10));
            assert!(!joins || bound.is_err(), "{ip} joined {at}");
            if bound.is_ok() {
                held.push(socket);
            }
        }
    }
    assert!(!held.is_empty());
    for to in scene.targets() {
        attempt(&scene.hostile, &to.to_string()).unwrap();
    }
    for ip in [IpAddr::from(scene.hostile.ipv4()), scene.hostile.ipv6().into()] {
        attempt(&scene.far, &at(ip, PORT)).unwrap();
    }
    nobody_came(&held);
    watch.ends_quietly(&[]);
}

fn nobody_came(held: &[RawSocket]) {
    for socket in held {
        socket.patience(std::time::Duration::from_millis(1)).unwrap();
        let e = socket.accept().unwrap_err();
        assert_eq!(e.kind(), "EAGAIN", "{e}");
    }
}

/// Listens on the mesh's customary ports on every address that a pod has.
fn squat(pod: &MeshPod) -> Vec<RawSocket> {
    let puppet = pod.puppet().unwrap();
    let mut held = Vec::new();
    for port in [15001, 15006, 15008] {
        let ips: [IpAddr; 5] = [
            pod.ipv4().into(),
            Ipv4Addr::LOCALHOST.into(),
            pod.ipv6().into(),
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv6Addr::UNSPECIFIED.into(),
        ];
        for ip in ips {
            let socket = puppet.tcp_socket((ip, port).into()).unwrap();
            for option in [libc::SO_REUSEADDR, libc::SO_REUSEPORT] {
                socket.set_int(libc::SOL_SOCKET, option, 1).unwrap();
            }
            socket.bind((ip, port).into()).unwrap();
            socket.listen(10).unwrap();
            held.push(socket);
        }
    }
    held
}

#[test]
fn squatters_on_the_meshs_ports_get_no_connection() {
    let scene = Scene::new("squat");
    let before = scene.mesh.pod(1, "before");
    culvert_tests::dialogue::serve(&before, PORT, testbed::Serve::Script);
    let mut held = squat(&before);
    scene.mesh.enroll(&before);
    held.extend(squat(&scene.hostile));
    let watch = scene.watch();
    for pod in [&before, &scene.hostile] {
        for ip in [IpAddr::from(pod.ipv4()), pod.ipv6().into()] {
            for from in [&scene.far, &scene.near] {
                let seen = whoami(from, &at(ip, PORT)).unwrap();
                assert!([IpAddr::from(from.ipv4()), from.ipv6().into()].contains(&seen.peer.ip()));
            }
            // Over HBONE these ports are not for applications.
            for port in [15001, 15006, 15008] {
                assert!(attempt(&scene.far, &at(ip, port)).is_err(), "{ip} {port}");
            }
        }
        for to in scene.targets() {
            attempt(pod, &to.to_string()).unwrap();
        }
    }
    nobody_came(&held);
    watch.ends_quietly(&[]);
}

/// While the agent is away its listeners are, too. Whoever takes their ports gets none of their connections.
#[test]
fn ports_of_a_dead_agent_are_worth_nothing() {
    let scene = Scene::new("dead-ports");
    let ports = agents_listeners(&scene.hostile);
    scene.mesh.agent(1).kill();
    let puppet = scene.puppet();
    let held: Vec<RawSocket> = ports
        .iter()
        .map(|at| {
            let socket = puppet.tcp_socket(*at).unwrap();
            socket.bind(*at).unwrap();
            socket.listen(10).unwrap();
            socket
        })
        .collect();
    for to in scene.targets() {
        assert!(attempt(&scene.hostile, &to.to_string()).is_err());
    }
    assert!(attempt(&scene.far, &at(scene.hostile.ipv4(), PORT)).is_err());
    nobody_came(&held);
    scene.mesh.agent(1).restart();
    for to in scene.targets() {
        attempt(&scene.hostile, &to.to_string()).unwrap();
    }
    attempt(&scene.far, &at(scene.hostile.ipv4(), PORT)).unwrap();
    nobody_came(&held);
}

/// The agent's connections to an application are let through to it by their tuple. Nobody else gets there by the same one:
/// a SYN from the wire goes to the agent, however well its port was guessed.
#[test]
fn the_last_hops_tuple_lets_in_nobody_from_the_wire() {
    let scene = Scene::new("last-hop");
    let outside = scene.mesh.pod(1, "outside");
    let (near, puppet) = (&scene.near, outside.puppet().unwrap());
    let to = SocketAddr::new(near.ipv4().into(), 9000);
    let app = near.puppet().unwrap().tcp_socket(to).unwrap();
    app.bind(to).unwrap();
    app.patience(std::time::Duration::from_secs(10)).unwrap();
    // Room for one: the last hop of a second has to wait.
    app.listen(0).unwrap();
    let connections = ["one", "two"].map(|word| {
        let sock = puppet.connect(to.to_string(), ConnectOpts::default()).unwrap();
        sock.write(word.as_bytes()).unwrap();
        sock
    });
    let (address, remote) = (hex_of(outside.ipv4()), hex_of(near.ipv4()));
    let port = eventually(SOON, || {
        let table = run_in(near, "cat /proc/net/tcp");
        let syn_sent = table.lines().find_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (from, to, state) = (words.next()?, words.next()?, words.next()?);
            let port = from.strip_prefix(&format!("{address}:"))?;
            let waits = to == format!("{remote}:{:04X}", 9000) && state == "02";
            waits.then(|| u16::from_str_radix(port, 16).unwrap())
        });
        syn_sent.with_context(|| format!("no last hop waits in\n{table}"))
    })
    .unwrap();
    // The guess is right, and comes before the last hop's SYN is sent again.
    let guess = puppet.tcp_socket(to).unwrap();
    guess.set_int(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
    guess.bind(SocketAddr::new(outside.ipv4().into(), port)).unwrap();
    guess.patience(std::time::Duration::from_secs(1)).unwrap();
    let mut seen = Vec::new();
    for n in 0..3 {
        // Those that found no room try again, and some give up.
        let Ok(accepted) = app.accept() else { break };
        let accepted = accepted.into_sock().unwrap().within(SOON);
        if n == 0 {
            assert!(guess.connect(to).is_err());
        }
        seen.push((accepted.names().unwrap().peer.port(), accepted.read_exact(3).unwrap()));
    }
    println!("the last hop that waited had port {port}: {seen:?}");
    // Whichever of the two had to wait: it is itself, and nobody came in its stead.
    let of_that_port = seen.iter().find(|(p, _)| *p == port).unwrap();
    assert!([&b"one"[..], b"two"].contains(&&*of_that_port.1), "{seen:?}");
    let words: BTreeSet<&[u8]> = seen.iter().map(|(_, word)| &**word).collect();
    assert_eq!(words.len(), seen.len(), "{seen:?}");
    drop(connections);
}

/// An address as /proc/net/tcp has it.
pub(crate) fn hex_of(ip: Ipv4Addr) -> String {
    format!("{:08X}", u32::from_ne_bytes(ip.octets()))
}
