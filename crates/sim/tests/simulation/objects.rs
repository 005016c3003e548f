//! What the simulated mesh is made of: pods, services and policies over alphabets so small that
//! names, addresses and identities are used again and again.

use mesh::Workload;
use policy::Request;
use prost::{Message as _, bytes::Bytes};
use prost_types::Any;
use sim::Run;
use std::{collections::BTreeMap, net::IpAddr};
use xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    proto::{security as sec, workload as pb},
};

pub const NAMESPACES: [&str; 2] = ["a", "b"];
pub const ACCOUNTS: [&str; 3] = ["x", "y", "z"];
pub const NETWORKS: [&str; 2] = ["", "n2"];
pub const ADDRESSES: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1"];
pub const VIPS: [&str; 3] = ["10.96.0.1", "10.96.0.2", "fd96::1"];
pub const PORTS: [u16; 2] = [80, 81];
/// Of the agent that follows.
pub const HERE: &str = "here";
const NODES: [&str; 2] = [HERE, "there"];
const PODS: [&str; 4] = ["p0", "p1", "p2", "p3"];
const SERVICES: [&str; 3] = ["a/s0.a.svc", "a/s1.a.svc", "b/s2.b.svc"];
const POLICIES: [&str; 6] = ["a/q0", "a/q1", "b/q2", "b/q3", "root/q4", "root/q5"];

/// One resource, and whether the follower can understand it.
#[derive(Clone, PartialEq, Debug)]
pub struct Object {
    pub body: Body,
    pub bad: bool,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    Pod(Pod),
    Service(Service),
    Policy(Policy),
}

#[derive(Clone, PartialEq, Debug)]
pub struct Pod {
    pub uid: String,
    pub namespace: &'static str,
    pub account: &'static str,
    pub node: &'static str,
    pub network: &'static str,
    pub addresses: Vec<IpAddr>,
    pub healthy: bool,
    pub host_network: bool,
    /// Ports from what the service calls them to what the pod does.
    pub services: BTreeMap<&'static str, Vec<(u16, u16)>>,
    pub policies: Vec<&'static str>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Service {
    pub name: &'static str,
    pub vips: Vec<(&'static str, IpAddr)>,
    pub ports: Vec<u16>,
    pub private: bool,
    pub mode: pb::load_balancing::Mode,
    pub preference: Vec<pb::load_balancing::Scope>,
    pub unhealthy_too: bool,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Policy {
    pub name: &'static str,
    pub scope: sec::Scope,
    pub deny: bool,
    pub dry_run: bool,
    pub rules: Vec<Rule>,
}

/// All that is there must match.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    pub principal: Option<String>,
    pub namespace: Option<&'static str>,
    pub port: Option<u16>,
}

pub fn namespace_of(name: &str) -> &str {
    name.split_once('/').unwrap().0
}

pub fn principal(namespace: &str, account: &str) -> String {
    format!("cluster.local/ns/{namespace}/sa/{account}")
}

impl Pod {
    pub fn identity(&self) -> String {
        format!("spiffe://{}", principal(self.namespace, self.account))
    }
}

impl Rule {
    fn matches(&self, peer: Option<&str>, port: u16) -> bool {
        let namespace = |p: &str| p.split('/').nth(2) == self.namespace;
        self.principal.as_deref().is_none_or(|p| peer == Some(p))
            && (self.namespace.is_none() || peer.is_some_and(namespace))
            && self.port.is_none_or(|p| p == port)
    }
}

impl Policy {
    pub fn matches(&self, peer: Option<&str>, port: u16) -> bool {
        self.rules.iter().any(|r| r.matches(peer, port))
    }
}

impl Object {
    /// Some object of discovery's address type.
    pub fn any_address(run: &mut Run) -> (String, Self) {
        let bad = run.chance(0.1);
        if run.chance(0.7) {
            let pod = any_pod(run, bad);
            (pod.uid.clone(), Object { body: Body::Pod(pod), bad })
        } else {
            let service = any_service(run);
            (service.name.to_owned(), Object { body: Body::Service(service), bad })
        }
    }

    pub fn any_policy(run: &mut Run) -> (String, Self) {
        let policy = any_policy(run);
        let bad = run.chance(0.1);
        (policy.name.to_owned(), Object { body: Body::Policy(policy), bad })
    }

