//! Gateway API's Gateway, with every field of the standard channel of 1.7. What is absent is absent:
//! its default is the reader's to know.

use crate::schema::{messages, names};
use std::collections::BTreeMap;

names! {
    /// `TLSModeType`
    TlsModeType = "TLSModeType" {
        Terminate = "Terminate",
        Passthrough = "Passthrough",
    }
}

names! {
    /// `FromNamespaces`
    FromNamespaces = "FromNamespaces" {
        All = "All",
        Selector = "Selector",
        Same = "Same",
        None = "None",
    }
}

names! {
    /// `FromNamespaces`
    RouteNamespacesFromNamespaces = "FromNamespaces" {
        All = "All",
        Selector = "Selector",
        Same = "Same",
    }
}

names! {
    /// `LabelSelectorOperator`
    LabelSelectorOperator = "LabelSelectorOperator" {
        In = "In",
        NotIn = "NotIn",
        Exists = "Exists",
        DoesNotExist = "DoesNotExist",
    }
}

names! {
    /// `FrontendValidationModeType`
    FrontendValidationModeType = "FrontendValidationModeType" {
        AllowValidOnly = "AllowValidOnly",
        AllowInsecureFallback = "AllowInsecureFallback",
    }
}

messages! {
    /// `GatewaySpec`
    GatewaySpec = "GatewaySpec" {
        gateway_class_name: String,
        listeners: Vec<Listener>,
        addresses: Vec<GatewaySpecAddress>,
        infrastructure: Option<GatewayInfrastructure>,
        allowed_listeners: Option<AllowedListeners>,
        tls: Option<GatewayTlsConfig>,
    }

    /// `Listener`
    Listener = "Listener" {
        name: String,
        hostname: String,
        port: Option<i32>,
        protocol: String,
        tls: Option<ListenerTlsConfig>,
        allowed_routes: Option<AllowedRoutes>,
    }

    /// `GatewaySpecAddress`
    GatewaySpecAddress = "GatewaySpecAddress" {
        r#type: String,
        value: String,
    }

    /// `GatewayInfrastructure`
    GatewayInfrastructure = "GatewayInfrastructure" {
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        parameters_ref: Option<LocalParametersReference>,
    }

    /// `AllowedListeners`
    AllowedListeners = "AllowedListeners" {
        namespaces: Option<ListenerNamespaces>,
    }

    /// `GatewayTLSConfig`
    GatewayTlsConfig = "GatewayTLSConfig" {
        backend: Option<GatewayBackendTls>,
        frontend: Option<FrontendTlsConfig>,
    }

    /// `ListenerTLSConfig`
    ListenerTlsConfig = "ListenerTLSConfig" {
        mode: Option<TlsModeType>,
        certificate_refs: Vec<SecretObjectReference>,
        options: BTreeMap<String, String>,
    }

    /// `AllowedRoutes`
    AllowedRoutes = "AllowedRoutes" {
        namespaces: Option<RouteNamespaces>,
        kinds: Vec<RouteGroupKind>,
    }

    /// `LocalParametersReference`
    LocalParametersReference = "LocalParametersReference" {
        group: String,
        kind: String,
        name: String,
    }

    /// `ListenerNamespaces`
    ListenerNamespaces = "ListenerNamespaces" {
        from: Option<FromNamespaces>,
        selector: Option<LabelSelector>,
    }

    /// `GatewayBackendTLS`
    GatewayBackendTls = "GatewayBackendTLS" {
        client_certificate_ref: Option<SecretObjectReference>,
    }

    /// `FrontendTLSConfig`
    FrontendTlsConfig = "FrontendTLSConfig" {
        default: Option<TlsConfig>,
        per_port: Vec<TlsPortConfig>,
    }

    /// `SecretObjectReference`
    SecretObjectReference = "SecretObjectReference" {
        group: String,
        kind: String,
        name: String,
        namespace: String,
    }

    /// `RouteNamespaces`
    RouteNamespaces = "RouteNamespaces" {
        from: Option<RouteNamespacesFromNamespaces>,
        selector: Option<LabelSelector>,
    }

    /// `RouteGroupKind`
    RouteGroupKind = "RouteGroupKind" {
        group: String,
        kind: String,
    }

    /// `LabelSelector`
    LabelSelector = "LabelSelector" {
        match_labels: BTreeMap<String, String>,
        match_expressions: Vec<LabelSelectorRequirement>,
    }

    /// `TLSConfig`
    TlsConfig = "TLSConfig" {
        validation: Option<FrontendTlsValidation>,
    }

    /// `TLSPortConfig`
    TlsPortConfig = "TLSPortConfig" {
        port: Option<i32>,
        tls: Option<TlsConfig>,
    }

    /// `LabelSelectorRequirement`
    LabelSelectorRequirement = "LabelSelectorRequirement" {
        key: String,
        operator: Option<LabelSelectorOperator>,
        values: Vec<String>,
    }

    /// `FrontendTLSValidation`
    FrontendTlsValidation = "FrontendTLSValidation" {
        ca_certificate_refs: Vec<ObjectReference>,
        mode: Option<FrontendValidationModeType>,
    }

    /// `ObjectReference`
    ObjectReference = "ObjectReference" {
        group: String,
        kind: String,
        name: String,
        namespace: String,
    }
}
