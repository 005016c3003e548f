//! A mesh of any size, as a control plane describes it: workloads with the fields and the lengths
//! that pods of a Deployment have.

use mesh::Mesh;
use prost::Message as _;
use prost_types::{Any, Struct, Value, value::Kind};
use std::{collections::hash_map::DefaultHasher, hash::Hasher as _, net::Ipv4Addr};
use xds::{
    ADDRESS_TYPE,
    client::{Apply as _, Delivered},
    proto::workload as pb,
    server::Encoded,
};

/// Services over workloads, and namespaces over services.
const PER_SERVICE: u32 = 10;
const SERVICES_PER_NAMESPACE: u32 = 10;
const PER_NODE: u32 = 100;

/// Where the one who holds the mesh runs; a hundred of the workloads are there.
pub const NODE: &str = "node-0007";

#[derive(Clone, Copy)]
pub struct Shape {
    pub workloads: u32,
    /// Whether workloads carry their pods' labels, as culvertd sends them and istiod does not.
    pub labels: bool,
}

impl Shape {
    pub fn services(self) -> u32 {
        (self.workloads / PER_SERVICE).max(1)
    }

    pub fn namespaces(self) -> u32 {
        (self.services() / SERVICES_PER_NAMESPACE).max(1)
    }

    fn namespace(self, service: u32) -> String {
        format!("team-{:04}", service % self.namespaces())
    }

    fn app(self, service: u32) -> String {
        format!("catalog-{:02}", service / self.namespaces())
    }

    fn hostname(self, service: u32) -> String {
        format!("{}.{}.svc.cluster.local", self.app(service), self.namespace(service))
    }

    pub fn uid(self, i: u32) -> String {
        let service = i % self.services();
        format!("Kubernetes//Pod/{}/{}", self.namespace(service), self.pod(i))
    }

    fn pod(self, i: u32) -> String {
        format!("{}-7d9f8b6c54-{i:05x}", self.app(i % self.services()))
    }

    /// What a change changes.
    pub fn revision(version: u32) -> String {
        format!("v{version}")
    }

    pub fn workload(self, i: u32, version: u32) -> pb::Workload {
        let service = i % self.services();
        let app = self.app(service);
        let node = i / PER_NODE;
        let mapping = pb::Port { service_port: 80, target_port: 8080, ..Default::default() };
        let key = format!("{}/{}", self.namespace(service), self.hostname(service));
        let labels =
            [("app", app.as_str()), ("pod-template-hash", "7d9f8b6c54"), ("version", "v1")];
        pb::Workload {
            uid: self.uid(i),
            name: self.pod(i),
            namespace: self.namespace(service),
            addresses: vec![address(i).octets().to_vec().into()],
            tunnel_protocol: pb::TunnelProtocol::Hbone as i32,
            trust_domain: "cluster.local".to_owned(),
            service_account: app.clone(),
            node: format!("node-{node:04}"),
            canonical_name: app.clone(),
            canonical_revision: Self::revision(version),
            workload_type: pb::WorkloadType::Deployment as i32,
            workload_name: app.clone(),
            cluster_id: "Kubernetes".to_owned(),
            services: [(key, pb::PortList { ports: vec![mapping] })].into(),
            locality: Some(pb::Locality {
                region: "eu-central-1".to_owned(),
                zone: format!("eu-central-1{}", ["a", "b", "c"][node as usize % 3]),
                subzone: String::new(),
            }),
            extensions: if self.labels { vec![extension(&labels)] } else { Vec::new() },
            ..Default::default()
        }
    }

    pub fn service(self, j: u32) -> pb::Service {
        let vip = pb::NetworkAddress {
            network: String::new(),
            address: vip(j).octets().to_vec().into(),
            length: None,
        };
        pb::Service {
            name: self.app(j),
            namespace: self.namespace(j),
            hostname: self.hostname(j),
            addresses: vec![vip],
            ports: vec![pb::Port { service_port: 80, target_port: 8080, ..Default::default() }],
            ..Default::default()
        }
    }

    /// Everything, by name.
    pub fn resources(self) -> impl Iterator<Item = (String, pb::Address)> {
        (0..self.services())
            .map(move |j| named_service(self.service(j)))
            .chain((0..self.workloads).map(move |i| named_workload(self.workload(i, 0))))
    }
}

pub fn address(i: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 + i)
}

pub fn vip(j: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xac10_0000 + j)
}

pub fn named_workload(w: pb::Workload) -> (String, pb::Address) {
    (w.uid.clone(), pb::Address { r#type: Some(pb::address::Type::Workload(w)) })
}

pub fn named_service(s: pb::Service) -> (String, pb::Address) {
    let name = format!("{}/{}", s.namespace, s.hostname);
    (name, pb::Address { r#type: Some(pb::address::Type::Service(s)) })
}

/// As a server holds it: its version is a hash of 16 hex digits, as culvertd's is.
pub fn encoded(address: &pb::Address) -> Encoded {
    let body = address.encode_to_vec();
    let mut hasher = DefaultHasher::new();
    hasher.write(&body);
    let aliases = match &address.r#type {
        Some(pb::address::Type::Workload(w)) => w.addresses.first().map(|a| {
            let octets: Vec<String> = a.iter().map(u8::to_string).collect();
            format!("/{}", octets.join("."))
        }),
        _ => None,
    };
    Encoded {
        version: format!("{:016x}", hasher.finish()),
        body,
        aliases: aliases.into_iter().collect(),
        ..Encoded::default()
    }
}

/// As out of one response; how many are rejected.
pub fn apply(mesh: &Mesh, resources: impl IntoIterator<Item = (String, pb::Address)>) -> usize {
    let all: Vec<_> = resources.into_iter().map(|(n, address)| (n, encoded(&address))).collect();
    let delivered: Vec<_> = all
        .iter()
        .map(|(name, e)| Delivered { name, version: &e.version, body: &e.body })
        .collect();
    mesh.apply(ADDRESS_TYPE, &delivered, &[]).len()
}

fn extension(labels: &[(&str, &str)]) -> pb::Extension {
    let fields = labels
        .iter()
        .map(|(k, v)| ((*k).to_owned(), Value { kind: Some(Kind::StringValue((*v).to_owned())) }))
        .collect();
    pb::Extension {
        name: xds::LABELS_EXTENSION.to_owned(),
        config: Some(Any {
            type_url: "type.googleapis.com/google.protobuf.Struct".to_owned(),
            value: Struct { fields }.encode_to_vec(),
        }),
    }
}
