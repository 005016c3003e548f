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
use kubebed::{ApiServer, Cluster, Programs};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::{Bed, eventually};

const DIR: &str = "/run/culvert-kube";
/// The owner's process id and the bed's id, locked by the owner.
const OWNER: &str = "/run/culvert-kube/owner";
/// Runs kubectl in the bed's network, as the administrator.
const KUBECTL: &str = "/run/culvert-kube/kubectl";
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
        announce(&bed, &api, "an API server, without controllers and nodes")?;
        signals.forever().next();
    } else {
        let cluster = Cluster::start(&bed, &["n1", "n2"])?;
        announce(&bed, cluster.api(), "two nodes, n1 and n2")?;
        signals.forever().next();
    }
    handle.close();
    bed.close()
}

fn announce(bed: &Bed, api: &ApiServer, what: &str) -> Result<()> {
    let kubectl = Programs::find()?.get("kubectl")?;
    let script = format!(
        "#!/bin/sh\nexport KUBECONFIG='{}' KUBERC=off KUBECACHEDIR='{}'\nexec nsenter --net='{}' '{}' \"$@\"\n",
        api.admin_kubeconfig().display(),
        bed.dir().join("kubectl-cache").display(),
        bed.fabric_netns_path().display(),
        kubectl.display(),
    );
    fs::write(KUBECTL, script)?;
    fs::set_permissions(KUBECTL, fs::Permissions::from_mode(0o755))?;
    let version: serde_json::Value =
        serde_json::from_str(&api.kubectl(&["get", "--raw", "/version"])?)?;
    let version = version.get("gitVersion").and_then(|v| v.as_str()).unwrap_or("of some version");
    let text = format!(
        "Kubernetes {version} runs: {what}.\n\n  \
           {KUBECTL} get namespaces\n  \
           ls {}    # kubeconfig, certificates, logs\n  \
           cargo xtask kube down\n",
        bed.dir().display()
    );
    // Whole or not at all: its being there is the sign.
    let part = format!("{READY}.part");
    fs::write(&part, text)?;
    Ok(fs::rename(part, READY)?)
}
