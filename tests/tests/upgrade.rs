//! One agent takes another's place while pods talk, and either of the two may die of it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use culvert_tests::dialogue::{echo, echo_to, serve};
use culvert_tests::names::{RecordType, addresses, lookup};
use culvert_tests::{Agent, Mesh, MeshPod, SOON, Service, Traffic, at, attempt, run_in};
use testbed::{Serve, Token, eventually};

const PORT: u16 = 8080;

struct Pair {
    mesh: Mesh,
    client: MeshPod,
    server: MeshPod,
    service: Service,
    to: String,
    back: String,
}

/// A pod on each node, with a server each.
fn pair(name: &str) -> Pair {
    // What is idle goes soon: descriptors are counted.
    let mesh = Mesh::builder(name).agent_args(&["--pool-idle-seconds", "1"]).build();
    let (client, server) = (mesh.pod(1, "client"), mesh.pod(2, "server"));
    for pod in [&client, &server] {
        serve(pod, PORT, Serve::Script);
    }
    mesh.enroll_all(&[client.clone(), server.clone()]);
    let service = mesh.service("server", 80, PORT, &[&server]);
    mesh.bed.dns("plain.example", &[IpAddr::from([192, 0, 2, 1])]);
    let (to, back) = (at(server.ipv4(), PORT), at(client.ipv6(), PORT));
    Pair { mesh, client, server, service, to, back }
}

impl Pair {
    /// What a user of the mesh wants of the first node's agent.
    fn works(&self) {
        attempt(&self.client, &self.to).unwrap();
        attempt(&self.server, &self.back).unwrap();
        self.names_work().unwrap();
        let status = self.mesh.agent(1).status();
        let pods: Vec<&str> =
            status["pods"].as_array().unwrap().iter().map(|p| p["uid"].as_str().unwrap()).collect();
        assert_eq!(pods, [self.client.uid()], "{status}");
    }

    /// Without a second try, one name that the mesh answers for and one of the resolver behind it.
    /// After a death, of which connections that were under way may have felt so much: whatever begins later succeeds.
    #[track_caller]
    fn goes_on_after(&self, point: &str, meanwhile: Traffic, most: u64, token: Token) {
        let later = Traffic::start(&self.client, &self.to, token);
        self.works();
        later.succeeds(20);
        let tally = later.stop();
        assert_eq!(tally.failed, 0, "after {point}: {tally:?}");
        meanwhile.succeeds(20);
        let tally = meanwhile.stop();
        assert!(tally.failed <= most, "at {point}: {tally:?}");
    }

    fn names_work(&self) -> Result<(), testbed::PuppetError> {
        let of_mesh = lookup(&self.client, &self.service.hostname(), RecordType::A)?;
        assert_eq!(addresses(&of_mesh), [IpAddr::from(self.service.ipv4)]);
        let of_others = lookup(&self.client, "plain.example", RecordType::A)?;
        assert_eq!(addresses(&of_others), [IpAddr::from([192, 0, 2, 1])]);
        Ok(())
    }
}

/// What an agent holds in the kernel for its pods, and what listens in a pod.
fn holdings(agent: &Agent, pod: &MeshPod) -> Vec<String> {
    let paths = |mut all: Vec<std::path::PathBuf>| {
        all.sort();
        all.into_iter().map(|p| p.display().to_string())
    };
    let mut all: Vec<String> =
        paths(agent.pinned_for_pods()).chain(paths(agent.saved_pods())).collect();
    for (file, listening) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        let text = fs::read_to_string(format!("/proc/{}/net/{file}", pod.pid())).unwrap();
        let rows = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
        // Local address, remote address, state.
        let mut open: Vec<String> = rows
            .filter(|r| r[3] == listening && r[2].ends_with(":0000"))
            .map(|r| format!("{file} {}", r[1]))
            .collect();
        open.sort();
        all.extend(open);
    }
    all
}

/// A second or so.
const ROUNDS: u64 = 100;