    pub fn type_url(&self) -> &'static str {
        match self.body {
            Body::Policy(_) => AUTHORIZATION_TYPE,
            Body::Pod(_) | Body::Service(_) => ADDRESS_TYPE,
        }
    }

    /// As it goes over the wire. What is bad has a value in it that nobody knows yet.
    pub fn encode(&self) -> Any {
        let value = match &self.body {
            Body::Pod(p) => pod_to_proto(p, self.bad).encode_to_vec(),
            Body::Service(s) => service_to_proto(s, self.bad).encode_to_vec(),
            Body::Policy(p) => policy_to_proto(p, self.bad).encode_to_vec(),
        };
        Any { type_url: self.type_url().to_owned(), value }
    }
}

fn any_pod(run: &mut Run, bad: bool) -> Pod {
    let (name, namespace) = (run.pick(&PODS), run.pick(&NAMESPACES));
    let all = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<IpAddr>>();
    let one = all(&[run.pick(&ADDRESSES)]);
    let mapping = |run: &mut Run| {
        let ports = run.some(PORTS.to_vec());
        ports.into_iter().map(|p| (p, run.pick(&[0, 8000 + p]))).collect()
    };
    let services = run.some(SERVICES.to_vec()).into_iter().map(|s| (s, mapping(run))).collect();
    Pod {
        // A name comes back, as a StatefulSet's does, with another account on another node.
        uid: format!("c//Pod/{namespace}/{name}"),
        namespace,
        account: run.pick(&ACCOUNTS),
        node: run.pick(&NODES),
        network: if run.chance(0.8) { NETWORKS[0] } else { NETWORKS[1] },
        addresses: match run.chance(0.1) {
            true => run.some(all(&ADDRESSES)),
            false => one,
        },
        healthy: run.chance(0.7),
        // Nobody can tell of what cannot be read whether its addresses are its node's.
        host_network: !bad && run.chance(0.1),
        services,
        policies: if run.chance(0.5) { Vec::new() } else { vec![run.pick(&POLICIES)] },
    }
}

fn any_service(run: &mut Run) -> Service {
    use pb::load_balancing::{Mode, Scope};
    let vips = (0..2).map(|_| (run.pick(&NETWORKS), run.pick(&VIPS).parse().unwrap())).collect();
    Service {
        name: run.pick(&SERVICES),
        vips,
        ports: run.some(PORTS.to_vec()),
        private: run.chance(0.2),
        mode: run.pick(&[
            Mode::UnspecifiedMode,
            Mode::UnspecifiedMode,
            Mode::Strict,
            Mode::Failover,
            Mode::Passthrough,
        ]),
        preference: run.some(vec![Scope::Network, Scope::Node]),
        unhealthy_too: run.chance(0.3),
    }
}

fn any_policy(run: &mut Run) -> Policy {
    let rule = |run: &mut Run| Rule {
        principal: run.chance(0.5).then(|| principal(run.pick(&NAMESPACES), run.pick(&ACCOUNTS))),
        namespace: run.chance(0.3).then(|| run.pick(&NAMESPACES)),
        port: run.chance(0.4).then(|| run.pick(&PORTS)),
    };
    let name = run.pick(&POLICIES);
    Policy {
        name,
        scope: match namespace_of(name) {
            "root" => sec::Scope::Global,
            _ => run.pick(&[sec::Scope::Namespace, sec::Scope::WorkloadSelector]),
        },
        deny: run.chance(0.4),
        dry_run: run.chance(0.1),
        rules: (0..run.pick(&[0, 1, 1, 2])).map(|_| rule(run)).collect(),
    }
}

fn bytes(ip: &IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    }
}

const UNKNOWN: i32 = 99;

