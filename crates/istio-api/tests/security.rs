//! AuthorizationPolicies and PeerAuthentications that Istio refuses are refused, by the field's path.
#![allow(clippy::unwrap_used, clippy::panic)]

use istio_api::{Diagnostic, parse_documents};

fn diagnostics(kind: &str, spec: &str) -> Vec<Diagnostic> {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: x, namespace: ns}}\nspec: {spec}\n"
    );
    parse_documents("f.yaml", &text).1
}

#[track_caller]
fn good(kind: &str, spec: &str) {
    let all = diagnostics(kind, spec);
    assert!(all.is_empty(), "{spec}: {all:#?}");
}

/// Each has one thing wrong: at `path`, and the words say something about it.
#[track_caller]
fn bad(kind: &str, cases: &[(&str, &str, &str)]) {
    for (spec, path, words) in cases {
        let all = diagnostics(kind, spec);
        let errors: Vec<_> = all.iter().filter(|d| d.code.is_error()).collect();
        let [one] = errors[..] else { panic!("{spec}: {all:#?}") };
        assert_eq!(one.path, *path, "{spec}");
        let said = format!("{} {}", one.found, one.remedy);
        assert!(said.contains(words), "{spec}: {said}");
    }
}

#[test]
fn what_istios_tasks_have_is_taken() {
    for spec in [
        "{}",
        "{rules: [{}]}",
        "{action: DENY, rules: [{}]}",
        "{selector: {matchLabels: {app: httpbin}}, action: ALLOW, rules: [{from: [{source: \
          {principals: [cluster.local/ns/default/sa/sleep]}}, {source: {namespaces: [dev]}}]}]}",
        "{rules: [{from: [{source: {principals: ['*'], notPrincipals: ['*/sa/bad'], namespaces: ['a*', '*b', c], \
          notIpBlocks: [10.0.0.0/8, '2001:db8::/32', 10.1.1.1]}}], to: [{operation: {ports: ['80', '65535']}}], \
          when: [{key: source.ip, values: [10.1.2.3, 10.2.0.0/16]}, {key: destination.port, notValues: ['22']}]}]}",
        "{rules: [{from: [{source: {serviceAccounts: [default/a, b], notServiceAccounts: [other/c]}}]}]}",
        "{rules: [{from: [{source: {trustDomains: [cluster.local, 'td*'], namespaces: [dev]}}]}]}",
        "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}], rules: [{to: [\
          {operation: {methods: [GET, 'P*'], paths: [/info*, '*.js', '/a/{*}/b', '/c/{**}'], hosts: [a.example, '*.b']}}], \
          when: [{key: 'request.headers[x-token]', values: [admin, '*']}]}]}",
        "{targetRef: {kind: Service, name: reviews}, action: DENY, rules: [{when: [{key: remote.ip, notValues: [10.0.0.0/8]}]}]}",
    ] {
        good("AuthorizationPolicy", spec);
    }
    for spec in [
        "{}",
        "{mtls: {mode: STRICT}}",
        "{mtls: {}}",
        "{selector: {matchLabels: {app: a}}, mtls: {mode: UNSET}, portLevelMtls: {'8080': {mode: DISABLE}}}",
    ] {
        good("PeerAuthentication", spec);
    }
}

