//! The control plane's state: objects in, resources served, questions answered.

use crate::{
    compile::Compiler,
    grant::Account,
    snapshot::Snapshot,
    source::{Batch, Change},
    verdicts::{Judged, verdicts},
    vips::Vips,
    workloads::Cluster,
};
use identity::SpiffeId;
use istio_api::{Diagnostic, Kind, ObjectKey, Spec};
use routes::{
    DESTINATION_TYPE, HOST_TABLE_TYPE, LISTENER_TYPE, TELEMETRY_TYPE, compile::GATEWAY_NAME,
};
use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{mpsc, watch};
use tonic::Status;
use xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE, server::Store};

pub struct Control {
    pub store: Arc<Store>,
    pub cluster: Cluster,
    compiler: Mutex<Compiler>,
    /// Where virtual addresses that were given are written down.
    vips: PathBuf,
    diagnostics: Mutex<Vec<Diagnostic>>,
    refused: Mutex<BTreeMap<ObjectKey, i64>>,
    ready: AtomicBool,
    compiled: AtomicU64,
    changed: AtomicU64,
    issued_refusals: AtomicU64,
    /// Counts what has been applied.
    applied: watch::Sender<u64>,
    /// Counts what of it may have changed what is said of an object.
    judged: watch::Sender<u64>,
    /// Whether anybody can be answered.
    serving: AtomicBool,
}

/// How long the CA waits for a pod that it does not know yet: an agent may be ahead of the source.
const PATIENCE: Duration = Duration::from_secs(2);

impl Control {
    pub fn new(cluster: Cluster, vips: PathBuf) -> anyhow::Result<Arc<Self>> {
        let given = Vips::read(&vips)?;
        Ok(Arc::new(Self {
            store: Store::with_scoped(
                &[AUTHORIZATION_TYPE, ADDRESS_TYPE],
                &[HOST_TABLE_TYPE, DESTINATION_TYPE, LISTENER_TYPE, TELEMETRY_TYPE],
            ),
            compiler: Mutex::new(Compiler::new(cluster.clone(), given)),
            cluster,
            vips,
            diagnostics: Mutex::default(),
            refused: Mutex::default(),
            ready: AtomicBool::new(false),
            compiled: AtomicU64::new(0),
            changed: AtomicU64::new(0),
            issued_refusals: AtomicU64::new(0),
            applied: watch::Sender::new(0),
            judged: watch::Sender::new(0),
            serving: AtomicBool::new(false),
        }))
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && self.serving.load(Ordering::Acquire)
    }

    /// From now on whoever connects is answered.
    pub fn serves(&self) {
        self.serving.store(true, Ordering::Release);
    }

    /// Follows a source until it ends.
    pub async fn follow(&self, mut batches: mpsc::Receiver<Batch>) {
        while let Some(batch) = batches.recv().await {
            self.apply(batch, true);
        }
    }

    pub fn apply(&self, batch: Batch, ready: bool) {
        let count = batch.changes.len();
        let judged = batch.changes.iter().any(may_judge);
        let mut diagnostics = batch.diagnostics;
        let out = {
            let mut compiler = lock(&self.compiler);
            let out = compiler.apply(batch.changes);
            diagnostics.extend(compiler.without_effect());
            if let Err(error) = compiler.vips().save(&self.vips) {
                tracing::error!(
                    error = format!("{error:#}"),
                    "virtual addresses given just now may be others after a restart"
                );
            }
            out
        };
        let refused = std::mem::replace(&mut *lock(&self.refused), batch.refused.clone());
        let judged = self.tell(diagnostics) || judged || refused != batch.refused;
        let compiled = out.compiled;
        let mut changed = 0;
        for (type_url, delta) in out.into_deltas() {
            changed += self.store.update(type_url, delta.updated, delta.removed);
        }
        self.compiled.fetch_add(compiled as u64, Ordering::Relaxed);
        self.changed.fetch_add(changed as u64, Ordering::Relaxed);
        self.ready.fetch_or(ready, Ordering::AcqRel);
        self.applied.send_modify(|n| *n += 1);
        if judged {
            self.judged.send_modify(|n| *n += 1);
        }
        if count > 0 {
            tracing::info!(objects = count, compiled, resources = changed, "configuration applied");
        }
    }

