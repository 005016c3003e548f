//! etcd and kube-apiserver, in the namespace between the nodes.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use testbed::{Bed, Placement, Proc, eventually};

use crate::chart;
use crate::kubeconfig::{self, Credential};
use crate::pki::Pki;
use crate::programs::Programs;

/// Where the API server listens, in every bed.
pub const ADDRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(HOST, 6443));
const HOST: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 254);

/// Addresses of services. The API server's own is the first.
pub(crate) const SERVICES: &str = "10.96.0.0/16";
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Starting takes seconds; on a machine that builds at the same time it takes long.
const PATIENCE: Duration = Duration::from_secs(180);

/// What there is beside the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Nothing. No controller makes `default` service accounts, so pods are let in without one.
    Api,
    /// The controllers.
    Cluster,
}

/// A running API server. Killed when dropped, with its etcd; its files stay until the bed goes.
pub struct ApiServer {
    programs: Programs,
    placement: Placement,
    dir: PathBuf,
    pki: Pki,
    args: Vec<String>,
    admin: PathBuf,
    server: Option<Proc>,
    etcd: Proc,
}

impl ApiServer {
    /// Starts one for tests of a client, and waits until it serves.
    ///
    /// # Errors
    /// When a program is missing, or ends, or is not ready in minutes.
    pub fn start(bed: &Bed) -> Result<Self> {
        Self::start_with(bed, Programs::find()?, Tier::Api)
    }

