//! Generates the protocol types from `proto/`, without a protoc on the machine.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["discovery.proto", "workload.proto", "authorization.proto", "ca.proto", "node.proto"];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, [Path::new("proto")])?;
    tonic_prost_build::configure()
        .bytes(".istio.workload")
        .bytes(".envoy.service.discovery.v3.UnopenedResponse")
        .btree_map(".istio.workload")
        .compile_fds(descriptors)?;
    Ok(())
}
