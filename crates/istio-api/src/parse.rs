//! From a file's text to objects. A document that cannot be taken becomes a diagnostic; the others
//! of its file are taken.

use crate::{
    diagnostic::{Code, Diagnostic},
    honour,
    istio::mesh_config::MeshConfig as WholeMeshConfig,
    kinds::{Kind, Object, ObjectKey, Spec},
    kubernetes::{ConfigMap, Meta},
    locate,
    mesh_config::{self, MeshConfig},
    schema::{Schema, keep_known},
    validate,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Every object of a file. With an error among the diagnostics the object it names is not among
/// the objects.
pub fn parse_documents(file: &str, text: &str) -> (Vec<Object>, Vec<Diagnostic>) {
    let mut objects = Vec::new();
    let mut diagnostics = Vec::new();
    let documents: Vec<Value> = match serde_saphyr::from_multiple_with_options(text, yaml()) {
        Ok(documents) => documents,
        Err(e) => {
            diagnostics.push(Diagnostic {
                file: file.into(),
                object: "-".into(),
                path: "-".into(),
                code: Code::Malformed,
                found: format!("not YAML: {e}"),
                remedy: "correct the file; until then what it held before stays".into(),
            });
            return (objects, diagnostics);
        }
    };
    for document in documents {
        if document.is_null() {
            continue;
        }
        // kubectl's lists.
        let items = match document.get("items").and_then(Value::as_array) {
            Some(items) if document.get("kind").and_then(Value::as_str) == Some("List") => {
                items.clone()
            }
            _ => vec![document],
        };
        for item in items {
            let mut found = Found { file, object: "-".into(), out: &mut diagnostics };
            if let Some(object) = parse_one(item, &mut found) {
                objects.push(object);
            }
        }
    }
    (objects, diagnostics)
}

/// One object, as an API server or an admission request has it: whole, with `apiVersion` and `kind`.
/// With an error among the diagnostics there is no object.
pub fn parse_object(origin: &str, object: Value) -> (Option<Object>, Vec<Diagnostic>) {
    let mut diagnostics = Vec::new();
    let mut found = Found { file: origin, object: "-".into(), out: &mut diagnostics };
    let object = parse_one(object, &mut found);
    (object, diagnostics)
}

/// As Kubernetes reads YAML where a type is known: a node called `n` or `on` is no boolean.
fn yaml() -> serde_saphyr::Options {
    serde_saphyr::options! { strict_booleans: true }
}

/// Collects the diagnostics of one object.
pub(crate) struct Found<'a> {
    pub file: &'a str,
    pub object: String,
    pub out: &'a mut Vec<Diagnostic>,
}

impl Found<'_> {
    pub fn push(
        &mut self,
        code: Code,
        path: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.out.push(Diagnostic {
            file: self.file.into(),
            object: self.object.clone(),
            path: path.into(),
            code,
            found: found.into(),
            remedy: remedy.into(),
        });
    }
}

impl Found<'_> {
    pub fn invalid(
        &mut self,
        path: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push(Code::InvalidValue, path, found, remedy);
    }
}

/// API groups and kinds, with the versions that are taken.
fn kind_of(api_version: &str, kind: &str) -> Option<Kind> {
    let istio = |versions: &[&str], group: &str| {
        api_version.split_once('/').is_some_and(|(g, v)| g == group && versions.contains(&v))
    };
    let networking = || istio(&["v1", "v1beta1", "v1alpha3"], "networking.istio.io");
    let kubernetes = || istio(&["v1", "v1beta1"], "gateway.networking.k8s.io");
    let security = || istio(&["v1", "v1beta1"], "security.istio.io");
    match kind {
        "Namespace" if api_version == "v1" => Some(Kind::Namespace),
        "Node" if api_version == "v1" => Some(Kind::Node),
        "ServiceAccount" if api_version == "v1" => Some(Kind::ServiceAccount),
        "Pod" if api_version == "v1" => Some(Kind::Pod),
        "Service" if api_version == "v1" => Some(Kind::Service),
        "Secret" if api_version == "v1" => Some(Kind::Secret),
        "ConfigMap" if api_version == "v1" => Some(Kind::MeshConfig),
        "EndpointSlice" if api_version == "discovery.k8s.io/v1" => Some(Kind::EndpointSlice),
        "WorkloadEntry" if networking() => Some(Kind::WorkloadEntry),
        "ServiceEntry" if networking() => Some(Kind::ServiceEntry),
        "VirtualService" if networking() => Some(Kind::VirtualService),
        "DestinationRule" if networking() => Some(Kind::DestinationRule),
        "Gateway" if networking() => Some(Kind::Gateway),
        "Gateway" if kubernetes() => Some(Kind::KubernetesGateway),
        "HTTPRoute" if kubernetes() => Some(Kind::HttpRoute),
        "ReferenceGrant" if kubernetes() => Some(Kind::ReferenceGrant),
        "GRPCRoute" if istio(&["v1"], "gateway.networking.k8s.io") => Some(Kind::GrpcRoute),
        "Telemetry" if istio(&["v1", "v1alpha1"], "telemetry.istio.io") => Some(Kind::Telemetry),
        "AuthorizationPolicy" if security() => Some(Kind::AuthorizationPolicy),
        "PeerAuthentication" if security() => Some(Kind::PeerAuthentication),
        _ => None,
    }
}

