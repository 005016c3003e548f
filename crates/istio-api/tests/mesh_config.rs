//! MeshConfig that Istio refuses is refused, by the field's path; what Istio takes and cannot use is
//! warned of.
#![allow(clippy::unwrap_used, clippy::panic)]

use istio_api::{Code, Diagnostic, parse_documents};

/// Whether it is taken, and what is said of it.
fn diagnostics(mesh: &str) -> (bool, Vec<Diagnostic>) {
    let text = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data:\n  mesh: |\n    {mesh}\n"
    );
    let (objects, all) = parse_documents("f.yaml", &text);
    // What is good Istio and not obeyed here is another matter: tests/fields.rs.
    (objects.len() == 1, all.into_iter().filter(|d| d.found != "not obeyed").collect())
}

fn good(mesh: &str) {
    let (taken, all) = diagnostics(mesh);
    assert!(taken && all.is_empty(), "{mesh}: {all:#?}");
}

/// One thing is wrong with it: at `path` within `data.mesh`, and the words say something about it.
fn one(mesh: &str, path: &str, words: &str, is_error: bool) {
    let (taken, all) = diagnostics(mesh);
    let [found] = &*all else { panic!("{mesh}: {all:#?}") };
    let said = format!("{} {}", found.found, found.remedy);
    assert_eq!(found.path, format!("data.mesh.{path}"), "{mesh}: {found}");
    assert!(said.contains(words), "{mesh}: {found}");
    assert_eq!((found.code.is_error(), taken), (is_error, !is_error), "{mesh}: {found}");
}

#[test]
fn what_istio_takes_is_taken() {
    for mesh in [
        "{}",
        "{proxyListenPort: 15001, connectTimeout: 10s, protocolDetectionTimeout: 0s}",
        "{connectTimeout: 1ms, protocolDetectionTimeout: 100ms}",
        "{connectTimeout: 1h, rootNamespace: mesh-root}",
        "{trustDomain: td.example.com., trustDomainAliases: [old, cluster.local]}",
        "{accessLogEncoding: JSON, h2UpgradePolicy: UPGRADE, outboundTrafficPolicy: {mode: REGISTRY_ONLY}}",
        "{localityLbSetting: {distribute: [{from: a/*, to: {a/*: 80, b/*: 20}}]}}",
        "{localityLbSetting: {distribute: [{from: a/b, to: {c: 100}}, {from: a/*, to: {d: 100}}]}}",
        "{localityLbSetting: {failover: [{from: a, to: b}], failoverPriority: [topology.istio.io/network]}}",
        "{serviceSettings: [{settings: {clusterLocal: true}, hosts: ['*.a.svc.cluster.local', b]}]}",
        "{discoverySelectors: [{matchLabels: {env: prod}}, {matchExpressions: \
          [{key: a, operator: In, values: [b]}, {key: example.com/c, operator: Exists}]}]}",
        "{meshMTLS: {minProtocolVersion: TLSV1_3, cipherSuites: [ECDHE-RSA-AES256-GCM-SHA384]}}",
        "{tlsDefaults: {ecdhCurves: [P-256, X25519MLKEM768], cipherSuites: [ALL, -AES128-SHA]}}",
        "{extensionProviders: [{name: otel, opentelemetry: {service: ns/otel.ns.svc, port: 4317}}, \
          {name: authz, envoyExtAuthzHttp: {service: 10.0.0.1, port: 80, statusOnError: '403', pathPrefix: /a}}, \
          {name: lines, envoyFileAccessLog: {path: /dev/stdout}}, {name: prom, prometheus: {}}], \
          defaultProviders: {tracing: [otel], accessLogging: [lines, envoy], metrics: [prometheus]}}",
        "{defaultConfig: {drainDuration: 45s, discoveryAddress: 'istiod.istio-system.svc:15012', \
          proxyAdminPort: 15000, statusPort: 15020, controlPlaneAuthPolicy: MUTUAL_TLS, concurrency: 0, \
          statsdUdpAddress: '[fd00::1]:9125', proxyMetadata: {A: b}}}",
        "{defaultConfig: {tracing: {sampling: 100, zipkin: {address: '$(HOST_IP):9411'}, \
          customTags: {a: {literal: {value: b}}}}}}",
        "{defaultConfig: {tracing: {lightstep: {address: 'a:1', accessToken: b}}, \
          privateKeyProvider: {qat: {pollDelay: 2ms}}, envoyMetricsService: {address: 'a:1'}}}",
    ] {
        good(mesh);
    }
}

