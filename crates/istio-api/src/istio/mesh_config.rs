//! MeshConfig, with every field that Istio 1.31 has.

use super::destination_rule::{
    ClientTlsSettings, ConnectionPoolSettings, LocalityLoadBalancerSetting, OutlierDetection,
    TcpKeepalive, ZoneAwareLoadBalancerSetting,
};
use super::telemetry::{EnvironmentTag, HeaderTag, LiteralTag};
use super::virtual_service::HttpRetry;
use crate::schema::{Number, Span, messages, names};
use serde_json::Value;
use std::collections::BTreeMap;

names! {
    /// `MeshConfig.IngressControllerMode`
    IngressControllerMode = "MeshConfig.IngressControllerMode" {
        Unspecified = "UNSPECIFIED",
        Off = "OFF",
        Default = "DEFAULT",
        Strict = "STRICT",
    }
}

names! {
    /// `MeshConfig.AccessLogEncoding`
    AccessLogEncoding = "MeshConfig.AccessLogEncoding" {
        Text = "TEXT",
        Json = "JSON",
    }
}

names! {
    /// `MeshConfig.H2UpgradePolicy`
    MeshConfigH2UpgradePolicy = "MeshConfig.H2UpgradePolicy" {
        DoNotUpgrade = "DO_NOT_UPGRADE",
        Upgrade = "UPGRADE",
    }
}

names! {
    /// `ProxyConfig.TracingServiceName`
    TracingServiceName = "ProxyConfig.TracingServiceName" {
        AppLabelAndNamespace = "APP_LABEL_AND_NAMESPACE",
        CanonicalNameOnly = "CANONICAL_NAME_ONLY",
        CanonicalNameAndNamespace = "CANONICAL_NAME_AND_NAMESPACE",
    }
}

names! {
    /// `AuthenticationPolicy`
    AuthenticationPolicy = "AuthenticationPolicy" {
        None = "NONE",
        MutualTls = "MUTUAL_TLS",
        Inherit = "INHERIT",
    }
}

names! {
    /// `ProxyConfig.InboundInterceptionMode`
    InboundInterceptionMode = "ProxyConfig.InboundInterceptionMode" {
        Redirect = "REDIRECT",
        Tproxy = "TPROXY",
        None = "NONE",
    }
}

names! {
    /// `MeshConfig.OutboundTrafficPolicy.Mode`
    Mode = "MeshConfig.OutboundTrafficPolicy.Mode" {
        RegistryOnly = "REGISTRY_ONLY",
        AllowAny = "ALLOW_ANY",
        AllowAnyDynamicDns = "ALLOW_ANY_DYNAMIC_DNS",
    }
}

names! {
    /// `MeshConfig.InboundTrafficPolicy.Mode`
    MeshConfigInboundTrafficPolicyMode = "MeshConfig.InboundTrafficPolicy.Mode" {
        Passthrough = "PASSTHROUGH",
        Localhost = "LOCALHOST",
    }
}

names! {
    /// `Resource`
    Resource = "Resource" {
        ServiceRegistry = "SERVICE_REGISTRY",
    }
}

names! {
    /// `MeshConfig.ServiceScopeConfigs.Scope`
    Scope = "MeshConfig.ServiceScopeConfigs.Scope" {
        Local = "LOCAL",
        Global = "GLOBAL",
    }
}

names! {
    /// `MeshConfig.ProxyPathNormalization.NormalizationType`
    NormalizationType = "MeshConfig.ProxyPathNormalization.NormalizationType" {
        Default = "DEFAULT",
        None = "NONE",
        Base = "BASE",
        MergeSlashes = "MERGE_SLASHES",
        DecodeAndMergeSlashes = "DECODE_AND_MERGE_SLASHES",
    }
}

names! {
    /// `MeshConfig.TLSConfig.TLSProtocol`
    MeshConfigTlsConfigTlsProtocol = "MeshConfig.TLSConfig.TLSProtocol" {
        TlsAuto = "TLS_AUTO",
        Tlsv12 = "TLSV1_2",
        Tlsv13 = "TLSV1_3",
    }
}

names! {
    /// `ServiceEntryVisibility.Visibility`
    Visibility = "ServiceEntryVisibility.Visibility" {
        VisibilityUnspecified = "VISIBILITY_UNSPECIFIED",
        None = "NONE",
        Namespace = "NAMESPACE",
        Public = "PUBLIC",
    }
}

