//! Where requests go, and how many.

use crate::scene::Scene;
use culvert_tests::{Answer, Ask};

fn refused(all: &[Answer]) -> Vec<&Answer> {
    let refused: Vec<&Answer> = all.iter().filter(|a| a.status == 503).collect();
    for a in &refused {
        assert_eq!(a.headers["x-envoy-overloaded"], "true", "{a:?}");
        assert!(a.body.contains("overflow"), "{a:?}");
    }
    assert!(all.iter().all(|a| [200, 503].contains(&a.status)), "{all:?}");
    refused
}

#[test]
fn more_than_a_destination_takes_is_refused_at_once() {
    let s = Scene::new("wp-pool");
    s.destination(
        "connectionPool: { tcp: { maxConnections: 1 }, http: { http1MaxPendingRequests: 1 } }",
    );
    s.route_to("v1", "");
    let all = Ask::get(&s.url("/?delay=1000")).at_once(&s.client, 10).unwrap();
    let refused_now = refused(&all).len();
    // One under way and one that waits, and whoever came when they were done.
    assert!((5..=8).contains(&refused_now), "{refused_now} of 10");
    assert!(all.iter().filter(|a| a.status == 503).all(|a| a.took < 1.0 || a.took < 10.0));
    let log = s.waypoint.access_log();
    assert!(log.iter().any(|l| l["response_flags"] == "UO"), "{log:?}");
    // It is given back.
    for _ in 0..5 {
        assert_eq!(s.get("/").status, 200);
    }
    let one_by_one = Ask::get(&s.url("/")).times(&s.client, 20).unwrap();
    assert!(one_by_one.iter().all(|a| a.status == 200));

    s.destination("connectionPool: { http: { http2MaxRequests: 2 } }");
    s.route_to("v1", "");
    let all = Ask::get(&s.url("/?delay=1000")).at_once(&s.client, 10).unwrap();
    assert!((5..=8).contains(&refused(&all).len()), "{all:?}");
    s.is_well();
}

/// Whoever gives up while it waits leaves its place.
#[test]
fn places_of_those_who_give_up_are_given_back() {
    let s = Scene::new("wp-places");
    s.destination(
        "connectionPool: { tcp: { maxConnections: 1 }, http: { http1MaxPendingRequests: 2 } }",
    );
    s.route_to("v1", "timeout: 0.3s");
    for _ in 0..3 {
        let all = Ask::get(&s.url("/?delay=3000")).at_once(&s.client, 3).unwrap();
        assert!(all.iter().all(|a| a.status == 504), "{all:?}");
    }
    s.until(&Ask::get(&s.url("/")), |a| a.status == 200);
    s.is_well();
}

#[test]
fn an_endpoint_that_fails_in_a_row_is_left_out() {
    let s = Scene::new("wp-outlier");
    s.destination(
        "outlierDetection: { consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 300s, \
         maxEjectionPercent: 100 }",
    );
    s.routes("{ route: [{ destination: { host: reviews } }], retries: { attempts: 0 } }");
    let all = Ask::get(&s.url("/?failing=reviews-v1")).times(&s.client, 40).unwrap();
    let failures = all.iter().filter(|a| a.status == 503).count();
    assert_eq!(failures, 3, "{:?}", all.iter().map(|a| a.status).collect::<Vec<_>>());
    assert!(s.answered_by(&Ask::get(&s.url("/")), 20).iter().all(|by| by == "reviews-v2"));
    assert!(s.waypoint.log().contains("ejected"), "{}", s.waypoint.log());
    // Connections that cannot be made count as well.
    s.destination(
        "outlierDetection: { consecutive5xxErrors: 2, baseEjectionTime: 300s, \
         maxEjectionPercent: 100 }",
    );
    s.routes("{ route: [{ destination: { host: reviews } }], retries: { attempts: 0 } }");
    s.apps[0].kill();
    let all = Ask::get(&s.url("/")).times(&s.client, 40).unwrap();
    assert!(all.iter().filter(|a| a.status == 503).count() <= 2, "{all:?}");
    s.is_well();
}

#[test]
fn what_is_nowhere_is_503_and_what_matches_nothing_404() {
    let s = Scene::new("wp-nowhere");
    s.destination("");
    s.routes(
        "{ match: [{ uri: { exact: /empty } }], route: [{ destination: { host: reviews, subset: v3 } }] }, \
         { match: [{ uri: { exact: /subset } }], route: [{ destination: { host: reviews, subset: v9 } }] }, \
         { match: [{ uri: { exact: /host } }], route: [{ destination: { host: nobody } }] }, \
         { match: [{ uri: { prefix: /ok } }], route: [{ destination: { host: reviews } }] }",
    );
    let empty = s.get("/empty");
    assert_eq!((empty.status, empty.body.as_str()), (503, "no healthy upstream"));
    assert_eq!(s.get("/subset").status, 503);
    assert_eq!(s.get("/host").status, 503);
    assert_eq!(s.get("/else").status, 404);
    assert_eq!(s.get("/ok").status, 200);
    let flags: Vec<_> =
        s.waypoint.access_log().iter().rev().take(5).map(|l| l["response_flags"].clone()).collect();
    assert_eq!(flags, ["-", "NR", "NC", "NC", "UH"]);
}

#[test]
fn weights_are_exact_and_what_is_hashed_sticks() {
    let s = Scene::new("wp-weights");
    s.destination("loadBalancer: { consistentHash: { httpHeaderName: x-user } }");
    s.routes(
        "{ match: [{ uri: { exact: /hash } }], route: [{ destination: { host: reviews } }] }, \
         { route: [{ destination: { host: reviews, subset: v1 }, weight: 75 }, \
                   { destination: { host: reviews, subset: v2 }, weight: 25 }] }",
    );
    let by = s.answered_by(&Ask::get(&s.url("/")), 100);
    assert_eq!(by.iter().filter(|by| *by == "reviews-v2").count(), 25);
    let mut both = Vec::new();
    for user in 0..20 {
        let ask = Ask::get(&s.url("/hash")).header(&format!("x-user: user-{user}"));
        // On connections of their own and on one.
        let mut by = vec![s.ask(&ask).by(), s.ask(&ask).by()];
        by.extend(s.answered_by(&ask, 5));
        by.dedup();
        assert_eq!(by.len(), 1, "user {user}: {by:?}");
        both.extend(by);
    }
    both.sort();
    both.dedup();
    assert_eq!(both.len(), 2);
}
