//! Gateway API's GRPCRoute, with every field of the standard channel of 1.7. What is absent is absent:
//! its default is the reader's to know.

use super::http_route::{
    HttpHeaderFilter, HttpRequestMirrorFilter, LocalObjectReference, ParentReference,
};
use crate::schema::{messages, names};

names! {
    /// `GRPCRouteFilterType`
    GrpcRouteFilterType = "GRPCRouteFilterType" {
        ResponseHeaderModifier = "ResponseHeaderModifier",
        RequestHeaderModifier = "RequestHeaderModifier",
        RequestMirror = "RequestMirror",
        ExtensionRef = "ExtensionRef",
    }
}

names! {
    /// `GRPCMethodMatchType`
    GrpcMethodMatchType = "GRPCMethodMatchType" {
        Exact = "Exact",
        RegularExpression = "RegularExpression",
    }
}

names! {
    /// `GRPCHeaderMatchType`
    GrpcHeaderMatchType = "GRPCHeaderMatchType" {
        Exact = "Exact",
        RegularExpression = "RegularExpression",
    }
}

messages! {
    /// `GRPCRouteSpec`
    GrpcRouteSpec = "GRPCRouteSpec" {
        parent_refs: Vec<ParentReference>,
        hostnames: Vec<String>,
        rules: Vec<GrpcRouteRule>,
    }

    /// `GRPCRouteRule`
    GrpcRouteRule = "GRPCRouteRule" {
        name: String,
        matches: Vec<GrpcRouteMatch>,
        filters: Vec<GrpcRouteFilter>,
        backend_refs: Vec<GrpcBackendRef>,
    }

    /// `GRPCRouteMatch`
    GrpcRouteMatch = "GRPCRouteMatch" {
        method: Option<GrpcMethodMatch>,
        headers: Vec<GrpcHeaderMatch>,
    }

    /// `GRPCRouteFilter`
    GrpcRouteFilter = "GRPCRouteFilter" {
        r#type: Option<GrpcRouteFilterType>,
        request_header_modifier: Option<HttpHeaderFilter>,
        response_header_modifier: Option<HttpHeaderFilter>,
        request_mirror: Option<HttpRequestMirrorFilter>,
        extension_ref: Option<LocalObjectReference>,
    }

    /// `GRPCBackendRef`
    GrpcBackendRef = "GRPCBackendRef" {
        group: String,
        kind: String,
        name: String,
        namespace: String,
        port: Option<i32>,
        weight: Option<i32>,
        filters: Vec<GrpcRouteFilter>,
    }

    /// `GRPCMethodMatch`
    GrpcMethodMatch = "GRPCMethodMatch" {
        r#type: Option<GrpcMethodMatchType>,
        service: String,
        method: String,
    }

    /// `GRPCHeaderMatch`
    GrpcHeaderMatch = "GRPCHeaderMatch" {
        r#type: Option<GrpcHeaderMatchType>,
        name: String,
        value: String,
    }
}
