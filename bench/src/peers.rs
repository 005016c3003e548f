//! What is to be reached, and what a peer reaches: ztunnel, Istio main of 2026-08, a release build,
//! measured on the same kind of machine (2 cores, Linux 6.18, network namespaces).

use crate::report::Goal;

/// What is to be reached, and the peer's figure; either may be missing.
pub type Beside = (Option<Goal>, Option<f64>);

const NONE: Beside = (None, None);

/// The peer's memory without any workloads, in MB: what its figure per workload leaves out.
const ZTUNNEL_IDLE: f64 = 15.0;
const ZTUNNEL_AT_100_000: f64 = 204.0;

/// By the name of a measure of the suite `scale`, in the unit of that measure.
pub fn scale(name: &str) -> Beside {
    let at_most = |figure| Some(Goal::AtMost(figure));
    match name {
        "10,000 workloads: connect to ready" => (None, Some(0.072)),
        "10,000 workloads: resident" => (None, Some(36.0)),
        "100,000 workloads: connect to ready" => (at_most(0.3), Some(0.65)),
        "100,000 workloads: resident" => (None, Some(ZTUNNEL_AT_100_000)),
        "100,000 workloads: resident, peak" => (None, Some(268.0)),
        "100,000 workloads: resident per workload" => {
            (at_most(500.0), Some((ZTUNNEL_AT_100_000 - ZTUNNEL_IDLE) * 10.0))
        }
        "100,000 workloads: one change applied" => (None, Some(1.5)),
        "100,000 workloads: 10,000 changes applied" => (None, Some(74.0)),
        "choice among 10 endpoints" => (at_most(1000.0), Some(650.0)),
        "choice among 1,000 endpoints" => (at_most(1000.0), Some(39_000.0)),
        "choice among 10,000 endpoints" => (at_most(1000.0), Some(582_000.0)),
        n if n.starts_with("choice among ") => (at_most(1000.0), None),
        "10,000 policies: check, none matches" => (at_most(10.0), Some(29_000.0)),
        n if n.contains(" policies: check") => (at_most(10.0), None),
        "dump: time" => (None, Some(2.3)),
        "dump: size" => (None, Some(107.0)),
        "dump: agent's peak above its rest" => (None, Some(827.0 - ZTUNNEL_AT_100_000)),
        _ => NONE,
    }
}

/// By the name of a measure of the suite `dns`, in the unit of that measure.
pub fn dns(name: &str) -> Beside {
    match name {
        "service: answers" | "ServiceEntry: answers" => {
            (Some(Goal::AtLeast(50_000.0)), Some(44_000.0))
        }
        _ => NONE,
    }
}

/// By suite and measure; by the ratio to plain, where there is one.
pub fn path(suite: &str, name: &str) -> Beside {
    let at_most = |figure| Some(Goal::AtMost(figure));
    let at_least = |figure| Some(Goal::AtLeast(figure));
    match (suite, name) {
        ("same-node", "iperf3-1") => (at_least(0.97), Some(0.38)),
        ("same-node", "wrk-64") => (at_least(0.95), Some(0.28)),
        ("same-node", "pingpong-p50") => (at_most(1.03), None),
        ("same-node", "connect-16") => (at_least(0.9), None),
        ("spliced", "iperf3-1") => (at_least(3.0), Some(0.38)),
        ("spliced", "wrk-64") => (at_least(1.2), Some(0.28)),
        ("spliced", "pingpong-p50") => (at_most(0.55), None),
        ("cross-node", "iperf3-1") => (at_least(0.55), Some(0.36)),
        ("cross-node", "iperf3-1-agent-cpu") => (at_most(1.0), Some(1.5)),
        ("cross-node", "iperf3-4") => (None, Some(0.18)),
        ("cross-node", "wrk-1") => (None, Some(0.41)),
        ("cross-node", "wrk-16") => (None, Some(0.25)),
        ("cross-node", "wrk-64") => (at_least(0.5), Some(0.27)),
        ("cross-node", "rate-1000-p50-added") => (at_most(355.0 / 2.0), Some(355.0)),
        ("cross-node", "rate-1000-p99-added") => (at_most(2200.0 / 2.0), Some(2200.0)),
        ("cross-node", "connect-1") => (None, Some(0.18)),
        ("cross-node", "connect-16") => (at_least(0.5), Some(0.29)),
        ("cross-node", "bulk-beside-p50") => (None, Some(6.6 / 0.3)),
        ("cross-node", "bulk-beside-p99") => (at_most(2.0), Some(20.7 / 3.9)),
        ("connect", "unpooled-16") => (None, Some(1200.0)),
        ("memory", "idle") => (at_most(8.0), Some(ZTUNNEL_IDLE)),
        ("memory", n) if n.contains("-connections-") => (at_most(3.2), Some(6.4)),
        _ => NONE,
    }
}
