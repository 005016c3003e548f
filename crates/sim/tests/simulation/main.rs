//! Decisions under every order of events that their protocols permit, from seeds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod control;
mod discovery;
mod handover;
mod objects;
mod pool;
mod view;
