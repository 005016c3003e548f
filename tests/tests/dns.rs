//! Names: what an enrolled pod's resolver gets to hear.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::net::IpAddr;

use culvert_tests::dialogue::serve;
use culvert_tests::names::{
    RecordType, ResponseCode, addresses, ask, asker, lookup, parse, question, server_of,
};
use culvert_tests::stage::record;
use culvert_tests::{Mesh, MeshPod, SOON, Spec, Stage, attempt, run_in};
use scripted::messages::{response, service, workload};
use serde_json::json;
use testbed::{Serve, eventually};
use xds::proto::workload as pb;
use xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

const PORT: u16 = 8080;

const ENTRY: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { namespace: default, name: outside }
spec:
  hosts: [api.outside.example]
  ports: [{ number: 80, name: http, protocol: HTTP }]
  resolution: STATIC
  endpoints: [{ address: 192.0.2.7 }]
";

/// Waits until the name has such addresses; the answer is those.
fn found(pod: &MeshPod, name: &str, kind: RecordType) -> Vec<IpAddr> {
    eventually(SOON, || {
        let found = addresses(&lookup(pod, name, kind)?);
        anyhow::ensure!(!found.is_empty(), "{name} has no address");
        Ok(found)
    })
    .unwrap()
}

#[track_caller]
fn unknown(pod: &MeshPod, name: &str) {
    let answer = lookup(pod, name, RecordType::A).unwrap();
    assert_eq!(answer.response_code(), ResponseCode::NXDomain, "{name}: {answer}");
}

fn forwarded(mesh: &Mesh) -> f64 {
    mesh.agent(1).metric("istio_dns_upstream_requests_total", &[])
}

