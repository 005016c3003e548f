//! VirtualServices, DestinationRules and Gateways that Istio refuses are refused, by the field's path.
#![allow(clippy::unwrap_used, clippy::panic)]

use istio_api::{Code, Diagnostic, parse_documents};

fn diagnostics(kind: &str, spec: &str) -> Vec<Diagnostic> {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: x, namespace: ns}}\nspec: {spec}\n"
    );
    let (_, all) = parse_documents("f.yaml", &text);
    // What is good Istio and not obeyed here is another matter: tests/fields.rs.
    let of_istio = |d: &Diagnostic| d.code != Code::NotServed && d.found != "not obeyed";
    all.into_iter().filter(of_istio).collect()
}

fn good(kind: &str, spec: &str) {
    let all = diagnostics(kind, spec);
    assert!(all.is_empty(), "{spec}: {all:#?}");
}

/// Each has one thing wrong: at `path`, and the words say something about it.
fn bad(kind: &str, cases: &[(&str, &str, &str)]) {
    for (spec, path, words) in cases {
        let all = diagnostics(kind, spec);
        let named = |d: &&Diagnostic| d.path == *path && d.code.is_error();
        let found = all.iter().find(named).unwrap_or_else(|| panic!("{spec}: {all:#?}"));
        let said = format!("{} {}", found.found, found.remedy);
        assert!(said.contains(words), "{spec}: {said}");
        assert_eq!(all.len(), 1, "{spec}: {all:#?}");
    }
}

fn warned(kind: &str, spec: &str, path: &str) {
    let all = diagnostics(kind, spec);
    let found = all.iter().any(|d| d.path == path && d.code == Code::Warning);
    assert!(found && all.iter().all(|d| !d.code.is_error()), "{spec}: {all:#?}");
}

/// A VirtualService of one HTTP rule to reviews, with more in it.
fn http(more: &str) -> String {
    format!("{{hosts: [reviews], http: [{{route: [{{destination: {{host: reviews}}}}], {more}}}]}}")
}

#[test]
fn istios_own_examples_are_taken() {
    let kind = "VirtualService";
    good(kind, "{hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}");
    good(
        kind,
        "{hosts: [reviews], http: [{match: [{headers: {end-user: {exact: jason}}}], \
         route: [{destination: {host: reviews, subset: v2}}]}, \
         {route: [{destination: {host: reviews, subset: v1}, weight: 75}, \
         {destination: {host: reviews, subset: v3}, weight: 25}]}]}",
    );
    good(
        kind,
        "{hosts: ['*'], gateways: [bookinfo-gateway], http: [{match: [{uri: {exact: /productpage}}, \
         {uri: {prefix: /static}}], route: [{destination: {host: productpage, port: {number: 9080}}}]}]}",
    );
    good(kind, &http("fault: {delay: {percentage: {value: 100.0}, fixedDelay: 7s}}"));
    good(kind, &http("fault: {abort: {percentage: {value: 0.1}, httpStatus: 500}}"));
    good(
        kind,
        &http(
            "timeout: 0.5s, retries: {attempts: 3, perTryTimeout: 2s, retryOn: 'connect-failure,503'}",
        ),
    );
    good(kind, &http("mirrors: [{destination: {host: b}, percentage: {value: 5}}]"));
    good(
        kind,
        &http("match: [{withoutHeaders: {x: {regex: '*'}}, queryParams: {q: {regex: '[a-z]+'}}}]"),
    );
    good(
        kind,
        "{hosts: [a.example.com], gateways: [ns/g], tls: [{match: [{sniHosts: [a.example.com], port: 443}], \
         route: [{destination: {host: a}}]}]}",
    );
    good(kind, "{http: [{route: [{destination: {host: a}}]}]}");
    let kind = "DestinationRule";
    good(
        kind,
        "{host: reviews, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, \
         http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}}, \
         outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 3m, \
         maxEjectionPercent: 100}}, subsets: [{name: v1, labels: {version: v1}}, {name: v2}]}",
    );
    good(
        kind,
        "{host: '*.local', trafficPolicy: {tls: {mode: ISTIO_MUTUAL}, loadBalancer: \
         {consistentHash: {httpCookie: {name: user, ttl: 0s}, maglev: {tableSize: '65537'}}}}}",
    );
}