/// Connections that live for a while, one after the other; the answer is how many there were.
fn streams(from: &MeshPod, to: &str, stop: &AtomicBool, upgrades: &AtomicU64) -> u64 {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let born = upgrades.load(Ordering::Relaxed);
        let stream = echo_to(from, to).unwrap();
        let mut round = 0;
        // Past the begin of the next upgrade, which has to wait for this stream, if that comes soon: a stream that a
        // peer began over a connection with the old agent is the old agent's, and must end for it to end.
        while upgrades.load(Ordering::Relaxed) == born && round < ROUNDS {
            echo(&stream, 20_000, round).unwrap();
            round += 1;
        }
        echo(&stream, 200_000, round).unwrap();
        stream.shutdown_write().unwrap();
        assert_eq!(stream.read_to_end().unwrap(), b"");
        count += 1;
    }
    count
}

#[test]
fn twenty_upgrades_under_load_refuse_and_reset_nothing_and_leave_nothing() {
    let p = pair("twenty-up");
    let agents = p.mesh.agents();
    let tokens = [Token::new(), Token::new()];
    let capture = agents[0].node.capture_link("link").unwrap();
    for agent in agents {
        agent.upgrade();
    }
    p.works();
    let idle = |agent: &Agent| -> usize {
        eventually(SOON, || {
            anyhow::ensure!(agent.connections().is_empty(), "connections are open");
            Ok(agent.descriptors())
        })
        .unwrap()
    };
    let descriptors: Vec<usize> = agents.iter().map(idle).collect();
    let before = [holdings(&agents[0], &p.client), holdings(&agents[1], &p.server)];

    let traffic = [
        Traffic::start(&p.client, &p.to, tokens[0]),
        Traffic::start(&p.client, &p.service.at6(), tokens[0]),
        Traffic::start(&p.server, &p.back, tokens[1]),
    ];
    let (stop, upgrades) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let there = scope.spawn(|| streams(&p.client, &p.to, &stop, &upgrades));
        let back = scope.spawn(|| streams(&p.server, &p.back, &stop, &upgrades));
        let names = scope.spawn(|| {
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                p.names_work().unwrap_or_else(|e| panic!("after {asked} pairs of questions: {e}"));
                asked += 1;
            }
            asked
        });
        for round in 0..20 {
            let agent = &agents[round % 2];
            let old = agent.challenged().takes_over();
            upgrades.fetch_add(1, Ordering::Relaxed);
            old.ends();
            for t in &traffic {
                t.succeeds(3);
            }
            if there.is_finished() || back.is_finished() || names.is_finished() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let counts = [there.join().unwrap(), back.join().unwrap(), names.join().unwrap()];
        println!("streams, streams back, pairs of questions: {counts:?}");
        assert!(counts[0] >= 10 && counts[1] >= 10 && counts[2] >= 20, "{counts:?}");
    });
    assert_eq!(upgrades.load(Ordering::Relaxed), 20);
    for t in traffic {
        let tally = t.stop();
        assert_eq!(tally.failed, 0, "{tally:?}");
    }

    let verdict = p.mesh.leak_check(&tokens, &[&p.client, &p.server]);
    let verdict = verdict.check(&capture.stop().unwrap()).unwrap();
    println!("{verdict}");
    assert!(verdict.is_clean() && verdict.hbone_bytes > 0, "{verdict}");
    let after = [holdings(&agents[0], &p.client), holdings(&agents[1], &p.server)];
    assert_eq!(after, before);
    for (agent, before) in agents.iter().zip(descriptors) {
        eventually(SOON, || {
            let now = agent.descriptors();
            // Connections between the nodes that are idle come and go.
            anyhow::ensure!(now <= before + 4, "{now} descriptors, and {before} before");
            Ok(())
        })
        .unwrap();
        assert!(!agent.log().contains("panicked"));
    }
    p.works();
}

