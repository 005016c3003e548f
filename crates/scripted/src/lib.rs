//! The other end of every protocol that Culvert speaks, for tests: it does what a script says, right or wrong, and
//! keeps what it was told.
//!
//! [`pki`] mints certificates, sound and odd ones; [`tls`] presents them; [`frames`] and [`wire`] are HTTP/2 by hand,
//! at either end; [`control`] is a control plane (discovery and CA) whose every message is the test's own; [`runtime`] is a container
//! runtime that has the sandboxes that a test says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

pub mod control;
pub mod frames;
pub mod messages;
pub mod pki;
pub mod runtime;
pub mod tls;
pub mod wire;
