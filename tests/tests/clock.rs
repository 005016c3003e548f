//! Clocks that jump: certificates are good for a time, and who says what time it is may be wrong.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use culvert_tests::dialogue::serve;
use culvert_tests::{Mesh, MeshPod, SOON, at, attempt, denied};
use testbed::{Serve, Token, eventually};

const PORT: u16 = 8080;
/// A certificate's life is a day.
const LONG: i64 = 25;

struct Pair {
    mesh: Mesh,
    client: MeshPod,
    server: MeshPod,
    to: String,
}

fn pair(name: &str) -> Pair {
    let mesh = Mesh::builder(name).clocks().build();
    let (client, server) = (mesh.enrolled_pod(1, "client"), mesh.enrolled_pod(2, "server"));
    serve(&server, PORT, Serve::Script);
    let to = at(server.ipv4(), PORT);
    eventually(SOON, || Ok(attempt(&client, &to)?)).unwrap();
    Pair { mesh, client, server, to }
}

impl Pair {
    fn set_all(&self, hours: i64) {
        self.mesh.control.clock().set(hours);
        for agent in self.mesh.agents() {
            agent.clock().set(hours);
        }
    }

    /// The serial number of the client's certificate.
    fn certificate(&self) -> String {
        let all = self.mesh.agent(1).ask("certificates").unwrap();
        let all = all.as_array().unwrap();
        let own = all.iter().find(|c| c["identity"] == self.client.identity()).unwrap();
        own["serial"].to_string()
    }

    fn carries(&self) {
        eventually(SOON, || Ok(attempt(&self.client, &self.to)?)).unwrap();
    }

    fn renewed(&self, before: &str) {
        eventually(SOON, || {
            anyhow::ensure!(self.certificate() != before, "it is still {before}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn certificates_follow_a_clock_that_is_set_forward_and_back() {
    let p = pair("clock-all");
    let token = Token::new();
    let capture = p.mesh.agent(1).node.capture_link("link").unwrap();
    let live = culvert_tests::dialogue::echo_to(&p.client, &p.to).unwrap();
    for hours in [LONG, 0] {
        let before = p.certificate();
        p.set_all(hours);
        p.renewed(&before);
        p.carries();
        if hours == LONG {
            // It ends with the certificates that made it.
            assert!(live.within(SOON).read_to_end().is_err());
            // What it shows from now on begins later than everything that follows.
            p.mesh.control.kill();
            p.mesh.control.restart(&p.mesh.bed);
        }
    }
    eventually(SOON, || {
        let log = p.mesh.control.log();
        anyhow::ensure!(log.contains("the own certificate is renewed"), "{log}");
        Ok(())
    })
    .unwrap();
    p.mesh.agent(1).kill();
    p.mesh.agent(1).restart();
    p.carries();
    let report = capture.stop().unwrap();
    let verdict = p.mesh.leak_check(&[token], &[&p.client, &p.server]).check(&report).unwrap();
    assert!(verdict.is_clean() && verdict.hbone_bytes > 0, "{verdict}");
}

#[test]
fn a_node_whose_clock_is_wrong_is_refused_with_that_as_the_likely_cause() {
    let p = pair("clock-node");
    for hours in [LONG, -LONG] {
        let before = p.mesh.agent(2).log().len();
        p.mesh.agent(2).clock().set(hours);
        // Connections that were made before are as good as they were.
        p.mesh.agent(1).kill();
        p.mesh.agent(1).restart();
        denied(&p.client, &p.to);
        for parts in [
            // A new certificate is of no use to it, and the one that it has is of no use to others.
            ["no new certificate", "do this node's clock and the control plane's agree?"],
            ["WARN", "HBONE"],
        ] {
            eventually(SOON, || {
                let log = p.mesh.agent(2).log().split_off(before);
                let told = log.lines().any(|l| parts.iter().all(|p| l.contains(p)));
                anyhow::ensure!(told, "{parts:?}: {log}");
                Ok(())
            })
            .unwrap();
        }
        p.mesh.agent(2).clock().set(0);
        p.carries();
    }
}