#[test]
fn virtual_services_are_held_to_istios_rules() {
    let at = |more: &str, path: &str, words: &'static str| {
        (http(more), format!("spec.http[0].{path}"), words)
    };
    let cases = [
        at("timeout: 0s", "timeout", "1ms"),
        at("timeout: 1", "timeout", "string"),
        at("match: [{uri: {exact: /a, prefix: /b}}]", "match[0].uri.prefix", "exact"),
        at("match: [{method: {prefix: ''}}]", "match[0].method.prefix", "empty"),
        at("match: [{uri: {regex: 'a('}}]", "match[0].uri.regex", "RE2"),
        at("match: [{headers: {'a b': {}}}]", "match[0].headers.a b", "name"),
        at("match: [{port: 70000}]", "match[0].port", "65535"),
        at("match: [{sourceLabels: {'-a': b}}]", "match[0].sourceLabels.-a", "label"),
        at("match: [{sourceNamespace: a/b}]", "match[0].sourceNamespace", "namespace"),
        at("redirect: {uri: /x}", "route", "redirect"),
        at("directResponse: {status: 200}", "route", "directResponse"),
        at("delegate: {name: d}", "route", "delegate"),
        at("mirror: {host: a}, mirrors: [{destination: {host: b}}]", "mirror", "mirrors"),
        at("mirrors: [{percentage: {value: 1}}]", "mirrors[0].destination", "where"),
        at("mirror: {host: a}, mirrorPercentage: {value: 101}", "mirrorPercentage.value", "100"),
        at("corsPolicy: {allowOrigins: [{}]}", "corsPolicy.allowOrigins[0]", "exact"),
        at("corsPolicy: {allowMethods: [get]}", "corsPolicy.allowMethods[0]", "GET"),
        at("corsPolicy: {maxAge: 1500ms}", "corsPolicy.maxAge", "seconds"),
        at("fault: {}", "fault", "delay"),
        at("fault: {abort: {httpStatus: 99}}", "fault.abort.httpStatus", "599"),
        at("fault: {abort: {grpcStatus: NOPE}}", "fault.abort.grpcStatus", "UNAVAILABLE"),
        at("fault: {delay: {percentage: {value: 1}}}", "fault.delay", "how long"),
        at(
            "fault: {abort: {httpStatus: 500, percentage: {value: 0.00001}}}",
            "fault.abort.percentage.value",
            "0.0001",
        ),
        at("retries: {attempts: -1}", "retries.attempts", "0 or more"),
        at("retries: {attempts: 0, retryOn: 5xx}", "retries.attempts", "off"),
        at("retries: {attempts: 1, retryOn: '5xx, reset'}", "retries.retryOn", "blanks"),
        at("rewrite: {}", "rewrite", "uri"),
        at(
            "rewrite: {uri: /, uriRegexRewrite: {match: a, rewrite: b}}",
            "rewrite.uriRegexRewrite",
            "uri",
        ),
        at(
            "rewrite: {authority: a}, headers: {request: {set: {host: b}}}",
            "rewrite.authority",
            "both",
        ),
        at("headers: {request: {set: {x: '50%'}}}", "headers.request.set.x", "%%"),
        at("headers: {response: {set: {host: a}}}", "headers.response.set.host", "header"),
        at("headers: {request: {remove: [':path']}}", "headers.request.remove[0]", "removed"),
    ];
    let cases: Vec<_> = cases.iter().map(|(s, p, w)| (s.as_str(), p.as_str(), *w)).collect();
    bad("VirtualService", &cases);
    let route = "route: [{destination: {host: a}}]";
    bad(
        "VirtualService",
        &[
            ("{hosts: [a]}", "spec", "at least one"),
            ("{hosts: ['*'], http: [{redirect: {uri: /}}]}", "spec.hosts[0]", "gateway"),
            ("{hosts: ['a_b'], http: [{redirect: {uri: /}}]}", "spec.hosts[0]", "host"),
            (
                "{hosts: ['*.foo.com', a.foo.com], http: [{redirect: {uri: /}}]}",
                "spec.hosts[1]",
                "already",
            ),
            ("{gateways: [g], http: [{redirect: {uri: /}}]}", "spec.gateways", "delegate"),
            (
                "{hosts: [a], gateways: [a/b/c], http: [{redirect: {uri: /}}]}",
                "spec.gateways[0]",
                "namespace",
            ),
            (
                "{hosts: [a], exportTo: ['*', b], http: [{redirect: {uri: /}}]}",
                "spec.exportTo[0]",
                "alone",
            ),
            ("{hosts: [a], http: [{}]}", "spec.http[0]", "route"),
            ("{hosts: [a], http: [{redirect: {}}]}", "spec.http[0].redirect", "uri"),
            (
                "{hosts: [a], http: [{redirect: {uri: /, redirectCode: 200}}]}",
                "spec.http[0].redirect.redirectCode",
                "301",
            ),
            (
                "{hosts: [a], http: [{match: [{uri: {exact: /a}}], redirect: {prefixRewrite: /b}}]}",
                "spec.http[0].redirect.prefixRewrite",
                "prefix",
            ),
            ("{http: [{delegate: {name: d}}]}", "spec.http[0].delegate", "one level"),
            (
                "{hosts: [a], http: [{route: [{destination: {host: '*'}}]}]}",
                "spec.http[0].route[0].destination.host",
                "host",
            ),
            (
                "{hosts: [a], http: [{route: [{weight: 1}]}]}",
                "spec.http[0].route[0].destination",
                "where",
            ),
            (
                "{hosts: [a], http: [{route: [{destination: {host: a}}, {destination: {host: b}}]}]}",
                "spec.http[0].route",
                "sum",
            ),
            (
                "{hosts: [a], tcp: [{match: [{destinationSubnets: [x]}], route: [{destination: {host: a}}]}]}",
                "spec.tcp[0].match[0].destinationSubnets[0]",
                "block",
            ),
            ("{hosts: [a], tcp: [{}]}", "spec.tcp[0].route", "where"),
            (
                &format!("{{hosts: [a], tls: [{{match: [{{sniHosts: [b]}}], {route}}}]}}"),
                "spec.tls[0].match[0].sniHosts[0]",
                "covers",
            ),
            (&format!("{{hosts: [a], tls: [{{{route}}}]}}"), "spec.tls[0].match", "sniHosts"),
        ],
    );
}

