//! A node: containerd, kubelet and kube-proxy on a node of the bed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use oci_image::Image;
use serde_json::json;
use testbed::{Bed, Proc};

use crate::api_server::{ApiServer, tail};
use crate::power;

const MACHINE: &str = include_str!("machine.sh");
/// Where Debian has them.
const CNI_PLUGINS: &str = "/usr/lib/cni";
/// Where nodes have them.
const CNI_DIR: &str = "/opt/cni/bin";
const SOCKET: &str = "/run/containerd/containerd.sock";
const PATIENCE: Duration = Duration::from_secs(180);

/// A node of the cluster. Its programs are killed when it is dropped.
pub struct Node {
    bed: testbed::Node,
    /// Below this group are the node's processes and its pods.
    cgroup: PathBuf,
    /// Of every pod's sandbox.
    pause: String,
    programs: Vec<(&'static str, Proc)>,
    /// Holds the namespaces.
    machine: Proc,
}

impl Node {
    pub(crate) fn start(
        bed: &Bed,
        api: &ApiServer,
        name: &str,
        pause: &Image,
        images: &Path,
    ) -> Result<Self> {
        let node = bed.node(name)?;
        let cgroup = node.cgroup().join("kube");
        let machine = start_machine(bed, &node, &cgroup)?;
        let pause = pause.name().to_owned();
        let mut this = Self { bed: node, cgroup, pause, programs: Vec::new(), machine };
        this.install_cni()?;
        this.start_containerd()?;
        this.load(images)?;
        this.start_kubelet(api)?;
        this.start_proxy(api)?;
        Ok(this)
    }

    /// The power goes and comes back: every process is killed at once, its kubelet's and its pods' among them, and what
    /// only the kernel had is gone, as is `/run`. What it had on disk (`/etc`, `/opt`, `/var`) stays. It starts again.
    pub(crate) fn reboot(&mut self, bed: &Bed, api: &ApiServer) -> Result<()> {
        power::off(&self.bed, &self.cgroup)?;
        self.programs.clear();
        self.machine = start_machine(bed, &self.bed, &self.cgroup)?;
        self.start_containerd()?;
        self.start_kubelet(api)?;
        self.start_proxy(api)
    }

    /// The bed's node below it: its namespace, its addresses, its link.
    pub fn bed(&self) -> &testbed::Node {
        &self.bed
    }

    /// Runs a program as the node sees things: its `/etc`, `/opt`, `/run`, `/var` and `/sys` are its own, the rest is
    /// this machine's.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, program: &Path, args: &[String]) -> Result<Proc> {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        self.bed.spawn_named(self.command(program, args), &name)
    }

