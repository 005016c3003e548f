//! Ways past the agent are for the pod that they were given to, from its own address and interface.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use culvert_tests::dialogue::whoami_with;
use culvert_tests::{MeshPod, SOON, at, attempt};
use testbed::forge::{self, ACK, PSH, SYN};
use testbed::{ConnectOpts, eventually, libc};

use crate::listeners::hex_of;
use crate::scene::{PORT, Scene, packets, run_in};

fn direct(scene: &Scene, pod: &MeshPod) -> u64 {
    scene.mesh.agent_of(pod).counter(pod, "direct")
}

fn impostors(scene: &Scene) -> u64 {
    scene.mesh.agent_of(&scene.near).counter(&scene.near, "dropped_impostor")
}

fn warm(scene: &Scene, pod: &MeshPod, to: &str) {
    let before = direct(scene, pod);
    eventually(SOON, || {
        attempt(pod, to)?;
        anyhow::ensure!(direct(scene, pod) > before, "still by the agent");
        Ok(())
    })
    .unwrap();
}

/// Frames with a direct connection's tuple that come from another interface than its client's: while
/// it is being made, and when it is open.
#[test]
fn nobody_on_the_wire_takes_a_direct_connections_place() {
    let scene = Scene::past_the_agent("direct-wire");
    let outside = scene.mesh.pod(1, "outside");
    let (client, near) = (&scene.client, &scene.near);
    let to = SocketAddr::new(near.ipv4().into(), 9100);
    let app = near.puppet().unwrap().tcp_socket(to).unwrap();
    app.bind(to).unwrap();
    app.patience(std::time::Duration::from_secs(10)).unwrap();
    app.listen(4).unwrap();
    warm_raw(&scene, &app, to);
    // Room for few: the last of them waits.
    let sockets: Vec<_> = (0..8)
        .map(|_| {
            let socket = client.puppet().unwrap().tcp_socket(to).unwrap();
            socket.patience(std::time::Duration::from_secs(1)).unwrap();
            let _ = socket.connect(to);
            socket
        })
        .collect();
    let (address, remote) = (hex_of(client.ipv4()), hex_of(near.ipv4()));
    let waiting = eventually(SOON, || {
        let table = run_in(client, "cat /proc/net/tcp");
        let syn_sent = table.lines().find_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (from, to, state) = (words.next()?, words.next()?, words.next()?);
            let port = from.strip_prefix(&format!("{address}:"))?;
            let waits = to == format!("{remote}:{:04X}", 9100) && state == "02";
            waits.then(|| u16::from_str_radix(port, 16).unwrap())
        });
        syn_sent.with_context(|| format!("no direct connect waits in\n{table}"))
    })
    .unwrap();
    let packets = packets(&outside, &outside.puppet().unwrap());
    let before = impostors(&scene);
    let from = SocketAddr::new(client.ipv4().into(), waiting);
    for (flags, payload) in [(SYN, &b""[..]), (SYN, b"fast"), (PSH | ACK, b"evil"), (ACK, b"")] {
        let segment = forge::tcp(from, to, flags, 7, payload);
        let packet = forge::ip(from.ip(), to.ip(), forge::TCP, &segment);
        let frame = forge::frame(outside.mac(), near.mac(), &[], &packet);
        packets.send_to(&frame, 0, &[]).unwrap();
    }
    eventually(SOON, || {
        let dropped = impostors(&scene) - before;
        anyhow::ensure!(dropped >= 4, "{dropped} dropped");
        Ok(())
    })
    .unwrap();
    drop(sockets);
}

/// Connections to the raw listener until one goes past the agent.
fn warm_raw(scene: &Scene, app: &testbed::RawSocket, to: SocketAddr) {
    let before = direct(scene, &scene.client);
    eventually(SOON, || {
        let puppet = scene.client.puppet()?;
        let sock = puppet.connect(to.to_string(), ConnectOpts::default())?;
        let accepted = app.accept()?.into_sock()?;
        sock.write(b"x")?;
        accepted.within(SOON).read_exact(1)?;
        anyhow::ensure!(direct(scene, &scene.client) > before, "still by the agent");
        Ok(())
    })
    .unwrap();
}

/// From an address that is not the pod's own, whatever its capabilities: by the agent, and as the pod.
#[test]
fn a_way_is_for_the_pods_own_address() {
    let scene = Scene::past_the_agent("direct-address");
    let to = at(scene.near.ipv4(), PORT);
    warm(&scene, &scene.hostile, &to);
    let stranger = IpAddr::from(scene.silent.ipv4());
    scene.run(&format!("ip address add {stranger}/32 dev lo"));
    let before = direct(&scene, &scene.hostile);
    let opts = ConnectOpts { bind: Some(SocketAddr::new(stranger, 0)), ..ConnectOpts::default() };
    let seen = whoami_with(&scene.puppet(), &to, opts).unwrap();
    assert_eq!(seen.peer.ip(), IpAddr::from(scene.hostile.ipv4()), "{seen:?}");
    assert_eq!(direct(&scene, &scene.hostile), before);
    // TCP_REPAIR makes a connection without a SYN, which nobody at the other end has heard of.
    let near = SocketAddr::new(scene.near.ipv4().into(), PORT);
    let repair = scene.puppet().tcp_socket(near).unwrap();
    const TCP_REPAIR: libc::c_int = 19;
    repair.set_int(libc::IPPROTO_TCP, TCP_REPAIR, 1).unwrap();
    repair.bind(SocketAddr::new(scene.hostile.ipv4().into(), 0)).unwrap();
    repair.connect(near).unwrap();
    repair.set_int(libc::IPPROTO_TCP, TCP_REPAIR, 0).unwrap();
    repair.patience(std::time::Duration::from_secs(2)).unwrap();
    let _ = repair.send(b"whoami\n");
    assert!(repair.receive(100).map_or(true, |got| got.is_empty()));
    // Nobody else is disturbed by any of it.
    let identities: BTreeSet<String> = scene
        .mesh
        .agent(1)
        .access_log()
        .iter()
        .filter(|l| l.contains("dst.workload=\"near\""))
        .filter_map(|l| l.split("src.identity=").nth(1)?.split(' ').next().map(str::to_owned))
        .collect();
    assert_eq!(identities, BTreeSet::from([format!("{:?}", scene.hostile.identity())]));
}
