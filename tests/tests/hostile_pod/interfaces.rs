//! Interfaces and namespaces of the hostile pod's own making.

use std::net::SocketAddr;

use culvert_tests::{MeshPod, SOON, at, attempt};
use testbed::{Proc, Token, eventually};

use crate::scene::{PORT, Scene, index_of};

/// A process in a network namespace of its own, made within the hostile pod.
struct Inner {
    proc: Proc,
    pid: i32,
}

impl Inner {
    fn new(scene: &Scene) -> Self {
        let mut cmd = std::process::Command::new("unshare");
        cmd.args(["-n", "sleep", "1000"]);
        let proc = scene.hostile.spawn(cmd).unwrap();
        let pid = proc.pid();
        let outer = std::fs::read_link(format!("/proc/{}/ns/net", scene.hostile.pid())).unwrap();
        eventually(SOON, || {
            let now = std::fs::read_link(format!("/proc/{pid}/ns/net"))?;
            anyhow::ensure!(now != outer, "it has not left yet");
            Ok(())
        })
        .unwrap();
        Self { proc, pid }
    }

    fn run(&self, scene: &Scene, line: &str) -> String {
        scene.run(&format!("nsenter -t {} -n sh -c '{line}'", self.pid))
    }

    /// What `line` prints, whether it succeeds or not.
    fn attempt(&self, scene: &Scene, line: &str) -> String {
        self.run(scene, &format!("({line}) 2>&1 || true"))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.proc.kill();
    }
}

/// The pod's addresses and routes on an interface.
fn addresses(scene: &Scene, device: &str) -> String {
    let (pod, node) = (&scene.hostile, &scene.mesh.agent(1).node);
    format!(
        "ip link set lo up; ip link set {device} up; \
         ip addr add {}/24 dev {device}; ip addr add {}/64 dev {device} nodad; \
         ip route replace default via {}; ip -6 route replace default via {}",
        pod.ipv4(),
        pod.ipv6(),
        node.gateway4(),
        node.gateway6()
    )
}

/// Connects from within, and sends the token should that succeed.
fn reaches(inner: &Inner, scene: &Scene, to: SocketAddr, token: &Token) -> bool {
    let line = format!(
        "timeout 2 bash -c \"exec 3<>/dev/tcp/{}/{} && echo {token} >&3 && echo connected\"",
        to.ip(),
        to.port()
    );
    inner.attempt(scene, &line).contains("connected")
}

/// Nothing gets out of an interface that was made of, or on, the pod's own.
fn nothing_leaves(name: &str, device: &str, make: impl FnOnce(&Scene, &Inner)) {
    let scene = Scene::new(name);
    let inner = Inner::new(&scene);
    let token = Token::new();
    make(&scene, &inner);
    inner.run(&scene, &addresses(&scene, device));
    let before = scene.counted("dropped_syn");
    let watch = scene.watch();
    for to in scene.targets() {
        assert!(!reaches(&inner, &scene, to, &token), "{to} was reached");
    }
    assert!(scene.counted("dropped_syn") > before, "no SYN came to the guard");
    watch.ends_quietly(&[token]);
    scene.never_heard_of(&scene.hostile);
}

#[test]
fn eth0_in_another_namespace_lets_nothing_out() {
    nothing_leaves("moved", "eth0", |scene, inner| {
        scene.run(&format!("ip link set eth0 netns {}", inner.pid));
    });
}

#[test]
fn a_device_on_top_of_eth0_lets_nothing_out() {
    let mut tried = 0;
    for (n, kind) in
        ["macvlan mode bridge", "macvlan mode private", "ipvlan mode l2"].iter().enumerate()
    {
        let make = format!("ip link add top link eth0 type {kind}");
        nothing_leaves(&format!("top-{n}"), "top", |scene, inner| {
            // Not every kernel has every kind; without it eth0 itself goes.
            let made = scene.run(&format!("ip addr flush dev eth0; {make} 2>&1 || true"));
            let device = if made.contains("Unknown device type") { "eth0" } else { "top" };
            tried += usize::from(device == "top");
            scene.run(&format!("ip link set {device} netns {}", inner.pid));
            inner.attempt(scene, "ip link set eth0 name top");
        });
    }
    assert!(tried > 0, "this kernel has neither macvlan nor ipvlan");
}

