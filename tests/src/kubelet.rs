//! A program by the name of the kubelet's that opens a connection, as the real one does for a probe.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use testbed::{Node, Pod, Proc};

use crate::SOON;

/// A shell that is called `kubelet`. Its file goes with it.
pub struct Kubelet {
    dir: PathBuf,
}

/// Where a kubelet, or what pretends to be one, runs.
pub enum Runs<'a> {
    OnNode(&'a Node),
    /// On the node, under another name.
    Renamed(&'a Node),
    /// On the node, as another user.
    AsNobody(&'a Node),
    /// On the node, and in a pod's cgroup: a pod that shares the node's network.
    AmongPods(&'a Node),
    InPod(&'a Pod),
    /// In a pod that sends from this address, which is its node's.
    InPodAs(&'a Pod, String),
}

const SCRIPT: &str = r#"
    exec 3<>"/dev/tcp/${1%:*}/${1##*:}" || exit 1
    printf "$2" >&3
    IFS= read -r -t 20 -N "$3" answer <&3 || exit 1
    printf %s "$answer""#;

const NOBODY: &str = "65534";

impl Kubelet {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("culvert-kubelet-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy("/bin/bash", dir.join("kubelet")).unwrap();
        Self { dir }
    }

    /// The first so many bytes of the answer to `question`; none when there is none.
    pub fn asks(&self, runs: &Runs<'_>, to: &str, question: &str, bytes: usize) -> Option<String> {
        let mut cmd = Command::new(self.dir.join("kubelet"));
        let mut script = SCRIPT.to_owned();
        match runs {
            Runs::OnNode(_) | Runs::InPod(_) => {}
            Runs::Renamed(_) => cmd = Command::new("/bin/bash"),
            Runs::AsNobody(_) => {
                // By itself: what enters the node's namespaces before must be root's.
                cmd = Command::new("setpriv");
                cmd.args(["--reuid", NOBODY, "--clear-groups"]).arg(self.dir.join("kubelet"));
            }
            Runs::AmongPods(node) => {
                let group = node.cgroup().join("host/kubepods.slice");
                fs::create_dir_all(&group).unwrap();
                let procs = group.join("cgroup.procs");
                script = format!("echo $$ > {} || exit 2\n{script}", procs.display());
            }
            Runs::InPodAs(_, address) => {
                let (host, _) = to.rsplit_once(':').unwrap();
                script = format!(
                    "ip addr add {address}/32 dev lo || exit 2\n\
                     ip route add {host}/32 dev eth0 src {address} || exit 2\n{script}"
                );
            }
        }
        cmd.args(["-c", &script, "kubelet", to, question, &bytes.to_string()]);
        let proc: Result<Proc> = match runs {
            Runs::OnNode(node)
            | Runs::Renamed(node)
            | Runs::AsNobody(node)
            | Runs::AmongPods(node) => node.spawn(cmd),
            Runs::InPod(pod) | Runs::InPodAs(pod, _) => pod.spawn(cmd),
        };
        let proc = proc.unwrap();
        // It waits for the kernel to give up, where nobody answers.
        let status = proc.wait(SOON * 4).unwrap();
        assert_ne!(status.code(), Some(2), "it cannot be set up: {}", proc.stderr());
        status.success().then(|| proc.stdout())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
