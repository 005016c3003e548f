//! Telemetry, with every field that Istio 1.31 has.

use super::destination_rule::WorkloadSelector;
use crate::schema::{Span, messages, names};
use std::collections::BTreeMap;

names! {
    /// `WorkloadMode`
    WorkloadMode = "WorkloadMode" {
        ClientAndServer = "CLIENT_AND_SERVER",
        Client = "CLIENT",
        Server = "SERVER",
    }
}

names! {
    /// `MetricSelector.IstioMetric`
    IstioMetric = "MetricSelector.IstioMetric" {
        AllMetrics = "ALL_METRICS",
        RequestCount = "REQUEST_COUNT",
        RequestDuration = "REQUEST_DURATION",
        RequestSize = "REQUEST_SIZE",
        ResponseSize = "RESPONSE_SIZE",
        TcpOpenedConnections = "TCP_OPENED_CONNECTIONS",
        TcpClosedConnections = "TCP_CLOSED_CONNECTIONS",
        TcpSentBytes = "TCP_SENT_BYTES",
        TcpReceivedBytes = "TCP_RECEIVED_BYTES",
        GrpcRequestMessages = "GRPC_REQUEST_MESSAGES",
        GrpcResponseMessages = "GRPC_RESPONSE_MESSAGES",
    }
}

names! {
    /// `MetricsOverrides.TagOverride.Operation`
    TagOperation = "MetricsOverrides.TagOverride.Operation" {
        Upsert = "UPSERT",
        Remove = "REMOVE",
    }
}

messages! {
    /// `Telemetry`
    Telemetry = "Telemetry" {
        selector: Option<WorkloadSelector>,
        target_ref: Option<PolicyTargetReference>,
        target_refs: Vec<PolicyTargetReference>,
        tracing: Vec<Tracing>,
        metrics: Vec<Metrics>,
        access_logging: Vec<AccessLogging>,
    }

    /// `PolicyTargetReference`
    PolicyTargetReference = "PolicyTargetReference" {
        group: String,
        kind: String,
        name: String,
        namespace: String,
    }

    /// `Tracing`
    Tracing = "Tracing" {
        r#match: Option<TracingSelector>,
        providers: Vec<ProviderRef>,
        random_sampling_percentage: Option<f64>,
        disable_span_reporting: Option<bool>,
        custom_tags: BTreeMap<String, CustomTag>,
        use_request_id_for_trace_sampling: Option<bool>,
        enable_istio_tags: Option<bool>,
        disable_context_propagation: Option<bool>,
    }

    /// `Metrics`
    Metrics = "Metrics" {
        providers: Vec<ProviderRef>,
        overrides: Vec<MetricsOverrides>,
        reporting_interval: Option<Span>,
    }

    /// `AccessLogging`
    AccessLogging = "AccessLogging" {
        r#match: Option<LogSelector>,
        providers: Vec<ProviderRef>,
        disabled: Option<bool>,
        filter: Option<LogFilter>,
    }

    /// `Tracing.TracingSelector`
    TracingSelector = "Tracing.TracingSelector" {
        mode: WorkloadMode,
    }

    /// `ProviderRef`
    ProviderRef = "ProviderRef" {
        name: String,
    }

    /// `Tracing.CustomTag`
    CustomTag = "Tracing.CustomTag" {
        literal in type: Option<LiteralTag>,
        environment in type: Option<EnvironmentTag>,
        header in type: Option<HeaderTag>,
        formatter in type: Option<FormatterTag>,
    }

    /// `MetricsOverrides`
    MetricsOverrides = "MetricsOverrides" {
        r#match: Option<MetricSelector>,
        disabled: Option<bool>,
        tag_overrides: BTreeMap<String, TagOverride>,
    }

    /// `AccessLogging.LogSelector`
    LogSelector = "AccessLogging.LogSelector" {
        mode: WorkloadMode,
    }

    /// `AccessLogging.Filter`
    LogFilter = "AccessLogging.Filter" {
        expression: String,
    }

    /// `Tracing.Literal`
    LiteralTag = "Tracing.Literal" {
        value: String,
    }

    /// `Tracing.Environment`
    EnvironmentTag = "Tracing.Environment" {
        name: String,
        default_value: String,
    }

    /// `Tracing.RequestHeader`
    HeaderTag = "Tracing.RequestHeader" {
        name: String,
        default_value: String,
    }

    /// `Tracing.Formatter`
    FormatterTag = "Tracing.Formatter" {
        value: String,
    }

    /// `MetricSelector`
    MetricSelector = "MetricSelector" {
        metric in metricMatch: Option<IstioMetric>,
        custom_metric in metricMatch: Option<String>,
        mode: WorkloadMode,
    }

    /// `MetricsOverrides.TagOverride`
    TagOverride = "MetricsOverrides.TagOverride" {
        operation: TagOperation,
        value: String,
    }
}
