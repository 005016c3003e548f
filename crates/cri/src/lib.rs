//! What a node's container runtime says about the sandboxes of pods (CRI v1, over its unix socket).
//!
//! [`Runtime`] asks; [`proto`] is the wire. Which process holds a sandbox's namespaces is no part of
//! CRI: containerd and CRI-O say it in the `info` of a verbose status.

use proto::{
    ListPodSandboxRequest, PodSandboxFilter, PodSandboxMetadata, PodSandboxState,
    PodSandboxStateValue, PodSandboxStatusRequest, PodSandboxStatusResponse,
    runtime_service_client::RuntimeServiceClient,
};
use serde::Deserialize;
use std::{
    error::Error as _,
    path::{Path, PathBuf},
    time::Duration,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// The generated wire types.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod proto {
    tonic::include_proto!("runtime.v1");
}

/// The label by which a kubelet marks sandboxes with `metadata.uid` of their pods.
pub const POD_UID_LABEL: &str = "io.kubernetes.pod.uid";

/// For one answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A verbose status holds the whole specification of the sandbox.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the container runtime does not answer on {socket}: {why}; is it running, and is this its \
         socket (--cri)?"
    )]
    Unreachable { socket: String, why: String },
    #[error("the container runtime on {socket} refuses: {why}")]
    Refused { socket: String, why: String },
    #[error("the container runtime no longer has sandbox {id}")]
    Gone { id: String },
    #[error("the container runtime's answer about sandbox {id} is not understood: {why}")]
    Unreadable { id: String, why: String },
}

/// A container runtime. Connections are made when they are needed, and again when they have ended.
#[derive(Clone, Debug)]
pub struct Runtime {
    socket: String,
    client: RuntimeServiceClient<Channel>,
}

/// A pod's sandbox, as the runtime sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sandbox {
    pub id: String,
    pub ready: bool,
    pub namespace: String,
    pub name: String,
    pub pod_uid: String,
    /// A process that is in its namespaces; none where the runtime has none, as for virtual machines.
    pub pid: Option<u32>,
    /// Its network namespace, as the runtime's own mounts name it. None: it is the node's.
    pub netns: Option<PathBuf>,
}

impl Runtime {
    /// `socket` is a path, which may begin with `unix://`.
    pub fn at(socket: &Path) -> Result<Self, tonic::transport::Error> {
        let socket = socket.display().to_string();
        let socket = socket.strip_prefix("unix://").unwrap_or(&socket).to_owned();
        let channel =
            Endpoint::from_shared(format!("unix://{socket}"))?.timeout(TIMEOUT).connect_lazy();
        let client = RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        Ok(Self { socket, client })
    }

    /// The ids of the pod's sandboxes that are ready, the newest first.
    pub async fn ready_sandboxes(&self, pod_uid: &str) -> Result<Vec<String>, Error> {
        let state = PodSandboxStateValue { state: PodSandboxState::SandboxReady.into() };
        let filter = PodSandboxFilter {
            id: String::new(),
            state: Some(state),
            label_selector: [(POD_UID_LABEL.to_owned(), pod_uid.to_owned())].into(),
        };
        let request = ListPodSandboxRequest { filter: Some(filter) };
        let answer = self.client.clone().list_pod_sandbox(request).await;
        let mut found = answer.map_err(|status| self.failed("", &status))?.into_inner().items;
        found.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
        Ok(found.into_iter().map(|sandbox| sandbox.id).collect())
    }

    pub async fn sandbox(&self, id: &str) -> Result<Sandbox, Error> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let answer = self.client.clone().pod_sandbox_status(request).await;
        let answer = answer.map_err(|status| self.failed(id, &status))?.into_inner();
        read(answer).map_err(|why| Error::Unreadable { id: id.to_owned(), why })
    }

    fn failed(&self, id: &str, status: &Status) -> Error {
        let socket = self.socket.clone();
        let mut why = format!("{:?}: {}", status.code(), status.message());
        let mut source = status.source();
        while let Some(error) = source {
            why.push_str(&format!(": {error}"));
            source = error.source();
        }
        match status.code() {
            Code::NotFound => Error::Gone { id: id.to_owned() },
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                Error::Unreachable { socket, why }
            }
            _ => Error::Refused { socket, why },
        }
    }
}

/// What containerd and CRI-O say under `info`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    pid: u32,
    runtime_spec: Option<Spec>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    linux: Linux,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Linux {
    namespaces: Vec<Namespace>,
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: PathBuf,
}

fn read(answer: PodSandboxStatusResponse) -> Result<Sandbox, String> {
    let status = answer.status.ok_or("it has no status")?;
    let info = match answer.info.get("info") {
        Some(json) => serde_json::from_str::<Info>(json).map_err(|e| format!("its info: {e}"))?,
        None => return Err("it has no info, which tells where its namespaces are".to_owned()),
    };
    let namespaces = info.runtime_spec.map(|spec| spec.linux.namespaces).unwrap_or_default();
    let netns = namespaces.into_iter().find(|n| n.kind == "network").map(|n| n.path);
    let PodSandboxMetadata { name, uid, namespace, .. } =
        status.metadata.ok_or("it has no metadata")?;
    Ok(Sandbox {
        ready: status.state == i32::from(PodSandboxState::SandboxReady),
        id: status.id,
        namespace,
        name,
        pod_uid: uid,
        pid: (info.pid > 0).then_some(info.pid),
        netns,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proto::PodSandboxStatus;

    fn answer(state: PodSandboxState, info: &[(&str, &str)]) -> PodSandboxStatusResponse {
        let metadata = PodSandboxMetadata {
            name: "web".into(),
            uid: "u-1".into(),
            namespace: "shop".into(),
            attempt: 0,
        };
        PodSandboxStatusResponse {
            status: Some(PodSandboxStatus {
                id: "s-1".into(),
                metadata: Some(metadata),
                state: state.into(),
                created_at: 1,
            }),
            info: info.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    #[test]
    fn what_containerd_says_of_a_sandbox() {
        let info = r#"{"pid": 4711, "processStatus": "running", "image": "pause:3.10",
            "runtimeSpec": {"ociVersion": "1.1.0", "linux": {"namespaces": [
                {"type": "pid"}, {"type": "network", "path": "/var/run/netns/cni-1"}]}}}"#;
        let sandbox = read(answer(PodSandboxState::SandboxReady, &[("info", info)])).unwrap();
        assert_eq!(sandbox.pid, Some(4711));
        assert_eq!(sandbox.netns, Some("/var/run/netns/cni-1".into()));
        assert!(sandbox.ready);
        assert_eq!((&*sandbox.namespace, &*sandbox.name), ("shop", "web"));
        assert_eq!(sandbox.pod_uid, "u-1");
    }

    #[test]
    fn a_sandbox_of_the_nodes_network_has_no_namespace_of_its_own() {
        let info = r#"{"pid": 1, "runtimeSpec": {"linux": {"namespaces": [{"type": "pid"}]}}}"#;
        let sandbox = read(answer(PodSandboxState::SandboxNotready, &[("info", info)])).unwrap();
        assert_eq!(sandbox.netns, None);
        assert!(!sandbox.ready);
    }

    #[test]
    fn what_says_nothing_of_its_namespaces_is_not_understood() {
        assert!(read(answer(PodSandboxState::SandboxReady, &[])).unwrap_err().contains("no info"));
        let bad = read(answer(PodSandboxState::SandboxReady, &[("info", "{")]));
        assert!(bad.unwrap_err().contains("its info"));
        assert!(read(PodSandboxStatusResponse::default()).unwrap_err().contains("no status"));
    }
}
