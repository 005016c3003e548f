//! Who is left out for a while, for what, and who comes back.

use crate::scene::{Scene, read_until};
use anyhow::ensure;
use culvert_tests::{Answer, Ask, SOON};
use testbed::eventually;

const ALL: &str = "{ route: [{ destination: { host: reviews } }], retries: { attempts: 0 }";

fn of_status(all: &[Answer], status: u16) -> usize {
    all.iter().filter(|a| a.status == status).count()
}

#[test]
fn errors_of_gateways_eject_for_a_time_and_others_do_not() {
    let s = Scene::new("wp-gateway-errors");
    s.destination(
        "outlierDetection: { consecutiveGatewayErrors: 3, consecutive5xxErrors: 0, \
         interval: 1s, baseEjectionTime: 5s, maxEjectionPercent: 100 }",
    );
    s.routes(&format!("{ALL} }}"));
    let both = |s: &Scene| {
        for version in ["reviews-v1", "reviews-v2"] {
            s.until(&Ask::get(&s.url("/")), |a| a.by() == version);
        }
    };
    let errors = Ask::get(&s.url("/?status=500")).times(&s.client, 30).unwrap();
    assert_eq!(of_status(&errors, 500), 30);
    assert!(!s.waypoint.log().contains("ejected"), "{}", s.waypoint.log());
    both(&s);
    // Ejected, and back when its time is over; then the same again.
    for times in 1..=2 {
        let failing = Ask::get(&s.url("/?failing=reviews-v1"));
        let ejections = || s.waypoint.log().matches("ejected: too many errors in a row").count();
        let mut failures = 0;
        while ejections() < times {
            failures += usize::from(s.ask(&failing).status == 503);
            assert!(failures <= 3, "{}", s.waypoint.log());
        }
        assert_eq!(failures, 3);
        both(&s);
    }
    s.is_well();
}

/// The near ones, while they are well; then those of another region.
#[test]
fn another_region_stands_in_while_the_own_one_fails() {
    let s = Scene::new("wp-locality");
    // The waypoint is on the second node.
    for (app, region) in s.apps.iter().zip(["away", "home"]) {
        let node = app.pod.node().name();
        s.mesh.apply(
            &format!("node-{node}"),
            &format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{ name: {node}, labels: {{ \
                 topology.kubernetes.io/region: {region}, topology.kubernetes.io/zone: a }} }}\n"
            ),
        );
    }
    let outliers = "outlierDetection: { consecutive5xxErrors: 1, interval: 1s, \
                    baseEjectionTime: 12s, maxEjectionPercent: 100 }";
    let by = || s.answered_by(&Ask::get(&s.url("/")), 20);
    let only = |pod: &str| {
        let all_by_it = || {
            let by = by();
            ensure!(by.iter().all(|by| by == pod), "{by:?}");
            Ok(())
        };
        eventually(SOON, all_by_it).unwrap();
    };
    s.destination(&format!("loadBalancer: {{ simple: ROUND_ROBIN }}, {outliers}"));
    s.routes(&format!("{ALL} }}"));
    only("reviews-v2");
    assert_eq!(s.get("/?failing=reviews-v2").status, 503);
    let while_it_fails = by();
    assert!(while_it_fails.iter().all(|by| by == "reviews-v1"), "{while_it_fails:?}");
    // Home again when its time is over; and wherever they are, where the rule does not care.
    only("reviews-v2");
    s.destination(&format!(
        "loadBalancer: {{ simple: ROUND_ROBIN, localityLbSetting: {{ enabled: false }} }}, {outliers}"
    ));
    s.routes(&format!("{ALL} }}"));
    s.until(&Ask::get(&s.url("/")), |a| a.by() == "reviews-v1");
    s.until(&Ask::get(&s.url("/")), |a| a.by() == "reviews-v2");
    s.is_well();
}

/// An endpoint that never answers is no better than one that answers with errors.
#[test]
fn an_endpoint_that_lets_the_time_run_out_is_ejected() {
    let s = Scene::new("wp-hanging");
    s.destination(
        "outlierDetection: { consecutive5xxErrors: 2, baseEjectionTime: 300s, \
         maxEjectionPercent: 100 }",
    );
    s.routes(&format!("{ALL}, timeout: 1s }}"));
    let hanging = Ask::get(&s.url("/?delay=20000&delaying=reviews-v1"));
    let all = hanging.times(&s.client, 30).unwrap();
    assert_eq!(of_status(&all, 504), 2, "{:?}", all.iter().map(|a| a.status).collect::<Vec<_>>());
    assert!(s.waypoint.log().contains("ejected"), "{}", s.waypoint.log());
    s.is_well();
}

#[test]
fn a_client_that_does_not_finish_its_request_ejects_nobody() {
    let s = Scene::new("wp-unfinished");
    s.destination(
        "outlierDetection: { consecutive5xxErrors: 1, baseEjectionTime: 300s, \
         maxEjectionPercent: 100 }",
    );
    s.routes(&format!("{ALL}, timeout: 1s }}"));
    for _ in 0..3 {
        let client = s.raw();
        let half = "POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 10\r\n\r\n12345";
        client.write(half.as_bytes()).unwrap();
        let answer = read_until(&client, "\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    }
    // Or breaks it off, in the middle and while the answer is waited for, once it is asked for.
    for (n, whole) in [false, false, true, true].into_iter().enumerate() {
        let client = s.raw();
        let key = format!("broken-{n}");
        let head = format!(
            "POST /?delay=500&key={key} HTTP/1.1\r\nhost: reviews\r\nexpect: 100-continue\r\n\
             content-length: 10\r\n\r\n"
        );
        client.write(head.as_bytes()).unwrap();
        read_until(&client, "HTTP/1.1 100 Continue\r\n\r\n");
        client.write(if whole { b"1234567890" } else { b"12345" }).unwrap();
        eventually(SOON, || {
            // It is counted when it is there whole.
            ensure!(!whole || s.counts(&key).iter().sum::<u64>() == 1, "not asked");
            Ok(())
        })
        .unwrap();
        client.reset().unwrap();
    }
    let is_told = || {
        let log = s.waypoint.access_log();
        let broken = log.iter().filter(|l| l["response_flags"] == "DC").count();
        ensure!(broken == 4, "{broken} were broken off: {log:?}");
        Ok(())
    };
    eventually(SOON, is_told).unwrap();
    assert!(!s.waypoint.log().contains("ejected"), "{}", s.waypoint.log());
    s.is_well();
}
