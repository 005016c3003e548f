//! What discovery says, on its way to the mesh and to the tables.

use crate::proxy::Proxy;
use crate::telling::Telling;
use prost_types::{Struct, Value, value::Kind};
use routes::{DESTINATION_TYPE, HOST_TABLE_TYPE, LISTENER_TYPE, TELEMETRY_TYPE};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};
use xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    client::{Apply, Delivered, Rejected},
    proto::discovery::Node,
};

/// In the order in which they are wanted: what is named comes before what names it.
pub const TYPES: [&str; 6] = [
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    DESTINATION_TYPE,
    HOST_TABLE_TYPE,
    LISTENER_TYPE,
    TELEMETRY_TYPE,
];

/// Resources of more bytes are loaded beside the thread that moves requests, and not on it.
const LARGE: usize = 64 * 1024;

pub struct Following {
    proxy: Arc<Proxy>,
    /// A bit for each type that has come once.
    come: AtomicU8,
}

impl Following {
    pub fn new(proxy: Arc<Proxy>) -> Self {
        Self { proxy, come: AtomicU8::new(0) }
    }
}

impl Following {
    fn apply_routes(
        &self,
        type_url: &str,
        resources: &[Delivered<'_>],
        removed: &[String],
    ) -> Vec<Rejected> {
        let tables = &self.proxy.tables;
        for name in removed {
            match type_url {
                HOST_TABLE_TYPE => tables.remove_host(name),
                DESTINATION_TYPE => tables.remove_destination(name),
                TELEMETRY_TYPE => self.proxy.telling.store(Arc::new(Telling::own())),
                _ => self.proxy.listeners.remove(name),
            }
        }
        let put = |Delivered { name, body, .. }: &Delivered<'_>| {
            let put = match type_url {
                HOST_TABLE_TYPE => tables.put_host(name, body),
                DESTINATION_TYPE => tables.put_destination(name, body),
                TELEMETRY_TYPE => {
                    Telling::load(body).map(|t| self.proxy.telling.store(Arc::new(t)))
                }
                _ => self.proxy.listeners.put(&self.proxy, name, body),
            };
            Some(Rejected { name: (*name).to_owned(), reason: put.err()? })
        };
        resources.iter().filter_map(put).collect()
    }
}

impl Apply for Following {
    fn apply(
        &self,
        type_url: &str,
        resources: &[Delivered<'_>],
        removed: &[String],
    ) -> Vec<Rejected> {
        let rejected = self.apply_part(type_url, resources, removed);
        if let Some(at) = TYPES.iter().position(|t| *t == type_url) {
            let all = self.come.fetch_or(1 << at, Ordering::AcqRel) | 1 << at;
            if all == (1 << TYPES.len()) - 1 {
                self.proxy.ready.send_replace(true);
            }
        }
        rejected
    }

    fn apply_part(
        &self,
        type_url: &str,
        resources: &[Delivered<'_>],
        removed: &[String],
    ) -> Vec<Rejected> {
        match type_url {
            HOST_TABLE_TYPE | DESTINATION_TYPE | LISTENER_TYPE | TELEMETRY_TYPE => {
                let bytes: usize = resources.iter().map(|r| r.body.len()).sum();
                let apply = || self.apply_routes(type_url, resources, removed);
                // Thousands of routes take a while, which requests do not wait for.
                if bytes > LARGE { tokio::task::block_in_place(apply) } else { apply() }
            }
            _ => {
                let rejected = self.proxy.mesh.apply_part(type_url, resources, removed);
                if type_url == ADDRESS_TYPE {
                    self.proxy.clients.heard(removed);
                }
                rejected
            }
        }
    }

    fn keeps_versions(&self, type_url: &str) -> bool {
        self.proxy.mesh.keeps_versions(type_url)
    }

    fn holds(&self, type_url: &str, name: &str) -> bool {
        self.proxy.mesh.holds(type_url, name)
    }

    fn versions(&self, type_url: &str) -> HashMap<String, String> {
        self.proxy.mesh.versions(type_url)
    }

    fn connected(&self, connected: bool) {
        self.proxy.mesh.connected(connected);
    }
}

/// How this proxy introduces itself.
pub fn node(namespace: &str, pod: &str, gateway: &str, cluster: &str) -> Node {
    let text = |s: &str| Value { kind: Some(Kind::StringValue(s.to_owned())) };
    Node {
        id: format!("waypoint~0.0.0.0~{pod}.{namespace}~{namespace}.svc.cluster.local"),
        cluster: String::new(),
        metadata: Some(Struct {
            fields: [
                ("NAME".to_owned(), text(pod)),
                ("NAMESPACE".to_owned(), text(namespace)),
                (xds::GATEWAY_NAME.to_owned(), text(gateway)),
                ("CLUSTER_ID".to_owned(), text(cluster)),
            ]
            .into(),
        }),
    }
}
