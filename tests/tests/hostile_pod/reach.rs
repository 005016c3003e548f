//! What is the agent's on the node is for root alone. That no pod sees its folders at all is the deployment's part: pods of
//! the testbed share the node's files, all but the bpffs.

use std::process::Command;

use culvert_tests::{SOON, attempt, binary};

use crate::scene::Scene;

/// Runs a program in the hostile pod as nobody; it must fail, and this is all that it said.
fn as_nobody(scene: &Scene, program: &str, args: &[&str]) -> String {
    let mut cmd = Command::new("setpriv");
    cmd.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"]);
    cmd.args(["--inh-caps=-all", "--bounding-set=-all", program]).args(args);
    let proc = scene.hostile.spawn(cmd).unwrap();
    let status = proc.wait(SOON).unwrap();
    let said = proc.stdout() + &proc.stderr();
    assert!(!status.success(), "{program} {args:?} as nobody: {said}");
    said
}

#[test]
fn an_unprivileged_process_reaches_neither_sockets_nor_maps() {
    let scene = Scene::new("reach");
    let agent = scene.mesh.agent(1);
    // Whoever may pass through the folders of the bed finds that the last doors are closed.
    for dir in agent.run_dir().ancestors().take_while(|d| d.starts_with(scene.mesh.bed.dir())) {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir, open).unwrap();
    }
    let run_dir = agent.run_dir().display().to_string();
    let ctl = binary("culvertctl").display().to_string();
    let netns = scene.silent.netns_path().display().to_string();
    let pod = ["--namespace", "default", "--name", "silent"];
    for args in [
        vec!["status"],
        [vec!["unenroll"], pod.to_vec()].concat(),
        [vec!["enroll", "--netns", &netns, "--service-account", "silent"], pod.to_vec()].concat(),
    ] {
        let said = as_nobody(&scene, &ctl, &[vec!["--run-dir", &run_dir], args].concat());
        assert!(said.contains("ermission denied"), "{said}");
    }
    let pinned = agent.pinned_for_pods()[0].display().to_string();
    let bpffs = agent.node.bpffs().display().to_string();
    for args in [vec!["ls", &bpffs], vec!["cat", &pinned], vec!["rm", &pinned]] {
        let said = as_nobody(&scene, args[0], &args[1..]);
        assert!(said.contains("No such file") || said.contains("ermission denied"), "{said}");
    }
    let saved = agent.saved_pods()[0].display().to_string();
    as_nobody(&scene, "tee", &["-a", &saved]);
    assert_eq!(agent.status()["pods"].as_array().unwrap().len(), 4);
    for to in scene.targets() {
        attempt(&scene.hostile, &to.to_string()).unwrap();
    }
}

/// Root in a pod that has not the rights over BPF.
#[test]
fn root_without_cap_bpf_opens_no_map() {
    let scene = Scene::new("no-cap-bpf");
    let agent = scene.mesh.agent(1);
    let agent_binary = binary("culvert-agent").display().to_string();
    let mut cmd = Command::new("setpriv");
    cmd.args([
        "--bounding-set",
        "-bpf,-sys_admin,-perfmon",
        "--inh-caps",
        "-bpf,-sys_admin,-perfmon",
    ]);
    cmd.args([&agent_binary, "check", "--cgroup"]).arg(agent.node.cgroup());
    let proc = scene.hostile.spawn(cmd).unwrap();
    let status = proc.wait(SOON).unwrap();
    assert!(!status.success(), "{}{}", proc.stdout(), proc.stderr());
    for to in scene.targets() {
        attempt(&scene.hostile, &to.to_string()).unwrap();
    }
}
