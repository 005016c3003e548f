//! What names mean, for random sets of services, against a reference that looks at all of them and
//! takes the best.

use crate::feed::{Feed as _, address, bytes, mesh, port, source};
use proptest::{collection::vec, prelude::*, sample::select};
use std::net::IpAddr;
use xds::proto::workload as pb;

const HOSTS: [&str; 8] = [
    "a.ns.svc.cluster.local",
    "b.ns.svc.cluster.local",
    "api.example.com",
    "x.api.example.com",
    "*.example.com",
    "*.api.example.com",
    "*.com",
    "API.Other.com",
];
const NAMESPACES: [&str; 3] = ["ns", "mine", "zz"];
const SEARCHES: [&str; 3] = ["mine.svc.cluster.local", "svc.cluster.local", "cluster.local"];
const LABELS: [&str; 9] =
    ["a", "b", "x", "api", "example", "other", "com", "ns", "svc.cluster.local"];

#[derive(Clone, Debug)]
struct Host {
    host: &'static str,
    namespace: &'static str,
    private: bool,
    /// With an address of its own; else that of its endpoint, if it has one.
    has_address: bool,
    has_endpoint: bool,
    /// The last byte of its address.
    number: u8,
}

impl Host {
    fn addresses(&self) -> Vec<IpAddr> {
        let of = |first: u8, yes: bool| yes.then_some([first, 0, 0, self.number].into());
        of(240, self.has_address).or(of(10, self.has_endpoint)).into_iter().collect()
    }

    /// How well this host fits the name: the exact one best, then the longest.
    fn fits(&self, name: &str) -> Option<usize> {
        let host = self.host.to_lowercase();
        match host.strip_prefix('*') {
            None => (host == name).then_some(usize::MAX),
            Some(end) => (name.ends_with(end) && name.len() > end.len()).then_some(end.len()),
        }
    }
}

fn hosts() -> impl Strategy<Value = Vec<Host>> {
    let one = (select(&HOSTS[..]), select(&NAMESPACES[..]), any::<[bool; 3]>());
    vec(one, 0..12).prop_map(|all| {
        let mut hosts: Vec<Host> = Vec::new();
        for (n, (host, namespace, [private, has_address, has_endpoint])) in
            all.into_iter().enumerate()
        {
            if !hosts.iter().any(|h| h.host == host && h.namespace == namespace) {
                let number = n as u8 + 1;
                hosts.push(Host { host, namespace, private, has_address, has_endpoint, number });
            }
        }
        hosts
    })
}

/// Names near those of the hosts, often with a search domain behind.
fn names() -> impl Strategy<Value = String> {
    let free = vec(select(&LABELS[..]), 1..5).prop_map(|l| l.join("."));
    let near = select(&HOSTS[..]).prop_map(|h| h.replace('*', "w").to_lowercase());
    let search = prop_oneof![Just(""), select(&SEARCHES[..])];
    (prop_oneof![free, near], search).prop_map(|(name, search)| match search {
        "" => name,
        s => format!("{name}.{s}"),
    })
}

fn expected(hosts: &[Host], name: &str) -> Option<Vec<IpAddr>> {
    let visible = hosts.iter().filter(|h| !h.private || h.namespace == "mine");
    let fitting = visible.filter_map(|h| Some((h.fits(name)?, h)));
    // The asker's own before others', those in their order.
    let best = fitting
        .max_by_key(|(fit, h)| (*fit, h.namespace == "mine", std::cmp::Reverse(h.namespace)));
    best.map(|(_, h)| h.addresses()).filter(|a| !a.is_empty())
}

proptest! {
    #[test]
    fn names_mean_what_a_look_at_every_service_says(hosts in hosts(), names in vec(names(), 1..12)) {
        let mesh = mesh();
        for h in &hosts {
            mesh.put(pb::Service {
                name: "s".to_owned(),
                namespace: h.namespace.to_owned(),
                hostname: h.host.to_owned(),
                addresses: h
                    .has_address
                    .then(|| address("", &format!("240.0.0.{}", h.number)))
                    .into_iter()
                    .collect(),
                ports: vec![port(80, 8080)],
                visibility: match h.private {
                    true => pb::Visibility::Namespace as i32,
                    false => pb::Visibility::Public as i32,
                },
                ..Default::default()
            });
            if h.has_endpoint {
                let key = format!("{}/{}", h.namespace, h.host);
                mesh.put(pb::Workload {
                    uid: format!("w{}", h.number),
                    name: format!("w{}", h.number),
                    namespace: h.namespace.to_owned(),
                    addresses: vec![bytes(&format!("10.0.0.{}", h.number))],
                    services: [(key, pb::PortList { ports: vec![port(80, 8080)] })].into(),
                    ..Default::default()
                });
            }
        }
        for name in &names {
            let found = mesh.named(&source("mine", ""), name, &SEARCHES);
            let direct = expected(&hosts, name).map(|a| (None, a));
            let wanted = direct.or_else(|| {
                SEARCHES.iter().find_map(|s| {
                    let short = name.strip_suffix(s)?.strip_suffix('.')?;
                    Some((Some(short.to_owned()), expected(&hosts, short)?))
                })
            });
            prop_assert_eq!(found.map(|n| (n.canonical, n.addresses)), wanted, "{}", name);
        }
    }
}
