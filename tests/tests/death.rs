//! What is left when something ends without a word: an agent, a pod, a client, the control plane.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culvert_tests::dialogue::{by_hand, echo, echo_to, serve};
use culvert_tests::{Agent, Mesh, MeshPod, SOON, Traffic, at, attempt, run_in};
use testbed::{ConnectOpts, Serve, Token, eventually};

const PORT: u16 = 8080;

struct Pair {
    mesh: Mesh,
    client: MeshPod,
    server: MeshPod,
    to: String,
}

/// An enrolled client on the first node, an enrolled server on the second.
fn pair(mesh: Mesh) -> Pair {
    let (client, server) = (mesh.pod(1, "client"), mesh.pod(2, "server"));
    for pod in [&client, &server] {
        serve(pod, PORT, Serve::Script);
    }
    mesh.enroll_all(&[client.clone(), server.clone()]);
    let to = at(server.ipv4(), PORT);
    Pair { mesh, client, server, to }
}

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
    let p = pair(Mesh::new("half-dead"));
    let outside = p.mesh.pod(2, "outside");
    for to in [&p.server, &outside, &p.client] {
        let listener = serve(to, PORT + 1, Serve::Manual);
        let (here, there) = by_hand(&p.client, &at(to.ipv4(), PORT + 1), &listener);
        here.shutdown_write().unwrap();
        assert_eq!(there.read_to_end().unwrap(), b"");
        assert!(p.mesh.agent(1).status()["connections"].as_u64().unwrap() > 0);
        here.reset().unwrap();
        // The server has sent nothing, and still holds its end.
        for number in [1, 2] {
            idle(&p.mesh, number);
        }
        let e = there.write(b"late").and_then(|()| there.read_exact(1)).unwrap_err();
        assert!(["EPIPE", "ECONNRESET"].contains(&e.kind()), "{e}");
    }
}

#[test]
fn twenty_deaths_of_agents_under_load_leak_nothing_and_leave_nothing() {
    let p = pair(Mesh::new("twenty"));
    let tokens = [Token::new(), Token::new()];
    let capture = p.mesh.agent(1).node.capture_link("link").unwrap();
    let back = at(p.client.ipv6(), PORT);
    let traffic =
        [Traffic::start(&p.client, &p.to, tokens[0]), Traffic::start(&p.server, &back, tokens[1])];
    for t in &traffic {
        t.succeeds(20);
    }
    let pinned = |agent: &Agent| {
        let mut all = agent.pinned_for_pods();
        all.sort();
        all
    };
    let before: Vec<_> = p.mesh.agents().iter().map(pinned).collect();
    for round in 0..20 {
        let agent = p.mesh.agent(1 + round % 2);
        agent.kill();
        agent.restart();
        for t in &traffic {
            t.succeeds(5);
        }
    }
    for t in traffic {
        let settled = t.tally();
        t.succeeds(100);
        assert_eq!(t.stop().failed, settled.failed);
    }
    let after: Vec<_> = p.mesh.agents().iter().map(pinned).collect();
    assert_eq!(after, before);
    let report = capture.stop().unwrap();
    let verdict = p.mesh.leak_check(&tokens, &[&p.client, &p.server]).check(&report).unwrap();
    println!("{verdict}");
    assert!(verdict.is_clean() && verdict.hbone_bytes > 0, "{verdict}");
    for (agent, pod) in [(p.mesh.agent(1), &p.client), (p.mesh.agent(2), &p.server)] {
        assert_eq!(agent.counter(pod, "announce_failed"), 0);
        assert!(!agent.log().contains("panicked"));
    }
}

