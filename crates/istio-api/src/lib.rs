//! The Kubernetes and Istio objects that Culvert reads: types, parsing, validation.
//!
//! What is wrong with an object is a list of [`Diagnostic`]s, each with the field, what was found
//! and what to do; the same list serves whoever asks: a log, a status, a shell.

pub mod crds;
mod destination_rule;
mod diagnostic;
mod form;
mod gateway;
pub mod gateway_api;
pub mod honour;
pub mod istio;
mod kinds;
mod kubernetes;
mod locate;
mod mesh_config;
mod parse;
pub mod schema;
mod security;
mod service_entry;
mod telemetry;
mod validate;
mod virtual_service;

pub use diagnostic::{Code, Diagnostic};
pub use kinds::{Kind, Object, ObjectKey, Spec};
pub use kubernetes::{
    ConfigMap, EndpointSlice, LabelSelector, Labels, Meta, Namespace, Node, Pod, ReferenceGrant,
    Secret, Service, ServiceAccount, ServicePort, TargetPort,
};
pub use mesh_config::{MeshConfig, Provider};
pub use parse::{parse_documents, parse_object};
pub use schema::{Base64, Number, Span};
pub use security::{
    AuthorizationAction, AuthorizationPolicy, Condition, MutualTls, MutualTlsMode, Operation,
    PeerAuthentication, Resolution, Rule, ServiceEntry, Source, WorkloadEntry,
};
pub use validate::{OTHER_PROTOCOLS, SAME_NODE};
pub use virtual_service::GRPC_STATUS;
