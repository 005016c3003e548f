//! What is malformed, or newer than this program: rejected by name, or read the careful way.

use crate::feed::{Feed as _, SERVICE, bytes, deliver, mesh, port, service, workload};
use prost::Message as _;
use xds::{
    ADDRESS_TYPE,
    client::{Apply as _, Delivered},
    proto::workload as pb,
};

#[test]
fn workloads_that_cannot_be_taken_are_named_and_the_version_before_stays() {
    let w = || workload("a", "10.0.0.1");
    let services = |name: &str, p| [(name.to_owned(), pb::PortList { ports: vec![p] })].into();
    let cases = [
        (pb::Workload { addresses: vec![vec![1, 2, 3].into()], ..w() }, "3 bytes"),
        (pb::Workload { tunnel_protocol: 99, ..w() }, "unknown value 99"),
        (pb::Workload { services: services("no-slash", port(80, 80)), ..w() }, "no-slash"),
        (pb::Workload { services: services("ns/h", port(0, 80)), ..w() }, "0 is not a port"),
        (pb::Workload { services: services("ns/h", port(80, 70_000)), ..w() }, "70000"),
        (pb::Workload { authorization_policies: vec!["p".into()], ..w() }, "namespace/hostname"),
        (pb::Workload { service_account: "a/b".into(), ..w() }, "service_account"),
        (pb::Workload { trust_domain: "UPPER".into(), ..w() }, "trust domain"),
    ];
    for (bad, why) in cases {
        let m = mesh();
        m.put(w());
        let rejected = m.try_put(bad);
        assert_eq!(rejected.len(), 1, "{why}");
        assert_eq!(rejected[0].name, "a");
        assert!(rejected[0].reason.contains(why), "{}", rejected[0].reason);
        assert_eq!(m.reach("10.0.0.1:1"), ["a 10.0.0.1:1"], "{why}");
    }
}

/// Nobody knows how to reach it, and in plaintext it must not be.
#[test]
fn a_workload_that_was_never_taken_is_not_outside_the_mesh() {
    let m = mesh();
    let bad = || pb::Workload { tunnel_protocol: 99, ..workload("a", "10.0.0.1") };
    assert_eq!(m.try_put(bad()).len(), 1);
    assert!(m.reach("10.0.0.1:1")[0].contains("was refused"));
    m.put(workload("a", "10.0.0.1"));
    assert_eq!(m.reach("10.0.0.1:1"), ["a 10.0.0.1:1"]);
    m.remove("a");
    assert_eq!(m.try_put(bad()).len(), 1);
    m.remove("a");
    assert_eq!(m.reach("10.0.0.1:1"), ["outside 10.0.0.1:1"]);
}

#[test]
fn a_service_that_was_never_taken_is_not_outside_the_mesh() {
    let m = mesh();
    let lb = pb::LoadBalancing { mode: 42, ..Default::default() };
    let bad = || pb::Service { load_balancing: Some(lb.clone()), ..service() };
    m.put(workload("a", "10.0.0.1"));
    assert_eq!(m.try_put(bad()).len(), 1);
    assert!(m.reach("10.96.0.1:80")[0].contains("was refused"));
    m.put(service());
    assert_eq!(m.reach("10.96.0.1:80"), ["a 10.0.0.1:8080"]);
    assert_eq!(m.try_put(bad()).len(), 1);
    assert_eq!(m.reach("10.96.0.1:80"), ["a 10.0.0.1:8080"], "the version before stays");
    m.remove(SERVICE);
    assert_eq!(m.reach("10.96.0.1:80"), ["outside 10.96.0.1:80"]);
}

#[test]
fn services_that_cannot_be_taken_are_named() {
    let balanced = |lb| pb::Service { load_balancing: Some(lb), ..service() };
    let cases = [
        (pb::Service { ports: vec![port(65_536, 1)], ..service() }, "65536"),
        (balanced(pb::LoadBalancing { mode: 42, ..Default::default() }), "unknown mode 42"),
        (
            balanced(pb::LoadBalancing { routing_preference: vec![42], ..Default::default() }),
            "unknown scope 42",
        ),
        (pb::Service { namespace: "a/b".into(), ..service() }, "slash"),
        (pb::Service { hostname: String::new(), ..service() }, "must not be empty"),
    ];
    for (bad, why) in cases {
        let m = mesh();
        let rejected = m.try_put(bad);
        assert_eq!(rejected.len(), 1, "{why}");
        assert!(rejected[0].reason.contains(why), "{}", rejected[0].reason);
        assert!(m.services().is_empty());
    }
}

