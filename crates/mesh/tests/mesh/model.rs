//! Random histories of workloads and services, against a reference that keeps what was said last
//! and works everything out anew at every question.

use crate::feed::{Feed as _, bytes, client, mesh, show};
use mesh::{Mesh, Resolved};
use proptest::{collection::vec, prelude::*, sample::subsequence, test_runner::Config};
use prost::bytes::Bytes;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};
use xds::proto::workload::{self as pb, load_balancing as lb};

const HOSTS: [&str; 3] = ["a.ns.svc", "b.ns.svc", "c.ns.svc"];
const UIDS: [&str; 5] = ["w0", "w1", "w2", "w3", "w4"];
const PODS: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"];
const VIPS: [&str; 3] = ["10.96.0.1", "10.96.0.2", "fd00:96::1"];
const ZONES: [&str; 2] = ["z1", "z2"];
const NODES: [&str; 2] = ["here", "there"];
const PORTS: [u16; 2] = [80, 81];

#[derive(Clone, Debug)]
enum Step {
    Workload(Box<pb::Workload>),
    Service(Box<pb::Service>),
    RemoveWorkload(usize),
    RemoveService(usize),
}

fn ports() -> impl Strategy<Value = Vec<pb::Port>> {
    let port = (0..PORTS.len(), prop_oneof![Just(0_u32), Just(8080), Just(9090)]);
    vec(port, 0..=2).prop_map(|all| {
        // A port number comes once.
        let unique: BTreeMap<usize, u32> = all.into_iter().collect();
        let port = |(i, target): (usize, u32)| pb::Port {
            service_port: PORTS[i].into(),
            target_port: target,
            ..Default::default()
        };
        unique.into_iter().map(port).collect()
    })
}

fn workload() -> impl Strategy<Value = pb::Workload> {
    (
        0..UIDS.len(),
        subsequence(PODS.to_vec(), 0..=2),
        vec((0..HOSTS.len(), ports()), 0..=2),
        prop::bool::weighted(0.2),
        0..ZONES.len(),
        0..NODES.len(),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(uid, addresses, services, ill, zone, node, host)| pb::Workload {
            uid: UIDS[uid].to_owned(),
            namespace: "ns".to_owned(),
            addresses: addresses.into_iter().map(bytes).collect(),
            services: services
                .into_iter()
                .map(|(h, ports)| (format!("ns/{}", HOSTS[h]), pb::PortList { ports }))
                .collect(),
            status: i32::from(ill),
            node: NODES[node].to_owned(),
            // Of one node every workload says the same.
            locality: Some(pb::Locality {
                region: "r".to_owned(),
                zone: if node == 0 { ZONES[0] } else { ZONES[zone] }.to_owned(),
                subzone: String::new(),
            }),
            network_mode: i32::from(host),
            ..Default::default()
        })
}

