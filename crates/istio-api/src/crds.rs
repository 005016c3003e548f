//! CustomResourceDefinitions of the kinds that Kubernetes lacks, made from the types that read them: what an API server
//! takes is what is understood here, field by field. They are in the chart; whoever has Istio's or Gateway API's own
//! keeps those.

mod structural;

use crate::{
    AuthorizationPolicy, PeerAuthentication, ReferenceGrant, ServiceEntry, WorkloadEntry,
    gateway_api::{
        gateway::GatewaySpec, gateway_class::GatewayClassSpec, grpc_route::GrpcRouteSpec,
        http_route::HttpRouteSpec,
    },
    istio::{
        destination_rule::DestinationRule, gateway::Gateway, telemetry::Telemetry,
        virtual_service::VirtualService,
    },
    schema::{Schema, Shape},
};
use serde_json::{Map, Value, json};

const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// A column of `kubectl get`: name, type, where it is.
type Column = (&'static str, &'static str, &'static str);

const ACCEPTED: Column =
    ("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status");
const PROGRAMMED: Column =
    ("Programmed", "string", ".status.conditions[?(@.type==\"Programmed\")].status");

/// What there is to say of a kind beside its fields.
struct Definition {
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    /// The first is the one that is stored.
    versions: &'static [&'static str],
    cluster_wide: bool,
    columns: &'static [Column],
    spec: Shape,
    /// A list of status beside `conditions`, with the key of its items; without one it is one writer's.
    list: Option<(&'static str, Option<&'static str>)>,
}

impl Definition {
    const fn new(group: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self {
            group,
            kind,
            plural,
            short: &[],
            versions: &["v1"],
            cluster_wide: false,
            columns: &[],
            spec: Shape::Leaf("struct"),
            list: None,
        }
    }

    fn networking(kind: &'static str, plural: &'static str, spec: Shape) -> Self {
        let versions = &["v1", "v1beta1", "v1alpha3"];
        Self { versions, spec, ..Self::new("networking.istio.io", kind, plural) }
    }

    fn security(kind: &'static str, plural: &'static str, spec: Shape) -> Self {
        let versions = &["v1", "v1beta1"];
        Self { versions, spec, ..Self::new("security.istio.io", kind, plural) }
    }

    fn gateway_api(kind: &'static str, plural: &'static str, spec: Shape) -> Self {
        let versions = &["v1", "v1beta1"];
        Self { versions, spec, ..Self::new(GATEWAY_API, kind, plural) }
    }
}

/// Every definition as a file: its name, and its text in YAML.
///
/// # Errors
/// When one cannot be written as YAML.
pub fn files() -> Result<Vec<(String, String)>, serde_saphyr::ser::Error> {
    let one = |d: &Definition| {
        let text = serde_saphyr::to_string(&definition(d))?;
        let head = "# Made by `cargo xtask crds` from the types that culvertd reads: not to be changed by hand.\n";
        Ok((format!("{}_{}.yaml", d.group, d.plural), format!("{head}{text}")))
    };
    definitions().iter().map(one).collect()
}

