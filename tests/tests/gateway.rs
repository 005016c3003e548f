//! An ingress gateway, as whoever is outside sees it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use culvert_tests::{Answer, Ask, HttpApp, Mesh, MeshPod, SOON, Waypoint, at, dialogue};
use testbed::{ConnectOpts, Serve, eventually};

const PORT: u16 = 9080;

struct Scene {
    /// Not of the mesh.
    outsider: MeshPod,
    gateway: Waypoint,
    apps: Vec<HttpApp>,
    mesh: Mesh,
}

fn scene(name: &str) -> Scene {
    scene_with(name, &[])
}

/// The gateway has these arguments.
fn scene_with(name: &str, args: &[&str]) -> Scene {
    let mesh = Mesh::new(name);
    let apps =
        vec![mesh.http_app(1, "reviews", "v1", PORT), mesh.http_app(2, "reviews", "v2", PORT)];
    let pods: Vec<&MeshPod> = apps.iter().map(|a| &a.pod).collect();
    mesh.service_of("reviews", "http", PORT, PORT, &pods);
    let outsider = mesh.pod(2, "outsider");
    let gateway = mesh.gateway_with(1, "ingress", "ingressgateway", args);
    Scene { outsider, gateway, apps, mesh }
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

    /// Gateway `shop`: port 80, of which the gateway's is 8080, for all hosts.
    fn opens_http(&self) {
        self.apply(
            "Gateway",
            "shop",
            "{ selector: { istio: ingressgateway }, servers: [\
             { port: { number: 80, name: http, protocol: HTTP }, hosts: [\"*\"] }] }",
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
         { port: { number: 80, name: http, protocol: HTTP }, hosts: [shop.example, \"*.wild.example\"] }, \
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

mod https {
    use super::*;
    use culvert_tests::https::{Authority, Issued, secret, spoil};

    fn get(
        s: &Scene,
        host: &str,
        trusted: &Authority,
        own: Option<&Issued>,
    ) -> Result<String, String> {
        let to = (s.gateway.pod.ipv4(), 8443).into();
        culvert_tests::https::get(&s.outsider, to, host, host, "/public", trusted, own)
    }

    #[test]
    fn tls_is_ended_with_the_secrets_certificate_and_the_next_one_when_that_changes() {
        let s = scene("gateway-tls");
        let (first, second, clients) =
            (Authority::new("first"), Authority::new("second"), Authority::new("clients"));
        secret(&s.mesh, "shop", &first.issue("shop.example"), "");
        secret(&s.mesh, "closed", &first.issue("closed.example"), &clients.pem());
        s.apply(
            "Gateway",
            "shop",
            "{ selector: { istio: ingressgateway }, servers: [\
             { port: { number: 8443, name: https, protocol: HTTPS }, hosts: [shop.example], \
               tls: { mode: SIMPLE, credentialName: shop } }, \
             { port: { number: 8443, name: https-closed, protocol: HTTPS }, hosts: [closed.example], \
               tls: { mode: MUTUAL, credentialName: closed } }, \
             { port: { number: 8443, name: https-lost, protocol: HTTPS }, hosts: [lost.example], \
               tls: { mode: SIMPLE, credentialName: nowhere } }] }",
        );
        s.apply(
            "VirtualService",
            "shop",
            "{ hosts: [shop.example, closed.example, lost.example], gateways: [shop], http: [\
             { route: [{ destination: { host: reviews } }] }] }",
        );
        let good = |trusted: &Authority, host: &str, own| {
            eventually(SOON, || {
                let answer = get(&s, host, trusted, own).map_err(anyhow::Error::msg)?;
                anyhow::ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                anyhow::ensure!(answer.contains("\"x-forwarded-proto\":\"https\""), "{answer}");
                Ok(())
            })
            .unwrap();
        };
        good(&first, "shop.example", None);
        // Whom no server is for, and whose Secret is not there: no hand-shake.
        get(&s, "other.example", &first, None).unwrap_err();
        get(&s, "lost.example", &first, None).unwrap_err();
        // MUTUAL: those with a certificate of the clients' authority, and no others.
        let (ours, theirs) = (clients.issue("somebody"), second.issue("somebody"));
        good(&first, "closed.example", Some(&ours));
        get(&s, "closed.example", &first, None).unwrap_err();
        get(&s, "closed.example", &first, Some(&theirs)).unwrap_err();

        // Nor by the other server's name, which asks for none.
        let to = (s.gateway.pod.ipv4(), 8443).into();
        let (name, host) = ("shop.example", "closed.example");
        let around = culvert_tests::https::get(&s.outsider, to, name, host, "/", &first, None);
        assert!(around.unwrap().starts_with("HTTP/1.1 421"));

        // What was asked for in the hand-shake is policies' as well.
        s.mesh.write_policy(
            "default",
            "closed",
            "{ selector: { matchLabels: { istio: ingressgateway } }, action: DENY, rules: [\
             { when: [{ key: connection.sni, values: [closed.example] }] }] }",
        );
        eventually(SOON, || {
            let answer = get(&s, "closed.example", &first, Some(&ours));
            anyhow::ensure!(
                answer.as_ref().is_ok_and(|a| a.starts_with("HTTP/1.1 403")),
                "{answer:?}"
            );
            Ok(())
        })
        .unwrap();
        good(&first, "shop.example", None);
        s.mesh.remove_policy("default", "closed");
        good(&first, "closed.example", Some(&ours));

        secret(&s.mesh, "shop", &second.issue("shop.example"), "");
        good(&second, "shop.example", None);
        get(&s, "shop.example", &first, None).unwrap_err();
        // What cannot be served changes nothing, and is said; what is gone is not served.
        spoil(&s.mesh, "shop");
        eventually(SOON, || {
            anyhow::ensure!(s.gateway.log().contains("TLS cannot be served for these hosts"));
            Ok(())
        })
        .unwrap();
        good(&second, "shop.example", None);
        s.mesh.delete("secret-shop");
        eventually(SOON, || {
            let answer = get(&s, "shop.example", &second, None);
            anyhow::ensure!(answer.is_err(), "{answer:?}");
            Ok(())
        })
        .unwrap();
        good(&first, "closed.example", Some(&ours));
    }

    #[test]
    fn versions_of_tls_and_of_http_are_agreed_on_with_each_client() {
        use culvert_tests::https::{get_by_http2, shake};
        use rustls::version::{TLS12, TLS13};
        let s = scene("gateway-versions");
        let authority = Authority::new("authority");
        for name in ["old", "new"] {
            secret(&s.mesh, name, &authority.issue(&format!("{name}.example")), "");
        }
        s.apply(
            "Gateway",
            "shop",
            "{ selector: { istio: ingressgateway }, servers: [\
             { port: { number: 8443, name: https, protocol: HTTPS }, hosts: [old.example], \
               tls: { mode: SIMPLE, credentialName: old } }, \
             { port: { number: 8443, name: https-new, protocol: HTTPS }, hosts: [new.example], \
               tls: { mode: SIMPLE, credentialName: new, minProtocolVersion: TLSV1_3 } }] }",
        );
        s.apply(
            "VirtualService",
            "shop",
            "{ hosts: [old.example, new.example], gateways: [shop], http: [\
             { route: [{ destination: { host: reviews } }] }] }",
        );
        let to = (s.gateway.pod.ipv4(), 8443).into();
        for name in ["old.example", "new.example"] {
            eventually(SOON, || get(&s, name, &authority, None).map_err(anyhow::Error::msg))
                .unwrap();
        }
        let with = |name: &str, version, alpn: &[&[u8]]| {
            shake(&s.outsider, to, name, version, alpn, &authority)
        };
        let (h1, h2) = (&b"http/1.1"[..], &b"h2"[..]);
        for (version, old, new) in [(&TLS13, true, true), (&TLS12, true, false)] {
            assert_eq!(with("old.example", version, &[]).is_ok(), old, "{version:?}");
            assert_eq!(with("new.example", version, &[]).is_ok(), new, "{version:?}");
            // HTTP/2 for those who know it, whichever they name first.
            assert_eq!(with("old.example", version, &[h1, h2]), Ok(Some(h2.to_vec())));
            assert_eq!(with("old.example", version, &[h1]), Ok(Some(h1.to_vec())));
            assert_eq!(with("old.example", version, &[]), Ok(None));
            with("old.example", version, &[b"h3"]).unwrap_err();
        }
        let paths: Vec<String> = (0..50).map(|n| format!("/public/{n}?delay=200")).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let all = get_by_http2(&s.outsider, to, "new.example", &paths, &authority);
        for ((status, body), path) in all.iter().zip(&paths) {
            let asked: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!((*status, asked["path"].as_str()), (200, Some(*path)), "{asked}");
            assert_eq!(asked["headers"]["x-forwarded-proto"], "https");
            assert_eq!(asked["headers"]["host"], "new.example");
        }
    }

    #[test]
    fn clients_that_may_show_a_certificate_are_let_in_without_and_not_with_a_wrong_one() {
        let s = scene("gateway-optional");
        let (authority, clients) = (Authority::new("authority"), Authority::new("clients"));
        let (ours, theirs) = (clients.issue("somebody"), authority.issue("somebody"));
        secret(&s.mesh, "shop", &authority.issue("shop.example"), &clients.pem());
        s.apply(
            "Gateway",
            "shop",
            "{ selector: { istio: ingressgateway }, servers: [\
             { port: { number: 8443, name: https, protocol: HTTPS }, hosts: [shop.example], \
               tls: { mode: OPTIONAL_MUTUAL, credentialName: shop } }] }",
        );
        s.apply(
            "VirtualService",
            "shop",
            "{ hosts: [shop.example], gateways: [shop], http: [\
             { route: [{ destination: { host: reviews } }] }] }",
        );
        let ask = |own| get(&s, "shop.example", &authority, own);
        let answer = eventually(SOON, || ask(None).map_err(anyhow::Error::msg)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let answer = ask(Some(&ours)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        ask(Some(&theirs)).unwrap_err();
    }
}

#[test]
fn a_gateway_of_gateway_api_routes_what_attaches_to_its_listeners() {
    use culvert_tests::https::{Authority, get, secret};
    let s = scene("gateway-api");
    let authority = Authority::new("outside");
    secret(&s.mesh, "cert", &authority.issue("shop.example"), "");
    let apply = |kind: &str, name: &str, namespace: &str, spec: &str| {
        s.mesh.apply(
            &format!("{kind}-{name}-{namespace}"),
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
                 metadata: {{ namespace: {namespace}, name: {name} }}\nspec: {spec}\n"
            ),
        );
    };
    apply(
        "Gateway",
        "ingress",
        "default",
        "{ gatewayClassName: culvert, listeners: [\
         { name: web, port: 80, protocol: HTTP, hostname: \"*.example\" }, \
         { name: safe, port: 8443, protocol: HTTPS, hostname: shop.example, tls: { certificateRefs: [{ name: cert }] } }, \
         { name: open, port: 8081, protocol: HTTP, allowedRoutes: { namespaces: { from: All } } }] }",
    );
    let to = format!("backendRefs: [{{ name: reviews, port: {PORT} }}]");
    apply(
        "HTTPRoute",
        "shop",
        "default",
        &format!(
            "{{ parentRefs: [{{ name: ingress, sectionName: web }}, {{ name: ingress, sectionName: safe }}], \
             hostnames: [shop.example, elsewhere.test], rules: [{{ matches: [{{ path: {{ value: /public }} }}], {to} }}, \
             {{ matches: [{{ path: {{ value: /up }} }}], filters: [{{ type: RequestRedirect, requestRedirect: {{ scheme: https }} }}] }}] }}"
        ),
    );
    // Of another namespace: taken by the listener that says so, and sent on where a grant says so.
    let of_other = format!(
        "{{ parentRefs: [{{ name: ingress, namespace: default }}], rules: [\
         {{ backendRefs: [{{ name: reviews, namespace: default, port: {PORT} }}] }}] }}"
    );
    apply("HTTPRoute", "foreign", "other", &of_other);
    s.until(&s.ask(8080, "shop.example", "/public/x"), |a| a.status == 200);
    for (port, host, path, status) in [
        (8080, "shop.example", "/private", 404),
        (8080, "elsewhere.test", "/public", 404),
        (8080, "other.example", "/public", 404),
        (8081, "shop.example", "/public", 503),
    ] {
        let answer = s.until(&s.ask(port, host, path), |_| true);
        assert_eq!(answer.status, status, "{port} {host} {path}");
    }
    let up = s.until(&s.ask(8080, "shop.example", "/up"), |a| a.status == 302);
    assert_eq!(up.headers["location"], "https://shop.example/up");
    let at = (s.gateway.pod.ipv4(), 8443).into();
    let name = "shop.example";
    let safe = get(&s.outsider, at, name, name, "/public", &authority, None).unwrap();
    assert!(safe.starts_with("HTTP/1.1 200"), "{safe}");
    s.mesh.apply(
        "grant",
        "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
         metadata: { namespace: default, name: other }\n\
         spec: { from: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other }], \
         to: [{ group: \"\", kind: Service }] }\n",
    );
    s.until(&s.ask(8081, "any.test", "/x"), |a| a.status == 200);
}

#[test]
fn bytes_go_through_by_port_and_tls_by_the_name_that_is_asked_for() {
    use culvert_tests::Tls;
    use culvert_tests::https::{Authority, get, secret};
    let s = scene("gateway-bytes");
    let (authority, edge) = (Authority::new("own"), Authority::new("edge"));
    let own = authority.issue("secure.example");
    let tls = Tls { own: &own, clients: None };
    let secure = s.mesh.outside_app(2, "secure", 8443, Some(&tls));
    s.mesh.service_of("secure", "tls", 443, 8443, &[&secure.pod]);
    secret(&s.mesh, "edge", &edge.issue("ended.example"), "");
    s.apply(
        "Gateway",
        "bytes",
        "{ selector: { istio: ingressgateway }, servers: [\
         { port: { number: 9000, name: tcp, protocol: TCP }, hosts: [\"*\"] }, \
         { port: { number: 9443, name: tls, protocol: TLS }, hosts: [secure.example], tls: { mode: PASSTHROUGH } }, \
         { port: { number: 9443, name: ended, protocol: TLS }, hosts: [ended.example], tls: { mode: SIMPLE, credentialName: edge } }] }",
    );
    s.apply(
        "VirtualService",
        "bytes",
        &format!(
            "{{ hosts: [any.example], gateways: [bytes], tcp: [\
             {{ match: [{{ port: 9000 }}], route: [{{ destination: {{ host: reviews, port: {{ number: {PORT} }} }} }}] }}] }}"
        ),
    );
    s.apply(
        "VirtualService",
        "ended",
        &format!(
            "{{ hosts: [ended.example], gateways: [bytes], tcp: [\
             {{ route: [{{ destination: {{ host: reviews, port: {{ number: {PORT} }} }} }}] }}] }}"
        ),
    );
    s.apply(
        "VirtualService",
        "secure",
        "{ hosts: [secure.example], gateways: [default/bytes], tls: [\
         { match: [{ port: 9443, sniHosts: [secure.example] }], route: [{ destination: { host: secure } }] }] }",
    );
    // Nothing is looked into, and nothing added.
    let plain = s.until(&s.ask(9000, "x", "/"), |a| a.status == 200);
    assert!(plain.asked()["headers"]["x-request-id"].is_null(), "{plain:?}");
    let at = (s.gateway.pod.ipv4(), 9443).into();
    let fetch = |name: &str, trusted| get(&s.outsider, at, name, name, "/", trusted, None);
    let passed =
        eventually(SOON, || fetch("secure.example", &authority).map_err(anyhow::Error::msg));
    assert!(passed.unwrap().contains("\"sni\":\"secure.example\""));
    let ended = eventually(SOON, || fetch("ended.example", &edge).map_err(anyhow::Error::msg));
    assert!(ended.unwrap().starts_with("HTTP/1.1 200"));
    assert!(fetch("other.example", &edge).is_err());
}

/// Whatever protocol the two agree on, one that no registry has among them.
#[test]
fn a_connection_switches_to_another_protocol_through_a_gateway() {
    let s = scene("gateway-upgrade");
    s.opens_http();
    s.apply(
        "VirtualService",
        "shop",
        "{ hosts: [shop.example], gateways: [shop], http: [{ route: [{ destination: { \
         host: reviews } }] }] }",
    );
    s.until(&s.ask(8080, "shop.example", "/"), |a| a.status == 200);
    let client = s.outsider.puppet().unwrap();
    let to = at(s.gateway.pod.ipv4(), 8080);
    let client = client.connect(&to, ConnectOpts::default()).unwrap();
    client
        .write(
            b"GET /chat HTTP/1.1\r\nhost: shop.example\r\nconnection: Upgrade\r\n\
              upgrade: shouting/2\r\n\r\n",
        )
        .unwrap();
    let mut head = String::new();
    while !head.contains("\r\n\r\n") {
        let part = client.read_some(4096).unwrap();
        assert!(!part.is_empty(), "{head}");
        head.push_str(&String::from_utf8_lossy(&part));
    }
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.contains("upgrade: shouting/2\r\n"), "{head}");
    for word in ["hello", "GET / HTTP/1.1\r\n\r\n", "again"] {
        client.write(word.as_bytes()).unwrap();
        assert_eq!(client.read_exact(word.len()).unwrap(), word.to_uppercase().as_bytes());
    }
    client.shutdown_write().unwrap();
    assert_eq!(client.read_to_end().unwrap(), b"");
}

/// Where a side is plain TCP, too: an end would pass for all there was.
#[test]
fn what_is_broken_off_is_reset_on_both_sides_of_a_gateway() {
    let s = scene("gateway-resets");
    let (inside, outside) = (s.mesh.enrolled_pod(2, "inside"), s.mesh.pod(2, "outside"));
    for (name, pod, port) in [("inside", &inside, 9001), ("outside", &outside, 9002)] {
        s.mesh.service_of(name, "tcp", PORT, PORT, &[pod]);
        let listener = dialogue::serve(pod, PORT, Serve::Manual);
        s.apply(
            "Gateway",
            name,
            &format!(
                "{{ selector: {{ istio: ingressgateway }}, servers: [\
                 {{ port: {{ number: {port}, name: tcp, protocol: TCP }}, hosts: [\"*\"] }}] }}"
            ),
        );
        s.apply(
            "VirtualService",
            name,
            &format!(
                "{{ hosts: [\"*\"], gateways: [{name}], tcp: [{{ route: [{{ destination: {{ \
                 host: {name}, port: {{ number: {PORT} }} }} }}] }}] }}"
            ),
        );
        let to = at(s.gateway.pod.ipv4(), port);
        let pair = || {
            eventually(SOON, || {
                let client = s.outsider.puppet()?.connect(&to, ConnectOpts::default())?;
                client.write(b"there")?;
                let app = listener.accept(std::time::Duration::from_secs(1))?;
                anyhow::ensure!(app.read_exact(5)? == b"there");
                Ok((client, app))
            })
            .unwrap()
        };
        let is_reset = |end: &testbed::Sock| {
            let end = end.clone().within(SOON).read_to_end().unwrap_err();
            assert_eq!(end.kind(), "ECONNRESET", "{name}: {end}");
        };
        let (client, app) = pair();
        client.shutdown_write().unwrap();
        assert_eq!(app.read_to_end().unwrap(), b"");
        app.write(b"after your end").unwrap();
        app.shutdown_write().unwrap();
        assert_eq!(client.read_to_end().unwrap(), b"after your end");
        let (client, app) = pair();
        app.reset().unwrap();
        is_reset(&client);
        let (client, app) = pair();
        client.reset().unwrap();
        is_reset(&app);
        // In mid-flow, by a policy.
        let (client, app) = pair();
        s.mesh.write_policy(
            "default",
            "nobody",
            "{ selector: { matchLabels: { istio: ingressgateway } }, action: DENY, rules: [{}] }",
        );
        is_reset(&client);
        is_reset(&app);
        s.mesh.remove_policy("default", "nobody");
    }
}

#[test]
fn one_client_takes_its_share_of_connections_and_leaves_others_theirs() {
    let s = scene_with("gateway-doors", &["--max-connections", "20"]);
    s.opens_http();
    s.apply(
        "VirtualService",
        "shop",
        "{ hosts: [\"*\"], gateways: [shop], http: [{ route: [{ destination: { host: reviews } }] }] }",
    );
    let ask = s.ask(8080, "shop.example", "/");
    s.until(&ask, |a| a.status == 200);
    let count = |name: &str| -> u64 {
        let metrics = s.gateway.metrics();
        let value = metrics.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
    };
    let wait = |open: u64| {
        eventually(SOON, || {
            let now = count("culvert_waypoint_connections");
            anyhow::ensure!(now == open, "{now} connections, and not {open}");
            Ok(())
        })
        .unwrap();
    };
    wait(0);
    let at = at(s.gateway.pod.ipv4(), 8080);
    let mut idle: Vec<_> = (0..5).map(|_| dialogue::connect(&s.outsider, &at)).collect();
    wait(5);
    let sixth = s.outsider.puppet().unwrap().connect(&at, ConnectOpts::default());
    let read = sixth.and_then(|sock| sock.read_some(1));
    assert!(read.map_or(true, |bytes| bytes.is_empty()), "it is refused");
    assert!(count("culvert_waypoint_connections_refused_total") >= 1);
    let other = s.mesh.pod(1, culvert_tests::Spec::named("other"));
    assert_eq!(ask.from(&other).unwrap().status, 200);
    // With what it gives back it comes again.
    idle.clear();
    wait(0);
    assert_eq!(ask.from(&s.outsider).unwrap().status, 200);
}

/// From a gateway to a host outside that is known by its address, by TLS that the gateway begins.
#[test]
fn a_gateway_sends_to_static_endpoints_by_tls() {
    use culvert_tests::Tls;
    use culvert_tests::https::{Authority, secret};
    const OUTSIDE: &str = "api.outside.test";
    let s = scene("gateway-egress");
    let authority = Authority::new("outside");
    let own = authority.issue(OUTSIDE);
    let app = s.mesh.outside_app(2, "one", 8443, Some(&Tls { own: &own, clients: None }));
    secret(&s.mesh, "roots", &own, &authority.pem());
    s.apply(
        "ServiceEntry",
        "outside",
        &format!(
            "{{ hosts: [{OUTSIDE}], resolution: STATIC, location: MESH_EXTERNAL, ports: [\
             {{ number: 443, name: http, protocol: HTTP, targetPort: 8443 }}], \
             endpoints: [{{ address: {} }}] }}",
            app.pod.ipv4()
        ),
    );
    let tls = |settings: &str| {
        let spec = format!("{{ host: {OUTSIDE}, trafficPolicy: {{ tls: {{ {settings} }} }} }}");
        s.apply("DestinationRule", "outside", &spec);
    };
    tls("mode: SIMPLE, credentialName: roots");
    s.opens_http();
    s.apply(
        "VirtualService",
        "shop",
        &format!(
            "{{ hosts: [\"*\"], gateways: [shop], http: [{{ rewrite: {{ authority: {OUTSIDE} }}, route: [\
             {{ destination: {{ host: {OUTSIDE}, port: {{ number: 443 }} }} }}] }}] }}"
        ),
    );
    let ask = s.ask(8080, "shop.example", "/x");
    let asked = s.until(&ask, |a| a.status == 200).asked();
    assert_eq!(asked["tls"]["sni"], OUTSIDE, "{asked}");
    assert_eq!(asked["headers"]["host"], OUTSIDE, "{asked}");
    tls("mode: SIMPLE, credentialName: roots, sni: other.test");
    s.until(&ask, |a| a.status == 503);
    tls("mode: SIMPLE, credentialName: roots");
    s.until(&ask, |a| a.status == 200);
}

/// Routes, listeners and certificates that change, and the end of the process, while clients ask.
#[test]
fn changes_and_a_drain_under_load_drop_nothing() {
    use culvert_tests::https::{Authority, secret};
    use std::sync::atomic::{AtomicBool, Ordering};
    let mut s = scene("gateway-life");
    let authority = Authority::new("edge");
    let gateway = |more: &str| {
        format!(
            "{{ selector: {{ istio: ingressgateway }}, servers: [\
             {{ port: {{ number: 80, name: http, protocol: HTTP }}, hosts: [\"*\"] }}{more}] }}"
        )
    };
    let route = |n: usize| {
        format!(
            "{{ hosts: [\"*\"], gateways: [shop], http: [{{ match: [{{ uri: {{ exact: /n }} }}], \
             directResponse: {{ status: 299, body: {{ string: \"{n}\" }} }} }}, \
             {{ route: [{{ destination: {{ host: reviews }} }}] }}] }}"
        )
    };
    s.apply("Gateway", "shop", &gateway(""));
    s.apply("VirtualService", "shop", &route(0));
    let (ask, marker) = (s.ask(8080, "shop.example", "/"), s.ask(8080, "shop.example", "/n"));
    s.until(&ask, |a| a.status == 200);
    let stop = AtomicBool::new(false);
    let all = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut all = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                all.extend(ask.times(&s.outsider, 50).unwrap());
            }
            all
        });
        for n in 1..=15 {
            secret(&s.mesh, "edge", &authority.issue("shop.example"), "");
            let tls = ", { port: { number: 8443, name: s, protocol: HTTPS }, hosts: [shop.example], \
                       tls: { mode: SIMPLE, credentialName: edge } }";
            s.apply("Gateway", "shop", &gateway(if n % 2 == 0 { "" } else { tls }));
            s.apply("VirtualService", "shop", &route(n));
            s.until(&marker, |a| a.body == n.to_string());
        }
        stop.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    });
    let bad: Vec<_> = all.iter().filter(|a| a.status != 200).collect();
    assert!(bad.is_empty(), "{} of {}: {:?}", bad.len(), all.len(), bad.first());
    // What is under way when it is told to end is answered.
    let slow = s.ask(8080, "shop.example", "/?delay=2000&key=slow");
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| slow.from(&s.outsider).unwrap());
        eventually(SOON, || {
            let asked: u64 = s.apps.iter().map(|a| a.count(PORT, "slow")).sum();
            anyhow::ensure!(asked == 1, "{asked} asked");
            Ok(())
        })
        .unwrap();
        s.gateway.begin_to_end();
        assert_eq!(asking.join().unwrap().status, 200);
    });
    s.gateway.ends();
}
