//! A mesh behind the real client, which follows a control plane over a stream that loses, repeats
//! and reorders. After each step it says of every address, and of every peer, exactly what follows
//! from what was delivered; once everything has been, it holds the truth.

use crate::{
    control::{Control, Response, TYPES},
    objects::{
        ACCOUNTS, ADDRESSES, Body, HERE, NAMESPACES, NETWORKS, Object, PORTS, VIPS, principal,
        request, source,
    },
    view::View,
};
use mesh::{Local, Mesh, Resolved, Unreachable, Workload};
use sim::{Run, simulate};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};
use xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    client::{Apply as _, Subscriptions},
    proto::discovery::Node,
};

const STEPS: usize = 150;

struct World {
    control: Control,
    client: Subscriptions,
    mesh: Arc<Mesh>,
    /// What has been delivered.
    view: View,
    sources: Vec<(&'static str, &'static str, Workload)>,
}

impl World {
    fn new() -> Self {
        let mesh = Mesh::new(Local { node: HERE.into(), cluster: "c".into(), ..Local::default() });
        let sources = NAMESPACES
            .iter()
            .flat_map(|ns| NETWORKS.iter().map(|net| (*ns, *net, source(ns, net))))
            .collect();
        let mut world = Self {
            control: Control::default(),
            client: Subscriptions::new(&TYPES),
            mesh,
            view: View::default(),
            sources,
        };
        world.connect();
        world
    }

    fn connect(&mut self) {
        self.mesh.connected(true);
        let requests = self.client.first_requests(&Node::default(), &*self.mesh);
        for request in &requests {
            for (name, version) in &request.initial_resource_versions {
                let current = self.control.current(&request.type_url, name);
                // Or it would never be sent.
                if let Some((_, object)) = current.filter(|(v, _)| v == version) {
                    assert_eq!(self.view.good.get(name), Some(object), "it claims to have {name}");
                }
            }
        }
        self.control.open(&requests);
    }

    fn step(&mut self, run: &mut Run) {
        match run
            .pick(&["change", "change", "send", "send", "deliver", "deliver", "deliver", "break"])
        {
            "change" => self.change(run),
            "send" => {
                let type_url = run.pick(&TYPES);
                self.control.flush(run, type_url);
            }
            "deliver" => {
                let Some(response) = self.control.arrival(run) else { return };
                self.deliver(run, &response);
                if run.chance(0.1) {
                    run.note("the same again".to_owned());
                    self.deliver(run, &response);
                }
            }
            // The stream ends one in three times that it could.
            _ if run.chance(0.33) => {
                if run.chance(0.3) {
                    run.note("another control plane".to_owned());
                    self.control.replace();
                }
                run.note("the stream breaks".to_owned());
                self.mesh.connected(false);
                self.connect();
            }
            _ => {}
        }
    }

    fn change(&mut self, run: &mut Run) {
        let address = run.chance(0.6);
        let type_url = if address { ADDRESS_TYPE } else { AUTHORIZATION_TYPE };
        if run.chance(0.25) {
            let names: Vec<&String> = self.control.all(type_url).map(|(n, _)| n).collect();
            if !names.is_empty() {
                let name = run.pick(&names).clone();
                run.note(format!("{name} is deleted"));
                self.control.remove(&name);
            }
            return;
        }
        if run.chance(0.2) {
            if let Some(name) = self.control.restore(run) {
                run.note(format!("{name} is as it once was"));
            }
            return;
        }
        let (name, object) =
            if address { Object::any_address(run) } else { Object::any_policy(run) };
        run.note(format!("{name} is now {object:?}"));
        self.control.put(name, object);
    }

    fn deliver(&mut self, run: &mut Run, response: &Response) {
        let brief: Vec<&str> = response.updated.iter().map(|(n, ..)| n.as_str()).collect();
        run.note(format!("#{} arrives: {brief:?}, without {:?}", response.nonce, response.removed));
        let judgements = self.mesh.judgements();
        let before = self.live();
        let answer = self.client.handle(&response.encode().into(), &*self.mesh).unwrap().unwrap();
        self.view.apply(response);
        assert_eq!(answer.response_nonce, response.nonce.to_string());
        let bad: Vec<&String> =
            response.updated.iter().filter(|(.., o)| o.bad).map(|(n, ..)| n).collect();
        let named = answer.error_detail.map(|e| e.message).unwrap_or_default();
        assert_eq!(named.is_empty(), bad.is_empty(), "rejected: {named}");
        for name in bad {
            assert!(named.contains(name.as_str()), "{name} is not among the rejected: {named}");
        }
        self.check(run);
        // Whoever has a live connection is told to look again.
        let after = self.live();
        let ended = before.iter().find(|key| after.get(key.0) == Some(&false) && *key.1);
        if let Some((key, _)) = ended {
            assert!(judgements.has_changed().unwrap(), "nobody is told that {key:?} must end");
        }
    }

    /// What policy says of every connection that this node could carry.
    fn live(&self) -> BTreeMap<(String, String, u16), bool> {
        let mut all = BTreeMap::new();
        for w in self.mesh.workloads().iter().filter(|w| w.site.node == HERE) {
            for peer in peers() {
                for port in PORTS {
                    let key = (w.uid.to_string(), peer.clone().unwrap_or_default(), port);
                    all.insert(key, self.judged(w, peer.as_deref(), port));
                }
            }
        }
        all
    }

