//! Authorization policies, from a control plane that may send anything. A policy that cannot be
//! understood must never let through what it was sent to judge.

#![no_main]

use culvert_fuzz::messages;
use libfuzzer_sys::fuzz_target;
use mesh::{Local, Mesh, Workload};
use policy::{Decision, Request};
use prost::Message as _;
use std::collections::BTreeSet;
use xds::{
    AUTHORIZATION_TYPE,
    client::{Apply as _, Delivered},
    proto::{
        security::{Authorization, Scope},
        workload as pb,
    },
};

fuzz_target!(|data: &[u8]| {
    let mesh = Mesh::new(Local::default());
    let mut names = BTreeSet::new();
    for message in messages(data) {
        let decoded = Authorization::decode(message.body).ok();
        let name = match &decoded {
            Some(a) if message.choice & 2 == 0 => format!("{}/{}", a.namespace, a.name),
            _ => "ns/other".to_owned(),
        };
        names.insert(name.clone());
        if message.choice & 1 == 1 {
            mesh.apply(AUTHORIZATION_TYPE, &[], &[name]);
            continue;
        }
        let known = |mesh: &Mesh| mesh.policies().into_iter().find(|p| p.name.to_string() == name);
        let before = known(&mesh);
        let delivered = Delivered { name: &name, version: "1", body: message.body };
        let rejected = mesh.apply(AUTHORIZATION_TYPE, &[delivered], &[]);
        if rejected.is_empty() {
            continue;
        }
        // By its scope it judges those that do not name it, too.
        let unnamed = decoded.is_none_or(|a| a.scope != Scope::WorkloadSelector as i32);
        for names in [true, false] {
            let Some(bound) = workload(&name, names) else { continue };
            let allowed = judge(&mesh, &bound);
            match &before {
                Some(before) => assert_eq!(known(&mesh).as_ref(), Some(before), "it stays"),
                None if names || unnamed => assert!(!allowed, "{name:?} lets through"),
                None => {}
            }
        }
    }
    mesh.apply(AUTHORIZATION_TYPE, &[], &Vec::from_iter(names.iter().cloned()));
    assert!(mesh.policies().is_empty(), "all were removed");
    for name in &names {
        if let Some(bound) = workload(name, true) {
            assert!(!judge(&mesh, &bound), "{name:?} is named, and gone");
        }
    }
});

/// A workload of the policy's namespace that names it, or does not.
fn workload(policy: &str, names: bool) -> Option<Workload> {
    let (namespace, _) = policy.split_once('/')?;
    mesh::workload_from_proto(&pb::Workload {
        uid: "w".into(),
        namespace: namespace.into(),
        authorization_policies: names.then(|| policy.to_owned()).into_iter().collect(),
        ..Default::default()
    })
    .ok()
}

fn judge(mesh: &Mesh, workload: &Workload) -> bool {
    let set = mesh.policies_for(workload);
    let mut allowed = false;
    for peer in [None, "spiffe://cluster.local/ns/a/sa/b".parse().ok()] {
        let request = Request {
            peer,
            source: ([10, 0, 0, 1], 40_000).into(),
            destination: ([10, 0, 0, 2], 80).into(),
            trust_domains: ["cluster.local".into()].into(),
        };
        let verdict = set.evaluate(&request);
        if let Decision::Unknown { .. } = verdict.decision {
            assert!(!verdict.allowed);
        }
        allowed |= verdict.allowed;
    }
    allowed
}
