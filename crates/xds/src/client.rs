//! Delta ADS, the client's end: subscribes to everything of some types, applies what comes,
//! answers for each response, and comes back with what it already has.

use crate::{
    MAX_MESSAGE, MORE_FOLLOWS, TAKES_PARTS, Version,
    proto::discovery::{
        DeltaDiscoveryRequest, Node, Status, UnopenedResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    wire::{Malformed, Opened},
};
use futures_util::future::BoxFuture;
use prost_types::{Value, value::Kind};
use rand::Rng as _;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
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

/// A resource of the type that was asked for, where it lies in the response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivered<'a> {
    pub name: &'a str,
    pub version: &'a str,
    pub body: &'a [u8],
}

/// Where applied resources go.
pub trait Apply: Send + Sync + 'static {
    /// Takes one response. What it cannot take it names, and keeps the last good version of; the
    /// rest is applied.
    fn apply(
        &self,
        type_url: &str,
        resources: &[Delivered<'_>],
        removed: &[String],
    ) -> Vec<Rejected>;

    /// The same for a part of an answer, to which more belongs.
    fn apply_part(
        &self,
        type_url: &str,
        resources: &[Delivered<'_>],
        removed: &[String],
    ) -> Vec<Rejected>;

    /// Whether the versions of a type's resources are kept beside them, and need not be here.
    fn keeps_versions(&self, _type_url: &str) -> bool {
        false
    }

    /// Whether there is a version of one of those.
    fn holds(&self, _type_url: &str, _name: &str) -> bool {
        false
    }

    /// All of them, by name.
    fn versions(&self, _type_url: &str) -> HashMap<String, String> {
        HashMap::new()
    }

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
    for request in state.first_requests(node, apply) {
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
                Some(response) => state
                    .handle(&response, apply)
                    .map_err(|e| format!("a response cannot be read: {e}"))?,
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

type Versions = HashMap<Box<str>, Version, foldhash::fast::RandomState>;

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
    pub fn first_requests(&self, node: &Node, apply: &dyn Apply) -> Vec<DeltaDiscoveryRequest> {
        self.types
            .iter()
            .enumerate()
            .map(|(i, (type_url, versions))| {
                let mut held = apply.versions(type_url);
                held.extend(versions.iter().map(|(n, v)| (n.to_string(), v.to_string())));
                DeltaDiscoveryRequest {
                    node: (i == 0).then(|| takes_parts(node)),
                    type_url: (*type_url).to_owned(),
                    resource_names_subscribe: std::iter::once("*".to_owned())
                        .chain(self.names.get(type_url).into_iter().flatten().cloned())
                        .collect(),
                    initial_resource_versions: held,
                    ..Default::default()
                }
            })
            .collect()
    }

    /// Applies a response and makes the answer to it. A type that was never asked for gets none.
    /// Of one that cannot be read nothing is applied.
    pub fn handle(
        &mut self,
        response: &UnopenedResponse,
        apply: &dyn Apply,
    ) -> Result<Option<DeltaDiscoveryRequest>, Malformed> {
        let mut resources = Vec::with_capacity(response.resources.len());
        let mut rejected = Vec::new();
        for message in &response.resources {
            let Opened { name, version, body } = Opened::resource(message)?;
            match body {
                Some(any) if any.type_url == response.type_url => {
                    resources.push(Delivered { name, version, body: any.value });
                }
                Some(any) => rejected.push(Rejected {
                    name: name.to_owned(),
                    reason: format!(
                        "is a {}, in a response of {}",
                        any.type_url, response.type_url
                    ),
                }),
                None => {
                    let reason = "has no body".to_owned();
                    rejected.push(Rejected { name: name.to_owned(), reason });
                }
            }
        }
        let Some((type_url, versions)) =
            self.types.iter_mut().find(|(t, _)| **t == response.type_url)
        else {
            tracing::warn!(type_url = response.type_url, "a response of a type nobody asked for");
            return Ok(None);
        };
        let removed = &response.removed_resources;
        for name in removed {
            versions.remove(name.as_str());
        }
        let unread = rejected.len();
        rejected.extend(if response.system_version_info == MORE_FOLLOWS {
            apply.apply_part(type_url, &resources, removed)
        } else {
            apply.apply(type_url, &resources, removed)
        });
        // How often each was taken that was rejected, too.
        let mut bad: HashMap<&str, isize> = HashMap::new();
        for (i, r) in rejected.iter().enumerate() {
            *bad.entry(&r.name).or_default() -= isize::from(i >= unread);
        }
        let kept_there = apply.keeps_versions(type_url);
        for r in &resources {
            if let Some(taken) = bad.get_mut(r.name) {
                *taken += 1;
            } else if !kept_there {
                versions.insert(r.name.into(), r.version.into());
            } else if !versions.is_empty() {
                versions.remove(r.name);
            }
        }
        for (name, taken) in bad {
            // Something stands for it until it is removed, and only of names that are held does a
            // server say so after a reconnect. No resource has the empty version.
            if taken > 0 || !apply.holds(type_url, name) {
                versions.entry(name.into()).or_default();
            }
        }
        let error_detail = (!rejected.is_empty()).then(|| Status {
            code: tonic::Code::InvalidArgument as i32,
            message: complain(type_url, &rejected),
        });
        Ok(Some(DeltaDiscoveryRequest {
            type_url: (*type_url).to_owned(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..Default::default()
        }))
    }
}
