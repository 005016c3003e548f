//! IPv4 and IPv6: services, pods and clients have addresses of both.

use crate::scene::{PORT, Played, Scene};
use anyhow::ensure;
use culvert_tests::{Ask, SOON, at, whoami};
use std::net::IpAddr;
use testbed::{Serve, eventually};

#[test]
fn requests_to_a_services_addresses_of_both_families_are_routed_and_judged() {
    let s = Scene::new("wp-families");
    s.subsets();
    s.route_to("v2", "");
    let asks =
        [s.service.at4(), s.service.at6()].map(|at| (Ask::get(&format!("http://{at}/")), at));
    for (ask, at) in &asks {
        for ask in [ask.clone(), ask.clone().http2()] {
            let answer = s.ask(&ask);
            let asked = answer.asked();
            assert_eq!((answer.status, answer.by().as_str()), (200, "reviews-v2"), "{at}");
            assert_eq!(asked["headers"]["host"], **at, "{asked}");
            let said = asked["headers"]["x-forwarded-client-cert"].as_str().unwrap();
            assert!(said.ends_with(&format!("URI={}", s.client.identity())), "{said}");
        }
    }
    let log = s.waypoint.access_log();
    for (_, at) in &asks {
        assert!(log.iter().any(|l| l["downstream_local_address"] == **at), "{at}: {log:?}");
    }
    s.is_well();
    // Each is judged as it comes.
    let (four, six) = (&asks[0].0, &asks[1].0);
    s.mesh.write_policy(
        "default",
        "not-by-six",
        &format!(
            "{{ targetRefs: [{{ kind: Service, group: \"\", name: reviews }}], action: DENY, \
             rules: [{{ from: [{{ source: {{ ipBlocks: [\"{}\"] }} }}] }}] }}",
            s.client.ipv6()
        ),
    );
    s.until(six, |a| a.status == 403);
    assert_eq!(s.ask(four).status, 200);
}

#[test]
fn bytes_to_a_services_addresses_of_both_families_go_through() {
    let p = Played::new("wp-families-tcp", "tcp", Serve::Script);
    let (four, six) = (p.waypoint.pod.ipv4(), p.waypoint.pod.ipv6());
    for to in [p.service.at4(), p.service.at6()] {
        let seen = whoami(&p.client, &to).unwrap();
        assert_eq!(seen.client.peer.to_string(), to, "{seen:?}");
        // The application sees whom it talks to: the waypoint.
        let peer = seen.peer.ip();
        assert!(peer == IpAddr::from(four) || peer == IpAddr::from(six), "{to}: {seen:?}");
    }
}

#[test]
fn pods_of_ipv6_only_are_reached_by_it_all_the_way() {
    let s = Scene::new("wp-six");
    for pod in s.apps.iter().map(|a| &a.pod).chain([&s.waypoint.pod, &s.client]) {
        s.mesh.only_ipv6(pod);
    }
    let six = Ask::get(&format!("http://{}/", s.service.at6()));
    for app in &s.apps {
        let own = at(app.pod.ipv6(), PORT);
        eventually(SOON, || {
            ensure!(six.from(&s.client)?.status == 200);
            let log = s.waypoint.access_log();
            ensure!(log.iter().any(|l| l["upstream_host"] == own), "{own} is not in {log:?}");
            Ok(())
        })
        .unwrap();
    }

    let p = Played::new("wp-six-tcp", "tcp", Serve::Script);
    for pod in [&p.pod, &p.waypoint.pod, &p.client] {
        p.mesh.only_ipv6(pod);
    }
    eventually(SOON, || {
        let seen = whoami(&p.client, &p.service.at6())?;
        let all_the_way =
            seen.local.ip() == p.pod.ipv6() && seen.peer.ip() == p.waypoint.pod.ipv6();
        ensure!(all_the_way, "{seen:?}");
        Ok(())
    })
    .unwrap();
}
