//! Embeds the kernel programs, which `cargo xtask build-ebpf` builds.

use std::{env, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-env-changed=CULVERT_EBPF_OBJECT");
    let object = match env::var_os("CULVERT_EBPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../target/ebpf/culvert.bpf.o"),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.exists() {
        return Err(format!(
            "{} does not exist; build it with `cargo xtask build-ebpf`",
            object.display()
        )
        .into());
    }
    println!("cargo::rustc-env=CULVERT_EBPF_OBJECT={}", object.canonicalize()?.display());
    Ok(())
}