    /// The same with programs of the caller's choice, or controllers to come.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub fn start_with(bed: &Bed, programs: Programs, tier: Tier) -> Result<Self> {
        // All of them before the first is started.
        for name in ["etcd", "kube-apiserver", "kubectl"] {
            programs.get(name)?;
        }
        let dir = bed.dir().join("kube");
        let pki = Pki::new(&dir.join("pki"))?;
        let admin_certificate = pki.client("admin", Some("system:masters"))?;
        let admin = dir.join("admin.kubeconfig");
        kubeconfig::write(
            &admin,
            &url(),
            &pki.root(),
            &Credential::Certificate(&admin_certificate),
        )?;
        let args = arguments(&pki, tier)?;
        let etcd = start_etcd(bed, &programs, &dir)?;
        let placement = bed.fabric_placement();
        let mut this = Self { programs, placement, dir, pki, args, admin, server: None, etcd };
        this.restart(bed)?;
        Ok(this)
    }

    /// `https://` and [`ADDRESS`].
    pub fn url(&self) -> String {
        url()
    }

    /// The certificate of the authority that signed the API server's.
    pub fn root_certificate(&self) -> PathBuf {
        self.pki.root()
    }

    /// The kubeconfig of somebody who may do everything.
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.admin
    }

    /// The kubeconfig of a user by certificate. What they may do is what RBAC says of the user and the group.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn user_kubeconfig(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let issued = self.pki.client(user, group)?;
        self.kubeconfig(user, &Credential::Certificate(&issued))
    }

    /// The kubeconfig of a service account, with a token of an hour.
    ///
    /// # Errors
    /// When there is no such account.
    pub fn account_kubeconfig(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.token(namespace, account, &[])?;
        self.kubeconfig(&format!("{namespace}-{account}"), &Credential::Token(&token))
    }

    /// A token by TokenRequest: for the API server, or for `audiences` where some are given.
    ///
    /// # Errors
    /// When there is no such account.
    pub fn token(&self, namespace: &str, account: &str, audiences: &[&str]) -> Result<String> {
        let mut args = vec!["create", "token", account, "--namespace", namespace];
        for audience in audiences {
            args.extend(["--audience", audience]);
        }
        Ok(self.kubectl(&args)?.trim().to_owned())
    }

    /// Runs kubectl as the administrator; gives what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_as(&self.admin, args, "")
    }

    /// `kubectl apply` of manifests in YAML or JSON.
    ///
    /// # Errors
    /// When the API server does not take one of them.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.kubectl_as(&self.admin, &["apply", "-f", "-"], manifests)
    }

    /// Runs kubectl as somebody else, with `input` on its stdin.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl_as(&self, kubeconfig: &Path, args: &[&str], input: &str) -> Result<String> {
        let mut cmd = Command::new(self.programs.get("kubectl")?);
        cmd.args(args)
            .env("KUBECONFIG", kubeconfig)
            // Neither settings nor caches in the home of whoever runs the tests.
            .env("KUBERC", "off")
            .env("KUBECACHEDIR", self.dir.join("kubectl-cache"));
        self.run(cmd, "kubectl", args, input)
    }

    /// Runs Helm as the administrator; gives what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn helm(&self, args: &[&str]) -> Result<String> {
        let mut cmd = chart::helm(&self.programs, &self.dir.join("helm"))?;
        cmd.args(args).env("KUBECONFIG", &self.admin);
        self.run(cmd, "helm", args, "")
    }

    fn run(&self, mut cmd: Command, name: &str, args: &[&str], input: &str) -> Result<String> {
        cmd.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.placement.apply(&mut cmd)?;
        let mut child = cmd.spawn().with_context(|| format!("cannot start {name}"))?;
        // It may end before it reads; what it says then is more than EPIPE.
        let _ = child.stdin.take().context("no stdin")?.write_all(input.as_bytes());
        let out = child.wait_with_output()?;
        if !out.status.success() {
            bail!("{name} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// SIGKILL: its clients' watches break. Objects stay, in etcd.
    ///
    /// # Errors
    /// When it has ended before.
    pub fn kill(&mut self) -> Result<()> {
        self.server.take().context("the API server is not running")?.kill()
    }

    /// Starts it, after [`ApiServer::kill`] or in place of the one that runs, and waits until it serves.
    ///
    /// # Errors
    /// When it ends, or is not ready in minutes.
    pub fn restart(&mut self, bed: &Bed) -> Result<()> {
        // Its port must be free before the next takes it.
        drop(self.server.take());
        let mut cmd = Command::new(self.programs.get("kube-apiserver")?);
        cmd.args(&self.args);
        let server = bed.spawn_fabric(cmd)?;
        let ready = eventually(PATIENCE, || {
            if let Some(status) = server.try_wait()? {
                return Ok(Err(status));
            }
            self.kubectl(&["get", "--raw", "/readyz"])?;
            // Made after that, and every client counts on them.
            self.kubectl(&["get", "namespaces", "default", "kube-system"])?;
            Ok(Ok(()))
        });
        match ready {
            Ok(Ok(())) => self.server = Some(server),
            Ok(Err(status)) => {
                bail!("kube-apiserver ended ({status}):\n{}", tail(&server.stderr()))
            }
            Err(e) => {
                return Err(
                    e.context(format!("kube-apiserver is not ready:\n{}", tail(&server.stderr())))
                );
            }
        }
        Ok(())
    }

    /// Whether etcd and the API server run.
    ///
    /// # Errors
    /// With the one that does not.
    pub fn check(&self) -> Result<()> {
        ensure!(self.etcd.is_running(), "etcd has ended:\n{}", tail(&self.etcd.stderr()));
        let server = self.server.as_ref().context("the API server is not running")?;
        ensure!(server.is_running(), "kube-apiserver has ended:\n{}", tail(&server.stderr()));
        Ok(())
    }

    pub(crate) fn pki(&self) -> &Pki {
        &self.pki
    }

    pub(crate) fn programs(&self) -> &Programs {
        &self.programs
    }

    fn kubeconfig(&self, name: &str, who: &Credential<'_>) -> Result<PathBuf> {
        let path = self.dir.join(format!("{}.kubeconfig", name.replace([':', '/'], "-")));
        kubeconfig::write(&path, &url(), &self.pki.root(), who)?;
        Ok(path)
    }
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiServer({})", self.dir.display())
    }
}

fn url() -> String {
    format!("https://{ADDRESS}")
}

fn start_etcd(bed: &Bed, programs: &Programs, dir: &Path) -> Result<Proc> {
    let data = dir.join("etcd");
    fs::create_dir_all(&data)?;
    let mut cmd = Command::new(programs.get("etcd")?);
    cmd.arg("--data-dir").arg(&data).args([
        "--name=etcd",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=etcd=http://127.0.0.1:2380",
        // The data is gone with the bed: nothing has to survive a loss of power.
        "--unsafe-no-fsync=true",
    ]);
    let etcd = bed.spawn_fabric(cmd)?;
    etcd.wait_for_output("ready to serve client requests", PATIENCE)?;
    Ok(etcd)
}

fn arguments(pki: &Pki, tier: Tier) -> Result<Vec<String>> {
    let addresses: [IpAddr; 3] = [HOST.into(), SERVICE.into(), Ipv4Addr::LOCALHOST.into()];
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
    let serving = pki.server("kube-apiserver", &names, &addresses)?;
    let to_kubelets = pki.client("kube-apiserver", Some("system:masters"))?;
    let root = pki.root();
    let mut args: Vec<String> = [
        "--etcd-servers=http://127.0.0.1:2379",
        &format!("--bind-address={HOST}"),
        &format!("--advertise-address={HOST}"),
        &format!("--secure-port={}", ADDRESS.port()),
        &format!("--service-cluster-ip-range={SERVICES}"),
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        // Nobody resolves the names of nodes.
        "--kubelet-preferred-address-types=InternalIP",
        &format!("--service-account-issuer={ISSUER}"),
        "--profiling=false",
    ]
    .map(str::to_owned)
    .into();
    for (flag, path) in [
        ("--client-ca-file", &root),
        ("--tls-cert-file", &serving.certificate),
        ("--tls-private-key-file", &serving.key),
        ("--kubelet-client-certificate", &to_kubelets.certificate),
        ("--kubelet-client-key", &to_kubelets.key),
        ("--kubelet-certificate-authority", &root),
        ("--service-account-signing-key-file", &pki.token_key()),
        ("--service-account-key-file", &pki.token_public_key()),
    ] {
        args.push(format!("{flag}={}", path.display()));
    }
    if tier == Tier::Cluster {
        // Webhooks are asked at their pods: nothing here knows the way to addresses of services.
        args.push("--enable-aggregator-routing=true".to_owned());
    }
    if tier == Tier::Api {
        args.push("--disable-admission-plugins=ServiceAccount".to_owned());
    }
    Ok(args)
}

/// The end of a log: enough to see why a program gave up.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
}
