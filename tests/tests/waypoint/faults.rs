//! Faults, and copies.

use crate::scene::{PORT, Scene};
use anyhow::ensure;
use culvert_tests::{Ask, SOON};
use testbed::eventually;

const V1: &str = "route: [{ destination: { host: reviews, subset: v1 } }]";

#[test]
fn faults_are_injected_where_they_are_asked_for() {
    let s = Scene::new("wp-faults");
    s.subsets();
    s.routes(&format!(
        "{{ match: [{{ headers: {{ x-abort: {{ exact: http }} }} }}], \
            fault: {{ abort: {{ httpStatus: 418, percentage: {{ value: 100 }} }} }}, {V1} }}, \
         {{ match: [{{ headers: {{ x-abort: {{ exact: grpc }} }} }}], \
            fault: {{ abort: {{ grpcStatus: UNAVAILABLE, percentage: {{ value: 100 }} }} }}, {V1} }}, \
         {{ match: [{{ headers: {{ x-abort: {{ exact: never }} }} }}], \
            fault: {{ abort: {{ httpStatus: 500, percentage: {{ value: 0 }} }} }}, {V1} }}, \
         {{ match: [{{ uri: {{ exact: /slow }} }}], timeout: 1s, \
            fault: {{ delay: {{ fixedDelay: 2s, percentage: {{ value: 100 }} }} }}, {V1} }}, \
         {{ {V1} }}"
    ));
    let get = |abort: &str| Ask::get(&s.url("/?key=a")).header(&format!("x-abort: {abort}"));
    let http = s.ask(&get("http"));
    assert_eq!((http.status, http.body.as_str()), (418, "fault filter abort"));
    assert_eq!(s.waypoint.access_log().last().unwrap()["response_flags"], "FI");
    let grpc = get("grpc").http2().method("POST").header("content-type: application/grpc");
    let grpc = s.ask(&grpc);
    assert_eq!((grpc.status, &grpc.headers["grpc-status"]), (200, &"14".into()), "{grpc:?}");
    let plain = s.ask(&get("http").http2().method("POST").header("content-type: application/grpc"));
    assert_eq!((plain.status, plain.headers["grpc-status"].is_string()), (200, true), "{plain:?}");
    // None of them has reached anybody.
    assert_eq!(s.counts("a"), [0, 0]);
    assert_eq!(s.ask(&get("never")).status, 200);
    assert_eq!(s.counts("a"), [1, 0]);
    // A delay is no part of the time that the application has, which begins after it.
    let slow = s.get("/slow?chunks=3&every=100");
    assert_eq!((slow.status, slow.body.as_str()), (200, "chunk 0\nchunk 1\nchunk 2\n"));
    assert!(slow.took >= 2.0, "{slow:?}");
    assert!(s.get("/").took < 2.0);
    s.is_well();
}

#[test]
fn a_mirror_hears_all_and_disturbs_nobody() {
    let s = Scene::new("wp-mirror");
    s.subsets();
    let mirror = "mirror: { host: reviews, subset: v2 }, mirrorPercentage: { value: 100 }";
    s.route_to("v1", mirror);
    let post = Ask::get(&s.url("/?key=m")).method("POST").pattern(300_000);
    for answer in post.times(&s.client, 10).unwrap() {
        assert_eq!((answer.status, answer.by().as_str()), (200, "reviews-v1"));
    }
    let copied = |key: &str, times: u64| {
        eventually(SOON, || {
            let counts = s.counts(key);
            ensure!(counts == [times, times], "{counts:?}");
            Ok(())
        })
        .unwrap();
    };
    copied("m", 10);
    eventually(SOON, || {
        let seen = s.apps[1].seen(PORT, "m");
        ensure!(seen["length"] == 300_000, "{seen}");
        // Istio marks copies.
        ensure!(seen["headers"]["host"] == format!("reviews-shadow:{PORT}"), "{seen}");
        Ok(())
    })
    .unwrap();
    assert_eq!(s.ask(&Ask::get(&s.url("/?key=get"))).status, 200);
    copied("get", 1);
    // One that is slow, and one that fails.
    let slow = s.get("/?delay=20000&delaying=reviews-v2");
    assert_eq!(slow.status, 200);
    assert!(slow.took < 15.0, "{slow:?}");
    assert_eq!(s.get("/?failing=reviews-v2").status, 200);
    // One that does not read while a long body goes by.
    let long = Ask::get(&s.url("/?failing=reviews-v2&early")).method("POST").pattern(8 << 20);
    let answer = s.ask(&long);
    assert_eq!((answer.status, &answer.asked()["length"]), (200, &(8 << 20).into()));
    // One that is not there.
    s.apps[1].kill();
    let all = Ask::get(&s.url("/")).method("POST").pattern(100_000).times(&s.client, 20).unwrap();
    assert!(all.iter().all(|a| a.status == 200 && a.by() == "reviews-v1"));
    s.is_well();
}

/// What comes to the mirror is all of a request, or seen to be a part.
#[test]
fn a_mirror_never_takes_a_part_for_the_whole() {
    let s = Scene::new("wp-mirror-part");
    s.subsets();
    s.route_to("v1", "mirror: { host: reviews, subset: v2 }");
    let client = culvert_tests::dialogue::connect(&s.client, &format!("reviews:{PORT}"));
    let head = "POST /?key=part HTTP/1.1\r\nhost: reviews\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    client.write(head.as_bytes()).unwrap();
    eventually(SOON, || {
        ensure!(s.counts("part") == [1, 1]);
        Ok(())
    })
    .unwrap();
    // The client is gone before the end.
    client.reset().unwrap();
    eventually(SOON, || {
        let seen = s.apps[1].seen(PORT, "part");
        ensure!(seen["broken"] == true, "{seen}");
        Ok(())
    })
    .unwrap();
    assert_eq!(s.apps[1].seen(PORT, "part")["length"], 0);
    s.is_well();
}
