//! An object of any kind that is read here.

use crate::{
    gateway_api::{gateway::GatewaySpec, grpc_route::GrpcRouteSpec, http_route::HttpRouteSpec},
    istio::{
        destination_rule::DestinationRule, gateway::Gateway, telemetry::Telemetry,
        virtual_service::VirtualService,
    },
    kubernetes::{
        ConfigMap, EndpointSlice, Meta, Namespace, Node, Pod, ReferenceGrant, Secret, Service,
        ServiceAccount,
    },
    mesh_config::MeshConfig,
    security::{AuthorizationPolicy, PeerAuthentication, ServiceEntry, WorkloadEntry},
};
use std::fmt;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    Namespace,
    Node,
    ServiceAccount,
    Pod,
    Service,
    EndpointSlice,
    WorkloadEntry,
    ServiceEntry,
    AuthorizationPolicy,
    PeerAuthentication,
    VirtualService,
    DestinationRule,
    Gateway,
    Telemetry,
    KubernetesGateway,
    HttpRoute,
    GrpcRoute,
    ReferenceGrant,
    MeshConfig,
    Secret,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::ServiceEntry => "ServiceEntry",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::Gateway => "Gateway",
            Self::Telemetry => "Telemetry",
            Self::KubernetesGateway => "gateway.networking.k8s.io/Gateway",
            Self::HttpRoute => "gateway.networking.k8s.io/HTTPRoute",
            Self::GrpcRoute => "gateway.networking.k8s.io/GRPCRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::MeshConfig => "MeshConfig",
            Self::Secret => "Secret",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectKey {
    pub kind: Kind,
    /// Empty for kinds without one.
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{:?} {}", self.kind, self.name)
        } else {
            write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Object {
    pub key: ObjectKey,
    pub meta: Meta,
    pub spec: Spec,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Spec {
    Namespace(Namespace),
    Node(Node),
    ServiceAccount(ServiceAccount),
    Pod(Box<Pod>),
    Service(Box<Service>),
    EndpointSlice(EndpointSlice),
    WorkloadEntry(WorkloadEntry),
    ServiceEntry(Box<ServiceEntry>),
    AuthorizationPolicy(Box<AuthorizationPolicy>),
    PeerAuthentication(PeerAuthentication),
    VirtualService(Box<VirtualService>),
    DestinationRule(Box<DestinationRule>),
    Gateway(Box<Gateway>),
    Telemetry(Box<Telemetry>),
    KubernetesGateway(Box<GatewaySpec>),
    HttpRoute(Box<HttpRouteSpec>),
    GrpcRoute(Box<GrpcRouteSpec>),
    ReferenceGrant(ReferenceGrant),
    MeshConfig(MeshConfig),
    Secret(Secret),
}

impl Spec {
    /// A ConfigMap is an object of the mesh only where it carries MeshConfig.
    pub(crate) fn mesh_config(map: &ConfigMap) -> Option<&str> {
        map.data.get("mesh").map(String::as_str)
    }
}
