//! Delta ADS, the server's end: a store of encoded resources, and a stream per client that sends
//! what the client does not have.

mod narrow;

use crate::{
    GATEWAY_NAME, MAX_MESSAGE, MAX_REQUEST, MORE_FOLLOWS, TAKES_PARTS, Version,
    proto::discovery::{
        DeltaDiscoveryRequest, Resource, UnopenedResponse,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
};
use foldhash::fast::RandomState;
use prost::{Message as _, bytes::Bytes};
use prost_types::{Any, value::Kind};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

/// One resource as it goes over the wire. The version is a hash of the content, so that every
/// control plane that compiles the same thing gives it the same version.
#[derive(Debug, Default)]
pub struct Encoded {
    pub version: String,
    pub body: Vec<u8>,
    /// Other names that a client may ask for it by.
    pub aliases: Vec<String>,
    /// For a proxy, which gets what it serves and no more: the groups that it is of, and those that
    /// whoever has it needs as well.
    pub groups: Vec<String>,
    pub leads: Vec<String>,
}

/// One resource as every client gets it.
#[derive(Debug)]
struct Ready {
    name: Arc<str>,
    version: Version,
    aliases: Vec<String>,
    groups: Vec<String>,
    leads: Vec<String>,
    /// The whole `Resource`.
    message: Bytes,
}

impl Ready {
    fn new(type_url: &str, name: String, encoded: Encoded) -> Self {
        let resource = Resource {
            version: encoded.version,
            resource: Some(Any { type_url: type_url.to_owned(), value: encoded.body }),
            name,
            aliases: encoded.aliases,
        };
        Self {
            message: resource.encode_to_vec().into(),
            version: resource.version.as_str().into(),
            name: resource.name.into(),
            aliases: resource.aliases,
            groups: encoded.groups,
            leads: encoded.leads,
        }
    }
}

#[derive(Debug)]
struct Change {
    type_url: &'static str,
    updated: Vec<Arc<str>>,
    removed: Vec<String>,
}

type ByName = BTreeMap<Arc<str>, Arc<Ready>>;

/// What is served, by type and name.
pub struct Store {
    /// Types whose resources are one proxy's business each: the name says whose.
    scoped: Vec<&'static str>,
    /// Types of which a proxy gets what its scoped resources lead to. A resource may name others of
    /// types before its own.
    narrowed: Vec<&'static str>,
    types: RwLock<BTreeMap<&'static str, ByName>>,
    aliases: RwLock<HashMap<String, String>>,
    groups: RwLock<narrow::Groups>,
    changes: broadcast::Sender<Arc<Change>>,
    sent: AtomicU64,
}

impl Store {
    pub fn new(types: &[&'static str]) -> Arc<Self> {
        Self::with_scoped(types, &[])
    }

    /// Resources of `scoped` types go only to clients whose scope their names begin with. A client
    /// with a scope gets of the other types, by their wildcard, what `<scope><group>` leads to, and
    /// what it names.
    pub fn with_scoped(narrowed: &[&'static str], scoped: &[&'static str]) -> Arc<Self> {
        let all = narrowed.iter().chain(scoped);
        Arc::new(Self {
            scoped: scoped.to_vec(),
            narrowed: narrowed.to_vec(),
            types: RwLock::new(all.map(|t| (*t, BTreeMap::new())).collect()),
            aliases: RwLock::default(),
            groups: RwLock::default(),
            changes: broadcast::channel(1024).0,
            sent: AtomicU64::new(0),
        })
    }

    /// Makes a change and tells every client. What has not changed is not sent. The answer is how
    /// many resources did change.
    pub fn update(
        &self,
        type_url: &'static str,
        updated: Vec<(String, Encoded)>,
        removed: Vec<String>,
    ) -> usize {
        let mut change = Change { type_url, updated: Vec::new(), removed: Vec::new() };
        {
            let mut types = write(&self.types);
            let mut aliases = write(&self.aliases);
            let mut groups = write(&self.groups);
            let all = types.entry(type_url).or_default();
            for (name, encoded) in updated {
                let old = all.get(name.as_str());
                if old.is_some_and(|o| o.version == encoded.version.as_str().into()) {
                    continue;
                }
                for a in old.iter().flat_map(|o| &o.aliases) {
                    // Another resource may have it by now.
                    if aliases.get(a) == Some(&name) {
                        aliases.remove(a);
                    }
                }
                for a in &encoded.aliases {
                    aliases.insert(a.clone(), name.clone());
                }
                let before = old.cloned();
                let ready = Arc::new(Ready::new(type_url, name, encoded));
                let of = before.as_ref().map_or(&[][..], |b| &b.groups);
                groups.replace(type_url, &ready.name, of, &ready.groups);
                change.updated.push(ready.name.clone());
                all.insert(ready.name.clone(), ready);
            }
            for name in removed {
                if let Some(old) = all.remove(name.as_str()) {
                    groups.replace(type_url, &old.name, &old.groups, &[]);
                    for a in &old.aliases {
                        if aliases.get(a) == Some(&name) {
                            aliases.remove(a);
                        }
                    }
                    change.removed.push(name);
                }
            }
        }
        let n = change.updated.len() + change.removed.len();
        if n > 0 {
            // No client is connected when this fails.
            let _ = self.changes.send(Arc::new(change));
        }
        n
    }

    pub fn len(&self, type_url: &str) -> usize {
        read(&self.types).get(type_url).map_or(0, BTreeMap::len)
    }

    pub fn is_empty(&self) -> bool {
        read(&self.types).values().all(BTreeMap::is_empty)
    }

    /// Resources sent to clients since the start, over all of them.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn canonical(&self, type_url: &str, name: &str) -> String {
        if read(&self.types).get(type_url).is_some_and(|all| all.contains_key(name)) {
            return name.to_owned();
        }
        read(&self.aliases).get(name).cloned().unwrap_or_else(|| name.to_owned())
    }

    fn may_see(&self, type_url: &str, name: &str, scope: Option<&str>) -> bool {
        !self.scoped.contains(&type_url) || scope.is_some_and(|s| name.starts_with(s))
    }

    fn knows(&self, type_url: &str) -> Option<&'static str> {
        read(&self.types).keys().find(|t| **t == type_url).copied()
    }

    fn all(&self, type_url: &str) -> Vec<Arc<Ready>> {
        read(&self.types)
            .get(type_url)
            .map(|all| all.values().cloned().collect())
            .unwrap_or_default()
    }

    fn get(&self, type_url: &str, name: &str) -> Option<Arc<Ready>> {
        read(&self.types).get(type_url).and_then(|all| all.get(name).cloned())
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

type Answered<T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send>>;

/// Who listens.
pub struct Client {
    /// For the log.
    pub name: String,
    /// For a proxy: what the names of its resources begin with, by the Gateway that it says it stands
    /// for, if it may.
    pub scope: Option<Scope>,
}

pub type Scope = Box<dyn Fn(String) -> Answered<String> + Send + Sync>;

/// Who may listen, by the metadata of a call and the address that it comes from.
pub type Authorize = Arc<
    dyn Fn(&tonic::metadata::MetadataMap, Option<SocketAddr>) -> Answered<Client> + Send + Sync,
>;

/// The gRPC service over a [`Store`].
pub struct Ads {
    store: Arc<Store>,
    authorize: Authorize,
}

impl Ads {
    pub fn new(store: Arc<Store>, authorize: Authorize) -> Self {
        Self { store, authorize }
    }

    /// As a service of gRPC, with its limits.
    pub fn service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self)
            .max_encoding_message_size(MAX_MESSAGE)
            .max_decoding_message_size(MAX_REQUEST)
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<UnopenedResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let client = (self.authorize)(request.metadata(), request.remote_addr()).await?;
        let (tx, rx) = mpsc::channel(4);
        let store = self.store.clone();
        tokio::spawn(async move {
            let name = client.name.clone();
            tracing::info!(client = name, "discovery client connected");
            let why = serve(&store, request.into_inner(), &tx, client).await;
            tracing::info!(client = name, why, "discovery client gone");
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

type Responses = mpsc::Sender<Result<UnopenedResponse, Status>>;

async fn serve(
    store: &Store,
    mut requests: Streaming<DeltaDiscoveryRequest>,
    responses: &Responses,
    client: Client,
) -> String {
    let Client { name: client, mut scope } = client;
    let client = client.as_str();
    // Before any snapshot is taken, so that nothing falls between the two.
    let mut changes = store.changes.subscribe();
    let mut session = Session::default();
    loop {
        let out: Vec<Answer> = tokio::select! {
            request = requests.message() => match request {
                Ok(Some(r)) => {
                    if let Some(gateway) = gateway_of(&r)
                        && let Some(may) = scope.take()
                    {
                        match may(gateway).await {
                            Ok(prefix) => session.scope = Some(prefix),
                            Err(status) => {
                                let why = status.message().to_owned();
                                let _ = responses.send(Err(status)).await;
                                return why;
                            }
                        }
                    }
                    session.request(store, r, client).into_iter().collect()
                }
                Ok(None) => return "closed".into(),
                Err(s) => return s.message().to_owned(),
            },
            change = changes.recv() => match change {
                Ok(c) => session.change(store, &c),
                Err(broadcast::error::RecvError::Lagged(_)) => session.catch_up(store),
                Err(broadcast::error::RecvError::Closed) => return "shutting down".into(),
            },
        };
        for mut answer in out {
            while let Some(response) = session.part(&mut answer) {
                store.sent.fetch_add(response.resources.len() as u64, Ordering::Relaxed);
                if responses.send(Ok(response)).await.is_err() {
                    return "closed".into();
                }
            }
        }
    }
}

/// The Gateway that a proxy says it stands for.
fn gateway_of(request: &DeltaDiscoveryRequest) -> Option<String> {
    let metadata = request.node.as_ref()?.metadata.as_ref()?;
    match metadata.fields.get(GATEWAY_NAME)?.kind.as_ref()? {
        Kind::StringValue(name) => Some(name.clone()),
        _ => None,
    }
}

/// What one client asked for and has been sent: the part that is not I/O.
#[derive(Default)]
pub struct Session {
    scope: Option<String>,
    /// What the scope leads to.
    reach: narrow::Reach,
    types: BTreeMap<&'static str, Subscription>,
    nonce: u64,
    takes_parts: bool,
}

/// What becomes of a request or a change: one response, or a first answer in its parts.
pub struct Answer {
    type_url: String,
    first_nonce: u64,
    updated: std::vec::IntoIter<Arc<Ready>>,
    removed: Vec<String>,
    in_parts: bool,
    done: bool,
}

/// Resources in a part of an answer: some hundred kilobytes.
const PART: usize = 250;

type Has = HashMap<Arc<str>, Version, RandomState>;

#[derive(Default)]
struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    has: Has,
}

impl Subscription {
    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }
}

impl Session {
    fn request(
        &mut self,
        store: &Store,
        request: DeltaDiscoveryRequest,
        client: &str,
    ) -> Option<Answer> {
        if let Some(metadata) = request.node.as_ref().and_then(|n| n.metadata.as_ref()) {
            let says = metadata.fields.get(TAKES_PARTS).and_then(|v| v.kind.as_ref());
            self.takes_parts = says == Some(&Kind::BoolValue(true));
        }
        let Some(type_url) = store.knows(&request.type_url) else {
            tracing::debug!(client, type_url = request.type_url, "nothing of this type is served");
            return request
                .response_nonce
                .is_empty()
                .then(|| self.answer(&request.type_url, Vec::new(), Vec::new()));
        };
        if let Some(error) = &request.error_detail {
            tracing::error!(client, type_url, error = error.message, "client rejected resources");
        }
        let first = !self.types.contains_key(type_url);
        let sub = self.types.entry(type_url).or_default();
        if first {
            let has = request.initial_resource_versions.iter();
            sub.has = has.map(|(n, v)| (n.as_str().into(), v.as_str().into())).collect();
        }
        let subscribed: Vec<String> = request
            .resource_names_subscribe
            .iter()
            .map(|n| if n == "*" { n.clone() } else { store.canonical(type_url, n) })
            .collect();
        let asked = first || !subscribed.is_empty();
        // A first request that names nothing subscribes to everything (the protocol's legacy wildcard).
        if first && subscribed.is_empty() {
            sub.wildcard = true;
        }
        for name in &subscribed {
            if name == "*" {
                sub.wildcard = true;
            } else {
                sub.names.insert(name.clone());
                // Asking again by name means: tell me again.
                if !first {
                    sub.has.remove(name.as_str());
                }
            }
        }
        let scope = self.scope.as_deref();
        let narrowed = store.is_narrowed(type_url, scope);
        for name in &request.resource_names_unsubscribe {
            if name == "*" {
                sub.wildcard = false;
            } else if narrowed && sub.wildcard {
                // It may be among what is sent unasked; if not, the client hears that it is gone.
                sub.names.remove(&store.canonical(type_url, name));
                sub.names.remove(name);
            } else {
                sub.names.remove(name);
                sub.has.remove(name.as_str());
            }
        }
        if !asked && (!narrowed || request.resource_names_unsubscribe.is_empty()) {
            return None;
        }
        // Changes keep it up from then on.
        if narrowed && first {
            self.reach = store.reach(scope.unwrap_or_default());
        }
        let absent: Vec<String> = subscribed
            .into_iter()
            .filter(|n| {
                let seen = || store.may_see(type_url, n, scope) && store.get(type_url, n).is_some();
                n != "*" && !seen()
            })
            .collect();
        // What replaces something comes at once with its replacement: only of one who has nothing
        // yet can it not be missed.
        let from_nothing = first && sub.has.is_empty();
        let (updated, mut removed) = Self::difference(sub, store, type_url, scope, &self.reach);
        if !asked && updated.is_empty() && removed.is_empty() {
            return None;
        }
        removed.extend(absent);
        let mut answer = self.answer(type_url, updated, removed);
        answer.in_parts = self.takes_parts && from_nothing;
        Some(answer)
    }

    /// Sends what the store holds now of that which changed: a change that has waited may be older
    /// than what the client has been sent, and must not take it back.
    fn change(&mut self, store: &Store, change: &Change) -> Vec<Answer> {
        let Some(scope) = self.scope.clone() else {
            return self.plain_change(store, change).into_iter().collect();
        };
        let mut out = Vec::new();
        if self.may_widen(store, change, &scope) {
            out.extend(self.narrow(store, &scope));
        }
        if !store.is_narrowed(change.type_url, Some(&scope)) {
            out.extend(self.plain_change(store, change));
        }
        out
    }

    fn plain_change(&mut self, store: &Store, change: &Change) -> Option<Answer> {
        let sub = self.types.get_mut(change.type_url)?;
        let mut updated = Vec::new();
        for name in &change.updated {
            let Some(r) = store.get(change.type_url, name) else { continue };
            if !store.may_see(change.type_url, name, self.scope.as_deref()) {
                continue;
            }
            if sub.wants(name) && sub.has.get(name) != Some(&r.version) {
                sub.has.insert(name.clone(), r.version.clone());
                updated.push(r);
            }
        }
        let gone = |n: &&String| store.get(change.type_url, n).is_none();
        let mut removed: Vec<String> = change.removed.iter().filter(gone).cloned().collect();
        removed.retain(|n| sub.has.remove(n.as_str()).is_some());
        if updated.is_empty() && removed.is_empty() {
            return None;
        }
        Some(self.answer(change.type_url, updated, removed))
    }

    /// For a client that was too slow for the stream of changes.
    fn catch_up(&mut self, store: &Store) -> Vec<Answer> {
        let mut types: Vec<&'static str> = self.types.keys().copied().collect();
        let mut out = Vec::new();
        if let Some(scope) = self.scope.clone() {
            out.extend(self.narrow(store, &scope));
            types.retain(|t| !store.is_narrowed(t, Some(&scope)));
        }
        for type_url in types {
            let Some(sub) = self.types.get_mut(type_url) else { continue };
            let scope = self.scope.as_deref();
            let (updated, removed) = Self::difference(sub, store, type_url, scope, &self.reach);
            if !updated.is_empty() || !removed.is_empty() {
                out.push(self.answer(type_url, updated, removed));
            }
        }
        out
    }

    /// The next response of an answer. What is in it the client has from then on.
    fn part(&mut self, answer: &mut Answer) -> Option<UnopenedResponse> {
        if answer.done {
            return None;
        }
        let most = if answer.in_parts { PART } else { usize::MAX };
        let mut has = self.types.get_mut(answer.type_url.as_str()).map(|sub| &mut sub.has);
        let resources = answer
            .updated
            .by_ref()
            .take(most)
            .map(|r| {
                if let Some(has) = &mut has {
                    has.insert(r.name.clone(), r.version.clone());
                }
                r.message.clone()
            })
            .collect();
        answer.done = answer.updated.len() == 0;
        let nonce = answer.first_nonce;
        answer.first_nonce += 1;
        let more = if answer.done { "" } else { MORE_FOLLOWS };
        Some(UnopenedResponse {
            system_version_info: more.to_owned(),
            type_url: answer.type_url.clone(),
            nonce: nonce.to_string(),
            resources,
            removed_resources: std::mem::take(&mut answer.removed),
        })
    }

    fn difference(
        sub: &mut Subscription,
        store: &Store,
        type_url: &str,
        scope: Option<&str>,
        reach: &narrow::Reach,
    ) -> (Vec<Arc<Ready>>, Vec<String>) {
        let named = |n: &str| store.get(type_url, n);
        let mut updated: Vec<Arc<Ready>> = if !sub.wildcard {
            sub.names.iter().filter_map(|n| named(n)).collect()
        } else if store.is_narrowed(type_url, scope) {
            let reached = reach.names(type_url);
            let more = sub.names.iter().filter(|n| !reached.contains(n.as_str()));
            reached.iter().filter_map(|n| named(n)).chain(more.filter_map(|n| named(n))).collect()
        } else {
            store.all(type_url)
        };
        updated.retain(|r| store.may_see(type_url, &r.name, scope));
        let mut gone = std::mem::take(&mut sub.has);
        sub.has.reserve(updated.len());
        if !gone.is_empty() {
            updated.retain(|r| match gone.remove(&r.name) {
                Some(version) if version == r.version => {
                    sub.has.insert(r.name.clone(), version);
                    false
                }
                _ => true,
            });
        }
        (updated, gone.into_keys().map(|name| name.to_string()).collect())
    }

    fn answer(&mut self, type_url: &str, updated: Vec<Arc<Ready>>, removed: Vec<String>) -> Answer {
        let first_nonce = self.nonce + 1;
        // As many as there can be parts.
        self.nonce += 1 + updated.len() as u64;
        Answer {
            type_url: type_url.to_owned(),
            first_nonce,
            updated: updated.into_iter(),
            removed,
            in_parts: false,
            done: false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
