//! Trouble, one kind after the other, with calm between: the network's, the agents', the control
//! plane's.

use crate::{
    delay::Delay,
    scene::{Outage, Scene, Span},
};
use anyhow::{Context as _, ensure};
use culvert_tests::Agent;
use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};
use testbed::Node;

const TROUBLE: Duration = Duration::from_secs(3);
const CALM: Duration = Duration::from_secs(3);
/// Beyond `--drain-seconds`.
const DRAIN: Duration = Duration::from_secs(20);

type Kind = (&'static str, fn(&Scene));

const KINDS: [Kind; 9] = [
    ("slow network", slow),
    ("first agent killed", |s| kill(s, 1)),
    ("packets lost", lossy),
    ("nodes far from one another", far),
    ("second agent drained", |s| drain(s, 2)),
    ("nodes apart", apart),
    // Nobody is to notice.
    ("first agent upgraded", |s| s.mesh.agent(1).upgrade()),
    ("control plane killed", control_plane),
    ("second agent killed, packets lost", |s| {
        let _loss = Rules::new(s, &loss());
        kill(s, 2);
    }),
];

pub fn change(scene: &Scene) {
    for (name, trouble) in KINDS.iter().cycle() {
        scene.pause(CALM);
        if scene.has_ended() {
            return;
        }
        eprintln!("  {name}");
        scene.notes().weather.push(name);
        trouble(scene);
    }
}

/// A narrow link with a queue: everything waits behind everything.
fn slow(scene: &Scene) {
    let _narrow = Narrow::new(scene);
    scene.pause(TROUBLE);
}

fn lossy(scene: &Scene) {
    let _loss = Rules::new(scene, &loss());
    scene.pause(TROUBLE);
}

/// Half a world away, by ways of different length.
fn far(scene: &Scene) {
    let _late: Vec<Delay> = nodes(scene).map(|n| Delay::new(n, 30..80).unwrap()).collect();
    scene.pause(TROUBLE);
}

fn loss() -> Vec<String> {
    vec!["iifname eth0 numgen random mod 100 < 3 drop".to_owned()]
}

fn apart(scene: &Scene) {
    let others: Vec<String> = ["172.18.0.1-172.18.0.2", "10.10.1.0/24", "10.10.2.0/24"]
        .iter()
        .map(|net| format!("iifname eth0 ip saddr {net} drop"))
        .chain(
            ["fd18::1-fd18::2", "fd10:10:1::/64", "fd10:10:2::/64"]
                .iter()
                .map(|net| format!("iifname eth0 ip6 saddr {net} drop")),
        )
        .collect();
    let _apart = Rules::new(scene, &others);
    scene.pause(TROUBLE);
}

fn control_plane(scene: &Scene) {
    scene.mesh.control.kill();
    scene.mesh.control.restart(&scene.mesh.bed);
}

fn kill(scene: &Scene, node: usize) {
    without(scene, node, Agent::kill);
}

fn drain(scene: &Scene, node: usize) {
    without(scene, node, |agent| {
        agent.drain();
        agent.wait_for_exit(DRAIN);
    });
}

/// The node has no agent until the next one is ready.
fn without(scene: &Scene, node: usize, end: impl FnOnce(&Agent)) {
    let agent = scene.mesh.agent(node);
    let from = SystemTime::now();
    // Noted before it begins: attempts that fail are judged by it.
    let at = {
        let mut notes = scene.notes();
        notes.outages.push(Outage { node, span: Span { from, to: None } });
        notes.outages.len() - 1
    };
    end(agent);
    agent.restart();
    scene.notes().outages[at].span.to = Some(SystemTime::now());
}

fn nodes(scene: &Scene) -> impl Iterator<Item = &Node> {
    scene.mesh.agents().iter().map(|a| &a.node)
}

/// Netfilter rules on both nodes for what comes from the other; gone when dropped.
struct Rules<'a>(&'a Scene);

impl<'a> Rules<'a> {
    fn new(scene: &'a Scene, rules: &[String]) -> Self {
        let text = format!(
            "table inet soak {{ chain in {{ type filter hook prerouting priority -400;\n{}\n}}\n}}\n",
            rules.join("\n")
        );
        let this = Self(scene);
        for node in nodes(scene) {
            inside(node, &["nft", "-f", "-"], &text).unwrap();
        }
        this
    }
}

impl Drop for Rules<'_> {
    fn drop(&mut self) {
        for node in nodes(self.0) {
            let gone = inside(node, &["nft", "-f", "-"], "delete table inet soak\n");
            assert!(gone.is_ok() || std::thread::panicking(), "{gone:?}");
        }
    }
}

/// A narrow link out of both nodes, with some tens of milliseconds of queue; wide when dropped.
struct Narrow<'a>(&'a Scene);

impl<'a> Narrow<'a> {
    fn new(scene: &'a Scene) -> Self {
        let this = Self(scene);
        for node in nodes(scene) {
            let narrow = "tc qdisc replace dev eth0 root tbf rate 2mbit burst 4kb latency 100ms";
            inside(node, &narrow.split(' ').collect::<Vec<_>>(), "").unwrap();
        }
        this
    }
}

impl Drop for Narrow<'_> {
    fn drop(&mut self) {
        for node in nodes(self.0) {
            let gone = inside(node, &["tc", "qdisc", "del", "dev", "eth0", "root"], "");
            assert!(gone.is_ok() || std::thread::panicking(), "{gone:?}");
        }
    }
}

fn inside(node: &Node, words: &[&str], input: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &node.netns_name()]).args(words);
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {words:?}"))?;
    child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
    let out = child.wait_with_output()?;
    ensure!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}
