//! Gateway API's HTTPRoute, with every field of the standard channel of 1.7. What is absent is absent:
//! its default is the reader's to know.

use crate::schema::{messages, names};

names! {
    /// `HTTPMethod`
    HttpMethod = "HTTPMethod" {
        Get = "GET",
        Head = "HEAD",
        Post = "POST",
        Put = "PUT",
        Delete = "DELETE",
        Connect = "CONNECT",
        Options = "OPTIONS",
        Trace = "TRACE",
        Patch = "PATCH",
    }
}

names! {
    /// `HTTPRouteFilterType`
    HttpRouteFilterType = "HTTPRouteFilterType" {
        RequestHeaderModifier = "RequestHeaderModifier",
        ResponseHeaderModifier = "ResponseHeaderModifier",
        RequestMirror = "RequestMirror",
        RequestRedirect = "RequestRedirect",
        URLRewrite = "URLRewrite",
        ExtensionRef = "ExtensionRef",
        Cors = "CORS",
    }
}

names! {
    /// `PathMatchType`
    PathMatchType = "PathMatchType" {
        Exact = "Exact",
        PathPrefix = "PathPrefix",
        RegularExpression = "RegularExpression",
    }
}

names! {
    /// `HeaderMatchType`
    HeaderMatchType = "HeaderMatchType" {
        Exact = "Exact",
        RegularExpression = "RegularExpression",
    }
}

names! {
    /// `QueryParamMatchType`
    QueryParamMatchType = "QueryParamMatchType" {
        Exact = "Exact",
        RegularExpression = "RegularExpression",
    }
}

names! {
    /// `HTTPMethodWithWildcard`
    HttpMethodWithWildcard = "HTTPMethodWithWildcard" {
        Get = "GET",
        Head = "HEAD",
        Post = "POST",
        Put = "PUT",
        Delete = "DELETE",
        Connect = "CONNECT",
        Options = "OPTIONS",
        Trace = "TRACE",
        Patch = "PATCH",
        Any = "*",
    }
}

names! {
    /// `HTTPPathModifierType`
    HttpPathModifierType = "HTTPPathModifierType" {
        ReplaceFullPath = "ReplaceFullPath",
        ReplacePrefixMatch = "ReplacePrefixMatch",
    }
}

messages! {
    /// `HTTPRouteSpec`
    HttpRouteSpec = "HTTPRouteSpec" {
        parent_refs: Vec<ParentReference>,
        hostnames: Vec<String>,
        rules: Vec<HttpRouteRule>,
    }

    /// `ParentReference`
    ParentReference = "ParentReference" {
        group: String,
        kind: String,
        namespace: String,
        name: String,
        section_name: String,
        port: Option<i32>,
    }

    /// `HTTPRouteRule`
    HttpRouteRule = "HTTPRouteRule" {
        name: String,
        matches: Vec<HttpRouteMatch>,
        filters: Vec<HttpRouteFilter>,
        backend_refs: Vec<HttpBackendRef>,
        timeouts: Option<HttpRouteTimeouts>,
        retry: Option<HttpRouteRetry>,
    }

    /// `HTTPRouteMatch`
    HttpRouteMatch = "HTTPRouteMatch" {
        path: Option<HttpPathMatch>,
        headers: Vec<HttpHeaderMatch>,
        query_params: Vec<HttpQueryParamMatch>,
        method: Option<HttpMethod>,
    }

    /// `HTTPRouteFilter`
    HttpRouteFilter = "HTTPRouteFilter" {
        r#type: Option<HttpRouteFilterType>,
        request_header_modifier: Option<HttpHeaderFilter>,
        response_header_modifier: Option<HttpHeaderFilter>,
        request_mirror: Option<HttpRequestMirrorFilter>,
        request_redirect: Option<HttpRequestRedirectFilter>,
        url_rewrite: Option<HttpUrlRewriteFilter>,
        cors: Option<HttpCorsFilter>,
        extension_ref: Option<LocalObjectReference>,
    }

    /// `HTTPBackendRef`
    HttpBackendRef = "HTTPBackendRef" {
        group: String,
        kind: String,
        name: String,
        namespace: String,
        port: Option<i32>,
        weight: Option<i32>,
        filters: Vec<HttpRouteFilter>,
    }

    /// `HTTPRouteTimeouts`
    HttpRouteTimeouts = "HTTPRouteTimeouts" {
        request: String,
        backend_request: String,
    }

    /// `HTTPRouteRetry`
    HttpRouteRetry = "HTTPRouteRetry" {
        codes: Vec<i32>,
        attempts: Option<i32>,
        backoff: String,
    }

    /// `HTTPPathMatch`
    HttpPathMatch = "HTTPPathMatch" {
        r#type: Option<PathMatchType>,
        value: String,
    }

    /// `HTTPHeaderMatch`
    HttpHeaderMatch = "HTTPHeaderMatch" {
        r#type: Option<HeaderMatchType>,
        name: String,
        value: String,
    }

    /// `HTTPQueryParamMatch`
    HttpQueryParamMatch = "HTTPQueryParamMatch" {
        r#type: Option<QueryParamMatchType>,
        name: String,
        value: String,
    }

    /// `HTTPHeaderFilter`
    HttpHeaderFilter = "HTTPHeaderFilter" {
        set: Vec<HttpHeader>,
        add: Vec<HttpHeader>,
        remove: Vec<String>,
    }

    /// `HTTPRequestMirrorFilter`
    HttpRequestMirrorFilter = "HTTPRequestMirrorFilter" {
        backend_ref: Option<BackendObjectReference>,
        percent: Option<i32>,
        fraction: Option<Fraction>,
    }

    /// `HTTPRequestRedirectFilter`
    HttpRequestRedirectFilter = "HTTPRequestRedirectFilter" {
        scheme: String,
        hostname: String,
        path: Option<HttpPathModifier>,
        port: Option<i32>,
        status_code: Option<i32>,
    }

    /// `HTTPURLRewriteFilter`
    HttpUrlRewriteFilter = "HTTPURLRewriteFilter" {
        hostname: String,
        path: Option<HttpPathModifier>,
    }

    /// `HTTPCORSFilter`
    HttpCorsFilter = "HTTPCORSFilter" {
        allow_origins: Vec<String>,
        allow_credentials: Option<bool>,
        allow_methods: Vec<HttpMethodWithWildcard>,
        allow_headers: Vec<String>,
        expose_headers: Vec<String>,
        max_age: Option<i32>,
    }

    /// `LocalObjectReference`
    LocalObjectReference = "LocalObjectReference" {
        group: String,
        kind: String,
        name: String,
    }

    /// `HTTPHeader`
    HttpHeader = "HTTPHeader" {
        name: String,
        value: String,
    }

    /// `BackendObjectReference`
    BackendObjectReference = "BackendObjectReference" {
        group: String,
        kind: String,
        name: String,
        namespace: String,
        port: Option<i32>,
    }

    /// `Fraction`
    Fraction = "Fraction" {
        numerator: Option<i32>,
        denominator: Option<i32>,
    }

    /// `HTTPPathModifier`
    HttpPathModifier = "HTTPPathModifier" {
        r#type: Option<HttpPathModifierType>,
        replace_full_path: String,
        replace_prefix_match: String,
    }
}
