//! What a waypoint tells: its access log in Envoy's words, and spans.

use super::scene::{PORT, Played, Scene};
use anyhow::{Context as _, ensure};
use culvert_tests::{Ask, Mesh, SOON};
use serde_json::Value;
use testbed::{Serve, eventually};

/// MeshConfig, with this in it.
fn mesh_config(mesh: &Mesh, more: &str) {
    let more: String = more.lines().map(|l| format!("    {l}\n")).collect();
    mesh.apply(
        "mesh-config",
        &format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{ namespace: istio-system, name: istio }}\n\
             data:\n  mesh: |\n{more}"
        ),
    );
}

/// Asks until the log has a line like this.
#[track_caller]
fn logged(s: &Scene, ask: &Ask, line: &str) {
    eventually(SOON, || {
        s.ask(ask);
        let log = s.waypoint.log();
        ensure!(log.lines().any(|l| l == line), "{line}: {log}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn lines_of_the_access_log_are_as_mesh_config_has_them() {
    let s = Scene::new("wp-log-format");
    s.subsets();
    s.route_to("v1", "name: main");
    let ask = Ask::get(&s.url("/a?b=c")).header("x-b: two").header("user-agent: tester");
    mesh_config(
        &s.mesh,
        "accessLogEncoding: TEXT\naccessLogFormat: \"%REQ(:METHOD)% %REQ(:PATH)% %REQ(X-A?X-B)% \
         %RESPONSE_CODE% %RESPONSE_FLAGS% %RESP(X-POD)% %UPSTREAM_CLUSTER% %ROUTE_NAME% \
         %REQ(USER-AGENT):4% %PROTOCOL%\\n\"",
    );
    let host = s.service.hostname();
    let text =
        format!("GET /a?b=c two 200 - reviews-v1 outbound|{PORT}|v1|{host} main test HTTP/1.1");
    logged(&s, &ask, &text);
    // What is no format is told, and the one before stays.
    mesh_config(&s.mesh, "accessLogEncoding: TEXT\naccessLogFormat: \"%NO_SUCH%\"");
    eventually(SOON, || {
        let log = s.mesh.control.log();
        ensure!(log.contains("data.mesh.accessLogFormat") && log.contains("%NO_SUCH%"), "{log}");
        Ok(())
    })
    .unwrap();
    let lines = |s: &Scene| s.waypoint.log().lines().filter(|l| *l == text).count();
    let before = lines(&s);
    s.ask(&ask);
    eventually(SOON, || {
        ensure!(lines(&s) > before, "{}", s.waypoint.log());
        Ok(())
    })
    .unwrap();
    mesh_config(
        &s.mesh,
        "accessLogEncoding: JSON\naccessLogFormat: '{\"code\": \"%RESPONSE_CODE%\", \"b\": \"%REQ(X-B)%\"}'",
    );
    logged(&s, &ask, "{\"b\":\"two\",\"code\":200}");
    mesh_config(&s.mesh, "accessLogFile: \"\"");
    eventually(SOON, || {
        let before = s.waypoint.log().lines().count();
        s.ask(&ask);
        std::thread::sleep(std::time::Duration::from_millis(200));
        ensure!(s.waypoint.log().lines().count() == before, "{}", s.waypoint.log());
        Ok(())
    })
    .unwrap();
    s.is_well();
}

#[test]
fn connections_have_lines_as_mesh_config_has_them() {
    let p = Played::new("wp-log-tcp", "tcp", Serve::Manual);
    let host = p.service.hostname();
    // One connection: five bytes there, four back.
    let connect = || -> anyhow::Result<()> {
        let client = p.raw();
        client.write(b"hello")?;
        let app = p.listener.accept(SOON)?;
        app.read_exact(5)?;
        app.write(b"back")?;
        client.read_exact(4)?;
        client.shutdown_write()?;
        app.shutdown_write()?;
        Ok(())
    };
    let logged = |line: &str| {
        eventually(SOON, || {
            connect()?;
            let log = p.waypoint.log();
            ensure!(log.lines().any(|l| l == line), "{line}: {log}");
            Ok(())
        })
        .unwrap();
    };
    mesh_config(
        &p.mesh,
        "accessLogEncoding: TEXT\naccessLogFormat: \"%REQ(:METHOD)% %PROTOCOL% %RESP(SERVER)% \
         %RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %UPSTREAM_CLUSTER% \
         %UPSTREAM_HOST% %DOWNSTREAM_PEER_URI_SAN% %ROUTE_NAME% \
         %UPSTREAM_REQUEST_ATTEMPT_COUNT% %CONNECTION_TERMINATION_DETAILS%\\n\"",
    );
    let (upstream, peer) = (p.pod.ipv4(), p.client.identity());
    logged(&format!("- - - 0 - 5 4 outbound|{PORT}||{host} {upstream}:{PORT} {peer} - 1 -"));
    mesh_config(
        &p.mesh,
        "accessLogEncoding: JSON\naccessLogFormat: '{\"in\": \"%BYTES_RECEIVED%\", \
         \"path\": \"%REQ(:PATH)%\", \"flags\": \"%RESPONSE_FLAGS%\", \
         \"why\": \"%CONNECTION_TERMINATION_DETAILS%\"}'",
    );
    logged("{\"flags\":\"-\",\"in\":5,\"path\":\"-\",\"why\":\"-\"}");
    // Opened and closed are one series, and nothing stays open.
    let metrics = p.waypoint.metrics();
    let total = |name: &str| {
        let of = |l: &&str| l.starts_with(&format!("istio_tcp_connections_{name}_total{{"));
        let lines: Vec<&str> = metrics.lines().filter(of).collect();
        assert!(lines.iter().all(|l| l.contains("destination_workload=\"played\"")), "{lines:?}");
        lines.iter().filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
    };
    assert!(total("closed") > 0 && total("opened") >= total("closed"), "{metrics}");
    // Nobody listens, and nobody may.
    p.listener.close().unwrap();
    let broken = |line: &str| {
        eventually(SOON, || {
            let client = culvert_tests::dialogue::connect(&p.client, &p.service.by_name());
            let _ = client.read_to_end();
            let log = p.waypoint.log();
            let has = |l: &&str| l.starts_with(line) && !l.ends_with("\"why\":\"-\"}");
            ensure!(log.lines().any(|l| has(&l)), "{line}: {log}");
            Ok(())
        })
        .unwrap();
    };
    broken("{\"flags\":\"UF\",\"in\":0,\"path\":\"-\"");
    p.mesh.write_policy(
        "default",
        "closed",
        "{ targetRefs: [{ kind: Service, group: \"\", name: played }], action: DENY, rules: [{}] }",
    );
    broken("{\"flags\":\"-\",\"in\":0,\"path\":\"-\"");
    assert!(p.waypoint.metrics().contains("response_flags=\"DENY\""));
    mesh_config(&p.mesh, "accessLogEncoding: JSON");
    eventually(SOON, || {
        let _ = culvert_tests::dialogue::connect(&p.client, &p.service.by_name()).read_to_end();
        let log = p.waypoint.access_log();
        let line = log.last().context("no line")?;
        let why = line["connection_termination_details"].as_str().unwrap_or_default();
        ensure!(why.contains("closed") && line["path"].is_null(), "{line}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn spans_go_to_the_collector_and_traces_go_on() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const PARENT: &str = "b7ad6b7169203331";
    let s = Scene::new("wp-spans");
    let collector = s.mesh.collector(1, "collector", 4317);
    let tracing = |sampling: u32| {
        format!(
            "enableTracing: true\ndefaultProviders: {{ tracing: [otel] }}\n\
             defaultConfig: {{ tracing: {{ sampling: {sampling} }} }}\n\
             extensionProviders:\n- name: otel\n  opentelemetry:\n    \
             service: default/collector.default.svc.cluster.local\n    port: 4317\n"
        )
    };
    mesh_config(&s.mesh, &tracing(0));
    let traced = |form: &[String]| {
        let ask = Ask::get(&s.url("/traced?status=503"));
        form.iter().fold(ask, |ask, header| ask.header(header))
    };
    let span_of = |id: &str| -> anyhow::Result<Value> {
        let all = collector.spans();
        all.into_iter().find(|v| v["span"] == id).with_context(|| format!("no span {id}"))
    };
    let w3c = [format!("traceparent: 00-{TRACE}-{PARENT}-01")];
    let b3 = [format!("b3: {TRACE}-{PARENT}-1")];
    let several = [
        format!("x-b3-traceid: {TRACE}"),
        format!("x-b3-spanid: {PARENT}"),
        "x-b3-sampled: 1".to_owned(),
    ];
    // Until then the header goes by.
    s.until(&traced(&w3c), |a| {
        let seen = a.asked()["headers"]["traceparent"].to_string();
        seen.contains(TRACE) && !seen.contains(PARENT)
    });
    for form in [&w3c[..], &b3, &several] {
        let headers = s.ask(&traced(form)).asked()["headers"].clone();
        let parent = headers["traceparent"].as_str().unwrap();
        let [_, trace, own, sampled] = *parent.split('-').collect::<Vec<_>>() else {
            panic!("{parent}")
        };
        assert_eq!((trace, sampled), (TRACE, "01"));
        if form.len() == 1 && form[0].starts_with("b3") {
            assert_eq!(headers["b3"], format!("{TRACE}-{own}-1-{PARENT}"));
        } else if form.len() > 1 {
            assert_eq!(headers["x-b3-spanid"], own);
            assert_eq!(headers["x-b3-parentspanid"], PARENT);
        }
        let span = eventually(SOON, || span_of(own)).unwrap();
        assert_eq!(span["trace"], TRACE);
        assert_eq!(span["parent"], PARENT);
        assert_eq!(span["attributes"]["http.status_code"], "503");
        assert_eq!(span["attributes"]["http.url"], s.url("/traced?status=503"));
        assert_eq!(span["error"], true);
        assert_eq!(span["resource"]["k8s.pod.name"], "waypoint");
    }
    // Of what nobody has decided about a share is sampled: none, and then all.
    s.ask(&Ask::get(&s.url("/none")));
    mesh_config(&s.mesh, &tracing(100));
    let url = |span: &Value| span["attributes"]["http.url"].as_str().unwrap_or_default().to_owned();
    eventually(SOON, || {
        s.ask(&Ask::get(&s.url("/all")));
        let all = collector.spans();
        ensure!(all.iter().any(|v| url(v).ends_with("/all")), "{all:?}");
        Ok(())
    })
    .unwrap();
    assert!(!collector.spans().iter().any(|v| url(v).ends_with("/none")));
    s.is_well();
}

#[test]
fn telemetry_objects_say_who_logs_and_what_spans_hold() {
    let s = Scene::new("wp-telemetry");
    s.subsets();
    s.route_to("v1", "");
    let collector = s.mesh.collector(1, "collector", 4317);
    let telemetry = |namespace: &str, spec: &str| {
        s.mesh.apply(
            &format!("telemetry-{namespace}"),
            &format!(
                "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\n\
                 metadata: {{ namespace: {namespace}, name: one }}\nspec: {spec}\n"
            ),
        );
    };
    mesh_config(
        &s.mesh,
        "accessLogFile: \"\"\nextensionProviders:\n\
         - { name: short, envoyFileAccessLog: { path: /dev/stdout, \
         logFormat: { text: \"%REQ(:PATH)% %RESPONSE_CODE%\" } } }\n\
         - { name: otel, opentelemetry: { \
         service: default/collector.default.svc.cluster.local, port: 4317 } }\n",
    );
    telemetry("istio-system", "{ accessLogging: [{ providers: [{ name: short }] }] }");
    logged(&s, &Ask::get(&s.url("/short")), "/short 200");
    // The namespace's own goes before the mesh's.
    telemetry(
        "default",
        "{ accessLogging: [{ match: { mode: SERVER }, disabled: true }], tracing: [{ \
         providers: [{ name: otel }], randomSamplingPercentage: 100, customTags: { \
         user: { header: { name: X-User, defaultValue: nobody } }, \
         stage: { literal: { value: test } } } }] }",
    );
    let ask = Ask::get(&s.url("/told")).header("x-user: jason");
    let span = eventually(SOON, || {
        s.ask(&ask);
        let all = collector.spans();
        let told = |v: &Value| v["attributes"]["user"] == "jason";
        all.iter().find(|v| told(v)).cloned().with_context(|| format!("{all:?}"))
    })
    .unwrap();
    assert_eq!(span["attributes"]["stage"], "test");
    let lines = |path: &str| s.waypoint.log().lines().filter(|l| l.starts_with(path)).count();
    let before = lines("/told");
    s.ask(&ask);
    s.ask(&Ask::get(&s.url("/told")));
    eventually(SOON, || {
        let all = collector.spans();
        ensure!(all.iter().any(|v| v["attributes"]["user"] == "nobody"), "{all:?}");
        Ok(())
    })
    .unwrap();
    assert_eq!(lines("/told"), before, "{}", s.waypoint.log());
    s.is_well();
}