fn service() -> impl Strategy<Value = pb::Service> {
    let scopes = subsequence(vec![lb::Scope::Region, lb::Scope::Zone, lb::Scope::Node], 0..=3);
    let modes = prop_oneof![
        Just(lb::Mode::UnspecifiedMode),
        Just(lb::Mode::Failover),
        Just(lb::Mode::Strict),
    ];
    (
        0..HOSTS.len(),
        subsequence(VIPS.to_vec(), 0..=2),
        ports(),
        scopes,
        modes,
        any::<bool>(),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(host, vips, ports, scopes, mode, all, private)| pb::Service {
            namespace: "ns".to_owned(),
            hostname: HOSTS[host].to_owned(),
            addresses: vips.into_iter().map(|v| crate::feed::address("", v)).collect(),
            ports,
            load_balancing: Some(pb::LoadBalancing {
                routing_preference: scopes.into_iter().map(|s| s as i32).collect(),
                mode: mode as i32,
                health_policy: i32::from(all),
            }),
            visibility: i32::from(private),
            ..Default::default()
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => workload().prop_map(|w| Step::Workload(Box::new(w))),
        3 => service().prop_map(|s| Step::Service(Box::new(s))),
        2 => (0..UIDS.len()).prop_map(Step::RemoveWorkload),
        1 => (0..HOSTS.len()).prop_map(Step::RemoveService),
    ]
}

/// What was said last of each name, and nothing worked out.
#[derive(Default)]
struct Reference {
    workloads: BTreeMap<String, pb::Workload>,
    services: BTreeMap<String, pb::Service>,
    /// The zone of this node, as its workloads have said.
    zone: Option<String>,
}

impl Reference {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Workload(w) => {
                if w.node == NODES[0] {
                    self.zone = Some(w.locality.clone().unwrap().zone);
                }
                self.workloads.insert(w.uid.clone(), (**w).clone());
            }
            Step::Service(s) => drop(self.services.insert(s.hostname.clone(), (**s).clone())),
            Step::RemoveWorkload(i) => drop(self.workloads.remove(UIDS[*i])),
            Step::RemoveService(i) => drop(self.services.remove(HOSTS[*i])),
        }
    }

    /// Everything that a connection to `to` may become.
    fn allowed(&self, to: SocketAddr) -> Vec<String> {
        let ip = bytes(&to.ip().to_string());
        let services: Vec<&pb::Service> = self
            .services
            .values()
            .filter(|s| s.addresses.iter().any(|a| a.address == ip))
            .collect();
        let (visible, hidden): (Vec<_>, Vec<_>) =
            services.into_iter().partition(|s| s.visibility == 0);
        if !visible.is_empty() {
            return visible.into_iter().flat_map(|s| self.through(s, to)).collect();
        }
        let holders: Vec<String> = self
            .workloads
            .values()
            .filter(|w| w.network_mode == 0 && w.addresses.contains(&ip))
            .map(|w| format!("{} {to}", w.uid))
            .collect();
        match (holders.is_empty(), hidden.is_empty()) {
            (false, _) => holders,
            (true, false) => vec!["not visible".to_owned()],
            (true, true) => vec!["outside".to_owned()],
        }
    }

    fn through(&self, s: &pb::Service, to: SocketAddr) -> Vec<String> {
        let find = |ports: &[pb::Port]| {
            ports.iter().find(|p| p.service_port == u32::from(to.port())).map(|p| p.target_port)
        };
        let Some(mapped) = find(&s.ports) else { return vec!["no port".to_owned()] };
        let balancing = s.load_balancing.as_ref().unwrap();
        let usable: Vec<(usize, String)> = self
            .workloads
            .values()
            .filter(|w| w.status == 0 || balancing.health_policy == 1)
            .filter_map(|w| {
                let own = find(&w.services.get(&format!("ns/{}", s.hostname))?.ports)?;
                let target = [own, mapped, to.port().into()].into_iter().find(|p| *p != 0)?;
                let like = |a: &&Bytes| (a.len() == 4) == to.is_ipv4();
                let address = w.addresses.iter().find(like).or(w.addresses.first())?;
                let ip = match <[u8; 4]>::try_from(&address[..]) {
                    Ok(v4) => IpAddr::from(v4),
                    Err(_) => IpAddr::from(<[u8; 16]>::try_from(&address[..]).unwrap()),
                };
                let at = SocketAddr::new(ip, u16::try_from(target).unwrap());
                Some((self.nearness(w, balancing), format!("{} {at}", w.uid)))
            })
            .collect();
        let best = match balancing.mode() {
            lb::Mode::Strict => Some(balancing.routing_preference.len()),
            lb::Mode::Failover => usable.iter().map(|(n, _)| *n).max(),
            _ => None,
        };
        let chosen: Vec<String> = usable
            .into_iter()
            .filter(|(n, _)| best.is_none_or(|b| *n == b))
            .map(|(_, shown)| shown)
            .collect();
        if chosen.is_empty() { vec!["no endpoint".to_owned()] } else { chosen }
    }

    fn nearness(&self, w: &pb::Workload, balancing: &pb::LoadBalancing) -> usize {
        balancing
            .routing_preference()
            .take_while(|scope| match scope {
                lb::Scope::Region => self.zone.is_some(),
                lb::Scope::Zone => self.zone.as_ref() == w.locality.as_ref().map(|l| &l.zone),
                lb::Scope::Node => w.node == NODES[0],
                _ => unreachable!("no service here has another"),
            })
            .count()
    }
}

fn asked(mesh: &Mesh, to: SocketAddr) -> String {
    match mesh.resolve(&client(), to, &mut rand::rng()) {
        Resolved::Outside(_) => "outside".to_owned(),
        other => show(&other),
    }
}

proptest! {
    #![proptest_config(Config { cases: 400, failure_persistence: None, ..Config::default() })]

    #[test]
    fn resolution_agrees_with_the_reference(steps in vec(step(), 1..40)) {
        let mesh = mesh();
        let mut reference = Reference::default();
        for step in steps {
            reference.take(&step);
            match step {
                Step::Workload(w) => mesh.put(*w),
                Step::Service(s) => mesh.put(*s),
                Step::RemoveWorkload(i) => mesh.remove(UIDS[i]),
                Step::RemoveService(i) => mesh.remove(&format!("ns/{}", HOSTS[i])),
            }
            for ip in VIPS.iter().chain(&PODS) {
                for port in PORTS {
                    let to = SocketAddr::new(ip.parse().unwrap(), port);
                    let allowed = reference.allowed(to);
                    // The choice is random: ask more than once.
                    for _ in 0..3 {
                        let got = asked(&mesh, to);
                        prop_assert!(allowed.contains(&got), "{to}: {got}, not in {allowed:?}");
                    }
                }
            }
        }
        prop_assert_eq!(mesh.workloads().len(), reference.workloads.len());
        prop_assert_eq!(mesh.services().len(), reference.services.len());
    }
}
