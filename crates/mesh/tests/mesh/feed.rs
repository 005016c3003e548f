//! Resources as a control plane would send them.

use mesh::{Local, Mesh, Resolved, Unreachable, Workload};
use prost::{Message as _, bytes::Bytes};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    client::{Apply as _, Delivered, Rejected},
    proto::{security, workload as pb},
};

pub const SERVICE: &str = "ns/reviews.ns.svc";
pub const VIP: &str = "10.96.0.1";

pub fn mesh() -> Arc<Mesh> {
    Mesh::new(Local {
        node: "here".into(),
        cluster: "c1".into(),
        network: "".into(),
        ..Local::default()
    })
}

pub fn bytes(ip: &str) -> Bytes {
    match ip.parse().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec().into(),
        IpAddr::V6(v6) => v6.octets().to_vec().into(),
    }
}

pub fn port(service_port: u32, target_port: u32) -> pb::Port {
    pb::Port { service_port, target_port, ..Default::default() }
}

/// An endpoint of [`SERVICE`], port 80 to 8080.
pub fn workload(uid: &str, ip: &str) -> pb::Workload {
    pb::Workload {
        uid: uid.to_owned(),
        name: uid.to_owned(),
        namespace: "ns".to_owned(),
        addresses: vec![bytes(ip)],
        tunnel_protocol: pb::TunnelProtocol::Hbone as i32,
        services: [(SERVICE.to_owned(), pb::PortList { ports: vec![port(80, 8080)] })].into(),
        ..Default::default()
    }
}

pub fn address(network: &str, ip: &str) -> pb::NetworkAddress {
    pb::NetworkAddress { network: network.to_owned(), address: bytes(ip), length: None }
}

/// [`SERVICE`] at [`VIP`], port 80 to 8080.
pub fn service() -> pb::Service {
    let (namespace, hostname) = SERVICE.split_once('/').unwrap();
    pb::Service {
        name: "reviews".to_owned(),
        namespace: namespace.to_owned(),
        hostname: hostname.to_owned(),
        addresses: vec![address("", VIP)],
        ports: vec![port(80, 8080)],
        ..Default::default()
    }
}

/// Something that has a name and goes over the wire as an Address.
pub trait IntoAddress {
    fn named(self) -> (String, pb::Address);
}

impl IntoAddress for pb::Workload {
    fn named(self) -> (String, pb::Address) {
        (self.uid.clone(), pb::Address { r#type: Some(pb::address::Type::Workload(self)) })
    }
}

impl IntoAddress for pb::Service {
    fn named(self) -> (String, pb::Address) {
        let name = format!("{}/{}", self.namespace, self.hostname);
        (name, pb::Address { r#type: Some(pb::address::Type::Service(self)) })
    }
}

/// One response: names with their bodies, and what is removed.
pub fn deliver(
    m: &Mesh,
    type_url: &str,
    resources: &[(&str, Vec<u8>)],
    removed: &[&str],
) -> Vec<Rejected> {
    let delivered: Vec<_> =
        resources.iter().map(|(name, body)| Delivered { name, version: "", body }).collect();
    let removed: Vec<_> = removed.iter().map(|name| (*name).to_owned()).collect();
    m.apply(type_url, &delivered, &removed)
}

pub trait Feed {
    fn try_put(&self, resource: impl IntoAddress) -> Vec<Rejected>;
    fn put(&self, resource: impl IntoAddress);
    fn remove(&self, name: &str);
    fn try_policy(&self, policy: &security::Authorization) -> Vec<Rejected>;
    fn policy(&self, policy: &security::Authorization);
    /// What `client()` reaches at `to`.
    fn ask(&self, to: &str) -> Resolved;
    /// The uids and addresses that `to` leads to, sorted, over many tries.
    fn reach(&self, to: &str) -> Vec<String>;
}

impl Feed for Mesh {
    fn try_put(&self, resource: impl IntoAddress) -> Vec<Rejected> {
        let (name, address) = resource.named();
        deliver(self, ADDRESS_TYPE, &[(&name, address.encode_to_vec())], &[])
    }

    fn put(&self, resource: impl IntoAddress) {
        assert_eq!(self.try_put(resource), []);
    }

    fn remove(&self, name: &str) {
        assert_eq!(deliver(self, ADDRESS_TYPE, &[], &[name]), []);
    }

    fn try_policy(&self, policy: &security::Authorization) -> Vec<Rejected> {
        let name = format!("{}/{}", policy.namespace, policy.name);
        deliver(self, AUTHORIZATION_TYPE, &[(&name, policy.encode_to_vec())], &[])
    }

    fn policy(&self, policy: &security::Authorization) {
        assert_eq!(self.try_policy(policy), []);
    }

    fn ask(&self, to: &str) -> Resolved {
        self.resolve(&client(), to.parse().unwrap(), &mut rand::rng())
    }

    fn reach(&self, to: &str) -> Vec<String> {
        // With eight endpoints one of them stays unseen once in 10^13 runs.
        let mut seen: Vec<String> = (0..250).map(|_| show(&self.ask(to))).collect();
        seen.sort();
        seen.dedup();
        seen
    }
}

pub fn show(resolved: &Resolved) -> String {
    match resolved {
        Resolved::Workload { workload, address, .. } => format!("{} {address}", workload.uid),
        Resolved::Outside(address) => format!("outside {address}"),
        Resolved::Unreachable(Unreachable::NoEndpoint(_)) => "no endpoint".to_owned(),
        Resolved::Unreachable(Unreachable::NoPort(..)) => "no port".to_owned(),
        Resolved::Unreachable(Unreachable::NotVisible(_)) => "not visible".to_owned(),
        Resolved::Waypoint { proxy, address, .. } => format!("through {} {address}", proxy.uid),
        Resolved::Unreachable(other) => other.to_string(),
    }
}

/// Who asks: of another namespace than the service.
pub fn client() -> Workload {
    source("clients", "")
}

pub fn source(namespace: &str, network: &str) -> Workload {
    mesh::workload_from_proto(&pb::Workload {
        uid: "client".to_owned(),
        namespace: namespace.to_owned(),
        network: network.to_owned(),
        ..Default::default()
    })
    .unwrap()
}

pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}