names! {
    /// `ForwardClientCertDetails`
    ForwardClientCertDetails = "ForwardClientCertDetails" {
        Undefined = "UNDEFINED",
        Sanitize = "SANITIZE",
        ForwardOnly = "FORWARD_ONLY",
        AppendForward = "APPEND_FORWARD",
        SanitizeSet = "SANITIZE_SET",
        AlwaysForwardOnly = "ALWAYS_FORWARD_ONLY",
    }
}

names! {
    /// `ProxyConfig.ConnectionSettings.Profile`
    Profile = "ProxyConfig.ConnectionSettings.Profile" {
        Sidecar = "SIDECAR",
        Edge = "EDGE",
    }
}

names! {
    /// `ProxyConfig.ConnectionSettings.HeadersWithUnderscoresAction`
    HeadersWithUnderscoresAction = "ProxyConfig.ConnectionSettings.HeadersWithUnderscoresAction" {
        HeadersWithUnderscoresUnspecified = "HEADERS_WITH_UNDERSCORES_UNSPECIFIED",
        HeadersWithUnderscoresAllow = "HEADERS_WITH_UNDERSCORES_ALLOW",
        HeadersWithUnderscoresRejectRequest = "HEADERS_WITH_UNDERSCORES_REJECT_REQUEST",
        HeadersWithUnderscoresDropHeader = "HEADERS_WITH_UNDERSCORES_DROP_HEADER",
    }
}

names! {
    /// `ProxyConfig.ConnectionSettings.PathWithEscapedSlashesAction`
    PathWithEscapedSlashesAction = "ProxyConfig.ConnectionSettings.PathWithEscapedSlashesAction" {
        PathWithEscapedSlashesUnspecified = "PATH_WITH_ESCAPED_SLASHES_UNSPECIFIED",
        KeepUnchanged = "KEEP_UNCHANGED",
        RejectRequest = "REJECT_REQUEST",
        UnescapeAndRedirect = "UNESCAPE_AND_REDIRECT",
        UnescapeAndForward = "UNESCAPE_AND_FORWARD",
    }
}

names! {
    /// `MeshConfig.ExtensionProvider.ZipkinTracingProvider.TraceContextOption`
    TraceContextOption = "MeshConfig.ExtensionProvider.ZipkinTracingProvider.TraceContextOption" {
        UseB3 = "USE_B3",
        UseB3WithW3cPropagation = "USE_B3_WITH_W3C_PROPAGATION",
    }
}

names! {
    /// `MeshConfig.ExtensionProvider.OpenCensusAgentTracingProvider.TraceContext`
    TraceContext = "MeshConfig.ExtensionProvider.OpenCensusAgentTracingProvider.TraceContext" {
        Unspecified = "UNSPECIFIED",
        W3cTraceContext = "W3C_TRACE_CONTEXT",
        GrpcBin = "GRPC_BIN",
        CloudTraceContext = "CLOUD_TRACE_CONTEXT",
        B3 = "B3",
    }
}

names! {
    /// `MeshConfig.ExtensionProvider.ServiceAttributeEnrichment`
    ServiceAttributeEnrichment = "MeshConfig.ExtensionProvider.ServiceAttributeEnrichment" {
        IstioCanonical = "ISTIO_CANONICAL",
        OtelSemanticConventions = "OTEL_SEMANTIC_CONVENTIONS",
    }
}

names! {
    /// `Tracing.OpenCensusAgent.TraceContext`
    TracingOpenCensusAgentTraceContext = "Tracing.OpenCensusAgent.TraceContext" {
        Unspecified = "UNSPECIFIED",
        W3cTraceContext = "W3C_TRACE_CONTEXT",
        GrpcBin = "GRPC_BIN",
        CloudTraceContext = "CLOUD_TRACE_CONTEXT",
        B3 = "B3",
    }
}

names! {
    /// `ProxyConfig.ProxyHeaders.MetadataExchangeMode`
    MetadataExchangeMode = "ProxyConfig.ProxyHeaders.MetadataExchangeMode" {
        Undefined = "UNDEFINED",
        InMesh = "IN_MESH",
    }
}

