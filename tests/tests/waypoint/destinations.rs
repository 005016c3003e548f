//! What a DestinationRule says of connections, and of which endpoints are near.

use crate::scene::{PORT, Played, Scene};
use anyhow::ensure;
use culvert_tests::dialogue::echo_to;
use culvert_tests::{Ask, HttpApp, SOON, attempt};
use std::{thread, time::Duration};
use testbed::{Serve, eventually};

/// The rule for `played`.
fn rule(p: &Played, pool: &str) {
    p.mesh.apply(
        "destinationrule-played",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{ namespace: default, name: played }}\n\
             spec: {{ host: played, trafficPolicy: {{ connectionPool: {{ {pool} }} }} }}\n"
        ),
    );
}

#[test]
fn a_destination_is_spoken_to_in_the_version_that_its_rule_says() {
    let s = Scene::new("wp-versions");
    let http1 = Ask::get(&s.url("/"));
    let both = [http1.clone(), http1.http2()];
    for (policy, spoken) in [
        ("h2UpgradePolicy: DEFAULT", ["HTTP/1.1", "HTTP/1.1"]),
        ("h2UpgradePolicy: UPGRADE", ["HTTP/2.0", "HTTP/2.0"]),
        ("h2UpgradePolicy: DO_NOT_UPGRADE", ["HTTP/1.1", "HTTP/1.1"]),
        ("useClientProtocol: true", ["HTTP/1.1", "HTTP/2.0"]),
        // Which goes before the other.
        ("useClientProtocol: true, h2UpgradePolicy: UPGRADE", ["HTTP/1.1", "HTTP/2.0"]),
    ] {
        s.destination(&format!("connectionPool: {{ http: {{ {policy} }} }}"));
        s.route_to("v1", "");
        for (ask, spoken) in both.iter().zip(spoken) {
            assert_eq!(s.ask(ask).asked()["version"], spoken, "{policy}, {ask:?}");
        }
    }
    s.is_well();
}

#[test]
fn connections_that_nobody_uses_are_closed_when_it_is_said() {
    let s = Scene::speaking("wp-idle", "");
    let http1 = Ask::get(&s.url("/"));
    for ask in [http1.clone(), http1.http2()] {
        let by_connection = || s.ask(&ask).asked()["connection"].as_u64().unwrap();
        s.destination("connectionPool: { http: { idleTimeout: 300s } }");
        s.route_to("v1", "");
        let (first, kept) = (by_connection(), by_connection());
        thread::sleep(Duration::from_secs(7));
        assert_eq!((first, kept), (kept, by_connection()), "{ask:?}");
        s.destination("connectionPool: { http: { idleTimeout: 1s } }");
        s.route_to("v1", "");
        // In use it stays, however long that takes.
        let slow = Ask::get(&s.url("/?delay=3000"));
        assert_eq!(s.ask(&slow).status, 200);
        eventually(SOON, || {
            let before = by_connection();
            thread::sleep(Duration::from_secs(7));
            let after = by_connection();
            ensure!(before != after, "{ask:?}: still connection {before}");
            Ok(())
        })
        .unwrap();
    }
    s.is_well();
}

