//! What is said to a node's agent over its unix sockets (`SOCK_SEQPACKET`, one JSON message a
//! packet, descriptors beside it).
//!
//! [`enroll`] is spoken by whoever starts and ends pods; [`handover`] by an agent and the one that
//! takes its place. Both are decisions and messages only: the agent's sockets are its own;
//! [`client`] is the other end of the enrol socket.

pub mod client;
pub mod enroll;
pub mod handover;

/// Largest message, in bytes.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// Most descriptors beside one message.
pub const MAX_DESCRIPTORS: usize = 16;
