//! What an agent does on a node of Kubernetes: pods that run already join and leave by their records, found at a
//! container runtime that is a script; the control plane is told; culvert-cni is kept in its place.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, ensure};
use culvert_tests::dialogue::{echo, echo_to, serve};
use culvert_tests::stage::{Stage, record};
use culvert_tests::{Agent, Mesh, MeshPod, SOON, Spec, Traffic, at, attempt, binary};
use scripted::messages::{response, workload};
use scripted::runtime::{Runtime, Sandbox};
use serde_json::{Value, json};
use testbed::{Serve, Token, eventually};
use tonic::Code;
use xds::ADDRESS_TYPE;
use xds::proto::workload as pb;

const PORT: u16 = 8080;

/// A directory for a test's own files, which goes with it.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("culvert-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Two nodes whose agents ask one runtime.
struct Scene {
    mesh: Mesh,
    runtime: Runtime,
    _files: Files,
}

impl Scene {
    fn new(name: &str) -> Self {
        let files = Files::new(name);
        let socket = files.path("cri.sock");
        let runtime = Runtime::start(socket.as_ref());
        let mesh = Mesh::builder(name).agent_args(&["--cri", &socket]).build();
        Self { mesh, runtime, _files: files }
    }

    /// Whether the pods of namespace `shop` are to be in the mesh.
    fn label(&self, mode: &str) {
        let labels = format!("labels: {{ istio.io/dataplane-mode: {mode} }}");
        self.mesh.apply(
            "namespace-shop",
            &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{ name: shop, {labels} }}\n"),
        );
    }

    fn pod(&self, node: usize, name: &str) -> MeshPod {
        let pod = self.mesh.pod(node, Spec::named(name).namespace("shop"));
        serve(&pod, PORT, Serve::Script);
        pod
    }

    fn run(&self, pod: &MeshPod) {
        self.runtime.put(&format!("sandbox-of-{}", pod.object_uid()), sandbox(pod));
    }

    fn is_enrolled(&self, pod: &MeshPod, wanted: bool) {
        let agent = self.mesh.agent_of(pod);
        eventually(SOON, || {
            let is = enrolled(agent).contains(&pod.uid());
            ensure!(is == wanted, "{pod:?} is enrolled: {is}");
            Ok(())
        })
        .unwrap();
    }
}

fn sandbox(pod: &MeshPod) -> Sandbox {
    Sandbox {
        namespace: pod.namespace().to_owned(),
        name: pod.name().to_owned(),
        pod_uid: pod.object_uid(),
        ready: true,
        pid: pod.pid(),
        netns: Some(pod.netns_path()),
    }
}

fn enrolled(agent: &Agent) -> Vec<String> {
    let status = agent.status();
    let pods = status["pods"].as_array().unwrap();
    pods.iter().map(|p| p["uid"].as_str().unwrap().to_owned()).collect()
}

fn says(agent: &Agent, what: &str) {
    eventually(SOON, || {
        let log = agent.log();
        log.contains(what).then_some(()).with_context(|| format!("no {what:?} in\n{log}"))
    })
    .unwrap();
}

#[test]
fn running_pods_join_and_leave_by_their_namespaces_label_and_connections_stay() {
    let s = Scene::new("label");
    s.label("none");
    let (client, server) = (s.pod(1, "client"), s.pod(2, "server"));
    for pod in [&client, &server] {
        s.run(pod);
    }
    let to = at(server.ipv4(), PORT);
    let outside = echo_to(&client, &to).unwrap();
    echo(&outside, 100_000, 1).unwrap();
    let traffic = Traffic::start(&client, &to, Token::new());
    traffic.succeeds(5);

    s.label("ambient");
    for pod in [&client, &server] {
        s.is_enrolled(pod, true);
    }
    // In a cluster culvertd does this, told by the agents.
    for pod in [&server, &client] {
        s.mesh.announce(pod);
    }
    echo(&outside, 1_000_000, 2).unwrap();
    traffic.succeeds(20);
    let inside = echo_to(&client, &to).unwrap();
    echo(&inside, 100_000, 3).unwrap();
    s.mesh.agent(2).logged(&[&format!("src.identity=\"{}\"", client.identity())]);

    s.label("none");
    for pod in [&client, &server] {
        s.is_enrolled(pod, false);
    }
    for live in [&outside, &inside] {
        echo(live, 1_000_000, 4).unwrap();
    }
    traffic.succeeds(20);
    assert_eq!(traffic.stop().failed, 0);
    let before = s.mesh.agent(2).access_log().len();
    attempt(&client, &to).unwrap();
    assert_eq!(s.mesh.agent(2).access_log().len(), before, "the agents have no part in it");
}