#[test]
fn rules_that_nothing_reaches_are_warned_of() {
    let kind = "VirtualService";
    let to = "route: [{destination: {host: a}}]";
    warned(
        kind,
        &format!("{{hosts: [a], http: [{{{to}}}, {{match: [{{uri: {{exact: /}}}}], {to}}}]}}"),
        "spec.http[1]",
    );
    let matched = format!("match: [{{uri: {{exact: /}}}}], {to}");
    warned(
        kind,
        &format!("{{hosts: [a], http: [{{{matched}}}, {{{matched}}}]}}"),
        "spec.http[1].match[0]",
    );
    warned(
        kind,
        "{hosts: [a], gateways: [g.ns], http: [{redirect: {uri: /}}]}",
        "spec.gateways[0]",
    );
}

#[test]
fn destination_rules_are_held_to_istios_rules() {
    let policy = |p: &str| format!("{{host: a, trafficPolicy: {p}}}");
    let at = |p: &str, path: &str, words: &'static str| {
        (policy(p), format!("spec.trafficPolicy{path}"), words)
    };
    let cases = [
        at("{}", "", "at least one"),
        at("{outlierDetection: {interval: 1us}}", ".outlierDetection.interval", "1ms"),
        at(
            "{outlierDetection: {maxEjectionPercent: 101}}",
            ".outlierDetection.maxEjectionPercent",
            "100",
        ),
        at(
            "{outlierDetection: {consecutiveLocalOriginFailures: 3}}",
            ".outlierDetection.consecutiveLocalOriginFailures",
            "split",
        ),
        at("{connectionPool: {}}", ".connectionPool", "tcp"),
        at(
            "{connectionPool: {tcp: {maxConnections: -1}}}",
            ".connectionPool.tcp.maxConnections",
            "0 or more",
        ),
        at(
            "{connectionPool: {http: {http2KeepAlive: {interval: 1s}}}}",
            ".connectionPool.http.http2KeepAlive",
            "timeout",
        ),
        at("{loadBalancer: {simple: RANDM}}", ".loadBalancer.simple", "RANDOM"),
        at(
            "{loadBalancer: {consistentHash: {httpCookie: {}}}}",
            ".loadBalancer.consistentHash.httpCookie.name",
            "name",
        ),
        at(
            "{loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 8}}}}",
            ".loadBalancer.consistentHash.maglev.tableSize",
            "prime",
        ),
        at(
            "{loadBalancer: {localityLbSetting: {distribute: [{from: a/*, to: {b/*: 90}}]}}}",
            ".loadBalancer.localityLbSetting.distribute[0].to",
            "100",
        ),
        at(
            "{loadBalancer: {localityLbSetting: {distribute: \
             [{from: a, to: {b: 100}}, {from: a/b, to: {c: 100}}]}}}",
            ".loadBalancer.localityLbSetting.distribute[1].from",
            "\"a\" has it",
        ),
        at(
            "{outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: a, to: b}], \
             failoverPriority: [topology.istio.io/subzone]}}}",
            ".loadBalancer.localityLbSetting.failoverPriority[0]",
            "beside failover",
        ),
        at("{loadBalancer: {warmup: {}}}", ".loadBalancer.warmup.duration", "how long"),
        at("{tls: {mode: MUTUAL, clientCertificate: a}}", ".tls.privateKey", "credentialName"),
        at(
            "{tls: {mode: SIMPLE, credentialName: a, caCertificates: b}}",
            ".tls.caCertificates",
            "secret",
        ),
        at(
            "{tls: {mode: SIMPLE, credentialName: a, insecureSkipVerify: true}}",
            ".tls.insecureSkipVerify",
            "credentialName",
        ),
        at(
            "{portLevelSettings: [{tls: {mode: ISTIO_MUTUAL}}]}",
            ".portLevelSettings[0].port",
            "which",
        ),
        at(
            "{tunnel: {protocol: GET, targetHost: a, targetPort: 80}}",
            ".tunnel.protocol",
            "CONNECT",
        ),
        at("{retryBudget: {percent: 120}}", ".retryBudget.percent", "100"),
    ];
    let cases: Vec<_> = cases.iter().map(|(s, p, w)| (s.as_str(), p.as_str(), *w)).collect();
    bad("DestinationRule", &cases);
    bad(
        "DestinationRule",
        &[
            ("{host: ''}", "spec.host", "host"),
            ("{host: a, subsets: [{name: v1}, {name: v1}]}", "spec.subsets[1].name", "twice"),
            ("{host: a, subsets: [{name: a_b}]}", "spec.subsets[0].name", "letters"),
            (
                "{host: a, workloadSelector: {matchLabels: {a: b}}, exportTo: ['*']}",
                "spec.exportTo",
                "own namespace",
            ),
        ],
    );
}

