//! The two decisions that walk lists: an endpoint of a service, and what policy says.

use super::corpus::{self, named_service, named_workload};
use crate::role::say;
use anyhow::ensure;
use identity::SpiffeId;
use mesh::{Local, Mesh, Resolved, Workload};
use policy::{Decision, Request, Verdict};
use prost::Message as _;
use rand::{SeedableRng as _, rngs::SmallRng, seq::SliceRandom as _};
use std::{
    hint::black_box,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};
use xds::{
    AUTHORIZATION_TYPE,
    client::{Apply as _, Delivered},
    proto::{security as sec, workload as pb},
};

const ROUNDS: usize = 15;
const SERVICE: &str = "shop/reviews.shop.svc.cluster.local";
const VIP: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

pub fn play() -> anyhow::Result<()> {
    for (count, name) in [(10, "10"), (1000, "1,000"), (10_000, "10,000")] {
        choice(name, count, Serving::All)?;
        choice(name, count, Serving::ATenth)?;
        choice(name, count, Serving::TheFirstTenth)?;
    }
    for (count, name) in [(10, "10"), (1000, "1,000"), (10_000, "10,000")] {
        check(name, count, Last::NoneMatches)?;
        check(name, count, Last::OneMatches)?;
    }
    Ok(())
}

/// Which endpoints have the port that is asked for.
#[derive(Clone, Copy)]
enum Serving {
    All,
    /// In no order.
    ATenth,
    /// Those that came first: as when a port is new with a version that is being rolled out.
    TheFirstTenth,
}

fn mesh_with(resources: Vec<(String, pb::Address)>) -> anyhow::Result<Arc<Mesh>> {
    let mesh = Mesh::new(Local { node: "node-1".into(), ..Local::default() });
    let rejected = corpus::apply(&mesh, resources);
    ensure!(rejected == 0, "{rejected} resources were rejected");
    Ok(mesh)
}

fn port(number: u32) -> pb::Port {
    pb::Port { service_port: number, target_port: 8000 + number, ..Default::default() }
}

fn choice(name: &str, count: u32, serving: Serving) -> anyhow::Result<()> {
    let mut rng = SmallRng::seed_from_u64(7);
    let mut has_port: Vec<bool> =
        (0..count).map(|i| matches!(serving, Serving::All) || i < (count / 10).max(1)).collect();
    if matches!(serving, Serving::ATenth) {
        has_port.shuffle(&mut rng);
    }
    let mut resources = vec![named_service(pb::Service {
        name: "reviews".to_owned(),
        namespace: "shop".to_owned(),
        hostname: "reviews.shop.svc.cluster.local".to_owned(),
        addresses: vec![pb::NetworkAddress {
            network: String::new(),
            address: VIP.octets().to_vec().into(),
            length: None,
        }],
        ports: vec![port(80), port(81)],
        ..Default::default()
    })];
    for (i, has_port) in (0..count).zip(has_port) {
        let ports = if has_port { vec![port(80), port(81)] } else { vec![port(81)] };
        resources.push(named_workload(pb::Workload {
            services: [(SERVICE.to_owned(), pb::PortList { ports })].into(),
            ..workload(&format!("Kubernetes//Pod/shop/reviews-{i:05}"), 0x0a00_0000 + i)
        }));
    }
    let mesh = mesh_with(resources)?;
    let source = mesh::workload_from_proto(&workload("source", 0x0aff_0000))?;
    let to = SocketAddr::from((VIP, 80));
    ensure!(
        matches!(mesh.resolve(&source, to, &mut rand::rng()), Resolved::Workload { .. }),
        "nothing is chosen"
    );
    let name = match serving {
        Serving::All => format!("choice among {name} endpoints"),
        Serving::ATenth => format!("choice among {name} endpoints, a tenth serves the port"),
        Serving::TheFirstTenth => {
            format!("choice among {name} endpoints, only the first tenth serves the port")
        }
    };
    measure(&name, 1e9, || {
        black_box(mesh.resolve(&source, black_box(to), &mut rand::rng()));
    });
    Ok(())
}

fn workload(uid: &str, ip: u32) -> pb::Workload {
    pb::Workload {
        uid: uid.to_owned(),
        name: uid.rsplit('/').next().unwrap_or_default().to_owned(),
        namespace: "shop".to_owned(),
        addresses: vec![Ipv4Addr::from_bits(ip).octets().to_vec().into()],
        tunnel_protocol: pb::TunnelProtocol::Hbone as i32,
        service_account: "reviews".to_owned(),
        node: "node-1".to_owned(),
        ..Default::default()
    }
}

#[derive(Clone, Copy)]
enum Last {
    /// Every rule of every policy is looked at, and the answer is no.
    NoneMatches,
    /// As above, but for the last rule of the last ALLOW policy.
    OneMatches,
}