fn parse_one(mut item: Value, found: &mut Found<'_>) -> Option<Object> {
    let text = |v: &Value, k: &str| v.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind_name) = (text(&item, "apiVersion"), text(&item, "kind"));
    let meta: Meta = match item.get("metadata") {
        None => Meta::default(),
        Some(m) => typed(m, "metadata", found)?,
    };
    found.object = match meta.namespace.as_str() {
        "" => format!("{kind_name} {}", meta.name),
        ns => format!("{kind_name} {ns}/{}", meta.name),
    };
    if kind_name == "EnvoyFilter" {
        found.push(
            Code::NotServed,
            "kind",
            "EnvoyFilter",
            "it patches Envoy's configuration, and no Envoy runs here: say it with VirtualService, \
             DestinationRule, Telemetry or AuthorizationPolicy",
        );
        return None;
    }
    let Some(kind) = kind_of(&api_version, &kind_name) else {
        found.push(
            Code::UnknownKind,
            "kind",
            format!("{kind_name:?} of {api_version:?}"),
            "it is passed over: this control plane does not read that kind and version",
        );
        return None;
    };
    if meta.name.is_empty() {
        found.push(Code::MissingValue, "metadata.name", "no name", "give the object a name");
        return None;
    }
    let cluster_wide = matches!(kind, Kind::Namespace | Kind::Node);
    let namespace = match (cluster_wide, meta.namespace.as_str()) {
        (true, _) => String::new(),
        // As kubectl does.
        (false, "") => "default".to_owned(),
        (false, ns) => ns.to_owned(),
    };
    let key = ObjectKey { kind, namespace, name: meta.name.clone() };
    found.object = key.to_string();
    let before = found.out.len();
    let spec = match kind {
        Kind::Namespace => Spec::Namespace(Default::default()),
        Kind::Node => Spec::Node(Default::default()),
        Kind::ServiceAccount => Spec::ServiceAccount(Default::default()),
        Kind::Pod => Spec::Pod(Box::new(typed(&item, "", found)?)),
        Kind::Service => Spec::Service(Box::new(typed(&item, "", found)?)),
        Kind::EndpointSlice => Spec::EndpointSlice(typed(&item, "", found)?),
        Kind::WorkloadEntry => Spec::WorkloadEntry(spec_of(kind, &mut item, found)?),
        Kind::ServiceEntry => Spec::ServiceEntry(Box::new(spec_of(kind, &mut item, found)?)),
        Kind::AuthorizationPolicy => {
            Spec::AuthorizationPolicy(Box::new(spec_of(kind, &mut item, found)?))
        }
        Kind::PeerAuthentication => Spec::PeerAuthentication(spec_of(kind, &mut item, found)?),
        Kind::VirtualService => Spec::VirtualService(Box::new(spec_of(kind, &mut item, found)?)),
        Kind::DestinationRule => Spec::DestinationRule(Box::new(spec_of(kind, &mut item, found)?)),
        Kind::Gateway => Spec::Gateway(Box::new(spec_of(kind, &mut item, found)?)),
        Kind::KubernetesGateway => {
            Spec::KubernetesGateway(Box::new(spec_of(kind, &mut item, found)?))
        }
        Kind::HttpRoute => Spec::HttpRoute(Box::new(spec_of(kind, &mut item, found)?)),
        Kind::GrpcRoute => Spec::GrpcRoute(Box::new(spec_of(kind, &mut item, found)?)),
        Kind::ReferenceGrant => {
            Spec::ReferenceGrant(typed(item.get("spec").unwrap_or(&Value::Null), "spec", found)?)
        }
        Kind::Telemetry => Spec::Telemetry(Box::new(spec_of(kind, &mut item, found)?)),
        Kind::Secret => match serde_json::from_value(item) {
            Ok(secret) => Spec::Secret(secret),
            Err(_) => {
                // Serde's words may quote what nobody is to read.
                let remedy = "its values are text, in base64 under data or plain under stringData";
                found.invalid("data", "not a Secret", remedy);
                return None;
            }
        },
        Kind::MeshConfig => {
            let map: ConfigMap = typed(&item, "", found)?;
            // Other ConfigMaps are nobody's business here.
            let text = (key.name == "istio").then(|| Spec::mesh_config(&map)).flatten()?;
            Spec::MeshConfig(mesh_config(text, found)?)
        }
    };
    let object = Object { key, meta, spec };
    validate::object(&object, found);
    let refused = found.out.iter().skip(before).any(|d| d.code.is_error());
    (!refused).then_some(object)
}