#[test]
fn what_istio_refuses_is_refused() {
    for (mesh, path, words) in [
        ("{proxyListenPort: 0}", "proxyListenPort", "1 to 65535"),
        ("{proxyListenPort: 65536}", "proxyListenPort", "65536"),
        ("{connectTimeout: 0s}", "connectTimeout", "1ms"),
        ("{connectTimeout: 1500us}", "connectTimeout", "whole milliseconds"),
        ("{connectTimeout: 61m}", "connectTimeout", "1h"),
        ("{connectTimeout: soon}", "connectTimeout", "not a duration"),
        ("{protocolDetectionTimeout: 1us}", "protocolDetectionTimeout", "milliseconds"),
        ("{rootNamespace: ''}", "rootNamespace", "name a namespace"),
        ("{trustDomain: ''}", "trustDomain", "labels"),
        ("{trustDomain: a_b}", "trustDomain", "labels"),
        ("{trustDomainAliases: [a, B.c]}", "trustDomainAliases[1]", "\"B.c\""),
        ("{trustDomainAliases: ['a..b']}", "trustDomainAliases[0]", "labels"),
        ("{accessLogEncoding: JSN}", "accessLogEncoding", "did you mean \"JSON\"?"),
        (
            "{outboundTrafficPolicy: {mode: REGISTRY}}",
            "outboundTrafficPolicy.mode",
            "REGISTRY_ONLY",
        ),
        ("{h2UpgradePolicy: UPGRAD}", "h2UpgradePolicy", "did you mean \"UPGRADE\"?"),
        (
            "{localityLbSetting: {distribute: [{from: a, to: {b: 60, c: 30}}]}}",
            "localityLbSetting.distribute[0].to",
            "sum to 90",
        ),
        (
            "{localityLbSetting: {distribute: [{from: a, to: {b: 100}}], failover: [{from: a, to: b}]}}",
            "localityLbSetting.distribute",
            "exclude",
        ),
        (
            "{localityLbSetting: {distribute: [{from: a, to: {b: 100}}, {from: a/b, to: {c: 100}}]}}",
            "localityLbSetting.distribute[1].from",
            "\"a\" has it",
        ),
        (
            "{localityLbSetting: {distribute: [{from: a, to: {'*': 50, b: 50}}]}}",
            "localityLbSetting.distribute[0].to",
            "\"*\" has it",
        ),
        (
            "{localityLbSetting: {failover: [{from: a, to: b}], failoverPriority: [topology.kubernetes.io/zone]}}",
            "localityLbSetting.failoverPriority[0]",
            "failover",
        ),
        ("{serviceSettings: [{hosts: [a, 'b.*']}]}", "serviceSettings[0].hosts[1]", "wildcard"),
        ("{meshMTLS: {ecdhCurves: [P-256]}}", "meshMTLS.ecdhCurves", "tlsDefaults"),
        ("{meshMTLS: {minProtocolVersion: TLSV1_4}}", "meshMTLS.minProtocolVersion", "TLSV1_"),
        (
            "{extensionProviders: [{name: a, zipkin: {service: z, port: 1}, prometheus: {}}]}",
            "extensionProviders[0].zipkin",
            "together with prometheus",
        ),
    ] {
        one(mesh, path, words, true);
    }
    for (config, path, words) in [
        ("drainDuration: 0s", "drainDuration", "1ms"),
        ("drainDuration: 1500ms", "drainDuration", "whole seconds"),
        ("configPath: ''", "configPath", "empty"),
        ("binaryPath: ''", "binaryPath", "empty"),
        ("serviceCluster: ''", "serviceCluster", "empty"),
        ("discoveryAddress: ''", "discoveryAddress", "<port>"),
        ("discoveryAddress: istiod", "discoveryAddress", "<port>"),
        ("discoveryAddress: 'istiod:0'", "discoveryAddress", "<port>"),
        ("statsdUdpAddress: '10.0.0.300:1'", "statsdUdpAddress", "<port>"),
        ("envoyMetricsServiceAddress: a", "envoyMetricsServiceAddress", "<port>"),
        ("envoyMetricsService: {address: a}", "envoyMetricsService.address", "<port>"),
        ("envoyAccessLogService: {address: 'a b:1'}", "envoyAccessLogService.address", "<port>"),
        ("proxyAdminPort: 70000", "proxyAdminPort", "70000"),
        ("statusPort: -1", "statusPort", "1 to 65535"),
        ("controlPlaneAuthPolicy: INHERIT", "controlPlaneAuthPolicy", "MUTUAL_TLS"),
        ("tracing: {zipkin: {address: zipkin}}", "tracing.zipkin.address", "<port>"),
        ("tracing: {datadog: {}}", "tracing.datadog.address", "<port>"),
        ("tracing: {lightstep: {address: 'a:1'}}", "tracing.lightstep.accessToken", "none"),
        ("tracing: {customTags: {a: null}}", "tracing.customTags.a", "null"),
        (
            "tracing: {tlsSettings: {mode: MUTUAL, privateKey: /k}}",
            "tracing.tlsSettings.clientCertificate",
            "MUTUAL",
        ),
        (
            "tracing: {tlsSettings: {mode: SIMPLE, credentialName: a, insecureSkipVerify: true}}",
            "tracing.tlsSettings.insecureSkipVerify",
            "credentialName",
        ),
        ("privateKeyProvider: {}", "privateKeyProvider", "cryptomb or qat"),
        ("privateKeyProvider: {cryptomb: {}}", "privateKeyProvider.cryptomb.pollDelay", "0s"),
        (
            "privateKeyProvider: {qat: {pollDelay: 0s}}",
            "privateKeyProvider.qat.pollDelay",
            "more than 0s",
        ),
        (
            "privateKeyProvider: {cryptomb: {pollDelay: 1s}, qat: {pollDelay: 1s}}",
            "privateKeyProvider.qat",
            "together with cryptomb",
        ),
    ] {
        let mesh = format!("{{defaultConfig: {{{config}}}}}");
        one(&mesh, &format!("defaultConfig.{path}"), words, true);
    }
}

