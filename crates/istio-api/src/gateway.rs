//! What Istio would refuse of a Gateway.

use crate::{
    diagnostic::Code,
    form,
    istio::gateway::{Gateway, Port, Server, ServerTlsMode, ServerTlsSettings, TlsProtocol},
    parse::Found,
};
use std::collections::BTreeSet;

const HTTP: [&str; 5] = ["HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY"];
const TLS: [&str; 2] = ["HTTPS", "TLS"];
const OTHER: [&str; 5] = ["TCP", "MONGO", "REDIS", "MYSQL", "UDP"];

pub(crate) fn gateway(g: &Gateway, name: &str, found: &mut Found<'_>) {
    if !form::is_label(name) {
        found.invalid("metadata.name", format!("{name:?}"), "letters, digits and -, without dots");
    }
    if g.servers.is_empty() {
        found.push(Code::MissingValue, "spec.servers", "none", "give at least one");
    }
    let mut names = BTreeSet::new();
    for (i, s) in g.servers.iter().enumerate() {
        let path = format!("spec.servers[{i}]");
        server(s, &path, found);
        if let Some(p) = s.port.as_ref().filter(|p| !p.name.is_empty())
            && !names.insert(&p.name)
        {
            found.invalid(
                format!("{path}.port.name"),
                format!("{:?} twice", p.name),
                "each port has a name of its own",
            );
        }
    }
}

fn server(s: &Server, path: &str, found: &mut Found<'_>) {
    if s.hosts.is_empty() {
        found.push(Code::MissingValue, format!("{path}.hosts"), "none", "name at least one, or *");
    }
    for (i, h) in s.hosts.iter().enumerate().filter(|(_, h)| !is_gateway_host(h)) {
        found.invalid(format!("{path}.hosts[{i}]"), format!("{h:?}"), "a whole host, a wildcard such as *.example.com, or *, with <namespace>/ before it or not");
    }
    let unix = s.bind.starts_with("unix://");
    if !s.bind.is_empty() && !unix && !form::is_ip(&s.bind) {
        found.invalid(
            format!("{path}.bind"),
            format!("{:?}", s.bind),
            "an address, or unix:// and a path",
        );
    }
    let Some(port) = &s.port else {
        found.push(
            Code::MissingValue,
            format!("{path}.port"),
            "none",
            "give its number, protocol and name",
        );
        return;
    };
    let protocol = one_port(port, unix, &format!("{path}.port"), found);
    served(s, port, path, found);
    let at = format!("{path}.tls");
    match (&s.tls, protocol) {
        (_, None) => {}
        (None, Some(Protocol::Tls)) => {
            found.push(
                Code::MissingValue,
                at,
                "none",
                "HTTPS and TLS need it: say where the certificate is",
            );
        }
        (None, _) => {}
        (Some(_), Some(Protocol::Other)) => {
            found.invalid(at, "with a protocol without TLS", "leave it out, or use HTTPS or TLS");
        }
        (Some(t), Some(Protocol::Http)) => {
            let certificate = [&t.server_certificate, &t.private_key, &t.ca_certificates];
            let passes =
                matches!(t.mode, ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough);
            if !passes || certificate.iter().any(|c| !c.is_empty()) {
                found.invalid(
                    at,
                    "with plain HTTP",
                    "httpsRedirect alone goes with it; use HTTPS to end TLS",
                );
            }
        }
        (Some(t), Some(Protocol::Tls)) => tls(t, &at, found),
    }
}

/// What is good Istio, and more than this version does.
fn served(s: &Server, port: &Port, path: &str, found: &mut Found<'_>) {
    let protocol = port.protocol.to_ascii_uppercase();
    if !matches!(
        protocol.as_str(),
        "HTTP" | "HTTP2" | "GRPC" | "HTTPS" | "TLS" | "TCP" | "MONGO" | "MYSQL" | "REDIS"
    ) {
        found.push(
            Code::NotServed,
            format!("{path}.port.protocol"),
            format!("{:?}", port.protocol),
            "a gateway serves HTTP, HTTP2, GRPC, HTTPS, TLS and TCP here",
        );
    }
    let Some(tls) = &s.tls else { return };
    let ends = matches!(
        tls.mode,
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual
    );
    let passes = tls.mode == ServerTlsMode::Passthrough;
    if matches!(protocol.as_str(), "HTTPS" | "TLS") && !ends && !passes {
        found.push(
            Code::NotServed,
            format!("{path}.tls.mode"),
            format!("{:?}", tls.mode),
            "a gateway passes TLS on here, or ends it: PASSTHROUGH, SIMPLE, MUTUAL or OPTIONAL_MUTUAL",
        );
    }
    if matches!(tls.min_protocol_version, TlsProtocol::Tlsv10 | TlsProtocol::Tlsv11) {
        found.push(
            Code::Warning,
            format!("{path}.tls.minProtocolVersion"),
            format!("{:?}", tls.min_protocol_version),
            "TLS 1.2 is the oldest that is spoken",
        );
    }
    if !matches!(tls.max_protocol_version, TlsProtocol::TlsAuto | TlsProtocol::Tlsv13) {
        found.push(
            Code::NotServed,
            format!("{path}.tls.maxProtocolVersion"),
            format!("{:?}", tls.max_protocol_version),
            "TLS 1.3 is always spoken to those who can: leave it out",
        );
    }
}

