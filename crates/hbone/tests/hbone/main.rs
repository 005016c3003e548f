//! HBONE between two ends that are both real: TLS, HTTP/2 and certificates, in one process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod abuse;
mod identities;
mod life;
mod pair;
mod pool;
mod raw;
mod relay;
mod requests;
mod roots;
mod streams;
