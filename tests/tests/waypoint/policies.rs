//! Who may, by what only HTTP shows; and nobody around the waypoint.

use crate::scene::{PORT, Scene};
use culvert_tests::{Ask, SOON, at, denied};
use std::io::{Read as _, Write as _};

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
    for app in &s.apps {
        let to = at(app.pod.ipv4(), PORT);
        denied(&s.client, &to);
        let around = Ask::get(&format!("http://{to}/")).from(&outsider);
        assert!(around.is_err(), "{around:?}");
        // The node's own probes are no way around.
        let probed = app.pod.node().inside(|| {
            let mut tcp = std::net::TcpStream::connect(&to)?;
            tcp.set_read_timeout(Some(SOON))?;
            write!(tcp, "GET /probe HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            tcp.read_to_string(&mut answer)?;
            Ok(answer)
        });
        assert!(probed.unwrap().starts_with("HTTP/1.1 200"));
    }
}
