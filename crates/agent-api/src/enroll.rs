//! Enrolment: one request, one response, as often as one likes on a connection.

use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// With the descriptor of the pod's network namespace.
    Enroll(Enroll),
    Unenroll {
        uid: String,
    },
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
