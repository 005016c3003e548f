//! What is left when something ends without a word: an agent, a pod, a client, the control plane.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use culvert_tests::dialogue::{by_hand, serve};
use culvert_tests::{Mesh, MeshPod, SOON, at};
use testbed::{Serve, eventually};

const PORT: u16 = 8080;

/// Waits until the agent has no connection left.
fn idle(mesh: &Mesh, number: usize) {
    eventually(SOON, || {
        let open = mesh.agent(number).status()["connections"].as_u64().unwrap();
        anyhow::ensure!(open == 0, "{open} are open on n{number}");
        Ok(())
    })
    .unwrap();
}

/// After its half-close nothing is expected of the client any more, not even its end.
#[test]
fn a_client_that_dies_after_its_half_close_is_noticed() {
    let mesh = Mesh::new("half-dead");
    let (client, server): (MeshPod, MeshPod) = (mesh.pod(1, "client"), mesh.pod(2, "server"));
    let outside = mesh.pod(2, "outside");
    mesh.enroll_all(&[client.clone(), server.clone()]);
    for to in [&server, &outside, &client] {
        let listener = serve(to, PORT, Serve::Manual);
        let (here, there) = by_hand(&client, &at(to.ipv4(), PORT), &listener);
        here.shutdown_write().unwrap();
        assert_eq!(there.read_to_end().unwrap(), b"");
        assert!(mesh.agent(1).status()["connections"].as_u64().unwrap() > 0);
        here.reset().unwrap();
        // The server has sent nothing, and still holds its end.
        for number in [1, 2] {
            idle(&mesh, number);
        }
        assert_eq!(
            there.write(b"late").and_then(|()| there.read_exact(1)).unwrap_err().kind(),
            "EPIPE"
        );
    }
}
