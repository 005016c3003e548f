//! A waypoint's life: changes, ends, and what it tells of requests.

use crate::scene::{PORT, Scene};
use anyhow::ensure;
use culvert_tests::{Answer, Ask, SOON, Spec, attempt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use testbed::{Pod, eventually};

/// Asks until it is told to stop.
fn ask_on(ask: &Ask, from: &Pod, stop: &AtomicBool) -> Vec<Answer> {
    let mut all = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        all.extend(ask.times(from, 50).unwrap());
    }
    all
}

#[test]
fn changes_under_load_drop_nothing() {
    let s = Scene::new("wp-changes");
    s.subsets();
    let stop = AtomicBool::new(false);
    let all = std::thread::scope(|scope| {
        let ask = Ask::get(&s.url("/"));
        let (stop, client) = (&stop, &s.client);
        let asking = scope.spawn(move || ask_on(&ask, client, stop));
        for n in 0..50 {
            if n % 10 == 5 {
                s.destination("connectionPool: { http: { http2MaxRequests: 1000 } }");
            } else if n % 10 == 9 {
                s.destination("");
            }
            s.route_to(if n % 2 == 0 { "v1" } else { "v2" }, "");
        }
        stop.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    });
    let bad: Vec<_> = all.iter().filter(|a| a.status != 200).collect();
    assert!(bad.is_empty(), "{} of {}: {:?}", bad.len(), all.len(), bad.first());
    for version in ["reviews-v1", "reviews-v2"] {
        assert!(all.iter().any(|a| a.by() == version), "{version} of {}", all.len());
    }
    s.is_well();
}

#[test]
fn thousands_of_routes_change_under_load_and_drop_nothing() {
    let s = Scene::new("wp-large");
    s.subsets();
    let to =
        |subset: &str| format!("route: [{{ destination: {{ host: reviews, subset: {subset} }} }}]");
    let others: String = (0..2000)
        .map(|n| format!("{{ match: [{{ uri: {{ exact: /{n} }} }}], {} }}, ", to("v1")))
        .collect();
    let stop = AtomicBool::new(false);
    let all = std::thread::scope(|scope| {
        let ask = Ask::get(&s.url("/"));
        let (stop, client) = (&stop, &s.client);
        let asking = scope.spawn(move || ask_on(&ask, client, stop));
        for subset in ["v1", "v2", "v1"] {
            s.routes(&format!("{others}{{ {} }}", to(subset)));
            assert_eq!(s.get("/").by(), format!("reviews-{subset}"));
            assert_eq!(s.get("/1999").by(), "reviews-v1");
        }
        stop.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    });
    let bad: Vec<_> = all.iter().filter(|a| a.status != 200).collect();
    assert!(bad.is_empty(), "{} of {}: {:?}", bad.len(), all.len(), bad.first());
    s.is_well();
}

#[test]
fn a_waypoint_that_is_told_to_end_finishes_what_it_does() {
    let mut s = Scene::new("wp-drain");
    let idle = s.raw();
    idle.write(b"GET / HTTP/1.1\r\nhost: reviews\r\n\r\n").unwrap();
    crate::scene::read_until(&idle, "\r\n\r\n");
    let ask = Ask::get(&s.url("/?delay=3000&key=slow"));
    let client = s.client.clone();
    let asking = std::thread::spawn(move || ask.at_once(&client, 5));
    eventually(SOON, || {
        ensure!(s.counts("slow").iter().sum::<u64>() == 5);
        Ok(())
    })
    .unwrap();
    s.waypoint.terminate();
    let all = asking.join().unwrap().unwrap();
    assert!(all.iter().all(|a| a.status == 200), "{all:?}");
    // Idle, it has nothing to wait for.
    s.waypoint.restart(&s.mesh);
    s.until(&Ask::get(&s.url("/")), |a| a.status == 200);
    let begun = Instant::now();
    s.waypoint.terminate();
    assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    // And again, while somebody asks and asks again.
    s.waypoint.restart(&s.mesh);
    s.until(&Ask::get(&s.url("/")), |a| a.status == 200);
    s.is_well();
}

