//! Who reaches whom: on one node and across nodes, by every kind of address, in and out of the mesh.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::net::IpAddr;

use culvert_tests::dialogue::{Seen, serve};
use culvert_tests::{Mesh, MeshPod, Service, Spec, any, at, attempt, denied, whoami};
use testbed::{Serve, eventually};

const PORT: u16 = 8080;

/// `a` and `b` on the first node, `c` on the second, all enrolled, each with a server and a service of its own.
struct Three {
    mesh: Mesh,
    a: MeshPod,
    b: MeshPod,
    c: MeshPod,
}

fn three(name: &str) -> Three {
    let mesh = Mesh::new(name);
    let (a, b, c) = (mesh.pod(1, "a"), mesh.pod(1, "b"), mesh.pod(2, "c"));
    for pod in [&a, &b, &c] {
        serve(pod, PORT, Serve::Script);
    }
    mesh.enroll_all(&[a.clone(), b.clone(), c.clone()]);
    Three { mesh, a, b, c }
}

/// What the application would see without a mesh: its own pod's address, and the address it asked for.
#[track_caller]
fn true_addresses(seen: &Seen, from: &MeshPod, to: &MeshPod, asked: &str) {
    let v4 = seen.peer.is_ipv4();
    let own = |pod: &MeshPod| if v4 { IpAddr::from(pod.ipv4()) } else { IpAddr::from(pod.ipv6()) };
    assert_eq!(seen.peer.ip(), own(from), "the client as the server sees it: {seen:?}");
    assert_eq!(seen.local.to_string(), at(own(to), PORT), "the server's own address: {seen:?}");
    assert_eq!(seen.client.local.ip(), own(from), "the client's own address: {seen:?}");
    assert_eq!(seen.client.peer.to_string(), asked, "the address asked for: {seen:?}");
}

#[track_caller]
fn reaches(from: &MeshPod, to: &MeshPod) {
    for asked in [at(to.ipv4(), PORT), at(to.ipv6(), PORT)] {
        true_addresses(&whoami(from, &asked).unwrap(), from, to, &asked);
    }
}

#[track_caller]
fn reaches_by_service(from: &MeshPod, to: &MeshPod, service: &Service) {
    for asked in [service.at4(), service.at6()] {
        true_addresses(&whoami(from, &asked).unwrap(), from, to, &asked);
    }
}

/// Every one of the agent's connections to `to` so far was HBONE with both identities.
fn all_hbone(t: &Three, from: &MeshPod, to: &MeshPod) {
    let count = |labels: &[(&str, &str)]| {
        t.mesh.agent_of(from).metric("istio_tcp_connections_opened_total", labels)
    };
    let (source, destination) = (from.identity(), to.identity());
    let pair = [
        ("reporter", "source"),
        ("source_principal", source.as_str()),
        ("destination_workload", to.name()),
    ];
    let mutual = [
        pair.as_slice(),
        &[
            ("destination_principal", destination.as_str()),
            ("connection_security_policy", "mutual_tls"),
        ],
    ]
    .concat();
    assert!(count(&pair) > 0.0);
    assert_eq!(count(&pair), count(&mutual));
}

#[test]
fn by_pod_address_on_one_node() {
    let t = three("one-node");
    reaches(&t.a, &t.b);
    all_hbone(&t, &t.a, &t.b);
}

#[test]
fn by_pod_address_across_nodes() {
    let t = three("across");
    reaches(&t.a, &t.c);
    reaches(&t.c, &t.a);
    all_hbone(&t, &t.a, &t.c);
    all_hbone(&t, &t.c, &t.a);
}

#[test]
fn by_service_address() {
    let t = three("service");
    let (b, c) = (t.mesh.service("b", 80, PORT, &[&t.b]), t.mesh.service("c", 80, PORT, &[&t.c]));
    reaches_by_service(&t.a, &t.b, &b);
    reaches_by_service(&t.a, &t.c, &c);
    all_hbone(&t, &t.a, &t.b);
    all_hbone(&t, &t.a, &t.c);
}

#[test]
fn by_name() {
    let t = three("name");
    for pod in [&t.b, &t.c] {
        let service = t.mesh.service(pod.name(), 80, PORT, &[pod]);
        let seen = whoami(&t.a, &service.by_name()).unwrap();
        true_addresses(&seen, &t.a, pod, &seen.client.peer.to_string());
        assert!([service.at4(), service.at6()].contains(&seen.client.peer.to_string()));
    }
}

