//! Generates the protocol types from `proto/`, without a protoc on the machine.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["cri.proto"], [Path::new("proto")])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