#[test]
fn gateways_are_held_to_istios_rules() {
    let kind = "Gateway";
    let server = |hosts: &str, port: &str, more: &str| {
        format!("{{selector: {{istio: g}}, servers: [{{hosts: {hosts}, port: {port}{more}}}]}}")
    };
    let http = "{number: 80, name: http, protocol: HTTP}";
    let https = "{number: 443, name: https, protocol: HTTPS}";
    good(kind, &server("['*']", http, ""));
    good(
        kind,
        &server("[ns/a.example.com, '*/*.example.com']", http, ", tls: {httpsRedirect: true}"),
    );
    good(kind, &server("['*']", https, ", tls: {mode: SIMPLE, credentialName: c}"));
    good(kind, &server("['*']", https, ", tls: {mode: PASSTHROUGH}"));
    let cases = [
        (server("[]", http, ""), "spec.servers[0].hosts", "at least one"),
        (server("[short]", http, ""), "spec.servers[0].hosts[0]", "whole"),
        (server("['*a.com']", http, ""), "spec.servers[0].hosts[0]", "whole"),
        (
            server("['*']", "{number: 0, name: a, protocol: HTTP}", ""),
            "spec.servers[0].port.number",
            "65535",
        ),
        (server("['*']", "{number: 80, protocol: HTTP}", ""), "spec.servers[0].port.name", "name"),
        (
            server("['*']", "{number: 80, name: a, protocol: HTPP}", ""),
            "spec.servers[0].port.protocol",
            "HTTPS",
        ),
        (server("['*']", https, ""), "spec.servers[0].tls", "certificate"),
        (
            server("['*']", http, ", tls: {mode: SIMPLE, credentialName: c}"),
            "spec.servers[0].tls",
            "HTTPS",
        ),
        (
            server("['*']", https, ", tls: {mode: SIMPLE, serverCertificate: a}"),
            "spec.servers[0].tls.privateKey",
            "credentialName",
        ),
        (
            server(
                "['*']",
                https,
                ", tls: {mode: SIMPLE, credentialName: a, credentialNames: [b]}",
            ),
            "spec.servers[0].tls.credentialNames",
            "one place",
        ),
        (
            server("['*']", https, ", tls: {mode: ISTIO_MUTUAL, credentialName: a}"),
            "spec.servers[0].tls.credentialName",
            "mesh's own",
        ),
        (server("['*']", http, ", bind: x"), "spec.servers[0].bind", "unix"),
        ("{servers: []}".to_owned(), "spec.servers", "at least one"),
    ];
    let cases: Vec<_> = cases.iter().map(|(s, p, w)| (s.as_str(), *p, *w)).collect();
    bad(kind, &cases);
    warned(
        kind,
        &server("['*']", https, ", tls: {mode: PASSTHROUGH, credentialName: a}"),
        "spec.servers[0].tls.credentialName",
    );
}

