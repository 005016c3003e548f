//! The mesh's root certificates, in a ConfigMap of every namespace: what a pod mounts to know the mesh by.

use super::FIELD_MANAGER;
use crate::control::Control;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::watch;

/// As in Istio, so that its own parts find it, too.
const NAME: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";

/// After a write that failed.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// Keeps them there while this control plane leads.
pub async fn publish(
    client: Client,
    control: Arc<Control>,
    mut roots: watch::Receiver<String>,
    mut leads: watch::Receiver<bool>,
) {
    let all: Api<ConfigMap> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut events = std::pin::pin!(watcher(all, config).default_backoff());
    let mut changed = control.changed();
    let mut there = There::default();
    let mut failed = false;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => there.apply(event),
                Some(Err(error)) => {
                    tracing::warn!(error = %super::watch_reason(&error), "ConfigMaps {NAME} are not heard of");
                    continue;
                }
                None => return,
            },
            Ok(()) = changed.changed() => {}
            Ok(()) = roots.changed() => {}
            Ok(()) = leads.changed() => {}
            () = tokio::time::sleep(TRY_AGAIN), if failed => {}
        }
        failed = false;
        if !*leads.borrow() || !there.listed {
            continue;
        }
        let wanted = roots.borrow_and_update().clone();
        for namespace in control.namespaces() {
            if there.roots.get(&namespace) == Some(&wanted) {
                continue;
            }
            match write(&client, &namespace, &wanted).await {
                Ok(()) => drop(there.roots.insert(namespace, wanted.clone())),
                // Ended meanwhile, or about to.
                Err(kube::Error::Api(s)) if s.code == 404 || s.is_forbidden_by_end() => {}
                Err(error) => {
                    failed = true;
                    let error = super::reason(&error);
                    tracing::warn!(
                        namespace,
                        error,
                        "ConfigMap {NAME} was not written; it is tried again"
                    );
                }
            }
        }
    }
}

trait ByEnd {
    /// A namespace that is ending takes nothing new.
    fn is_forbidden_by_end(&self) -> bool;
}

impl ByEnd for kube::core::Status {
    fn is_forbidden_by_end(&self) -> bool {
        self.code == 403 && self.message.contains("being terminated")
    }
}

/// What is in the namespaces, by the API server.
#[derive(Default)]
struct There {
    roots: HashMap<String, String>,
    listed: bool,
}

impl There {
    fn apply(&mut self, event: watcher::Event<ConfigMap>) {
        match event {
            watcher::Event::Init => *self = Self::default(),
            watcher::Event::InitDone => self.listed = true,
            watcher::Event::InitApply(m) | watcher::Event::Apply(m) => {
                let value = m.data.unwrap_or_default().remove(KEY).unwrap_or_default();
                self.roots.insert(m.metadata.namespace.unwrap_or_default(), value);
            }
            watcher::Event::Delete(m) => {
                self.roots.remove(&m.metadata.namespace.unwrap_or_default());
            }
        }
    }
}

async fn write(client: &Client, namespace: &str, roots: &str) -> Result<(), kube::Error> {
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some([("istio.io/config".to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some([(KEY.to_owned(), roots.to_owned())].into()),
        ..ConfigMap::default()
    };
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(NAME, &params, &Patch::Apply(map)).await.map(drop)
}
