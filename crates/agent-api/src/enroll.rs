//! Enrolment: one request, one response, as often as one likes on a connection.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// With the descriptor of the pod's network namespace.
    Enroll(Enroll),
    Unenroll {
        uid: String,
    },
    /// A pod is about to start: its sandbox is made, nothing runs in it. With the descriptor of its
    /// network namespace; answered once the pod is captured, or known not to be of the mesh.
    Start(Sandbox),
    /// Whether it is as it was after `Start`. With the descriptor, too.
    Check(Sandbox),
    /// A sandbox ends. With the descriptor, too.
    Stop,
    /// Whether anybody is there.
    Ping,
}

/// A pod's sandbox, by who made it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    pub namespace: String,
    pub name: String,
    /// `metadata.uid` of the pod, by which it differs from one of the same name before it.
    pub pod_uid: String,
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enroll {
    /// `<cluster>//Pod/<namespace>/<name>`
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    /// Tunnels and unknown protocols may leave the pod.
    #[serde(default)]
    pub allow_other_protocols: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Response {
    /// Absent when the request was carried out.
    pub error: Option<String>,
    /// The request was not looked at: another agent has taken over, and listens at the same path.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moved: bool,
}

/// The text says what was expected.
pub fn parse(bytes: &[u8]) -> Result<Request, String> {
    serde_json::from_slice(bytes).map_err(|e| format!("the request is not understood: {e}"))
}
