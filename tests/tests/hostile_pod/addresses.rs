//! Addresses of other pods, in the hands of the hostile one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use culvert_tests::dialogue::serve;
use culvert_tests::{MeshPod, at};
use testbed::{ConnectOpts, PuppetError, Serve, Token, libc};

use crate::scene::{PORT, Scene, address_of};
use crate::sockets::works_or_fails;

/// Connects from the silent pod's address by every means there is.
fn from_the_silent_pods(scene: &Scene, token: &Token) {
    for to in scene.targets() {
        let forged = SocketAddr::new(address_of(&scene.silent, to), 0);
        let (level, transparent, freebind) = if to.is_ipv4() {
            (libc::SOL_IP, libc::IP_TRANSPARENT, libc::IP_FREEBIND)
        } else {
            (libc::SOL_IPV6, libc::IPV6_TRANSPARENT, libc::IPV6_FREEBIND)
        };
        for option in [Some(transparent), Some(freebind), None] {
            for mark in [0, 0x0c75_0001] {
                let socket = scene.puppet().tcp_socket(to).unwrap();
                socket.patience(Duration::from_secs(1)).unwrap();
                socket.set_int(libc::SOL_SOCKET, libc::SO_MARK, mark).unwrap();
                if let Some(option) = option {
                    socket.set_int(level, option, 1).unwrap();
                }
                let connected = socket.bind(forged).and_then(|()| socket.connect(to));
                works_or_fails(scene, socket, connected, to, token);
            }
        }
    }
}

#[test]
fn a_connection_from_anothers_address_is_the_pods_own_or_none() {
    let scene = Scene::new("transparent");
    let token = Token::new();
    let watch = scene.watch();
    from_the_silent_pods(&scene, &token);
    let (v4, v6) = (scene.silent.ipv4(), scene.silent.ipv6());
    for device in ["lo", "eth0"] {
        scene.run(&format!(
            "ip addr add {v4}/32 dev {device}; ip addr add {v6}/128 dev {device} nodad"
        ));
        from_the_silent_pods(&scene, &token);
        scene.run(&format!("ip addr del {v4}/32 dev {device}; ip addr del {v6}/128 dev {device}"));
    }
    watch.ends_quietly(&[token]);
}

/// The first bytes that come back of an echo that was asked for.
fn answer(from: &MeshPod, to: &str) -> Result<Vec<u8>, PuppetError> {
    let patience = Duration::from_secs(3);
    let opts = ConnectOpts { timeout: patience, ..ConnectOpts::default() };
    let sock = from.puppet().unwrap().connect(to, opts)?.within(patience);
    sock.write(b"echo\nping")?;
    sock.read_exact(4)
}

/// Whoever has an address on the link may get its packets. It does not get its connections.
#[test]
fn a_pod_with_anothers_address_is_not_taken_for_it() {
    let scene = Scene::new("takeover");
    let outside = scene.mesh.pod(1, "outside");
    let victim = &scene.near;
    serve(&scene.hostile, PORT + 1, Serve::Banner("imposter".to_owned()));
    serve(victim, PORT + 1, Serve::Script);
    let watch = scene.watch();
    let (v4, v6) = (victim.ipv4(), victim.ipv6());
    scene.run(&format!("ip addr add {v4}/32 dev eth0; ip addr add {v6}/128 dev eth0 nodad"));
    // Whoever asks for the victim's link address shall get the hostile pod's.
    let stolen = format!(
        "ip neigh replace {v4} lladdr {mac} dev eth0; ip neigh replace {v6} lladdr {mac} dev eth0",
        mac = scene.hostile.mac().map(|b| format!("{b:02x}")).join(":")
    );
    for from in [&scene.silent, &outside] {
        crate::scene::run_in(from, &stolen);
    }
    let before = scene.mesh.agent(1).access_log().len();
    for from in [&scene.silent, &outside] {
        for ip in [IpAddr::from(v4), v6.into()] {
            match answer(from, &at(ip, PORT + 1)) {
                Ok(bytes) => assert_eq!(bytes, b"ping", "{from:?} talked to the wrong pod"),
                Err(e) => println!("{from:?} to {ip}: {e}"),
            }
        }
    }
    // The client's agent has seen who was at the other end, and has said so.
    let log = scene.mesh.agent(1).access_log();
    for line in &log[before..] {
        let other = line.contains("dst.workload=\"hostile\"") && line.contains(&format!("{v4}"));
        assert!(!other, "{line}");
    }
    watch.ends_while_the_silent_pod_speaks(&[]);
}
