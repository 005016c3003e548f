//! What an agent's unix sockets are sent by those who should not be there.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs::{self, File, Permissions};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;

use culvert_tests::dialogue::{echo, echo_to, serve};
use culvert_tests::{Mesh, MeshPod, SOON, at, attempt};
use testbed::{Seqpacket, Serve, eventually};

const PORT: u16 = 8080;
const NOBODY: u32 = 65_534;

struct Pair {
    mesh: Mesh,
    client: MeshPod,
    to: String,
}

fn pair(name: &str) -> Pair {
    let mesh = Mesh::builder(name).agent_args(&["--pool-idle-seconds", "1"]).build();
    let (client, server) = (mesh.pod(1, "client"), mesh.pod(1, "server"));
    serve(&server, PORT, Serve::Script);
    mesh.enroll_all(&[client.clone(), server.clone()]);
    let to = at(server.ipv4(), PORT);
    Pair { mesh, client, to }
}

impl Pair {
    fn path(&self, socket: &str) -> std::path::PathBuf {
        self.mesh.agent(1).run_dir().join(socket)
    }

    fn say(&self, socket: &str, message: &[u8]) -> Seqpacket {
        let line = Seqpacket::connect(&self.path(socket)).unwrap();
        // One that has hung up on the greeting already takes nothing more.
        let _ = line.send(message, &[]);
        line
    }

    fn descriptors(&self) -> usize {
        attempt(&self.client, &self.to).unwrap();
        eventually(SOON, || {
            anyhow::ensure!(self.mesh.agent(1).connections().is_empty(), "connections are open");
            Ok(self.mesh.agent(1).descriptors())
        })
        .unwrap()
    }
}

/// What no client says; each as the first message of a connection.
fn garbage() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        "{",
        "null",
        "[]",
        "{}",
        r#"{"say":"hello"}"#,
        r#"{"say":"hello","protocol":1,"abi":-1,"version":"x"}"#,
        r#"{"say":"hello","protocol":1,"abi":1,"version":"x","more":1}"#,
        r#"{"say":"hello","protocol":99,"abi":1,"version":"x"}"#,
        r#"{"say":"hello","protocol":1,"abi":4000000000,"version":"x"}"#,
        r#"{"say":"ready"}"#,
        r#"{"say":"serving"}"#,
        r#"{"say":"yours"}"#,
        r#"{"say":"sent"}"#,
        r#"{"say":"abort","why":"no"}"#,
        r#"{"say":"node","sockets":["enroll"],"pods":1}"#,
        r#"{"do":"nothing"}"#,
        r#"{"do":"unenroll"}"#,
        r#"{"do":"unenroll","uid":""}"#,
        r#"{"do":"enroll","uid":"a","namespace":"","name":"","service_account":""}"#,
    ]
    .map(|s| s.as_bytes().to_vec())
    .into();
    all.extend([vec![0], vec![0xff; 1000], vec![b'['; 16 * 1024], vec![b' '; 16 * 1024 + 1]]);
    all.push(vec![b'x'; 150_000]);
    all
}

#[test]
fn nonsense_on_the_sockets_changes_nothing() {
    let p = pair("nonsense");
    let stream = echo_to(&p.client, &p.to).unwrap();
    let other = echo_to(&p.client, &p.to).unwrap();
    drop(other);
    let before = p.mesh.agent(1).status()["pods"].as_array().unwrap().len();
    let descriptors = p.mesh.agent(1).descriptors();
    for socket in ["handover.sock", "enroll.sock"] {
        for message in garbage() {
            let line = p.say(socket, &message);
            // Whatever is answered, it is neither a pod nor a descriptor, nor the word that all was done.
            while let Ok((answer, beside)) = line.receive() {
                assert!(beside.is_empty(), "{socket} gave descriptors for {message:?}");
                if answer.is_empty() {
                    break;
                }
                let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
                if socket == "enroll.sock" {
                    assert!(answer["error"].is_string(), "{answer} for {message:?}");
                    break;
                }
                assert_eq!(answer["say"], "abort", "{answer} for {message:?}");
            }
        }
        attempt(&p.client, &p.to).unwrap();
    }
    echo(&stream, 100_000, 1).unwrap();
    assert_eq!(p.mesh.agent(1).status()["pods"].as_array().unwrap().len(), before);
    eventually(SOON, || {
        let now = p.mesh.agent(1).descriptors();
        anyhow::ensure!(now <= descriptors, "{now} descriptors, and {descriptors} before");
        Ok(())
    })
    .unwrap();
    drop(stream);
    p.mesh.agent(1).upgrade();
    attempt(&p.client, &p.to).unwrap();
}