#[test]
fn authorization_policies_are_held_to_istios_rules() {
    bad(
        "AuthorizationPolicy",
        &[
            ("{action: DENY}", "spec.rules", "nothing would ever be denied"),
            ("{action: DENY, rules: []}", "spec.rules", "rules: [{}]"),
            ("{action: REFUSE, rules: [{}]}", "spec.action", "ALLOW"),
            (
                "{action: CUSTOM, rules: [{}], provider: {name: opa}}",
                "spec.action",
                "no external authorization",
            ),
            ("{provider: {name: opa}, rules: [{}]}", "spec.provider", "CUSTOM only"),
            ("{selector: {matchLabels: {app: 'a*'}}}", "spec.selector.matchLabels", "no wildcards"),
            ("{selector: {matchLabels: {'': a}}}", "spec.selector.matchLabels", "no wildcards"),
            (
                "{selector: {matchLabels: {app: a}}, targetRefs: [{kind: Service, name: a}]}",
                "spec.selector",
                "one of them",
            ),
            (
                "{targetRef: {kind: Service, name: a}, targetRefs: [{kind: Service, name: b}]}",
                "spec.targetRef",
                "targetRefs",
            ),
            ("{targetRefs: [{kind: Pod, name: a}]}", "spec.targetRefs[0].kind", "a Service"),
            ("{targetRefs: [{kind: Service}]}", "spec.targetRefs[0].name", "name the object"),
            (
                "{targetRefs: [{kind: Service, name: a, namespace: b}]}",
                "spec.targetRefs[0].namespace",
                "own namespace",
            ),
            ("{rules: [{from: [{source: {}}]}]}", "spec.rules[0].from[0].source", "at least one"),
            ("{rules: [{from: [{}]}]}", "spec.rules[0].from[0].source", "at least one"),
            ("{rules: [{to: [{operation: {}}]}]}", "spec.rules[0].to[0].operation", "at least one"),
            ("{rules: [{to: [{}]}]}", "spec.rules[0].to[0].operation", "at least one"),
            (
                "{rules: [{from: [{source: {principals: ['']}}]}]}",
                "spec.rules[0].from[0].source.principals[0]",
                "a value",
            ),
            (
                "{rules: [{from: [{source: {principals: [spiffe://cluster.local/ns/a/sa/b]}}]}]}",
                "spec.rules[0].from[0].source.principals[0]",
                "leave out spiffe://",
            ),
            (
                "{rules: [{from: [{source: {namespaces: ['a*b']}}]}]}",
                "spec.rules[0].from[0].source.namespaces[0]",
                "prefix*",
            ),
            (
                "{rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}",
                "spec.rules[0].from[0].source.ipBlocks[0]",
                "10.0.0.0/8",
            ),
            (
                "{rules: [{from: [{source: {notRemoteIpBlocks: [nonsense]}}]}]}",
                "spec.rules[0].from[0].source.notRemoteIpBlocks[0]",
                "10.0.0.0/8",
            ),
            (
                "{rules: [{from: [{source: {requestPrincipals: ['']}}]}]}",
                "spec.rules[0].from[0].source.requestPrincipals[0]",
                "a value",
            ),
            (
                "{rules: [{from: [{source: {trustDomains: ['a/b']}}]}]}",
                "spec.rules[0].from[0].source.trustDomains[0]",
                "a trust domain",
            ),
            (
                "{rules: [{from: [{source: {trustDomains: [a], principals: [a/ns/b/sa/c]}}]}]}",
                "spec.rules[0].from[0].source.trustDomains",
                "begin the principals",
            ),
            (
                "{rules: [{from: [{source: {serviceAccounts: [a/b/c]}}]}]}",
                "spec.rules[0].from[0].source.serviceAccounts[0]",
                "without wildcards",
            ),
            (
                "{rules: [{from: [{source: {serviceAccounts: ['a/*']}}]}]}",
                "spec.rules[0].from[0].source.serviceAccounts[0]",
                "without wildcards",
            ),
            (
                "{rules: [{from: [{source: {serviceAccounts: [a/b], namespaces: [a]}}]}]}",
                "spec.rules[0].from[0].source.serviceAccounts",
                "use either",
            ),
            (
                "{rules: [{to: [{operation: {ports: ['0']}}]}]}",
                "spec.rules[0].to[0].operation.ports[0]",
                "1 to 65535",
            ),
            (
                "{rules: [{to: [{operation: {notPorts: ['65536']}}]}]}",
                "spec.rules[0].to[0].operation.notPorts[0]",
                "1 to 65535",
            ),
            (
                "{rules: [{to: [{operation: {ports: [http]}}]}]}",
                "spec.rules[0].to[0].operation.ports[0]",
                "1 to 65535",
            ),
            (
                "{rules: [{to: [{operation: {methods: ['']}}]}]}",
                "spec.rules[0].to[0].operation.methods[0]",
                "a value",
            ),
            (
                "{rules: [{to: [{operation: {notHosts: ['']}}]}]}",
                "spec.rules[0].to[0].operation.notHosts[0]",
                "a value",
            ),
            (
                "{rules: [{to: [{operation: {paths: ['/a/{**}/b']}}]}]}",
                "spec.rules[0].to[0].operation.paths[0]",
                "{**} as the last",
            ),
            (
                "{rules: [{to: [{operation: {paths: ['/a/{*}*']}}]}]}",
                "spec.rules[0].to[0].operation.paths[0]",
                "{*} for one",
            ),
            (
                "{rules: [{to: [{operation: {notPaths: ['']}}]}]}",
                "spec.rules[0].to[0].operation.notPaths[0]",
                "a path",
            ),
            ("{rules: [{when: [{key: source.ip}]}]}", "spec.rules[0].when[0]", "at least one"),
            ("{rules: [{when: [{values: [a]}]}]}", "spec.rules[0].when[0].key", "source.namespace"),
            (
                "{rules: [{when: [{key: source.address, values: [10.0.0.1]}]}]}",
                "spec.rules[0].when[0].key",
                "source.ip",
            ),
            (
                "{rules: [{when: [{key: 'request.headers[]', values: [a]}]}]}",
                "spec.rules[0].when[0].key",
                "request.headers[<name>]",
            ),
            (
                "{rules: [{when: [{key: source.ip, values: [nonsense]}]}]}",
                "spec.rules[0].when[0].values",
                "source.ip",
            ),
            (
                "{rules: [{when: [{key: destination.port, notValues: ['0']}]}]}",
                "spec.rules[0].when[0].values",
                "destination.port",
            ),
            (
                "{rules: [{when: [{key: remote.ip, values: [nonsense]}]}]}",
                "spec.rules[0].when[0].values",
                "remote.ip",
            ),
            ("{rule: [{}]}", "spec.rule", "rules"),
        ],
    );
}

#[test]
fn peer_authentications_are_held_to_istios_rules() {
    bad(
        "PeerAuthentication",
        &[
            ("{mtls: {mode: STRIKT}}", "spec.mtls.mode", "STRICT"),
            (
                "{portLevelMtls: {'8080': {mode: STRICT}}}",
                "spec.portLevelMtls",
                "add spec.selector.matchLabels",
            ),
            (
                "{selector: {matchLabels: {app: a}}, portLevelMtls: {'0': {mode: STRICT}}}",
                "spec.portLevelMtls",
                "1 to 65535",
            ),
            (
                "{selector: {matchLabels: {app: a}}, portLevelMtls: {http: {mode: STRICT}}}",
                "spec.portLevelMtls",
                "1 to 65535",
            ),
            (
                "{selector: {matchLabels: {app: '*'}}, mtls: {mode: STRICT}}",
                "spec.selector.matchLabels",
                "no wildcards",
            ),
            ("{mtsl: {mode: STRICT}}", "spec.mtsl", "mtls"),
        ],
    );
}
