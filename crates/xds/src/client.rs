//! Delta ADS, the client's end: subscribes to everything of some types, applies what comes,
//! answers for each response, and comes back with what it already has.

use crate::{
    MAX_MESSAGE, MORE_FOLLOWS, TAKES_PARTS,
    proto::discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use futures_util::future::BoxFuture;
use prost_types::{Any, Value, value::Kind};
use rand::Rng as _;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::{self, Write as _},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

/// Where applied resources go.
pub trait Apply: Send + Sync + 'static {
    /// Takes one response. What it cannot take it names, and keeps the last good version of; the
    /// rest is applied.
    fn apply(
        &self,
        type_url: &str,
        resources: Vec<(Arc<str>, Any)>,
        removed: Vec<String>,
    ) -> Vec<Rejected>;

    /// The same for a part of an answer, to which more belongs.
    fn apply_part(
        &self,
        type_url: &str,
        resources: Vec<(Arc<str>, Any)>,
        removed: Vec<String>,
    ) -> Vec<Rejected>;

    /// Whether the stream to the control plane stands.
    fn connected(&self, connected: bool);
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejected {
    pub name: String,
    pub reason: String,
}

/// Opens a channel anew: addresses, roots and tokens are read each time.
pub trait Connect: Send + Sync + 'static {
    fn connect(&self) -> BoxFuture<'_, Result<Channel, String>>;

    /// The bearer token to present, if any.
    fn token(&self) -> Result<Option<String>, String>;
}

/// Pauses between attempts: first and longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(15));

/// A resource that is wanted by its name, or by another that the server knows it by, beside what the
/// wildcard brings; or is not wanted any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    pub type_url: &'static str,
    pub name: String,
    pub wanted: bool,
}

