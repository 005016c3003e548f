//! The hostile pod among others, and those that watch it.

use std::net::{IpAddr, SocketAddr};

use culvert_tests::dialogue::serve;
pub(crate) use culvert_tests::run_in;
use culvert_tests::{Mesh, MeshPod, Traffic, at};
use testbed::{Capture, Puppet, RawSocket, Serve, Token, libc};

pub(crate) const PORT: u16 = 8080;

/// All of these are enrolled.
pub(crate) struct Scene {
    encrypted: bool,
    pub(crate) mesh: Mesh,
    /// On the first node.
    pub(crate) hostile: MeshPod,
    /// A server on the same node.
    pub(crate) near: MeshPod,
    /// A server on the other node.
    pub(crate) far: MeshPod,
    /// On the first node: it makes no connections, so whatever is said to come from it is forged.
    pub(crate) silent: MeshPod,
    /// Bystanders: a client on the first node, whose server is on the other.
    pub(crate) client: MeshPod,
    pub(crate) server: MeshPod,
}

impl Scene {
    /// Within a node, too, everything is encrypted, so that whatever goes another way is seen.
    pub(crate) fn new(name: &str) -> Self {
        Self::on(Mesh::builder(name).agent_args(&["--same-node", "hbone"]).build())
    }

    /// Pods of one node talk past the agent; what leaves the node is watched.
    pub(crate) fn past_the_agent(name: &str) -> Self {
        Self { encrypted: false, ..Self::on(Mesh::new(name)) }
    }

    pub(crate) fn on(mesh: Mesh) -> Self {
        let pod = |node, name: &str| mesh.pod(node, name);
        let (hostile, near, far) = (pod(1, "hostile"), pod(1, "near"), pod(2, "far"));
        let (silent, client, server) = (pod(1, "silent"), pod(1, "client"), pod(2, "server"));
        for pod in [&hostile, &near, &far, &server] {
            serve(pod, PORT, Serve::Script);
        }
        let scene = Self { encrypted: true, mesh, hostile, near, far, silent, client, server };
        scene.mesh.enroll_all(&scene.pods().map(Clone::clone));
        scene
    }

    pub(crate) fn pods(&self) -> [&MeshPod; 6] {
        [&self.hostile, &self.near, &self.far, &self.silent, &self.client, &self.server]
    }

    pub(crate) fn puppet(&self) -> Puppet {
        self.hostile.puppet().unwrap()
    }

    /// The servers that the hostile pod is after, on its own node and on the other, by both families.
    pub(crate) fn targets(&self) -> Vec<SocketAddr> {
        let pods = [&self.near, &self.far];
        let ips = pods.iter().flat_map(|p| [IpAddr::from(p.ipv4()), p.ipv6().into()]);
        ips.map(|ip| SocketAddr::new(ip, PORT)).collect()
    }

    /// The hostile pod's address of that family.
    pub(crate) fn own(&self, like: SocketAddr) -> IpAddr {
        address_of(&self.hostile, like)
    }

    /// Runs a command in the hostile pod, and wants it to succeed.
    pub(crate) fn run(&self, line: &str) -> String {
        run_in(&self.hostile, line)
    }

    /// Everyone watches from here on.
    pub(crate) fn watch(&self) -> Watch<'_> {
        let mut captures = vec![self.mesh.agent(1).node.capture_link("link").unwrap()];
        if self.encrypted {
            captures.push(self.near.capture_host_end("near").unwrap());
        }
        let token = Token::new();
        let bystanders = [at(self.server.ipv4(), PORT), at(self.server.ipv6(), PORT)]
            .map(|to| Traffic::start(&self.client, &to, token));
        Watch { scene: self, also: Vec::new(), captures, bystanders, token }
    }

    /// No agent has logged a connection from or to this pod.
    pub(crate) fn never_heard_of(&self, pod: &MeshPod) {
        for agent in self.mesh.agents() {
            for line in agent.access_log() {
                assert!(!line.contains(&pod.identity()), "{pod:?} appears in {line}");
                assert!(!line.contains(&format!("{}:", pod.ipv4())), "{pod:?} appears in {line}");
                assert!(!line.contains(&format!("[{}]:", pod.ipv6())), "{pod:?} appears in {line}");
            }
        }
    }

    /// What the kernel has counted of the hostile pod, by name.
    pub(crate) fn counted(&self, name: &str) -> u64 {
        self.mesh.agent(1).counter(&self.hostile, name)
    }
}

