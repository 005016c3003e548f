//! Container images made from programs of this machine, with the libraries that they are linked to: one layer, in an
//! archive of OCI's layout. Nothing is pulled, and no daemon is asked.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

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
    /// An image of one layer, as yet empty. Its name is the whole one, with registry and tag: who imports it asks
    /// for it by that.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), files: Vec::new(), links: Vec::new(), entrypoint: Vec::new() }
    }

    /// What a pod calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a program at `/bin/<its name>`, and the libraries that it is linked to where its loader looks for them.
    ///
    /// # Errors
    /// When it is not there.
    pub fn program(self, path: &Path) -> Result<Self> {
        self.program_in("/bin", path)
    }

    /// The same in another folder.
    ///
    /// # Errors
    /// When it is not there.
    pub fn program_in(mut self, dir: &str, path: &Path) -> Result<Self> {
        let file = path.file_name().with_context(|| format!("{} is no file", path.display()))?;
        ensure!(path.is_file(), "no program {}", path.display());
        self.files.push((path.to_owned(), Path::new(dir).join(file)));
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
    ///
    /// # Errors
    /// When a program cannot be read, the folder not written, or `tar` is missing.
    pub fn write(&self, dir: &Path) -> Result<PathBuf> {
        let file = self.name.replace(['/', ':'], "-");
        let work = dir.join(&file);
        let archive = dir.join(format!("{file}.tar"));
        let written = self.lay_out(&work).and_then(|()| tar(&work, &archive));
        let _ = fs::remove_dir_all(&work);
        written.with_context(|| format!("cannot make image {}", self.name))?;
        Ok(archive)
    }

    /// Writes its files as a folder, for a tool that makes the rest of an image; gives its path back.
    ///
    /// # Errors
    /// When the folder is there already, or as [`Image::write`].
    pub fn write_root(&self, root: &Path) -> Result<PathBuf> {
        ensure!(!root.exists(), "{} is there already: remove it, or name another", root.display());
        self.files(root)?;
        Ok(root.to_owned())
    }

    fn lay_out(&self, work: &Path) -> Result<()> {
        let root = work.join("root");
        self.files(&root)?;
        let layer = work.join("layer");
        tar(&root, &layer)?;
        fs::remove_dir_all(&root)?;
        self.describe(work, &fs::read(&layer)?)?;
        Ok(fs::remove_file(&layer)?)
    }

    fn files(&self, root: &Path) -> Result<()> {
        // What programs and mounts take for granted.
        for dir in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "var"] {
            fs::create_dir_all(root.join(dir))?;
        }
        std::os::unix::fs::symlink("../run", root.join("var/run"))?;
        for (from, to) in &self.files {
            let to = root.join(to.strip_prefix("/").unwrap_or(to));
            fs::create_dir_all(to.parent().unwrap_or(root))?;
            fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
        }
        for (name, to) in &self.links {
            let name = root.join(name.strip_prefix("/").unwrap_or(name));
            std::os::unix::fs::symlink(to, &name)
                .with_context(|| format!("linking {}", name.display()))?;
        }
        Ok(())
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
            "config": {"Entrypoint": self.entrypoint, "Env": ["PATH=/usr/local/bin:/bin"]},
            // The layer is not compressed: its digest is the archive's own.
            "rootfs": {"type": "layers", "diff_ids": [layer.get("digest")]},
        });
        let config = blob("config.v1+json", config.to_string().as_bytes())?;
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        let mut manifest = blob("manifest.v1+json", manifest.to_string().as_bytes())?;
        if let Some(fields) = manifest.as_object_mut() {
            // containerd takes the whole name from here.
            let annotations = json!({
                "io.containerd.image.name": self.name,
                "org.opencontainers.image.ref.name": self.name,
            });
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
///
/// # Errors
/// When there is no `ldd`.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
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
#[allow(clippy::unwrap_used)]
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

    /// Needs root, as all tests of the workspace may.
    #[test]
    fn a_program_runs_with_nothing_but_the_image() {
        let dir = std::env::temp_dir().join(format!("oci-image-root-{}", std::process::id()));
        let image = Image::new("x.invalid/y:z").program_in("/usr/bin", Path::new("/bin/cat"));
        let root = image.unwrap().links("../usr/bin/cat", &["dog"]).write_root(&dir).unwrap();
        let run =
            Command::new("/usr/sbin/chroot").arg(&root).args(["/bin/dog", "--version"]).output();
        let again = Image::new("x.invalid/y:z").write_root(&dir).unwrap_err().to_string();
        fs::remove_dir_all(&root).unwrap();
        let run = run.unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        assert!(run.stdout.starts_with(b"cat "));
        assert!(again.contains("is there already"), "{again}");
    }

    #[test]
    fn an_archive_holds_blobs_by_their_digest() {
        let dir = std::env::temp_dir().join(format!("oci-image-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let image = Image::new("x.invalid/y:z").program(Path::new("/bin/cat")).unwrap();
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
