//! `culvertctl why SOURCE DESTINATION[:PORT]`: what would become of a connection, and who says so.

use crate::agent::Agent;
use mesh::{Mode, Service, Workload};
use policy::{Explanation, Request};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// The source: a workload, or an address that is nobody's.
enum Source {
    Workload(Arc<Workload>),
    Outside(IpAddr),
}

enum Destination {
    Service(Arc<Service>),
    Workload(Arc<Workload>),
    Outside(IpAddr),
}

/// An answer, or an error that says what was expected.
pub fn why(agent: &Agent, source: &str, destination: &str) -> Value {
    explain(agent, source, destination).unwrap_or_else(|error| json!({ "error": error }))
}

fn explain(agent: &Agent, source: &str, destination: &str) -> Result<Value, String> {
    let workloads = agent.mesh.workloads();
    let source = find_source(agent, &workloads, source)?;
    let own_namespace = match &source {
        Source::Workload(w) => &*w.namespace,
        Source::Outside(_) => "default",
    };
    let (name, port) = split_port(destination);
    let destination = find_destination(agent, &workloads, own_namespace, name)?;
    let mut told = Told { agent, source, notes: Vec::new() };
    told.about_source();
    let (to, answers) = match &destination {
        Destination::Outside(ip) => {
            (json!({ "address": ip }), vec![told.passthrough("not of the mesh")])
        }
        Destination::Workload(w) => {
            let port = port.ok_or("which port? say NAMESPACE/NAME:PORT or ADDRESS:PORT")?;
            (workload(w), vec![told.reach_workload(w, port, false)])
        }
        Destination::Service(s) => {
            let port = match (port, &s.ports[..]) {
                (Some(port), _) => port,
                (None, [only]) => only.service_port,
                (None, many) => {
                    let all: Vec<String> =
                        many.iter().map(|p| p.service_port.to_string()).collect();
                    return Err(format!("{} has ports {}: say which", s.key, all.join(", ")));
                }
            };
            (
                json!({ "service": s.key.to_string(), "port": port }),
                told.reach_service(s, port, &workloads),
            )
        }
    };
    let from = match &told.source {
        Source::Workload(w) => workload(w),
        Source::Outside(ip) => json!({ "address": ip }),
    };
    Ok(json!({ "source": from, "destination": to, "answers": answers, "notes": told.notes }))
}

struct Told<'a> {
    agent: &'a Agent,
    source: Source,
    notes: Vec<String>,
}

