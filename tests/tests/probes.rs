//! The kubelet looks after pods that take nothing but the mesh's connections, and nobody comes in its name.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use anyhow::ensure;
use culvert_tests::dialogue::serve;
use culvert_tests::{Kubelet, Mesh, Runs, SOON, at, attempt};
use testbed::{Serve, eventually};

const PORT: u16 = 8080;

#[test]
fn the_kubelets_probes_reach_a_strict_pod_and_nobody_comes_in_its_name() {
    let mesh = Mesh::new("probes");
    let server = mesh.enrolled_pod(1, "server");
    serve(&server, PORT, Serve::Script);
    let (near, far) = (mesh.pod(1, "near"), mesh.pod(2, "far"));
    let to = at(server.ipv4(), PORT);
    mesh.apply(
        "strict",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: { namespace: default, name: default }\nspec: { mtls: { mode: STRICT } }\n",
    );
    eventually(SOON, || {
        ensure!(attempt(&near, &to).is_err(), "plaintext is let in still");
        Ok(())
    })
    .unwrap();

    let kubelet = Kubelet::new();
    let asks = |runs: Runs<'_>| kubelet.asks(&runs, &to, "echo\\nping", 4);
    let (node, other) = (server.node(), far.node());
    assert_eq!(asks(Runs::OnNode(node)).as_deref(), Some("ping"));
    let v6 = at(server.ipv6(), PORT);
    // A shell has no brackets around an address.
    let v6 = v6.replace(['[', ']'], "");
    assert_eq!(kubelet.asks(&Runs::OnNode(node), &v6, "echo\\nping", 4).as_deref(), Some("ping"));
    for (who, runs) in [
        ("another process of the node", Runs::Renamed(node)),
        ("another user of the node", Runs::AsNobody(node)),
        ("a pod on the node's network", Runs::AmongPods(node)),
        ("another node's kubelet", Runs::OnNode(other)),
        ("a pod of the node", Runs::InPod(&near)),
        ("a pod of another node", Runs::InPod(&far)),
        ("a pod with its node's address", Runs::InPodAs(&near, node.gateway4().to_string())),
    ] {
        assert_eq!(asks(runs), None, "{who}");
    }
    assert_eq!(asks(Runs::OnNode(node)).as_deref(), Some("ping"));
}
