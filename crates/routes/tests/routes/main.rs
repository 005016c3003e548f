//! Istio's objects in, decisions out: what is compiled for whom, and how what is compiled decides.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod execute;
mod scope;
mod whole;
mod world;
