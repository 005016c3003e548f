//! Where the programs under test are.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// `CULVERT_BIN_DIR`, else beside the running program or in a folder above it (a test runs from
/// `target/<profile>/deps`, the programs lie in `target/<profile>`).
///
/// # Errors
/// When it has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    if let Some(dir) = env::var_os("CULVERT_BIN_DIR") {
        return Ok(PathBuf::from(dir).join(name));
    }
    let exe = env::current_exe()?;
    let found = exe.ancestors().skip(1).take(4).map(|dir| dir.join(name)).find(|p| p.is_file());
    found.with_context(|| format!("no {name} near {}: cargo build --workspace", exe.display()))
}
