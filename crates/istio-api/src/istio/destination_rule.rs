//! DestinationRule, with every field that Istio 1.31 has.

use super::virtual_service::PortSelector;
use crate::schema::{Number, Span, messages, names};
use std::collections::BTreeMap;

names! {
    /// `LoadBalancerSettings.SimpleLB`
    SimpleLb = "LoadBalancerSettings.SimpleLB" {
        Unspecified = "UNSPECIFIED",
        LeastConn = "LEAST_CONN",
        Random = "RANDOM",
        Passthrough = "PASSTHROUGH",
        RoundRobin = "ROUND_ROBIN",
        LeastRequest = "LEAST_REQUEST",
    }
}

names! {
    /// `ClientTLSSettings.TLSmode`
    ClientTlsMode = "ClientTLSSettings.TLSmode" {
        Disable = "DISABLE",
        Simple = "SIMPLE",
        Mutual = "MUTUAL",
        IstioMutual = "ISTIO_MUTUAL",
    }
}

names! {
    /// `TrafficPolicy.ProxyProtocol.VERSION`
    ProxyProtocolVersion = "TrafficPolicy.ProxyProtocol.VERSION" {
        V1 = "V1",
        V2 = "V2",
    }
}

names! {
    /// `ConnectionPoolSettings.HTTPSettings.H2UpgradePolicy`
    H2UpgradePolicy = "ConnectionPoolSettings.HTTPSettings.H2UpgradePolicy" {
        Default = "DEFAULT",
        DoNotUpgrade = "DO_NOT_UPGRADE",
        Upgrade = "UPGRADE",
    }
}