messages! {
    /// `MeshConfig`
    MeshConfig = "MeshConfig" {
        proxy_listen_port: Option<i32>,
        proxy_inbound_listen_port: i32,
        proxy_http_port: i32,
        connect_timeout: Option<Span>,
        hbone_idle_timeout: Option<Span>,
        protocol_detection_timeout: Option<Span>,
        tcp_keepalive: Option<TcpKeepalive>,
        ingress_class: String,
        ingress_service: String,
        ingress_controller_mode: IngressControllerMode,
        ingress_selector: String,
        enable_tracing: bool,
        access_log_file: String,
        access_log_format: String,
        access_log_encoding: AccessLogEncoding,
        enable_envoy_access_log_service: bool,
        disable_envoy_listener_log: bool,
        default_config: Option<ProxyConfig>,
        outbound_traffic_policy: Option<OutboundTrafficPolicy>,
        inbound_traffic_policy: Option<InboundTrafficPolicy>,
        config_sources: Vec<ConfigSource>,
        enable_auto_mtls: Option<bool>,
        trust_domain: Option<String>,
        trust_domain_aliases: Vec<String>,
        ca_certificates: Vec<CertificateData>,
        default_service_export_to: Vec<String>,
        default_virtual_service_export_to: Vec<String>,
        default_destination_rule_export_to: Vec<String>,
        root_namespace: Option<String>,
        locality_lb_setting: Option<LocalityLoadBalancerSetting>,
        zone_aware_lb_setting: Option<ZoneAwareLoadBalancerSetting>,
        dns_refresh_rate: Option<Span>,
        h2_upgrade_policy: MeshConfigH2UpgradePolicy,
        inbound_cluster_stat_name: String,
        outbound_cluster_stat_name: String,
        certificates: Vec<Certificate>,
        service_settings: Vec<ServiceSettings>,
        service_scope_configs: Vec<ServiceScopeConfigs>,
        enable_prometheus_merge: Option<bool>,
        verify_certificate_at_client: Option<bool>,
        ca: Option<CA>,
        extension_providers: Vec<ExtensionProvider>,
        default_providers: Option<DefaultProviders>,
        discovery_selectors: Vec<LabelSelector>,
        path_normalization: Option<ProxyPathNormalization>,
        default_http_retry_policy: Option<HttpRetry>,
        mesh_mtls as "meshMTLS": Option<TlsConfig>,
        tls_defaults: Option<TlsConfig>,
        default_traffic_policy: Option<DefaultTrafficPolicy>,
        service_entry_visibility: Option<ServiceEntryVisibility>,
    }

    /// `ProxyConfig`
    ProxyConfig = "ProxyConfig" {
        config_path: Option<String>,
        binary_path: Option<String>,
        service_cluster in clusterName: Option<String>,
        tracing_service_name in clusterName: Option<TracingServiceName>,
        drain_duration: Option<Span>,
        discovery_address: Option<String>,
        discovery_refresh_delay: Option<Span>,
        zipkin_address: String,
        statsd_udp_address: String,
        envoy_metrics_service_address: String,
        proxy_admin_port: Option<i32>,
        availability_zone: String,
        control_plane_auth_policy: AuthenticationPolicy,
        custom_config_file: String,
        stat_name_length: i32,
        concurrency: Option<i32>,
        proxy_bootstrap_template_path: String,
        interception_mode: InboundInterceptionMode,
        tracing: Option<MeshConfigTracing>,
        sds: Option<Sds>,
        envoy_access_log_service: Option<RemoteService>,
        envoy_metrics_service: Option<RemoteService>,
        proxy_metadata: BTreeMap<String, String>,
        runtime_values: BTreeMap<String, String>,
        status_port: Option<i32>,
        extra_stat_tags: Vec<String>,
        gateway_topology: Option<Topology>,
        termination_drain_duration: Option<Span>,
        mesh_id: String,
        readiness_probe: Option<ReadinessProbe>,
        proxy_stats_matcher: Option<ProxyStatsMatcher>,
        hold_application_until_proxy_starts: Option<bool>,
        ca_certificates_pem: Vec<String>,
        image: Option<ProxyImage>,
        private_key_provider: Option<PrivateKeyProvider>,
        proxy_headers: Option<ProxyHeaders>,
        file_flush_interval: Option<Span>,
        file_flush_min_size_kb: u32,
        stats_compression: Option<bool>,
        connection_settings: Option<ConnectionSettings>,
    }

    /// `MeshConfig.OutboundTrafficPolicy`
    OutboundTrafficPolicy = "MeshConfig.OutboundTrafficPolicy" {
        mode: Mode,
        tls: Option<ClientTlsSettings>,
    }

    /// `MeshConfig.InboundTrafficPolicy`
    InboundTrafficPolicy = "MeshConfig.InboundTrafficPolicy" {
        mode: MeshConfigInboundTrafficPolicyMode,
    }

    /// `ConfigSource`
    ConfigSource = "ConfigSource" {
        address: String,
        tls_settings: Option<ClientTlsSettings>,
        subscribed_resources: Vec<Resource>,
    }

    /// `MeshConfig.CertificateData`
    CertificateData = "MeshConfig.CertificateData" {
        pem in certificateData: Option<String>,
        spiffe_bundle_url in certificateData: Option<String>,
        cert_signers: Vec<String>,
        trust_domains: Vec<String>,
    }

    /// `Certificate`
    Certificate = "Certificate" {
        secret_name: String,
        dns_names: Vec<String>,
    }

    /// `MeshConfig.ServiceSettings`
    ServiceSettings = "MeshConfig.ServiceSettings" {
        settings: Option<Settings>,
        hosts: Vec<String>,
    }

    /// `MeshConfig.ServiceScopeConfigs`
    ServiceScopeConfigs = "MeshConfig.ServiceScopeConfigs" {
        namespace_selector: Option<LabelSelector>,
        services_selector: Option<LabelSelector>,
        scope: Scope,
    }

    /// `MeshConfig.CA`
    CA = "MeshConfig.CA" {
        address: String,
        tls_settings: Option<ClientTlsSettings>,
        request_timeout: Option<Span>,
        istiod_side: bool,
    }

    /// `MeshConfig.ExtensionProvider`
    ExtensionProvider = "MeshConfig.ExtensionProvider" {
        name: String,
        envoy_ext_authz_http in provider: Option<EnvoyExternalAuthorizationHttpProvider>,
        envoy_ext_authz_grpc in provider: Option<EnvoyExternalAuthorizationGrpcProvider>,
        zipkin in provider: Option<ZipkinTracingProvider>,
        lightstep in provider: Option<LightstepTracingProvider>,
        datadog in provider: Option<DatadogTracingProvider>,
        stackdriver in provider: Option<StackdriverProvider>,
        opencensus in provider: Option<OpenCensusAgentTracingProvider>,
        skywalking in provider: Option<SkyWalkingTracingProvider>,
        opentelemetry in provider: Option<OpenTelemetryTracingProvider>,
        prometheus in provider: Option<PrometheusMetricsProvider>,
        envoy_file_access_log in provider: Option<EnvoyFileAccessLogProvider>,
        envoy_http_als in provider: Option<EnvoyHttpGrpcV3LogProvider>,
        envoy_tcp_als in provider: Option<EnvoyTcpGrpcV3LogProvider>,
        envoy_otel_als in provider: Option<EnvoyOpenTelemetryLogProvider>,
        sds in provider: Option<SdsProvider>,
    }

    /// `MeshConfig.DefaultProviders`
    DefaultProviders = "MeshConfig.DefaultProviders" {
        tracing: Vec<String>,
        metrics: Vec<String>,
        access_logging: Vec<String>,
    }

    /// `LabelSelector`
    LabelSelector = "LabelSelector" {
        match_labels: BTreeMap<String, String>,
        match_expressions: Vec<LabelSelectorRequirement>,
    }

    /// `MeshConfig.ProxyPathNormalization`
    ProxyPathNormalization = "MeshConfig.ProxyPathNormalization" {
        normalization: NormalizationType,
    }

    /// `MeshConfig.TLSConfig`
    TlsConfig = "MeshConfig.TLSConfig" {
        min_protocol_version: MeshConfigTlsConfigTlsProtocol,
        ecdh_curves: Vec<String>,
        cipher_suites: Vec<String>,
    }

    /// `MeshConfig.DefaultTrafficPolicy`
    DefaultTrafficPolicy = "MeshConfig.DefaultTrafficPolicy" {
        connection_pool: Option<ConnectionPoolSettings>,
        outlier_detection: Option<OutlierDetection>,
    }

    /// `ServiceEntryVisibility`
    ServiceEntryVisibility = "ServiceEntryVisibility" {
        default_visibility: Visibility,
        apply_to_sidecars: bool,
        policies: Vec<Policy>,
    }

    /// `Tracing`
    MeshConfigTracing = "Tracing" {
        zipkin in tracer: Option<Zipkin>,
        lightstep in tracer: Option<Lightstep>,
        datadog in tracer: Option<Datadog>,
        stackdriver in tracer: Option<Stackdriver>,
        open_census_agent in tracer: Option<OpenCensusAgent>,
        custom_tags: BTreeMap<String, TracingCustomTag>,
        max_path_tag_length: u32,
        sampling: f64,
        tls_settings: Option<ClientTlsSettings>,
        enable_istio_tags: Option<bool>,
    }

    /// `SDS`
    Sds = "SDS" {
        enabled: bool,
        k8s_sa_jwt_path: String,
    }

    /// `RemoteService`
    RemoteService = "RemoteService" {
        address: String,
        tls_settings: Option<ClientTlsSettings>,
        tcp_keepalive: Option<TcpKeepalive>,
    }

    /// `Topology`
    Topology = "Topology" {
        num_trusted_proxies: u32,
        forward_client_cert_details: ForwardClientCertDetails,
        proxy_protocol: Option<ProxyProtocolConfiguration>,
    }

    /// `ReadinessProbe`
    ReadinessProbe = "ReadinessProbe" {
        initial_delay_seconds: i32,
        timeout_seconds: i32,
        period_seconds: i32,
        success_threshold: i32,
        failure_threshold: i32,
        http_get in healthCheckMethod: Option<HttpHealthCheckConfig>,
        tcp_socket in healthCheckMethod: Option<TcpHealthCheckConfig>,
        exec in healthCheckMethod: Option<ExecHealthCheckConfig>,
        grpc in healthCheckMethod: Option<GrpcHealthCheckConfig>,
    }

    /// `ProxyConfig.ProxyStatsMatcher`
    ProxyStatsMatcher = "ProxyConfig.ProxyStatsMatcher" {
        inclusion_prefixes: Vec<String>,
        inclusion_suffixes: Vec<String>,
        inclusion_regexps: Vec<String>,
    }

    /// `ProxyImage`
    ProxyImage = "ProxyImage" {
        image_type: String,
    }

    /// `PrivateKeyProvider`
    PrivateKeyProvider = "PrivateKeyProvider" {
        cryptomb in provider: Option<CryptoMb>,
        qat in provider: Option<QAT>,
    }

    /// `ProxyConfig.ProxyHeaders`
    ProxyHeaders = "ProxyConfig.ProxyHeaders" {
        forwarded_client_cert: ForwardClientCertDetails,
        set_current_client_cert_details: Option<SetCurrentClientCertDetails>,
        request_id: Option<RequestId>,
        server: Option<ProxyConfigProxyHeadersServer>,
        attempt_count: Option<AttemptCount>,
        envoy_debug_headers: Option<EnvoyDebugHeaders>,
        metadata_exchange_headers: Option<MetadataExchangeHeaders>,
        preserve_http1_header_case: Option<bool>,
        x_forwarded_host: Option<XForwardedHost>,
        x_forwarded_port: Option<XForwardedPort>,
    }

    /// `ProxyConfig.ConnectionSettings`
    ConnectionSettings = "ProxyConfig.ConnectionSettings" {
        profile: Profile,
        listener_per_connection_buffer_limit_bytes: Option<i32>,
        cluster_per_connection_buffer_limit_bytes: Option<i32>,
        http_idle_timeout: Option<Span>,
        http_max_connection_duration: Option<Span>,
        http_drain_timeout: Option<Span>,
        http_request_timeout: Option<Span>,
        http_request_headers_timeout: Option<Span>,
        http_stream_idle_timeout: Option<Span>,
        http_max_stream_duration: Option<Span>,
        http_max_concurrent_streams: Option<i32>,
        http2_initial_stream_window_size: Option<i32>,
        http2_initial_connection_window_size: Option<i32>,
        http_headers_with_underscores_action: HeadersWithUnderscoresAction,
        http_merge_slashes: Option<bool>,
        http_path_with_escaped_slashes_action: PathWithEscapedSlashesAction,
        listener_connection_limit: Option<i32>,
        global_downstream_connection_limit: Option<i32>,
    }

    /// `MeshConfig.ServiceSettings.Settings`
    Settings = "MeshConfig.ServiceSettings.Settings" {
        cluster_local: bool,
    }

    /// `MeshConfig.ExtensionProvider.EnvoyExternalAuthorizationHttpProvider`
    EnvoyExternalAuthorizationHttpProvider = "MeshConfig.ExtensionProvider.EnvoyExternalAuthorizationHttpProvider" {
        service: String,
        port: u32,
        timeout: Option<Span>,
        path_prefix: String,
        fail_open: bool,
        clear_route_cache: bool,
        status_on_error: String,
        include_headers_in_check: Vec<String>,
        include_request_headers_in_check: Vec<String>,
        include_additional_headers_in_check: BTreeMap<String, String>,
        include_request_body_in_check: Option<EnvoyExternalAuthorizationRequestBody>,
        headers_to_upstream_on_allow: Vec<String>,
        headers_to_downstream_on_deny: Vec<String>,
        headers_to_downstream_on_allow: Vec<String>,
    }

    /// `MeshConfig.ExtensionProvider.EnvoyExternalAuthorizationGrpcProvider`
    EnvoyExternalAuthorizationGrpcProvider = "MeshConfig.ExtensionProvider.EnvoyExternalAuthorizationGrpcProvider" {
        service: String,
        port: u32,
        timeout: Option<Span>,
        fail_open: bool,
        clear_route_cache: bool,
        status_on_error: String,
        include_request_body_in_check: Option<EnvoyExternalAuthorizationRequestBody>,
    }

    /// `MeshConfig.ExtensionProvider.ZipkinTracingProvider`
    ZipkinTracingProvider = "MeshConfig.ExtensionProvider.ZipkinTracingProvider" {
        service: String,
        port: u32,
        max_tag_length: u32,
        enable64bit_trace_id: bool,
        path: String,
        trace_context_option: TraceContextOption,
        timeout: Option<Span>,
        headers: Vec<HttpHeader>,
    }

    /// `MeshConfig.ExtensionProvider.LightstepTracingProvider`
    LightstepTracingProvider = "MeshConfig.ExtensionProvider.LightstepTracingProvider" {
        service: String,
        port: u32,
        access_token: String,
        max_tag_length: u32,
    }

    /// `MeshConfig.ExtensionProvider.DatadogTracingProvider`
    DatadogTracingProvider = "MeshConfig.ExtensionProvider.DatadogTracingProvider" {
        service: String,
        port: u32,
        max_tag_length: u32,
    }

    /// `MeshConfig.ExtensionProvider.StackdriverProvider`
    StackdriverProvider = "MeshConfig.ExtensionProvider.StackdriverProvider" {
        debug: bool,
        max_number_of_attributes: Option<Number<i64>>,
        max_number_of_annotations: Option<Number<i64>>,
        max_number_of_message_events: Option<Number<i64>>,
        max_tag_length: u32,
        logging: Option<Logging>,
    }

    /// `MeshConfig.ExtensionProvider.OpenCensusAgentTracingProvider`
    OpenCensusAgentTracingProvider = "MeshConfig.ExtensionProvider.OpenCensusAgentTracingProvider" {
        service: String,
        port: u32,
        context: Vec<TraceContext>,
        max_tag_length: u32,
    }

    /// `MeshConfig.ExtensionProvider.SkyWalkingTracingProvider`
    SkyWalkingTracingProvider = "MeshConfig.ExtensionProvider.SkyWalkingTracingProvider" {
        service: String,
        port: u32,
        access_token: String,
    }

    /// `MeshConfig.ExtensionProvider.OpenTelemetryTracingProvider`
    OpenTelemetryTracingProvider = "MeshConfig.ExtensionProvider.OpenTelemetryTracingProvider" {
        service: String,
        port: u32,
        max_tag_length: u32,
        http: Option<HttpService>,
        grpc: Option<GrpcService>,
        resource_detectors: Option<ResourceDetectors>,
        service_attribute_enrichment: ServiceAttributeEnrichment,
        dynatrace_sampler in sampling: Option<DynatraceSampler>,
    }

    /// `MeshConfig.ExtensionProvider.PrometheusMetricsProvider`
    PrometheusMetricsProvider = "MeshConfig.ExtensionProvider.PrometheusMetricsProvider" {

    }

    /// `MeshConfig.ExtensionProvider.EnvoyFileAccessLogProvider`
    EnvoyFileAccessLogProvider = "MeshConfig.ExtensionProvider.EnvoyFileAccessLogProvider" {
        path: String,
        log_format: Option<MeshConfigExtensionProviderEnvoyFileAccessLogProviderLogFormat>,
        omit_empty_values: bool,
    }

    /// `MeshConfig.ExtensionProvider.EnvoyHttpGrpcV3LogProvider`
    EnvoyHttpGrpcV3LogProvider = "MeshConfig.ExtensionProvider.EnvoyHttpGrpcV3LogProvider" {
        service: String,
        port: u32,
        log_name: String,
        filter_state_objects_to_log: Vec<String>,
        additional_request_headers_to_log: Vec<String>,
        additional_response_headers_to_log: Vec<String>,
        additional_response_trailers_to_log: Vec<String>,
    }

    /// `MeshConfig.ExtensionProvider.EnvoyTcpGrpcV3LogProvider`
    EnvoyTcpGrpcV3LogProvider = "MeshConfig.ExtensionProvider.EnvoyTcpGrpcV3LogProvider" {
        service: String,
        port: u32,
        log_name: String,
        filter_state_objects_to_log: Vec<String>,
    }

    /// `MeshConfig.ExtensionProvider.EnvoyOpenTelemetryLogProvider`
    EnvoyOpenTelemetryLogProvider = "MeshConfig.ExtensionProvider.EnvoyOpenTelemetryLogProvider" {
        service: String,
        port: u32,
        log_name: String,
        log_format: Option<MeshConfigExtensionProviderEnvoyOpenTelemetryLogProviderLogFormat>,
    }

    /// `MeshConfig.ExtensionProvider.SDSProvider`
    SdsProvider = "MeshConfig.ExtensionProvider.SDSProvider" {
        name: String,
        service: String,
        port: u32,
    }

    /// `LabelSelectorRequirement`
    LabelSelectorRequirement = "LabelSelectorRequirement" {
        key: String,
        operator: String,
        values: Vec<String>,
    }

    /// `ServiceEntryVisibility.Policy`
    Policy = "ServiceEntryVisibility.Policy" {
        visibility: Visibility,
        matching_rules: Vec<MatchRule>,
    }

    /// `Tracing.Zipkin`
    Zipkin = "Tracing.Zipkin" {
        address: String,
    }

    /// `Tracing.Lightstep`
    Lightstep = "Tracing.Lightstep" {
        address: String,
        access_token: String,
    }

    /// `Tracing.Datadog`
    Datadog = "Tracing.Datadog" {
        address: String,
    }

    /// `Tracing.Stackdriver`
    Stackdriver = "Tracing.Stackdriver" {
        debug: bool,
        max_number_of_attributes: Option<Number<i64>>,
        max_number_of_annotations: Option<Number<i64>>,
        max_number_of_message_events: Option<Number<i64>>,
    }

    /// `Tracing.OpenCensusAgent`
    OpenCensusAgent = "Tracing.OpenCensusAgent" {
        address: String,
        context: Vec<TracingOpenCensusAgentTraceContext>,
    }

    /// `Tracing.CustomTag`
    TracingCustomTag = "Tracing.CustomTag" {
        literal in type: Option<LiteralTag>,
        environment in type: Option<EnvironmentTag>,
        header in type: Option<HeaderTag>,
    }

    /// `Topology.ProxyProtocolConfiguration`
    ProxyProtocolConfiguration = "Topology.ProxyProtocolConfiguration" {

    }

    /// `HTTPHealthCheckConfig`
    HttpHealthCheckConfig = "HTTPHealthCheckConfig" {
        path: String,
        port: u32,
        host: String,
        scheme: String,
        http_headers: Vec<MeshConfigHttpHeader>,
    }

    /// `TCPHealthCheckConfig`
    TcpHealthCheckConfig = "TCPHealthCheckConfig" {
        host: String,
        port: u32,
    }

    /// `ExecHealthCheckConfig`
    ExecHealthCheckConfig = "ExecHealthCheckConfig" {
        command: Vec<String>,
    }

    /// `GrpcHealthCheckConfig`
    GrpcHealthCheckConfig = "GrpcHealthCheckConfig" {
        port: u32,
        service: String,
    }

    /// `PrivateKeyProvider.CryptoMb`
    CryptoMb = "PrivateKeyProvider.CryptoMb" {
        poll_delay: Option<Span>,
        fallback: Option<bool>,
    }

    /// `PrivateKeyProvider.QAT`
    QAT = "PrivateKeyProvider.QAT" {
        poll_delay: Option<Span>,
        fallback: Option<bool>,
    }

    /// `ProxyConfig.ProxyHeaders.SetCurrentClientCertDetails`
    SetCurrentClientCertDetails = "ProxyConfig.ProxyHeaders.SetCurrentClientCertDetails" {
        subject: Option<bool>,
        cert: Option<bool>,
        chain: Option<bool>,
        dns: Option<bool>,
        uri: Option<bool>,
    }

    /// `ProxyConfig.ProxyHeaders.RequestId`
    RequestId = "ProxyConfig.ProxyHeaders.RequestId" {
        disabled: Option<bool>,
    }

    /// `ProxyConfig.ProxyHeaders.Server`
    ProxyConfigProxyHeadersServer = "ProxyConfig.ProxyHeaders.Server" {
        disabled: Option<bool>,
        value: String,
    }

    /// `ProxyConfig.ProxyHeaders.AttemptCount`
    AttemptCount = "ProxyConfig.ProxyHeaders.AttemptCount" {
        disabled: Option<bool>,
    }

    /// `ProxyConfig.ProxyHeaders.EnvoyDebugHeaders`
    EnvoyDebugHeaders = "ProxyConfig.ProxyHeaders.EnvoyDebugHeaders" {
        disabled: Option<bool>,
    }

    /// `ProxyConfig.ProxyHeaders.MetadataExchangeHeaders`
    MetadataExchangeHeaders = "ProxyConfig.ProxyHeaders.MetadataExchangeHeaders" {
        mode: MetadataExchangeMode,
    }

    /// `ProxyConfig.ProxyHeaders.XForwardedHost`
    XForwardedHost = "ProxyConfig.ProxyHeaders.XForwardedHost" {
        enabled: Option<bool>,
    }

    /// `ProxyConfig.ProxyHeaders.XForwardedPort`
    XForwardedPort = "ProxyConfig.ProxyHeaders.XForwardedPort" {
        enabled: Option<bool>,
    }

    /// `MeshConfig.ExtensionProvider.EnvoyExternalAuthorizationRequestBody`
    EnvoyExternalAuthorizationRequestBody = "MeshConfig.ExtensionProvider.EnvoyExternalAuthorizationRequestBody" {
        max_request_bytes: u32,
        allow_partial_message: bool,
        pack_as_bytes: bool,
    }

    /// `MeshConfig.ExtensionProvider.HttpHeader`
    HttpHeader = "MeshConfig.ExtensionProvider.HttpHeader" {
        name: String,
        value in headerValue: Option<String>,
        env_name in headerValue: Option<String>,
    }

    /// `MeshConfig.ExtensionProvider.StackdriverProvider.Logging`
    Logging = "MeshConfig.ExtensionProvider.StackdriverProvider.Logging" {
        labels: BTreeMap<String, String>,
    }

    /// `MeshConfig.ExtensionProvider.HttpService`
    HttpService = "MeshConfig.ExtensionProvider.HttpService" {
        path: String,
        timeout: Option<Span>,
        headers: Vec<HttpHeader>,
    }

    /// `MeshConfig.ExtensionProvider.GrpcService`
    GrpcService = "MeshConfig.ExtensionProvider.GrpcService" {
        timeout: Option<Span>,
        initial_metadata: Vec<HttpHeader>,
    }

    /// `MeshConfig.ExtensionProvider.ResourceDetectors`
    ResourceDetectors = "MeshConfig.ExtensionProvider.ResourceDetectors" {
        environment: Option<EnvironmentResourceDetector>,
        dynatrace: Option<DynatraceResourceDetector>,
    }

    /// `MeshConfig.ExtensionProvider.OpenTelemetryTracingProvider.DynatraceSampler`
    DynatraceSampler = "MeshConfig.ExtensionProvider.OpenTelemetryTracingProvider.DynatraceSampler" {
        tenant: String,
        cluster_id: i32,
        root_spans_per_minute: u32,
        http_service: Option<DynatraceApi>,
    }

    /// `MeshConfig.ExtensionProvider.EnvoyFileAccessLogProvider.LogFormat`
    MeshConfigExtensionProviderEnvoyFileAccessLogProviderLogFormat = "MeshConfig.ExtensionProvider.EnvoyFileAccessLogProvider.LogFormat" {
        text in logFormat: Option<String>,
        labels in logFormat: Option<Value>,
    }

    /// `MeshConfig.ExtensionProvider.EnvoyOpenTelemetryLogProvider.LogFormat`
    MeshConfigExtensionProviderEnvoyOpenTelemetryLogProviderLogFormat = "MeshConfig.ExtensionProvider.EnvoyOpenTelemetryLogProvider.LogFormat" {
        text: String,
        labels: Option<Value>,
    }

    /// `ServiceEntryVisibility.MatchRule`
    MatchRule = "ServiceEntryVisibility.MatchRule" {
        namespace_selector in matcher: Option<LabelSelector>,
    }

    /// `HTTPHeader`
    MeshConfigHttpHeader = "HTTPHeader" {
        name: String,
        value: String,
    }

    /// `MeshConfig.ExtensionProvider.ResourceDetectors.EnvironmentResourceDetector`
    EnvironmentResourceDetector = "MeshConfig.ExtensionProvider.ResourceDetectors.EnvironmentResourceDetector" {

    }

    /// `MeshConfig.ExtensionProvider.ResourceDetectors.DynatraceResourceDetector`
    DynatraceResourceDetector = "MeshConfig.ExtensionProvider.ResourceDetectors.DynatraceResourceDetector" {

    }

    /// `MeshConfig.ExtensionProvider.OpenTelemetryTracingProvider.DynatraceSampler.DynatraceApi`
    DynatraceApi = "MeshConfig.ExtensionProvider.OpenTelemetryTracingProvider.DynatraceSampler.DynatraceApi" {
        service: String,
        port: u32,
        http: Option<HttpService>,
    }
}
