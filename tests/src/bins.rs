//! Where the programs under test are.

use std::path::PathBuf;

pub fn binary(name: &str) -> PathBuf {
    testbed::binary(name).unwrap()
}
