//! Who may, by what only HTTP shows; and nobody around the waypoint.

use crate::scene::{PORT, Scene};
use culvert_tests::{Ask, at, denied};

#[test]
fn the_waypoint_judges_requests_and_nobody_goes_around_it() {
    let s = Scene::new("wp-policy");
    assert_eq!(s.get("/").status, 200);
    s.mesh.write_policy(
        "default",
        "readers",
        "{ targetRefs: [{ kind: Service, group: \"\", name: reviews }], action: ALLOW, rules: [\
         { to: [{ operation: { methods: [GET], paths: [/public*, \"/files/{*}/read\"] } }] }] }",
    );
    s.until(&Ask::get(&s.url("/private")), |a| a.status == 403);
    assert_eq!(s.get("/public/x").status, 200);
    assert_eq!(s.get("/files/a/read").status, 200);
    assert_eq!(s.get("/files/a/b/read").status, 403);
    // What policy sees is what is forwarded.
    assert_eq!(s.get("/private/../public").asked()["path"], "/public");
    assert_eq!(s.get("/public/%2e%2e/private").status, 403);
    let post = Ask::get(&s.url("/public")).method("POST").body("x");
    assert_eq!(s.ask(&post).status, 403);
    // Around it, by the pod's own address.
    for app in &s.apps {
        denied(&s.client, &at(app.pod.ipv4(), PORT));
    }
}