#[test]
fn what_istio_takes_and_cannot_use_is_warned_of() {
    for (mesh, path, words) in [
        ("{connectTimeot: 1s}", "connectTimeot", "did you mean \"connectTimeout\"?"),
        ("{localityLbSetting: {failver: []}}", "localityLbSetting.failver", "\"failover\"?"),
        ("{defaultConfig: {tracing: {sampling: 101}}}", "defaultConfig.tracing.sampling", "100"),
        (
            "{discoverySelectors: [{matchLabels: {-a: b}}]}",
            "discoverySelectors[0].matchLabels.-a",
            "no label",
        ),
        (
            "{discoverySelectors: [{matchExpressions: [{key: a, operator: in, values: [b]}]}]}",
            "discoverySelectors[0].matchExpressions[0].operator",
            "NotIn",
        ),
        (
            "{discoverySelectors: [{matchExpressions: [{key: a, operator: In}]}]}",
            "discoverySelectors[0].matchExpressions[0].values",
            "at least one",
        ),
        (
            "{discoverySelectors: [{matchExpressions: [{key: a, operator: Exists, values: [b]}]}]}",
            "discoverySelectors[0].matchExpressions[0].values",
            "none",
        ),
        (
            "{discoverySelectors: [{matchExpressions: [{key: '', operator: Exists}]}]}",
            "discoverySelectors[0].matchExpressions[0].key",
            "no label",
        ),
        (
            "{tlsDefaults: {ecdhCurves: [P256]}}",
            "tlsDefaults.ecdhCurves",
            "did you mean \"P-256\"?",
        ),
        ("{tlsDefaults: {ecdhCurves: [P-256, P-256]}}", "tlsDefaults.ecdhCurves", "twice"),
        ("{meshMTLS: {cipherSuites: [AES129-SHA]}}", "meshMTLS.cipherSuites", "\"AES128-SHA\"?"),
        ("{tlsDefaults: {cipherSuites: [x]}}", "tlsDefaults.cipherSuites", "one of ECDHE"),
        (
            "{extensionProviders: [{name: tracer, prometheus: {}}], defaultProviders: {tracing: [tracr]}}",
            "defaultProviders.tracing[0]",
            "did you mean \"tracer\"?",
        ),
        (
            "{defaultProviders: {accessLogging: [lines]}}",
            "defaultProviders.accessLogging[0]",
            "extensionProviders",
        ),
    ] {
        one(mesh, path, words, false);
    }
    for (provider, path, words) in [
        ("{name: '', prometheus: {}}", "name", "give it a name"),
        ("{name: first, prometheus: {}}", "name", "twice"),
        ("{name: a}", "name", "without a kind"),
        ("{name: a, zipkin: {service: '', port: 1}}", "zipkin.service", "a service's host"),
        ("{name: a, zipkin: {service: ns/short, port: 1}}", "zipkin.service", "<namespace>/<host>"),
        ("{name: a, opentelemetry: {service: a}}", "opentelemetry.port", "1 to 65535"),
        (
            "{name: a, opentelemetry: {service: a, port: 1, http: {path: /a}, grpc: {}}}",
            "opentelemetry.http",
            "together with grpc",
        ),
        ("{name: a, skywalking: {service: a, port: 70000}}", "skywalking.port", "70000"),
        ("{name: a, envoyTcpAls: {service: a_b, port: 1}}", "envoyTcpAls.service", "a_b"),
        ("{name: a, lightstep: {service: a, port: 1}}", "lightstep.accessToken", "none"),
        (
            "{name: a, envoyExtAuthzGrpc: {service: a, port: 1, statusOnError: '299'}}",
            "envoyExtAuthzGrpc.statusOnError",
            "403",
        ),
        (
            "{name: a, envoyExtAuthzHttp: {service: a, port: 1, pathPrefix: a}}",
            "envoyExtAuthzHttp.pathPrefix",
            "begins with /",
        ),
    ] {
        let mesh =
            format!("{{extensionProviders: [{{name: first, prometheus: {{}}}}, {provider}]}}");
        one(&mesh, &format!("extensionProviders[1].{path}"), words, false);
    }
}

#[test]
fn whatever_is_wrong_all_of_it_is_told() {
    let (taken, all) =
        diagnostics("{proxyListenPort: 0, rootNamespace: '', defaultConfig: {statusPort: 0}}");
    let paths: Vec<&str> = all.iter().map(|d| d.path.as_str()).collect();
    let wanted = ["proxyListenPort", "rootNamespace", "defaultConfig.statusPort"];
    assert!(!taken);
    assert_eq!(paths, wanted.map(|p| format!("data.mesh.{p}")));
    assert!(
        all.iter()
            .all(|d| d.code == Code::InvalidValue && d.object == "MeshConfig istio-system/istio")
    );
}