/// Follows the control plane until dropped.
pub async fn follow(
    connect: &dyn Connect,
    node: Node,
    types: &[&'static str],
    apply: &dyn Apply,
) -> std::convert::Infallible {
    let (_nobody, asks) = mpsc::channel(1);
    follow_and_ask(connect, node, types, apply, asks).await
}

/// The same, and asks for more by name meanwhile. What was asked for before a stream has ended is
/// asked for on the next.
pub async fn follow_and_ask(
    connect: &dyn Connect,
    node: Node,
    types: &[&'static str],
    apply: &dyn Apply,
    mut asks: mpsc::Receiver<Ask>,
) -> std::convert::Infallible {
    let mut state = Subscriptions::new(types);
    let mut pause = BACKOFF.0;
    loop {
        let begun = Instant::now();
        match stream_once(connect, &node, &mut state, apply, &mut asks).await {
            Ok(()) => {
                tracing::info!("the control plane closed the discovery stream; connecting again");
            }
            Err(why) => {
                // Quoted: a status message from the other end is one line, whatever is in it.
                tracing::warn!(why, "discovery is not connected; the last good state stays");
            }
        }
        // One that breaks as soon as it stands is no reason to hurry back.
        if begun.elapsed() >= BACKOFF.1 {
            pause = BACKOFF.0;
        }
        apply.connected(false);
        let jitter = rand::rng().random_range(0.5..1.0);
        sleep(pause.mul_f64(jitter)).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

/// Rejected resources of one response that are named, in the log and in the answer, and how much is
/// said of each, in bytes. A gRPC server takes 4 MiB unless told otherwise, and a longer answer would
/// end the stream.
const NAMED: usize = 1000;
const SAID: usize = 512;

/// Logs what was rejected; the answer's text.
fn complain(type_url: &str, rejected: &[Rejected]) -> String {
    let mut message = String::new();
    for r in rejected.iter().take(NAMED) {
        let (name, reason) = (shorten(&r.name), shorten(&r.reason));
        tracing::error!(type_url, name, reason, "resource rejected");
        let separator = if message.is_empty() { "" } else { "; " };
        let _ = write!(message, "{separator}{name}: {reason}");
    }
    if let Some(more @ 1..) = rejected.len().checked_sub(NAMED) {
        tracing::error!(type_url, more, "more resources rejected");
        let _ = write!(message, "; and {more} more");
    }
    message
}

fn shorten(s: &str) -> &str {
    s.get(..s.floor_char_boundary(SAID)).unwrap_or(s)
}

async fn stream_once(
    connect: &dyn Connect,
    node: &Node,
    state: &mut Subscriptions,
    apply: &dyn Apply,
    asks: &mut mpsc::Receiver<Ask>,
) -> Result<(), String> {
    let channel = connect.connect().await?;
    while let Ok(ask) = asks.try_recv() {
        state.ask(ask);
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let (tx, rx) = mpsc::channel(64);
    for request in state.first_requests(node) {
        tx.send(request).await.map_err(|_| "the request queue closed")?;
    }
    let mut request = Request::new(ReceiverStream::new(rx));
    if let Some(token) = connect.token()? {
        let value = MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|_| "the token file holds characters that no header can carry")?;
        request.metadata_mut().insert("authorization", value);
    }
    let status = |s: tonic::Status| format!("{:?}: {}", s.code(), s.message());
    let mut stream = client.delta_aggregated_resources(request).await.map_err(status)?.into_inner();
    apply.connected(true);
    loop {
        let request = tokio::select! {
            response = stream.message() => match response.map_err(status)? {
                Some(response) => state.handle(response, apply),
                None => return Ok(()),
            },
            Some(ask) = asks.recv() => state.ask(ask),
        };
        if let Some(request) = request
            && tx.send(request).await.is_err()
        {
            return Ok(());
        }
    }
}

/// Says that first answers may come in parts.
fn takes_parts(node: &Node) -> Node {
    let mut node = node.clone();
    let fields = &mut node.metadata.get_or_insert_default().fields;
    fields.insert(TAKES_PARTS.to_owned(), Value { kind: Some(Kind::BoolValue(true)) });
    node
}

/// A channel on which a first answer does not wait for the client's credit all the time.
pub fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(address.to_owned())?
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW))
}

const WINDOW: u32 = 4 * 1024 * 1024;

/// What the client has, by type and name: the part that is not I/O.
pub struct Subscriptions {
    types: BTreeMap<&'static str, Versions>,
    /// What is wanted by name.
    names: BTreeMap<&'static str, BTreeSet<String>>,
}

type Versions = HashMap<Arc<str>, Version, foldhash::fast::RandomState>;

/// A server's version of a resource. Those that are sixteen hexadecimal digits, as hashes are, need
/// no string; there may be a hundred thousand of them.
enum Version {
    Hash(u64),
    Text(Box<str>),
}

impl From<String> for Version {
    fn from(text: String) -> Self {
        match u64::from_str_radix(&text, 16) {
            Ok(hash) if hash_text(hash) == text => Self::Hash(hash),
            _ => Self::Text(text.into()),
        }
    }
}

fn hash_text(hash: u64) -> String {
    format!("{hash:016x}")
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hash(hash) => f.write_str(&hash_text(*hash)),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Subscriptions {
    pub fn new(types: &[&'static str]) -> Self {
        Self {
            types: types.iter().map(|t| (*t, Versions::default())).collect(),
            names: BTreeMap::new(),
        }
    }

    /// Takes down what is wanted by name from now on, and makes the request for it. What has been
    /// asked for already is asked for again: it may exist by now.
    pub fn ask(&mut self, ask: Ask) -> Option<DeltaDiscoveryRequest> {
        let names = self.names.entry(ask.type_url).or_default();
        let mut request =
            DeltaDiscoveryRequest { type_url: ask.type_url.to_owned(), ..Default::default() };
        if ask.wanted {
            names.insert(ask.name.clone());
            request.resource_names_subscribe.push(ask.name);
        } else {
            if !names.remove(&ask.name) {
                return None;
            }
            request.resource_names_unsubscribe.push(ask.name);
        }
        Some(request)
    }

    /// The requests that open a stream: a wildcard per type, with the versions already held; what
    /// was rejected, and of which there is no earlier version, has an empty one.
    pub fn first_requests(&self, node: &Node) -> Vec<DeltaDiscoveryRequest> {
        self.types
            .iter()
            .enumerate()
            .map(|(i, (type_url, versions))| DeltaDiscoveryRequest {
                node: (i == 0).then(|| takes_parts(node)),
                type_url: (*type_url).to_owned(),
                resource_names_subscribe: std::iter::once("*".to_owned())
                    .chain(self.names.get(type_url).into_iter().flatten().cloned())
                    .collect(),
                initial_resource_versions: versions
                    .iter()
                    .map(|(name, version)| (name.to_string(), version.to_string()))
                    .collect(),
                ..Default::default()
            })
            .collect()
    }

    /// Applies a response and makes the answer to it. A type that was never asked for gets none.
    pub fn handle(
        &mut self,
        response: DeltaDiscoveryResponse,
        apply: &dyn Apply,
    ) -> Option<DeltaDiscoveryRequest> {
        let Some((type_url, versions)) =
            self.types.iter_mut().find(|(t, _)| **t == response.type_url)
        else {
            tracing::warn!(type_url = response.type_url, "a response of a type nobody asked for");
            return None;
        };
        let mut arrived = Versions::default();
        let mut rejected = Vec::new();
        let mut resources = Vec::new();
        for r in response.resources {
            match r.resource {
                Some(any) if any.type_url == **type_url => {
                    let name: Arc<str> = r.name.into();
                    arrived.insert(name.clone(), Version::from(r.version));
                    resources.push((name, any));
                }
                Some(any) => rejected.push(Rejected {
                    name: r.name,
                    reason: format!("is a {}, in a response of {type_url}", any.type_url),
                }),
                None => {
                    rejected.push(Rejected { name: r.name, reason: "has no body".to_owned() });
                }
            }
        }
        for name in &response.removed_resources {
            versions.remove(name.as_str());
        }
        let removed = response.removed_resources;
        let more = response.system_version_info == MORE_FOLLOWS;
        rejected.extend(if more {
            apply.apply_part(type_url, resources, removed)
        } else {
            apply.apply(type_url, resources, removed)
        });
        for r in &rejected {
            arrived.remove(r.name.as_str());
            // Something stands for it until it is removed, and only of names that are held does a
            // server say so after a reconnect. No resource has the empty version.
            versions.entry(r.name.as_str().into()).or_insert_with(|| Version::Text(Box::default()));
        }
        versions.extend(arrived);
        let error_detail = (!rejected.is_empty()).then(|| Status {
            code: tonic::Code::InvalidArgument as i32,
            message: complain(type_url, &rejected),
        });
        Some(DeltaDiscoveryRequest {
            type_url: (*type_url).to_owned(),
            response_nonce: response.nonce,
            error_detail,
            ..Default::default()
        })
    }
}