#[test]
fn a_runtime_that_is_away_is_waited_for_and_a_pod_that_cannot_join_holds_up_none() {
    let mut s = Scene::new("away");
    s.runtime.stop();
    s.label("ambient");
    let (web, wrong) = (s.pod(1, "web"), s.pod(1, "wrong"));
    // The runtime does not know this one, which is therefore nowhere enrolled.
    let other = s.pod(1, "other");
    s.run(&web);
    let agent = s.mesh.agent(1);
    says(agent, "does not answer on");
    assert_eq!(enrolled(agent), [] as [String; 0]);
    // The process that it names is another pod's.
    let others = Sandbox { pid: other.pid(), netns: Some(other.netns_path()), ..sandbox(&wrong) };
    s.runtime.put("wrong", others);
    s.runtime.start_again();
    s.is_enrolled(&web, true);
    says(agent, "namespace is not this pod's");
    assert_eq!(enrolled(agent), [web.uid()]);
    // One whose process is not in the namespace that the runtime has made.
    s.runtime.put("wrong", Sandbox { pid: web.pid(), ..sandbox(&wrong) });
    says(agent, "did the sandbox end meanwhile");
    // On the node's own network there is nothing to enrol.
    s.runtime.put("wrong", Sandbox { netns: None, ..sandbox(&wrong) });
    says(agent, "is in the node's network namespace");
    s.runtime.put("wrong", sandbox(&wrong));
    s.is_enrolled(&wrong, true);
    s.is_enrolled(&web, true);
}

#[test]
fn a_pod_made_anew_under_its_name_joins_and_the_one_before_is_let_go() {
    let s = Scene::new("anew");
    s.label("ambient");
    let server = s.pod(2, "server");
    s.run(&server);
    s.is_enrolled(&server, true);
    s.mesh.announce(&server);
    let to = at(server.ipv4(), PORT);
    let first = s.pod(1, "web-0");
    s.run(&first);
    s.is_enrolled(&first, true);
    s.mesh.announce(&first);
    attempt(&first, &to).unwrap();
    let pinned = s.mesh.agent(1).pinned_for_pods();

    s.mesh.kill_pod(&first);
    s.runtime.remove(&format!("sandbox-of-{}", first.object_uid()));
    let second = s.pod(1, "web-0");
    s.run(&second);
    eventually(SOON, || {
        let now = s.mesh.agent(1).pinned_for_pods();
        ensure!(now.len() == pinned.len() && now != pinned, "{now:?}, before {pinned:?}");
        Ok(())
    })
    .unwrap();
    s.mesh.announce(&second);
    attempt(&second, &to).unwrap();
    s.mesh.agent(2).logged(&[&format!("src.addr=\"{}:", second.ipv4()), &second.identity()]);

    // Its record goes first, as when it is deleted by force: while it runs it stays captured.
    s.mesh.forget_pod(&second);
    eventually(SOON, || {
        ensure!(s.mesh.agent(1).workload(&second.uid()).is_err(), "it is known still");
        Ok(())
    })
    .unwrap();
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(enrolled(s.mesh.agent(1)), [second.uid()]);
    s.runtime.remove(&format!("sandbox-of-{}", second.object_uid()));
    s.is_enrolled(&second, false);
}

