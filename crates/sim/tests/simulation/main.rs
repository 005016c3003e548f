//! Decisions under every order of events that their protocols permit, from seeds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod balance;
mod control;
mod discovery;
mod endpoints;
mod handover;
mod health;
mod objects;
mod pool;
mod view;
