//! What discovery says, on its way to the mesh, and how this agent introduces itself.

use crate::fault;
use mesh::Mesh;
use prost_types::{Struct, Value, value::Kind};
use std::{collections::HashMap, sync::Arc};
use xds::{
    AUTHORIZATION_TYPE,
    client::{Apply, Delivered, Rejected},
    proto::discovery::Node,
};

/// The mesh, as discovery changes it.
pub struct Following(pub Arc<Mesh>);

impl Apply for Following {
    fn apply(
        &self,
        type_url: &str,
        resources: &[Delivered<'_>],
        removed: &[String],
    ) -> Vec<Rejected> {
        // What comes first changes nothing yet.
        if type_url == AUTHORIZATION_TYPE && self.0.synced().borrow().policies {
            fault::point("policy-received");
        }
        self.0.apply(type_url, resources, removed)
    }

    fn apply_part(
        &self,
        type_url: &str,
        resources: &[Delivered<'_>],
        removed: &[String],
    ) -> Vec<Rejected> {
        self.0.apply_part(type_url, resources, removed)
    }

    fn keeps_versions(&self, type_url: &str) -> bool {
        self.0.keeps_versions(type_url)
    }

    fn holds(&self, type_url: &str, name: &str) -> bool {
        self.0.holds(type_url, name)
    }

    fn versions(&self, type_url: &str) -> HashMap<String, String> {
        self.0.versions(type_url)
    }

    fn connected(&self, connected: bool) {
        self.0.connected(connected);
    }
}

/// How this agent introduces itself.
pub fn node(name: &str, ip: &str, cluster: &str) -> Node {
    let text = |s: &str| Value { kind: Some(Kind::StringValue(s.to_owned())) };
    let namespace = "culvert-system";
    Node {
        id: format!("ztunnel~{ip}~culvert-agent-{name}.{namespace}~{namespace}.svc.cluster.local"),
        cluster: String::new(),
        metadata: Some(Struct {
            fields: [
                ("NAME".to_owned(), text(&format!("culvert-agent-{name}"))),
                ("NAMESPACE".to_owned(), text(namespace)),
                ("INSTANCE_IPS".to_owned(), text(ip)),
                ("NODE_NAME".to_owned(), text(name)),
                ("CLUSTER_ID".to_owned(), text(cluster)),
            ]
            .into(),
        }),
    }
}
