//! A pod of the mesh does not start before it is captured: after a reboot, with the agent or the control plane away, when
//! it has its name from another.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::thread;
use std::time::Duration;

use culvert_tests::dialogue::serve;
use culvert_tests::{Mesh, MeshPod, SOON, Spec, Traffic, at, attempt};
use serde_json::{Value, json};
use testbed::{Serve, Token, eventually};

const PORT: u16 = 8080;

/// What a kubelet does until it succeeds.
fn start_patiently(mesh: &Mesh, pod: &MeshPod) -> Value {
    let agent = mesh.agent_of(pod);
    eventually(SOON, || {
        agent.cni("ADD", pod, &Value::Null).map_err(|e| anyhow::anyhow!("not yet: {e}"))
    })
    .unwrap()
}

fn is_enrolled(mesh: &Mesh, pod: &MeshPod) -> bool {
    let status = mesh.agent_of(pod).status();
    status["pods"].as_array().unwrap().iter().any(|p| p["uid"] == pod.uid())
}

/// Everything on the node is killed, what was pinned is gone, and the pods come back before the agent.
#[test]
fn after_a_reboot_a_pod_that_starts_first_sends_no_plaintext_byte() {
    let mesh = Mesh::new("reboot");
    let server = mesh.enrolled_pod(2, "server");
    serve(&server, PORT, Serve::Script);
    let to = at(server.ipv4(), PORT);
    let token = Token::new();

    let before = mesh.enrolled_pod(1, "web");
    let traffic = Traffic::start(&before, &to, token);
    traffic.succeeds(5);
    let link = mesh.agent(1).node.capture_link("link").unwrap();
    // What ran there is gone before what held it.
    traffic.stop();
    mesh.kill_pod(&before);
    mesh.agent(1).lose_everything();

    // The object is still there, as it was: with an address, and said to be captured.
    let web = mesh.sandbox_again(1, &before);
    let veth = web.capture_host_end("web").unwrap();
    for _ in 0..3 {
        let refusal = mesh.agent(1).cni("ADD", &web, &Value::Null).unwrap_err();
        assert_eq!(refusal["code"], 11, "{refusal}");
        let details = refusal["details"].as_str().unwrap();
        assert!(details.contains("no agent answers"), "{refusal}");
    }
    mesh.agent(1).start_again();
    let result = start_patiently(&mesh, &web);
    assert_eq!(result["ips"][0]["address"], format!("{}/24", web.ipv4()), "{result}");
    // The containers start at once.
    let traffic = Traffic::start(&web, &to, token);
    traffic.succeeds(50);
    mesh.has_started(&web);
    traffic.succeeds(50);
    assert_eq!(traffic.stop().failed, 0);
    mesh.agent(2).logged(&[&format!("src.identity=\"{}\"", web.identity())]);
    for capture in [link, veth] {
        let report = capture.stop().unwrap();
        let verdict = mesh.leak_check(&[token], &[&web, &server]).check(&report).unwrap();
        assert!(verdict.is_clean() && verdict.hbone_bytes > 0, "{verdict}");
    }
}

#[test]
fn a_pod_waits_for_the_control_planes_word() {
    let mesh = Mesh::new("wordless");
    let server = mesh.enrolled_pod(2, "server");
    serve(&server, PORT, Serve::Script);
    mesh.control.kill();
    let web = mesh.sandbox(1, "web");
    let refusal = mesh.agent(1).cni("ADD", &web, &Value::Null).unwrap_err();
    assert_eq!(refusal["code"], 11, "{refusal}");
    assert!(refusal["details"].as_str().unwrap().contains("the control plane"), "{refusal}");
    assert!(!is_enrolled(&mesh, &web));
    mesh.control.restart(&mesh.bed);
    start_patiently(&mesh, &web);
    assert!(is_enrolled(&mesh, &web));
    attempt(&web, &at(server.ipv4(), PORT)).unwrap();
}

