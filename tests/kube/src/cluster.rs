//! An API server with its controllers, and nodes that run pods.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use oci_image::Image;
use testbed::{Bed, Proc, eventually};

use crate::api_server::{ApiServer, Tier, tail};
use crate::node::Node;
use crate::programs::Programs;

const PATIENCE: Duration = Duration::from_secs(300);

/// A cluster that runs pods. Its programs are killed when it is dropped; pods go with the bed.
pub struct Cluster {
    api: ApiServer,
    controllers: Vec<(&'static str, Proc)>,
    nodes: Vec<Node>,
    images: PathBuf,
    busybox: Image,
}

impl Cluster {
    /// Starts a cluster of these nodes, and waits until each is ready.
    ///
    /// # Errors
    /// When a program is missing or ends, or a node is not ready in minutes.
    pub fn start(bed: &Bed, nodes: &[&str]) -> Result<Self> {
        let programs = Programs::find()?;
        for name in ["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"] {
            programs.get(name)?;
        }
        let images = bed.dir().join("images");
        std::fs::create_dir_all(&images)?;
        let busybox = busybox()?;
        let archive = busybox.write(&images)?;
        let api = ApiServer::start_with(bed, programs, Tier::Cluster)?;
        let controllers = start_controllers(bed, &api)?;
        let mut this = Self { api, controllers, nodes: Vec::new(), images, busybox };
        for name in nodes {
            let node = Node::start(bed, &this.api, name, &this.busybox, &archive)
                .with_context(|| format!("cannot start node {name}"))?;
            way_to_pods(bed, &node)?;
            this.nodes.push(node);
        }
        this.wait_until_ready(nodes)?;
        Ok(this)
    }

    /// The power of a node goes and comes back. When this returns its programs run, and its pods are still to start.
    ///
    /// # Errors
    /// When something of it does not go, or its programs do not start again.
    pub fn reboot(&mut self, bed: &Bed, name: &str) -> Result<()> {
        let node = self.nodes.iter_mut().find(|node| node.bed().name() == name);
        let node = node.with_context(|| format!("no node {name}"))?;
        node.reboot(bed, &self.api).with_context(|| format!("cannot reboot {name}"))
    }

    pub fn api(&self) -> &ApiServer {
        &self.api
    }

    /// In the order in which they were named.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// An image with bash and some of busybox, on every node. It waits until it is killed unless told what to do.
    pub fn busybox(&self) -> &Image {
        &self.busybox
    }

    /// Takes an image to every node.
    ///
    /// # Errors
    /// When it cannot be made, or containerd does not take it.
    pub fn load(&self, image: &Image) -> Result<()> {
        let archive = image.write(&self.images)?;
        self.nodes.iter().try_for_each(|node| node.load(&archive))
    }

    /// Whether all programs run.
    ///
    /// # Errors
    /// With the first that does not.
    pub fn check(&self) -> Result<()> {
        self.api.check()?;
        for (name, proc) in &self.controllers {
            ensure!(proc.is_running(), "{name} has ended:\n{}", tail(&proc.stderr()));
        }
        self.nodes.iter().try_for_each(Node::check)
    }

    fn wait_until_ready(&self, nodes: &[&str]) -> Result<()> {
        const READY: &str = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.conditions[?(@.type=="Ready")].message}"#;
        for name in nodes {
            let asked = eventually(PATIENCE, || {
                if let Err(ended) = self.check() {
                    // Nothing to wait for.
                    return Ok(Err(ended));
                }
                let said = self.api.kubectl(&["get", "node", name, "-o", READY])?;
                ensure!(said.starts_with("True"), "node {name} is not ready: {said}");
                Ok(Ok(()))
            });
            asked??;
        }
        // Pods are refused until a controller has made their account.
        eventually(PATIENCE, || self.api.kubectl(&["get", "serviceaccount", "default"]))?;
        Ok(())
    }
}

/// From where the API server is, which asks webhooks.
fn way_to_pods(bed: &Bed, node: &Node) -> Result<()> {
    let pods = format!("10.10.{}.0/24", node.bed().number());
    let by = node.bed().ipv4().to_string();
    testbed::inside(&bed.fabric_netns_path(), || {
        let args = ["route", "replace", &pods, "via", &by];
        let added = Command::new("ip").args(args).status()?;
        ensure!(added.success(), "ip {}: {added}", args.join(" "));
        Ok(())
    })
}

fn start_controllers(bed: &Bed, api: &ApiServer) -> Result<Vec<(&'static str, Proc)>> {
    let start = |name: &'static str, args: &[&str]| -> Result<(&'static str, Proc)> {
        let config = api.user_kubeconfig(&format!("system:{name}"), None)?;
        let mut cmd = Command::new(api.programs().get(name)?);
        for flag in ["--kubeconfig", "--authentication-kubeconfig", "--authorization-kubeconfig"] {
            cmd.arg(format!("{flag}={}", config.display()));
        }
        cmd.args(["--bind-address=127.0.0.1", "--leader-elect=false"]).args(args);
        Ok((name, bed.spawn_fabric(cmd)?))
    };
    let key = format!("--service-account-private-key-file={}", api.pki().token_key().display());
    let root = format!("--root-ca-file={}", api.root_certificate().display());
    // Otherwise it makes one in /usr/libexec, which is the machine's.
    let plugins =
        format!("--flex-volume-plugin-dir={}", bed.dir().join("volume-plugins").display());
    Ok(vec![
        start(
            "kube-controller-manager",
            &[&key, &root, &plugins, "--use-service-account-credentials=true"],
        )?,
        start("kube-scheduler", &[])?,
    ])
}

fn busybox() -> Result<Image> {
    // Nobody's registry: a node that does not have the image cannot get it from anywhere.
    const NAME: &str = "bed.invalid/busybox:bed";
    // None that resolves names: a static program of glibc's cannot.
    const NAMES: [&str; 8] = ["cat", "echo", "hostname", "httpd", "ip", "ls", "mkdir", "sleep"];
    let path = ["/usr/bin/busybox", "/bin/busybox"].map(Path::new);
    let path = path.into_iter().find(|p| p.is_file()).context("no busybox: install it")?;
    let image = Image::new(NAME).program(path)?.links("busybox", &NAMES);
    // It is the image of pods' sandboxes, too, which wait for as long as the pod lives.
    Ok(image.program(Path::new("/bin/bash"))?.entrypoint(&["sleep", "infinity"]))
}