#[test]
fn a_visibility_from_the_future_is_not_public() {
    let m = mesh();
    m.put(workload("a", "10.0.0.1"));
    m.put(pb::Service { visibility: 9, ..service() });
    assert_eq!(m.reach("10.96.0.1:80"), ["not visible"]);
}

#[test]
fn a_bad_one_among_good_ones_is_alone_in_being_rejected() {
    let m = mesh();
    let body = |w: pb::Workload| {
        let address = pb::Address { r#type: Some(pb::address::Type::Workload(w)) };
        address.encode_to_vec()
    };
    let mut all: Vec<_> = (0..600_u32)
        .map(|i| {
            let uid = format!("w{i}");
            let w = pb::Workload {
                addresses: vec![(0x0a00_0000 + i).to_be_bytes().to_vec().into()],
                ..workload(&uid, "10.0.0.1")
            };
            (uid, body(w))
        })
        .collect();
    all.push(("truncated".to_owned(), vec![0x0a, 0xff]));
    all.push(("empty".to_owned(), Vec::new()));
    all.push(("misnamed".to_owned(), body(workload("other", "10.9.9.9"))));
    let all: Vec<_> = all.iter().map(|(name, body)| (name.as_str(), body.clone())).collect();
    let rejected: Vec<String> =
        deliver(&m, ADDRESS_TYPE, &all, &[]).into_iter().map(|r| r.name).collect();
    assert_eq!(rejected, ["truncated", "empty", "misnamed"]);
    assert_eq!(m.workloads().len(), 600);
    assert!(m.workload("other").is_none());
}

#[test]
fn of_what_comes_twice_the_last_counts() {
    let m = mesh();
    let body = |ip: &str| {
        let w = pb::Workload { addresses: vec![bytes(ip)], ..workload("a", ip) };
        let address = pb::Address { r#type: Some(pb::address::Type::Workload(w)) };
        ("a", address.encode_to_vec())
    };
    let twice = [body("10.0.0.1"), body("10.0.0.2")];
    assert_eq!(deliver(&m, ADDRESS_TYPE, &twice, &["a"]), []);
    assert_eq!(m.reach("10.0.0.1:1"), ["outside 10.0.0.1:1"]);
    assert_eq!(m.reach("10.0.0.2:1"), ["a 10.0.0.2:1"]);
}

#[test]
fn a_version_is_that_of_what_is_held() {
    let m = mesh();
    let w = pb::Address { r#type: Some(pb::address::Type::Workload(workload("a", "10.0.0.1"))) };
    let w = w.encode_to_vec();
    let take =
        |version, body| m.apply(ADDRESS_TYPE, &[Delivered { name: "a", version, body }], &[]).len();
    let held = || m.versions(ADDRESS_TYPE).into_values().collect::<Vec<_>>();
    assert_eq!(take("1", b"bad"), 1);
    assert!(held().is_empty());
    assert_eq!(take("2", &w), 0);
    assert_eq!(take("3", b"bad"), 1);
    assert_eq!(held(), ["2"], "the version before stays");
    let hash = "00000000000000ab";
    assert_eq!(take(hash, &w), 0);
    assert_eq!(held(), [hash]);
    m.remove("a");
    assert!(held().is_empty());
}

#[test]
fn types_that_nobody_knows_change_nothing() {
    let m = mesh();
    let rejected = deliver(&m, "type.googleapis.com/x", &[("a", vec![1])], &[]);
    assert_eq!(rejected, []);
    assert!(m.workloads().is_empty());
}

/// One name, first of a workload and then of a service: removed, it is neither.
#[test]
fn a_name_of_two_kinds_is_removed_whole() {
    let m = mesh();
    m.put(workload("ns/reviews.ns.svc", "10.0.0.1"));
    m.put(service());
    m.remove("ns/reviews.ns.svc");
    assert!(m.workloads().is_empty() && m.services().is_empty());
    assert_eq!(m.reach("10.96.0.1:80"), ["outside 10.96.0.1:80"]);
}