#[test]
fn what_is_taken_and_does_nothing_is_warned_of() {
    let kind = "VirtualService";
    let set = |value: &str| http(&format!("headers: {{request: {{set: {{x-a: '{value}'}}}}}}"));
    let at = "spec.http[0].headers.request.set.x-a";
    for variable in ["%REQ(x-b)%", "a %DOWNSTREAM_REMOTE_ADDRESS% b"] {
        warned(kind, &set(variable), at);
    }
    good(kind, &set("100%%"));
    for never in ["retriable-headers", "5xx,envoy-ratelimited", "http3-post-connect-failure"] {
        let retries = format!("retries: {{attempts: 1, retryOn: '{never}'}}");
        warned(kind, &http(&retries), "spec.http[0].retries.retryOn");
    }
    good(kind, &http("retries: {attempts: 1, retryOn: '5xx,reset,503'}"));
}

#[test]
fn service_entries_are_held_to_istios_rules() {
    let entry = |more: &str| {
        format!(
            "{{hosts: [a.example], ports: [{{number: 80, name: http, protocol: HTTP}}], \
             resolution: STATIC, endpoints: [{{address: 192.0.2.1}}], {more}}}"
        )
    };
    for export_to in ["['.']", "['*']", "[a, b]", "['~']"] {
        good("ServiceEntry", &entry(&format!("exportTo: {export_to}")));
    }
    for (export_to, path, words) in [
        ("['*', a]", "spec.exportTo[0]", "stands alone"),
        ("[a, a]", "spec.exportTo[1]", "twice"),
        ("['~', a]", "spec.exportTo[0]", "a namespace"),
        ("[A_b]", "spec.exportTo[0]", "a namespace"),
    ] {
        let spec = entry(&format!("exportTo: {export_to}"));
        bad("ServiceEntry", &[(&spec, path, words)]);
    }
    let with =
        |ports: &str, more: &str| format!("{{hosts: [a.example], ports: [{ports}], {more}}}");
    let port = "{number: 80, name: http, protocol: HTTP}";
    let cases = [
        (with(port, "resolution: STATIC"), "spec.endpoints", "STATIC needs endpoints"),
        (with("{number: 0, name: http}", ""), "spec.ports[0].number", "1 to 65535"),
        (with("{number: 80, name: ''}", ""), "spec.ports[0].name", "give the port a name"),
        (with("{number: 80, name: a, protocol: HTP}", ""), "spec.ports[0].protocol", "one of TCP"),
        (
            with("{number: 80, name: a}, {number: 80, name: b}", ""),
            "spec.ports[1].number",
            "each port has its own",
        ),
        (
            with("{number: 80, name: a}, {number: 81, name: a}", ""),
            "spec.ports[1].name",
            "each port has its own",
        ),
        (with(port, "addresses: [nowhere]"), "spec.addresses[0]", "an IP address"),
        (
            with(port, "resolution: NONE, endpoints: [{address: 192.0.2.1}]"),
            "spec.endpoints",
            "use STATIC",
        ),
        (
            with(port, "resolution: STATIC, endpoints: [{address: somewhere}]"),
            "spec.endpoints[0].address",
            "an IP address",
        ),
        (
            "{hosts: ['*.example'], ports: [{number: 80, name: http}], resolution: DNS}".to_owned(),
            "spec.hosts[0]",
            "cannot be resolved",
        ),
        (
            with(
                port,
                "resolution: STATIC, endpoints: [{address: 192.0.2.1}], workloadSelector: {labels: {a: b}}",
            ),
            "spec.workloadSelector",
            "use one of the two",
        ),
    ];
    for (spec, path, words) in &cases {
        bad("ServiceEntry", &[(spec, path, words)]);
    }
}

