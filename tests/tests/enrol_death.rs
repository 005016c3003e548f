//! An agent that dies in the middle of an enrolment, at each of its steps.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use culvert_tests::dialogue::{echo, echo_to, serve};
use culvert_tests::{Agent, Mesh, MeshPod, Traffic, at, attempt, exchange};
use testbed::{Serve, Token};

const PORT: u16 = 8080;
const BY_HAND: u16 = 8081;

/// As a CNI plugin asks, whatever is said to it.
fn ask_to_enroll(agent: &Agent, pod: &MeshPod) -> bool {
    let netns = pod.netns_path().display().to_string();
    let name = pod.name();
    let args = ["enroll", "--netns", &netns, "--name", name, "--service-account", name];
    agent.ctl(&args).status.success()
}

/// One point: a pod with an older connection, whose enrolment the agent does not survive.
fn dies_at(point: &str) {
    let mesh = Mesh::new(point);
    let agent = mesh.agent(1);
    let (server, pod) = (mesh.enrolled_pod(2, "server"), mesh.pod(1, "pod"));
    for p in [&server, &pod] {
        serve(p, PORT, Serve::Script);
    }
    let to = at(server.ipv4(), PORT);
    let earlier = [echo_to(&pod, &to).unwrap(), echo_to(&server, &at(pod.ipv6(), PORT)).unwrap()];
    let goes_on = |round: u64| {
        for (n, e) in earlier.iter().enumerate() {
            echo(e, 100_000, 2 * round + n as u64).unwrap();
        }
    };
    goes_on(0);

    // While it has no pod: one that is taken up goes through the same steps.
    agent.kill();
    agent.restart_to_die_at(point);
    assert!(!ask_to_enroll(agent, &pod), "{point}: it died, and said that all was done");
    agent.wait_until_killed();
    goes_on(1);
    agent.restart();
    goes_on(2);
    // Either this agent has finished what the other began, or it was undone; the pod is asked for again in both cases.
    let taken_up = agent.log().matches("pod enrolled uid=\"Kubernetes//Pod/default/pod\"").count();
    println!("{point}: taken up {taken_up} times");
    mesh.enroll(&pod);
    goes_on(3);

    // Nothing is in the clear from here on.
    let tokens = [Token::new(), Token::new()];
    let link = agent.node.capture_link("link").unwrap();
    let listener = serve(&server, BY_HAND, Serve::Manual);
    exchange(&pod, &at(server.ipv4(), BY_HAND), &tokens[0], &listener, &tokens[1]);
    exchange(&pod, &at(server.ipv6(), BY_HAND), &tokens[0], &listener, &tokens[1]);
    let traffic = Traffic::start(&server, &at(pod.ipv4(), PORT), tokens[0]);
    traffic.succeeds(20);
    let tally = traffic.stop();
    assert_eq!(tally.failed, 0, "{tally:?}");
    let verdict = mesh.leak_check(&tokens, &[&pod, &server]);
    let verdict = verdict.check(&link.stop().unwrap()).unwrap();
    assert!(verdict.is_clean() && verdict.hbone_bytes > 0, "{point}: {verdict}");
    goes_on(4);

    // And it goes as if nothing had happened.
    mesh.unenroll(&pod);
    goes_on(5);
    attempt(&pod, &to).unwrap();
    assert!(agent.saved_pods().is_empty() && agent.pinned_for_pods().is_empty());
}

#[test]
fn an_agent_dies_once_the_namespace_is_prepared() {
    dies_at("enroll-prepared");
}

#[test]
fn an_agent_dies_once_it_listens_in_the_pod() {
    dies_at("enroll-listening");
}

#[test]
fn an_agent_dies_once_the_pod_is_on_disk() {
    dies_at("enroll-saved");
}

#[test]
fn an_agent_dies_once_what_arrives_is_taken() {
    dies_at("enroll-looking-up");
}

#[test]
fn an_agent_dies_once_what_leaves_is_taken() {
    dies_at("enroll-captured");
}

#[test]
fn an_agent_dies_once_the_guard_is_on() {
    dies_at("enroll-guarded");
}
