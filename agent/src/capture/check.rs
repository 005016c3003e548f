//! `culvert-agent check`: hook by hook, what this kernel offers. Each is tried for real: loaded,
//! attached to something made for the purpose, and taken off again.

use super::{
    MARGIN, OBJECT, Sizes, find_cgroup2,
    host::is_cgroup2,
    links::{self, NODE_HOOKS},
};
use crate::{
    netns::Netns,
    sys::{AttachType, Target},
};
use anyhow::Context as _;
use aya::{Ebpf, EbpfLoader};
use nix::sched::{CloneFlags, unshare};
use std::{
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

/// Prints the findings; whether capture can be complete.
pub fn check(cgroup: Option<&Path>) -> bool {
    let mut report = Report { complete: true };
    report.line("BTF of the kernel", "", kernel_btf());
    let cgroup = match cgroup {
        Some(c) if !is_cgroup2(c) => Err(anyhow::anyhow!("{} is not in a cgroup2", c.display())),
        Some(c) => Ok(c.to_owned()),
        None => find_cgroup2(),
    };
    report.line(
        "cgroup2",
        "",
        cgroup.as_ref().map(|c| c.display().to_string()).map_err(|e| anyhow::anyhow!("{e:#}")),
    );
    let mut ebpf = match load_unpinned() {
        Ok(ebpf) => {
            report.line("maps", "", Ok("all made".into()));
            ebpf
        }
        Err(e) => {
            report.line("maps", "", Err(e));
            return report.finish();
        }
    };
    for hook in NODE_HOOKS {
        let outcome = match &cgroup {
            Ok(cgroup) => try_node_hook(&mut ebpf, hook.program, hook.attach, cgroup),
            Err(_) => Err(anyhow::anyhow!("no cgroup2 to attach it to")),
        };
        let what = format!("{}, Linux {}", hook.does, hook.since);
        report.line(hook.program, &what, outcome);
    }
    let spare = spare_netns();
    let lookup = spare.as_ref().map_err(|e| anyhow::anyhow!("{e}")).and_then(|ns| {
        try_attach(&mut ebpf, "lookup", Target::Fd(ns.as_fd()), AttachType::SkLookup)
    });
    report.line("sk_lookup", "takes what arrives at a pod, Linux 5.9", lookup);
    let guard = spare.as_ref().map_err(|e| anyhow::anyhow!("{e}")).and_then(|ns| {
        ns.run(|| try_attach(&mut ebpf, "guard", Target::Interface(1), AttachType::TcxIngress))?
    });
    report.line("guard", "tcx: lets nothing unannounced leave a pod, Linux 6.6", guard);
    let sysctl = spare.as_ref().map_err(|e| anyhow::anyhow!("{e}")).and_then(|ns| {
        ns.run(|| fs::metadata("/proc/sys/net/ipv4/tcp_fwmark_accept"))?
            .map(|_| "there".to_owned())
            .context("/proc/sys/net/ipv4/tcp_fwmark_accept")
    });
    report.line("tcp_fwmark_accept", "keeps the client's address on the last hop", sysctl);
    report.finish()
}

struct Report {
    complete: bool,
}

impl Report {
    fn line(&mut self, what: &str, does: &str, outcome: anyhow::Result<String>) {
        let does = if does.is_empty() { String::new() } else { format!("  ({does})") };
        match outcome {
            Ok(found) => println!("ok       {what:<18} {found}{does}"),
            Err(e) => {
                self.complete = false;
                println!("missing  {what:<18} {e:#}{does}");
            }
        }
    }

    fn finish(&self) -> bool {
        if self.complete {
            println!("capture can be complete on this kernel");
        } else {
            println!(
                "capture would not be complete: the agent refuses to start until all is there"
            );
        }
        self.complete
    }
}

fn kernel_btf() -> anyhow::Result<String> {
    let path = "/sys/kernel/btf/vmlinux";
    fs::metadata(path)
        .map(|_| path.to_owned())
        .with_context(|| format!("{path}: the kernel was built without CONFIG_DEBUG_INFO_BTF"))
}

fn load_unpinned() -> anyhow::Result<Ebpf> {
    let sizes = Sizes { flows: 1024 };
    EbpfLoader::new()
        .verifier_log_level(aya::VerifierLogLevel::DISABLE)
        .map_max_entries("FLOWS", sizes.flows)
        .override_global("FLOW_LIMIT", &u64::from(sizes.flows - MARGIN), true)
        .load(OBJECT)
        .context("the kernel did not take the object")
}

fn try_node_hook(
    ebpf: &mut Ebpf,
    program: &str,
    attach: AttachType,
    cgroup: &Path,
) -> anyhow::Result<String> {
    // A cgroup of its own, so that nobody's sockets are touched.
    let own = TemporaryCgroup::new(cgroup)?;
    let fd = fs::File::open(&own.0)?;
    try_attach(ebpf, program, Target::Fd(fd.as_fd()), attach)
}

fn try_attach(
    ebpf: &mut Ebpf,
    program: &str,
    target: Target<'_>,
    attach: AttachType,
) -> anyhow::Result<String> {
    let program = links::program_fd(ebpf, program)?;
    links::create(program.as_fd(), target, attach).context("it loads, and does not attach")?;
    Ok("loads and attaches".to_owned())
}

struct TemporaryCgroup(PathBuf);

impl TemporaryCgroup {
    fn new(root: &Path) -> anyhow::Result<Self> {
        let at = root.join(format!("culvert-check-{}", std::process::id()));
        fs::create_dir_all(&at).with_context(|| format!("creating the cgroup {}", at.display()))?;
        Ok(Self(at))
    }
}

impl Drop for TemporaryCgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn spare_netns() -> anyhow::Result<Netns> {
    let fd = std::thread::spawn(|| -> anyhow::Result<fs::File> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(fs::File::open("/proc/thread-self/ns/net")?)
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the helper thread died"))?
    .context("making a network namespace")?;
    Ok(Netns::new(fd.into())?)
}