/// What has been upgraded has no end that a proxy could wait for.
#[test]
fn a_websocket_goes_on_through_a_drain_until_its_deadline() {
    let mut s = Scene::new("wp-drain-ws");
    s.waypoint.kill();
    s.waypoint.restart_with(&s.mesh, &["--drain-seconds", "15"]);
    s.until(&Ask::get(&s.url("/")), |a| a.status == 200);
    let ws = s.raw();
    let head = "GET /upgrade HTTP/1.1\r\nhost: reviews\r\nconnection: Upgrade\r\n\
                upgrade: websocket\r\nsec-websocket-key: x\r\n\r\n";
    ws.write(head.as_bytes()).unwrap();
    let switched = crate::scene::read_until(&ws, "\r\n\r\n");
    assert!(switched.starts_with("HTTP/1.1 101"), "{switched}");
    let begun = Instant::now();
    s.waypoint.begin_to_end();
    // It takes nobody new from here on.
    eventually(SOON, || {
        let asked = Ask::get(&s.url("/")).from(&s.client);
        ensure!(asked.is_err(), "{asked:?}");
        Ok(())
    })
    .unwrap();
    for word in ["still", "there"] {
        ws.write(word.as_bytes()).unwrap();
        assert_eq!(ws.read_exact(5).unwrap(), word.to_uppercase().as_bytes());
    }
    assert_eq!(ws.read_to_end().unwrap_err().kind(), "ECONNRESET", "cut off, and not ended");
    let took = begun.elapsed();
    assert!(took.as_secs() >= 15, "{took:?}");
    s.waypoint.ends();
    s.waypoint.restart(&s.mesh);
    s.until(&Ask::get(&s.url("/")), |a| a.status == 200);
    s.is_well();
}

#[test]
fn where_the_waypoint_is_gone_nobody_goes_around_it_until_it_is_not_asked_for() {
    let mut s = Scene::new("wp-gone");
    assert_eq!(s.get("/").status, 200);
    s.waypoint.kill();
    for _ in 0..3 {
        let error = Ask::get(&s.url("/?key=around")).from(&s.client).unwrap_err();
        assert!(!format!("{error:#}").is_empty());
    }
    assert_eq!(s.counts("around"), [0, 0]);
    let log = s.mesh.agent_of(&s.client).log();
    let of_client = format!("src.workload=\"{}\"", s.client.name());
    let failed = |l: &&str| l.contains(&of_client) && l.contains(" error=\"");
    let line = log.lines().find(failed).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("waypoint") || line.contains("refused"), "{line}");
    // Nobody asks for it any more.
    s.mesh.use_waypoint(None);
    s.mesh.bound(&s.service, None);
    let direct = s.get("/");
    assert_eq!(direct.status, 200);
    assert!(direct.asked()["headers"]["x-forwarded-client-cert"].is_null());
    s.mesh.use_waypoint(Some("waypoint"));
    s.mesh.bound(&s.service, Some("waypoint"));
    s.waypoint.restart(&s.mesh);
    let through = s.until(&Ask::get(&s.url("/")), |a| a.status == 200);
    assert!(through.asked()["headers"]["x-forwarded-client-cert"].is_string());
}

