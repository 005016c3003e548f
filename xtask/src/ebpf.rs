//! Builds the kernel programs. They need `core` for a target that no toolchain ships, so `core` is
//! built from the source of the very compiler that builds it. Two ways lead there: rustup's own
//! `rust-src`, or a compiler and its source from Debian; whichever this machine offers is taken.

use crate::host;
use anyhow::{Context as _, anyhow, bail};
use sha2::{Digest as _, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

const LINKER_VERSION: &str = "0.13.0";

/// What benchmarks measure the kernel programs beside.
pub const FLOORS: &str = "floors.bpf.o";

/// The object, built if its sources have changed.
pub fn build() -> anyhow::Result<PathBuf> {
    let root = host::root();
    let out = root.join("target/ebpf/culvert.bpf.o");
    let floors = root.join("target/ebpf").join(FLOORS);
    let stamp = root.join("target/ebpf/sources");
    let sources = digest(&root)?;
    if out.exists() && floors.exists() && fs::read_to_string(&stamp).is_ok_and(|s| s == sources) {
        return Ok(out);
    }
    host::require_build_tools()?;
    let compiler = Compiler::find()?;
    let linker = Linker::find(&compiler)?;
    eprintln!("building the kernel programs with {} (about half a minute)", compiler.name);
    let target = host::cache().join(format!("ebpf-{}", compiler.version));
    let flags = [
        "-Clinker=bpf-linker",
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        "--cfg=bpf_target_arch=\"x86_64\"",
    ];
    let mut cargo = host::cargo();
    cargo
        .current_dir(root.join("ebpf"))
        .args(["build", "--release", "--quiet", "-Z", "build-std=core"])
        .args(["--target", "bpfel-unknown-none", "--locked"])
        .env("RUSTC", &compiler.path)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_TARGET_DIR", &target)
        .env("PATH", before("PATH", linker.bin)?)
        .env("LD_LIBRARY_PATH", before("LD_LIBRARY_PATH", linker.llvm)?)
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTUP_TOOLCHAIN");
    host::run(&mut cargo)?;
    fs::create_dir_all(out.parent().unwrap_or(&root))?;
    for (program, to) in [("culvert-ebpf", &out), ("culvert-floors", &floors)] {
        let built = target.join("bpfel-unknown-none/release").join(program);
        fs::copy(&built, to).with_context(|| format!("copying {}", built.display()))?;
    }
    fs::write(stamp, sources)?;
    Ok(out)
}

/// A search path with one more place, which comes first.
fn before(variable: &str, first: PathBuf) -> anyhow::Result<std::ffi::OsString> {
    let rest = std::env::var_os(variable).unwrap_or_default();
    let places = std::iter::once(first)
        .chain(std::env::split_paths(&rest).filter(|p| !p.as_os_str().is_empty()));
    Ok(std::env::join_paths(places)?)
}

/// Of everything that the object is made from.
fn digest(root: &Path) -> anyhow::Result<String> {
    let mut files = vec![root.join("ebpf/Cargo.toml"), root.join("ebpf/Cargo.lock")];
    for dir in ["ebpf/src", "crates/capture-abi/src"] {
        for entry in fs::read_dir(root.join(dir)).with_context(|| format!("reading {dir}"))? {
            files.push(entry?.path());
        }
    }
    files.sort();
    let mut hash = Sha256::new();
    for f in files {
        hash.update(f.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(fs::read(&f).with_context(|| format!("reading {}", f.display()))?);
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// A compiler with the source of its own standard library.
struct Compiler {
    path: PathBuf,
    name: String,
    version: String,
    llvm: String,
}

impl Compiler {
    fn find() -> anyhow::Result<Self> {
        let rustup = PathBuf::from("rustc");
        if let Some(c) = Self::with_source(&rustup) {
            return Ok(c);
        }
        if add_rust_src()
            && let Some(c) = Self::with_source(&rustup)
        {
            return Ok(c);
        }
        let debian = PathBuf::from("/usr/bin/rustc");
        if let Some(c) = Self::with_source(&debian) {
            return Ok(c);
        }
        eprintln!("rustup offers no rust-src here: taking Debian's compiler and its source");
        host::install(&["rustc-web", "rust-web-src"])?;
        Self::with_source(&debian).ok_or_else(|| {
            anyhow!(
                "no compiler with its library source was found: install one with \
                 `rustup component add rust-src`, or Debian's rustc-web and rust-web-src"
            )
        })
    }

    fn with_source(rustc: &Path) -> Option<Self> {
        let ask = |args: &[&str]| {
            host::output(Command::new(rustc).current_dir(host::root()).args(args)).ok()
        };
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim());
        if !sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists() {
            return None;
        }
        let version = ask(&["-vV"])?;
        let field = |name: &str| {
            version.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned())
        };
        let llvm = field("LLVM version:")?.split('.').next()?.to_owned();
        let release = field("release:")?;
        Some(Compiler {
            path: rustc.to_owned(),
            name: format!("{} ({})", version.lines().next()?, sysroot.display()),
            version: release,
            llvm,
        })
    }
}

/// Asks rustup, which on a closed network waits for long: it gets a minute.
fn add_rust_src() -> bool {
    eprintln!("asking rustup for rust-src (at most a minute)");
    let child = Command::new("rustup")
        .current_dir(host::root())
        .args(["component", "add", "rust-src"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    for _ in 0..600 {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => std::thread::sleep(Duration::from_millis(100)),
            Err(_) => return false,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

/// A bpf-linker, and the LLVM that it was built against.
struct Linker {
    bin: PathBuf,
    llvm: PathBuf,
}

impl Linker {
    /// Built once for the LLVM that rustup's toolchain ships, which must be that of the compiler.
    fn find(compiler: &Compiler) -> anyhow::Result<Self> {
        let shipped = shipped_llvm(compiler)?;
        let name = shipped.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let root = host::cache().join(format!("bpf-linker-{LINKER_VERSION}-{name}"));
        let linker = Linker { bin: root.join("bin"), llvm: root.join("llvm/lib") };
        fs::create_dir_all(&linker.llvm)?;
        // One name to link against, the other to be found by when it runs.
        for link in [linker.llvm.join("libLLVM.so"), linker.llvm.join(&name)] {
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&shipped, &link)?;
        }
        if linker.bin.join("bpf-linker").exists() {
            return Ok(linker);
        }
        eprintln!("building bpf-linker {LINKER_VERSION} (about a minute, once)");
        host::run(
            host::cargo()
                .current_dir("/")
                .args(["install", "bpf-linker", "--quiet", "--locked", "--version", LINKER_VERSION])
                .args(["--no-default-features", "--features", &format!("llvm-{}", compiler.llvm)])
                .arg("--root")
                .arg(&root)
                .env("LLVM_PREFIX", root.join("llvm"))
                .env_remove("CARGO_TARGET_DIR"),
        )?;
        Ok(linker)
    }
}

/// `libLLVM.so.<major>...` of rustup's toolchain.
fn shipped_llvm(compiler: &Compiler) -> anyhow::Result<PathBuf> {
    let prefix = format!("libLLVM.so.{}", compiler.llvm);
    let mut looked = Vec::new();
    for rustc in [PathBuf::from("rustc"), rustup_rustc()] {
        let mut ask = Command::new(&rustc);
        ask.current_dir(host::root()).args(["--print", "sysroot"]);
        let Ok(out) = ask.output() else { continue };
        let lib = Path::new(String::from_utf8_lossy(&out.stdout).trim()).join("lib");
        let found = fs::read_dir(&lib)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)));
        match found {
            Some(llvm) => return Ok(llvm),
            None => looked.push(lib.display().to_string()),
        }
    }
    bail!(
        "no {prefix}* in {}: the toolchain that rust-toolchain.toml names and the compiler for the \
         kernel programs ({}) must agree on LLVM",
        looked.join(" or "),
        compiler.name
    );
}

/// The compiler beside the cargo that runs this.
fn rustup_rustc() -> PathBuf {
    let cargo = std::env::var_os("CARGO").map(PathBuf::from).unwrap_or_default();
    cargo.with_file_name("rustc")
}
