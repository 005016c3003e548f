//! Istio's security objects, and what stands for workloads outside Kubernetes.

use crate::{
    kubernetes::{LabelSelector, Labels},
    schema::{messages, names},
};
use std::collections::BTreeMap;

names! {
    /// What an AuthorizationPolicy does with what it matches
    AuthorizationAction = "AuthorizationPolicy.Action" {
        Allow = "ALLOW",
        Deny = "DENY",
        Audit = "AUDIT",
        Custom = "CUSTOM",
    }
}

names! {
    /// `PeerAuthentication.MutualTLS.Mode`
    MutualTlsMode = "PeerAuthentication.MutualTLS.Mode" {
        Unset = "UNSET",
        Disable = "DISABLE",
        Permissive = "PERMISSIVE",
        Strict = "STRICT",
    }
}

names! {
    /// Whether a ServiceEntry's hosts are of the mesh
    Location = "ServiceEntry.Location" {
        MeshExternal = "MESH_EXTERNAL",
        MeshInternal = "MESH_INTERNAL",
    }
}

names! {
    /// How a ServiceEntry's hosts are found
    Resolution = "ServiceEntry.Resolution" {
        None = "NONE",
        Static = "STATIC",
        Dns = "DNS",
        DnsRoundRobin = "DNS_ROUND_ROBIN",
        DynamicDns = "DYNAMIC_DNS",
    }
}

messages! {
    /// security.istio.io AuthorizationPolicy
    AuthorizationPolicy = "AuthorizationPolicy" {
        selector: Option<LabelSelector>,
        target_ref: Option<PolicyTargetReference>,
        target_refs: Vec<PolicyTargetReference>,
        rules: Vec<Rule>,
        action: AuthorizationAction,
        provider in action_detail: Option<ExtensionProvider>,
    }

    /// `AuthorizationPolicy.ExtensionProvider`
    ExtensionProvider = "AuthorizationPolicy.ExtensionProvider" {
        name: String,
    }

    /// The object that a policy binds
    PolicyTargetReference = "PolicyTargetReference" {
        group: String,
        kind: String,
        name: String,
        namespace: String,
    }

    /// `Rule`
    Rule = "Rule" {
        from: Vec<From>,
        to: Vec<To>,
        when: Vec<Condition>,
    }

    /// `Rule.From`
    From = "Rule.From" {
        source: Source,
    }

    /// `Source`
    Source = "Source" {
        principals: Vec<String>,
        not_principals: Vec<String>,
        request_principals: Vec<String>,
        not_request_principals: Vec<String>,
        namespaces: Vec<String>,
        not_namespaces: Vec<String>,
        service_accounts: Vec<String>,
        not_service_accounts: Vec<String>,
        ip_blocks: Vec<String>,
        not_ip_blocks: Vec<String>,
        remote_ip_blocks: Vec<String>,
        not_remote_ip_blocks: Vec<String>,
        trust_domains: Vec<String>,
        not_trust_domains: Vec<String>,
    }

    /// `Rule.To`
    To = "Rule.To" {
        operation: Operation,
    }

    /// `Operation`
    Operation = "Operation" {
        hosts: Vec<String>,
        not_hosts: Vec<String>,
        ports: Vec<String>,
        not_ports: Vec<String>,
        methods: Vec<String>,
        not_methods: Vec<String>,
        paths: Vec<String>,
        not_paths: Vec<String>,
    }

    /// `Condition`
    Condition = "Condition" {
        key: String,
        values: Vec<String>,
        not_values: Vec<String>,
    }

    /// security.istio.io PeerAuthentication
    PeerAuthentication = "PeerAuthentication" {
        selector: Option<LabelSelector>,
        mtls: Option<MutualTls>,
        port_level_mtls: BTreeMap<String, MutualTls>,
    }

    /// `PeerAuthentication.MutualTLS`
    MutualTls = "PeerAuthentication.MutualTLS" {
        mode: MutualTlsMode,
    }

    /// networking.istio.io WorkloadEntry
    WorkloadEntry = "WorkloadEntry" {
        address: String,
        ports: BTreeMap<String, u16>,
        labels: Labels,
        network: String,
        locality: String,
        weight: Option<u32>,
        service_account: String,
    }

    /// networking.istio.io ServiceEntry
    ServiceEntry = "ServiceEntry" {
        hosts: Vec<String>,
        addresses: Vec<String>,
        ports: Vec<ServiceEntryPort>,
        location: Location,
        resolution: Resolution,
        endpoints: Vec<WorkloadEntry>,
        workload_selector: Option<EntrySelector>,
        export_to: Vec<String>,
        subject_alt_names: Vec<String>,
    }

    /// `ServicePort`
    ServiceEntryPort = "ServicePort" {
        number: u16,
        protocol: String,
        name: String,
        target_port: Option<u16>,
    }

    /// networking.istio.io's selector
    EntrySelector = "WorkloadSelector" {
        labels: Labels,
    }
}

impl AuthorizationPolicy {
    /// Whether it binds what its targetRefs name, rather than pods.
    pub fn has_targets(&self) -> bool {
        self.target_ref.is_some() || !self.target_refs.is_empty()
    }
}

impl Operation {
    /// Says something that only an L7 proxy can know.
    pub fn has_l7(&self) -> bool {
        let l7 = [
            &self.hosts,
            &self.not_hosts,
            &self.methods,
            &self.not_methods,
            &self.paths,
            &self.not_paths,
        ];
        l7.iter().any(|f| !f.is_empty())
    }
}

impl Source {
    /// Says something that only an L7 proxy can know.
    pub fn has_l7(&self) -> bool {
        let l7 = [
            &self.request_principals,
            &self.not_request_principals,
            &self.remote_ip_blocks,
            &self.not_remote_ip_blocks,
        ];
        l7.iter().any(|f| !f.is_empty())
    }
}
