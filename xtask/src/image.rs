//! `cargo xtask image`: Culvert's programs as a container image. No daemon makes it, and nothing is in it but the programs
//! and what they are linked to.

use crate::{ebpf, host};
use anyhow::{Context as _, ensure};
use oci_image::Image;
use std::path::{Path, PathBuf};

/// Where pods look for them.
const DIR: &str = "/usr/local/bin";
const PROGRAMS: [&str; 4] = ["culvertd", "culvert-agent", "culvert-waypoint", "culvertctl"];
/// The agent copies it to the node, where it must run whatever libraries are there.
const STATIC: &str = "culvert-cni";

#[derive(clap::Args)]
pub struct Args {
    /// The folder that the archive goes to
    #[arg(long, default_value = "target/image")]
    out: PathBuf,
    /// Cargo's profile; `dev` builds faster
    #[arg(long, default_value = "release")]
    profile: String,
    /// The image's name, with registry and tag
    #[arg(long, default_value = concat!("localhost/culvert:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// Write the image's files as a folder `root` instead of an archive
    #[arg(long)]
    root: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    host::require_build_tools()?;
    ebpf::build()?;
    let built = programs(&args.profile)?;
    let mut image = Image::new(&args.name);
    for program in &built {
        image = image.program_in(DIR, program)?;
    }
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make {}", args.out.display()))?;
    let written = match args.root {
        true => image.write_root(&args.out.join("root"))?,
        false => image.write(&args.out)?,
    };
    println!("{}", written.display());
    Ok(())
}

fn programs(profile: &str) -> anyhow::Result<Vec<PathBuf>> {
    eprintln!("building the programs (many minutes when cold)");
    let mut build = host::cargo();
    build.args(["build", "--quiet", "--locked", "--profile", profile]);
    for program in PROGRAMS {
        build.args(["--bin", program]);
    }
    host::run(&mut build)?;
    // In a folder of its own: the same program linked otherwise.
    let apart = host::target().join("static");
    let mut build = host::cargo();
    build.args(["rustc", "--quiet", "--locked", "--profile", profile, "--bin", STATIC]);
    build.args(["--package", STATIC, "--target-dir"]).arg(&apart);
    build.args(["--", "-C", "target-feature=+crt-static"]);
    host::run(&mut build)?;
    // Cargo's name for the folder of its own profile.
    let folder = if profile == "dev" { "debug" } else { profile };
    let linked_to_nothing = apart.join(folder).join(STATIC);
    require_static(&linked_to_nothing)?;
    let others = PROGRAMS.map(|name| host::target().join(folder).join(name));
    Ok(others.into_iter().chain([linked_to_nothing]).collect())
}

fn require_static(program: &Path) -> anyhow::Result<()> {
    let libraries = oci_image::libraries(program)?;
    ensure!(
        libraries.is_empty(),
        "{} needs {libraries:?}: a node's container runtime may not have them",
        program.display()
    );
    Ok(())
}
