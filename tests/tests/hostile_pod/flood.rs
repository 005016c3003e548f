//! Many connections that lead nowhere. The neighbours go on; what the agent holds for them is given back.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use culvert_tests::dialogue::{connect, serve};
use culvert_tests::{Agent, Mesh, MeshPod, SOON, at, attempt};
use testbed::{ConnectOpts, Serve, Sock, eventually, forge, libc, sockaddr};

use crate::scene::{PORT, Scene};

const MANY: usize = 5000;

/// What an agent holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    descriptors: usize,
    resident_kib: u64,
}

impl Held {
    fn by(agent: &Agent) -> Self {
        Self { descriptors: agent.descriptors(), resident_kib: agent.resident_kib() }
    }
}

/// Waits until the agent has closed what it had opened since `before`.
fn given_back(agent: &Agent, before: Held, deadline: Duration) {
    eventually(deadline, || {
        let now = Held::by(agent);
        // A few for what the bystanders are doing.
        anyhow::ensure!(now.descriptors < before.descriptors + 50, "{now:?}, before {before:?}");
        Ok(())
    })
    .unwrap();
}

/// As many connections, by several threads; those that fail are left out.
fn open_many(from: &MeshPod, to: &str) -> Vec<Sock> {
    let puppet = from.puppet().unwrap();
    let opts = ConnectOpts { timeout: Duration::from_secs(20), ..ConnectOpts::default() };
    std::thread::scope(|scope| {
        let part = || {
            let one = |_| puppet.connect(to, opts.clone()).ok();
            (0..MANY / 8).filter_map(one).collect::<Vec<_>>()
        };
        let parts: Vec<_> = (0..8).map(|_| scope.spawn(part)).collect();
        parts.into_iter().flat_map(|p| p.join().unwrap()).collect()
    })
}

#[test]
fn half_open_connections_disturb_nobody() {
    let scene = Scene::new("half-open");
    let flooder = scene.mesh.pod(1, "flooder");
    let agent = scene.mesh.agent(1);
    let watch = scene.watch();
    let before = Held::by(agent);
    // From addresses that nobody has, so that nobody takes them back by a reset: first from outside the mesh, past no
    // guard, then from within it.
    let raw = |pod: &MeshPod| {
        pod.puppet().unwrap().raw_socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW).unwrap()
    };
    let target = IpAddr::from(scene.near.ipv4());
    for socket in [raw(&flooder), raw(&scene.hostile)] {
        for n in 0..MANY {
            let from = SocketAddr::new(Ipv4Addr::new(10, 10, 1, 200).into(), 10_000 + n as u16);
            for port in [15008, PORT] {
                let to = SocketAddr::new(target, port);
                let segment = forge::tcp(from, to, forge::SYN, n as u32, b"");
                let packet = forge::ip(from.ip(), target, forge::TCP, &segment);
                socket.send_to(&packet, 0, &sockaddr(SocketAddr::new(target, 0))).unwrap();
            }
        }
    }
    assert!(scene.counted("dropped_syn") >= 2 * MANY as u64);
    // Those within the pod, to where its own connects are sent.
    let own = raw(&scene.hostile);
    for n in 0..MANY {
        let to = SocketAddr::new(Ipv4Addr::new(127, 200, 1, 1).into(), 1 + n as u16);
        let from = SocketAddr::new(scene.hostile.ipv4().into(), 10_000 + n as u16);
        let segment = forge::tcp(from, to, forge::SYN, 1, b"");
        let packet = forge::ip(from.ip(), to.ip(), forge::TCP, &segment);
        own.send_to(&packet, 0, &sockaddr(SocketAddr::new(to.ip(), 0))).unwrap();
    }
    println!("half-open: {before:?}, then {:?}", Held::by(agent));
    // The pod that was flooded is well, too.
    attempt(&scene.far, &at(scene.near.ipv4(), PORT)).unwrap();
    attempt(&flooder, &at(scene.near.ipv4(), PORT)).unwrap();
    attempt(&scene.hostile, &at(scene.near.ipv4(), PORT)).unwrap();
    given_back(agent, before, SOON);
    watch.ends_quietly(&[]);
}

