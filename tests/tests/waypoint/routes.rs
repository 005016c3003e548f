//! VirtualService and DestinationRule.

use crate::scene::{PORT, Scene};
use culvert_tests::Ask;

#[test]
fn requests_go_through_the_waypoint_and_by_its_routes() {
    let s = Scene::new("wp-routes");
    // Without any rule: to all endpoints.
    let ask = Ask::get(&s.url("/"));
    let mut by = s.answered_by(&ask, 20);
    by.sort();
    by.dedup();
    assert_eq!(by, ["reviews-v1", "reviews-v2"]);
    let log = s.waypoint.access_log();
    assert_eq!(log[0]["downstream_peer"], s.client.identity());

    s.subsets();
    s.apply(
        "VirtualService",
        "reviews",
        "{ hosts: [reviews], http: [\
         { match: [{ headers: { end-user: { exact: jason } } }], \
           route: [{ destination: { host: reviews, subset: v2 } }] }, \
         { match: [{ uri: { prefix: /half } }], rewrite: { uri: /whole }, route: [\
           { destination: { host: reviews, subset: v1 }, weight: 75 }, \
           { destination: { host: reviews, subset: v2 }, weight: 25 }] }, \
         { match: [{ uri: { exact: /gone } }], redirect: { uri: /here, authority: other.example } }, \
         { match: [{ uri: { exact: /direct } }], directResponse: { status: 418, body: { string: teapot } } }, \
         { route: [{ destination: { host: reviews, subset: v1 }, \
             headers: { response: { set: { x-set: by-destination } } } }], \
           headers: { request: { set: { x-added: yes }, remove: [x-removed] } } }] }",
    );
    let plain = ask.clone().header("x-removed: 1");
    let answer = s.until(&plain, |a| a.headers["x-set"] == "by-destination");
    assert!(s.answered_by(&ask, 10).iter().all(|by| by == "reviews-v1"));
    assert_eq!(answer.asked()["headers"]["x-added"], "yes");
    assert!(answer.asked()["headers"]["x-removed"].is_null());
    assert_eq!(answer.asked()["headers"]["host"], format!("reviews:{PORT}"));

    let jason = ask.clone().header("end-user: jason");
    assert!(s.answered_by(&jason, 10).iter().all(|by| by == "reviews-v2"));

    let half = s.answered_by(&Ask::get(&s.url("/half/x?a=b")), 40);
    assert_eq!(half.iter().filter(|by| *by == "reviews-v2").count(), 10);
    assert_eq!(s.get("/half/x?a=b").asked()["path"], "/whole/x?a=b");

    let gone = s.get("/gone");
    assert_eq!(
        (gone.status, &gone.headers["location"]),
        (301, &"http://other.example/here".into())
    );
    let direct = s.get("/direct");
    assert_eq!((direct.status, direct.body.as_str()), (418, "teapot"));

    // HTTP/2 from the client, HTTP/1 to the application, and a body both ways.
    let post = Ask::get(&s.url("/")).http2().method("POST").body("hello");
    let answer = s.ask(&post);
    assert_eq!(answer.asked()["body"], "hello");
    assert_eq!(answer.asked()["version"], "HTTP/1.1");
}
