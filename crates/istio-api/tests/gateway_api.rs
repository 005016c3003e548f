//! Gateway API's objects that its own rules refuse are refused, by the field's path.
#![allow(clippy::unwrap_used, clippy::panic)]

use istio_api::{Code, Diagnostic, parse_documents};

fn diagnostics(kind: &str, spec: &str) -> Vec<Diagnostic> {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: x, namespace: ns}}\nspec: {spec}\n"
    );
    parse_documents("f.yaml", &text).1
}

/// Each has one thing wrong: at `path`, and the words say something about it.
fn bad(kind: &str, cases: &[(&str, &str, &str)]) {
    for (spec, path, words) in cases {
        let all = diagnostics(kind, spec);
        let errors: Vec<&Diagnostic> = all.iter().filter(|d| d.code.is_error()).collect();
        let [found] = *errors else { panic!("{spec}: {all:#?}") };
        let said = format!("{} {}", found.found, found.remedy);
        assert!(found.path == *path && said.contains(words), "{spec}: {found}");
    }
}

/// A route of one rule.
fn rule(of: &str) -> String {
    format!("{{parentRefs: [{{name: g}}], rules: [{{{of}}}]}}")
}

#[test]
fn the_specifications_own_examples_are_taken() {
    for (kind, spec) in [
        ("HTTPRoute", rule("backendRefs: [{name: a, port: 80, weight: 9}, {name: b, port: 80}]")),
        ("HTTPRoute", rule("matches: [{path: {type: PathPrefix, value: /a}, method: GET}]")),
        ("HTTPRoute", rule("timeouts: {request: 10s, backendRequest: 500ms}")),
        ("HTTPRoute", "{parentRefs: [{group: '', kind: Service, name: a, port: 80}]}".to_owned()),
        ("GRPCRoute", rule("matches: [{method: {service: a.B, method: C}}]")),
        (
            "Gateway",
            "{gatewayClassName: istio, listeners: [{name: a, port: 443, protocol: HTTPS, \
             hostname: '*.example.com', tls: {certificateRefs: [{name: c}]}}]}"
                .to_owned(),
        ),
    ] {
        let all = diagnostics(kind, &spec);
        assert!(all.is_empty(), "{spec}: {all:#?}");
    }
    let renamed = diagnostics("HTTPRoute", &rule("backendRef: []"));
    assert_eq!(renamed[0].remedy, "did you mean \"backendRefs\"?");
    assert_eq!(renamed[0].path, "spec.rules[0].backendRef");
}

#[test]
fn routes_are_held_to_the_specifications_rules() {
    let r = |of| rule(of);
    let at = "spec.rules[0]";
    let cases = [
        ("{}".to_owned(), "spec.parentRefs".to_owned(), "Gateway or the Service"),
        (
            "{parentRefs: [{kind: Pod, group: '', name: a}]}".into(),
            "spec.parentRefs[0].kind".into(),
            "attach to",
        ),
        (
            "{parentRefs: [{name: a}], hostnames: ['10.0.0.1']}".into(),
            "spec.hostnames[0]".into(),
            "whole host",
        ),
        (r("matches: [{path: {value: a}}]"), format!("{at}.matches[0].path.value"), "absolute"),
        (
            r("matches: [{path: {value: /a/../b}}]"),
            format!("{at}.matches[0].path.value"),
            "normal form",
        ),
        (
            r("matches: [{path: {type: RegularExpression, value: '('}}]"),
            format!("{at}.matches[0].path.value"),
            "regular expression",
        ),
        (
            r("matches: [{headers: [{name: 'a b', value: x}]}]"),
            format!("{at}.matches[0].headers[0].name"),
            "header's name",
        ),
        (r("backendRefs: [{name: a}]"), format!("{at}.backendRefs[0].port"), "which port"),
        (
            r("backendRefs: [{name: a, port: 80, kind: Bucket}]"),
            format!("{at}.backendRefs[0].kind"),
            "go to a Service",
        ),
        (
            r("backendRefs: [{name: a, port: 80, weight: -1}]"),
            format!("{at}.backendRefs[0].weight"),
            "1000000",
        ),
        (r("filters: [{type: URLRewrite}]"), format!("{at}.filters[0]"), "must be given"),
        (
            r("filters: [{type: RequestRedirect, requestRedirect: {statusCode: 200}}]"),
            format!("{at}.filters[0].requestRedirect.statusCode"),
            "301",
        ),
        (
            r(
                "matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]",
            ),
            format!("{at}.filters[0].urlRewrite.path.type"),
            "PathPrefix",
        ),
        (
            r(
                "backendRefs: [{name: a, port: 80}], filters: [{type: RequestRedirect, requestRedirect: {port: 80}}]",
            ),
            format!("{at}.backendRefs"),
            "leave the backends out",
        ),
        (r("timeouts: {request: soon}"), format!("{at}.timeouts.request"), "duration"),
        (
            r("timeouts: {request: 1s, backendRequest: 2s}"),
            format!("{at}.timeouts.backendRequest"),
            "longer",
        ),
    ];
    let cases: Vec<_> = cases.iter().map(|(s, p, w)| (s.as_str(), p.as_str(), *w)).collect();
    bad("HTTPRoute", &cases);
    bad(
        "GRPCRoute",
        &[(
            &rule("matches: [{method: {}}]"),
            "spec.rules[0].matches[0].method",
            "service or method",
        )],
    );
}

#[test]
fn listeners_are_held_to_the_specifications_rules() {
    bad(
        "Gateway",
        &[
            ("{gatewayClassName: istio}", "spec.listeners", "at least one"),
            (
                "{gatewayClassName: istio, listeners: [{name: a, port: 80, protocol: HTTP}, {name: a, port: 81, protocol: HTTP}]}",
                "spec.listeners[1].name",
                "its own name",
            ),
            (
                "{gatewayClassName: istio, listeners: [{name: a, port: 443, protocol: HTTPS}]}",
                "spec.listeners[0].tls",
                "certificateRefs",
            ),
            (
                "{gatewayClassName: istio, listeners: [{name: a, port: 53, protocol: UDP}]}",
                "spec.listeners[0].protocol",
                "HTTP and HTTPS",
            ),
        ],
    );
    let all =
        diagnostics("HTTPRoute", &rule("filters: [{type: ExtensionRef, extensionRef: {name: a}}]"));
    assert!(all.iter().any(|d| d.code == Code::NotServed), "{all:#?}");
}