impl Told<'_> {
    fn about_source(&mut self) {
        let synced = *self.agent.mesh.synced().borrow();
        if !synced.ready() {
            self.notes
                .push("discovery has not answered this agent yet: connections wait".to_owned());
        } else if !synced.connected {
            self.notes.push(
                "discovery is not connected: what is said here is of the last good state"
                    .to_owned(),
            );
        }
        if let Source::Workload(w) = &self.source {
            let (w, role) = (w.clone(), "the source");
            self.about_workload(&w, role);
        }
    }

    fn about_workload(&mut self, w: &Workload, role: &str) {
        if !w.hbone || *w.site.node != *self.agent.node {
            return;
        }
        if !self.agent.pods.all().iter().any(|p| *p.uid == *w.uid) {
            self.notes.push(format!(
                "{role} is of the mesh by its record, but this node's agent has not enrolled it: \
                 its capture is not complete, and its new connections fail"
            ));
        }
        let certificates = self.agent.certs.status();
        let own =
            w.identity().ok().and_then(|id| certificates.into_iter().find(|c| c.identity == id));
        if let Some(c) = own
            && c.not_after.is_none_or(|t| t <= std::time::SystemTime::now())
        {
            let error = c.last_error.as_deref().unwrap_or("none has come yet").to_owned();
            self.notes.push(format!("{role} has no valid certificate: {error}"));
        }
    }

    fn passthrough(&self, what: &str) -> Value {
        json!({
            "endpoints": [],
            "transport": "plaintext",
            "allowed": true,
            "decided_by": format!("nothing: the destination is {what}, and no agent guards it"),
        })
    }

    fn reach_service(&mut self, s: &Arc<Service>, port: u16, all: &[Arc<Workload>]) -> Vec<Value> {
        let failed =
            |why: String| vec![json!({ "endpoints": [], "allowed": false, "decided_by": why })];
        if let Source::Workload(w) = &self.source
            && s.private
            && s.key.namespace != w.namespace
        {
            return failed(format!("{} is visible in its own namespace only (exportTo)", s.key));
        }
        if s.load_balancing.mode == Mode::Passthrough {
            return vec![self.passthrough("whatever its name resolves to")];
        }
        let Some(of_service) = s.ports.iter().find(|p| p.service_port == port) else {
            return failed(format!("{} has no port {port}", s.key));
        };
        let endpoints: Vec<(&Arc<Workload>, u16)> = all
            .iter()
            .filter_map(|w| {
                let own = w.services.get(&s.key)?.iter().find(|p| p.service_port == port)?;
                let target = [own.target_port, of_service.target_port, port];
                Some((w, target.into_iter().find(|p| *p != 0).unwrap_or(port)))
            })
            .collect();
        if endpoints.is_empty() {
            return failed(format!(
                "{} has no endpoint on port {port}: does its selector meet any pod's labels?",
                s.key
            ));
        }
        if !endpoints.iter().any(|(w, _)| w.healthy) {
            self.notes.push(format!("none of the endpoints of {} is ready", s.key));
        }
        if let Some(waypoint) = &s.waypoint {
            self.notes.push(format!(
                "connections to {} go through its waypoint {waypoint}, which judges each request as well",
                s.key
            ));
        }
        // Endpoints with the same answer are told together.
        let mut answers: BTreeMap<String, Value> = BTreeMap::new();
        for (w, target) in endpoints {
            let mut answer = self.reach_workload(w, target, s.waypoint.is_some());
            let names = answer.as_object_mut().and_then(|a| a.remove("endpoints"));
            let there = answers.entry(answer.to_string()).or_insert_with(|| {
                answer.as_object_mut().map(|a| a.insert("endpoints".to_owned(), json!([])));
                answer
            });
            if let (Some(Value::Array(list)), Some(Value::Array(names))) =
                (there.get_mut("endpoints"), names)
            {
                list.extend(names);
            }
        }
        answers.into_values().collect()
    }

    /// `through`: by way of its service's waypoint, if that has one.
    fn reach_workload(&mut self, w: &Arc<Workload>, port: u16, through: bool) -> Value {
        self.about_workload(w, "the destination");
        if !w.hbone {
            let mut answer = self.passthrough("not enrolled");
            if let Some(a) = answer.as_object_mut() {
                a.insert("endpoints".to_owned(), json!([name(w)]));
            }
            return answer;
        }
        let Some(ip) = w.addresses.first().copied() else {
            return json!({ "endpoints": [name(w)], "allowed": false, "decided_by": "it has no address" });
        };
        let (peer, from) = match &self.source {
            Source::Workload(s) => {
                (if s.hbone { s.identity().ok() } else { None }, s.address_like(ip).unwrap_or(ip))
            }
            Source::Outside(from) => (None, *from),
        };
        let transport = if peer.is_some() { "HBONE (mutual TLS)" } else { "plaintext" };
        let request = Request {
            peer,
            source: SocketAddr::new(from, 0),
            destination: SocketAddr::new(ip, port),
            trust_domains: self.agent.trust_domains(w),
        };
        let around = if through { None } else { self.agent.around_waypoint(w, &request) };
        let mut answer = match around {
            Some(decision) => json!({
                "allowed": decision == policy::Decision::ThroughWaypoint,
                "decided_by": decision.to_string(),
                "change": policy::what_would_change(&decision, &[]),
            }),
            None => {
                let set = self.agent.mesh.policies_for(w);
                explanation(&policy::explain(&set, &request))
            }
        };
        if let Some(a) = answer.as_object_mut() {
            a.insert("endpoints".to_owned(), json!([name(w)]));
            a.insert("transport".to_owned(), json!(transport));
        }
        answer
    }
}

fn explanation(e: &Explanation) -> Value {
    let policies: Vec<Value> = e
        .applied
        .iter()
        .map(|a| {
            json!({
                "policy": a.policy.to_string(),
                "scope": format!("{:?}", a.scope),
                "action": format!("{:?}", a.action),
                "dry_run": a.dry_run,
                "matches": a.matched,
            })
        })
        .collect();
    let nearly: Vec<Value> = e
        .nearly
        .iter()
        .map(|n| {
            json!({
                "policy": n.policy.to_string(),
                "action": format!("{:?}", n.action),
                "rule": n.rule,
                "unmet": n.unmet,
            })
        })
        .collect();
    json!({
        "allowed": e.verdict.allowed,
        "decided_by": e.verdict.decision.to_string(),
        "because": e.because,
        "nearly": nearly,
        "change": e.change,
        "policies": policies,
    })
}

