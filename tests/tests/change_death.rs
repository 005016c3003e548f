//! An agent that dies in the middle of a hand-shake, at either end, or of a change of policy.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use anyhow::ensure;
use culvert_tests::dialogue::{echo, echo_to, serve};
use culvert_tests::{Mesh, MeshPod, SOON, Traffic, at, attempt, denied};
use testbed::{Capture, Serve, Token, eventually};

const PORT: u16 = 8080;

/// A server on `n2`, and two clients on `n1`: one that a policy is to shut out, and one that goes on, which
/// never rests once it has begun.
struct Scene {
    shut_out: MeshPod,
    goes_on: MeshPod,
    server: MeshPod,
    to: String,
    token: Token,
    link: Capture,
    mesh: Mesh,
}

impl Scene {
    fn new(point: &str) -> Self {
        let mesh = Mesh::new(point);
        let (shut_out, goes_on) =
            (mesh.enrolled_pod(1, "shut-out"), mesh.enrolled_pod(1, "goes-on"));
        let server = mesh.enrolled_pod(2, "server");
        serve(&server, PORT, Serve::Script);
        let to = at(server.ipv4(), PORT);
        attempt(&shut_out, &to).unwrap();
        let link = mesh.agent(1).node.capture_link("link").unwrap();
        Self { shut_out, goes_on, server, to, token: Token::new(), link, mesh }
    }

    fn traffic(&self) -> Traffic {
        Traffic::start(&self.goes_on, &self.to, self.token)
    }

    /// Without waiting: an agent is away, or about to die.
    fn write_policy(&self) {
        let of = self.shut_out.principal();
        let spec = format!(
            "{{ selector: {{ matchLabels: {{ app: server }} }}, action: DENY, \
             rules: [{{ from: [{{ source: {{ principals: ['{of}'] }} }}] }}] }}"
        );
        self.mesh.write_policy("default", "shut", &spec);
    }

    /// The agent of this node has died, and the policy has been written: what comes after.
    fn recovers(self, died: usize, traffic: Traffic) {
        let agent = self.mesh.agent(died);
        // While it is away, for good measure by the other family, too.
        traffic.fails(2);
        attempt(&self.shut_out, &at(self.server.ipv6(), PORT)).unwrap_err();
        agent.restart();
        self.mesh.policy_known("default/shut");
        self.mesh.policy_bound("default/shut", &self.server);
        denied(&self.shut_out, &self.to);
        denied(&self.shut_out, &at(self.server.ipv6(), PORT));
        traffic.succeeds(20);
        traffic.stop();
        let pods = [&self.shut_out, &self.goes_on, &self.server];
        let verdict = self.mesh.leak_check(&[self.token], &pods);
        let verdict = verdict.check(&self.link.stop().unwrap()).unwrap();
        assert!(verdict.is_clean() && verdict.hbone_bytes > 0, "{verdict}");

        for agent in self.mesh.agents() {
            eventually(SOON, || {
                let open = agent.connections();
                ensure!(open.is_empty(), "still open: {open:?}");
                Ok(())
            })
            .unwrap();
        }
        for pod in pods {
            self.mesh.unenroll(pod);
        }
        for agent in self.mesh.agents() {
            assert!(agent.saved_pods().is_empty() && agent.pinned_for_pods().is_empty());
        }
        for pod in pods {
            eventually(SOON, || {
                let open = pod.netstat("Tcp.CurrEstab")?;
                ensure!(open == 0, "{open} connections are open in {pod:?}");
                Ok(())
            })
            .unwrap();
        }
        attempt(&self.shut_out, &self.to).unwrap();
    }
}

/// The agent of this node does not survive its first hand-shake; the policy comes while it is away.
fn dies_in_a_handshake(point: &str, node: usize) {
    let scene = Scene::new(point);
    let agent = scene.mesh.agent(node);
    agent.kill();
    agent.restart_to_die_at(point);
    let traffic = scene.traffic();
    agent.wait_until_killed();
    scene.write_policy();
    scene.recovers(node, traffic);
}

/// The server's agent does not survive the policy, which is to end a connection.
fn dies_in_a_change(point: &str) {
    let scene = Scene::new(point);
    let agent = scene.mesh.agent(2);
    agent.kill();
    agent.restart_to_die_at(point);
    let live = [&scene.shut_out, &scene.goes_on].map(|p| echo_to(p, &scene.to).unwrap());
    for sock in &live {
        echo(sock, 100_000, 1).unwrap();
    }
    let traffic = scene.traffic();
    traffic.succeeds(5);
    scene.write_policy();
    agent.wait_until_killed();
    // A clean end would be taken for the whole of what the server had to say.
    for sock in &live {
        assert_eq!(sock.read_to_end().unwrap_err().kind(), "ECONNRESET");
    }
    scene.recovers(2, traffic);
}

#[test]
fn the_servers_agent_dies_once_a_connection_is_accepted() {
    dies_in_a_handshake("handshake-accepted", 2);
}

#[test]
fn the_servers_agent_dies_once_hands_are_shaken() {
    dies_in_a_handshake("handshake-done", 2);
}

#[test]
fn the_clients_agent_dies_once_it_is_connected() {
    dies_in_a_handshake("dial-connected", 1);
}

#[test]
fn the_clients_agent_dies_once_hands_are_shaken() {
    dies_in_a_handshake("dial-shaken", 1);
}

#[test]
fn an_agent_dies_once_a_policy_has_come() {
    dies_in_a_change("policy-received");
}

#[test]
fn an_agent_dies_before_live_connections_are_judged_again() {
    dies_in_a_change("policy-applied");
}

#[test]
fn an_agent_dies_once_live_connections_have_been_judged_again() {
    dies_in_a_change("policy-judged");
}
