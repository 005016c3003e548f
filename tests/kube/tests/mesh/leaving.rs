//! The mesh is taken off the cluster, as the README says it, under load.

use anyhow::ensure;
use testbed::eventually;

use crate::world::{AGENTS, Mesh, SOON, SYSTEM};

/// What the mesh must leave as it was.
#[derive(Debug, PartialEq)]
pub struct Before {
    /// By pod: rules, routes and settings of its network.
    pods: Vec<String>,
}

impl Mesh {
    pub fn what_is_there(&self) -> Before {
        // Its addresses are others after a reboot, and that of its link comes when it likes.
        let of = |pod: &&str| {
            let (said, own) = (self.exec(pod, NETWORK).unwrap(), self.address(pod));
            let lines = said.lines().filter(|line| !line.contains("fe80::"));
            let line = |line: &str| {
                let words = line.split_whitespace();
                let words = words.map(|word| if word == own { "its own" } else { word });
                words.collect::<Vec<_>>().join(" ")
            };
            lines.map(line).collect::<Vec<_>>().join("\n")
        };
        Before { pods: ["web-1", "web-2", "client"].iter().map(of).collect() }
    }

    pub fn everybody_leaves(&self, before: &Before) {
        let loads = [
            self.load("client", "leaving-across", &self.address("web-2"), 8080),
            self.load("client", "leaving-within", &self.address("web-1"), 8080),
            self.load("client", "leaving-by-service", "10.96.0.80", 80),
        ];
        self.kubectl(&["label", "namespace", "--all", "istio.io/dataplane-mode-"]);
        for pod in ["web-1", "web-2", "client"] {
            self.becomes(pod, "");
        }
        // Their log goes with the agents.
        let log = self.log();
        let failed = |line: &&str| ["WARN access", "\"client\""].iter().all(|w| line.contains(w));
        log.lines().filter(failed).for_each(|line| println!("until now: {line}"));
        self.upgrade("agent.detach=true");
        // There may be no agent at this moment, and none to come.
        self.server("meanwhile", "web", "n1");
        self.kubectl(&["rollout", "status", "daemonset/culvert-agent", "-n", SYSTEM]);
        let said = eventually(SOON, || {
            let logs =
                self.cluster.api().kubectl(&["logs", "-n", SYSTEM, "-l", AGENTS, "--prefix"])?;
            let free = logs.matches("nothing of the mesh is left on this node").count();
            ensure!(free == 2, "{free} of 2 nodes are free of it: {logs}");
            Ok(())
        });
        said.unwrap();
        self.ready("meanwhile");
        self.nodes_are_free();
        self.helm(&["uninstall", "culvert", "--wait"]);
        let pods = ["wait", "--for=delete", "pod", "--all", "-n", SYSTEM, "--timeout=120s"];
        self.kubectl(&pods);
        self.nodes_are_free();
        for load in &loads {
            self.ends_well(load);
        }
        assert_eq!(self.what_is_there(), *before, "a pod's network is what it was");

        // Its pages cross in the clear again, and pods come and go.
        let capture = self.link();
        self.gets("client", "web-2");
        let verdict = self.judge(capture, &self.addresses());
        assert!(!verdict.tokens.is_empty() && verdict.hbone_streams == 0, "{verdict}");
        self.server("after", "web", "n2");
        self.ready("after");
        self.gets("client", "after");
        self.delete("after");
        self.delete("meanwhile");
    }

    /// Whoever uninstalls, and nothing more, leaves no pod without network.
    pub fn an_uninstallation_gives_the_nodes_back(&self, before: &Before) {
        self.install();
        self.join();
        self.gets("client", "web-2");
        self.helm(&["uninstall", "culvert", "--wait"]);
        self.nodes_are_free();
        assert_eq!(self.what_is_there(), *before, "a pod's network is what it was");
        self.server("last", "web", "n2");
        self.ready("last");
        let capture = self.link();
        self.gets("client", "web-2");
        self.gets("client", "last");
        let verdict = self.judge(capture, &self.addresses());
        assert!(!verdict.tokens.is_empty() && verdict.hbone_streams == 0, "{verdict}");
        let left = self.kubectl(&[
            "get",
            "job,serviceaccount,role,rolebinding",
            "-n",
            SYSTEM,
            "-o",
            "name",
        ]);
        assert!(!left.contains("culvert"), "{left}");
        self.delete("last");
    }

    fn nodes_are_free(&self) {
        for node in self.cluster.nodes() {
            let left = node.shell(LEFT).unwrap();
            assert_eq!(left, "", "on {}", node.bed().name());
        }
    }
}

const NETWORK: &str = "ip rule; ip route show table all; \
     cat /proc/sys/net/ipv4/tcp_fwmark_accept /proc/sys/net/ipv4/fwmark_reflect";

/// Prints what is there of the mesh.
const LEFT: &str = "ls -A /run/culvert /sys/fs/bpf/culvert 2>/dev/null | grep -v '^$\\|:$'; \
     ls /opt/cni/bin | grep culvert; grep -rl culvert /etc/cni; ls -A /etc/cni/net.d | grep -v '^10-bed.conflist$'; true";
