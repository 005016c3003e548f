//! The log is read more slowly than a pod fills it: that pod loses lines, and no other does.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;

use culvert_tests::{MeshPod, SOON, at, attempt};
use testbed::{ConnectOpts, eventually, libc};

use crate::scene::{PORT, Scene};

/// Connections of each of the bystanders.
const OTHERS: usize = 150;

/// A pipe that nobody reads yet.
struct Unread(File);

impl Unread {
    fn new(path: &Path) -> Self {
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
        // Without waiting for somebody who writes.
        let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        Self(open.unwrap())
    }

    /// Reads until all that has been written meets `wanted`.
    fn read_until(mut self, wanted: impl Fn(&str) -> anyhow::Result<()>) -> String {
        let mut bytes = Vec::new();
        eventually(SOON, || {
            // Ends with WouldBlock where nothing waits; what was read until then is kept.
            let _ = self.0.read_to_end(&mut bytes);
            wanted(&String::from_utf8_lossy(&bytes))
        })
        .unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Each is refused, which both its ends tell of, on one node.
fn flood(from: &MeshPod, to: &MeshPod, connections: usize) {
    let puppet = from.puppet().unwrap();
    let to = at(to.ipv4(), PORT + 7);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..connections / 4 {
                    let _ = puppet.connect(&*to, ConnectOpts::default());
                }
            });
        }
    });
}

#[test]
fn a_pod_that_floods_the_log_loses_its_own_lines_only() {
    let scene = Scene::new("log-share");
    let agent = scene.mesh.agent(1);
    let pipe = agent.run_dir().join("log");
    agent.kill();
    let log = Unread::new(&pipe);
    agent.restart_logging_into(&pipe);
    for (from, to) in
        [(&scene.hostile, &scene.near), (&scene.client, &scene.server), (&scene.far, &scene.near)]
    {
        eventually(SOON, || Ok(attempt(from, &at(to.ipv4(), PORT))?)).unwrap();
    }
    let lost = |pod: &MeshPod| agent.metric("culvert_pod_log_lines_lost", &[("pod", &pod.uid())]);
    eventually(3 * SOON, || {
        flood(&scene.hostile, &scene.near, 1000);
        let (of_source, of_destination) = (lost(&scene.hostile), lost(&scene.near));
        anyhow::ensure!(
            of_source > 1000.0 && of_destination > 1000.0,
            "lost by the pod that floods: {of_source}, by the one that it connects to: {of_destination}"
        );
        Ok(())
    })
    .unwrap();
    // While there is no room for the flood: from another pod, and to the one that is flooded.
    let before = [&scene.hostile, &scene.near, &scene.client].map(lost);
    for _ in 0..OTHERS {
        attempt(&scene.client, &at(scene.server.ipv4(), PORT)).unwrap();
        attempt(&scene.far, &at(scene.near.ipv4(), PORT)).unwrap();
        let _ = scene.puppet().connect(at(scene.near.ipv4(), PORT + 7), ConnectOpts::default());
    }
    let after = [&scene.hostile, &scene.near, &scene.client].map(lost);
    println!("lines lost by the pod that floods, its victim, a bystander: {before:?}, {after:?}");
    assert!(after[0] >= before[0] + OTHERS as f64, "{before:?} {after:?}");
    assert_eq!(after[2], 0.0);
    // One each from before the flood.
    let expected = OTHERS + 1;
    let outbound = format!("src.addr=\"{}:", scene.client.ipv4());
    let inbound = format!("src.addr=\"{}:", scene.far.ipv4());
    let told = "lines of the log are lost: more were logged than are read";
    let pod = format!("pod={:?}", scene.hostile.uid());
    let text = log.read_until(|text| {
        for (mark, direction) in [(&outbound, "outbound"), (&inbound, "inbound")] {
            let direction = format!("direction=\"{direction}\"");
            let is_one =
                |l: &&str| l.contains(&**mark) && l.contains(&direction) && l.contains("duration=");
            let lines = text.lines().filter(is_one).count();
            anyhow::ensure!(lines == expected, "{lines} lines with {mark} of {expected}");
        }
        let is_told = |l: &str| l.contains(told) && l.contains(&pod);
        anyhow::ensure!(text.lines().any(is_told), "nobody is told of what is lost");
        Ok(())
    });
    // They are a small part of what has come: the flood has its share.
    let of_flood = format!("src.addr=\"{}:", scene.hostile.ipv4());
    assert!(text.lines().filter(|l| l.contains(&of_flood)).count() > 2000);
}
