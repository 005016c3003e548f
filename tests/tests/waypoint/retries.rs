//! Timeouts, and attempts after the first.

use crate::scene::{PORT, Scene};
use culvert_tests::{Ask, SOON, Spec};
use serde_json::json;
use std::time::Duration;
use testbed::{ConnectOpts, eventually};

const ANY: &str = "{ route: [{ destination: { host: reviews } }], ";

#[test]
fn a_request_is_given_up_when_its_time_is_out() {
    let s = Scene::new("wp-timeout");
    s.subsets();
    s.route_to("v1", "timeout: 0.5s");
    assert_eq!(s.get("/").status, 200);
    let late = s.get("/?delay=20000");
    assert_eq!((late.status, late.body.as_str()), (504, "upstream request timeout"));
    assert!(late.took < 15.0, "{late:?}");
    let log = s.waypoint.access_log();
    assert_eq!(log.last().unwrap()["response_flags"], "UT", "{log:?}");
    // It is for the whole answer: one that has begun breaks off.
    let slow = Ask::get(&s.url("/?chunks=100&every=1000")).from(&s.client);
    let error = format!("{:#}", slow.unwrap_err());
    assert!(error.contains("reading the answer"), "{error}");
    // A try's own time, and the next try is elsewhere.
    s.routes(&format!("{ANY} retries: {{ attempts: 1, perTryTimeout: 0.5s, retryOn: 5xx }} }}"));
    for _ in 0..4 {
        let answer = s.get("/?delay=20000&delaying=reviews-v1");
        assert_eq!((answer.status, answer.by().as_str()), (200, "reviews-v2"), "{answer:?}");
    }
    let late = s.get("/?delay=20000");
    assert_eq!((late.status, late.body.as_str()), (504, "upstream request timeout"));
    s.is_well();
}

#[test]
fn what_fails_is_tried_again_as_often_as_is_said_and_elsewhere_first() {
    let s = Scene::new("wp-retries");
    s.subsets();
    s.route_to("v1", "retries: { attempts: 2, retryOn: 5xx }");
    let recovered = s.get("/?fail=2&key=two");
    assert_eq!(recovered.status, 200);
    assert_eq!(s.counts("two"), [3, 0]);
    assert_eq!(s.get("/?fail=3&key=three").status, 503);
    assert_eq!(s.counts("three"), [3, 0]);
    // What the conditions do not name stays as it is.
    assert_eq!(s.get("/?status=404&key=none").status, 404);
    assert_eq!(s.counts("none"), [1, 0]);
    s.route_to("v1", "retries: { attempts: 2, retryOn: \"gateway-error,418\" }");
    assert_eq!(s.get("/?status=500&key=500").status, 500);
    assert_eq!(s.counts("500"), [1, 0]);
    assert_eq!(s.get("/?status=418&key=418").status, 418);
    assert_eq!(s.counts("418"), [3, 0]);
    s.route_to("v1", "retries: { attempts: 0 }");
    assert_eq!(s.get("/?fail=1&key=off").status, 503);
    // Said nothing, an answer is an answer.
    s.route_to("v1", "");
    assert_eq!(s.get("/?fail=1&key=default").status, 503);
    assert_eq!(s.counts("default"), [1, 0]);
    // gRPC's statuses are conditions too.
    s.route_to("v1", "retries: { attempts: 1, retryOn: unavailable }");
    s.get("/?status=503&key=http");
    assert_eq!(s.counts("http"), [1, 0]);
    // Elsewhere first: with one more attempt, it is never the same endpoint.
    s.routes(&format!("{ANY} retries: {{ attempts: 1, retryOn: 5xx }} }}"));
    for _ in 0..10 {
        let answer = s.get("/?failing=reviews-v1");
        assert_eq!((answer.status, answer.by().as_str()), (200, "reviews-v2"));
    }
    s.is_well();
}

