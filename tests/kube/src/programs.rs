//! Where Kubernetes' programs are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Folders that are searched for a program, in this order.
#[derive(Clone, Debug)]
pub struct Programs(Vec<PathBuf>);

impl Programs {
    /// `KUBE_BIN_DIR`, `KUBEBUILDER_ASSETS` (as setup-envtest prints it), then what `cargo xtask kube build` has built.
    ///
    /// # Errors
    /// When the versions in the Go module's `go.mod` cannot be read.
    pub fn find() -> Result<Self> {
        let given = ["KUBE_BIN_DIR", "KUBEBUILDER_ASSETS"];
        let mut dirs: Vec<PathBuf> =
            given.into_iter().filter_map(env::var_os).map(PathBuf::from).collect();
        dirs.push(built_dir()?);
        Ok(Self(dirs))
    }

    /// Only these folders.
    pub fn in_dirs(dirs: &[&Path]) -> Self {
        Self(dirs.iter().map(|d| d.to_path_buf()).collect())
    }

    /// # Errors
    /// When no folder has it.
    pub fn get(&self, name: &str) -> Result<PathBuf> {
        self.0.iter().map(|dir| dir.join(name)).find(|p| p.is_file()).with_context(|| {
            let looked: Vec<_> = self.0.iter().map(|d| d.display().to_string()).collect();
            format!(
                "no {name} in {}: run `cargo xtask kube build`, or set KUBE_BIN_DIR",
                looked.join(" or ")
            )
        })
    }
}

/// The Go module that names what is built.
pub(crate) fn go_module() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Versions of what is built, by `go.mod`.
pub(crate) struct Versions {
    /// With its `v`.
    pub kubernetes: String,
    pub etcd: String,
    pub helm: String,
    /// The oldest that builds it.
    pub go: String,
}

impl Versions {
    pub fn read() -> Result<Self> {
        let path = go_module().join("go.mod");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let of = |module: &str| {
            required(&text, module).with_context(|| format!("{} has no {module}", path.display()))
        };
        Ok(Self {
            kubernetes: of("k8s.io/kubernetes")?,
            etcd: of("go.etcd.io/etcd/server/v3")?,
            helm: of("helm.sh/helm/v3")?,
            go: of("go")?,
        })
    }
}

/// The version of a module in the `require` lines of a `go.mod`, or of `go` itself.
fn required(go_mod: &str, module: &str) -> Option<String> {
    go_mod.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|w| *w == "require");
        (words.next()? == module).then(|| words.next()).flatten().map(str::to_owned)
    })
}

/// Named after the versions, so that another version is built beside it and not taken for it.
pub(crate) fn built_dir() -> Result<PathBuf> {
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from);
    let Versions { kubernetes, etcd, helm, .. } = Versions::read()?;
    let bare = |v: &str| v.trim_start_matches('v').to_owned();
    let [kubernetes, etcd, helm] = [kubernetes, etcd, helm].map(|v| bare(&v));
    Ok(cache.join("culvert").join(format!("kube-{kubernetes}-etcd-{etcd}-helm-{helm}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_of_the_require_lines() {
        let text = "require a.io/x v1.2.3\nrequire (\n\tb.io/y/v3 v3.4.5 // indirect\n)\nreplace b.io/z => b.io/z v9\n";
        assert_eq!(required(text, "a.io/x").as_deref(), Some("v1.2.3"));
        assert_eq!(required(text, "b.io/y/v3").as_deref(), Some("v3.4.5"));
        assert_eq!(required(text, "b.io/z"), None);
    }

    #[test]
    fn the_module_names_kubernetes_and_an_etcd_that_it_supports() {
        let Versions { kubernetes, etcd, helm, go } = Versions::read().unwrap();
        assert!(kubernetes.starts_with("v1."), "{kubernetes}");
        assert!(etcd.starts_with("v3."), "{etcd}");
        assert!(helm.starts_with("v3."), "{helm}");
        assert!(go.starts_with("1."), "{go}");
    }

    #[test]
    fn a_missing_program_is_named_with_the_remedy() {
        let dir = std::env::temp_dir();
        let error = Programs::in_dirs(&[&dir]).get("kube-nothing").unwrap_err().to_string();
        assert!(error.starts_with("no kube-nothing in "), "{error}");
        assert!(error.contains(&*dir.to_string_lossy()), "{error}");
        assert!(error.contains("cargo xtask kube build"), "{error}");
    }
}
