//! The peer: Envoy with the same routes, in the same pod.

use anyhow::Context as _;
use culvert_tests::MeshPod;
use serde_json::{Value, json};
use std::{env, fs, path::PathBuf, process::Command};
use testbed::Proc;

pub const PORT: u16 = 8081;

/// Envoy's program, as `cargo xtask bench` has put it into the cache.
const PROGRAM: &str = "CULVERT_BENCH_ENVOY";

pub fn start(pod: &MeshPod, backends: &[(&str, u32)], port: u16) -> anyhow::Result<Proc> {
    let program = env::var_os(PROGRAM).map(PathBuf::from).with_context(|| {
        format!("{PROGRAM} does not say where Envoy is: start this by cargo xtask bench")
    })?;
    let file = pod.node().dir().join("envoy.json");
    fs::write(&file, format!("{:#}\n", config(backends, port)))?;
    let mut command = Command::new(program);
    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
    command.arg("--config-path").arg(&file);
    pod.spawn(command)
}

/// A match by header and a split by weight, retries as Istio's default has them, and no access log.
fn config(backends: &[(&str, u32)], port: u16) -> Value {
    let clusters: Vec<Value> = backends
        .iter()
        .map(|(address, _)| {
            let address = json!({ "socket_address": { "address": address, "port_value": port } });
            json!({
                "name": address["socket_address"]["address"], "type": "STATIC",
                "connect_timeout": "10s",
                "load_assignment": {
                    "cluster_name": address["socket_address"]["address"],
                    "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
                },
            })
        })
        .collect();
    let weighted: Vec<Value> = backends
        .iter()
        .map(|(address, weight)| json!({ "name": address, "weight": weight }))
        .collect();
    let retries = json!({
        "retry_on": "connect-failure,refused-stream,unavailable,cancelled", "num_retries": 2,
    });
    let last = backends.last().map(|b| b.0);
    let routes = json!([
        {
            "match": {
                "prefix": "/",
                "headers": [{ "name": "end-user", "string_match": { "exact": "jason" } }],
            },
            "route": { "cluster": last, "timeout": "0s", "retry_policy": retries },
        },
        {
            "match": { "prefix": "/" },
            "route": {
                "weighted_clusters": { "clusters": weighted },
                "timeout": "0s", "retry_policy": retries,
            },
        },
    ]);
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in", "codec_type": "AUTO", "use_remote_address": true,
        "normalize_path": true, "merge_slashes": true,
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    json!({
        "static_resources": {
            "listeners": [{
                "name": "in",
                "address": { "socket_address": { "address": "0.0.0.0", "port_value": PORT } },
                "filter_chains": [{ "filters": [
                    { "name": "envoy.filters.network.http_connection_manager", "typed_config": manager },
                ] }],
            }],
            "clusters": clusters,
        },
    })
}