#[test]
fn a_body_that_was_kept_is_sent_again_whole_and_a_longer_one_is_not_sent_again() {
    let s = Scene::new("wp-bodies");
    s.subsets();
    s.route_to("v1", "retries: { attempts: 2, retryOn: 5xx }");
    let post = |path: &str, bytes: usize| Ask::get(&s.url(path)).method("POST").pattern(bytes);
    for (name, more) in [("whole", ""), ("early", "&early")] {
        let answer = s.ask(&post(&format!("/?fail=2&echo&key={name}{more}"), 10 * 1024));
        assert_eq!((answer.status, answer.length), (200, 10 * 1024), "{name}");
        assert!(answer.is_pattern, "{name}");
        assert_eq!(s.counts(name), [3, 0]);
    }
    let long = s.ask(&post("/?fail=1&key=long", 1024 * 1024));
    assert_eq!(long.status, 503);
    assert_eq!(s.counts("long"), [1, 0]);
    assert_eq!(s.apps[0].seen(PORT, "long")["length"], 1024 * 1024);
    // Trailers go with it.
    let grpc = Ask::get(&s.url("/?fail=1&key=trailers")).http2().method("POST").body("x");
    let answer = s.ask(&grpc.trailer("x-late: 1"));
    assert_eq!((answer.status, answer.asked()["body"].as_str()), (200, Some("x")));
    s.is_well();
}

/// The first attempt's connection is still there while the second sends.
#[test]
fn an_attempt_that_was_given_up_takes_nothing_from_the_next() {
    let s = Scene::new("wp-attempts");
    s.subsets();
    s.route_to("v1", "retries: { attempts: 1, retryOn: 5xx }");
    for n in 0..5 {
        let client = culvert_tests::dialogue::connect(&s.client, &format!("reviews:{PORT}"));
        let half = vec![b'a'; 30_000];
        let head = format!(
            "POST /?fail=1&early&echo&key=k{n} HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\
             content-length: 60000\r\n\r\n"
        );
        client.write(head.as_bytes()).unwrap();
        client.write(&half).unwrap();
        // The first attempt has failed without reading; the second waits for the rest.
        testbed::eventually(culvert_tests::SOON, || {
            anyhow::ensure!(s.counts(&format!("k{n}")) == [2, 0]);
            Ok(())
        })
        .unwrap();
        client.write(&half).unwrap();
        let answer = client.read_to_end().unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.1 200"), "{}", &text[..text.len().min(300)]);
        assert!(answer.len() > 60_000, "{}", answer.len());
    }
    s.is_well();
}

#[test]
fn where_an_endpoint_is_dead_another_answers() {
    let s = Scene::new("wp-dead");
    assert_eq!(s.get("/").status, 200);
    // Its pod is there, its process is not; nobody has been told.
    s.apps[0].kill();
    for answer in Ask::get(&s.url("/")).times(&s.client, 20).unwrap() {
        assert_eq!((answer.status, answer.by().as_str()), (200, "reviews-v2"));
    }
    s.subsets();
    s.route_to("v1", "");
    let dead = s.get("/");
    assert_eq!(dead.status, 503);
    assert!(dead.body.contains("connection failure"), "{dead:?}");
    assert_eq!(s.waypoint.access_log().last().unwrap()["response_flags"], "UF");
    // Without retries, somebody sees it.
    s.routes(&format!("{ANY} retries: {{ attempts: 0 }} }}"));
    let all = Ask::get(&s.url("/")).times(&s.client, 20).unwrap();
    assert!(all.iter().any(|a| a.status == 503));
    assert!(all.iter().any(|a| a.status == 200));
    let log = s.waypoint.access_log();
    let line = log.iter().find(|l| l["response_code"] == 503 && l["response_flags"] == json!("UF"));
    assert!(line.is_some(), "{log:?}");
}

