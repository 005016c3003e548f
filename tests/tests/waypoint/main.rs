//! A waypoint before services: routes, policies and failures, as the applications feel them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod connections;
mod ejection;
mod families;
mod faults;
mod floods;
mod hostile;
mod life;
mod limits;
mod policies;
mod protocols;
mod renewal;
mod retries;
mod routes;
mod scene;
mod streams;
