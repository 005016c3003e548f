//! Telling: `culvertctl why` and the access log name who decided, what came near, and what to change.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use culvert_tests::{Mesh, SOON, Spec, denied, dialogue::serve};
use serde_json::Value;
use testbed::Serve;

const PORT: u16 = 8080;

fn why(mesh: &Mesh, source: &str, destination: &str) -> Value {
    let out = mesh.agent(1).ctl(&["-o", "json", "why", source, destination]);
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"))
}

fn told(v: &Value) -> String {
    v.as_str().unwrap().to_owned()
}

#[test]
fn the_deciding_rule_is_named_and_what_would_change_it() {
    let mesh = Mesh::new("why");
    let a = mesh.enrolled_pod(1, Spec::named("a").account("client"));
    let b = mesh.enrolled_pod(2, Spec::named("b").account("server"));
    serve(&b, PORT, Serve::Script);
    let service = mesh.service("b", 80, PORT, &[&b]);

    let answer = &why(&mesh, "default/a", "b:80")["answers"][0];
    assert_eq!(answer["allowed"], true);
    assert_eq!(answer["decided_by"], "no policy applies");
    assert_eq!(answer["transport"], "HBONE (mutual TLS)");

    mesh.policy(
        "default",
        "only-others",
        "{action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/other]}}]}]}",
    );
    let answer = &why(&mesh, "default/a", "b")["answers"][0];
    assert_eq!(answer["allowed"], false);
    assert_eq!(answer["nearly"][0]["policy"], "default/only-others");
    let unmet = told(&answer["nearly"][0]["unmet"][0]);
    assert_eq!(
        unmet,
        "the source's principal is cluster.local/ns/default/sa/client, and not \
         cluster.local/ns/default/sa/other"
    );
    assert!(told(&answer["change"]).contains("only-others would allow it"), "{answer}");
    // What it says is what happens, and the log says it, too.
    denied(&a, &service.at4());
    mesh.agent(2).logged(&["nearest is default/only-others, rule 0", "sa/client, and not"]);

    mesh.policy(
        "default",
        "no-clients",
        "{action: DENY, rules: [{from: [{source: {namespaces: [default]}}], to: [{operation: {ports: [\"8080\"]}}]}]}",
    );
    let answer = &why(&mesh, &a.ipv4().to_string(), &service.at4())["answers"][0];
    assert_eq!(answer["decided_by"], "deny policy default/no-clients, rule 0");
    let because: Vec<String> = answer["because"].as_array().unwrap().iter().map(told).collect();
    assert_eq!(
        because,
        ["the source's namespace is default", "the destination's port is 8080"],
        "{answer}"
    );
    assert!(told(&answer["change"]).contains("no ALLOW policy overrides a DENY"), "{answer}");
}

#[test]
fn hosts_with_wildcards_and_what_is_passed_through_are_told_as_such() {
    let mesh = Mesh::new("why-wild");
    let _a = mesh.enrolled_pod(1, "a");
    for (name, host, more) in [
        ("wild", "*.example", "resolution: STATIC, endpoints: [{ address: 192.0.2.7 }]"),
        ("none", "*.none.example", "resolution: NONE, addresses: [192.0.2.50]"),
    ] {
        mesh.apply(
            name,
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                 metadata: {{ namespace: default, name: {name} }}\n\
                 spec: {{ hosts: ['{host}'], ports: [{{ number: 80, name: tcp }}], {more} }}\n"
            ),
        );
    }
    testbed::eventually(SOON, || {
        let known = mesh.agent(1).rows("services")?;
        anyhow::ensure!(known.len() == 2, "{known:?}");
        Ok(())
    })
    .unwrap();
    let service = |to: &str, name: &str| {
        let answer = why(&mesh, "default/a", to);
        assert_eq!(answer["destination"]["service"], name, "{answer}");
        told(&answer["answers"][0]["decided_by"])
    };
    let decided = service("x.y.example", "default/*.example");
    assert!(decided.contains("not enrolled"), "{decided}");
    let decided = service("x.none.example:81", "default/*.none.example");
    assert!(decided.contains("whatever its name resolves to"), "{decided}");
    let answer = &why(&mesh, "default/a", "192.0.2.50:80")["answers"][0];
    assert!(told(&answer["decided_by"]).contains("not of the mesh"), "{answer}");
}

#[test]
fn what_cannot_be_found_is_said_with_what_to_say_instead() {
    let mesh = Mesh::new("why-not");
    let _a = mesh.enrolled_pod(1, "a");
    let out = mesh.agent(1).ctl(&["why", "default/nobody", "default/a:80"]);
    assert!(!out.status.success());
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.contains("default/nobody") && said.contains("NAMESPACE/POD"), "{said}");
    let outside = &why(&mesh, "default/a", "198.51.100.7:443")["answers"][0];
    assert_eq!((&outside["allowed"], &outside["transport"]), (&true.into(), &"plaintext".into()));
}

/// A pod that all take for one of the mesh, and that its node's agent has not captured.
#[test]
fn a_capture_that_is_not_complete_is_named() {
    let mesh = Mesh::new("why-incomplete");
    let server = mesh.enrolled_pod(2, "server");
    serve(&server, PORT, Serve::Script);
    let late = mesh.pod(1, "late");
    mesh.announce(&late);
    let notes = why(&mesh, "default/late", "default/server:8080")["notes"].to_string();
    assert!(notes.contains("its capture is not complete"), "{notes}");
    let refused = culvert_tests::attempt(&late, &culvert_tests::at(server.ipv4(), PORT));
    assert_eq!(refused.unwrap_err().kind(), "ECONNREFUSED");
    assert!(mesh.agent(2).counter(&server, "refused_plaintext") > 0);
    mesh.enroll(&late);
    culvert_tests::attempt(&late, &culvert_tests::at(server.ipv4(), PORT)).unwrap();
    let notes = why(&mesh, "default/late", "default/server:8080")["notes"].to_string();
    assert!(!notes.contains("its capture is not complete"), "{notes}");
}

#[test]
fn who_goes_around_a_waypoint_is_told_how_to_go_through_it() {
    let mesh = Mesh::new("why-waypoint");
    let _a = mesh.enrolled_pod(1, "a");
    let server = mesh.enrolled_pod(2, "server");
    serve(&server, PORT, Serve::Script);
    let service = mesh.service("server", PORT, PORT, &[&server]);
    let _waypoint = mesh.waypoint(2, "waypoint");
    mesh.use_waypoint(Some("waypoint"));
    mesh.bound(&service, Some("waypoint"));
    let around = &why(&mesh, "default/a", "default/server:8080")["answers"][0];
    assert_eq!(around["allowed"], false, "{around}");
    assert!(told(&around["decided_by"]).contains("waypoint"), "{around}");
    assert!(told(&around["change"]).contains("connect to the service"), "{around}");
    let through = why(&mesh, "default/a", &format!("server:{PORT}"));
    assert_eq!(through["answers"][0]["allowed"], true, "{through}");
    assert!(through["notes"].to_string().contains("go through its waypoint"), "{through}");
}
