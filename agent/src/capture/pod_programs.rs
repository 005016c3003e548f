//! A pod's own two programs: `sk_lookup` in its namespace, and the guard at the host end of each of
//! its interfaces. They are loaded per pod, with the pod as a constant: neither hook tells a
//! program which namespace it runs for, and an interface that is moved stays guarded.

use super::{links, loader::Loader};
use crate::{
    netns::Netns,
    sys::{self, AttachType, Target},
};
use anyhow::Context as _;
use aya::Ebpf;
use capture_abi::Pod;
use std::{fs, os::fd::AsFd as _, path::Path};

pub struct PodPrograms<'a> {
    pub(super) dir: &'a Path,
    pub(super) loader: &'a Loader,
}

impl PodPrograms<'_> {
    /// Loads the object for one pod; `attach_lookup` and `attach_guard` use it.
    pub fn load(&self, pod: &Pod) -> anyhow::Result<Ebpf> {
        self.loader.load_for(pod)
    }

    /// From here on what arrives in the namespace is the agent's.
    pub fn attach_lookup(&self, ebpf: &mut Ebpf, owner: u32, netns: &Netns) -> anyhow::Result<()> {
        let program = links::program_fd(ebpf, "lookup")?;
        let at = self.dir.join("pods").join(format!("{owner}-lookup"));
        links::attach(program.as_fd(), Target::Fd(netns.as_fd()), AttachType::SkLookup, &at)
            .context("attaching sk_lookup to the pod's namespace (needs Linux 5.9)")
    }

    /// From here on nothing unannounced leaves by `interface`, an index in the agent's namespace,
    /// and nothing comes by it with the tuple of a last hop.
    pub fn attach_guard(&self, ebpf: &mut Ebpf, owner: u32, interface: u32) -> anyhow::Result<()> {
        for (name, hook) in [("arrivals", AttachType::TcxEgress), ("guard", AttachType::TcxIngress)]
        {
            let program = links::program_fd(ebpf, name)?;
            let at = self.dir.join("pods").join(format!("{owner}-{name}-{interface}"));
            links::attach(program.as_fd(), Target::Interface(interface), hook, &at).with_context(
                || format!("attaching {name} to interface {interface} (tcx, needs Linux 6.6)"),
            )?;
        }
        Ok(())
    }

    /// Takes off what is pinned for pods other than these.
    pub fn detach_except(&self, owners: &std::collections::HashSet<u32>) {
        let entries = fs::read_dir(self.dir.join("pods")).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.split('-').next().and_then(|o| o.parse().ok());
            if owner.is_none_or(|o| !owners.contains(&o)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Takes the pod's programs off: first the guard, so that nothing is dropped that is no longer
    /// captured.
    pub fn detach(&self, owner: u32) {
        let prefix = format!("{owner}-");
        let entries = fs::read_dir(self.dir.join("pods")).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
            .map(|e| e.path())
            .collect();
        // "guard" sorts before "lookup".
        names.sort();
        for path in names {
            // Listeners close next: what `lookup` still gave to them would be refused.
            let detached = sys::pinned(&path).and_then(|link| sys::link_detach(link.as_fd()));
            if let Err(error) = detached
                && error.raw_os_error() != Some(libc::ENOLINK)
            {
                tracing::debug!(path = %path.display(), %error, "a link ends by itself");
            }
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "a pinned link stays");
            }
        }
    }
}
