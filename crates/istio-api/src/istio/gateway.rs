//! Gateway, with every field that Istio 1.31 has.

use crate::schema::{messages, names};
use std::collections::BTreeMap;

names! {
    /// `ServerTLSSettings.TLSmode`
    ServerTlsMode = "ServerTLSSettings.TLSmode" {
        Passthrough = "PASSTHROUGH",
        Simple = "SIMPLE",
        Mutual = "MUTUAL",
        AutoPassthrough = "AUTO_PASSTHROUGH",
        IstioMutual = "ISTIO_MUTUAL",
        OptionalMutual = "OPTIONAL_MUTUAL",
    }
}

names! {
    /// `ServerTLSSettings.TLSProtocol`
    TlsProtocol = "ServerTLSSettings.TLSProtocol" {
        TlsAuto = "TLS_AUTO",
        Tlsv10 = "TLSV1_0",
        Tlsv11 = "TLSV1_1",
        Tlsv12 = "TLSV1_2",
        Tlsv13 = "TLSV1_3",
    }
}

messages! {
    /// `Gateway`
    Gateway = "Gateway" {
        servers: Vec<Server>,
        selector: BTreeMap<String, String>,
    }

    /// `Server`
    Server = "Server" {
        port: Option<Port>,
        bind: String,
        hosts: Vec<String>,
        tls: Option<ServerTlsSettings>,
        default_endpoint: String,
        name: String,
    }

    /// `Port`
    Port = "Port" {
        number: u32,
        protocol: String,
        name: String,
        target_port: u32,
    }

    /// `ServerTLSSettings`
    ServerTlsSettings = "ServerTLSSettings" {
        https_redirect: bool,
        mode: ServerTlsMode,
        server_certificate: String,
        private_key: String,
        ca_certificates: String,
        ca_crl: String,
        credential_name: String,
        credential_names: Vec<String>,
        ca_cert_credential_name: String,
        tls_certificates: Vec<TlsCertificate>,
        subject_alt_names: Vec<String>,
        verify_certificate_spki: Vec<String>,
        verify_certificate_hash: Vec<String>,
        min_protocol_version: TlsProtocol,
        max_protocol_version: TlsProtocol,
        cipher_suites: Vec<String>,
        insecure_skip_verify: Option<bool>,
    }

    /// `ServerTLSSettings.TLSCertificate`
    TlsCertificate = "ServerTLSSettings.TLSCertificate" {
        server_certificate: String,
        private_key: String,
        ca_certificates: String,
    }
}
