//! Writes the definitions of `istio_api::crds` into the folder that it is given: `cargo xtask crds`.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = env::args_os().nth(1).map(PathBuf::from).ok_or("give the folder to write to")?;
    fs::create_dir_all(&dir)?;
    for (name, text) in istio_api::crds::files()? {
        fs::write(dir.join(name), text)?;
    }
    Ok(())
}