    fn judged(&self, w: &Workload, peer: Option<&str>, port: u16) -> bool {
        self.mesh.policies_for(w).evaluate(&request(peer, port)).allowed
    }

    fn check(&self, run: &mut Run) {
        let synced = *self.mesh.synced().borrow();
        assert_eq!(synced.ready(), TYPES.iter().all(|t| self.view.answered.contains(t)));
        for (namespace, network, source) in &self.sources {
            for ip in ADDRESSES.iter().chain(&VIPS) {
                for port in PORTS {
                    let to = SocketAddr::new(ip.parse().unwrap(), port);
                    let right = self.view.resolve(namespace, network, to);
                    // A choice is random: once for each endpoint that there can be.
                    for _ in 0..right.len() {
                        let said = show(&self.mesh.resolve(source, to, &mut run.rng));
                        assert!(right.contains(&said), "{to} leads to {said}, not {right:?}");
                    }
                }
            }
        }
        for p in self.view.pods() {
            let w = self.mesh.workload(&p.uid).expect("what was delivered is there");
            assert_eq!(w.identity().unwrap().to_string(), p.identity());
            for peer in peers() {
                for port in PORTS {
                    let said = self.judged(&w, peer.as_deref(), port);
                    let right = self.view.allows(peer.as_deref(), p, port);
                    assert_eq!(said, right, "{peer:?} to {} port {port}", p.uid);
                }
            }
        }
    }

    /// Everything that cannot be understood is mended or goes, and everything is delivered.
    fn settle(&mut self, run: &mut Run) {
        for type_url in TYPES {
            let bad: Vec<(String, Object)> = self
                .control
                .all(type_url)
                .filter(|(_, o)| o.bad)
                .map(|(n, o)| (n.clone(), o.clone()))
                .collect();
            for (name, object) in bad {
                if run.chance(0.5) {
                    run.note(format!("{name} is mended"));
                    self.control.put(name, Object { bad: false, ..object });
                } else {
                    run.note(format!("{name} is deleted"));
                    self.control.remove(&name);
                }
            }
        }
        let mut quiet = 0;
        while quiet < 20 {
            for type_url in TYPES {
                self.control.flush(run, type_url);
            }
            quiet += 1;
            while let Some(response) = self.control.arrival(run) {
                quiet = 0;
                self.deliver(run, &response);
            }
        }
        self.holds_the_truth(run);
    }

    fn holds_the_truth(&self, run: &mut Run) {
        let of = |t: &'static str| self.control.all(t);
        let truth: BTreeMap<String, Object> =
            TYPES.into_iter().flat_map(of).map(|(n, o)| (n.clone(), o.clone())).collect();
        assert_eq!(self.view.good, truth);
        assert!(self.view.refused.is_empty(), "{:?}", self.view.refused);
        let names = |wanted: fn(&Body) -> bool| -> BTreeSet<String> {
            truth.iter().filter(|(_, o)| wanted(&o.body)).map(|(n, _)| n.clone()).collect()
        };
        let held: BTreeSet<String> =
            self.mesh.workloads().iter().map(|w| w.uid.to_string()).collect();
        assert_eq!(held, names(|b| matches!(b, Body::Pod(_))));
        let held: BTreeSet<String> =
            self.mesh.services().iter().map(|(s, _)| s.key.to_string()).collect();
        assert_eq!(held, names(|b| matches!(b, Body::Service(_))));
        let held: BTreeSet<String> =
            self.mesh.policies().iter().map(|p| p.name.to_string()).collect();
        assert_eq!(held, names(|b| matches!(b, Body::Policy(_))));
        self.check(run);
    }
}

/// Everybody who could connect, and somebody without an identity.
fn peers() -> impl Iterator<Item = Option<String>> {
    NAMESPACES.iter().flat_map(|ns| ACCOUNTS.iter().map(|sa| Some(principal(ns, sa)))).chain([None])
}

fn show(resolved: &Resolved) -> String {
    match resolved {
        Resolved::Workload { workload: w, address, .. } => {
            format!("{} as {} at {address}", w.uid, w.identity().unwrap())
        }
        Resolved::Outside(address) => format!("outside at {address}"),
        Resolved::Unreachable(Unreachable::NoEndpoint(_)) => "no endpoint".to_owned(),
        Resolved::Unreachable(Unreachable::NoPort(..)) => "no port".to_owned(),
        Resolved::Unreachable(Unreachable::NotVisible(_)) => "not visible".to_owned(),
        Resolved::Unreachable(Unreachable::Refused(_)) => "refused".to_owned(),
        Resolved::Unreachable(Unreachable::NoWaypoint(_)) => "no waypoint".to_owned(),
        Resolved::Waypoint { proxy, address, .. } => format!("through {} at {address}", proxy.uid),
    }
}

#[test]
fn the_mesh_says_what_was_delivered_and_ends_with_the_truth() {
    simulate(|run| {
        let mut world = World::new();
        for _ in 0..STEPS {
            world.step(run);
        }
        world.settle(run);
        // And once more for one that comes back after it had everything.
        run.note("the stream breaks".to_owned());
        world.connect();
        world.settle(run);
    });
}
