//! The directory of manifests that the control plane watches: one file per object, each written whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

pub(crate) struct Manifests {
    dir: PathBuf,
}

impl Manifests {
    pub(crate) fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(&dir).unwrap();
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// `name` is the file's, without its extension.
    pub(crate) fn write(&self, name: &str, text: &str) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Not `.yaml`, so that the half-written file is not read.
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let part = self.dir.join(format!("{name}.{n}.part"));
        fs::write(&part, text).unwrap();
        fs::rename(&part, self.file(name)).unwrap();
    }

    /// JSON is YAML.
    pub(crate) fn write_object(&self, name: &str, object: &Value) {
        self.write(name, &format!("{object:#}\n"));
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).unwrap();
    }

    /// Writes what others refer to, once.
    pub(crate) fn ensure(&self, name: &str, object: &Value) {
        if !self.file(name).exists() {
            self.write_object(name, object);
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.yaml"))
    }
}

/// A namespace whose pods belong to the mesh once they are captured.
pub(crate) fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": name, "labels": { "istio.io/dataplane-mode": "ambient" } },
    })
}

pub(crate) fn service_account(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "namespace": namespace, "name": name },
    })
}

/// `<kind>-<namespace>-<name>`, lower case: what an object's file is called.
pub(crate) fn file_name(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}-{namespace}-{name}").to_lowercase()
}
