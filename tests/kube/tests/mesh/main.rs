//! Culvert on a cluster, as its users have it: the chart is installed, a namespace is labelled, and running pods are of
//! the mesh; what is seen is what kubectl shows and what is on the wire. One cluster, and one scene after the other.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod bookinfo;
mod joining;
mod kinds_of_pods;
mod leaving;
mod load;
mod network_policy;
mod reboot;
mod upgrade;
mod waypoint;
mod world;

use std::time::Instant;

use kubebed::Cluster;
use testbed::Bed;
use world::Mesh;

#[test]
fn a_cluster_joins_by_a_label_and_is_left_as_it_was() {
    let bed = Bed::new("kube-mesh").unwrap();
    let cluster = Cluster::start(&bed, &["n1", "n2"]).unwrap();
    let mut mesh = Mesh::new(cluster);
    let mut clock = Clock(Instant::now());
    mesh.install();
    mesh.pods();
    let before = mesh.what_is_there();
    clock.tells("installed");

    // The proof that it would be found.
    let capture = mesh.link();
    mesh.gets("client", "web-2");
    let verdict = mesh.judge(capture, &mesh.addresses());
    assert!(!verdict.tokens.is_empty(), "the page crosses in the clear: {verdict}");

    mesh.join();
    let capture = mesh.link();
    mesh.traffic_goes_by_policy();
    mesh.a_pod_that_starts_is_captured_from_the_start();
    mesh.init_containers_and_jobs_are_of_the_mesh();
    mesh.probes_work_under_strict();
    clock.tells("joined");
    let enrolled = mesh.a_waypoint_routes_and_judges();
    clock.tells("through a waypoint");
    let verdict = mesh.judge(capture, &enrolled);
    assert!(verdict.is_clean() && verdict.hbone_streams > 0, "{verdict}");
    mesh.the_log_has_both_identities();
    let capture = mesh.link();
    let enrolled = mesh.bookinfo_is_served_and_routed_by_user();
    clock.tells("Bookinfo");
    let verdict = mesh.judge(capture, &enrolled);
    assert!(verdict.is_clean() && verdict.hbone_streams > 0, "{verdict}");

    mesh.pods_that_do_not_join_are_left_alone();
    mesh.a_network_policy_holds();
    clock.tells("pods of other kinds, network policy");
    mesh.an_upgrade_refuses_no_connection();
    clock.tells("upgraded");
    mesh.no_byte_is_lost_to_a_reboot(&bed);
    clock.tells("rebooted");
    mesh.everybody_leaves(&before);
    clock.tells("left");
    mesh.an_uninstallation_gives_the_nodes_back(&before);
    clock.tells("installed and uninstalled");
    mesh.cluster.check().unwrap();
    drop(mesh);
    bed.close().unwrap();
}

/// What each part takes.
struct Clock(Instant);

impl Clock {
    fn tells(&mut self, what: &str) {
        println!("{:6.1} s: {what}", self.0.elapsed().as_secs_f64());
        self.0 = Instant::now();
    }
}
