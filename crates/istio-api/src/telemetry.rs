//! What Istio's own rules would refuse of a Telemetry, and what is not served.

use crate::{
    diagnostic::Code,
    istio::telemetry::{
        CustomTag, IstioMetric, Metrics, PolicyTargetReference, ProviderRef, TagOperation,
        Telemetry, Tracing,
    },
    parse::Found,
};

pub(crate) fn telemetry(t: &Telemetry, found: &mut Found<'_>) {
    let targets = usize::from(t.target_ref.is_some()) + usize::from(!t.target_refs.is_empty());
    if targets + usize::from(t.selector.is_some()) > 1 {
        let remedy = "give one of selector, targetRef and targetRefs";
        found.invalid("spec", "several".to_owned(), remedy);
    }
    if let Some(target) = &t.target_ref {
        target_of(target, "spec.targetRef", found);
    }
    for (i, target) in t.target_refs.iter().enumerate() {
        target_of(target, &format!("spec.targetRefs[{i}]"), found);
    }
    if t.tracing.len() > 1 {
        let remedy = "Istio takes one: put what it says together";
        found.invalid("spec.tracing", format!("{} entries", t.tracing.len()), remedy);
    }
    for (i, one) in t.tracing.iter().enumerate() {
        tracing(one, &format!("spec.tracing[{i}]"), found);
    }
    for (i, m) in t.metrics.iter().enumerate() {
        metrics(m, &format!("spec.metrics[{i}]"), found);
    }
    for (i, log) in t.access_logging.iter().enumerate() {
        let path = format!("spec.accessLogging[{i}]");
        providers(&log.providers, &path, found);
        if let Some(filter) = &log.filter {
            let remedy = "expressions are not read here; without the filter every request is logged, so \
                          the object is refused rather than half obeyed";
            found.push(
                Code::NotServed,
                format!("{path}.filter.expression"),
                format!("{:?}", filter.expression),
                remedy,
            );
        }
    }
}

fn target_of(t: &PolicyTargetReference, path: &str, found: &mut Found<'_>) {
    if t.name.is_empty() {
        found.push(Code::MissingValue, format!("{path}.name"), "empty", "name the object");
    }
    if !t.namespace.is_empty() {
        let remedy = "what it is about is of its own namespace: leave it out";
        found.invalid(format!("{path}.namespace"), format!("{:?}", t.namespace), remedy);
    }
    let of_gateways = t.group == "gateway.networking.k8s.io";
    if !(of_gateways && matches!(t.kind.as_str(), "Gateway" | "GatewayClass")) {
        found.push(
            Code::NotServed,
            format!("{path}.kind"),
            format!("{:?} of {:?}", t.kind, t.group),
            "a proxy tells the same of all that it serves: name its Gateway or its GatewayClass \
             (gateway.networking.k8s.io), or use a selector",
        );
    }
}

fn providers(all: &[ProviderRef], path: &str, found: &mut Found<'_>) {
    for (i, p) in all.iter().enumerate() {
        if p.name.is_empty() {
            let remedy = "name one of MeshConfig's extensionProviders";
            found.push(Code::MissingValue, format!("{path}.providers[{i}].name"), "empty", remedy);
        }
    }
}

fn tracing(t: &Tracing, path: &str, found: &mut Found<'_>) {
    providers(&t.providers, path, found);
    if t.providers.len() > 1 {
        let remedy = "Istio takes one";
        found.invalid(format!("{path}.providers"), format!("{}", t.providers.len()), remedy);
    }
    if let Some(percent) = t.random_sampling_percentage
        && !(0.0..=100.0).contains(&percent)
    {
        let at = format!("{path}.randomSamplingPercentage");
        found.invalid(at, percent.to_string(), "a percentage is from 0 to 100");
    }
    for (name, tag) in &t.custom_tags {
        let path = format!("{path}.customTags.{name}");
        if name.is_empty() {
            found.push(Code::MissingValue, path.clone(), "no name", "name the tag");
        }
        custom_tag(tag, &path, found);
    }
}

fn custom_tag(tag: &CustomTag, path: &str, found: &mut Found<'_>) {
    if tag.formatter.is_some() {
        let remedy = "formats of tags are not read here: give literal, header or environment";
        found.push(Code::NotServed, format!("{path}.formatter"), "given", remedy);
        return;
    }
    let text = match (&tag.literal, &tag.header, &tag.environment) {
        (Some(l), ..) => ("literal.value", &l.value),
        (_, Some(h), _) => ("header.name", &h.name),
        (.., Some(e)) => ("environment.name", &e.name),
        _ => {
            let remedy = "give one of literal, header and environment";
            return found.push(Code::MissingValue, path, "empty", remedy);
        }
    };
    if text.1.is_empty() {
        let at = format!("{path}.{}", text.0);
        found.push(Code::MissingValue, at, "empty", "say what the tag is to hold");
    }
}

fn metrics(m: &Metrics, path: &str, found: &mut Found<'_>) {
    providers(&m.providers, path, found);
    for (i, o) in m.overrides.iter().enumerate() {
        let path = format!("{path}.overrides[{i}]");
        if let Some(of) = &o.r#match
            && of.metric.unwrap_or(IstioMetric::AllMetrics) == IstioMetric::AllMetrics
            && of.custom_metric.as_deref() == Some("")
        {
            let at = format!("{path}.match.customMetric");
            found.push(Code::MissingValue, at, "empty", "name the metric");
        }
        for (name, tag) in &o.tag_overrides {
            let at = format!("{path}.tagOverrides.{name}.value");
            match (tag.operation, tag.value.is_empty()) {
                (TagOperation::Upsert, true) => {
                    found.push(Code::MissingValue, at, "empty", "UPSERT takes a value");
                }
                (TagOperation::Remove, false) => {
                    found.invalid(at, format!("{:?}", tag.value), "REMOVE takes no value");
                }
                _ => {}
            }
        }
    }
}
