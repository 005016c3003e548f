//! Istio's discovery, workload, authorization and certificate protocols, and what agents report.
//!
//! [`proto`] is the wire; [`client`] and [`server`] are the two ends of delta ADS. Both keep their
//! bookkeeping apart from I/O, so that reordered, repeated and rejected messages can be tested
//! without a network.

pub mod client;
mod control_plane;
pub mod server;
mod version;
pub mod wire;

pub use control_plane::ControlPlane;
pub use version::Version;

/// The generated wire types.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod proto {
    pub mod discovery {
        tonic::include_proto!("envoy.service.discovery.v3");
    }
    pub mod workload {
        tonic::include_proto!("istio.workload");
    }
    pub mod security {
        tonic::include_proto!("istio.security");
    }
    pub mod ca {
        tonic::include_proto!("istio.v1.auth");
    }
    pub mod node {
        tonic::include_proto!("culvert.node.v1");
    }
}

pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";

/// Extension of `istio.workload.Workload` that carries the pod's labels: a
/// `google.protobuf.Struct` of strings.
pub const LABELS_EXTENSION: &str = "culvert.io/labels";

/// Extension of `istio.workload.Workload` about the pod's names: a `google.protobuf.Struct` of
/// `hostname` and `subdomain` (strings, as in the pod's spec), `searches` (a list of strings, where
/// it is not the cluster's own) and `capture` (false: the agent leaves the pod's questions alone).
/// A field is there only where it says something.
pub const DNS_EXTENSION: &str = "culvert.io/dns";

/// Extension of `istio.workload.Workload` about connections with pods of its own node: a
/// `google.protobuf.Struct` of `way`, which is `direct` or `hbone`.
pub const SAME_NODE_EXTENSION: &str = "culvert.io/same-node";

/// Extension of `istio.workload.Workload` without a value: the pod may speak protocols that are
/// dropped elsewhere, such as SCTP and tunnels.
pub const OTHER_PROTOCOLS_EXTENSION: &str = "culvert.io/other-protocols";

/// Extension of `istio.workload.Workload` without a value: the pod is to be captured before it
/// starts.
pub const ENROLL_EXTENSION: &str = "culvert.io/enroll";

/// Largest message either end takes, in bytes: a first answer holds the whole mesh.
pub const MAX_MESSAGE: usize = 200 * 1024 * 1024;

/// Largest request that a server takes, in bytes: a client that comes back names every resource that it
/// has with its version, some 75 bytes each.
pub const MAX_REQUEST: usize = 64 * 1024 * 1024;

/// In the metadata of a client's node (true): a first answer may come in parts.
pub const TAKES_PARTS: &str = "culvert.io/takes-parts";

/// In the metadata of a proxy's node: the Gateway of its own namespace that it stands for.
pub const GATEWAY_NAME: &str = "GATEWAY_NAME";

/// In a response's `system_version_info`: it is a part of an answer, and not the last.
pub const MORE_FOLLOWS: &str = "culvert.io/more-follows";
