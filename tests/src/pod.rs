//! A pod of the testbed with what Kubernetes would know about it.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use testbed::Pod;

/// What a new pod is to be. Its service account and its label `app` are its own name unless said otherwise.
#[derive(Clone, Debug)]
pub struct Spec {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) more: Value,
}

impl Spec {
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            account: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            more: Value::Null,
        }
    }

    /// More for its manifest: an object whose fields are added, at any depth.
    pub fn with(mut self, more: Value) -> Self {
        self.more = more;
        self
    }

    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }
}

impl From<&str> for Spec {
    fn from(name: &str) -> Self {
        Self::named(name)
    }
}

/// A pod and its manifest. Clones are handles to the same pod.
#[derive(Clone)]
pub struct MeshPod {
    pub(crate) pod: Pod,
    pub(crate) record: Arc<Mutex<Record>>,
}

/// The part of the manifest that changes.
pub(crate) struct Record {
    pub(crate) account: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) redirected: bool,
    /// Whether its status says that it runs.
    pub(crate) started: bool,
    /// No two pods have the same.
    uid: String,
    pub(crate) more: Value,
}

impl MeshPod {
    pub(crate) fn new(pod: Pod, spec: Spec) -> Self {
        let Spec { account, labels, more, .. } = spec;
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let uid = format!("5f3b9c1e-0000-4000-8000-{n:012x}");
        let record = Record { account, labels, redirected: false, started: true, uid, more };
        Self { pod, record: Arc::new(Mutex::new(record)) }
    }

    /// What it is called in discovery.
    pub fn uid(&self) -> String {
        format!("Kubernetes//Pod/{}/{}", self.pod.namespace(), self.pod.name())
    }

    /// `metadata.uid`
    pub fn object_uid(&self) -> String {
        self.record.lock().unwrap().uid.clone()
    }

    pub fn account(&self) -> String {
        self.record.lock().unwrap().account.clone()
    }

    /// Its SPIFFE id, as logs and metrics have it.
    pub fn identity(&self) -> String {
        format!("spiffe://{}", self.principal())
    }

    /// Its SPIFFE id as policies have it.
    pub fn principal(&self) -> String {
        format!("cluster.local/ns/{}/sa/{}", self.pod.namespace(), self.account())
    }

    pub(crate) fn manifest(&self) -> Value {
        let record = self.record.lock().unwrap();
        let mut annotations = json!({});
        if record.redirected {
            annotations["ambient.istio.io/redirection"] = "enabled".into();
        }
        let pod = &self.pod;
        let mut manifest = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": pod.namespace(),
                "name": pod.name(),
                "uid": record.uid,
                "labels": record.labels,
                "annotations": annotations,
            },
            "spec": {
                "nodeName": pod.node().name(),
                "serviceAccountName": record.account,
                "containers": [{ "name": "app", "image": "app" }],
            },
            "status": {
                "phase": "Running",
                "podIP": pod.ipv4(),
                "podIPs": [{ "ip": pod.ipv4() }, { "ip": pod.ipv6() }],
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        });
        if !record.started {
            manifest["status"] = json!({ "phase": "Pending" });
        }
        add(&mut manifest, &record.more);
        manifest
    }
}

fn add(to: &mut Value, more: &Value) {
    match more {
        Value::Object(fields) => {
            for (name, value) in fields {
                add(&mut to[name], value);
            }
        }
        Value::Null => {}
        other => *to = other.clone(),
    }
}

impl Deref for MeshPod {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.pod
    }
}

impl std::fmt::Debug for MeshPod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.pod.fmt(f)
    }
}

/// Runs a shell command in a pod, and wants it to succeed. The answer is what it prints.
pub fn run_in(pod: &MeshPod, line: &str) -> String {
    let mut cmd = std::process::Command::new("sh");
    cmd.args(["-c", line]);
    let proc = pod.spawn(cmd).unwrap();
    let status = proc.wait(crate::SOON).unwrap();
    assert!(status.success(), "{line:?} in {pod:?}: {}", proc.stderr());
    proc.stdout()
}
