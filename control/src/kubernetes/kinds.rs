//! What is watched: each kind that the control plane reads, where the API server has it, and of which
//! objects nothing is wanted.

use istio_api::Kind;

/// A kind, and where it is to be found.
#[derive(Debug, PartialEq, Eq)]
pub struct Watched {
    pub kind: Kind,
    pub group: &'static str,
    /// The first of these that the API server has.
    pub versions: &'static [&'static str],
    pub plural: &'static str,
    pub object_kind: &'static str,
    /// Only in the control plane's own namespace.
    pub own_namespace: bool,
    pub field_selector: Option<&'static str>,
}

impl Watched {
    /// As `apiVersion` has it.
    pub fn api_version(&self, version: &str) -> String {
        match self.group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        }
    }

    /// Kinds that every API server has; others come with their definitions.
    pub fn is_built_in(&self) -> bool {
        matches!(self.group, "" | "discovery.k8s.io")
    }
}

const fn core(kind: Kind, plural: &'static str, object_kind: &'static str) -> Watched {
    Watched {
        kind,
        group: "",
        versions: &["v1"],
        plural,
        object_kind,
        own_namespace: false,
        field_selector: None,
    }
}

const fn custom(
    kind: Kind,
    group: &'static str,
    versions: &'static [&'static str],
    plural: &'static str,
    object_kind: &'static str,
) -> Watched {
    Watched {
        kind,
        group,
        versions,
        plural,
        object_kind,
        own_namespace: false,
        field_selector: None,
    }
}

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";
const GATEWAY_API: &str = "gateway.networking.k8s.io";
const ISTIO: &[&str] = &["v1", "v1beta1", "v1alpha3"];

pub const WATCHED: &[Watched] = &[
    core(Kind::Namespace, "namespaces", "Namespace"),
    core(Kind::Node, "nodes", "Node"),
    core(Kind::ServiceAccount, "serviceaccounts", "ServiceAccount"),
    core(Kind::Pod, "pods", "Pod"),
    core(Kind::Service, "services", "Service"),
    Watched {
        // Releases and tokens are many, large, and never a gateway's.
        field_selector: Some(
            "type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token,\
             type!=kubernetes.io/dockerconfigjson,type!=bootstrap.kubernetes.io/token",
        ),
        ..core(Kind::Secret, "secrets", "Secret")
    },
    Watched {
        own_namespace: true,
        field_selector: Some("metadata.name=istio"),
        ..core(Kind::MeshConfig, "configmaps", "ConfigMap")
    },
    custom(Kind::EndpointSlice, "discovery.k8s.io", &["v1"], "endpointslices", "EndpointSlice"),
    custom(Kind::WorkloadEntry, NETWORKING, ISTIO, "workloadentries", "WorkloadEntry"),
    custom(Kind::ServiceEntry, NETWORKING, ISTIO, "serviceentries", "ServiceEntry"),
    custom(Kind::VirtualService, NETWORKING, ISTIO, "virtualservices", "VirtualService"),
    custom(Kind::DestinationRule, NETWORKING, ISTIO, "destinationrules", "DestinationRule"),
    custom(Kind::Gateway, NETWORKING, ISTIO, "gateways", "Gateway"),
    custom(
        Kind::AuthorizationPolicy,
        SECURITY,
        &["v1", "v1beta1"],
        "authorizationpolicies",
        "AuthorizationPolicy",
    ),
    custom(
        Kind::PeerAuthentication,
        SECURITY,
        &["v1", "v1beta1"],
        "peerauthentications",
        "PeerAuthentication",
    ),
    custom(Kind::Telemetry, "telemetry.istio.io", &["v1", "v1alpha1"], "telemetries", "Telemetry"),
    custom(Kind::KubernetesGateway, GATEWAY_API, &["v1", "v1beta1"], "gateways", "Gateway"),
    custom(Kind::HttpRoute, GATEWAY_API, &["v1", "v1beta1"], "httproutes", "HTTPRoute"),
    custom(Kind::GrpcRoute, GATEWAY_API, &["v1"], "grpcroutes", "GRPCRoute"),
    custom(
        Kind::ReferenceGrant,
        GATEWAY_API,
        &["v1", "v1beta1"],
        "referencegrants",
        "ReferenceGrant",
    ),
];
