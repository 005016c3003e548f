//! Telemetry objects that Istio would refuse are refused, by the field's path.
#![allow(clippy::unwrap_used, clippy::panic)]

use istio_api::{Code, Diagnostic, parse_documents};

fn diagnostics(spec: &str) -> Vec<Diagnostic> {
    let text = format!(
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\n\
         metadata: {{name: x, namespace: ns}}\nspec: {spec}\n"
    );
    parse_documents("f.yaml", &text).1
}

#[test]
fn what_istios_tasks_have_is_taken() {
    for spec in [
        "{accessLogging: [{providers: [{name: envoy}]}]}",
        "{accessLogging: [{match: {mode: SERVER}, disabled: true}]}",
        "{selector: {matchLabels: {app: g}}, tracing: [{disableSpanReporting: true}]}",
        "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}], \
          tracing: [{providers: [{name: otel}], randomSamplingPercentage: 100.0, customTags: \
          {a: {literal: {value: b}}, c: {header: {name: d, defaultValue: e}}, f: {environment: {name: G}}}}]}",
    ] {
        let all = diagnostics(spec);
        assert!(all.is_empty(), "{spec}: {all:#?}");
    }
    let metrics = diagnostics("{metrics: [{providers: [{name: prometheus}]}]}");
    assert!(metrics.iter().all(|d| d.code == Code::Warning), "{metrics:#?}");
    assert!(!metrics.is_empty(), "that it does nothing is told");
}

#[test]
fn what_istio_refuses_is_refused() {
    for (spec, path, words) in [
        ("{tracing: [{}, {}]}", "spec.tracing", "Istio takes one"),
        ("{tracing: [{providers: [{name: a}, {name: b}]}]}", "spec.tracing[0].providers", "one"),
        (
            "{tracing: [{providers: [{name: ''}]}]}",
            "spec.tracing[0].providers[0].name",
            "extensionProviders",
        ),
        (
            "{tracing: [{randomSamplingPercentage: 101}]}",
            "spec.tracing[0].randomSamplingPercentage",
            "from 0 to 100",
        ),
        ("{tracing: [{customTags: {a: {}}}]}", "spec.tracing[0].customTags.a", "literal"),
        (
            "{tracing: [{customTags: {a: {header: {name: ''}}}}]}",
            "spec.tracing[0].customTags.a.header.name",
            "empty",
        ),
        (
            "{tracing: [{customTags: {a: {formatter: {value: x}}}}]}",
            "spec.tracing[0].customTags.a.formatter",
            "not read here",
        ),
        (
            "{accessLogging: [{filter: {expression: 'response.code >= 400'}}]}",
            "spec.accessLogging[0].filter.expression",
            "every request is logged",
        ),
        (
            "{targetRefs: [{group: '', kind: Service, name: a}]}",
            "spec.targetRefs[0].kind",
            "name its Gateway",
        ),
        (
            "{selector: {matchLabels: {a: b}}, \
              targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: a}}",
            "spec",
            "one of selector, targetRef and targetRefs",
        ),
    ] {
        let all = diagnostics(spec);
        let errors: Vec<&Diagnostic> = all.iter().filter(|d| d.code.is_error()).collect();
        let [found] = *errors else { panic!("{spec}: {all:#?}") };
        let said = format!("{} {}", found.found, found.remedy);
        assert!(found.path == path && said.contains(words), "{spec}: {found}");
    }
    let overrides = "{metrics: [{overrides: [{tagOverrides: {a: {operation: UPSERT}, \
                     b: {operation: REMOVE, value: c}}}]}]}";
    let all = diagnostics(overrides);
    let errors: Vec<&str> =
        all.iter().filter(|d| d.code.is_error()).map(|d| d.path.as_str()).collect();
    let at = "spec.metrics[0].overrides[0].tagOverrides";
    assert_eq!(errors, [format!("{at}.a.value"), format!("{at}.b.value")]);
}