#[test]
fn policies_of_the_workload_judge_the_client_and_not_the_waypoint() {
    let s = Scene::new("wp-principals");
    let other = s.mesh.enrolled_pod(2, "other");
    let allow = format!(
        "{{ selector: {{ matchLabels: {{ app: reviews }} }}, action: ALLOW, rules: [\
         {{ from: [{{ source: {{ principals: [\"{}\"] }} }}] }}] }}",
        s.client.principal()
    );
    s.mesh.policy("default", "allow-client", &allow);
    for app in &s.apps {
        s.mesh.policy_bound("default/allow-client", &app.pod);
    }
    let of_other = Ask::get(&s.url("/"));
    eventually(SOON, || {
        let answer = of_other.from(&other)?;
        ensure!(answer.status == 403, "{answer:?}");
        Ok(())
    })
    .unwrap();
    assert_eq!(s.get("/").status, 200);
    // Around the waypoint, the same holds.
    assert!(attempt(&other, &culvert_tests::at(s.apps[0].pod.ipv4(), PORT)).is_err());
    let deny = format!(
        "{{ selector: {{ matchLabels: {{ app: reviews }} }}, action: DENY, rules: [\
         {{ from: [{{ source: {{ principals: [\"{}\"] }} }}] }}] }}",
        s.client.principal()
    );
    s.mesh.policy("default", "deny-client", &deny);
    let denied = s.until(&Ask::get(&s.url("/")), |a| a.status == 403);
    assert_eq!(denied.body, "RBAC: access denied");
    eventually(SOON, || {
        let log = s.waypoint.access_log();
        let said = |l: &serde_json::Value| l["response_code_details"].to_string();
        ensure!(log.iter().any(|l| said(l).contains("deny-client")), "{log:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn requests_are_counted_and_told_in_istios_words() {
    let s = Scene::new("wp-telemetry");
    let post = Ask::get(&s.url("/a?b=c")).method("POST").body("12345");
    let answer = s.ask(&post.header("user-agent: tester").header("x-request-id: the-one"));
    let by = answer.by();
    assert_eq!(answer.asked()["headers"]["x-request-id"], "the-one");
    assert_eq!(s.get("/?status=404").status, 404);
    let log = s.waypoint.access_log();
    let line = &log[0];
    for (field, wanted) in [
        ("method", "POST"),
        ("path", "/a?b=c"),
        ("protocol", "HTTP/1.1"),
        ("user_agent", "tester"),
        ("request_id", "the-one"),
        ("response_flags", "-"),
        ("downstream_peer", &s.client.identity()),
        ("upstream_cluster", &format!("outbound|{PORT}||{}", s.service.hostname())),
        ("authority", &s.service.by_name()),
    ] {
        assert_eq!(line[field], wanted, "{field}: {line}");
    }
    assert_eq!((&line["response_code"], &line["bytes_received"]), (&200.into(), &5.into()));
    assert_eq!(line["bytes_sent"], answer.body.len(), "{line}");
    let metrics = s.waypoint.metrics();
    let total = |code: &str| {
        let code = format!("response_code=\"{code}\"");
        let of = |l: &&str| l.starts_with("istio_requests_total{") && l.contains(&code);
        metrics.lines().find(of).unwrap_or_else(|| panic!("{metrics}")).to_owned()
    };
    let (ok, not_found) = (total("200"), total("404"));
    assert!(ok.ends_with(" 1") && not_found.ends_with(" 1"), "{ok}\n{not_found}");
    let version = by.trim_start_matches("reviews-");
    let labels = [
        ("reporter", "waypoint"),
        ("source_workload", "client"),
        ("source_canonical_service", "client"),
        ("source_canonical_revision", "latest"),
        ("source_workload_namespace", "default"),
        ("source_principal", &s.client.identity()),
        ("source_app", "client"),
        ("source_version", "latest"),
        ("source_cluster", "Kubernetes"),
        ("destination_workload", &by),
        ("destination_canonical_service", "reviews"),
        ("destination_canonical_revision", version),
        ("destination_workload_namespace", "default"),
        ("destination_principal", &s.apps[0].pod.identity()),
        ("destination_app", "reviews"),
        ("destination_version", version),
        ("destination_cluster", "Kubernetes"),
        ("destination_service", &s.service.hostname()),
        ("destination_service_name", "reviews"),
        ("destination_service_namespace", "default"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("grpc_response_status", ""),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
    ]
    .map(|(name, value)| format!("{name}=\"{value}\""))
    .join(",");
    assert_eq!(ok, format!("istio_requests_total{{{labels}}} 1"));
    for (name, value) in [
        ("istio_request_bytes_count", 1),
        ("istio_request_bytes_sum", 5),
        ("istio_response_bytes_sum", answer.body.len()),
        ("istio_request_duration_milliseconds_count", 1),
    ] {
        let line = format!("{name}{{{labels}}} {value}");
        assert!(metrics.lines().any(|l| l == line), "no {line} in {metrics}");
    }
    // A client that is gone before the answer.
    let gone = s.raw();
    gone.write(b"GET /?delay=20000&key=gone HTTP/1.1\r\nhost: reviews\r\n\r\n").unwrap();
    eventually(SOON, || {
        ensure!(s.counts("gone").iter().sum::<u64>() == 1);
        Ok(())
    })
    .unwrap();
    gone.reset().unwrap();
    eventually(SOON, || {
        let log = s.waypoint.access_log();
        let line = log.iter().find(|l| l["path"].as_str().is_some_and(|p| p.contains("gone")));
        ensure!(line.is_some_and(|l| l["response_flags"] == "DC"), "{line:?}");
        Ok(())
    })
    .unwrap();
}

/// What the waypoint holds of the mesh: workloads, services, policies.
fn held(s: &Scene) -> [u64; 3] {
    let metrics = s.waypoint.metrics();
    ["workload", "service", "policy"].map(|kind| {
        let line = format!("culvert_waypoint_held{{type=\"{kind}\"}} ");
        let value = metrics.lines().find_map(|l| l.strip_prefix(&line));
        value.unwrap_or_else(|| panic!("no {line} in {metrics}")).parse().unwrap()
    })
}

#[test]
fn a_waypoint_holds_what_it_serves_and_who_asked_it() {
    let s = Scene::new("wp-held");
    let other = s.mesh.pod(1, Spec::named("other").label("dataplane", "none"));
    let outside = s.mesh.pod(1, Spec::named("outside").namespace("elsewhere"));
    s.mesh.apply(
        "service-elsewhere-outside",
        &format!(
            "apiVersion: v1\nkind: Service\n\
             metadata: {{ namespace: elsewhere, name: outside }}\n\
             spec: {{ clusterIP: 10.96.77.1, selector: {{ app: outside }}, \
             ports: [{{ name: http, port: {PORT} }}] }}\n"
        ),
    );
    let policy = |namespace: &str, name: &str, selector: &str| {
        s.mesh.apply(
            &format!("policy-{namespace}-{name}"),
            &format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {{ namespace: {namespace}, name: {name} }}\n\
                 spec: {{ {selector} action: DENY, rules: [{{ from: [{{ source: \
                 {{ principals: [cluster.local/ns/x/sa/x] }} }}] }}] }}\n"
            ),
        );
    };
    policy("elsewhere", "theirs", "");
    policy("default", "ours", "selector: { matchLabels: { app: reviews } },");
    policy("default", "others", "selector: { matchLabels: { app: other } },");
    // The two endpoints and this proxy itself, with its own Service, which is of the namespace as well;
    // nobody has asked it yet.
    eventually(SOON, || {
        let (held, expected) = (held(&s), [3, 2, 1]);
        ensure!(held == expected, "{held:?}, and not {expected:?}");
        Ok(())
    })
    .unwrap();
    // The client's labels are known with its first request.
    s.subsets();
    s.apply(
        "VirtualService",
        "reviews",
        "{ hosts: [reviews], http: [\
         { match: [{ sourceLabels: { app: client } }], \
           route: [{ destination: { host: reviews, subset: v2 } }] }, \
         { route: [{ destination: { host: reviews, subset: v1 } }] }] }",
    );
    s.until(&Ask::get(&s.url("/")), |a| a.by() == "reviews-v2");
    assert_eq!(held(&s), [4, 2, 1]);
    let enrolled = s.mesh.enrolled_pod(2, "another");
    let of_another = Ask::get(&s.url("/")).from(&enrolled).unwrap();
    assert_eq!(of_another.by(), "reviews-v1");
    assert_eq!(held(&s), [5, 2, 1]);
    // What a route names is held as long as it does.
    s.apply(
        "VirtualService",
        "reviews",
        "{ hosts: [reviews], http: [{ route: [\
         { destination: { host: outside.elsewhere.svc.cluster.local } }] }] }",
    );
    eventually(SOON, || {
        ensure!(held(&s)[..2] == [6, 3], "{:?}", held(&s));
        Ok(())
    })
    .unwrap();
    s.route_to("v1", "");
    eventually(SOON, || {
        ensure!(held(&s) == [5, 2, 1], "{:?}", held(&s));
        Ok(())
    })
    .unwrap();
    drop((other, outside));
    s.is_well();
}
