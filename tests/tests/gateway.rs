//! An ingress gateway, as whoever is outside sees it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use culvert_tests::{Answer, Ask, HttpApp, Mesh, MeshPod, SOON, Waypoint, at};
use testbed::eventually;

const PORT: u16 = 9080;

struct Scene {
    /// Not of the mesh.
    outsider: MeshPod,
    gateway: Waypoint,
    _apps: Vec<HttpApp>,
    mesh: Mesh,
}

fn scene(name: &str) -> Scene {
    let mesh = Mesh::new(name);
    let apps =
        vec![mesh.http_app(1, "reviews", "v1", PORT), mesh.http_app(2, "reviews", "v2", PORT)];
    let pods: Vec<&MeshPod> = apps.iter().map(|a| &a.pod).collect();
    mesh.service_of("reviews", "http", PORT, PORT, &pods);
    let outsider = mesh.pod(2, "outsider");
    let gateway = mesh.gateway(1, "ingress");
    Scene { outsider, gateway, _apps: apps, mesh }
}

impl Scene {
    fn apply(&self, kind: &str, name: &str, spec: &str) {
        self.mesh.apply(
            &format!("{}-{name}", kind.to_lowercase()),
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: {kind}\n\
                 metadata: {{ namespace: default, name: {name} }}\nspec: {spec}\n"
            ),
        );
    }

    fn ask(&self, port: u16, host: &str, path: &str) -> Ask {
        let at = at(self.gateway.pod.ipv4(), port);
        Ask::get(&format!("http://{at}{path}")).header(&format!("host: {host}"))
    }

    #[track_caller]
    fn until(&self, ask: &Ask, wanted: impl Fn(&Answer) -> bool) -> Answer {
        eventually(SOON, || {
            let answer = ask.from(&self.outsider)?;
            anyhow::ensure!(wanted(&answer), "{answer:?}\n{}", self.gateway.log());
            Ok(answer)
        })
        .unwrap()
    }
}

#[test]
fn a_gateway_opens_hosts_and_paths_and_nothing_else() {
    let s = scene("gateway");
    s.apply(
        "Gateway",
        "shop",
        "{ selector: { istio: ingressgateway }, servers: [\
         { port: { number: 8080, name: http, protocol: HTTP }, hosts: [shop.example, \"*.wild.example\"] }, \
         { port: { number: 8081, name: http-old, protocol: HTTP }, hosts: [\"*\"], tls: { httpsRedirect: true } }] }",
    );
    s.apply(
        "VirtualService",
        "shop",
        "{ hosts: [shop.example, a.wild.example], gateways: [shop], http: [\
         { match: [{ uri: { prefix: /public } }], route: [{ destination: { host: reviews } }] }] }",
    );
    let open = s.ask(8080, "shop.example", "/public/x");
    let answer = s.until(&open, |a| a.status == 200);
    let headers = answer.asked()["headers"].clone();
    assert_eq!(headers["x-forwarded-proto"], "http");
    assert_eq!(headers["x-forwarded-for"], s.outsider.ipv4().to_string());
    assert_eq!(headers["host"], "shop.example");
    assert_eq!(s.until(&s.ask(8080, "a.wild.example", "/public"), |a| a.status == 200).status, 200);
    for (host, path) in
        [("shop.example", "/private"), ("other.example", "/public"), ("b.wild.example", "/public")]
    {
        assert_eq!(s.ask(8080, host, path).from(&s.outsider).unwrap().status, 404, "{host}{path}");
    }
    let old = s.ask(8081, "shop.example", "/public?q=1").from(&s.outsider).unwrap();
    assert_eq!(
        (old.status, &old.headers["location"]),
        (301, &"https://shop.example/public?q=1".into())
    );

    // A second rule for the same host adds to the first.
    s.apply(
        "VirtualService",
        "shop-more",
        "{ hosts: [shop.example], gateways: [default/shop], http: [\
         { match: [{ uri: { exact: /more } }], route: [{ destination: { host: reviews } }] }] }",
    );
    s.until(&s.ask(8080, "shop.example", "/more"), |a| a.status == 200);
    assert_eq!(open.from(&s.outsider).unwrap().status, 200);

    // Behind a waypoint: through it.
    let waypoint = s.mesh.waypoint(2, "waypoint");
    s.mesh.use_waypoint(Some("waypoint"));
    s.apply(
        "DestinationRule",
        "reviews",
        "{ host: reviews, subsets: [{ name: v2, labels: { version: v2 } }] }",
    );
    s.apply(
        "VirtualService",
        "reviews",
        "{ hosts: [reviews], http: [{ route: [{ destination: { host: reviews, subset: v2 } }], \
           headers: { request: { set: { x-through: waypoint } } } }] }",
    );
    s.until(&open, |a| a.asked()["headers"]["x-through"] == "waypoint" && a.by() == "reviews-v2");
    let log = waypoint.access_log();
    assert!(log.iter().any(|l| l["downstream_peer"] == s.gateway.pod.identity()), "{log:?}");
}
