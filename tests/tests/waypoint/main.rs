//! A waypoint before services: routes, policies and failures, as the applications feel them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod faults;
mod limits;
mod policies;
mod retries;
mod routes;
mod scene;
