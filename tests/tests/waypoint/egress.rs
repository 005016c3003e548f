//! Hosts outside the mesh: by their names, and by TLS that the waypoint begins.

use super::scene::Scene;
use culvert_tests::https::{Authority, secret};
use culvert_tests::{Ask, HttpApp, Tls};

const HOST: &str = "api.outside.test";

/// `api.outside.test`, by its name: 80 and 81 (HTTP/2) lead to `target`.
fn entry(s: &Scene, target: u16) {
    s.apply(
        "ServiceEntry",
        "outside",
        &format!(
            "{{ hosts: [{HOST}], resolution: DNS, location: MESH_EXTERNAL, ports: [\
             {{ number: 80, name: http, protocol: HTTP, targetPort: {target} }}, \
             {{ number: 81, name: http2, protocol: HTTP2, targetPort: {target} }}] }}"
        ),
    );
}

fn tls(s: &Scene, settings: &str) {
    s.apply(
        "DestinationRule",
        "outside",
        &format!("{{ host: {HOST}, trafficPolicy: {{ tls: {{ {settings} }} }} }}"),
    );
}

fn ask() -> Ask {
    Ask::get(&format!("http://{HOST}/x"))
}

fn named(s: &Scene, app: &HttpApp) {
    s.mesh.bed.dns(HOST, &[app.pod.ipv4().into()]);
}

#[test]
fn a_host_outside_is_found_by_its_name_and_followed_when_it_moves() {
    let s = Scene::new("egress-dns");
    let one = s.mesh.outside_app(2, "one", 8080, None);
    let two = s.mesh.outside_app(1, "two", 8080, None);
    named(&s, &one);
    entry(&s, 8080);
    s.until(&ask(), |a| a.by() == "one" && !a.asked()["headers"]["x-request-id"].is_null());
    named(&s, &two);
    s.until(&ask(), |a| a.by() == "two");
    // What is known stays while nobody has another answer.
    let line = s.waypoint.access_log().pop().unwrap();
    assert_eq!(line["upstream_cluster"], format!("outbound|80||{HOST}"));
    let metrics = s.waypoint.metrics();
    assert!(metrics.contains(&format!("destination_service=\"{HOST}\"")), "{metrics}");
    s.is_well();
}

#[test]
fn tls_is_begun_with_whom_a_destination_rule_says_and_with_nobody_else() {
    let s = Scene::new("egress-tls");
    let (authority, other) = (Authority::new("outside"), Authority::new("other"));
    let own = authority.issue(HOST);
    let app = s.mesh.outside_app(2, "one", 8443, Some(&Tls { own: &own, clients: None }));
    named(&s, &app);
    entry(&s, 8443);
    // Without the rule there is no TLS, and no answer.
    s.until(&ask(), |a| a.status == 503 || a.status == 502);
    secret(&s.mesh, "roots", &own, &authority.pem());
    tls(&s, "mode: SIMPLE, credentialName: roots");
    let answer = s.until(&ask(), |a| a.status == 200);
    let shown = answer.asked()["tls"].clone();
    assert_eq!(shown["sni"], HOST);
    assert_eq!(shown["alpn"], "http/1.1");
    assert_eq!(shown["certificate"], false);
    let http2 = Ask::get(&format!("http://{HOST}:81/x")).http2();
    assert_eq!(s.until(&http2, |a| a.status == 200).asked()["tls"]["alpn"], "h2");
    // Another name than the certificate's, another authority, and a Secret that is not there.
    for (settings, why) in [
        ("mode: SIMPLE, credentialName: roots, sni: other.outside.test", "not valid for name"),
        ("mode: SIMPLE, credentialName: roots, subjectAltNames: [x.test]", "not valid for name"),
        ("mode: SIMPLE, credentialName: absent", "there is no Secret default/absent"),
    ] {
        tls(&s, settings);
        s.until(&ask(), |a| a.status == 503 && s.waypoint.log().contains(why));
    }
    let names = format!("mode: SIMPLE, credentialName: roots, subjectAltNames: [x.test, {HOST}]");
    tls(&s, &names);
    s.until(&ask(), |a| a.status == 200);
    // Roots that come to be others count from then on.
    secret(&s.mesh, "roots", &own, &other.pem());
    s.until(&ask(), |a| a.status == 503);
    tls(&s, "mode: SIMPLE, insecureSkipVerify: true");
    s.until(&ask(), |a| a.status == 200);
    s.is_well();
}

#[test]
fn a_client_certificate_is_shown_where_both_are_asked_for_one() {
    let s = Scene::new("egress-mutual");
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let own = servers.issue(HOST);
    let strict = Tls { own: &own, clients: Some(&clients) };
    let app = s.mesh.outside_app(2, "one", 8443, Some(&strict));
    named(&s, &app);
    entry(&s, 8443);
    secret(&s.mesh, "client", &clients.issue("waypoint"), &servers.pem());
    tls(&s, "mode: SIMPLE, credentialName: client");
    s.until(&ask(), |a| a.status == 503);
    tls(&s, "mode: MUTUAL, credentialName: client");
    let answer = s.until(&ask(), |a| a.status == 200);
    assert_eq!(answer.asked()["tls"]["certificate"], true);
    s.is_well();
}