fn mesh_config(text: &str, found: &mut Found<'_>) -> Option<MeshConfig> {
    match serde_saphyr::from_str_with_options::<Value>(text, yaml()) {
        // Istio takes fields that it does not know, and so does a mesh of a later version.
        Ok(value) => {
            honour::check(
                Kind::MeshConfig.name(),
                WholeMeshConfig::shape(),
                &value,
                "data.mesh",
                found,
            );
            let mut known = value.clone();
            keep_known(WholeMeshConfig::shape(), &mut known);
            let whole: WholeMeshConfig = typed(&known, "data.mesh", found)?;
            mesh_config::validate::mesh_config(&whole, found);
            typed(&value, "data.mesh", found)
        }
        Err(e) => {
            found.push(Code::Malformed, "data.mesh", format!("not YAML: {e}"), "correct the text");
            None
        }
    }
}

fn spec_of<T: DeserializeOwned + Default + Schema>(
    kind: Kind,
    item: &mut Value,
    found: &mut Found<'_>,
) -> Option<T> {
    let spec = match item.get_mut("spec").map(Value::take) {
        None | Some(Value::Null) => Value::Object(serde_json::Map::new()),
        Some(spec) => spec,
    };
    // Of what is not served at all, mistakes are named all the same.
    honour::check(kind.name(), T::shape(), &spec, "spec", found);
    typed(&spec, "spec", found)
}

/// Deserializes, or says at which field it could not be done.
fn typed<T: DeserializeOwned>(value: &Value, prefix: &str, found: &mut Found<'_>) -> Option<T> {
    let message = match T::deserialize(value) {
        Ok(t) => return Some(t),
        Err(e) => e.to_string(),
    };
    let fails = |part: &Value| T::deserialize(part).is_err_and(|e| e.to_string() == message);
    let inner = locate::failing(value, &fails);
    let path = match (prefix, inner.as_str()) {
        ("", p) | (p, "") => p.to_owned(),
        (a, b) => format!("{a}.{b}"),
    };
    let (code, remedy) = advice(&message);
    found.push(code, path, message, remedy);
    None
}

/// What to do about a message of serde's.
fn advice(message: &str) -> (Code, String) {
    let quoted = |s: &str| -> Vec<String> {
        s.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect()
    };
    if message.starts_with("unknown field") || message.starts_with("unknown variant") {
        let names = quoted(message);
        let code = if message.starts_with("unknown field") {
            Code::UnknownField
        } else {
            Code::InvalidValue
        };
        if let Some((wrong, known)) = names.split_first()
            && let Some(nearest) = nearest(wrong, known)
        {
            return (code, format!("did you mean {nearest:?}?"));
        }
        return (code, "remove it, or use one of those that are expected".into());
    }
    if message.starts_with("missing field") {
        return (Code::MissingValue, "add it".into());
    }
    (Code::InvalidValue, "give it the type that is expected".into())
}