messages! {
    /// `DestinationRule`
    DestinationRule = "DestinationRule" {
        host: String,
        traffic_policy: Option<TrafficPolicy>,
        subsets: Vec<Subset>,
        export_to: Vec<String>,
        workload_selector: Option<WorkloadSelector>,
    }

    /// `TrafficPolicy`
    TrafficPolicy = "TrafficPolicy" {
        load_balancer: Option<LoadBalancerSettings>,
        connection_pool: Option<ConnectionPoolSettings>,
        outlier_detection: Option<OutlierDetection>,
        tls: Option<ClientTlsSettings>,
        port_level_settings: Vec<PortTrafficPolicy>,
        tunnel: Option<TunnelSettings>,
        proxy_protocol: Option<ProxyProtocol>,
        retry_budget: Option<RetryBudget>,
    }

    /// `Subset`
    Subset = "Subset" {
        name: String,
        labels: BTreeMap<String, String>,
        traffic_policy: Option<TrafficPolicy>,
    }

    /// `WorkloadSelector`
    WorkloadSelector = "WorkloadSelector" {
        match_labels: BTreeMap<String, String>,
    }

    /// `LoadBalancerSettings`
    LoadBalancerSettings = "LoadBalancerSettings" {
        simple in lbPolicy: Option<SimpleLb>,
        consistent_hash in lbPolicy: Option<ConsistentHash>,
        locality_lb_setting: Option<LocalityLoadBalancerSetting>,
        zone_aware_lb_setting: Option<ZoneAwareLoadBalancerSetting>,
        warmup_duration_secs: Option<Span>,
        warmup: Option<WarmupConfiguration>,
    }

    /// `ConnectionPoolSettings`
    ConnectionPoolSettings = "ConnectionPoolSettings" {
        tcp: Option<TcpPoolSettings>,
        http: Option<HttpPoolSettings>,
    }

    /// `OutlierDetection`
    OutlierDetection = "OutlierDetection" {
        consecutive_errors: i32,
        split_external_local_origin_errors: bool,
        consecutive_local_origin_failures: Option<u32>,
        consecutive_gateway_errors: Option<u32>,
        consecutive5xx_errors: Option<u32>,
        interval: Option<Span>,
        base_ejection_time: Option<Span>,
        max_ejection_percent: i32,
        min_health_percent: i32,
        outlier_detection_http_error_codes: Vec<u32>,
    }

    /// `ClientTLSSettings`
    ClientTlsSettings = "ClientTLSSettings" {
        mode: ClientTlsMode,
        client_certificate: String,
        private_key: String,
        ca_certificates: String,
        credential_name: String,
        subject_alt_names: Vec<String>,
        sni: String,
        insecure_skip_verify: Option<bool>,
        ca_crl: String,
    }

    /// `TrafficPolicy.PortTrafficPolicy`
    PortTrafficPolicy = "TrafficPolicy.PortTrafficPolicy" {
        port: Option<PortSelector>,
        load_balancer: Option<LoadBalancerSettings>,
        connection_pool: Option<ConnectionPoolSettings>,
        outlier_detection: Option<OutlierDetection>,
        tls: Option<ClientTlsSettings>,
    }

    /// `TrafficPolicy.TunnelSettings`
    TunnelSettings = "TrafficPolicy.TunnelSettings" {
        protocol: String,
        target_host: String,
        target_port: u32,
    }

    /// `TrafficPolicy.ProxyProtocol`
    ProxyProtocol = "TrafficPolicy.ProxyProtocol" {
        version: ProxyProtocolVersion,
    }

    /// `TrafficPolicy.RetryBudget`
    RetryBudget = "TrafficPolicy.RetryBudget" {
        percent: Option<f64>,
        min_retry_concurrency: u32,
        budget_interval: Option<Span>,
    }

    /// `LoadBalancerSettings.ConsistentHashLB`
    ConsistentHash = "LoadBalancerSettings.ConsistentHashLB" {
        http_header_name in hashKey: Option<String>,
        http_cookie in hashKey: Option<HashCookie>,
        use_source_ip in hashKey: Option<bool>,
        http_query_parameter_name in hashKey: Option<String>,
        ring_hash in hashAlgorithm: Option<RingHash>,
        maglev in hashAlgorithm: Option<MagLev>,
        minimum_ring_size: Number<u64>,
    }

    /// `LocalityLoadBalancerSetting`
    LocalityLoadBalancerSetting = "LocalityLoadBalancerSetting" {
        distribute: Vec<LocalityDistribute>,
        failover: Vec<LocalityFailover>,
        failover_priority: Vec<String>,
        enabled: Option<bool>,
    }

    /// `ZoneAwareLoadBalancerSetting`
    ZoneAwareLoadBalancerSetting = "ZoneAwareLoadBalancerSetting" {
        enabled: Option<bool>,
        failover: Vec<ZoneFailover>,
        failover_priority: Vec<String>,
        min_cluster_size: Option<u32>,
    }

    /// `WarmupConfiguration`
    WarmupConfiguration = "WarmupConfiguration" {
        duration: Option<Span>,
        minimum_percent: Option<f64>,
        aggression: Option<f64>,
    }

    /// `ConnectionPoolSettings.TCPSettings`
    TcpPoolSettings = "ConnectionPoolSettings.TCPSettings" {
        max_connections: i32,
        connect_timeout: Option<Span>,
        tcp_keepalive: Option<TcpKeepalive>,
        max_connection_duration: Option<Span>,
        idle_timeout: Option<Span>,
    }

    /// `ConnectionPoolSettings.HTTPSettings`
    HttpPoolSettings = "ConnectionPoolSettings.HTTPSettings" {
        http1_max_pending_requests: i32,
        http2_max_requests: i32,
        max_requests_per_connection: i32,
        max_retries: i32,
        idle_timeout: Option<Span>,
        h2_upgrade_policy: H2UpgradePolicy,
        use_client_protocol: bool,
        max_concurrent_streams: i32,
        http2_keep_alive: Option<ConnectionKeepalive>,
    }

    /// `LoadBalancerSettings.ConsistentHashLB.HTTPCookie`
    HashCookie = "LoadBalancerSettings.ConsistentHashLB.HTTPCookie" {
        name: String,
        path: String,
        ttl: Option<Span>,
        attributes: Vec<CookieAttribute>,
    }

    /// `LoadBalancerSettings.ConsistentHashLB.RingHash`
    RingHash = "LoadBalancerSettings.ConsistentHashLB.RingHash" {
        minimum_ring_size: Number<u64>,
    }

    /// `LoadBalancerSettings.ConsistentHashLB.MagLev`
    MagLev = "LoadBalancerSettings.ConsistentHashLB.MagLev" {
        table_size: Number<u64>,
    }

    /// `LocalityLoadBalancerSetting.Distribute`
    LocalityDistribute = "LocalityLoadBalancerSetting.Distribute" {
        from: String,
        to: BTreeMap<String, u32>,
    }

    /// `LocalityLoadBalancerSetting.Failover`
    LocalityFailover = "LocalityLoadBalancerSetting.Failover" {
        from: String,
        to: String,
    }

    /// `ZoneAwareLoadBalancerSetting.Failover`
    ZoneFailover = "ZoneAwareLoadBalancerSetting.Failover" {
        from: String,
        to: String,
    }

    /// `ConnectionPoolSettings.TCPSettings.TcpKeepalive`
    TcpKeepalive = "ConnectionPoolSettings.TCPSettings.TcpKeepalive" {
        probes: u32,
        time: Option<Span>,
        interval: Option<Span>,
    }

    /// `ConnectionPoolSettings.HTTPSettings.ConnectionKeepalive`
    ConnectionKeepalive = "ConnectionPoolSettings.HTTPSettings.ConnectionKeepalive" {
        interval: Option<Span>,
        timeout: Option<Span>,
    }

    /// `LoadBalancerSettings.ConsistentHashLB.HTTPCookie.Attribute`
    CookieAttribute = "LoadBalancerSettings.ConsistentHashLB.HTTPCookie.Attribute" {
        name: String,
        value: String,
    }
}
