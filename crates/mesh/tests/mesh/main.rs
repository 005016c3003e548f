//! The mesh's state, fed as discovery feeds it and asked as a data plane asks it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod feed;
mod here;
mod model;
mod names;
mod policies;
mod resolve;
mod unknown;