/// A namespace behind the pod, routed with and without address translation.
#[test]
fn what_the_pod_forwards_does_not_leave() {
    let scene = Scene::new("forward");
    let inner = Inner::new(&scene);
    let token = Token::new();
    scene.run(&format!(
        "ip link add v0 type veth peer name v1 netns {} && ip link set v0 up && ip addr add 192.168.7.1/24 dev v0 && \
         echo 1 > /proc/sys/net/ipv4/ip_forward",
        inner.pid
    ));
    inner.run(
        &scene,
        "ip link set lo up; ip link set v1 up; ip addr add 192.168.7.2/24 dev v1; ip route add default via 192.168.7.1",
    );
    let targets = || scene.targets().into_iter().filter(SocketAddr::is_ipv4);
    let watch = scene.watch();
    let before = scene.counted("dropped_syn");
    for to in targets() {
        assert!(!reaches(&inner, &scene, to, &token), "{to} was reached");
    }
    scene.run("nft 'add table ip n; add chain ip n p { type nat hook postrouting priority 100; }; add rule ip n p masquerade'");
    for to in targets() {
        assert!(!reaches(&inner, &scene, to, &token), "{to} was reached behind NAT");
    }
    assert!(scene.counted("dropped_syn") > before, "no SYN came to the guard");
    watch.ends_quietly(&[token]);
    scene.never_heard_of(&scene.hostile);
}

/// The agent finds the host end of a pod's interface by what the kernel says within the pod, where the pod's root may make
/// interfaces of any number.
#[test]
fn the_guard_goes_on_the_pods_own_interface_and_on_no_other() {
    let scene = Scene::new("decoy");
    let victim: &MeshPod = &scene.near;
    let inner = Inner::new(&scene);
    let (wanted, peer) = (index_of(victim, "eth0"), victim.host_ifindex());
    // eth0 goes away and comes back, so that its number becomes free.
    scene.run(&format!("ip link set eth0 netns {}", inner.pid));
    scene.run(&format!(
        "ip link add decoy index {wanted} type veth peer name other index {peer} netns {pid} && \
         ip link set decoy up",
        pid = inner.pid
    ));
    inner.run(&scene, &format!("ip link set eth0 netns {}", scene.hostile.pid()));
    scene.run(&addresses(&scene, "eth0"));
    assert_ne!(index_of(&scene.hostile, "eth0"), wanted);
    let agent = scene.mesh.agent(1);
    agent.kill();
    agent.restart();
    let watch = scene.watch();
    // Whether it is taken up again or not, the guard of one pod says nothing of another's traffic.
    attempt(victim, &at(scene.far.ipv4(), PORT)).unwrap();
    attempt(&scene.far, &at(victim.ipv4(), PORT)).unwrap();
    watch.ends_quietly(&[]);
}

/// Where there is nothing to put the guard on, nothing is captured: it would be a promise that nobody keeps.
#[test]
fn a_pod_with_an_interface_that_cannot_be_guarded_is_not_enrolled() {
    let mesh = culvert_tests::Mesh::new("unguarded");
    let pod = mesh.pod(1, "odd");
    culvert_tests::run_in(&pod, "ip link add net1 type bridge");
    culvert_tests::run_in(&pod, "ip link set net1 up");
    let refused = format!("{:#}", mesh.try_capture(&pod).unwrap_err());
    assert!(refused.contains("the pod's interface net1 is bridge"), "{refused}");
    assert!(refused.contains("give the pod a veth"), "{refused}");
    culvert_tests::run_in(&pod, "ip link del net1");
    mesh.enroll(&pod);
}
