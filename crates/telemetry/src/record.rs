//! What is known about one connection.

use serde::Serialize;
use std::{net::SocketAddr, sync::Arc, time::SystemTime};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Outbound,
    Inbound,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reporter {
    Source,
    Destination,
}

impl Reporter {
    pub fn as_str(self) -> &'static str {
        match self {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        }
    }
}

/// How the bytes travel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// HTTP/2 CONNECT over mutual TLS.
    Hbone,
    /// From pod to pod within a node, past the agent, which has vouched for both.
    Direct,
    /// A pod to itself, within its own namespace.
    Local,
    /// In plaintext, from or to what is outside the mesh.
    Passthrough,
}

/// Istio's response flags at L4.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
pub enum ResponseFlags {
    #[serde(rename = "-")]
    None,
    #[serde(rename = "DENY")]
    Deny,
    #[serde(rename = "CONNECT")]
    Connect,
    #[serde(rename = "TLS_FAILURE")]
    TlsFailure,
    #[serde(rename = "H2_HANDSHAKE_FAILURE")]
    H2HandshakeFailure,
    #[serde(rename = "IDENTITY_ERROR")]
    IdentityError,
}

impl ResponseFlags {
    pub fn as_str(self) -> &'static str {
        match self {
            ResponseFlags::None => "-",
            ResponseFlags::Deny => "DENY",
            ResponseFlags::Connect => "CONNECT",
            ResponseFlags::TlsFailure => "TLS_FAILURE",
            ResponseFlags::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            ResponseFlags::IdentityError => "IDENTITY_ERROR",
        }
    }
}

/// Why a connection ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason", content = "why")]
pub enum CloseReason {
    /// Both directions ended.
    Finished,
    /// It never came about.
    Failed(String),
    /// Policy refused it, at first or later.
    Denied(String),
    /// One end broke.
    Reset(String),
    /// The agent or the pod went away.
    Stopped,
}

/// One end of a connection: an address, and the workload behind it where one is known.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Endpoint {
    pub address: Option<SocketAddr>,
    pub workload: Arc<str>,
    pub namespace: Arc<str>,
    pub canonical_service: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub cluster: Arc<str>,
    /// `spiffe://...`: the certificate's, where there was one.
    pub identity: Option<Arc<str>>,
}

/// One connection, from the first byte to its end.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct FlowRecord {
    pub id: u64,
    pub direction: Direction,
    pub source: Endpoint,
    pub destination: Endpoint,
    /// The service that the application asked for: hostname, name and namespace.
    pub service: Option<ServiceName>,
    /// Where the HBONE connection goes.
    pub hbone_address: Option<SocketAddr>,
    pub transport: Transport,
    /// What policy said, in words.
    pub verdict: Option<String>,
    /// Bytes from the client to the server.
    pub sent: u64,
    pub received: u64,
    #[serde(serialize_with = "unix_millis")]
    pub opened: SystemTime,
    /// Milliseconds.
    pub duration_ms: u64,
    pub flags: ResponseFlags,
    pub close: Option<CloseReason>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ServiceName {
    pub hostname: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
}

fn unix_millis<S: serde::Serializer>(t: &SystemTime, s: S) -> Result<S::Ok, S::Error> {
    let since = t.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    s.serialize_u64(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl FlowRecord {
    pub fn reporter(&self) -> Reporter {
        match self.direction {
            Direction::Outbound => Reporter::Source,
            Direction::Inbound => Reporter::Destination,
        }
    }

    pub fn mutual_tls(&self) -> bool {
        self.transport == Transport::Hbone
    }
}
