//! Culvert as it is deployed, on one machine: a control plane outside the nodes, an agent on each of two nodes, and
//! pods that are enrolled the way a CNI plugin enrols them.
//!
//! Everything is built by a [`Mesh`], which panics where it cannot go on: a test has nothing better to do with such an
//! error. Waiting is always for a condition, with a deadline that only a broken system meets.
//!
//! It needs what the testbed needs, and the programs: `cargo build -p culvert-agent -p culvertd -p culvertctl -p testbed`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod agent;
mod bins;
mod clock;
mod control;
pub mod dialogue;
mod gateway;
mod http;
pub mod https;
mod kubelet;
mod logs;
mod manifest;
mod mesh;
pub mod names;
mod pod;
mod service;
pub mod stage;
mod traffic;
mod upgrade;
mod waypoint;

pub use agent::Agent;
pub use bins::binary;
pub use clock::Clock;
pub use control::Control;
pub use dialogue::{any, at, attempt, denied, echo, fetch, whoami};
pub use kubelet::{Kubelet, Runs};
pub use mesh::{Builder, Mesh};
pub use pod::{MeshPod, Spec, run_in};
pub use service::Service;
pub use stage::Stage;
pub use traffic::{Tally, Traffic, exchange};
pub use upgrade::{Challenger, Predecessor};
pub use waypoint::{Answer, Ask, Collector, HttpApp, Tls, Waypoint};

use std::time::Duration;

/// Lines are written every 5 ms: what has happened before is in the log by then.
const LOGGED_WITHIN: Duration = Duration::from_millis(20);

/// A deadline that nothing healthy comes near.
pub const SOON: Duration = Duration::from_secs(60);
