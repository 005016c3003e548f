//! Images for the cluster's pods, made from programs of this machine. Nothing is pulled.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Nobody's registry: a node that does not have such an image cannot get it from anywhere.
const REGISTRY: &str = "bed.invalid";

/// An image to be: a name, and programs with what they need to run.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    /// From where on this machine, and where to in the image.
    files: Vec<(PathBuf, PathBuf)>,
    links: Vec<(PathBuf, String)>,
    entrypoint: Vec<String>,
}

impl Image {
    /// An image of one layer, as yet empty.
    pub fn new(name: &str) -> Self {
        let name = format!("{REGISTRY}/{name}:bed");
        Self { name, files: Vec::new(), links: Vec::new(), entrypoint: Vec::new() }
    }

    /// What a pod calls it, with `imagePullPolicy: Never`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a program at `/bin/<its name>`, and the libraries that it is linked to where its loader looks for them.
    ///
    /// # Errors
    /// When it is not there.
    pub fn program(mut self, path: &Path) -> Result<Self> {
        let file = path.file_name().with_context(|| format!("{} is no file", path.display()))?;
        ensure!(path.is_file(), "no program {}", path.display());
        self.files.push((path.to_owned(), Path::new("/bin").join(file)));
        let known: BTreeSet<PathBuf> = self.files.iter().map(|(_, to)| to.clone()).collect();
        let new = libraries(path)?.into_iter().filter(|library| !known.contains(library));
        self.files.extend(new.map(|library| (library.clone(), library)));
        Ok(self)
    }

    /// Adds names in `/bin` for a program there that goes by how it was called.
    pub fn links(mut self, to: &str, names: &[&str]) -> Self {
        self.links.extend(names.iter().map(|n| (Path::new("/bin").join(n), to.to_owned())));
        self
    }

    /// What a container runs that says nothing else.
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|w| (*w).to_owned()).collect();
        self
    }

    /// Writes it as an archive of an OCI layout, and gives its path in `dir`.
    pub(crate) fn write(&self, dir: &Path) -> Result<PathBuf> {
        let file = self.name.replace(['/', ':'], "-");
        let work = dir.join(&file);
        let archive = dir.join(format!("{file}.tar"));
        let written = self.lay_out(&work).and_then(|()| tar(&work, &archive));
        let _ = fs::remove_dir_all(&work);
        written.with_context(|| format!("cannot make image {}", self.name))?;
        Ok(archive)
    }

    fn lay_out(&self, work: &Path) -> Result<()> {
        let root = work.join("root");
        // What programs and mounts take for granted.
        for dir in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(root.join(dir))?;
        }
        for (from, to) in &self.files {
            let to = root.join(to.strip_prefix("/").unwrap_or(to));
            fs::create_dir_all(to.parent().unwrap_or(&root))?;
            fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
        }
        for (name, to) in &self.links {
            let name = root.join(name.strip_prefix("/").unwrap_or(name));
            std::os::unix::fs::symlink(to, &name)
                .with_context(|| format!("linking {}", name.display()))?;
        }
        let layer = work.join("layer");
        tar(&root, &layer)?;
        fs::remove_dir_all(&root)?;
        self.describe(work, &fs::read(&layer)?)?;
        Ok(fs::remove_file(&layer)?)
    }

    /// The layout around a layer: <https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md>.
    fn describe(&self, work: &Path, layer: &[u8]) -> Result<()> {
        let blobs = work.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let blob = |kind: &str, bytes: &[u8]| -> Result<Value> {
            let hash: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
            fs::write(blobs.join(&hash), bytes)?;
            Ok(json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": format!("sha256:{hash}"),
                "size": bytes.len(),
            }))
        };
        let layer = blob("layer.v1.tar", layer)?;
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": ["PATH=/bin"]},
            // The layer is not compressed: its digest is the archive's own.
            "rootfs": {"type": "layers", "diff_ids": [layer.get("digest")]},
        });
        let config = blob("config.v1+json", config.to_string().as_bytes())?;
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        let mut manifest = blob("manifest.v1+json", manifest.to_string().as_bytes())?;
        if let Some(fields) = manifest.as_object_mut() {
            // containerd takes the whole name from here.
            let annotations = json!({"io.containerd.image.name": self.name});
            fields.insert("annotations".to_owned(), annotations);
        }
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(work.join("index.json"), index.to_string())?;
        Ok(fs::write(work.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?)
    }
}

fn tar(dir: &Path, archive: &Path) -> Result<()> {
    let mut cmd = Command::new("tar");
    // The same archive whenever and by whomever it is made.
    cmd.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-C"])
        .arg(dir)
        .arg("-cf")
        .args([archive, Path::new(".")]);
    let out = cmd.output().context("cannot run tar: is it installed?")?;
    ensure!(out.status.success(), "tar: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}

/// What a program is linked to, its loader included; none for one that is linked to nothing.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    // It fails for a static program, and says so.
    Ok(library_paths(&String::from_utf8_lossy(&out.stdout)))
}

fn library_paths(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_says() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd0)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";
        let paths = library_paths(said);
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(paths, expected.map(PathBuf::from));
        assert_eq!(library_paths("\tstatically linked\n"), Vec::<PathBuf>::new());
    }

    #[test]
    fn an_archive_holds_blobs_by_their_digest() {
        let dir = std::env::temp_dir().join(format!("kubebed-image-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let image = Image::new("x").program(Path::new("/bin/cat")).unwrap();
        let archive = image.entrypoint(&["cat"]).write(&dir).unwrap();
        let listed = Command::new("tar").arg("-tf").arg(&archive).output().unwrap();
        let blob = Command::new("sh")
            .arg("-c")
            .arg("cd $1 && tar -xf $2 && for f in blobs/sha256/*; do echo ${f##*/} $(sha256sum <$f); done")
            .args(["sh".as_ref(), dir.as_os_str(), archive.as_os_str()])
            .output()
            .unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert!(String::from_utf8_lossy(&listed.stdout).contains("./index.json\n"));
        let blobs = String::from_utf8_lossy(&blob.stdout).into_owned();
        assert_eq!(blobs.lines().count(), 3, "layer, config and manifest: {blobs}");
        for line in blobs.lines() {
            let mut words = line.split(' ');
            assert_eq!(words.next(), words.next());
        }
    }
}
