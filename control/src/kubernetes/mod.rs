//! A Kubernetes API server: where objects come from, and where what the control plane makes of them is
//! written.
//!
//! Each kind has a watch of its own, which lists in pages, goes on from where it broke off, and waits
//! longer after each failure. Objects are parsed as they come and the API server's own form is dropped,
//! so memory is bounded by what is read of them.

mod authority;
mod callers;
mod enrolments;
mod kinds;
mod leader;
mod objects;
mod refusals;
mod removal;
mod roots;
mod status;
mod vips;
mod waypoints;
mod webhook;

pub use authority::Store as AuthorityStore;
pub use callers::{AUDIENCE, Reviews};
pub use enrolments::Enrolments;
pub use leader::Candidate;
pub use removal::give_nodes_back;
pub use roots::publish as publish_roots;
pub use status::tell as tell_status;
pub use vips::Vips as KeptVips;
pub use waypoints::{Settings as WaypointSettings, keep as keep_waypoints};
pub use webhook::{register as register_webhook, serve as serve_webhook};

use crate::source::{Batch, Source};
use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _};
use kinds::{WATCHED, Watched};
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject},
    runtime::{WatchStreamExt as _, watcher},
};
use objects::{Event, Objects};
use std::time::Duration;
use tokio::sync::mpsc;

/// Whose fields in objects ours are.
const FIELD_MANAGER: &str = "culvertd";

/// Objects of one page of a list.
const PAGE: u32 = 500;

/// Events that are taken together, when so many wait: one batch costs less than many.
const TOGETHER: usize = 1024;

/// A kind that the API server does not have is looked for again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// While something is still awaited at the start, it is named this often.
const TELL: Duration = Duration::from_secs(10);

/// For this pod's API server, or the one that `KUBECONFIG` names.
pub async fn client() -> anyhow::Result<Client> {
    let config = kube::Config::infer().await.context(
        "no API server: neither KUBECONFIG nor a pod's own service account says where it is",
    )?;
    Client::try_from(config).context("the API server's address or certificates cannot be used")
}

/// The objects of an API server, watched.
pub struct Kubernetes {
    pub client: Client,
    /// The control plane's own.
    pub namespace: String,
}

impl Source for Kubernetes {
    fn start(self) -> anyhow::Result<mpsc::Receiver<Batch>> {
        let (events, told) = mpsc::channel(TOGETHER);
        for watched in WATCHED {
            let (client, namespace) = (self.client.clone(), self.namespace.clone());
            tokio::spawn(follow(client, namespace, watched, events.clone()));
        }
        let (tx, rx) = mpsc::channel(16);
        tokio::spawn(gather(told, tx));
        Ok(rx)
    }
}

type Told = (&'static Watched, Event);

/// Batches from events, the first once everything is there.
async fn gather(mut told: mpsc::Receiver<Told>, batches: mpsc::Sender<Batch>) {
    let mut objects = Objects::default();
    let mut begun = false;
    let mut events = Vec::with_capacity(TOGETHER);
    loop {
        events.clear();
        let received = told.recv_many(&mut events, TOGETHER);
        match tokio::time::timeout(TELL, received).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(_) if begun => continue,
            Err(_) => {
                let awaited: Vec<&str> = objects.awaited().map(istio_api::Kind::name).collect();
                tracing::warn!(
                    kinds = awaited.join(", "),
                    "not listed yet: nothing is served before"
                );
                continue;
            }
        }
        for (watched, event) in events.drain(..) {
            objects.apply(watched.kind, event);
        }
        if let Some(batch) = objects.batch() {
            begun = true;
            if batches.send(batch).await.is_err() {
                return;
            }
        }
    }
}

