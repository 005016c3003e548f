//! Workloads and services, from a control plane that may send anything in any order. What resolves
//! must be held; what is gone must not resolve.

#![no_main]

use culvert_fuzz::messages;
use libfuzzer_sys::fuzz_target;
use mesh::{Local, Mesh, Resolved, Workload};
use prost::Message as _;
use rand::{SeedableRng as _, rngs::SmallRng};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};
use xds::{
    ADDRESS_TYPE,
    client::{Apply as _, Delivered},
    proto::workload::{Address, address::Type},
};

fuzz_target!(|data: &[u8]| {
    let mesh = Mesh::new(Local { node: "n".into(), ..Local::default() });
    let mut names = BTreeSet::new();
    for message in messages(data) {
        let name = name_of(message.body, message.choice);
        names.insert(name.clone());
        if message.choice & 1 == 1 {
            mesh.apply(ADDRESS_TYPE, &[], std::slice::from_ref(&name));
            assert!(mesh.workload(&name).is_none(), "{name:?} was removed");
        } else {
            let before = mesh.workload(&name);
            let delivered = Delivered { name: &name, version: "1", body: message.body };
            let rejected = mesh.apply(ADDRESS_TYPE, &[delivered], &[]);
            if !rejected.is_empty() {
                assert_eq!(mesh.workload(&name), before, "the version before stays");
            }
        }
        check(&mesh);
    }
    mesh.apply(ADDRESS_TYPE, &[], &Vec::from_iter(names));
    assert!(mesh.workloads().is_empty() && mesh.services().is_empty(), "all were removed");
});

/// The name under which a control plane would send the resource; sometimes another.
fn name_of(body: &[u8], choice: u8) -> String {
    match Address::decode(body).ok().and_then(|a| a.r#type) {
        Some(Type::Workload(w)) if choice & 2 == 0 => w.uid,
        Some(Type::Service(s)) if choice & 2 == 0 => format!("{}/{}", s.namespace, s.hostname),
        _ => "ns/other".to_owned(),
    }
}

/// Resolves everything there is, from everyone.
fn check(mesh: &Mesh) {
    let workloads = mesh.workloads();
    let services = mesh.services();
    let addresses: BTreeSet<IpAddr> = workloads
        .iter()
        .flat_map(|w| w.addresses.iter().copied())
        .chain(services.iter().flat_map(|(s, _)| s.addresses.iter().map(|(_, ip)| *ip)))
        .collect();
    let ports: BTreeSet<u16> =
        services.iter().flat_map(|(s, _)| s.ports.iter().map(|p| p.service_port)).take(4).collect();
    for source in workloads.iter().take(3) {
        for ip in addresses.iter().take(16) {
            for port in ports.iter().copied().chain([80]) {
                resolved(mesh, source, SocketAddr::new(*ip, port));
            }
        }
    }
}

fn resolved(mesh: &Mesh, source: &Workload, to: SocketAddr) {
    // The same choice of every run: what is found is found again.
    match mesh.resolve(source, to, &mut SmallRng::seed_from_u64(to.port().into())) {
        Resolved::Workload { workload, address, service } => {
            let held = mesh.workload(&workload.uid);
            assert_eq!(held.as_deref(), Some(&*workload), "the version that is held");
            assert!(workload.addresses.contains(&address.ip()), "an address of its own");
            assert_ne!(address.port(), 0);
            if let Some(service) = service {
                assert!(!service.private || service.key.namespace == source.namespace);
                assert!(workload.services.get(&service.key).is_some());
            }
        }
        Resolved::Waypoint { proxy, address, asked, .. } => {
            assert_eq!(asked, to);
            assert!(proxy.hbone && proxy.addresses.contains(&address.ip()));
        }
        Resolved::Outside(address) => assert_eq!(address, to),
        Resolved::Unreachable(_) => {}
    }
}