#[test]
fn pods_outside_the_mesh_start_uncaptured() {
    let mesh = Mesh::new("uncaptured");
    mesh.apply("namespace-plain", "apiVersion: v1\nkind: Namespace\nmetadata: { name: plain }\n");
    let labelled = Spec::named("none").label("istio.io/dataplane-mode", "none");
    let outside =
        [mesh.sandbox(1, Spec::named("web").namespace("plain")), mesh.sandbox(1, labelled)];
    for pod in &outside {
        start_patiently(&mesh, pod);
        assert!(!is_enrolled(&mesh, pod));
        mesh.agent(1).cni("CHECK", pod, &Value::Null).unwrap();
        serve(pod, PORT, Serve::Script);
    }
    attempt(&outside[0], &at(outside[1].ipv4(), PORT)).unwrap();
    // Its own label counts for more than its namespace's.
    let inside = Spec::named("own").namespace("plain").label("istio.io/dataplane-mode", "ambient");
    let inside = mesh.sandbox(1, inside);
    start_patiently(&mesh, &inside);
    assert!(is_enrolled(&mesh, &inside));
}

#[test]
fn a_pod_is_not_taken_for_one_that_had_its_name() {
    let mesh = Mesh::new("namesake");
    let spec = |mode| Spec::named("web").label("istio.io/dataplane-mode", mode);
    let first = mesh.pod(1, spec("none"));
    mesh.workload_known(&first, |w| w["protocol"] == "TCP");
    mesh.kill_pod(&first);
    // The word of its end, and of the next, is still on its way.
    let second = mesh.sandbox_nobody_heard_of(1, spec("ambient"));
    thread::scope(|s| {
        let starting = s.spawn(|| mesh.agent(1).cni("ADD", &second, &Value::Null));
        thread::sleep(Duration::from_millis(500));
        assert!(!starting.is_finished());
        mesh.tell(&second);
        starting.join().unwrap().unwrap();
    });
    assert!(is_enrolled(&mesh, &second));
}

#[test]
fn the_rest_of_a_sandboxs_life() {
    let mesh = Mesh::new("sandbox");
    let agent = mesh.agent(1);
    let web = mesh.sandbox(1, "web");
    let version = agent.cni("VERSION", &web, &Value::Null).unwrap();
    assert!(version["supportedVersions"].as_array().unwrap().contains(&"1.0.0".into()));
    assert_eq!(agent.cni("STATUS", &web, &Value::Null), Ok(Value::Null));
    start_patiently(&mesh, &web);
    start_patiently(&mesh, &web);
    assert_eq!(agent.cni("CHECK", &web, &Value::Null), Ok(Value::Null));
    mesh.release(&web);
    let refusal = agent.cni("CHECK", &web, &Value::Null).unwrap_err();
    assert!(refusal["details"].as_str().unwrap().contains("not captured"), "{refusal}");
    start_patiently(&mesh, &web);

    // The sandbox fails and is made anew; the end of the old one comes late.
    let pinned = agent.pinned_for_pods();
    mesh.kill_pod(&web);
    let again = mesh.sandbox_again(1, &web);
    start_patiently(&mesh, &again);
    assert!(is_enrolled(&mesh, &again));
    assert_ne!(agent.pinned_for_pods(), pinned);
    assert_eq!(agent.cni("DEL", &again, &json!({ "prevResult": null })), Ok(Value::Null));
    assert!(!is_enrolled(&mesh, &again));
    assert!(agent.pinned_for_pods().is_empty());
    assert_eq!(agent.cni("DEL", &again, &Value::Null), Ok(Value::Null), "as often as one likes");

    agent.kill();
    assert_eq!(agent.cni("DEL", &again, &Value::Null), Ok(Value::Null), "nothing keeps it");
    let refusal = agent.cni("STATUS", &again, &Value::Null).unwrap_err();
    assert_eq!(refusal["code"], 50, "{refusal}");
    let excluded = json!({ "excludeNamespaces": ["default"] });
    agent.cni("ADD", &again, &excluded).unwrap();
    agent.restart();
    assert!(!is_enrolled(&mesh, &again));
}
