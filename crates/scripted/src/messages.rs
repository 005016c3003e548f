//! Discovery's messages, made short.

use prost::Message;
use prost_types::Any;
use xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    proto::{
        discovery::{DeltaDiscoveryResponse, Resource},
        security::Authorization,
        workload::{Address, Service, Workload, address::Type},
    },
};

/// A resource of any bytes.
pub fn raw(type_url: &str, name: &str, version: &str, body: Vec<u8>) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(Any { type_url: type_url.to_owned(), value: body }),
        ..Default::default()
    }
}

pub fn workload(version: &str, w: &Workload) -> Resource {
    let body = Address { r#type: Some(Type::Workload(w.clone())) }.encode_to_vec();
    raw(ADDRESS_TYPE, &w.uid, version, body)
}

pub fn service(version: &str, s: &Service) -> Resource {
    let body = Address { r#type: Some(Type::Service(s.clone())) }.encode_to_vec();
    raw(ADDRESS_TYPE, &format!("{}/{}", s.namespace, s.hostname), version, body)
}

pub fn policy(version: &str, a: &Authorization) -> Resource {
    let name = format!("{}/{}", a.namespace, a.name);
    raw(AUTHORIZATION_TYPE, &name, version, a.encode_to_vec())
}

pub fn response(
    type_url: &str,
    nonce: &str,
    resources: Vec<Resource>,
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        resources,
        removed_resources: removed.iter().map(|r| (*r).to_owned()).collect(),
        ..Default::default()
    }
}
