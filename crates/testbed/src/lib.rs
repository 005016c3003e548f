//! Nodes and pods on one machine, for tests that need a real kernel between the two ends.
//!
//! A [`Bed`] is a cluster in miniature: a fabric (the wire between the nodes), [`Node`]s with a bridge each, and
//! [`Pod`]s with their own network and mount namespace, cgroup, address and resolver. What runs in a pod is driven
//! through a [`Puppet`]; what crosses a link is recorded by a [`Capture`] and judged by [`leak::LeakCheck`].
//!
//! What it promises: everything a bed makes carries the bed's id and is gone when the bed is, whether the bed was
//! dropped, its test panicked, or its process was killed. One reaper process does it in every case, see [`reaper`].
//!
//! It needs root, cgroup2 mounted somewhere, and `ip` and `nft` in the path.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod bed;
mod bins;
mod capture;
mod cgroup;
mod dns;
pub mod forge;
pub mod leak;
mod netns;
mod node;
pub mod pattern;
pub mod pcapng;
mod pod;
mod process;
pub mod puppet;
pub mod reaper;
mod seqpacket;
mod service;
mod state;
mod sys;
mod tools;

pub use bed::Bed;
pub use bins::binary;
pub use capture::{Capture, CaptureReport};
pub use leak::{LeakCheck, LeakVerdict, Token};
/// Numbers for [`RawSocket`]s.
pub use libc;
pub use netns::inside;
pub use nix::sys::signal::Signal;
pub use node::Node;
pub use pod::Pod;
pub use process::{Placement, Proc, eventually};
pub use puppet::{
    BulkReport, ConnectOpts, Listener, Names, Puppet, PuppetError, RawSocket, Received, Sent,
    Serve, ShortReport, Sock, sockaddr,
};
pub use seqpacket::Seqpacket;