    /// Keeps what is wrong now, and logs what was not before. Whether that is other than it was.
    fn tell(&self, now: Vec<Diagnostic>) -> bool {
        let mut kept = lock(&self.diagnostics);
        if now == *kept {
            return false;
        }
        let before: HashSet<&Diagnostic> = kept.iter().collect();
        let new: Vec<Diagnostic> = now.iter().filter(|d| !before.contains(d)).cloned().collect();
        *kept = now;
        drop(kept);
        for d in new {
            if d.code.is_error() {
                tracing::error!("{d}");
            } else {
                tracing::warn!("{d}");
            }
        }
        true
    }

    /// What is to be said of each object now.
    pub fn verdicts(&self) -> BTreeMap<ObjectKey, Judged> {
        let (diagnostics, refused) = (self.diagnostics(), lock(&self.refused).clone());
        self.with_snapshot(|s| verdicts(s, &self.cluster.domain, &diagnostics, &refused))
    }

    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        lock(&self.diagnostics).clone()
    }

    /// An identity is granted only for a pod that is pending or running on the asker's node.
    pub async fn may_impersonate(&self, node: &str, identity: &SpiffeId) -> Result<(), Status> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if self.runs_on(node, identity) {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                self.issued_refusals.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(node, %identity, "certificate refused");
                return Err(Status::permission_denied(format!(
                    "no pod with the identity {identity} is pending or running on node {node}"
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn runs_on(&self, node: &str, identity: &SpiffeId) -> bool {
        let compiler = lock(&self.compiler);
        let snapshot = compiler.snapshot();
        snapshot.mesh().trust_domain == identity.trust_domain()
            && snapshot.pods_on(node).any(|(o, p)| {
                p.live()
                    && !p.spec.host_network
                    && o.key.namespace == identity.namespace()
                    && p.service_account() == identity.service_account()
            })
    }

    /// A workload asks for its own identity, while a pod of its own is pending or running.
    pub async fn may_be(&self, caller: &Account, identity: &SpiffeId) -> Result<(), Status> {
        let own = identity.namespace() == caller.namespace
            && identity.service_account() == caller.name
            && identity.trust_domain() == self.trust_domain();
        if own && self.eventually(|| self.runs(caller, None)).await {
            return Ok(());
        }
        self.issued_refusals.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%caller, %identity, "certificate refused");
        Err(Status::permission_denied(format!(
            "{caller} is not {identity}, or none of its pods is pending or running"
        )))
    }

    /// What is served to the proxies of a Gateway goes to pods that carry its name, under their own
    /// service account. The answer is what the names of its resources begin with.
    pub async fn may_serve(&self, caller: &Account, gateway: &str) -> Result<String, Status> {
        let named = !gateway.is_empty() && !gateway.contains('/');
        if named && self.eventually(|| self.runs(caller, Some(gateway))).await {
            return Ok(format!("{}/{gateway}/", caller.namespace));
        }
        tracing::warn!(%caller, gateway, "routes refused");
        Err(Status::permission_denied(format!(
            "no pod of {caller} is pending or running with the label {GATEWAY_NAME}: {gateway}"
        )))
    }

    /// Somebody may be ahead of the source.
    async fn eventually(&self, is_so: impl Fn() -> bool) -> bool {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !is_so() {
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        true
    }

    fn runs(&self, caller: &Account, gateway: Option<&str>) -> bool {
        let compiler = lock(&self.compiler);
        compiler.snapshot().in_namespace(Kind::Pod, &caller.namespace).any(|o| {
            let Spec::Pod(p) = &o.spec else { return false };
            let label = || o.meta.labels.get(GATEWAY_NAME).map(String::as_str);
            p.live()
                && p.service_account() == caller.name
                && (gateway.is_none() || label() == gateway)
        })
    }

    /// Tells of each batch that may have changed what is said of an object.
    pub fn judged(&self) -> watch::Receiver<u64> {
        self.judged.subscribe()
    }

    /// Tells of each batch that has been applied.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Reads the objects as they stand. Nothing is applied meanwhile.
    pub fn with_snapshot<T>(&self, read: impl FnOnce(&Snapshot) -> T) -> T {
        read(lock(&self.compiler).snapshot())
    }

    /// Those that are not about to end.
    pub fn namespaces(&self) -> Vec<String> {
        let compiler = lock(&self.compiler);
        let all = compiler.snapshot().of_kind(Kind::Namespace);
        let lasting = all.filter(|o| o.meta.deletion_timestamp.is_none());
        lasting.map(|o| o.key.name.clone()).collect()
    }

    /// Whether that very pod is on the node.
    pub fn is_on(&self, node: &str, namespace: &str, name: &str, uid: &str) -> bool {
        let compiler = lock(&self.compiler);
        let mut pods = compiler.snapshot().pods_on(node);
        pods.any(|(o, _)| o.key.namespace == namespace && o.key.name == name && o.meta.uid == uid)
    }

    pub fn trust_domain(&self) -> String {
        lock(&self.compiler).snapshot().mesh().trust_domain.clone()
    }

    /// Prometheus' text format.
    pub fn metrics(&self) -> String {
        let mut out = String::new();
        let mut counter = |name: &str, help: &str, value: u64| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
        };
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        counter("culvertd_objects_compiled_total", "Objects compiled.", load(&self.compiled));
        counter("culvertd_resources_changed_total", "Resources changed.", load(&self.changed));
        counter("culvertd_resources_sent_total", "Resources sent to clients.", self.store.sent());
        counter(
            "culvertd_certificates_refused_total",
            "Requests for identities that do not run where the asker is.",
            load(&self.issued_refusals),
        );
        let _ = writeln!(
            out,
            "# HELP culvertd_resources Resources served.\n# TYPE culvertd_resources gauge"
        );
        for (name, url) in [
            ("address", ADDRESS_TYPE),
            ("authorization", AUTHORIZATION_TYPE),
            ("host_table", HOST_TABLE_TYPE),
            ("destination", DESTINATION_TYPE),
            ("listener", LISTENER_TYPE),
            ("telemetry", TELEMETRY_TYPE),
        ] {
            let _ = writeln!(out, "culvertd_resources{{type={name:?}}} {}", self.store.len(url));
        }
        let errors = self.diagnostics().iter().filter(|d| d.code.is_error()).count();
        let _ = writeln!(
            out,
            "# HELP culvertd_diagnostics_errors Objects or files that are refused now.\n# TYPE culvertd_diagnostics_errors gauge\nculvertd_diagnostics_errors {errors}"
        );
        out
    }
}

/// Pods come and go all the time, and what is said of objects rests on those of proxies alone.
fn may_judge(change: &Change) -> bool {
    match change.key.kind {
        Kind::Pod => {
            let labels = change.object.as_ref().map(|o| &o.meta.labels);
            labels.is_none_or(|l| l.contains_key(GATEWAY_NAME))
        }
        Kind::EndpointSlice | Kind::Node | Kind::ServiceAccount | Kind::Secret => false,
        _ => true,
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn control(yaml: &str) -> Arc<Control> {
        let cluster = Cluster {
            id: "Kubernetes".to_owned(),
            network: String::new(),
            domain: "cluster.local".to_owned(),
        };
        let nowhere = std::env::temp_dir().join(format!("culvert-no-vips-{}", std::process::id()));
        let control = Control::new(cluster, nowhere).unwrap();
        let (objects, _) = istio_api::parse_documents("test.yaml", yaml);
        let change =
            |o: istio_api::Object| Change { key: o.key.clone(), object: Some(Arc::new(o)) };
        let changes = objects.into_iter().map(change).collect();
        control.apply(Batch { changes, ..Batch::default() }, true);
        control
    }

    const POD: &str = "apiVersion: v1\nkind: Pod\n\
        metadata: {name: wp-1, namespace: ns, labels: {gateway.networking.k8s.io/gateway-name: wp}}\n\
        spec: {nodeName: n, serviceAccountName: wp}\nstatus: {phase: Running, podIP: 10.0.0.1}\n";

    fn account(namespace: &str, name: &str) -> Account {
        Account { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_workload_is_itself_and_nobody_else() {
        let c = control(POD);
        let id = |s: &str| s.parse::<SpiffeId>().unwrap();
        let own = id("spiffe://cluster.local/ns/ns/sa/wp");
        c.may_be(&account("ns", "wp"), &own).await.unwrap();
        for other in [
            "spiffe://cluster.local/ns/ns/sa/another",
            "spiffe://cluster.local/ns/other/sa/wp",
            "spiffe://other.local/ns/ns/sa/wp",
        ] {
            c.may_be(&account("ns", "wp"), &id(other)).await.unwrap_err();
        }
        // Nor without a pod of its own.
        control("").may_be(&account("ns", "wp"), &own).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn routes_go_to_pods_of_their_gateway_under_their_own_account() {
        let c = control(POD);
        assert_eq!(c.may_serve(&account("ns", "wp"), "wp").await.unwrap(), "ns/wp/");
        for (namespace, name, gateway) in [
            ("ns", "wp", "another"),
            ("ns", "another", "wp"),
            ("other", "wp", "wp"),
            ("ns", "wp", ""),
            ("ns", "wp", "../wp"),
        ] {
            c.may_serve(&account(namespace, name), gateway).await.unwrap_err();
        }
    }
}
