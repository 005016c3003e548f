//! Lines of the log that were lost: counted and told of by the pod whose work they would have told of.

use crate::pods::Pod;
use std::{collections::HashMap, fmt::Write as _, sync::Arc};
use telemetry::log;

/// One line for each pod that has lost some since the last time; call it now and then.
pub fn tell(pods: &[Arc<Pod>]) {
    let uids = uids(pods);
    for (owner, lines) in log::lost_since() {
        let pod = uids.get(&owner).copied().unwrap_or("the agent itself, or pods that are gone");
        tracing::warn!(
            pod,
            lines,
            "lines of the log are lost: more were logged than are read, and each \
            pod has a share of what may wait"
        );
    }
    for (owner, _) in log::lost_by_pods() {
        if !uids.contains_key(&owner) {
            log::forget(owner);
        }
    }
}

/// Prometheus' text format.
pub fn metrics(out: &mut String, pods: &[Arc<Pod>]) {
    let uids = uids(pods);
    let _ = write!(
        out,
        "# HELP culvert_log_lines_lost Log lines dropped because the reader was slow.\n\
         # TYPE culvert_log_lines_lost gauge\nculvert_log_lines_lost {}\n\
         # HELP culvert_pod_log_lines_lost Those of them that told of a pod's connections.\n\
         # TYPE culvert_pod_log_lines_lost gauge\n",
        log::lost()
    );
    let mut lost: Vec<(&str, u64)> = log::lost_by_pods()
        .into_iter()
        .filter_map(|(owner, lines)| Some((*uids.get(&owner)?, lines)))
        .collect();
    lost.sort_unstable();
    for (pod, lines) in lost {
        let _ = writeln!(out, "culvert_pod_log_lines_lost{{pod={pod:?}}} {lines}");
    }
}

fn uids(pods: &[Arc<Pod>]) -> HashMap<u32, &str> {
    pods.iter().map(|p| (p.owner, &*p.uid)).collect()
}