#[test]
fn a_host_of_a_service_entry_has_addresses_of_its_own() {
    let mesh = Mesh::new("dns-entry");
    let a = mesh.enrolled_pod(1, "a");
    mesh.apply("entry", ENTRY);
    let v4 = found(&a, "api.outside.example", RecordType::A);
    assert!(matches!(v4[..], [IpAddr::V4(ip)] if ip.octets()[..2] == [240, 240]), "{v4:?}");
    let v6 = found(&a, "api.outside.example", RecordType::AAAA);
    assert!(matches!(v6[..], [IpAddr::V6(ip)] if ip.segments()[..2] == [0x2001, 2]), "{v6:?}");
    // What it has not got is said as such, and asked of nobody.
    let before = forwarded(&mesh);
    let mut resolved = a.puppet().unwrap().resolve("api.outside.example").unwrap();
    resolved.sort();
    assert_eq!(resolved, [v4, v6].concat());
    assert_eq!(forwarded(&mesh), before, "the first question was not enough");
    mesh.delete("entry");
    eventually(SOON, || {
        let answer = lookup(&a, "api.outside.example", RecordType::A)?;
        anyhow::ensure!(answer.response_code() == ResponseCode::NXDomain, "{answer}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_connection_to_a_host_of_a_service_entry_reaches_its_workload_with_its_identity() {
    let mesh = Mesh::new("dns-hbone");
    let (a, b) = (mesh.enrolled_pod(1, "a"), mesh.enrolled_pod(2, "b"));
    serve(&b, PORT, Serve::Script);
    mesh.apply(
        "entry",
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { namespace: default, name: inside }
spec:
  hosts: [db.inside.example]
  location: MESH_INTERNAL
  ports: [{ number: 80, targetPort: 8080, name: tcp, protocol: TCP }]
  resolution: STATIC
  workloadSelector: { labels: { app: b } }
",
    );
    found(&a, "db.inside.example", RecordType::A);
    eventually(SOON, || Ok(attempt(&a, "db.inside.example:80")?)).unwrap();
    let line = mesh.agent(2).logged(&["direction=\"inbound\"", &a.identity(), &b.identity()]);
    assert!(line.contains(&b.ipv4().to_string()) || line.contains(&b.ipv6().to_string()), "{line}");
}

#[test]
fn services_have_their_virtual_addresses_and_headless_ones_their_endpoints() {
    let mesh = Mesh::new("dns-services");
    let a = mesh.enrolled_pod(1, "a");
    let member = |n: u8| {
        let name = format!("db-{n}");
        let spec = Spec::named(&name).label("app", "db");
        let more = json!({ "spec": { "hostname": name, "subdomain": "db" } });
        mesh.pod(1 + usize::from(n % 2), spec.with(more))
    };
    let members = [member(0), member(1), member(2)];
    mesh.apply(
        "headless",
        "
apiVersion: v1
kind: Service
metadata: { namespace: default, name: db }
spec:
  clusterIP: None
  selector: { app: db }
  ports: [{ name: tcp, port: 80, targetPort: 8080 }]
",
    );
    let service = mesh.service("a", 80, PORT, &[&a]);
    let of = |name: &str, kind| found(&a, name, kind);
    assert_eq!(of(&service.hostname(), RecordType::A), [IpAddr::from(service.ipv4)]);
    assert_eq!(of(&service.hostname(), RecordType::AAAA), [IpAddr::from(service.ipv6)]);

    let name = "db.default.svc.cluster.local";
    let mut v4: Vec<IpAddr> = members.iter().map(|m| m.ipv4().into()).collect();
    let mut v6: Vec<IpAddr> = members.iter().map(|m| m.ipv6().into()).collect();
    v4.sort();
    v6.sort();
    eventually(SOON, || {
        anyhow::ensure!(of(name, RecordType::A).len() == 3, "not all are there");
        Ok(())
    })
    .unwrap();
    assert_eq!((of(name, RecordType::A), of(name, RecordType::AAAA)), (v4, v6));
    for member in &members {
        let host = format!("{}.{name}", member.name());
        assert_eq!(of(&host, RecordType::A), [IpAddr::from(member.ipv4())]);
        assert_eq!(of(&host, RecordType::AAAA), [IpAddr::from(member.ipv6())]);
    }
    unknown(&a, &format!("db-3.{name}"));
    unknown(&a, &format!("x.db-1.{name}"));
    unknown(&a, &format!("a.{}", service.hostname()));
    // By the pod's search list, as applications do it, whatever the case of the letters.
    for short in ["db-1.db", "DB-1.Db", "db-1.db.default.svc"] {
        let mut resolved = a.puppet().unwrap().resolve(short).unwrap();
        resolved.sort();
        assert_eq!(
            resolved,
            [IpAddr::from(members[1].ipv4()), members[1].ipv6().into()],
            "{short}"
        );
    }
}

/// The most specific host counts; one that has no address leaves its names to the pod's resolver.
#[test]
fn wildcard_hosts_have_the_addresses_that_they_are_given_or_their_endpoints() {
    let mesh = Mesh::new("dns-wild");
    let (a, b) = (mesh.enrolled_pod(1, "a"), mesh.enrolled_pod(2, "b"));
    let outside = mesh.pod(1, "outside");
    for p in [&b, &outside] {
        serve(p, PORT, Serve::Script);
    }
    mesh.bed.dns("one.none.wild.example", &[outside.ipv4().into()]);
    let entry = |name: &str, host: &str, more: &str| {
        mesh.apply(
            name,
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                 metadata: {{ namespace: default, name: {name} }}\nspec:\n  hosts: ['{host}']\n  \
                 ports: [{{ number: 80, targetPort: {PORT}, name: tcp, protocol: TCP }}]\n  {more}\n"
            ),
        );
    };
    entry(
        "endpoints",
        "*.wild.example",
        "resolution: STATIC\n  endpoints: [{ address: 192.0.2.7 }]",
    );
    let to_b = "resolution: STATIC\n  workloadSelector: { labels: { app: b } }";
    entry("given", "*.given.wild.example", &format!("addresses: [192.0.2.50]\n  {to_b}"));
    entry("none", "*.none.wild.example", "resolution: NONE");
    let of = |name: &str| found(&a, name, RecordType::A);
    eventually(SOON, || {
        anyhow::ensure!(of("x.given.wild.example") == [IpAddr::from([192, 0, 2, 50])], "not yet");
        anyhow::ensure!(of("one.none.wild.example") == [IpAddr::from(outside.ipv4())], "not yet");
        Ok(())
    })
    .unwrap();
    assert_eq!(mesh.control.diagnostics(), Vec::<serde_json::Value>::new());
    for name in ["one.wild.example", "two.wild.example", "x.y.wild.example"] {
        assert_eq!(of(name), [IpAddr::from([192, 0, 2, 7])], "{name}");
    }
    unknown(&a, "wild.example");
    unknown(&a, "two.none.wild.example");
    // An answer without addresses of the other kind, as the name is the mesh's.
    let answer = lookup(&a, "x.given.wild.example", RecordType::AAAA).unwrap();
    assert!(answer.response_code() == ResponseCode::NoError && answer.answers().is_empty());

    attempt(&a, "x.given.wild.example:80").unwrap();
    let line = mesh.agent(2).logged(&["direction=\"inbound\"", &a.identity(), &b.identity()]);
    assert!(line.contains(&b.ipv4().to_string()), "{line}");
    attempt(&a, &format!("one.none.wild.example:{PORT}")).unwrap();
}

#[test]
fn search_lists_are_the_pods_own() {
    let mesh = Mesh::new("dns-search");
    let a = mesh.enrolled_pod(1, "a");
    let more = json!({ "spec": { "dnsConfig": { "searches": ["corp.example."] } } });
    let corp = mesh.enrolled_pod(1, Spec::named("corp").with(more));
    let more = json!({ "spec": {
        "dnsPolicy": "None", "dnsConfig": { "searches": ["alone.example"] }
    } });
    let alone = mesh.enrolled_pod(1, Spec::named("alone").with(more));
    mesh.apply("entry", ENTRY);
    let wanted = found(&a, "api.outside.example", RecordType::A);
    let of = |pod: &MeshPod, search: &str| {
        let name = format!("api.outside.example.{search}");
        addresses(&lookup(pod, &name, RecordType::A).unwrap())
    };
    for search in ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"] {
        assert_eq!(of(&a, search), wanted, "{search}");
        assert_eq!(of(&corp, search), wanted, "{search}");
        assert!(of(&alone, search).is_empty(), "{search}");
    }
    assert_eq!(of(&corp, "corp.example"), wanted);
    assert!(of(&a, "corp.example").is_empty());
    assert_eq!(of(&alone, "alone.example"), wanted);
    // The other namespace's search list is not this one's.
    assert!(of(&a, "other.svc.cluster.local").is_empty());
}

/// However many dots make a name whole for a pod, its libraries find what they look for.
#[test]
fn names_are_found_with_any_ndots() {
    let mesh = Mesh::new("dns-ndots");
    let (a, server) = (mesh.enrolled_pod(1, "a"), mesh.pod(1, "web"));
    let web = mesh.service("web", 80, PORT, &[&server]);
    mesh.bed.dns("plain.example", &[[192, 0, 2, 1].into()]);
    // Only the mesh knows it.
    mesh.bed.dns(&web.hostname(), &[]);
    let wanted: Vec<IpAddr> = vec![web.ipv4.into(), web.ipv6.into()];
    found(&a, &web.hostname(), RecordType::A);
    for ndots in [0, 1, 2, 5, 15] {
        let server = a.node().gateway4();
        let config = format!(
            "nameserver {server}\\nsearch default.svc.cluster.local svc.cluster.local\\n\
             options ndots:{ndots}\\n"
        );
        run_in(&a, &format!("printf '{config}' > /etc/resolv.conf"));
        let puppet = a.puppet().unwrap();
        for name in ["web", "web.default", "web.default.svc.cluster.local."] {
            let mut resolved = puppet.resolve(name).unwrap();
            resolved.sort();
            assert_eq!(resolved, wanted, "{name} with ndots:{ndots}");
        }
        let plain = puppet.resolve("plain.example").unwrap();
        assert_eq!(plain, [IpAddr::from([192, 0, 2, 1])], "ndots:{ndots}");
        assert_eq!(puppet.resolve("nobody.example").unwrap_err().kind(), "resolve");
    }
}

#[test]
fn a_private_host_is_known_in_its_own_namespace_alone() {
    let mesh = Mesh::new("dns-private");
    let a = mesh.enrolled_pod(1, "a");
    let other = mesh.enrolled_pod(1, Spec::named("b").namespace("other"));
    let private = ENTRY.replace("namespace: default", "namespace: other");
    mesh.apply("entry", &format!("{private}  exportTo: ['.']\n"));
    found(&other, "api.outside.example", RecordType::A);
    unknown(&a, "api.outside.example");
    unknown(&a, "api.outside.example.default.svc.cluster.local");
}

/// One question to the pod's own server, and its answer.
fn over_tcp(pod: &MeshPod, asked: &[u8]) -> Vec<u8> {
    let sock = culvert_tests::dialogue::connect(pod, &server_of(pod).to_string());
    sock.write(&(asked.len() as u16).to_be_bytes()).unwrap();
    sock.write(asked).unwrap();
    let length = sock.read_exact(2).unwrap();
    sock.read_exact(u16::from_be_bytes([length[0], length[1]]).into()).unwrap()
}

#[test]
fn a_pod_may_keep_its_dns_to_itself() {
    let mesh = Mesh::new("dns-opt-out");
    let a = mesh.enrolled_pod(1, "a");
    let more =
        json!({ "metadata": { "annotations": { "ambient.istio.io/dns-capture": "false" } } });
    let own = mesh.enrolled_pod(1, Spec::named("own").with(more));
    mesh.apply("entry", ENTRY);
    found(&a, "api.outside.example", RecordType::A);
    let before = mesh.agent(1).metric("istio_dns_requests_total", &[]);
    unknown(&own, "api.outside.example");
    assert!(own.puppet().unwrap().resolve("api.outside.example").is_err());
    let asked = question(3, "api.outside.example", RecordType::A, None);
    assert_eq!(addresses(&parse(&over_tcp(&own, &asked))), Vec::<IpAddr>::new());
    assert_eq!(mesh.agent(1).metric("istio_dns_requests_total", &[]), before);
}

#[test]
fn an_answer_that_is_too_large_for_udp_is_whole_over_tcp() {
    let mesh = Mesh::new("dns-large");
    let a = mesh.enrolled_pod(1, "a");
    let endpoints: Vec<String> =
        (1..=120).map(|i| format!("{{ address: 198.51.100.{i} }}")).collect();
    let entry = ENTRY.replace(
        "endpoints: [{ address: 192.0.2.7 }]",
        &format!("endpoints: [{}]", endpoints.join(", ")),
    );
    // Without addresses of its own.
    let unnumbered =
        "name: outside, labels: { networking.istio.io/enable-autoallocate-ip: 'false' }";
    mesh.apply("entry", &entry.replace("name: outside", unnumbered));
    let name = "api.outside.example";
    found(&a, name, RecordType::A);
    for (payload, limit) in [(None, 512), (Some(1232), 1232), (Some(512), 512), (Some(100), 512)] {
        let bytes = ask(&asker(&a, server_of(&a)), &question(7, name, RecordType::A, payload));
        let bytes = bytes.unwrap();
        let answer = parse(&bytes);
        assert!(answer.truncated() && bytes.len() <= limit, "{} bytes of {limit}", bytes.len());
        assert_eq!(answer.extensions().is_some(), payload.is_some());
    }
    let answer = parse(&over_tcp(&a, &question(8, name, RecordType::A, None)));
    assert!(!answer.truncated());
    let wanted: Vec<IpAddr> = (1..=120).map(|i| IpAddr::from([198, 51, 100, i])).collect();
    assert_eq!(addresses(&answer), wanted);
    // The C library knows how to do this.
    assert_eq!(a.puppet().unwrap().resolve(name).unwrap().len(), 120);
}

#[test]
fn a_question_over_tcp_waits_for_discoverys_first_answer() {
    let stage = Stage::new("dns-tcp-early");
    let a = stage.pod("a");
    let mut stream = stage.control().stream();
    let mut told = |type_url, nonce, resource| {
        stream.taken(&response(type_url, nonce, Vec::from_iter(resource), &[]));
    };
    told(ADDRESS_TYPE, "pod", Some(workload("1", &record(&a))));
    // After a while the agent does without the rest, as far as it can.
    stage.agent.enroll(&a);
    let sock = culvert_tests::dialogue::connect(&a, &server_of(&a).to_string());
    let name = "late.default.svc.cluster.local";
    let asked = question(9, name, RecordType::A, None);
    sock.write(&(asked.len() as u16).to_be_bytes()).unwrap();
    sock.write(&asked).unwrap();
    eventually(SOON, || {
        let heard = stage.agent.metric("istio_dns_requests_total", &[]);
        anyhow::ensure!(heard == 1.0, "{heard} questions");
        Ok(())
    })
    .unwrap();
    let vip = pb::NetworkAddress { address: vec![10, 96, 0, 9].into(), ..Default::default() };
    let late = pb::Service {
        name: "late".into(),
        namespace: "default".into(),
        hostname: name.into(),
        addresses: vec![vip],
        ports: vec![pb::Port { service_port: 80, target_port: 80, ..Default::default() }],
        ..Default::default()
    };
    told(ADDRESS_TYPE, "service", Some(service("1", &late)));
    told(AUTHORIZATION_TYPE, "policies", None);
    let length = sock.read_exact(2).unwrap();
    let length = u16::from_be_bytes([length[0], length[1]]);
    let answer = parse(&sock.read_exact(length.into()).unwrap());
    assert_eq!(addresses(&answer), [IpAddr::from([10, 96, 0, 9])]);
}

#[test]
fn metrics_tell_questions_answers_and_those_passed_on() {
    let mesh = Mesh::new("dns-metrics");
    let a = mesh.enrolled_pod(1, "a");
    let service = mesh.service("a", 80, PORT, &[&a]);
    let counts = || {
        [
            "istio_dns_requests_total",
            "culvert_dns_answered_total",
            "istio_dns_upstream_requests_total",
            "istio_dns_upstream_failures_total",
        ]
        .map(|name| mesh.agent(1).metric(name, &[]))
    };
    assert_eq!(counts(), [0.0; 4]);
    for _ in 0..3 {
        lookup(&a, &service.hostname(), RecordType::A).unwrap();
    }
    assert_eq!(counts(), [3.0, 3.0, 0.0, 0.0]);
    unknown(&a, "nowhere.example");
    // A kind that the mesh has no word on.
    lookup(&a, &service.hostname(), RecordType::TXT).unwrap();
    assert_eq!(counts(), [5.0, 3.0, 2.0, 0.0]);
}