fn name(w: &Workload) -> String {
    format!("{}/{}", w.namespace, w.name())
}

fn workload(w: &Workload) -> Value {
    json!({
        "workload": name(w),
        "identity": w.identity().map(|i| i.to_string()).unwrap_or_default(),
        "node": w.site.node,
        "in_mesh": w.hbone,
        "healthy": w.healthy,
        "addresses": *w.addresses,
    })
}

/// `host:port`, `[v6]:port`, or either without a port.
fn split_port(s: &str) -> (&str, Option<u16>) {
    if s.parse::<IpAddr>().is_ok() {
        return (s, None);
    }
    match s.rsplit_once(':') {
        Some((host, port)) => match port.parse() {
            Ok(port) => (host.trim_start_matches('[').trim_end_matches(']'), Some(port)),
            Err(_) => (s, None),
        },
        None => (s, None),
    }
}

fn find_workload(all: &[Arc<Workload>], wanted: &str) -> Option<Arc<Workload>> {
    let (namespace, own) = wanted.split_once('/').unwrap_or(("default", wanted));
    let is =
        |w: &&Arc<Workload>| *w.uid == *wanted || (*w.namespace == *namespace && w.name() == own);
    all.iter().find(is).cloned()
}

fn find_source(agent: &Agent, all: &[Arc<Workload>], wanted: &str) -> Result<Source, String> {
    if let Ok(ip) = wanted.parse::<IpAddr>() {
        let network = &agent.mesh.local_network();
        let there = agent.mesh.workload_at(network, ip);
        return Ok(there.map_or(Source::Outside(ip), Source::Workload));
    }
    find_workload(all, wanted).map(Source::Workload).ok_or_else(|| {
        format!(
            "the control plane has no workload {wanted}: say NAMESPACE/POD, a uid of `culvertctl \
             workloads -o json`, or an address"
        )
    })
}

fn find_destination(
    agent: &Agent,
    all: &[Arc<Workload>],
    own_namespace: &str,
    wanted: &str,
) -> Result<Destination, String> {
    let services = agent.mesh.services();
    if let Ok(ip) = wanted.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        let is_virtual = |s: &Service| {
            s.load_balancing.mode != Mode::Passthrough && s.addresses.iter().any(|(_, a)| *a == ip)
        };
        // In the order in which a connection would find them.
        let own = |s: &Service| s.private && *s.key.namespace == *own_namespace;
        let public = |s: &Service| !s.private;
        let find = |seen: &dyn Fn(&Service) -> bool| {
            let found = services.iter().find(|(s, _)| is_virtual(s) && seen(s));
            found.map(|(s, _)| Destination::Service(s.clone()))
        };
        let there = || agent.mesh.workload_at(&agent.mesh.local_network(), ip);
        return Ok(find(&own)
            .or_else(|| find(&public))
            .or_else(|| there().map(Destination::Workload))
            .or_else(|| find(&|_| true))
            .unwrap_or(Destination::Outside(ip)));
    }
    // NAMESPACE/NAME is a pod's first; what is said without a namespace is a host name first.
    if wanted.contains('/')
        && let Some(w) = find_workload(all, wanted)
    {
        return Ok(Destination::Workload(w));
    }
    // A host name as an application would say it, or NAMESPACE/SERVICE.
    let domain = &agent.cluster_domain;
    let of_namespace = wanted.split_once('/').map(|(ns, name)| format!("{name}.{ns}.svc.{domain}"));
    let candidates = [
        of_namespace.unwrap_or_else(|| wanted.to_lowercase()),
        format!("{wanted}.{own_namespace}.svc.{domain}").to_lowercase(),
        format!("{wanted}.svc.{domain}").to_lowercase(),
        format!("{wanted}.{domain}").to_lowercase(),
    ];
    candidates
        .into_iter()
        .chain(wildcards_over(&wanted.to_lowercase()))
        .find_map(|name| services.iter().find(|(s, _)| *s.key.hostname == *name))
        .map(|(s, _)| Destination::Service(s.clone()))
        .or_else(|| find_workload(all, wanted).map(Destination::Workload))
        .ok_or_else(|| {
            format!(
                "the mesh knows no service or workload {wanted}: say a host name, NAMESPACE/NAME, \
                 or an address"
            )
        })
}

/// The most specific first, as in `*.example.com`, `*.com`.
fn wildcards_over(name: &str) -> Vec<String> {
    name.match_indices('.').map(|(dot, _)| format!("*{}", name.split_at(dot).1)).collect()
}