#[test]
fn the_control_plane_is_told_of_each_enrolment_and_again_when_it_comes_back() {
    let files = Files::new("told");
    let socket = files.path("cri.sock");
    let runtime = Runtime::start(socket.as_ref());
    let mut stage = Stage::with_args("told", &["--cri", &socket]);
    let pod = stage.pod("web");
    let wanted = |enroll: bool| {
        let extension = pb::Extension { name: xds::ENROLL_EXTENSION.to_owned(), config: None };
        pb::Workload {
            extensions: enroll.then_some(extension).into_iter().collect(),
            ..record(&pod)
        }
    };
    runtime.put("sandbox", sandbox(&pod));
    // Whatever it answers to the first, it hears of it again.
    stage.control().refuse_reports(&[Code::Internal, Code::PermissionDenied]);
    let mut stream = stage.answer(&[wanted(true)], &[]);
    let heard = |stage: &Stage, expected: &[bool]| {
        eventually(SOON, || {
            let all = stage.control().reports();
            let said: Vec<bool> = all.iter().map(|r| r.enrolled).collect();
            ensure!(said == expected, "{all:?}");
            for report in all {
                assert_eq!(report.pod_uid, pod.object_uid());
                assert_eq!((&*report.namespace, &*report.name), ("default", "web"));
            }
            Ok(())
        })
        .unwrap();
    };
    heard(&stage, &[true, true, true]);
    let changed = workload("2", &wanted(false));
    stream.taken(&response(ADDRESS_TYPE, "addresses-2", vec![changed], &[]));
    heard(&stage, &[true, true, true, false]);
    let changed = workload("3", &wanted(true));
    stream.taken(&response(ADDRESS_TYPE, "addresses-3", vec![changed], &[]));
    heard(&stage, &[true, true, true, false, true]);

    // It has forgotten; and it does not want to know, which is no reason to insist.
    drop(stream);
    stage.stop_control();
    stage.start_control();
    stage.control().refuse_reports(&[Code::Unimplemented]);
    let _stream = stage.answer(&[wanted(true)], &[]);
    heard(&stage, &[true]);

    // The next agent tells of what it has taken up.
    stage.agent.kill();
    stage.agent.begin();
    let _stream = stage.answer(&[wanted(true)], &[]);
    stage.agent.wait_until_ready();
    heard(&stage, &[true, true]);
}

#[test]
fn culvert_cni_is_kept_in_its_place_and_goes_only_when_it_is_taken_out() {
    let files = Files::new("place");
    let (bin, conf) = (files.path("bin"), files.path("net.d"));
    fs::create_dir_all(&conf).unwrap();
    let list = files.path("net.d/10-net.conflist");
    let before =
        "{\"cniVersion\": \"0.3.1\", \"name\": \"net\", \"plugins\": [{\"type\": \"ptp\"}]}\n";
    fs::write(&list, before).unwrap();
    let exclude = ["--cni-exclude-namespace", "kube-system", "--cni-exclude-namespace", "own"];
    let dirs = ["--cni-bin-dir", &bin, "--cni-conf-dir", &conf];
    let stage = Stage::with_args("place", &[&dirs[..], &exclude].concat());
    let agent = &stage.agent;
    let _stream = stage.answer(&[], &[]);
    agent.wait_until_ready();
    let in_place = || {
        eventually(SOON, || {
            let now: Value = serde_json::from_str(&fs::read_to_string(&list)?)?;
            let own = &now["plugins"][1];
            ensure!(own["type"] == "culvert-cni", "{now}");
            assert_eq!(own["excludeNamespaces"], json!(["kube-system", "own"]));
            assert_eq!(now["plugins"].as_array().unwrap().len(), 2, "{now}");
            Ok(())
        })
        .unwrap();
    };
    in_place();
    let installed = PathBuf::from(&bin).join("culvert-cni");
    assert_eq!(fs::read(&installed).unwrap(), fs::read(binary("culvert-cni")).unwrap());
    fs::write(&list, before).unwrap();
    in_place();

    // What is installed asks the agent that installed it.
    let now: Value = serde_json::from_str(&fs::read_to_string(&list).unwrap()).unwrap();
    let mut config = now["plugins"][1].clone();
    (config["cniVersion"], config["name"]) = ("1.1.0".into(), "net".into());
    let call = files.path("status.json");
    fs::write(&call, config.to_string()).unwrap();
    let asked = Command::new(&installed)
        .env("CNI_COMMAND", "STATUS")
        .stdin(fs::File::open(&call).unwrap())
        .output()
        .unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stdout));

    // A pod that starts while no agent is there must wait: nothing is taken out.
    agent.drain();
    agent.wait_for_exit(SOON);
    in_place();
    let out = Command::new(binary("culvert-agent"))
        .args(["detach", "--cni-conf-dir", &conf, "--cni-bin-dir", &bin, "--bpffs"])
        .arg(agent.node.bpffs())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(fs::read_to_string(&list).unwrap(), before);
    assert!(!installed.exists());
}