/// What a CNI plugin does when a pod has been deleted.
fn unenroll(agent: &Agent, namespace: &str, name: &str) {
    let out = agent.ctl(&["unenroll", "--namespace", namespace, "--name", name]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn a_pod_that_is_deleted_in_mid_flow_is_a_reset_to_its_peers_and_leaves_nothing() {
    let args = ["--pool-idle-seconds", "1"];
    let p = pair(Mesh::builder("deleted").agent_args(&args).build());
    attempt(&p.client, &p.to).unwrap();
    idle(&p.mesh, 1);
    let descriptors = [1, 2].map(|n| p.mesh.agent(n).descriptors());
    for number in [1, 2] {
        let doomed = p.mesh.enrolled_pod(number, "doomed");
        serve(&doomed, PORT, Serve::Script);
        let listener = serve(&p.client, PORT + 1, Serve::Manual);
        // To it, and from it; neither end reads what the other sends.
        let to_it = echo_to(&p.server, &at(doomed.ipv4(), PORT)).unwrap();
        echo(&to_it, 1000, 1).unwrap();
        let stalled = p.server.puppet().unwrap();
        let stalled = stalled.connect(at(doomed.ipv6(), PORT), ConnectOpts::default()).unwrap();
        stalled.write(b"stall\n").unwrap();
        stalled.write(&[0; 100_000]).unwrap();
        let (from_it, peer) = by_hand(&doomed, &at(p.client.ipv4(), PORT + 1), &listener);
        peer.write(b"never read").unwrap();
        eventually(SOON, || {
            // What is there unread makes a reset of the end.
            let rows = p.mesh.agent(number).connections();
            let moved =
                |name: &str, bytes: u64| rows.iter().any(|r| r[name].as_u64() >= Some(bytes));
            anyhow::ensure!(moved("sent", 100_006) && moved("received", 10), "{rows:?}");
            Ok(())
        })
        .unwrap();
        let agent = p.mesh.agent(number);
        let (namespace, name) = (doomed.namespace().to_owned(), doomed.name().to_owned());
        p.mesh.delete_pod(doomed);
        unenroll(agent, &namespace, &name);
        for sock in [&stalled, &peer] {
            assert_eq!(sock.within(SOON).read_to_end().unwrap_err().kind(), "ECONNRESET");
        }
        // This one had nothing unread: an end, or a reset.
        let _ = to_it.read_to_end();
        drop((to_it, stalled, from_it, peer));
        listener.close().unwrap();
        for number in [1, 2] {
            idle(&p.mesh, number);
        }
        let uid = format!("Kubernetes//Pod/{namespace}/{name}");
        assert!(!agent.status().to_string().contains(&uid), "{}", agent.status());
        let kept = agent.saved_pods();
        assert_eq!(kept.len(), 1, "{kept:?}");
    }
    for (n, before) in [1, 2].into_iter().zip(descriptors) {
        eventually(SOON, || {
            let now = p.mesh.agent(n).descriptors();
            anyhow::ensure!(now <= before, "{now} descriptors are open on n{n}, {before} were");
            Ok(())
        })
        .unwrap();
    }
    attempt(&p.client, &p.to).unwrap();
}

/// Nobody tells the agent. It must not mind, and the next agent clears up.
#[test]
fn a_network_namespace_that_is_gone_harms_nobody_and_is_forgotten_by_the_next_agent() {
    let p = pair(Mesh::new("netns-gone"));
    let doomed = p.mesh.enrolled_pod(1, "doomed");
    serve(&doomed, PORT, Serve::Script);
    let to = at(doomed.ipv4(), PORT);
    let live = echo_to(&p.server, &to).unwrap();
    echo(&live, 1000, 1).unwrap();
    let traffic = Traffic::start(&p.client, &p.to, Token::new());
    p.mesh.delete_pod(doomed);
    let _ = live.within(SOON).read_to_end();
    traffic.succeeds(100);
    assert!(attempt(&p.server, &to).is_err());
    assert_eq!(traffic.stop().failed, 0);
    let agent = p.mesh.agent(1);
    agent.kill();
    agent.restart();
    assert_eq!(agent.status()["pods"].as_array().unwrap().len(), 1);
    assert_eq!(agent.saved_pods().len(), 1, "{:?}", agent.saved_pods());
    assert_eq!(agent.pinned_for_pods().len(), 3, "{:?}", agent.pinned_for_pods());
    attempt(&p.client, &p.to).unwrap();
}

/// The banner of the server at an address, or none.
fn banner(from: &MeshPod, to: &str) -> Option<String> {
    let patience = Duration::from_secs(5);
    let opts = ConnectOpts { timeout: patience, ..ConnectOpts::default() };
    let sock = from.puppet().unwrap().connect(to, opts).ok()?.within(patience);
    let said = sock.read_exact(3).ok()?;
    Some(String::from_utf8(said).unwrap())
}

/// How the control plane learns that one pod has followed another.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    OldGoesFirst,
    NewComesFirst,
}

/// A pod's address is given to another pod, of another identity, as soon as it is free.
fn address_is_used_again(name: &str, order: Order) {
    let mesh = Mesh::new(name);
    let (client, server) = (mesh.enrolled_pod(2, "client"), mesh.enrolled_pod(2, "server"));
    serve(&server, PORT, Serve::Script);
    let old = mesh.enrolled_pod(1, "old");
    serve(&old, PORT, Serve::Banner("old".to_owned()));
    let rule = |pod: &MeshPod| {
        format!(
            "{{ action: DENY, rules: [{{ from: [{{ source: {{ principals: ['{}'] }} }}] }}] }}",
            pod.principal()
        )
    };
    let (ip, to, up) = (old.ipv4(), at(old.ipv4(), PORT), at(server.ipv4(), PORT));
    let (old_id, old_uid) = (old.identity(), old.uid());
    attempt(&old, &up).unwrap();
    assert_eq!(banner(&client, &to).as_deref(), Some("old"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // All the while somebody asks who is there.
        let asking = scope.spawn(|| {
            let mut answers = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                answers.extend(banner(&client, &to));
            }
            answers
        });
        let agent = mesh.agent(1);
        let new = match order {
            Order::OldGoesFirst => {
                mesh.delete_pod(old);
                unenroll(agent, "default", "old");
                mesh.pod(1, "new")
            }
            Order::NewComesFirst => {
                (*old).clone().delete().unwrap();
                unenroll(agent, "default", "old");
                mesh.pod(1, "new")
            }
        };
        assert_eq!(new.ipv4(), ip, "the address was not used again");
        serve(&new, PORT, Serve::Banner("new".to_owned()));
        mesh.enroll(&new);
        if order == Order::NewComesFirst {
            mesh.delete("pod-default-old");
            for agent in mesh.agents() {
                eventually(SOON, || {
                    anyhow::ensure!(
                        agent.workload(&old_uid).is_err(),
                        "the old one is still known"
                    );
                    Ok(())
                })
                .unwrap();
            }
        }
        eventually(SOON, || {
            anyhow::ensure!(banner(&client, &to).as_deref() == Some("new"), "not reached yet");
            Ok(())
        })
        .unwrap();
        stop.store(true, Ordering::Relaxed);
        let answers = asking.join().unwrap();
        let first_new = answers.iter().position(|a| a == "new").unwrap_or(answers.len());
        assert!(answers[first_new..].iter().all(|a| a == "new"), "{answers:?}");

        // At both ends it is the new pod, and policies are those on the new identity.
        let lines = [1, 2].map(|n| mesh.agent(n).access_log().len());
        attempt(&new, &up).unwrap();
        mesh.policy("default", "new", &rule(&new));
        culvert_tests::denied(&new, &up);
        mesh.remove_policy("default", "new");
        attempt(&new, &up).unwrap();
        assert_eq!(banner(&client, &to).as_deref(), Some("new"));
        for (n, before) in [1, 2].into_iter().zip(lines) {
            eventually(SOON, || {
                let log = mesh.agent(n).access_log();
                anyhow::ensure!(
                    log.len() > before + 3,
                    "{} lines are not all yet",
                    log.len() - before
                );
                for line in &log[before..] {
                    assert!(!line.contains(&old_id), "{line}");
                }
                Ok(())
            })
            .unwrap();
        }
    });
}