#[test]
fn connections_that_never_speak_tls_disturb_nobody() {
    let scene = Scene::new("no-tls");
    let flooder = scene.mesh.pod(2, "flooder");
    let agent = scene.mesh.agent(1);
    let watch = scene.watch();
    let before = Held::by(agent);
    let open = open_many(&flooder, &at(scene.near.ipv4(), 15008));
    let most = Held::by(agent);
    println!("{} connections without TLS: {before:?}, then {most:?}", open.len());
    assert!(most.resident_kib < before.resident_kib + 256 * 1024, "{before:?} {most:?}");
    attempt(&scene.far, &at(scene.near.ipv4(), PORT)).unwrap();
    attempt(&scene.near, &at(scene.far.ipv4(), PORT)).unwrap();
    // They are closed by the agent, not by the flooder, who still holds them.
    given_back(agent, before, SOON);
    watch.ends_quietly(&[]);
    drop(open);
}

#[test]
fn idle_connections_of_one_pod_disturb_nobody() {
    let mesh = Mesh::builder("idle").agent_args(&["--pool-idle-seconds", "1"]).build();
    let scene = Scene::on(mesh);
    let watch = scene.watch();
    let before = [1, 2].map(|n| Held::by(scene.mesh.agent(n)));
    let open = open_many(&scene.hostile, &at(scene.far.ipv4(), PORT));
    assert!(open.len() >= MANY * 9 / 10, "{} are open", open.len());
    let most = [1, 2].map(|n| Held::by(scene.mesh.agent(n)));
    println!("{} idle connections: {before:?}, then {most:?}", open.len());
    for (before, most) in before.iter().zip(most) {
        assert!(most.resident_kib < before.resident_kib + 512 * 1024, "{before:?} {most:?}");
    }
    // The server that they lead to has others, and the pod that makes them is well.
    attempt(&scene.near, &at(scene.far.ipv4(), PORT)).unwrap();
    attempt(&scene.hostile, &at(scene.near.ipv4(), PORT)).unwrap();
    drop(open);
    for (n, before) in [1, 2].into_iter().zip(before) {
        given_back(scene.mesh.agent(n), before, SOON);
    }
    watch.ends_quietly(&[]);
}

/// Each keeps the agent waiting for an answer.
#[test]
fn connections_to_nowhere_disturb_nobody() {
    let scene = Scene::new("nowhere");
    let agent = scene.mesh.agent(1);
    let watch = scene.watch();
    let before = Held::by(agent);
    let open = open_many(&scene.hostile, &at(Ipv4Addr::new(10, 10, 2, 250), PORT));
    println!("{} connections to nowhere: {before:?}, then {:?}", open.len(), Held::by(agent));
    attempt(&scene.hostile, &at(scene.near.ipv4(), PORT)).unwrap();
    // Given up one by one, with a reset for the application.
    given_back(agent, before, SOON);
    watch.ends_quietly(&[]);
    drop(open);
}

/// A server that takes connections and does nothing with them: neither reads, nor closes when its client has.
#[test]
fn connections_whose_clients_are_gone_are_given_back() {
    let mesh = Mesh::builder("stalled").agent_args(&["--pool-idle-seconds", "1"]).build();
    let scene = Scene::on(mesh);
    let watch = scene.watch();
    serve(&scene.hostile, PORT + 1, Serve::Manual);
    // So long the client's kernel waits for the end of a connection that was closed.
    scene.far.sysctl("net.ipv4.tcp_fin_timeout", "1").unwrap();
    let before = [1, 2].map(|n| Held::by(scene.mesh.agent(n)));
    let to = at(scene.hostile.ipv4(), PORT + 1);
    let open: Vec<Sock> = (0..1000).map(|_| connect(&scene.far, &to)).collect();
    let most = [1, 2].map(|n| Held::by(scene.mesh.agent(n)));
    println!("{} connections that nobody accepts: {before:?}, then {most:?}", open.len());
    attempt(&scene.far, &at(scene.near.ipv4(), PORT)).unwrap();
    drop(open);
    for (n, before) in [1, 2].into_iter().zip(before) {
        given_back(scene.mesh.agent(n), before, 3 * SOON);
    }
    watch.ends_quietly(&[]);
}
