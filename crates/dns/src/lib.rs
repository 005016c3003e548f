//! DNS messages, as far as the agent reads and writes them (RFC 1035; EDNS, RFC 6891).
//!
//! The agent answers one kind of message itself: a standard query with one question for an address
//! of a name that the mesh knows. [`Query::parse`] takes exactly that kind; everything else, whatever
//! it is, is none of the agent's business and goes to the pod's own resolver byte for byte.

mod answer;
mod query;

pub use answer::{Answer, refuse};
pub use query::{Query, Type};

/// Seconds for which an answer may be kept: as Istio's agents give it.
pub const TTL: u32 = 30;

/// Largest answer over UDP that is sent to whoever says that he can take it, in bytes: what
/// passes any link unfragmented (DNS Flag Day 2020).
pub const UDP_LIMIT: usize = 1232;

/// Largest answer over UDP without EDNS, in bytes (RFC 1035, 4.2.1).
pub const PLAIN_UDP_LIMIT: usize = 512;

/// Largest message over TCP, in bytes: its length is sent in two.
pub const TCP_LIMIT: usize = 65_535;

const HEADER: usize = 12;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;