#[test]
fn an_address_that_is_used_again_is_the_new_pods_alone() {
    address_is_used_again("reuse", Order::OldGoesFirst);
}

#[test]
fn an_address_that_is_used_again_before_its_last_pod_is_forgotten_is_the_new_pods() {
    address_is_used_again("reuse-early", Order::NewComesFirst);
}

#[test]
fn without_a_control_plane_nothing_passes_once_certificates_have_expired() {
    let p = pair(Mesh::builder("expiry").cert_ttl_seconds(10).build());
    let token = Token::new();
    let capture = p.mesh.agent(1).node.capture_link("link").unwrap();
    let live = echo_to(&p.client, &p.to).unwrap();
    echo(&live, 1000, 1).unwrap();
    let traffic = Traffic::start(&p.client, &p.to, token);
    traffic.succeeds(20);
    p.mesh.control.kill();
    // A connection ends no later than the certificates that made it.
    assert!(live.within(SOON).read_to_end().is_err());
    traffic.fails(3);
    let during = traffic.tally();
    traffic.fails(3);
    assert_eq!(traffic.tally().ok, during.ok);
    let agent = p.mesh.agent(1);
    let certificates = agent.ask("certificates").unwrap();
    println!("{certificates}");
    let row =
        certificates.as_array().unwrap().iter().find(|c| c["identity"] == p.client.identity());
    assert_ne!(row.unwrap()["state"], "valid", "{certificates}");
    let log = agent.log();
    let why = log.lines().filter(|l| l.contains("certificate") && l.contains(&p.client.identity()));
    assert!(
        why.clone().any(|l| l.contains("WARN") || l.contains("ERROR")),
        "nothing is said:\n{log}"
    );
    // With the control plane everything is back.
    p.mesh.control.restart(&p.mesh.bed);
    traffic.succeeds(20);
    drop(traffic);
    let report = capture.stop().unwrap();
    let verdict = p.mesh.leak_check(&[token], &[&p.client, &p.server]).check(&report).unwrap();
    assert!(verdict.is_clean() && verdict.hbone_bytes > 0, "{verdict}");
}

