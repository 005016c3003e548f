//! Where a connection goes.

use crate::feed::{
    Feed as _, SERVICE, VIP, address, at, bytes, mesh, port, service, show, source, workload,
};
use mesh::{Local, Mesh, Resolved};
use xds::proto::workload::{
    self as pb,
    load_balancing::{HealthPolicy, Mode, Scope},
};

fn balanced(mode: Mode, scopes: &[Scope]) -> pb::Service {
    let load_balancing = pb::LoadBalancing {
        routing_preference: scopes.iter().map(|s| *s as i32).collect(),
        mode: mode as i32,
        ..Default::default()
    };
    pb::Service { load_balancing: Some(load_balancing), ..service() }
}

fn placed(uid: &str, ip: &str, node: &str, zone: &str) -> pb::Workload {
    let (region, zone) = zone.split_once('/').unwrap();
    pb::Workload {
        node: node.to_owned(),
        locality: Some(pb::Locality {
            region: region.to_owned(),
            zone: zone.to_owned(),
            subzone: String::new(),
        }),
        ..workload(uid, ip)
    }
}

const TO: &str = "10.96.0.1:80";

#[test]
fn a_virtual_address_leads_to_an_endpoint() {
    let m = mesh();
    m.put(workload("a", "10.0.0.1"));
    m.put(service());
    m.put(workload("b", "10.0.0.2"));
    assert_eq!(m.reach(TO), ["a 10.0.0.1:8080", "b 10.0.0.2:8080"]);
    assert_eq!(m.reach("10.96.0.1:81"), ["no port"]);
    match m.ask(TO) {
        Resolved::Workload { workload, service, .. } => {
            assert!(workload.hbone);
            assert_eq!(service.unwrap().key.to_string(), SERVICE);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_workloads_own_address_leads_to_it_at_the_port_asked_for() {
    let m = mesh();
    m.put(workload("a", "10.0.0.1"));
    assert_eq!(m.reach("10.0.0.1:1234"), ["a 10.0.0.1:1234"]);
    assert_eq!(m.reach("10.0.0.2:1234"), ["outside 10.0.0.2:1234"]);
    assert!(m.workload_at("", "10.0.0.1".parse().unwrap()).is_some());
}

#[test]
fn families_are_kept_where_the_endpoint_has_both() {
    let m = mesh();
    m.put(pb::Service {
        addresses: vec![address("", VIP), address("", "fd00:96::1")],
        ..service()
    });
    m.put(pb::Workload {
        addresses: vec![bytes("10.0.0.1"), bytes("fd00::1")],
        ..workload("dual", "10.0.0.1")
    });
    assert_eq!(m.reach(TO), ["dual 10.0.0.1:8080"]);
    assert_eq!(m.reach("[fd00:96::1]:80"), ["dual [fd00::1]:8080"]);
    m.remove("dual");
    m.put(workload("four", "10.0.0.4"));
    assert_eq!(m.reach("[fd00:96::1]:80"), ["four 10.0.0.4:8080"], "the other is better than none");
}

#[test]
fn mapped_addresses_are_the_ipv4_that_they_map() {
    let m = mesh();
    m.put(pb::Service { addresses: vec![address("", "::ffff:10.96.0.1")], ..service() });
    m.put(workload("a", "::ffff:10.0.0.1"));
    for to in [TO, "[::ffff:10.96.0.1]:80"] {
        assert_eq!(m.reach(to), ["a 10.0.0.1:8080"]);
    }
    for to in ["10.0.0.1:9", "[::ffff:10.0.0.1]:9"] {
        assert_eq!(m.reach(to), ["a 10.0.0.1:9"]);
    }
    assert!(m.workload_at("", "::ffff:10.0.0.1".parse().unwrap()).is_some());
    assert_eq!(m.reach("[::ffff:10.0.0.9]:9"), ["outside 10.0.0.9:9"]);
}

#[test]
fn the_workload_decides_its_target_port_then_the_service() {
    let m = mesh();
    m.put(pb::Service {
        ports: vec![port(80, 8080), port(81, 0), port(82, 8082), port(83, 8083)],
        ..service()
    });
    let ports = pb::PortList { ports: vec![port(80, 9080), port(81, 0), port(82, 0)] };
    m.put(pb::Workload {
        services: [(SERVICE.to_owned(), ports)].into(),
        ..workload("a", "10.0.0.1")
    });
    assert_eq!(m.reach("10.96.0.1:80"), ["a 10.0.0.1:9080"]);
    assert_eq!(m.reach("10.96.0.1:81"), ["a 10.0.0.1:81"]);
    assert_eq!(m.reach("10.96.0.1:82"), ["a 10.0.0.1:8082"]);
    assert_eq!(m.reach("10.96.0.1:83"), ["no endpoint"], "the workload does not serve it");
}

#[test]
fn only_endpoints_that_serve_the_port_are_chosen() {
    let m = mesh();
    m.put(pb::Service { ports: vec![port(80, 8080), port(81, 8081)], ..service() });
    m.put(workload("a", "10.0.0.1"));
    let ports = pb::PortList { ports: vec![port(81, 8081)] };
    m.put(pb::Workload {
        services: [(SERVICE.to_owned(), ports)].into(),
        ..workload("b", "10.0.0.2")
    });
    assert_eq!(m.reach("10.96.0.1:80"), ["a 10.0.0.1:8080"]);
    assert_eq!(m.reach("10.96.0.1:81"), ["b 10.0.0.2:8081"]);
}

#[test]
fn an_endpoint_without_an_address_is_not_chosen() {
    let m = mesh();
    m.put(service());
    for i in 0..8 {
        m.put(pb::Workload { addresses: Vec::new(), ..workload(&format!("dns{i}"), VIP) });
    }
    assert_eq!(m.reach(TO), ["no endpoint"]);
    m.put(workload("a", "10.0.0.1"));
    assert_eq!(m.reach(TO), ["a 10.0.0.1:8080"]);
}

#[test]
fn unhealthy_endpoints_serve_only_where_the_service_says_so() {
    let m = mesh();
    let unhealthy = |uid, ip| pb::Workload {
        status: pb::WorkloadStatus::Unhealthy as i32,
        ..workload(uid, ip)
    };
    let all =
        pb::LoadBalancing { health_policy: HealthPolicy::AllowAll as i32, ..Default::default() };
    m.put(service());
    m.put(workload("a", "10.0.0.1"));
    m.put(unhealthy("b", "10.0.0.2"));
    assert_eq!(m.reach(TO), ["a 10.0.0.1:8080"]);
    assert_eq!(m.services()[0].1, (1, 2), "healthy, known");
    m.put(pb::Service { load_balancing: Some(all), ..service() });
    assert_eq!(m.reach(TO), ["a 10.0.0.1:8080", "b 10.0.0.2:8080"]);
    m.put(service());
    m.put(unhealthy("a", "10.0.0.1"));
    assert_eq!(m.reach(TO), ["no endpoint"]);
    m.put(workload("b", "10.0.0.2"));
    assert_eq!(m.reach(TO), ["b 10.0.0.2:8080"]);
    m.remove("a");
    assert_eq!(m.services()[0].1, (1, 1));
}

#[test]
fn failover_takes_the_nearest_and_goes_on_to_the_next() {
    let m = mesh();
    m.put(placed("local", "10.0.0.9", "here", "r1/z1"));
    m.put(balanced(Mode::Failover, &[Scope::Region, Scope::Zone, Scope::Node]));
    m.remove("local");
    m.put(placed("far", "10.0.0.1", "n1", "r2/z1"));
    assert_eq!(m.reach(TO), ["far 10.0.0.1:8080"]);
    m.put(placed("region", "10.0.0.2", "n2", "r1/z2"));
    assert_eq!(m.reach(TO), ["region 10.0.0.2:8080"]);
    m.put(placed("zone", "10.0.0.3", "n3", "r1/z1"));
    m.put(placed("zone2", "10.0.0.4", "n4", "r1/z1"));
    assert_eq!(m.reach(TO), ["zone 10.0.0.3:8080", "zone2 10.0.0.4:8080"]);
    m.put(placed("node", "10.0.0.5", "here", "r1/z1"));
    assert_eq!(m.reach(TO), ["node 10.0.0.5:8080"]);
    let ill = pb::WorkloadStatus::Unhealthy as i32;
    m.put(pb::Workload { status: ill, ..placed("node", "10.0.0.5", "here", "r1/z1") });
    m.remove("zone");
    m.remove("zone2");
    assert_eq!(m.reach(TO), ["region 10.0.0.2:8080"]);
    m.remove("region");
    assert_eq!(m.reach(TO), ["far 10.0.0.1:8080"]);
}

#[test]
fn scopes_count_in_the_order_given() {
    let m = mesh();
    m.put(balanced(Mode::Failover, &[Scope::Cluster, Scope::Node]));
    let cluster = |w: pb::Workload, c: &str| pb::Workload { cluster_id: c.to_owned(), ..w };
    // The node alone does not count where the cluster before it does not match.
    m.put(cluster(placed("node", "10.0.0.1", "here", "r/z"), "c2"));
    m.put(cluster(placed("cluster", "10.0.0.2", "n2", "r/z"), "c1"));
    assert_eq!(m.reach(TO), ["cluster 10.0.0.2:8080"]);
}

#[test]
fn strict_takes_what_matches_everything_or_nothing() {
    let m = mesh();
    m.put(balanced(Mode::Strict, &[Scope::Node]));
    m.put(placed("other", "10.0.0.1", "there", "r/z"));
    assert_eq!(m.reach(TO), ["no endpoint"]);
    m.put(placed("own", "10.0.0.2", "here", "r/z"));
    assert_eq!(m.reach(TO), ["own 10.0.0.2:8080"]);
    // Preferences may change while endpoints stay.
    m.put(service());
    assert_eq!(m.reach(TO), ["other 10.0.0.1:8080", "own 10.0.0.2:8080"]);
    m.put(balanced(Mode::Strict, &[Scope::Node]));
    m.remove("own");
    assert_eq!(m.reach(TO), ["no endpoint"]);
}

#[test]
fn this_nodes_locality_may_be_learned_later() {
    let m = mesh();
    m.put(balanced(Mode::Failover, &[Scope::Region, Scope::Zone]));
    m.put(placed("near", "10.0.0.1", "n1", "r1/z1"));
    m.put(placed("far", "10.0.0.2", "n2", "r2/z1"));
    assert_eq!(m.reach(TO).len(), 2, "nothing is nearer while this node is nowhere");
    let local = pb::Workload {
        services: Default::default(),
        ..placed("local", "10.0.0.9", "here", "r1/z1")
    };
    m.put(local);
    assert_eq!(m.reach(TO), ["near 10.0.0.1:8080"]);
}

#[test]
fn a_node_without_a_name_is_nobodys() {
    let m = Mesh::new(Local::default());
    m.put(balanced(Mode::Strict, &[Scope::Node]));
    m.put(workload("a", "10.0.0.1"));
    assert_eq!(m.reach(TO), ["no endpoint"]);
}

#[test]
fn passthrough_goes_to_the_address_asked_for() {
    let m = mesh();
    m.put(balanced(Mode::Passthrough, &[]));
    m.put(workload("a", "10.0.0.1"));
    assert_eq!(m.reach(TO), ["outside 10.96.0.1:80"]);
}

#[test]
fn what_passes_through_stands_before_nobody() {
    let m = mesh();
    m.put(workload("a", "10.0.0.1"));
    m.put(service());
    let through = pb::Service {
        hostname: "through.example".to_owned(),
        addresses: vec![address("", VIP), address("", "10.0.0.1")],
        ..balanced(Mode::Passthrough, &[])
    };
    m.put(through.clone());
    assert_eq!(m.reach(TO), ["a 10.0.0.1:8080"]);
    assert_eq!(m.reach("10.0.0.1:9090"), ["a 10.0.0.1:9090"]);
    // It ceases to pass through, and begins again.
    m.put(pb::Service { load_balancing: None, ..through.clone() });
    assert_eq!(m.reach("10.0.0.1:80"), ["no endpoint"]);
    m.put(through);
    assert_eq!(m.reach(TO), ["a 10.0.0.1:8080"]);
    assert_eq!(m.reach("10.0.0.1:9090"), ["a 10.0.0.1:9090"]);
}

#[test]
fn a_private_service_stands_in_nobody_elses_way() {
    let m = mesh();
    let private = pb::Service {
        visibility: pb::Visibility::Namespace as i32,
        addresses: vec![address("", "10.0.0.1"), address("", "10.96.0.9")],
        ..service()
    };
    m.put(workload("a", "10.0.0.1"));
    m.put(private.clone());
    assert_eq!(m.reach("10.0.0.1:80"), ["a 10.0.0.1:80"]);
    assert_eq!(m.reach("10.96.0.9:80"), ["not visible"]);
    // Public from now on, and gone again.
    m.put(pb::Service { visibility: 0, ..private.clone() });
    assert_eq!(m.reach("10.0.0.1:80"), ["a 10.0.0.1:8080"]);
    m.put(private);
    assert_eq!(m.reach("10.0.0.1:80"), ["a 10.0.0.1:80"]);
}

#[test]
fn a_private_service_is_for_its_own_namespace() {
    let m = mesh();
    m.put(workload("a", "10.0.0.1"));
    m.put(pb::Service { visibility: pb::Visibility::Namespace as i32, ..service() });
    assert_eq!(m.reach(TO), ["not visible"]);
    let own = m.resolve(&source("ns", ""), at(VIP, 80), &mut rand::rng());
    assert_eq!(show(&own), "a 10.0.0.1:8080");
    m.put(service());
    assert_eq!(m.reach(TO), ["a 10.0.0.1:8080"]);
}

#[test]
fn networks_have_addresses_of_their_own() {
    let m = mesh();
    m.put(workload("a", "10.0.0.1"));
    m.put(pb::Workload { network: "other".to_owned(), ..workload("b", "10.0.0.1") });
    assert_eq!(m.reach("10.0.0.1:1"), ["a 10.0.0.1:1"]);
    let there = m.resolve(&source("ns", "other"), at("10.0.0.1", 1), &mut rand::rng());
    assert_eq!(show(&there), "b 10.0.0.1:1");
    let nowhere = m.resolve(&source("ns", "third"), at("10.0.0.1", 1), &mut rand::rng());
    assert_eq!(show(&nowhere), "outside 10.0.0.1:1");
}

#[test]
fn addresses_of_a_node_name_no_workload() {
    let m = mesh();
    m.put(service());
    m.put(pb::Workload {
        network_mode: pb::NetworkMode::HostNetwork as i32,
        ..workload("a", "192.168.0.1")
    });
    assert_eq!(m.reach("192.168.0.1:22"), ["outside 192.168.0.1:22"]);
    assert_eq!(m.reach(TO), ["a 192.168.0.1:8080"], "but it is an endpoint like any other");
}

#[test]
fn removed_is_removed() {
    let m = mesh();
    m.put(service());
    m.put(workload("a", "10.0.0.1"));
    m.put(workload("b", "10.0.0.2"));
    m.remove("a");
    assert_eq!(m.reach(TO), ["b 10.0.0.2:8080"]);
    assert_eq!(m.reach("10.0.0.1:80"), ["outside 10.0.0.1:80"]);
    m.remove("a");
    m.remove("never/known");
    m.remove("b");
    assert_eq!(m.reach(TO), ["no endpoint"]);
    m.remove(SERVICE);
    assert_eq!(m.reach(TO), ["outside 10.96.0.1:80"]);
    // Endpoints outlive their service, for when it comes back.
    m.put(workload("a", "10.0.0.1"));
    m.put(service());
    assert_eq!(m.reach(TO), ["a 10.0.0.1:8080"]);
}

#[test]
fn an_update_takes_the_place_of_what_was() {
    let m = mesh();
    m.put(service());
    m.put(workload("a", "10.0.0.1"));
    m.put(workload("a", "10.0.0.2"));
    assert_eq!(m.reach(TO), ["a 10.0.0.2:8080"]);
    assert_eq!(m.reach("10.0.0.1:80"), ["outside 10.0.0.1:80"]);
    m.put(pb::Workload { services: Default::default(), ..workload("a", "10.0.0.2") });
    assert_eq!(m.reach(TO), ["no endpoint"]);
    m.put(pb::Service { addresses: vec![address("", "10.96.0.2")], ..service() });
    assert_eq!(m.reach(TO), ["outside 10.96.0.1:80"]);
    assert_eq!(m.reach("10.96.0.2:80"), ["no endpoint"]);
}

/// A pod's address goes to another before, or after, the first is reported gone.
#[test]
fn an_address_may_change_hands_in_either_order() {
    for gone_first in [true, false] {
        let m = mesh();
        m.put(workload("old", "10.0.0.1"));
        if gone_first {
            m.remove("old");
        }
        m.put(workload("new", "10.0.0.1"));
        assert_eq!(m.reach("10.0.0.1:80"), ["new 10.0.0.1:80"]);
        // News of the old one does not take the address back.
        if !gone_first {
            m.put(pb::Workload {
                status: pb::WorkloadStatus::Unhealthy as i32,
                ..workload("old", "10.0.0.1")
            });
            assert_eq!(m.reach("10.0.0.1:80"), ["new 10.0.0.1:80"]);
            m.remove("old");
        }
        assert_eq!(m.reach("10.0.0.1:80"), ["new 10.0.0.1:80"]);
        m.remove("new");
        assert_eq!(m.reach("10.0.0.1:80"), ["outside 10.0.0.1:80"]);
    }
}

/// Two that swap addresses, whichever is heard of first.
#[test]
fn addresses_may_be_swapped() {
    let m = mesh();
    m.put(workload("a", "10.0.0.1"));
    m.put(workload("b", "10.0.0.2"));
    m.put(workload("a", "10.0.0.2"));
    m.put(workload("b", "10.0.0.1"));
    assert_eq!(m.reach("10.0.0.1:1"), ["b 10.0.0.1:1"]);
    assert_eq!(m.reach("10.0.0.2:1"), ["a 10.0.0.2:1"]);
}

/// An address that one of two gives up is the other's, and not an address outside the mesh, to
/// which a connection would go in plaintext.
#[test]
fn an_address_that_two_had_stays_with_the_one_that_is_left() {
    let m = mesh();
    m.put(workload("first", "10.0.0.1"));
    m.put(workload("second", "10.0.0.1"));
    m.put(workload("second", "10.0.0.2"));
    assert_eq!(m.reach("10.0.0.1:1"), ["first 10.0.0.1:1"]);
    let other = pb::Service { hostname: "other.ns.svc".to_owned(), ..service() };
    m.put(service());
    m.put(other);
    m.remove("ns/other.ns.svc");
    assert_eq!(m.reach(TO).len(), 2, "the service that is left has the address");
}

#[test]
fn pods_of_one_deployment_share_what_they_have_in_common() {
    let m = mesh();
    let pod = |uid: &str, name: &str, ip: &str| pb::Workload {
        name: name.to_owned(),
        addresses: vec![bytes(ip)],
        namespace: "ns".to_owned(),
        workload_name: "reviews".to_owned(),
        authorization_policies: vec!["ns/p".to_owned()],
        ..workload(uid, ip)
    };
    let pods = [
        pod("c//Pod/ns/a", "a", "10.0.0.1"),
        pod("c//Pod/ns/b", "b", "10.0.0.2"),
        pod("c//Pod/ns/c", "not in its uid", "10.0.0.3"),
    ];
    for p in &pods {
        m.put(p.clone());
    }
    let held = |p: &pb::Workload| m.workload(&p.uid).unwrap();
    for p in &pods {
        let alone = mesh::workload_from_proto(p).unwrap();
        assert_eq!(*held(p), alone, "sharing changes nothing");
        assert_eq!(held(p).name(), p.name);
    }
    assert!(std::sync::Arc::ptr_eq(&held(&pods[0]).kin, &held(&pods[1]).kin));
    // What one of them becomes is its own affair.
    m.put(pb::Workload { workload_name: "ratings".to_owned(), ..pods[0].clone() });
    assert_eq!(&*held(&pods[0]).workload_name, "ratings");
    assert_eq!(&*held(&pods[1]).workload_name, "reviews");
}
