//! A policy that a workload names and that has not arrived. The control plane sends both at the same time, so the
//! state between is made by hand here: the two types of resource come on their own.
#![allow(clippy::unwrap_used)]

use mesh::{Local, Mesh};
use policy::{Decision, Request, Verdict};
use prost::Message;
use xds::client::{Apply, Delivered};
use xds::proto::{security, workload};

const UID: &str = "Kubernetes//Pod/default/server";

fn deliver(mesh: &Mesh, type_url: &str, name: &str, message: &impl Message) {
    let body = message.encode_to_vec();
    let one = Delivered { name, version: "1", body: &body };
    assert!(mesh.apply(type_url, &[one], &[]).is_empty());
}

fn deliver_workload(mesh: &Mesh) {
    let record = workload::Workload {
        uid: UID.to_owned(),
        name: "server".to_owned(),
        namespace: "default".to_owned(),
        addresses: vec![vec![10, 10, 1, 2].into()],
        authorization_policies: vec!["default/late".to_owned()],
        ..Default::default()
    };
    let address = workload::Address { r#type: Some(workload::address::Type::Workload(record)) };
    deliver(mesh, xds::ADDRESS_TYPE, UID, &address);
}

fn deliver_policy(mesh: &Mesh) {
    let policy = security::Authorization {
        name: "late".to_owned(),
        namespace: "default".to_owned(),
        scope: security::Scope::WorkloadSelector.into(),
        action: security::Action::Allow.into(),
        rules: vec![security::Rule::default()],
        ..Default::default()
    };
    deliver(mesh, xds::AUTHORIZATION_TYPE, "default/late", &policy);
}

fn judge(mesh: &Mesh) -> Verdict {
    let request = Request {
        peer: None,
        source: "10.10.2.2:40000".parse().unwrap(),
        destination: "10.10.1.2:8080".parse().unwrap(),
        trust_domains: [std::sync::Arc::from("cluster.local")].into(),
    };
    mesh.policies_for(&mesh.workload(UID).unwrap()).evaluate(&request)
}

#[test]
fn a_policy_that_is_named_and_not_known_denies_until_it_arrives() {
    let mesh = Mesh::new(Local::default());
    deliver_workload(&mesh);
    let verdict = judge(&mesh);
    assert!(!verdict.allowed);
    assert!(
        matches!(&verdict.decision, Decision::Unknown { policy } if policy.to_string() == "default/late")
    );
    assert!(verdict.decision.to_string().contains("default/late"), "{}", verdict.decision);
    deliver_policy(&mesh);
    assert!(judge(&mesh).allowed);
    // Taken back while it is still named: denied again.
    mesh.apply(xds::AUTHORIZATION_TYPE, &[], &["default/late".to_owned()]);
    assert!(!judge(&mesh).allowed);
}
