//! One loader of the object for as long as the agent runs. Each that is made reads all types of the kernel, 20 MB of
//! memory that the programs have no use for: their maps and contexts are part of the kernel's stable interface, and
//! nothing in them is moved to where this kernel has it.

use super::{MAPS, MARGIN, OBJECT, Sizes, lock};
use anyhow::Context as _;
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, maps::MapData};
use capture_abi::{Addr, Pod, pod_flags};
use std::{collections::HashMap, path::Path, sync::Mutex};

pub(super) struct Loader(Mutex<Loading>);

struct Loading {
    loader: EbpfLoader<'static>,
    of_pods: HashMap<u32, &'static Constants>,
}

/// The loader borrows them. They stay, 40 bytes and an entry of the map for each pod that was ever enrolled.
#[derive(PartialEq, Eq)]
struct Constants {
    owner: u32,
    ipv4: Addr,
    ipv6: Addr,
    allow_other: u32,
}

impl Loader {
    /// For maps that are pinned in `dir`.
    pub(super) fn new(dir: &Path, sizes: Sizes) -> Self {
        let maps = dir.join("maps");
        // A map that is pinned keeps the size it was made with.
        let flows = match MapData::from_pin(maps.join("FLOWS")).and_then(|m| m.info()) {
            Ok(info) => info.max_entries(),
            Err(_) => sizes.flows,
        };
        if flows != sizes.flows {
            tracing::warn!(
                asked = sizes.flows,
                pinned = flows,
                "the pinned map of connections keeps its size; `culvert-agent detach` lets it be made anew"
            );
        }
        let limit: &'static u64 = Box::leak(Box::new(u64::from(flows.saturating_sub(MARGIN))));
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .verifier_log_level(VerifierLogLevel::DISABLE)
            .map_max_entries("FLOWS", sizes.flows)
            .override_global("FLOW_LIMIT", limit, true);
        for name in MAPS {
            loader.map_pin_path(name, maps.join(name));
        }
        Self(Mutex::new(Loading { loader, of_pods: HashMap::new() }))
    }

    /// The node's own programs.
    pub(super) fn load(&self) -> anyhow::Result<Ebpf> {
        load(&mut lock(&self.0).loader)
    }

    /// With the constants of a pod's own programs.
    pub(super) fn load_for(&self, pod: &Pod) -> anyhow::Result<Ebpf> {
        let allow_other = u32::from(pod.flags & pod_flags::ALLOW_OTHER_PROTOCOLS != 0);
        let wanted = Constants { owner: pod.owner, ipv4: pod.ipv4, ipv6: pod.ipv6, allow_other };
        let mut loading = lock(&self.0);
        let Loading { loader, of_pods } = &mut *loading;
        let known = of_pods.get(&pod.owner).copied().filter(|c| **c == wanted);
        let constants = known.unwrap_or_else(|| Box::leak(Box::new(wanted)));
        of_pods.insert(pod.owner, constants);
        loader
            .override_global("POD_OWNER", &constants.owner, true)
            .override_global("POD_V4", &constants.ipv4, true)
            .override_global("POD_V6", &constants.ipv6, true)
            .override_global("ALLOW_OTHER", &constants.allow_other, true);
        load(loader)
    }
}

fn load(loader: &mut EbpfLoader<'static>) -> anyhow::Result<Ebpf> {
    loader.load(OBJECT).context(
        "loading the eBPF object; `culvert-agent check` says what this kernel offers and lacks",
    )
}