#[derive(Clone, Copy)]
enum Protocol {
    Http,
    Tls,
    Other,
}

fn one_port(p: &Port, unix: bool, path: &str, found: &mut Found<'_>) -> Option<Protocol> {
    if p.number > u32::from(u16::MAX) || (p.number == 0) != unix {
        found.invalid(
            format!("{path}.number"),
            p.number.to_string(),
            "a port is a number from 1 to 65535, and 0 for a unix socket",
        );
    }
    if p.name.is_empty() {
        found.push(Code::MissingValue, format!("{path}.name"), "none", "name the port");
    }
    if p.target_port != 0 {
        found.invalid(
            format!("{path}.targetPort"),
            p.target_port.to_string(),
            "it is no more: leave it out",
        );
    }
    let protocol = p.protocol.to_ascii_uppercase();
    let known = [(&HTTP[..], Protocol::Http), (&TLS, Protocol::Tls), (&OTHER, Protocol::Other)];
    let kind = known.iter().find(|(names, _)| names.contains(&protocol.as_str())).map(|(_, k)| *k);
    if kind.is_none() {
        let all = [&HTTP[..], &TLS, &OTHER].concat().join(", ");
        found.invalid(
            format!("{path}.protocol"),
            format!("{:?}", p.protocol),
            format!("one of {all}"),
        );
    }
    kind
}

pub(crate) fn is_gateway_host(h: &str) -> bool {
    let (namespace, host) = h.split_once('/').map_or((None, h), |(n, h)| (Some(n), h));
    let whole =
        host == "*" || form::is_ip(host) || host.contains('.') && form::is_wildcard_host(host);
    let partial = host.starts_with('*') && host != "*" && !host.starts_with("*.");
    namespace.is_none_or(|n| n == "*" || n == "." || form::is_label(n)) && whole && !partial
}

fn tls(t: &ServerTlsSettings, path: &str, found: &mut Found<'_>) {
    let files = !t.server_certificate.is_empty() || !t.private_key.is_empty();
    let sources = [
        ("serverCertificate", files),
        ("credentialName", !t.credential_name.is_empty()),
        ("credentialNames", !t.credential_names.is_empty()),
        ("tlsCertificates", !t.tls_certificates.is_empty()),
    ];
    let given: Vec<&str> = sources.iter().filter(|(_, given)| *given).map(|(f, _)| *f).collect();
    if let [first, second, ..] = *given {
        found.invalid(
            format!("{path}.{second}"),
            format!("together with {first}"),
            "certificates come from one place",
        );
    }
    let secret = !t.credential_name.is_empty() || !t.credential_names.is_empty();
    match t.mode {
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {
            if let Some(field) = given.first() {
                found.push(
                    Code::Warning,
                    format!("{path}.{field}"),
                    "with a mode that passes through",
                    "no certificate is used: leave it out",
                );
            }
        }
        ServerTlsMode::IstioMutual => {
            let own = given
                .first()
                .copied()
                .or((!t.ca_certificates.is_empty()).then_some("caCertificates"));
            if let Some(field) = own {
                found.invalid(
                    format!("{path}.{field}"),
                    "with ISTIO_MUTUAL",
                    "the mesh's own certificates are used: leave it out",
                );
            }
        }
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual if secret => {
        }
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {
            files_of(t, path, found);
        }
    }
    let simple = t.mode == ServerTlsMode::Simple;
    if !t.ca_crl.is_empty() && (secret || simple) {
        found.invalid(
            format!("{path}.caCrl"),
            "without client certificates from files",
            "it goes with MUTUAL and caCertificates",
        );
    }
    if t.min_protocol_version as u8 > t.max_protocol_version as u8
        && t.max_protocol_version as u8 != 0
    {
        found.invalid(
            format!("{path}.minProtocolVersion"),
            "above maxProtocolVersion",
            "no version is left",
        );
    }
}

/// Certificates from files must be whole.
fn files_of(t: &ServerTlsSettings, path: &str, found: &mut Found<'_>) {
    let mut missing = |field: String, value: &str| {
        if value.is_empty() {
            found.push(
                Code::MissingValue,
                field,
                "none",
                "give it, or credentialName for a Secret",
            );
        }
    };
    if t.tls_certificates.is_empty() {
        missing(format!("{path}.serverCertificate"), &t.server_certificate);
        missing(format!("{path}.privateKey"), &t.private_key);
    }
    for (i, c) in t.tls_certificates.iter().enumerate() {
        missing(format!("{path}.tlsCertificates[{i}].serverCertificate"), &c.server_certificate);
        missing(format!("{path}.tlsCertificates[{i}].privateKey"), &c.private_key);
    }
    if t.mode != ServerTlsMode::Simple {
        missing(format!("{path}.caCertificates"), &t.ca_certificates);
    }
}