#[test]
fn a_service_is_spread_over_its_pods() {
    let mesh = Mesh::new("spread");
    let a = mesh.enrolled_pod(1, "a");
    let pods: Vec<MeshPod> = [(1, "web1"), (2, "web2")]
        .map(|(node, name)| mesh.pod(node, Spec::named(name).label("app", "web")))
        .into();
    for pod in &pods {
        serve(pod, PORT, Serve::Script);
    }
    mesh.enroll_all(&pods);
    let service = mesh.service("web", 80, PORT, &[&pods[0], &pods[1]]);
    let mut seen = std::collections::BTreeSet::new();
    eventually(culvert_tests::SOON, || {
        seen.insert(whoami(&a, &service.at4())?.local.ip());
        anyhow::ensure!(seen.len() == 2, "only {seen:?} so far");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_pod_reaches_itself_by_its_own_address() {
    let t = three("itself");
    reaches(&t.a, &t.a);
}

#[test]
fn a_pod_reaches_itself_through_its_own_service() {
    let t = three("own-service");
    let service = t.mesh.service("a", 80, PORT, &[&t.a]);
    reaches_by_service(&t.a, &t.a, &service);
}

#[test]
fn a_pod_reaches_itself_on_loopback_untouched() {
    let t = three("loopback");
    let before = t.mesh.agent(1).counter(&t.a, "captured");
    for asked in [format!("127.0.0.1:{PORT}"), format!("[::1]:{PORT}")] {
        let seen = whoami(&t.a, &asked).unwrap();
        assert!(seen.peer.ip().is_loopback() && seen.client.local.ip().is_loopback(), "{seen:?}");
    }
    assert_eq!(t.mesh.agent(1).counter(&t.a, "captured"), before);
    // The mesh's own ports are the application's on loopback.
    for port in [15001, 15006, 15008] {
        t.a.puppet().unwrap().listen(any(port), Serve::Script).unwrap();
        attempt(&t.a, &format!("127.0.0.1:{port}")).unwrap();
    }
}

#[test]
fn an_enrolled_pod_reaches_one_that_is_not() {
    let t = three("to-outside");
    for (node, name) in [(1, "x1"), (2, "x2")] {
        let outside = t.mesh.pod(node, name);
        serve(&outside, PORT, Serve::Script);
        let service = t.mesh.service(name, 80, PORT, &[&outside]);
        reaches(&t.a, &outside);
        reaches_by_service(&t.a, &outside, &service);
    }
    // What is no pod at all.
    let world = t.mesh.bed.fabric_puppet().unwrap();
    world.listen(any(PORT), Serve::Script).unwrap();
    let seen = whoami(&t.a, &format!("172.18.0.254:{PORT}")).unwrap();
    assert_eq!(seen.peer.ip(), t.a.ipv4());
}

#[test]
fn a_pod_that_is_not_enrolled_reaches_one_that_is_while_mtls_is_permissive() {
    let t = three("from-outside");
    for (node, name) in [(1, "x1"), (2, "x2")] {
        let outside = t.mesh.pod(node, name);
        reaches(&outside, &t.a);
        reaches(&outside, &t.c);
    }
    let world = t.mesh.bed.fabric_puppet().unwrap();
    culvert_tests::dialogue::attempt_with(&world, &at(t.a.ipv4(), PORT)).unwrap();
    let host = t.mesh.agent(1).node.puppet().unwrap();
    culvert_tests::dialogue::attempt_with(&host, &at(t.a.ipv6(), PORT)).unwrap();
}

#[test]
fn a_pod_that_is_not_enrolled_is_refused_while_mtls_is_strict() {
    let t = three("strict");
    let (near, far) = (t.mesh.pod(1, "x1"), t.mesh.pod(2, "x2"));
    attempt(&near, &at(t.a.ipv4(), PORT)).unwrap();
    t.mesh.apply(
        "strict",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: { namespace: default, name: default }\nspec: { mtls: { mode: STRICT } }\n",
    );
    // How it is told to agents is theirs to know: its effect is what counts.
    for to in [&t.a, &t.b, &t.c] {
        eventually(culvert_tests::SOON, || {
            anyhow::ensure!(attempt(&near, &at(to.ipv4(), PORT)).is_err(), "still permissive");
            Ok(())
        })
        .unwrap();
        for from in [&near, &far] {
            denied(from, &at(to.ipv4(), PORT));
            denied(from, &at(to.ipv6(), PORT));
        }
    }
    // The mesh goes on, inside and outward.
    reaches(&t.a, &t.b);
    reaches(&t.a, &t.c);
    serve(&far, PORT, Serve::Script);
    reaches(&t.a, &far);
    t.mesh.delete("strict");
    eventually(culvert_tests::SOON, || Ok(attempt(&near, &at(t.a.ipv4(), PORT))?)).unwrap();
}
