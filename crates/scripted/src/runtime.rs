//! A container runtime by script: as much of CRI v1 as finds a pod's sandbox, over a unix socket.

use cri::{
    POD_UID_LABEL,
    proto::{
        ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxMetadata,
        PodSandboxState, PodSandboxStatus, PodSandboxStatusRequest, PodSandboxStatusResponse,
        runtime_service_server::{RuntimeService, RuntimeServiceServer},
    },
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// A pod's sandbox, as the runtime tells of it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub namespace: String,
    pub name: String,
    pub pod_uid: String,
    pub ready: bool,
    pub pid: i32,
    /// None: the node's.
    pub netns: Option<PathBuf>,
}

/// It serves whenever it is started, until it is stopped or dropped. Its sandboxes stay.
pub struct Runtime {
    socket: PathBuf,
    sandboxes: Arc<Mutex<BTreeMap<String, Sandbox>>>,
    serving: Option<tokio::runtime::Runtime>,
}

impl Runtime {
    pub fn start(socket: &Path) -> Self {
        let mut this = Self { socket: socket.to_owned(), sandboxes: Arc::default(), serving: None };
        this.start_again();
        this
    }

    pub fn start_again(&mut self) {
        self.stop();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let service = RuntimeServiceServer::new(Service(self.sandboxes.clone()));
        runtime.block_on(async {
            let listener = UnixListener::bind(&self.socket).unwrap();
            let server = Server::builder().add_service(service);
            tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        });
        self.serving = Some(runtime);
    }

    /// Connections break, and nobody listens.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.serving.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
        let _ = fs::remove_file(&self.socket);
    }

    /// The sandbox of this id is so from now on.
    pub fn put(&self, id: &str, sandbox: Sandbox) {
        lock(&self.sandboxes).insert(id.to_owned(), sandbox);
    }

    pub fn remove(&self, id: &str) {
        lock(&self.sandboxes).remove(id);
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Service(Arc<Mutex<BTreeMap<String, Sandbox>>>);

fn state(sandbox: &Sandbox) -> PodSandboxState {
    match sandbox.ready {
        true => PodSandboxState::SandboxReady,
        false => PodSandboxState::SandboxNotready,
    }
}

fn metadata(sandbox: &Sandbox) -> PodSandboxMetadata {
    PodSandboxMetadata {
        name: sandbox.name.clone(),
        uid: sandbox.pod_uid.clone(),
        namespace: sandbox.namespace.clone(),
        attempt: 0,
    }
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let wanted_state = filter.state.map(|s| s.state);
        let wanted_uid = filter.label_selector.get(POD_UID_LABEL);
        let all = lock(&self.0);
        let items = all
            .iter()
            .filter(|(_, s)| wanted_state.is_none_or(|wanted| wanted == i32::from(state(s))))
            .filter(|(_, s)| wanted_uid.is_none_or(|wanted| *wanted == s.pod_uid))
            .map(|(id, s)| PodSandbox {
                id: id.clone(),
                metadata: Some(metadata(s)),
                state: state(s).into(),
                created_at: 1,
                labels: [(POD_UID_LABEL.to_owned(), s.pod_uid.clone())].into(),
            })
            .collect();
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        let PodSandboxStatusRequest { pod_sandbox_id: id, verbose } = request.into_inner();
        let all = lock(&self.0);
        let sandbox = all.get(&id).ok_or_else(|| Status::not_found("no such sandbox"))?;
        let network = sandbox.netns.iter().map(|path| json!({"type": "network", "path": path}));
        let namespaces: Vec<_> = network.chain([json!({"type": "pid"})]).collect();
        let info = json!({
            "pid": sandbox.pid,
            "runtimeSpec": {"linux": {"namespaces": namespaces}},
        });
        let status = PodSandboxStatus {
            id,
            metadata: Some(metadata(sandbox)),
            state: state(sandbox).into(),
            created_at: 1,
        };
        let info = verbose.then(|| ("info".to_owned(), info.to_string()));
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(status),
            info: info.into_iter().collect(),
        }))
    }
}
