//! Nothing of a bed stays behind, however it ends.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use testbed::reaper::leftovers_of;
use testbed::{Bed, Pod, Serve, eventually};

const SOON: Duration = Duration::from_secs(60);

/// Builds something worth cleaning up, with processes of every kind.
fn furnish(bed: &Bed) -> Pod {
    let node = bed.node("n1").unwrap();
    let pod = node.pod("a").unwrap();
    node.pod_in("other", "b").unwrap();
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 80);
    pod.puppet().unwrap().listen(any, Serve::Echo).unwrap();
    // A pod that makes namespaces and cgroups of its own, and a process that does not want to go.
    let mut cmd = Command::new("sh");
    cmd.args(["-c", "trap '' TERM INT HUP; ip link set lo up; unshare -n sleep 1000 & sleep 1000"]);
    std::mem::forget(pod.spawn(cmd).unwrap());
    fs::create_dir(pod.cgroup().join("inner")).unwrap();
    bed.dns("x.default.svc.cluster.local", &[pod.ipv4().into()]);
    pod
}

/// Not of the bed's cgroup, but in one of its namespaces.
fn stray(pod: &Pod) -> Child {
    Command::new("ip").args(["netns", "exec", &pod.netns_name(), "sleep", "1000"]).spawn().unwrap()
}

fn gone(id: &str) {
    eventually(SOON, || {
        let left = leftovers_of(id)?;
        anyhow::ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn close_leaves_nothing() {
    let bed = Bed::new("close").unwrap();
    let pod = furnish(&bed);
    let mut stray = stray(&pod);
    assert!(leftovers_of(bed.id()).unwrap().len() >= 7);
    let (id, pid) = (bed.id().to_owned(), pod.pid());
    // Handles that outlive the bed do not keep it.
    bed.close().unwrap();
    assert!(leftovers_of(&id).unwrap().is_empty());
    assert!(!stray.wait().unwrap().success());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(pod.puppet().is_err());
}

#[test]
fn a_panic_leaves_nothing() {
    let (send, receive) = std::sync::mpsc::channel();
    let test = std::thread::spawn(move || {
        let bed = Bed::new("panic").unwrap();
        let _pod = furnish(&bed);
        send.send(bed.id().to_owned()).unwrap();
        panic!("as intended");
    });
    assert!(test.join().is_err());
    // The drop was part of the unwinding: no waiting.
    assert!(leftovers_of(&receive.recv().unwrap()).unwrap().is_empty());
}

/// Not a test of its own: the process that the next ones kill.
#[test]
#[ignore = "runs as the child of other tests"]
fn victim() {
    let bed = Bed::new("victim").unwrap();
    let pod = furnish(&bed);
    let mut stray = stray(&pod);
    println!("\nvictim {} {}", bed.id(), stray.id());
    // Longer than any test: it is killed here.
    stray.wait().unwrap();
}

fn start_victim() -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|l| l.starts_with("victim ")).unwrap();
    let id = line.split(' ').nth(1).unwrap().to_owned();
    assert!(!leftovers_of(&id).unwrap().is_empty());
    (child, id)
}

#[test]
fn sigkill_of_the_owner_leaves_nothing() {
    let (mut child, id) = start_victim();
    child.kill().unwrap();
    child.wait().unwrap();
    gone(&id);
}

#[test]
fn ctrl_c_leaves_nothing() {
    let (mut child, id) = start_victim();
    // As the terminal does it: to the whole process group.
    let group = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGINT).unwrap();
    child.wait().unwrap();
    gone(&id);
}

#[test]
fn two_beds_do_not_know_each_other() {
    let (one, two) = (Bed::new("twin").unwrap(), Bed::new("twin").unwrap());
    let (a, b) = (furnish(&one), furnish(&two));
    assert_eq!(a.ipv4(), b.ipv4());
    one.close().unwrap();
    // The other still works.
    let sock =
        b.puppet().unwrap().connect(format!("{}:80", b.ipv4()), testbed::ConnectOpts::default());
    let sock = sock.unwrap();
    sock.write(b"alive").unwrap();
    assert_eq!(sock.read_exact(5).unwrap(), b"alive");
    two.close().unwrap();
}

#[test]
fn pinned_objects_have_a_bpffs_of_their_own() {
    let bed = Bed::new("bpffs").unwrap();
    let node = bed.node("n1").unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(mounts.contains(&format!("{} bpf ", bed.bpffs().display())));
    assert!(node.bpffs().is_dir() && node.bpffs().starts_with(bed.bpffs()));
    // A pod's own mount namespace keeps no copy, which would keep what is pinned.
    let pod = node.pod("a").unwrap();
    let theirs = fs::read_to_string(format!("/proc/{}/mounts", pod.pid())).unwrap();
    assert!(!theirs.contains("/run/culvert-bed/") && !theirs.contains("/run/netns/"), "{theirs}");
}
