//! What has been delivered, kept as plainly as possible, and what follows from it: lists are
//! walked, nothing is indexed, and no code is shared with the mesh.

use crate::{
    control::Response,
    objects::{Body, HERE, Object, Pod, Policy, Rule, Service, namespace_of},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};
use xds::proto::{security as sec, workload::load_balancing as lb};

#[derive(Default, Debug)]
pub struct View {
    /// The last good version of each, by name.
    pub good: BTreeMap<String, Object>,
    /// Of workloads and services without a good version: the addresses that they have.
    pub refused: BTreeMap<String, Vec<IpAddr>>,
    /// Which types have been answered.
    pub answered: BTreeSet<&'static str>,
}

/// What `resolve` may say, in words that can be compared.
pub type Answers = BTreeSet<String>;

impl View {
    pub fn apply(&mut self, response: &Response) {
        self.answered.insert(response.type_url);
        for name in &response.removed {
            self.good.remove(name);
            self.refused.remove(name);
        }
        for (name, _, object) in &response.updated {
            if !object.bad {
                self.refused.remove(name);
                self.good.insert(name.clone(), object.clone());
            } else if !self.good.contains_key(name) {
                self.cannot_be_understood(name, object);
            }
        }
    }

    /// Of what nobody understands, nothing may follow but that something is refused.
    fn cannot_be_understood(&mut self, name: &str, object: &Object) {
        match &object.body {
            Body::Pod(p) => {
                if !p.addresses.is_empty() {
                    self.refused.insert(name.to_owned(), p.addresses.clone());
                }
            }
            Body::Service(s) => {
                self.refused.insert(name.to_owned(), s.vips.iter().map(|(_, ip)| *ip).collect());
            }
            Body::Policy(p) => {
                let all = Rule { principal: None, namespace: None, port: None };
                let denial = Policy { deny: true, dry_run: false, rules: vec![all], ..p.clone() };
                let object = Object { body: Body::Policy(denial), bad: true };
                self.good.insert(name.to_owned(), object);
            }
        }
    }

    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.good.values().filter_map(|o| match &o.body {
            Body::Pod(p) => Some(p),
            _ => None,
        })
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.good.values().filter_map(|o| match &o.body {
            Body::Service(s) => Some(s),
            _ => None,
        })
    }

    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.good.values().filter_map(|o| match &o.body {
            Body::Policy(p) => Some(p),
            _ => None,
        })
    }

    /// Every answer that is right. There are several where an address or a service is shared.
    pub fn resolve(&self, namespace: &str, network: &str, to: SocketAddr) -> Answers {
        let has = |(n, ip): &(&str, IpAddr)| *n == network && *ip == to.ip();
        // What passes through goes to whoever has the address.
        let claims = |s: &&Service| s.mode != lb::Mode::Passthrough && s.vips.iter().any(has);
        let services: Vec<&Service> = self.services().filter(claims).collect();
        let own = |s: &&&Service| s.private && namespace_of(s.name) == namespace;
        for visible in [&own as &dyn Fn(&&&Service) -> bool, &|s| !s.private] {
            let answers: Answers =
                services.iter().filter(visible).flat_map(|s| self.of_service(s, to)).collect();
            if !answers.is_empty() {
                return answers;
            }
        }
        let pods: Answers = self
            .pods()
            .filter(|p| !p.host_network && p.network == network && p.addresses.contains(&to.ip()))
            .map(|p| format!("{} as {} at {to}", p.uid, p.identity()))
            .collect();
        if !pods.is_empty() {
            return pods;
        }
        if !services.is_empty() {
            return ["not visible".to_owned()].into();
        }
        let refused = self.refused.values().flatten().any(|ip| *ip == to.ip());
        [if refused { "refused".to_owned() } else { format!("outside at {to}") }].into()
    }

    fn of_service(&self, s: &Service, to: SocketAddr) -> Answers {
        if !s.ports.contains(&to.port()) {
            return ["no port".to_owned()].into();
        }
        let mut by_rank: BTreeMap<usize, Answers> = BTreeMap::new();
        for p in self.pods() {
            let Some(ports) = p.services.get(s.name) else { continue };
            let Some((_, target)) = ports.iter().find(|(port, _)| *port == to.port()) else {
                continue;
            };
            let same_family = p.addresses.iter().find(|a| a.is_ipv4() == to.is_ipv4());
            let Some(ip) = same_family.or(p.addresses.first()) else { continue };
            if !p.healthy && !s.unhealthy_too {
                continue;
            }
            let target = if *target == 0 { to.port() } else { *target };
            let at = SocketAddr::new(*ip, target);
            by_rank.entry(rank(s, p)).or_default().insert(format!(
                "{} as {} at {at}",
                p.uid,
                p.identity()
            ));
        }
        let best = by_rank.pop_last();
        match best {
            Some((rank, _)) if s.mode == lb::Mode::Strict && rank < s.preference.len() => None,
            best => best,
        }
        .map_or_else(|| ["no endpoint".to_owned()].into(), |(_, answers)| answers)
    }

    /// Whether what has been delivered lets this peer connect.
    ///
    /// A verdict may be as wide as the policies that were delivered last, and no wider: between a
    /// change and its delivery nobody here can know of it. What is known to be missing counts
    /// against the peer: a policy that a workload names, and one that could not be understood.
    pub fn allows(&self, peer: Option<&str>, pod: &Pod, port: u16) -> bool {
        let applies = |p: &&Policy| match p.scope {
            sec::Scope::Global => true,
            sec::Scope::Namespace => namespace_of(p.name) == pod.namespace,
            sec::Scope::WorkloadSelector => pod.policies.contains(&p.name),
        };
        let applying: Vec<&Policy> =
            self.policies().filter(applies).filter(|p| !p.dry_run).collect();
        let missing = pod.policies.iter().any(|n| self.policies().all(|p| p.name != *n));
        let denied = applying.iter().any(|p| p.deny && p.matches(peer, port));
        let mut allows = applying.iter().filter(|p| !p.deny).peekable();
        let open = allows.peek().is_none();
        !missing && !denied && (open || allows.any(|p| p.matches(peer, port)))
    }
}

fn rank(s: &Service, p: &Pod) -> usize {
    if s.mode == lb::Mode::UnspecifiedMode {
        return 0;
    }
    let matches = |scope: &&lb::Scope| match scope {
        lb::Scope::Network => p.network.is_empty(),
        lb::Scope::Node => p.node == HERE,
        _ => false,
    };
    s.preference.iter().take_while(matches).count()
}