#[test]
fn a_service_is_taken_whatever_others_say_in_its_status() {
    for status in
        ["null", "{conditions: null}", "{conditions: [{}, {type: null}, {type: a, more: 1}]}"]
    {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: ns}}\n\
             spec: {{ports: [{{port: 80}}]}}\nstatus: {status}\n"
        );
        let (objects, all) = parse_documents("f.yaml", &text);
        assert!(objects.len() == 1 && all.is_empty(), "{status}: {all:#?}");
    }
}

#[test]
fn annotations_that_say_nothing_known_are_warned_of() {
    for (kind, name, value, bad) in [
        ("Pod", "culvert.io/other-protocols", "allow", false),
        ("Pod", "culvert.io/other-protocols", "deny", false),
        ("Pod", "culvert.io/other-protocols", "yes", true),
        ("Pod", "culvert.io/same-node", "hbone", false),
        ("Service", "culvert.io/same-node", "fast", true),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: {kind}\nmetadata: {{name: x, namespace: ns, annotations: \
             {{{name}: '{value}'}}}}\nspec: {{}}\n"
        );
        let (objects, all) = parse_documents("f.yaml", &text);
        let warned = all.iter().any(|d| d.code == Code::Warning && d.path.contains(name));
        assert!(objects.len() == 1 && warned == bad, "{name}: {value}: {all:#?}");
    }
}