#[test]
fn a_stream_outlives_an_upgrade_and_the_old_agent_waits_for_it() {
    let p = pair("outlives");
    let streams = [echo_to(&p.client, &p.to).unwrap(), echo_to(&p.server, &p.back).unwrap()];
    for s in &streams {
        echo(s, 100_000, 1).unwrap();
    }
    let old = p.mesh.agents().iter().map(|a| a.challenged().takes_over());
    let old: Vec<_> = old.collect();
    p.works();
    // By the end of another hand-over the first agents have long begun to drain.
    for agent in p.mesh.agents() {
        agent.upgrade();
    }
    p.works();
    for s in &streams {
        echo(s, 1_000_000, 2).unwrap();
    }
    assert!(old.iter().all(culvert_tests::Predecessor::is_running));
    for s in streams {
        s.shutdown_write().unwrap();
        assert_eq!(s.read_to_end().unwrap(), b"");
    }
    for o in old {
        o.ends();
    }
    p.works();
}

/// Its connections are nobody's but the old agent's, which must not forget them.
#[test]
fn a_stream_of_a_released_pod_outlives_an_upgrade() {
    let p = pair("let-go");
    let stream = echo_to(&p.client, &p.to).unwrap();
    echo(&stream, 100_000, 1).unwrap();
    p.mesh.unenroll(&p.client);
    echo(&stream, 100_000, 2).unwrap();
    let old = p.mesh.agent(1).challenged().takes_over();
    // By the end of another hand-over the first agent has long begun to drain.
    let second = p.mesh.agent(1).challenged().takes_over();
    second.ends();
    echo(&stream, 1_000_000, 3).unwrap();
    assert!(old.is_running());
    stream.shutdown_write().unwrap();
    assert_eq!(stream.read_to_end().unwrap(), b"");
    old.ends();
    attempt(&p.client, &p.to).unwrap();
}

/// What its connections need is there for as long as the old agent carries them, whoever un-enrols the pod.
#[test]
fn a_stream_of_the_old_agent_outlives_its_pods_release_by_the_new_one() {
    let p = pair("let-go-after");
    let streams = [echo_to(&p.client, &p.to).unwrap(), echo_to(&p.server, &p.back).unwrap()];
    for s in &streams {
        echo(s, 100_000, 1).unwrap();
    }
    let old = p.mesh.agent(1).challenged().takes_over();
    p.mesh.unenroll(&p.client);
    for s in &streams {
        echo(s, 1_000_000, 2).unwrap();
    }
    assert!(old.is_running());
    for s in streams {
        s.shutdown_write().unwrap();
        assert_eq!(s.read_to_end().unwrap(), b"");
    }
    old.ends();
    attempt(&p.client, &p.to).unwrap();
    // Then nothing of it is left in the pod.
    eventually(SOON, || {
        let rules = run_in(&p.client, "ip rule; ip -6 rule");
        anyhow::ensure!(!rules.contains("fwmark"), "{rules}");
        Ok(())
    })
    .unwrap();
}

/// Connections that an agent carries when it dies end with it: one at a time is made here, and one may be in its queue.
const MOST_AT_DEATH: u64 = 2;

#[test]
fn a_new_agent_may_die_at_any_step_and_the_old_one_goes_on() {
    let p = pair("new-dies");
    let token = Token::new();
    let capture = p.mesh.agent(1).node.capture_link("link").unwrap();
    let stream = echo_to(&p.client, &p.to).unwrap();
    let before = holdings(p.mesh.agent(1), &p.client);
    for point in [
        "handover-received",
        "handover-prepared",
        "handover-yielded",
        "handover-serving",
        "handover-offering",
    ] {
        let pid = p.mesh.agent(1).pid();
        let traffic = Traffic::start(&p.client, &p.to, token);
        traffic.succeeds(5);
        p.mesh.agent(1).challenged_to_die_at(point).dies();
        // What the new one had accepted ends with it; before it serves it has accepted nothing.
        let accepts = ["handover-serving", "handover-offering"].contains(&point);
        p.goes_on_after(point, traffic, if accepts { MOST_AT_DEATH } else { 0 }, token);
        echo(&stream, 100_000, 1).unwrap();
        assert!(p.mesh.agent(1).is_running() && p.mesh.agent(1).pid() == pid);
        assert_eq!(holdings(p.mesh.agent(1), &p.client), before, "after {point}");
    }
    // And an upgrade that nobody disturbs is still possible.
    let old = p.mesh.agent(1).challenged().takes_over();
    echo(&stream, 100_000, 2).unwrap();
    drop(stream);
    old.ends();
    p.works();
    let verdict = p.mesh.leak_check(&[token], &[&p.client, &p.server]);
    let verdict = verdict.check(&capture.stop().unwrap()).unwrap();
    assert!(verdict.is_clean() && verdict.hbone_bytes > 0, "{verdict}");
}