    /// What a shell on the node prints.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn shell(&self, script: &str) -> Result<String> {
        let shell = self.spawn(Path::new("/bin/sh"), &["-c".to_owned(), script.to_owned()])?;
        let status = shell.wait(PATIENCE)?;
        ensure!(status.success(), "{script:?} on {}: {}", self.bed.name(), shell.stderr());
        Ok(shell.stdout())
    }

    /// What a shell does to run the program after it as [`Self::spawn`] does: the group must be entered before the
    /// namespaces are.
    pub fn entering(&self) -> String {
        let ns = format!("/proc/{}/ns", self.machine.pid());
        format!(
            "echo $$ >'{}/init/cgroup.procs' && exec nsenter --net='{}' --mount={ns}/mnt --cgroup={ns}/cgroup --",
            self.cgroup.display(),
            self.bed.netns_path().display(),
        )
    }

    /// Imports an archive of images into containerd.
    pub(crate) fn load(&self, archive: &Path) -> Result<()> {
        let args = ["--address", SOCKET, "--namespace", "k8s.io", "images", "import"];
        let mut args: Vec<String> = args.map(str::to_owned).into();
        args.push(archive.display().to_string());
        let import = self.spawn(&host_program("ctr")?, &args)?;
        let status = import.wait(PATIENCE)?;
        ensure!(status.success(), "importing {}: {}", archive.display(), import.stderr());
        Ok(())
    }

    /// # Errors
    /// With the first of its programs that has ended.
    pub fn check(&self) -> Result<()> {
        ensure!(self.machine.is_running(), "{} has lost its namespaces", self.bed.name());
        for (name, proc) in &self.programs {
            if !proc.is_running() {
                bail!("{name} of {} has ended:\n{}", self.bed.name(), tail(&proc.stderr()));
            }
        }
        Ok(())
    }

    fn command(&self, program: &Path, args: &[String]) -> Command {
        let mut cmd = Command::new("/bin/sh");
        cmd.arg("-c")
            .arg(format!("{} \"$@\"", self.entering()))
            .arg("enter")
            .arg(program)
            .args(args);
        cmd
    }

    fn start_containerd(&mut self) -> Result<()> {
        let config = self.write("containerd.toml", &containerd_config(&self.pause))?;
        let args = ["--config".to_owned(), config.display().to_string()];
        let proc = self.spawn(&host_program("containerd")?, &args)?;
        proc.wait_for_output("containerd successfully booted", PATIENCE)?;
        self.programs.push(("containerd", proc));
        Ok(())
    }

    /// The addresses are those of the bed's pods: its nodes know the way to each other's. Each pod has a link of its own
    /// and no bridge, so that what one sends to another by a service comes back by the node, which knows the service.
    fn install_cni(&self) -> Result<()> {
        // A folder of the node's own, in which others may put plugins of theirs.
        let link = format!("mkdir -p {CNI_DIR} && ln -sf {CNI_PLUGINS}/* {CNI_DIR}/");
        self.shell(&link).context("linking the CNI plugins")?;
        let subnet = format!("10.10.{}.0/24", self.bed.number());
        let first = format!("10.10.{}.2", self.bed.number());
        let range = json!({"subnet": subnet, "rangeStart": first, "gateway": self.bed.gateway4()});
        let chain = json!({
            "cniVersion": "0.4.0",
            "name": "bed",
            "plugins": [
                {
                    "type": "ptp",
                    "ipam": {"type": "host-local", "ranges": [[range]], "routes": [{"dst": "0.0.0.0/0"}]},
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        // The upper folder of the node's /etc.
        let net = self.bed.dir().join("etc.upper/cni/net.d");
        fs::create_dir_all(&net)?;
        fs::write(net.join("10-bed.conflist"), format!("{chain:#}\n"))?;
        Ok(())
    }

    fn start_kubelet(&mut self, api: &ApiServer) -> Result<()> {
        let name = self.bed.name().to_owned();
        let (pki, address) = (api.pki(), self.bed.ipv4());
        let serving = pki.server(&format!("kubelet-{name}"), &[&name], &[address.into()])?;
        let kubeconfig =
            api.user_kubeconfig(&format!("system:node:{name}"), Some("system:nodes"))?;
        let resolver = format!("nameserver {}\n", self.bed.gateway4());
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true},
                "x509": {"clientCAFile": pki.root()}},
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": serving.certificate,
            "tlsPrivateKeyFile": serving.key,
            "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
            "cgroupDriver": "cgroupfs",
            // Classes of service are made of controllers, which the bed's groups do not have.
            "cgroupsPerQOS": false,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": false,
            "clusterDomain": "cluster.local",
            "clusterDNS": [self.bed.gateway4()],
            "resolvConf": self.write("resolv.conf", &resolver)?,
            "failSwapOn": false,
            "makeIPTablesUtilChains": false,
            // Otherwise it goes to /usr/libexec, which is the machine's.
            "volumePluginDir": "/var/lib/kubelet/plugins/volume",
            // A developer's full disk is no reason to evict pods that live for seconds.
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%",
                "nodefs.inodesFree": "0%", "imagefs.available": "0%", "imagefs.inodesFree": "0%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
        });
        let config = self.write("kubelet.json", &format!("{config:#}\n"))?;
        let args = [
            format!("--config={}", config.display()),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--hostname-override={name}"),
            format!("--node-ip={address}"),
        ];
        let proc = self.spawn(&api.programs().get("kubelet")?, &args)?;
        self.programs.push(("kubelet", proc));
        Ok(())
    }

    fn start_proxy(&mut self, api: &ApiServer) -> Result<()> {
        let kubeconfig = api.user_kubeconfig("system:kube-proxy", None)?;
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": kubeconfig},
            "mode": "nftables",
            "clusterCIDR": "10.10.0.0/16",
            "hostnameOverride": self.bed.name(),
            "healthzBindAddress": "127.0.0.1:10256",
            // The connection table is the whole machine's.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        });
        let config = self.write("kube-proxy.json", &format!("{config:#}\n"))?;
        let args = [format!("--config={}", config.display())];
        let proc = self.spawn(&api.programs().get("kube-proxy")?, &args)?;
        self.programs.push(("kube-proxy", proc));
        Ok(())
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.bed.dir().join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

fn start_machine(bed: &Bed, node: &testbed::Node, cgroup: &Path) -> Result<Proc> {
    let script = node.dir().join("machine.sh");
    fs::write(&script, MACHINE)?;
    let mut cmd = Command::new("/bin/sh");
    cmd.arg(&script).args([cgroup, &node.dir(), bed.dir()]);
    let machine = node.spawn_named(cmd, "machine")?;
    machine.wait_for_output("made", PATIENCE).context("its namespaces")?;
    Ok(machine)
}

fn containerd_config(pause: &str) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]

[grpc]
address = "{SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# Not every machine lets a container be killed later than what started it.
restrict_oom_score_adj = true
# Containers have groups, but no limits: the bed's groups have no controllers to set them with.
disable_cgroup = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_DIR}"
conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#
    )
}

/// A program that the distribution installs.
fn host_program(name: &str) -> Result<PathBuf> {
    ["/usr/bin", "/usr/sbin", "/usr/local/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("no {name}: install Debian's containerd and runc"))
}