fn pod_to_proto(p: &Pod, bad: bool) -> pb::Address {
    let port = |&(s, t): &(u16, u16)| pb::Port {
        service_port: s.into(),
        target_port: t.into(),
        ..Default::default()
    };
    let services = p
        .services
        .iter()
        .map(|(s, ports)| {
            ((*s).to_owned(), pb::PortList { ports: ports.iter().map(port).collect() })
        })
        .collect();
    let network_mode =
        if p.host_network { pb::NetworkMode::HostNetwork } else { pb::NetworkMode::Standard };
    let w = pb::Workload {
        uid: p.uid.clone(),
        name: p.uid.rsplit('/').next().unwrap().to_owned(),
        namespace: p.namespace.to_owned(),
        addresses: p.addresses.iter().map(bytes).collect(),
        network: p.network.to_owned(),
        tunnel_protocol: if bad { UNKNOWN } else { pb::TunnelProtocol::Hbone as i32 },
        service_account: p.account.to_owned(),
        node: p.node.to_owned(),
        status: if p.healthy { pb::WorkloadStatus::Healthy } else { pb::WorkloadStatus::Unhealthy }
            as i32,
        services,
        authorization_policies: p.policies.iter().map(|&n| n.to_owned()).collect(),
        network_mode: network_mode as i32,
        ..Default::default()
    };
    pb::Address { r#type: Some(pb::address::Type::Workload(w)) }
}

fn service_to_proto(s: &Service, bad: bool) -> pb::Address {
    let (namespace, hostname) = s.name.split_once('/').unwrap();
    let address = |(network, ip): &(&str, IpAddr)| pb::NetworkAddress {
        network: (*network).to_owned(),
        address: bytes(ip),
        length: None,
    };
    let port = |p: &u16| pb::Port { service_port: (*p).into(), ..Default::default() };
    let health = match s.unhealthy_too {
        true => pb::load_balancing::HealthPolicy::AllowAll,
        false => pb::load_balancing::HealthPolicy::OnlyHealthy,
    };
    let s = pb::Service {
        name: hostname.to_owned(),
        namespace: namespace.to_owned(),
        hostname: hostname.to_owned(),
        addresses: s.vips.iter().map(address).collect(),
        ports: s.ports.iter().map(port).collect(),
        load_balancing: Some(pb::LoadBalancing {
            routing_preference: s.preference.iter().map(|&s| s as i32).collect(),
            mode: if bad { UNKNOWN } else { s.mode as i32 },
            health_policy: health as i32,
        }),
        visibility: i32::from(s.private),
        ..Default::default()
    };
    pb::Address { r#type: Some(pb::address::Type::Service(s)) }
}

fn policy_to_proto(p: &Policy, bad: bool) -> sec::Authorization {
    let (namespace, name) = p.name.split_once('/').unwrap();
    let exact = |s: &str| sec::StringMatch {
        match_type: Some(sec::string_match::MatchType::Exact(s.to_owned())),
    };
    // Each part of a rule is a clause of its own.
    let clause = |m: sec::Match| sec::Clause { matches: vec![m] };
    let rule = |r: &Rule| {
        let principal = r
            .principal
            .iter()
            .map(|p| sec::Match { principals: vec![exact(p)], ..Default::default() });
        let namespace = r
            .namespace
            .iter()
            .map(|n| sec::Match { namespaces: vec![exact(n)], ..Default::default() });
        let port = r
            .port
            .iter()
            .map(|p| sec::Match { destination_ports: vec![(*p).into()], ..Default::default() });
        sec::Rule { clauses: principal.chain(namespace).chain(port).map(clause).collect() }
    };
    let action = if p.deny { sec::Action::Deny } else { sec::Action::Allow };
    sec::Authorization {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: p.scope as i32,
        action: if bad { UNKNOWN } else { action as i32 },
        rules: p.rules.iter().map(rule).collect(),
        dry_run: p.dry_run,
        ..Default::default()
    }
}

/// Who asks where an address leads.
pub fn source(namespace: &str, network: &str) -> Workload {
    mesh::workload_from_proto(&pb::Workload {
        uid: "source".to_owned(),
        namespace: namespace.to_owned(),
        network: network.to_owned(),
        ..Default::default()
    })
    .unwrap()
}

pub fn request(peer: Option<&str>, port: u16) -> Request {
    Request {
        peer: peer.map(|p| format!("spiffe://{p}").parse().unwrap()),
        source: ([10, 9, 9, 9], 40_000).into(),
        destination: ([10, 0, 0, 1], port).into(),
        trust_domains: ["cluster.local".into()].into(),
    }
}