pub(crate) fn address_of(pod: &MeshPod, like: SocketAddr) -> IpAddr {
    if like.is_ipv4() { pod.ipv4().into() } else { pod.ipv6().into() }
}

/// The number of an interface in a pod.
pub(crate) fn index_of(pod: &MeshPod, name: &str) -> u32 {
    let line = run_in(pod, &format!("ip -o link show dev {name}"));
    line.split(':').next().unwrap().parse().unwrap()
}

/// A packet socket on the pod's eth0, for whatever protocol its frames say.
pub(crate) fn packets(pod: &MeshPod, puppet: &Puppet) -> RawSocket {
    let socket = puppet.raw_socket(libc::AF_PACKET, libc::SOCK_RAW, 0).unwrap();
    // struct sockaddr_ll
    let mut address = (libc::AF_PACKET as u16).to_ne_bytes().to_vec();
    address.extend((libc::ETH_P_ALL as u16).to_be_bytes());
    address.extend(index_of(pod, "eth0").to_ne_bytes());
    address.extend([0; 12]);
    socket.bind_to(&address).unwrap();
    socket
}

/// The leak checker on the wires, a pair of bystanders under traffic, and the logs.
pub(crate) struct Watch<'a> {
    scene: &'a Scene,
    also: Vec<&'a MeshPod>,
    captures: Vec<Capture>,
    bystanders: [Traffic; 2],
    token: Token,
}

impl<'a> Watch<'a> {
    /// Another enrolled pod, whose packets are judged as those of the scene.
    pub(crate) fn and(mut self, pod: &'a MeshPod) -> Self {
        self.also.push(pod);
        self
    }

    /// Nothing leaked, nobody was taken for the silent pod, and the bystanders have not noticed anything.
    pub(crate) fn ends_quietly(self, tokens: &[Token]) {
        let scene = self.scene;
        self.ends_while_the_silent_pod_speaks(tokens);
        let silent = &scene.silent;
        let marks = [
            format!("src.identity=\"{}\"", silent.identity()),
            format!("{}:", silent.ipv4()),
            format!("[{}]:", silent.ipv6()),
        ];
        for agent in scene.mesh.agents() {
            for line in agent.access_log() {
                let forged = marks.iter().any(|m| line.contains(m.as_str()));
                assert!(!forged, "the silent pod appears in {line}");
            }
        }
    }

    /// The same without a look at the log for the silent pod.
    pub(crate) fn ends_while_the_silent_pod_speaks(self, tokens: &[Token]) {
        let scene = self.scene;
        for traffic in self.bystanders {
            traffic.succeeds(20);
            let why = traffic.last_failure(scene.mesh.agents());
            let tally = traffic.stop();
            assert_eq!(tally.failed, 0, "the bystanders were disturbed: {tally:?}: {why}");
        }
        let tokens = [tokens, &[self.token]].concat();
        let pods = [scene.pods().as_slice(), &self.also].concat();
        for capture in self.captures {
            let report = capture.stop().unwrap();
            let verdict = scene.mesh.leak_check(&tokens, &pods).check(&report).unwrap();
            assert!(verdict.is_clean(), "{verdict}");
            assert!(verdict.packets > 0, "nothing was recorded");
        }
        for agent in scene.mesh.agents() {
            assert!(!agent.log().contains("panicked"), "{}", agent.log());
        }
    }
}
