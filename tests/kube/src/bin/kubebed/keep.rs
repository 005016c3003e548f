//! One cluster that stays when the command that started it ends: a process of its own owns its bed, and holds a lock on
//! [`OWNER`] as long as there is anything of it. Whatever ends that process, the bed's reaper removes the rest.

use std::env;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kubebed::{ApiServer, Cluster, Node, Programs};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::{Bed, eventually};

const DIR: &str = "/run/culvert-kube";
/// The owner's process id and the bed's id, locked by the owner.
const OWNER: &str = "/run/culvert-kube/owner";
/// Programs that run in the bed's network, as the administrator.
const KUBECTL: &str = "/run/culvert-kube/kubectl";
const HELM: &str = "/run/culvert-kube/helm";
/// Runs a program on a node.
const ON: &str = "/run/culvert-kube/on";
/// Written when the cluster is ready: what there is to try.
const READY: &str = "/run/culvert-kube/ready";
const LOG: &str = "/run/culvert-kube/log";

const START: Duration = Duration::from_secs(900);
const END: Duration = Duration::from_secs(120);

pub fn up(api_only: bool) -> Result<()> {
    if let Some(pid) = owner()? {
        bail!("a cluster runs already (process {pid}): `cargo xtask kube down` takes it away");
    }
    let _ = fs::remove_dir_all(DIR);
    fs::create_dir_all(DIR).with_context(|| format!("cannot make {DIR}"))?;
    let mut cmd = Command::new(env::current_exe()?);
    cmd.arg("keep");
    if api_only {
        cmd.arg("--api-only");
    }
    let log = File::create(LOG)?;
    // In a group of its own: Ctrl-C here reaches it by the end of its stdin.
    cmd.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let mut child = cmd.spawn().context("cannot start the process that owns the cluster")?;
    wait_until_ready(&mut child)?;
    // It stays from here on.
    child.stdin.take().context("no stdin")?.write_all(b"stay\n")?;
    print!("{}", fs::read_to_string(READY)?);
    Ok(())
}

fn wait_until_ready(child: &mut Child) -> Result<()> {
    let ended = eventually(START, || {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        ensure!(Path::new(READY).exists(), "the cluster is not ready");
        Ok(None)
    })?;
    if let Some(status) = ended {
        let log = fs::read_to_string(LOG).unwrap_or_default();
        let _ = fs::remove_dir_all(DIR);
        bail!("no cluster ({status}):\n{}", log.trim());
    }
    Ok(())
}

pub fn down() -> Result<()> {
    let Some(pid) = owner()? else {
        let _ = fs::remove_dir_all(DIR);
        eprintln!("no cluster runs");
        return Ok(());
    };
    let bed = fs::read_to_string(OWNER)?.lines().nth(1).unwrap_or_default().to_owned();
    kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| format!("cannot end {pid}"))?;
    eventually(END, || {
        ensure!(owner()?.is_none(), "process {pid}, which owns the cluster, has not ended");
        Ok(())
    })?;
    let left = testbed::reaper::leftovers_of(&bed)?;
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    fs::remove_dir_all(DIR).with_context(|| format!("cannot remove {DIR}"))?;
    eprintln!("the cluster is gone");
    Ok(())
}

/// The owner of a running cluster.
fn owner() -> Result<Option<i32>> {
    let Ok(mut file) = File::open(OWNER) else { return Ok(None) };
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_free) => Ok(None),
        Err((_, nix::errno::Errno::EAGAIN)) => {
            let pid = text.lines().next().and_then(|l| l.parse().ok());
            Ok(Some(pid.with_context(|| format!("{OWNER} names no process"))?))
        }
        Err((_, e)) => Err(e).with_context(|| format!("cannot lock {OWNER}")),
    }
}

/// Builds the cluster, and takes it down again at SIGTERM, or if `up` ends before it is ready.
pub fn keep(api_only: bool) -> Result<()> {
    let file = File::options().create(true).truncate(false).write(true).open(OWNER)?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, e)| e)
        .context("a cluster runs already")?;
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let handle = signals.handle();
    // While it starts, the end of the command that waits is the end of it all: the reaper does the rest.
    std::thread::spawn(move || {
        if std::io::stdin().read(&mut [0; 1]).unwrap_or(0) == 0 {
            std::process::exit(1);
        }
    });
    let bed = Bed::new("kube")?;
    lock.rewind()?;
    lock.set_len(0)?;
    write!(lock, "{}\n{}\n", std::process::id(), bed.id())?;
    if api_only {
        let api = ApiServer::start(&bed)?;
        announce(&bed, &api, "an API server, without controllers and nodes", "")?;
        signals.forever().next();
    } else {
        let cluster = Cluster::start(&bed, &["n1", "n2"])?;
        write_on(cluster.nodes())?;
        let more = format!(
            "  {ON} n1 ctr -n k8s.io images import FILE\n  \
               # {}: an image with bash and busybox, on both nodes\n",
            cluster.busybox().name()
        );
        announce(&bed, cluster.api(), "two nodes, n1 and n2", &more)?;
        signals.forever().next();
    }
    handle.close();
    bed.close()
}

/// The programs find the cluster, and nothing of whoever calls them.
fn write_client(bed: &Bed, api: &ApiServer, program: &str, to: &str) -> Result<()> {
    let own = bed.dir().join("of-the-administrator").display().to_string();
    let script = format!(
        "#!/bin/sh\nexport KUBECONFIG='{}' KUBERC=off KUBECACHEDIR='{own}'\n\
         export HELM_CACHE_HOME='{own}' HELM_CONFIG_HOME='{own}' HELM_DATA_HOME='{own}'\n\
         exec nsenter --net='{}' '{}' \"$@\"\n",
        api.admin_kubeconfig().display(),
        bed.fabric_netns_path().display(),
        Programs::find()?.get(program)?.display(),
    );
    write_program(to, &script)
}

fn write_on(nodes: &[Node]) -> Result<()> {
    let mut script = "#!/bin/sh\nnode=$1\nshift\ncase \"$node\" in\n".to_owned();
    for node in nodes {
        script += &format!("{})\n{} \"$@\";;\n", node.bed().name(), node.entering());
    }
    script += "esac\necho \"usage: on NODE PROGRAM [ARGUMENT]...\" >&2\nexit 2\n";
    write_program(ON, &script)
}

fn write_program(path: &str, script: &str) -> Result<()> {
    fs::write(path, script)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

fn announce(bed: &Bed, api: &ApiServer, what: &str, more: &str) -> Result<()> {
    write_client(bed, api, "kubectl", KUBECTL)?;
    write_client(bed, api, "helm", HELM)?;
    let version: serde_json::Value =
        serde_json::from_str(&api.kubectl(&["get", "--raw", "/version"])?)?;
    let version = version.get("gitVersion").and_then(|v| v.as_str()).unwrap_or("of some version");
    let text = format!(
        "Kubernetes {version} runs: {what}.\n\n  \
           {KUBECTL} get namespaces\n  \
           {HELM} list\n{more}  \
           ls {}    # kubeconfig, certificates, logs\n  \
           cargo xtask kube down\n",
        bed.dir().display()
    );
    // Whole or not at all: its being there is the sign.
    let part = format!("{READY}.part");
    fs::write(&part, text)?;
    Ok(fs::rename(part, READY)?)
}
