//! A Kubernetes Service with addresses of both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};
use testbed::Bed;

use crate::MeshPod;
use crate::dialogue::at;

#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    pub port: u16,
    target: u16,
    protocol: String,
}

impl Service {
    pub(crate) fn new(name: &str, number: u8, protocol: &str, port: u16, target: u16) -> Self {
        Self {
            name: name.to_owned(),
            ipv4: Ipv4Addr::new(10, 96, 0, number),
            ipv6: Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, number.into()),
            port,
            target,
            protocol: protocol.to_owned(),
        }
    }

    pub fn hostname(&self) -> String {
        format!("{}.default.svc.cluster.local", self.name)
    }

    /// Its address of one family with its port.
    pub fn at4(&self) -> String {
        at(self.ipv4, self.port)
    }

    pub fn at6(&self) -> String {
        at(self.ipv6, self.port)
    }

    /// Its short name with its port.
    pub fn by_name(&self) -> String {
        format!("{}:{}", self.name, self.port)
    }

    pub(crate) fn install(&self, bed: &Bed, pods: &[&MeshPod]) {
        let backends: Vec<_> =
            pods.iter().map(|p| (p.ipv4(), Some(p.ipv6()), self.target)).collect();
        bed.service(self.ipv4, Some(self.ipv6), self.port, &backends).unwrap();
        bed.dns(&self.hostname(), &[IpAddr::from(self.ipv4), self.ipv6.into()]);
    }

    pub(crate) fn manifest(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "namespace": "default", "name": self.name },
            "spec": {
                "clusterIP": self.ipv4,
                "clusterIPs": [self.ipv4, self.ipv6],
                "ipFamilies": ["IPv4", "IPv6"],
                "selector": { "app": self.name },
                "ports": [{ "name": self.protocol, "port": self.port, "targetPort": self.target }],
            },
        })
    }
}
