//! How much a destination's connections carry, and what is said to whoever comes when they are full.

use crate::scene::Scene;
use culvert_tests::{Answer, Ask};
use std::collections::BTreeMap;

/// How many of the answers came by each of the application's connections.
fn by_connection(all: &[Answer]) -> BTreeMap<u64, usize> {
    let mut count = BTreeMap::new();
    for a in all {
        let connection = a.asked()["connection"].as_u64();
        *count.entry(connection.unwrap_or_else(|| panic!("{a:?}"))).or_default() += 1;
    }
    count
}

#[test]
fn a_connection_carries_as_many_requests_as_is_said() {
    let s = Scene::speaking("wp-per-connection", "");
    let http1 = Ask::get(&s.url("/"));
    let both = [http1.clone(), http1.http2()];
    for most in [3, 1] {
        s.destination(&format!(
            "connectionPool: {{ http: {{ maxRequestsPerConnection: {most} }} }}"
        ));
        s.route_to("v1", "");
        for ask in &both {
            let in_turn = by_connection(&ask.times(&s.client, 12).unwrap());
            assert!(in_turn.values().all(|n| *n <= most), "{ask:?}: {in_turn:?}");
            // One that may carry more does.
            assert!(most == 1 || in_turn.len() < 12, "{ask:?}: {in_turn:?}");
            let at_once = by_connection(&ask.at_once(&s.client, 12).unwrap());
            assert!(at_once.values().all(|n| *n <= most), "{ask:?}: {at_once:?}");
        }
    }
    s.is_well();
}

/// Applications take so many requests at a time on a connection of HTTP/2: the next goes by another.
#[test]
fn requests_beyond_what_a_connection_takes_do_not_wait_for_one_another() {
    let s = Scene::speaking("wp-many-at-once", "");
    s.destination("connectionPool: { http: { http2MaxRequests: 1000 } }");
    s.route_to("v1", "");
    let ask = Ask::get(&s.url("/?delay=3000")).http2();
    let all = ask.at_once(&s.client, 230).unwrap();
    assert!(all.iter().all(|a| a.status == 200), "{all:?}");
    let connections = by_connection(&all);
    assert!(connections.len() > 1, "{connections:?}");
    s.is_well();
}

/// What the waypoint has counted of answers with this status and these flags.
fn counted(s: &Scene, status: u16, flags: &str) -> u64 {
    let (status, flags) =
        (format!("response_code=\"{status}\""), format!("response_flags=\"{flags}\""));
    let metrics = s.waypoint.metrics();
    let of = |l: &&str| {
        l.starts_with("istio_requests_total{") && l.contains(&status) && l.contains(&flags)
    };
    metrics.lines().filter(of).map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

fn is_overflow(a: &Answer) -> bool {
    let overflow = a.headers["x-envoy-overloaded"] == "true";
    assert_eq!(overflow, a.body.contains("reset reason: overflow"), "{a:?}");
    assert!(!overflow || a.status == 503, "{a:?}");
    overflow
}

#[test]
fn requests_of_either_protocol_beyond_what_may_be_under_way_overflow() {
    let s = Scene::speaking("wp-overflow", "");
    s.destination("connectionPool: { http: { http2MaxRequests: 3 } }");
    s.route_to("v1", "");
    let mut told = 0;
    let ask = |key: &str| Ask::get(&s.url(&format!("/?delay=2000&key={key}")));
    for (key, ask) in [("h1", ask("h1")), ("h2", ask("h2").http2())] {
        let all = ask.at_once(&s.client, 12).unwrap();
        let overflown = all.iter().filter(|a| is_overflow(a)).count();
        let served = all.iter().filter(|a| a.status == 200).count();
        assert_eq!(overflown + served, 12, "{all:?}");
        assert!(overflown > 0 && served >= 3, "{all:?}");
        // What is refused has reached nobody.
        assert_eq!(s.counts(key), [served as u64, 0]);
        told += overflown as u64;
        assert_eq!(counted(&s, 503, "UO"), told);
    }
    s.is_well();
}

#[test]
fn retries_beyond_their_budget_are_not_made() {
    let s = Scene::new("wp-budget");
    // One at a time, whatever else is under way.
    s.destination("retryBudget: { percent: 0, minRetryConcurrency: 1 }");
    s.route_to("v1", "retries: { attempts: 1, retryOn: 5xx }");
    let ask = Ask::get(&s.url("/?delay=2000&status=503&key=budget"));
    let all = ask.at_once(&s.client, 10).unwrap();
    // Whoever has no room to try again has the answer that there is.
    assert!(all.iter().all(|a| a.status == 503 && a.by() == "reviews-v1"), "{all:?}");
    let [asked, 0] = *s.counts("budget") else { panic!("{:?}", s.counts("budget")) };
    assert!(asked > 10 && asked < 20, "{asked} in all");
    assert_eq!((counted(&s, 503, "UO"), counted(&s, 503, "-")), (0, 10));
    // In turn there is room for each.
    for answer in Ask::get(&s.url("/?status=503&key=turns")).times(&s.client, 5).unwrap() {
        assert!(!is_overflow(&answer), "{answer:?}");
    }
    assert_eq!(s.counts("turns"), [10, 0]);
    s.is_well();
}
