//! Routing: from Istio's objects to what a waypoint executes, and the decisions of executing it.
//!
//! [`compile`] is one side: pure and incremental, objects in, [`proto`] resources out, one per proxy
//! and host and one per proxy and destination. [`execute`] is the other: a resource is loaded once
//! into tables that answer in time that does not grow with rules that cannot match. Neither does I/O;
//! clock and randomness are handed in.

pub mod balance;
pub mod compile;
pub mod execute;
pub mod names;

/// The generated wire types.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/culvert.routes.rs"));
}

pub const HOST_TABLE_TYPE: &str = "type.googleapis.com/culvert.routes.HostTable";
pub const LISTENER_TYPE: &str = "type.googleapis.com/culvert.routes.Listener";
pub const TELEMETRY_TYPE: &str = "type.googleapis.com/culvert.routes.Telemetry";
pub const DESTINATION_TYPE: &str = "type.googleapis.com/culvert.routes.Destination";
