//! A hostile pod: root in its own namespaces, with CAP_NET_RAW and CAP_NET_ADMIN. It may break its own connections. It
//! may not send anything unannounced, be taken for another, reach what is the agent's, or disturb its neighbours.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod addresses;
mod direct;
mod flood;
mod forged;
mod interfaces;
mod listeners;
mod log;
mod network;
mod reach;
mod room;
mod scene;
mod sockets;
