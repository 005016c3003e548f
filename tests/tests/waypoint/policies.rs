//! Who may, by what only HTTP shows; and nobody around the waypoint.

use crate::scene::{PORT, Scene};
use culvert_tests::{Ask, Kubelet, Runs, at, denied};

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
    // Around it, by the pod's own address, from within the mesh or outside it.
    let outsider = s.mesh.pod(1, "outsider");
    let kubelet = Kubelet::new();
    for app in &s.apps {
        let to = at(app.pod.ipv4(), PORT);
        denied(&s.client, &to);
        let around = Ask::get(&format!("http://{to}/")).from(&outsider);
        assert!(around.is_err(), "{around:?}");
        // The kubelet's probes are no way around, and nobody else on the node makes one.
        let question = "GET /probe HTTP/1.1\\r\\nHost: probed\\r\\nConnection: close\\r\\n\\r\\n";
        let ask = |runs: Runs<'_>| kubelet.asks(&runs, &to, question, 12);
        assert_eq!(ask(Runs::OnNode(app.pod.node())).as_deref(), Some("HTTP/1.1 200"));
        assert_eq!(ask(Runs::Renamed(app.pod.node())), None);
    }
}
