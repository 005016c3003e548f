//! Where the programs under test are.

use std::path::PathBuf;

/// `CULVERT_BIN_DIR`, else beside the running test or in a folder above it (a test runs from `target/<profile>/deps`,
/// the programs lie in `target/<profile>`).
pub fn binary(name: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os("CULVERT_BIN_DIR") {
        return PathBuf::from(dir).join(name);
    }
    let exe = std::env::current_exe().unwrap();
    let found = exe.ancestors().skip(1).take(4).map(|dir| dir.join(name)).find(|p| p.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "no {name} near {}: cargo build -p culvert-agent -p culvertd -p culvertctl -p testbed",
            exe.display()
        )
    })
}
