//! VirtualService, with every field that Istio 1.31 has.

use crate::schema::{Base64, Span, messages, names};
use std::collections::BTreeMap;

names! {
    /// `HTTPRedirect.RedirectPortSelection`
    RedirectPortSelection = "HTTPRedirect.RedirectPortSelection" {
        FromProtocolDefault = "FROM_PROTOCOL_DEFAULT",
        FromRequestPort = "FROM_REQUEST_PORT",
    }
}

names! {
    /// `CorsPolicy.UnmatchedPreflights`
    UnmatchedPreflights = "CorsPolicy.UnmatchedPreflights" {
        Unspecified = "UNSPECIFIED",
        Forward = "FORWARD",
        Ignore = "IGNORE",
    }
}

messages! {
    /// `VirtualService`
    VirtualService = "VirtualService" {
        hosts: Vec<String>,
        gateways: Vec<String>,
        http: Vec<HttpRoute>,
        tls: Vec<TlsRoute>,
        tcp: Vec<TcpRoute>,
        export_to: Vec<String>,
    }

    /// `HTTPRoute`
    HttpRoute = "HTTPRoute" {
        name: String,
        r#match: Vec<HttpMatchRequest>,
        route: Vec<HttpRouteDestination>,
        redirect: Option<HttpRedirect>,
        direct_response: Option<HttpDirectResponse>,
        delegate: Option<Delegate>,
        rewrite: Option<HttpRewrite>,
        timeout: Option<Span>,
        retries: Option<HttpRetry>,
        fault: Option<HttpFaultInjection>,
        mirror: Option<Destination>,
        mirrors: Vec<HttpMirrorPolicy>,
        mirror_percent: Option<u32>,
        mirror_percentage: Option<Percent>,
        cors_policy: Option<CorsPolicy>,
        headers: Option<Headers>,
    }

    /// `TLSRoute`
    TlsRoute = "TLSRoute" {
        r#match: Vec<TlsMatchAttributes>,
        route: Vec<RouteDestination>,
    }

    /// `TCPRoute`
    TcpRoute = "TCPRoute" {
        r#match: Vec<L4MatchAttributes>,
        route: Vec<RouteDestination>,
    }

    /// `HTTPMatchRequest`
    #[derive(Eq, Hash)]
    HttpMatchRequest = "HTTPMatchRequest" {
        name: String,
        uri: Option<StringMatch>,
        scheme: Option<StringMatch>,
        method: Option<StringMatch>,
        authority: Option<StringMatch>,
        headers: BTreeMap<String, StringMatch>,
        port: u32,
        source_labels: BTreeMap<String, String>,
        gateways: Vec<String>,
        query_params: BTreeMap<String, StringMatch>,
        ignore_uri_case: bool,
        without_headers: BTreeMap<String, StringMatch>,
        source_namespace: String,
        stat_prefix: String,
    }

    /// `HTTPRouteDestination`
    HttpRouteDestination = "HTTPRouteDestination" {
        destination: Option<Destination>,
        weight: i32,
        headers: Option<Headers>,
    }

    /// `HTTPRedirect`
    HttpRedirect = "HTTPRedirect" {
        uri: String,
        authority: String,
        port in redirectPort: Option<u32>,
        derive_port in redirectPort: Option<RedirectPortSelection>,
        scheme: String,
        redirect_code: u32,
        prefix_rewrite: String,
    }

    /// `HTTPDirectResponse`
    HttpDirectResponse = "HTTPDirectResponse" {
        status: u32,
        body: Option<HttpBody>,
    }

    /// `Delegate`
    Delegate = "Delegate" {
        name: String,
        namespace: String,
    }

    /// `HTTPRewrite`
    HttpRewrite = "HTTPRewrite" {
        uri: String,
        authority: String,
        uri_regex_rewrite: Option<RegexRewrite>,
    }

    /// `HTTPRetry`
    HttpRetry = "HTTPRetry" {
        attempts: i32,
        per_try_timeout: Option<Span>,
        retry_on: String,
        retry_remote_localities: Option<bool>,
        retry_ignore_previous_hosts: Option<bool>,
        backoff: Option<Span>,
    }

    /// `HTTPFaultInjection`
    HttpFaultInjection = "HTTPFaultInjection" {
        delay: Option<FaultDelay>,
        abort: Option<FaultAbort>,
    }

    /// `Destination`
    Destination = "Destination" {
        host: String,
        subset: String,
        port: Option<PortSelector>,
    }

    /// `HTTPMirrorPolicy`
    HttpMirrorPolicy = "HTTPMirrorPolicy" {
        destination: Option<Destination>,
        percentage: Option<Percent>,
    }

    /// `Percent`
    Percent = "Percent" {
        value: f64,
    }

    /// `CorsPolicy`
    CorsPolicy = "CorsPolicy" {
        allow_origin: Vec<String>,
        allow_origins: Vec<StringMatch>,
        allow_methods: Vec<String>,
        allow_headers: Vec<String>,
        expose_headers: Vec<String>,
        max_age: Option<Span>,
        allow_credentials: Option<bool>,
        unmatched_preflights: UnmatchedPreflights,
    }

    /// `Headers`
    Headers = "Headers" {
        request: Option<HeaderOperations>,
        response: Option<HeaderOperations>,
    }

    /// `TLSMatchAttributes`
    #[derive(Eq, Hash)]
    TlsMatchAttributes = "TLSMatchAttributes" {
        sni_hosts: Vec<String>,
        destination_subnets: Vec<String>,
        port: u32,
        source_labels: BTreeMap<String, String>,
        gateways: Vec<String>,
        source_namespace: String,
    }

    /// `RouteDestination`
    RouteDestination = "RouteDestination" {
        destination: Option<Destination>,
        weight: i32,
    }

    /// `L4MatchAttributes`
    #[derive(Eq, Hash)]
    L4MatchAttributes = "L4MatchAttributes" {
        destination_subnets: Vec<String>,
        port: u32,
        source_subnet: String,
        source_labels: BTreeMap<String, String>,
        gateways: Vec<String>,
        source_namespace: String,
    }

    /// `StringMatch`
    #[derive(Eq, Hash)]
    StringMatch = "StringMatch" {
        exact in matchType: Option<String>,
        prefix in matchType: Option<String>,
        regex in matchType: Option<String>,
    }

    /// `HTTPBody`
    HttpBody = "HTTPBody" {
        string in specifier: Option<String>,
        bytes in specifier: Option<Base64>,
    }

    /// `RegexRewrite`
    RegexRewrite = "RegexRewrite" {
        r#match: String,
        rewrite: String,
    }

    /// `HTTPFaultInjection.Delay`
    FaultDelay = "HTTPFaultInjection.Delay" {
        percent: i32,
        fixed_delay in httpDelayType: Option<Span>,
        exponential_delay in httpDelayType: Option<Span>,
        percentage: Option<Percent>,
    }

    /// `HTTPFaultInjection.Abort`
    FaultAbort = "HTTPFaultInjection.Abort" {
        http_status in errorType: Option<i32>,
        grpc_status in errorType: Option<String>,
        http2_error in errorType: Option<String>,
        percentage: Option<Percent>,
    }

    /// `PortSelector`
    PortSelector = "PortSelector" {
        number: u32,
    }

    /// `Headers.HeaderOperations`
    HeaderOperations = "Headers.HeaderOperations" {
        set: BTreeMap<String, String>,
        add: BTreeMap<String, String>,
        remove: Vec<String>,
    }
}
