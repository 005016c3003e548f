//! A waypoint before services: routes, policies and failures, as the applications feel them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod backends;
mod connections;
mod destinations;
mod egress;
mod ejection;
mod endpoints;
mod families;
mod faults;
mod floods;
mod gateway_api;
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
mod telling;