/// It has been given everything, and then does not keep to the order.
#[test]
fn one_who_takes_everything_and_then_talks_nonsense_gets_nothing() {
    let p = pair("liar");
    let stream = echo_to(&p.client, &p.to).unwrap();
    let hello = greeting(&p);
    for lie in [
        r#"{"say":"yours"}"#,
        r#"{"say":"serving"}"#,
        r#"{"say":"sent"}"#,
        r#"{"say":"abort","why":"changed its mind"}"#,
        "{",
    ] {
        let line = p.say("handover.sock", hello.as_bytes());
        let given = everything(&line);
        assert!(given > 0);
        line.send(lie.as_bytes(), &[]).unwrap();
        // Until the old agent has hung up.
        while line.receive().is_ok_and(|(m, _)| !m.is_empty()) {}
        attempt(&p.client, &p.to).unwrap();
        echo(&stream, 10_000, 1).unwrap();
    }
    // Is told that it may, and says nothing more: it might be alive, so the connections are its own until it is gone.
    let line = p.say("handover.sock", hello.as_bytes());
    everything(&line);
    line.send(br#"{"say":"ready"}"#, &[]).unwrap();
    let (word, _) = line.receive().unwrap();
    assert_eq!(word, br#"{"say":"yours"}"#);
    drop(line);
    attempt(&p.client, &p.to).unwrap();
    echo(&stream, 10_000, 2).unwrap();
    drop(stream);
    p.mesh.agent(1).upgrade();
    attempt(&p.client, &p.to).unwrap();
}

/// What an agent of this build says first, seen by one who listens in its place.
fn greeting(p: &Pair) -> String {
    // The kernel state's version is in the name of the directory of pins.
    let versions = fs::read_dir(p.mesh.agent(1).node.bpffs()).unwrap();
    let abi = versions
        .filter_map(|e| e.unwrap().file_name().to_str()?.strip_prefix('v')?.parse::<u32>().ok())
        .max()
        .unwrap();
    format!(r#"{{"say":"hello","protocol":1,"abi":{abi},"version":"0.1.0"}}"#)
}

/// Reads until `sent`; the answer is how many descriptors came.
fn everything(line: &Seqpacket) -> usize {
    let mut given = 0;
    loop {
        let (message, beside) = line.receive().unwrap();
        given += beside.len();
        let message: serde_json::Value = serde_json::from_slice(&message).unwrap();
        match message["say"].as_str() {
            Some("node" | "pod") => {}
            Some("sent") => return given,
            _ => panic!("{message} after {given} descriptors"),
        }
    }
}

#[test]
fn too_many_descriptors_and_strange_ones_are_closed() {
    let p = pair("descriptors");
    let before = p.descriptors();
    let null = File::open("/dev/null").unwrap();
    let many: Vec<BorrowedFd<'_>> = vec![null.as_fd(); 200];
    let netns = File::open(p.client.netns_path()).unwrap();
    let request = |name: &str| {
        format!(
            r#"{{"do":"enroll","uid":"Kubernetes//Pod/default/{name}","namespace":"default","name":"{name}","service_account":"{name}"}}"#
        )
    };
    let own_netns = File::open("/proc/self/ns/net").unwrap();
    let mntns = File::open("/proc/self/ns/mnt").unwrap();
    for beside in [
        &many[..],
        &many[..17],
        &many[..2],
        &many[..1],
        &[],
        &[netns.as_fd(), netns.as_fd()],
        &[mntns.as_fd()],
        // The wrong pod's, and one that is no pod's.
        &[netns.as_fd()],
        &[own_netns.as_fd()],
    ] {
        let line = Seqpacket::connect(&p.path("enroll.sock")).unwrap();
        line.send(request("server").as_bytes(), beside).unwrap();
        let answer = line.receive().map(|(m, _)| m).unwrap_or_default();
        if !answer.is_empty() {
            let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
            assert!(answer["error"].is_string(), "{answer} for {} descriptors", beside.len());
        }
        let line = Seqpacket::connect(&p.path("handover.sock")).unwrap();
        line.send(b"{}", beside).unwrap();
        while line.receive().is_ok_and(|(m, _)| !m.is_empty()) {}
    }
    eventually(SOON, || {
        let now = p.descriptors();
        anyhow::ensure!(now <= before, "{now} descriptors, and {before} before");
        Ok(())
    })
    .unwrap();
    attempt(&p.client, &p.to).unwrap();
    let status = p.mesh.agent(1).status();
    assert_eq!(status["pods"].as_array().unwrap().len(), 2, "{status}");
}

#[test]
fn another_user_is_not_listened_to_even_if_the_file_lets_him() {
    let p = pair("nobody");
    let hello = greeting(&p);
    let unenroll = format!(r#"{{"do":"unenroll","uid":"{}"}}"#, p.client.uid());
    for (socket, message) in [("handover.sock", &hello), ("enroll.sock", &unenroll)] {
        let path = p.path(socket);
        let refused = Seqpacket::connect_as(&path, NOBODY).unwrap_err();
        assert!(format!("{refused:#}").contains("EACCES"), "{refused:#}");
        for dir in path.ancestors().skip(1).take_while(|d| d.starts_with("/run/culvert-bed")) {
            fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
        }
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        let line = Seqpacket::connect_as(&path, NOBODY).unwrap();
        let _ = line.send(message.as_bytes(), &[]);
        // An end, and nothing before it; or a reset, of what was not read.
        assert!(line.receive().map_or(true, |(m, beside)| m.is_empty() && beside.is_empty()));
    }
    attempt(&p.client, &p.to).unwrap();
    let status = p.mesh.agent(1).status();
    assert_eq!(status["pods"].as_array().unwrap().len(), 2, "{status}");
    p.mesh.agent(1).upgrade();
}