fn definitions() -> Vec<Definition> {
    let routes = Some(("parents", None));
    vec![
        Definition {
            short: &["vs"],
            columns: &[
                ("Gateways", "string", ".spec.gateways"),
                ("Hosts", "string", ".spec.hosts"),
            ],
            ..Definition::networking("VirtualService", "virtualservices", VirtualService::shape())
        },
        Definition {
            short: &["dr"],
            columns: &[("Host", "string", ".spec.host")],
            ..Definition::networking(
                "DestinationRule",
                "destinationrules",
                DestinationRule::shape(),
            )
        },
        Definition {
            short: &["gw"],
            ..Definition::networking("Gateway", "gateways", Gateway::shape())
        },
        Definition {
            short: &["se"],
            columns: &[
                ("Hosts", "string", ".spec.hosts"),
                ("Location", "string", ".spec.location"),
                ("Resolution", "string", ".spec.resolution"),
            ],
            ..Definition::networking("ServiceEntry", "serviceentries", ServiceEntry::shape())
        },
        Definition {
            short: &["we"],
            columns: &[("Address", "string", ".spec.address")],
            ..Definition::networking("WorkloadEntry", "workloadentries", WorkloadEntry::shape())
        },
        Definition {
            short: &["ap"],
            columns: &[("Action", "string", ".spec.action")],
            ..Definition::security(
                "AuthorizationPolicy",
                "authorizationpolicies",
                AuthorizationPolicy::shape(),
            )
        },
        Definition {
            short: &["pa"],
            columns: &[("Mode", "string", ".spec.mtls.mode")],
            ..Definition::security(
                "PeerAuthentication",
                "peerauthentications",
                PeerAuthentication::shape(),
            )
        },
        Definition {
            short: &["telemetry"],
            versions: &["v1", "v1alpha1"],
            spec: Telemetry::shape(),
            ..Definition::new("telemetry.istio.io", "Telemetry", "telemetries")
        },
        Definition {
            short: &["gc"],
            cluster_wide: true,
            columns: &[("Controller", "string", ".spec.controllerName"), ACCEPTED],
            ..Definition::gateway_api("GatewayClass", "gatewayclasses", GatewayClassSpec::shape())
        },
        Definition {
            short: &["gtw"],
            columns: &[
                ("Class", "string", ".spec.gatewayClassName"),
                ("Address", "string", ".status.addresses[*].value"),
                PROGRAMMED,
            ],
            list: Some(("listeners", Some("name"))),
            ..Definition::gateway_api("Gateway", "gateways", GatewaySpec::shape())
        },
        Definition {
            columns: &[("Hostnames", "string", ".spec.hostnames")],
            list: routes,
            ..Definition::gateway_api("HTTPRoute", "httproutes", HttpRouteSpec::shape())
        },
        Definition {
            versions: &["v1"],
            columns: &[("Hostnames", "string", ".spec.hostnames")],
            list: routes,
            ..Definition::gateway_api("GRPCRoute", "grpcroutes", GrpcRouteSpec::shape())
        },
        Definition {
            short: &["refgrant"],
            ..Definition::gateway_api("ReferenceGrant", "referencegrants", ReferenceGrant::shape())
        },
    ]
}

fn definition(d: &Definition) -> Value {
    let schema = json!({"openAPIV3Schema": {
        "type": "object",
        "properties": {"spec": structural::of(d.spec), "status": status(d)},
    }});
    let age = ("Age", "date", ".metadata.creationTimestamp");
    let columns: Vec<Value> = d.columns.iter().chain([&age]).map(column).collect();
    let version = |name: &&str| {
        json!({
            "name": name,
            "served": true,
            "storage": d.versions.first() == Some(name),
            "schema": schema,
            "subresources": {"status": {}},
            "additionalPrinterColumns": columns,
        })
    };
    let mut names = json!({
        "kind": d.kind,
        "listKind": format!("{}List", d.kind),
        "plural": d.plural,
        "singular": d.kind.to_ascii_lowercase(),
        "categories": [category(d)],
    });
    if let (false, Some(names)) = (d.short.is_empty(), names.as_object_mut()) {
        names.insert("shortNames".to_owned(), json!(d.short));
    }
    let mut metadata = json!({"name": format!("{}.{}", d.plural, d.group)});
    if let (GATEWAY_API, Some(metadata)) = (d.group, metadata.as_object_mut()) {
        // Without a word on it the API server takes no definition of a group of Kubernetes' own.
        let why = "unapproved, made from what Culvert reads of https://gateway-api.sigs.k8s.io";
        metadata.insert("annotations".to_owned(), json!({"api-approved.kubernetes.io": why}));
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {
            "group": d.group,
            "names": names,
            "scope": if d.cluster_wide { "Cluster" } else { "Namespaced" },
            "versions": d.versions.iter().map(version).collect::<Vec<_>>(),
        },
    })
}

fn category(d: &Definition) -> &'static str {
    if d.group == GATEWAY_API { "gateway-api" } else { "istio-io" }
}

fn column((name, kind, path): &Column) -> Value {
    json!({"name": name, "type": kind, "jsonPath": path})
}

/// What server-side apply has to know of it: which lists are one writer's, and which are many's.
fn status(d: &Definition) -> Value {
    let mut properties = Map::from_iter([("conditions".to_owned(), keyed("type"))]);
    if let Some((name, key)) = d.list {
        properties.insert(name.to_owned(), key.map_or_else(whole, keyed));
    }
    json!({
        "type": "object",
        "properties": properties,
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

fn keyed(key: &str) -> Value {
    json!({
        "type": "array",
        "items": {
            "type": "object",
            "required": [key],
            "properties": {key: {"type": "string"}},
            "x-kubernetes-preserve-unknown-fields": true,
        },
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": [key],
    })
}

fn whole() -> Value {
    json!({
        "type": "array",
        "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        "x-kubernetes-list-type": "atomic",
    })
}