/// Follows one kind for ever.
async fn follow(
    client: Client,
    namespace: String,
    watched: &'static Watched,
    events: mpsc::Sender<Told>,
) {
    let mut told_absent = false;
    loop {
        match version(&client, watched).await {
            Ok(Some(version)) => {
                if !follow_version(&client, &namespace, watched, version, &events).await {
                    return;
                }
            }
            Ok(None) => {
                if !std::mem::replace(&mut told_absent, true) {
                    tracing::info!(
                        kind = watched.object_kind,
                        group = watched.group,
                        "the API server does not have this kind; it is looked for again"
                    );
                    // Whatever there was of it before is not taken away by that.
                    if events.send((watched, Event::Listed)).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => tracing::warn!(
                kind = watched.object_kind,
                group = watched.group,
                error = %reason(&error),
                "asking the API server for its kinds failed"
            ),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The version of the kind that the API server has.
async fn version(client: &Client, watched: &Watched) -> Result<Option<&'static str>, kube::Error> {
    if watched.is_built_in() {
        return Ok(watched.versions.first().copied());
    }
    for version in watched.versions {
        match client.list_api_group_resources(&watched.api_version(version)).await {
            Ok(list) if list.resources.iter().any(|r| r.name == watched.plural) => {
                return Ok(Some(version));
            }
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether anybody listens still, once the API server no longer has the version.
async fn follow_version(
    client: &Client,
    namespace: &str,
    watched: &'static Watched,
    version: &str,
    events: &mpsc::Sender<Told>,
) -> bool {
    let resource = resource(watched, version);
    let api: Api<DynamicObject> = match watched.own_namespace {
        true => Api::namespaced_with(client.clone(), namespace, &resource),
        false => Api::all_with(client.clone(), &resource),
    };
    let config = watcher::Config {
        field_selector: watched.field_selector.map(str::to_owned),
        ..watcher::Config::default().page_size(PAGE)
    };
    let stream = watcher(api, config)
        .map_ok(|event| match event {
            watcher::Event::Init => Event::Listing,
            watcher::Event::InitDone => Event::Listed,
            watcher::Event::InitApply(o) | watcher::Event::Apply(o) => whole(o, &resource),
            watcher::Event::Delete(o) => Event::Gone {
                namespace: o.metadata.namespace.unwrap_or_default(),
                name: o.metadata.name.unwrap_or_default(),
            },
        })
        .default_backoff();
    let mut stream = std::pin::pin!(stream);
    while let Some(next) = stream.next().await {
        match next {
            Ok(event) => {
                if events.send((watched, event)).await.is_err() {
                    return false;
                }
            }
            Err(error) => {
                if is_absent(&error) {
                    return true;
                }
                tracing::warn!(
                    kind = watched.object_kind,
                    group = watched.group,
                    error = %watch_reason(&error),
                    "a watch failed: what was known stays, and it is tried again"
                );
            }
        }
    }
    true
}

fn resource(watched: &Watched, version: &str) -> ApiResource {
    ApiResource {
        group: watched.group.to_owned(),
        version: version.to_owned(),
        api_version: watched.api_version(version),
        kind: watched.object_kind.to_owned(),
        plural: watched.plural.to_owned(),
    }
}

/// As a manifest would have it; without who wrote which field, which is often the larger half.
fn whole(mut object: DynamicObject, resource: &ApiResource) -> Event {
    object.metadata.managed_fields = None;
    // Objects of a list come without.
    object.types = Some(kube::core::TypeMeta {
        api_version: resource.api_version.clone(),
        kind: resource.kind.clone(),
    });
    Event::Is(Box::new(serde_json::to_value(object).unwrap_or_default()))
}

fn is_absent(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    let (InitialListFailed(e) | WatchStartFailed(e) | WatchFailed(e)) = error else { return false };
    matches!(e, kube::Error::Api(status) if status.code == 404)
}

fn watch_reason(error: &watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(e) => format!("listing: {}", reason(e)),
        WatchStartFailed(e) | WatchFailed(e) => format!("watching: {}", reason(e)),
        WatchError(status) => format!("watching: {}", status.message),
        other => other.to_string(),
    }
}

/// The API server's own words, which name the account, the verb and the resource where rights lack.
pub fn reason(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => format!("{:#}", anyhow::Error::msg(other.to_string())),
    }
}