#[test]
fn an_old_agent_may_die_at_any_step_and_the_new_one_goes_on() {
    let p = pair("old-dies");
    let token = Token::new();
    let capture = p.mesh.agent(1).node.capture_link("link").unwrap();
    let agent = p.mesh.agent(1);
    let before = holdings(agent, &p.client);
    for point in ["handover-sent", "handover-paused"] {
        agent.kill();
        agent.restart_to_die_at(point);
        p.works();
        let traffic = Traffic::start(&p.client, &p.to, token);
        traffic.succeeds(5);
        agent.challenged().survives();
        p.goes_on_after(point, traffic, MOST_AT_DEATH, token);
        assert_eq!(holdings(agent, &p.client).len(), before.len(), "after {point}");
        agent.upgrade();
        p.works();
    }
    let verdict = p.mesh.leak_check(&[token], &[&p.client, &p.server]);
    let verdict = verdict.check(&capture.stop().unwrap()).unwrap();
    assert!(verdict.is_clean() && verdict.hbone_bytes > 0, "{verdict}");
}

#[test]
fn without_a_control_plane_the_old_agent_stays_and_the_new_one_says_why() {
    let p = pair("no-control");
    let traffic = Traffic::start(&p.client, &p.to, Token::new());
    traffic.succeeds(1);
    p.mesh.control.kill();
    let pid = p.mesh.agent(1).pid();
    let why = p.mesh.agent(1).challenged().gives_up();
    assert!(why.contains("discovery"), "{why}");
    traffic.succeeds(20);
    assert!(p.mesh.agent(1).is_running() && p.mesh.agent(1).pid() == pid);
    p.works();
    p.mesh.control.restart(&p.mesh.bed);
    p.mesh.agent(1).upgrade();
    traffic.succeeds(20);
    assert_eq!(traffic.stop().failed, 0);
    p.works();
}

#[test]
fn pods_come_and_go_during_upgrades() {
    let p = pair("come-and-go");
    let pods: Vec<MeshPod> = (0..3).map(|i| p.mesh.enrolled_pod(1, &*format!("p{i}"))).collect();
    for pod in &pods {
        serve(pod, PORT, Serve::Script);
    }
    let agent = p.mesh.agent(1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                for pod in &pods {
                    p.mesh.release(pod);
                    p.mesh.capture(pod);
                }
                rounds += 1;
            }
            rounds
        });
        for _ in 0..6 {
            agent.upgrade();
            if moving.is_finished() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(moving.join().unwrap() > 0);
    });
    let status = agent.status();
    let rows = status["pods"].as_array().unwrap();
    let mut found: Vec<String> = rows.iter().map(|r| r["uid"].as_str().unwrap().into()).collect();
    let mut wanted: Vec<String> = pods.iter().map(MeshPod::uid).chain([p.client.uid()]).collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
    for pod in &pods {
        attempt(pod, &p.to).unwrap();
        attempt(&p.server, &at(pod.ipv4(), PORT)).unwrap();
        assert_eq!(agent.counter(pod, "announce_failed"), 0);
    }
    // Each has its own place in the kernel.
    let pinned = agent.pinned_for_pods();
    let owners: std::collections::BTreeSet<&str> = pinned
        .iter()
        .map(|p| p.file_name().unwrap().to_str().unwrap().split('-').next().unwrap())
        .collect();
    assert_eq!(owners.len(), wanted.len(), "{pinned:?}");
}