/// The known name that a typo most likely meant.
pub(crate) fn nearest<'a>(wrong: &str, known: &'a [String]) -> Option<&'a String> {
    let lower = wrong.to_lowercase();
    known
        .iter()
        .map(|k| (distance(&lower, &k.to_lowercase()), k))
        .filter(|(d, k)| *d <= 1 + k.len() / 4)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(64).enumerate() {
        let mut left = i + 1;
        let mut diagonal = i;
        for (above, cb) in row.iter_mut().skip(1).zip(&b) {
            let next = (diagonal + usize::from(ca != *cb)).min(left + 1).min(*above + 1);
            diagonal = *above;
            *above = next;
            left = next;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> (Vec<Object>, Vec<Diagnostic>) {
        parse_documents("f.yaml", text)
    }

    #[test]
    fn a_typo_is_met_with_the_nearest_name() {
        let (objects, diagnostics) =
            one("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {name: p, namespace: ns}\n\
             spec: {rules: [{from: [{source: {principal: [a]}}]}]}");
        assert!(objects.is_empty());
        assert_eq!(diagnostics[0].path, "spec.rules[0].from[0].source.principal");
        assert_eq!(diagnostics[0].object, "AuthorizationPolicy ns/p");
        assert_eq!(diagnostics[0].remedy, "did you mean \"principals\"?");
        assert_eq!(diagnostics[0].code, Code::UnknownField);
    }

    #[test]
    fn what_a_policy_asks_of_addresses_and_requests_is_read_or_refused() {
        let policy = |rule: &str| {
            one(&format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {{name: p, namespace: ns}}\n\
                 spec: {{targetRefs: [{{kind: Service, group: \"\", name: a}}], rules: [{rule}]}}"
            ))
        };
        let source = |s: &str| format!("{{from: [{{source: {s}}}]}}");
        let when = |key: &str, value: &str| {
            format!("{{when: [{{key: \"{key}\", values: [\"{value}\"]}}]}}")
        };
        for good in [
            source("{remoteIpBlocks: [10.0.0.1, \"fd00::/8\"]}"),
            when("remote.ip", "10.0.0.0/8"),
            when("request.headers[x-a]", "*"),
        ] {
            assert_eq!(policy(&good).0.len(), 1, "{good}");
        }
        for (bad, path) in [
            (source("{remoteIpBlocks: [10.0.0.0/33]}"), "remoteIpBlocks[0]"),
            (source("{notRemoteIpBlocks: [10.0.0]}"), "notRemoteIpBlocks[0]"),
            (when("remote.ip", "10.0.0.0/33"), "when[0].values"),
            (when("request.header[x-a]", "1"), "when[0].key"),
            (when("request.headers[]", "1"), "when[0].key"),
        ] {
            let (objects, diagnostics) = policy(&bad);
            assert!(objects.is_empty(), "{bad}");
            assert!(diagnostics.iter().any(|d| d.path.ends_with(path)), "{bad}: {diagnostics:?}");
        }
    }

    #[test]
    fn what_patches_envoy_is_refused_with_a_reason() {
        let (objects, diagnostics) =
            one("apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\n\
             metadata: {name: p, namespace: ns}\nspec: {configPatches: []}");
        assert!(objects.is_empty());
        assert_eq!(
            (diagnostics[0].object.as_str(), diagnostics[0].code),
            ("EnvoyFilter ns/p", Code::NotServed)
        );
        assert!(diagnostics[0].remedy.contains("VirtualService"), "{:?}", diagnostics[0]);
    }

    #[test]
    fn one_bad_document_does_not_take_its_neighbours_along() {
        let (objects, diagnostics) =
            one("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n\
             apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\n\
             spec: {mtls: {mode: STRCT}}\n---\n\
             apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n");
        assert_eq!(objects.len(), 2);
        assert_eq!(diagnostics.len(), 1);
        assert_eq!(diagnostics[0].remedy, "did you mean \"STRICT\"?");
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_said_without_it() {
        let (objects, diagnostics) =
            one("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: hunter2\n");
        assert!(objects.is_empty());
        assert_eq!(diagnostics.len(), 1);
        assert!(!format!("{diagnostics:?}").contains("hunter2"));
        let (objects, _) = one("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n\
             stringData: {tls.key: hunter2}\n");
        assert_eq!(objects.len(), 1);
        assert!(!format!("{objects:?}").contains("hunter2"));
    }

    #[test]
    fn text_that_is_no_yaml_is_one_diagnostic() {
        let (objects, diagnostics) = one("a: [b\n- c: }");
        assert!(objects.is_empty());
        assert_eq!(diagnostics.len(), 1);
        assert_eq!(diagnostics[0].code, Code::Malformed);
    }
}
