//! The mesh as a data plane sees it: workloads, services, endpoints and policies.
//!
//! [`Mesh`] takes resources from discovery, keeps them indexed, and answers [`Mesh::resolve`]. One
//! change costs what changed. Locks are held for a look-up or for a slice of an update, never
//! across an await.

mod claims;
mod convert;
mod endpoints;
mod hash;
mod judged;
mod model;
mod names;
mod resolve;
mod shared;
mod state;
mod vips;
mod waypoints;

pub use convert::{
    Invalid, match_from_bytes, policy_from_proto, service_from_proto, workload_from_proto,
};
pub use model::{
    Addresses, Dns, HealthPolicy, Kin, Labels, LoadBalancing, Local, Locality, Mode,
    NamespacedHostname, PortMapping, Scope, Service, Services, Site, Waypoint, Workload,
    incarnation,
};
pub use names::Named;
pub use resolve::{Ends, Resolved, Unreachable};
pub use state::{Mesh, Synced};
pub use waypoints::{Guard, WAYPOINT_PORT};