fn check(name: &str, count: u32, last: Last) -> anyhow::Result<()> {
    let policies: Vec<sec::Authorization> =
        (0..count).map(|n| policy_number(n, count, last)).collect();
    let named = policies
        .iter()
        .filter(|p| p.scope == sec::Scope::WorkloadSelector as i32)
        .map(|p| format!("{}/{}", p.namespace, p.name))
        .collect();
    let server = pb::Workload {
        authorization_policies: named,
        ..workload("Kubernetes//Pod/shop/reviews", SERVER.to_bits())
    };
    let mesh = mesh_with(vec![named_workload(server)])?;
    let encoded: Vec<_> = policies
        .iter()
        .map(|p| (format!("{}/{}", p.namespace, p.name), p.encode_to_vec()))
        .collect();
    let delivered: Vec<_> =
        encoded.iter().map(|(name, body)| Delivered { name, version: "1", body }).collect();
    let rejected = mesh.apply(AUTHORIZATION_TYPE, &delivered, &[]);
    ensure!(rejected.is_empty(), "{rejected:?}");
    let server = mesh.workload("Kubernetes//Pod/shop/reviews").expect("just put there");
    let request = Request {
        peer: Some(SpiffeId::new("cluster.local", "frontend", "web")?),
        source: (Ipv4Addr::new(10, 9, 9, 9), 40_000).into(),
        destination: (SERVER, 8080).into(),
        trust_domains: [Arc::from("cluster.local")].into(),
    };
    let verdict = judge(&mesh, &server, &request);
    let (name, expected) = match last {
        Last::NoneMatches => (format!("{name} policies: check, none matches"), false),
        Last::OneMatches => (format!("{name} policies: check, the last one allows"), true),
    };
    ensure!(verdict.allowed == expected, "{name}: {verdict:?}");
    ensure!(!matches!(verdict.decision, Decision::Unknown { .. }), "{verdict:?}");
    measure(&name, 1e6, || {
        black_box(judge(&mesh, &server, black_box(&request)));
    });
    Ok(())
}

/// As the agent does it, for each connection.
fn judge(mesh: &Mesh, destination: &Workload, request: &Request) -> Verdict {
    mesh.policies_for(destination).evaluate(request)
}

/// One of ten is global, one of ten is named by the workload, one of five denies.
fn policy_number(n: u32, count: u32, last: Last) -> sec::Authorization {
    let (scope, namespace) = match n % 10 {
        0 => (sec::Scope::Global, "istio-system"),
        1 => (sec::Scope::WorkloadSelector, "shop"),
        _ => (sec::Scope::Namespace, "shop"),
    };
    let deny = n % 5 == 2;
    let mut rules: Vec<sec::Rule> = (0..10).map(|r| rule(n, r)).collect();
    if n + 1 == count && matches!(last, Last::OneMatches) {
        rules.pop();
        rules.push(sec::Rule {
            clauses: vec![clause(sec::Match {
                principals: exact(&["cluster.local/ns/frontend/sa/web".to_owned()]),
                ..Default::default()
            })],
        });
    }
    sec::Authorization {
        name: format!("policy-{n:05}"),
        namespace: namespace.to_owned(),
        scope: scope as i32,
        action: if deny { sec::Action::Deny } else { sec::Action::Allow } as i32,
        rules,
        ..Default::default()
    }
}

/// None of them matches a peer `frontend/web` from 10.9.9.9 to port 8080.
fn rule(n: u32, r: u32) -> sec::Rule {
    let three = |f: &dyn Fn(u32) -> String| -> Vec<String> { (0..3).map(f).collect() };
    let principals = || exact(&three(&|k| format!("cluster.local/ns/team-{n:04}/sa/app-{r}-{k}")));
    let namespaces = || exact(&three(&|k| format!("team-{n:04}-{r}-{k}")));
    let blocks = |length| -> Vec<sec::Address> {
        (0..3)
            .map(|k| sec::Address {
                address: Ipv4Addr::from_bits(0x0b00_0000 + n * 4096 + r * 256 + k)
                    .octets()
                    .to_vec(),
                length,
            })
            .collect()
    };
    let ports = |first: u32| -> Vec<u32> { (0..3).map(|k| first + k).collect() };
    let m = sec::Match::default;
    let clauses = match r {
        0 => vec![sec::Match { principals: principals(), ..m() }],
        1 => vec![sec::Match { namespaces: namespaces(), ..m() }],
        2 => vec![sec::Match { source_ips: blocks(24), ..m() }],
        3 => vec![sec::Match { destination_ports: ports(9000 + n % 1000), ..m() }],
        4 => vec![sec::Match {
            principals: vec![prefix(format!("cluster.local/ns/team-{n:04}/"))],
            ..m()
        }],
        // From and to, as a rule usually has them.
        5 => vec![
            sec::Match { principals: principals(), ..m() },
            sec::Match { destination_ports: ports(8080), ..m() },
        ],
        6 => vec![sec::Match { namespaces: vec![prefix(format!("team-{n:04}-"))], ..m() }],
        7 => vec![
            sec::Match { source_ips: blocks(32), namespaces: namespaces(), ..m() },
            sec::Match { destination_ports: ports(8080), ..m() },
        ],
        8 => vec![sec::Match {
            service_accounts: vec![sec::ServiceAccountMatch {
                namespace: format!("team-{n:04}"),
                service_account: format!("job-{r}"),
            }],
            ..m()
        }],
        _ => vec![sec::Match { principals: principals(), destination_ports: ports(8080), ..m() }],
    };
    sec::Rule { clauses: clauses.into_iter().map(clause).collect() }
}

fn clause(m: sec::Match) -> sec::Clause {
    sec::Clause { matches: vec![m] }
}

fn exact(values: &[String]) -> Vec<sec::StringMatch> {
    let one = |s: &String| sec::string_match::MatchType::Exact(s.clone());
    values.iter().map(|s| sec::StringMatch { match_type: Some(one(s)) }).collect()
}

fn prefix(value: String) -> sec::StringMatch {
    sec::StringMatch { match_type: Some(sec::string_match::MatchType::Prefix(value)) }
}

/// Says what one call costs, in so many units per second.
fn measure(name: &str, per_second: f64, f: impl Fn()) {
    // Enough calls for a fiftieth of a second, found by doubling.
    let mut calls = 1u32;
    let time = |calls: u32| {
        let begun = Instant::now();
        (0..calls).for_each(|_| f());
        begun.elapsed().as_secs_f64()
    };
    while time(calls) < 0.02 {
        calls *= 2;
    }
    for _ in 0..ROUNDS {
        say(name, time(calls) * per_second / f64::from(calls));
    }
}