/// It does not refuse: nothing at all comes back.
#[test]
fn an_endpoint_that_takes_no_connection_is_waited_for_as_long_as_is_said() {
    let s = Scene::new("wp-connect-timeout");
    let full = s.mesh.pod(2, Spec::named("full").label("istio.io/dataplane-mode", "none"));
    let at = std::net::SocketAddr::new(full.ipv4().into(), PORT);
    let listener = full.puppet().unwrap().tcp_socket(at).unwrap();
    listener.bind(at).unwrap();
    listener.listen(0).unwrap();
    // With these two its room is taken, and SYNs are dropped.
    let puppet = full.puppet().unwrap();
    let _waiting = [0, 1].map(|_| {
        let opts = ConnectOpts { timeout: Duration::from_millis(500), ..ConnectOpts::default() };
        puppet.connect(at.to_string(), opts)
    });
    s.apply(
        "DestinationRule",
        "full",
        "{ host: full, trafficPolicy: { connectionPool: { tcp: { connectTimeout: 500ms } } } }",
    );
    s.apply(
        "VirtualService",
        "full",
        "{ hosts: [full], http: [{ route: [{ destination: { host: full } }], retries: { attempts: 0 } }] }",
    );
    s.mesh.service_of("full", "http", PORT, PORT, &[&full]);
    let ask = Ask::get(&format!("http://full:{PORT}/"));
    // One that the rules were not in force for yet says ten seconds, and the next is asked.
    let told = || {
        let status = ask.from(&s.client)?.status;
        anyhow::ensure!(status == 503, "{status}");
        let log = s.waypoint.access_log();
        let why = |l: &serde_json::Value| l["response_code_details"].to_string();
        let is_it = |l: &serde_json::Value| why(l).contains("no connection within 500ms");
        anyhow::ensure!(log.iter().any(is_it), "{log:?}");
        Ok(())
    };
    eventually(SOON, told).unwrap();
    s.is_well();
}

/// A try may not take longer than all of them together.
#[test]
fn the_time_of_all_attempts_ends_one_that_has_more() {
    let s = Scene::new("wp-try-longer");
    s.routes(&format!(
        "{ANY} timeout: 1s, retries: {{ attempts: 3, perTryTimeout: 30s, retryOn: 5xx }} }}"
    ));
    let late = s.get("/?delay=20000&key=late");
    assert_eq!((late.status, late.body.as_str()), (504, "upstream request timeout"));
    assert_eq!(s.counts("late").iter().sum::<u64>(), 1);
    s.is_well();
}

/// All that fail are ejected, and asked no more; retries do not go on and on among them.
#[test]
fn retries_under_ejection_come_to_an_end() {
    let s = Scene::new("wp-storm");
    s.destination(
        "outlierDetection: { consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 300s, \
         maxEjectionPercent: 100 }",
    );
    s.routes(&format!("{ANY} retries: {{ attempts: 5, retryOn: 5xx }} }}"));
    let failing = Ask::get(&s.url("/?status=503&key=storm"));
    let all = failing.at_once(&s.client, 50).unwrap();
    assert!(all.iter().all(|a| a.status == 503), "{all:?}");
    let asked: u64 = s.counts("storm").iter().sum();
    // Whoever comes when both are ejected asks nobody.
    assert!((2..=300).contains(&asked), "{asked} of 50 with 5 more each");
    // Who is left out is asked by nobody.
    let answer = s.ask(&failing);
    assert_eq!(answer.status, 503);
    assert_eq!(s.counts("storm").iter().sum::<u64>(), asked, "{answer:?}");
    assert_eq!(s.waypoint.log().matches("ejected").count(), 2);
}

/// Without a budget `maxRetries` says how many may be under way: the rest have the answer that there is.
#[test]
fn no_more_are_tried_again_at_once_than_may_be() {
    let s = Scene::new("wp-max-retries");
    let failing = Ask::get(&s.url("/?status=503&delay=3000&key=most"));
    let asked = |more: &str| {
        s.destination(&format!("connectionPool: {{ http: {{ http2MaxRequests: 1000{more} }} }}"));
        s.routes(&format!("{ANY} retries: {{ attempts: 1, retryOn: 5xx }} }}"));
        let before: u64 = s.counts("most").iter().sum();
        let all = failing.at_once(&s.client, 10).unwrap();
        assert!(all.iter().all(|a| a.status == 503), "{all:?}");
        s.counts("most").iter().sum::<u64>() - before
    };
    assert_eq!(asked(""), 20);
    // One of ten, whose second attempt lasts until all others have been answered.
    assert_eq!(asked(", maxRetries: 1"), 11);
    s.is_well();
}