/// Nobody has to ask again for that: the endpoint sees its end.
#[test]
fn an_endpoint_sees_the_end_of_a_connection_that_nobody_uses() {
    let p = Played::new("wp-idle-end", "http", Serve::Manual);
    rule(&p, "http: { idleTimeout: 1s }");
    eventually(SOON, || {
        let client = p.raw();
        client.write(format!("GET / HTTP/1.1\r\nhost: played:{PORT}\r\n\r\n").as_bytes())?;
        let app = p.accept();
        crate::scene::read_until(&app, "\r\n\r\n");
        app.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
        crate::scene::read_until(&client, "\r\n\r\n");
        // Until the rule is in force it is a minute.
        let end = app.within(Duration::from_secs(12)).read_to_end();
        ensure!(end.as_ref().is_ok_and(Vec::is_empty), "{end:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn connections_of_bytes_beyond_what_may_be_open_are_refused() {
    let p = Played::new("wp-tcp-most", "tcp", Serve::Script);
    let to = p.service.by_name();
    rule(&p, "tcp: { maxConnections: 1 }");
    let open = eventually(SOON, || {
        let open = echo_to(&p.client, &to)?;
        ensure!(attempt(&p.client, &to).is_err(), "a second one is open");
        Ok(open)
    })
    .unwrap();
    for _ in 0..5 {
        attempt(&p.client, &to).unwrap_err();
    }
    // It is as it was, and its place is given back.
    open.write(b"still there").unwrap();
    assert_eq!(open.read_exact(11).unwrap(), b"still there");
    open.close().unwrap();
    eventually(SOON, || Ok(attempt(&p.client, &to)?)).unwrap();
    let log = p.waypoint.access_log();
    let refused = log.iter().find(|l| l["response_flags"] == "UO");
    assert!(refused.is_some(), "{log:?}");
}

/// Zone, region, the region that the own one fails over to, and then the rest: each while those before
/// it fail.
#[test]
fn the_nearest_that_are_well_answer_and_a_failing_region_has_its_stand_in() {
    const HOST: &str = "far.and.near.test";
    let s = Scene::new("wp-failover");
    let node = s.waypoint.pod.node().name();
    s.mesh.apply(
        &format!("node-{node}"),
        &format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{ name: {node}, labels: {{ \
             topology.kubernetes.io/region: home, topology.kubernetes.io/zone: a }} }}\n"
        ),
    );
    let localities = ["home/a", "home/b", "stand-in/a", "away/a"];
    let apps: Vec<HttpApp> = ["same-zone", "same-region", "stand-in", "elsewhere"]
        .iter()
        .map(|name| s.mesh.outside_app(1, name, 8080, None))
        .collect();
    // The far ones first: it is not by their order.
    let endpoints: Vec<String> = apps
        .iter()
        .zip(localities)
        .rev()
        .map(|(app, locality)| format!("{{ address: {}, locality: {locality} }}", app.pod.ipv4()))
        .collect();
    s.apply(
        "ServiceEntry",
        "spread",
        &format!(
            "{{ hosts: [{HOST}], resolution: STATIC, location: MESH_EXTERNAL, endpoints: [{}], \
             ports: [{{ number: 80, name: http, protocol: HTTP, targetPort: 8080 }}] }}",
            endpoints.join(", ")
        ),
    );
    s.apply(
        "DestinationRule",
        "spread",
        &format!(
            "{{ host: {HOST}, trafficPolicy: {{ \
             loadBalancer: {{ simple: ROUND_ROBIN, localityLbSetting: {{ enabled: true, \
             failover: [{{ from: home, to: stand-in }}] }} }}, \
             outlierDetection: {{ consecutive5xxErrors: 1, interval: 1s, \
             baseEjectionTime: 300s, maxEjectionPercent: 100 }} }} }}"
        ),
    );
    s.apply(
        "VirtualService",
        "spread",
        &format!(
            "{{ hosts: [{HOST}], http: [{{ route: [{{ destination: {{ host: {HOST} }} }}], \
             headers: {{ request: {{ set: {{ x-routed: spread }} }} }}, retries: {{ attempts: 0 }} }}] }}"
        ),
    );
    let ask = |path: &str| Ask::get(&format!("http://{HOST}{path}"));
    let nearest = |name: &str| {
        eventually(SOON, || {
            let all = ask("/").times(&s.client, 12)?;
            let by: Vec<String> = all.iter().map(|a| a.by()).collect();
            ensure!(all.iter().all(|a| a.asked()["headers"]["x-routed"] == "spread"), "{all:?}");
            ensure!(by.iter().all(|by| by == name), "{name}: {by:?}");
            Ok(())
        })
        .unwrap();
    };
    for app in &apps {
        let name = app.pod.name();
        nearest(name);
        assert_eq!(s.ask(&ask(&format!("/?failing={name}"))).status, 503, "{name}");
    }
    s.is_well();
}