/// Pinned state of another version is not touched: its agent has to take it away.
#[test]
fn pinned_state_of_another_version_stops_the_agent_and_the_pods_stay_closed() {
    let p = pair(Mesh::new("versions"));
    attempt(&p.client, &p.to).unwrap();
    let agent = p.mesh.agent(1);
    let bpffs = agent.node.bpffs();
    let entries = std::fs::read_dir(&bpffs).unwrap();
    let own = entries.map(|e| e.unwrap().path()).next().unwrap();
    for other in ["v0", "v999"] {
        agent.kill();
        let other = bpffs.join(other);
        std::fs::rename(&own, &other).unwrap();
        let said = agent.refuses_to_start();
        for part in ["another version", "culvert-agent detach --bpffs", "stay closed"] {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }
        assert!(attempt(&p.client, &p.to).is_err());
        assert!(attempt(&p.server, &at(p.client.ipv4(), PORT)).is_err());
        assert!(!own.exists());
        std::fs::rename(&other, &own).unwrap();
        agent.restart();
        attempt(&p.client, &p.to).unwrap();
        attempt(&p.server, &at(p.client.ipv4(), PORT)).unwrap();
    }
}

/// What a pod makes of its own network namespace keeps no agent from coming, and opens nothing.
#[test]
fn a_pod_that_spoils_its_own_network_stays_closed_and_holds_up_no_agent() {
    let p = pair(Mesh::new("spoils"));
    let agent = p.mesh.agent(1);
    let token = Token::new();
    let capture = agent.node.capture_link("link").unwrap();
    let bystander = p.mesh.enrolled_pod(1, "bystander");
    // A container runtime within the pod.
    run_in(&p.client, "ip link add docker0 type bridge && ip link set docker0 up");
    agent.challenged().takes_over().ends();
    attempt(&p.client, &p.to).unwrap();
    agent.kill();
    agent.restart();
    eventually(SOON, || Ok(attempt(&p.client, &p.to)?)).unwrap();
    // Without its loopback interface nothing of it can be captured, nor taken up.
    run_in(&p.client, "ip link set lo down");
    agent.challenged().takes_over().ends();
    attempt(&bystander, &p.to).unwrap();
    let is_closed = || {
        attempt(&p.client, &p.to).unwrap_err();
        assert_eq!(agent.saved_pods().len(), 2);
        assert!(!agent.pinned_for_pods().is_empty());
    };
    is_closed();
    agent.kill();
    agent.restart();
    eventually(SOON, || Ok(attempt(&bystander, &p.to)?)).unwrap();
    is_closed();
    // Whoever asks for it anew cannot have it, and opens nothing by that.
    for _ in 0..3 {
        p.mesh.try_capture(&p.client).unwrap_err();
        is_closed();
    }
    run_in(&p.client, "ip link set lo up");
    eventually(SOON, || Ok(attempt(&p.client, &p.to)?)).unwrap();
    let traffic = Traffic::start(&p.client, &p.to, token);
    traffic.succeeds(20);
    assert_eq!(traffic.stop().failed, 0);
    let verdict = p.mesh.leak_check(&[token], &[&p.client, &p.server]);
    let verdict = verdict.check(&capture.stop().unwrap()).unwrap();
    assert!(verdict.is_clean() && verdict.hbone_bytes > 0, "{verdict}");
}
