//! What Istio would refuse of a ServiceEntry or a WorkloadEntry, and what is not served.

use crate::{
    diagnostic::Code,
    form,
    parse::Found,
    security::{Resolution, ServiceEntry, WorkloadEntry},
    validate::{is_block, port},
    virtual_service::export_to,
};
use std::{collections::BTreeSet, net::IpAddr};

pub(crate) fn workload_entry(w: &WorkloadEntry, path: &str, found: &mut Found<'_>) {
    if w.address.parse::<IpAddr>().is_err() {
        found.push(
            Code::InvalidValue,
            format!("{path}.address"),
            format!("{:?}", w.address),
            "an IP address, or a host's name in a ServiceEntry with resolution DNS",
        );
    }
    entry_ports(w, path, found);
}

fn entry_ports(w: &WorkloadEntry, path: &str, found: &mut Found<'_>) {
    for (name, _) in w.ports.iter().filter(|(_, p)| **p == 0) {
        port(found, &format!("{path}.ports.{name}"), "0");
    }
}

pub(crate) fn service_entry(s: &ServiceEntry, found: &mut Found<'_>) {
    if s.hosts.is_empty() {
        found.push(Code::MissingValue, "spec.hosts", "none", "name at least one host");
    }
    for (i, h) in s.hosts.iter().enumerate().filter(|(_, h)| !is_host(h)) {
        found.push(
            Code::InvalidValue,
            format!("spec.hosts[{i}]"),
            format!("{h:?}"),
            "a host, or a wildcard for all hosts of a domain, as in *.example.com",
        );
    }
    match s.resolution {
        Resolution::Static if s.endpoints.is_empty() && s.workload_selector.is_none() => {
            found.push(
                Code::MissingValue,
                "spec.endpoints",
                "none",
                "STATIC needs endpoints, or a workloadSelector that finds them",
            );
        }
        Resolution::Static => {}
        Resolution::None if s.endpoints.is_empty() => {}
        Resolution::None => found.push(
            Code::InvalidValue,
            "spec.endpoints",
            "with resolution NONE",
            "connections go where they were going: use STATIC, or leave the endpoints out",
        ),
        Resolution::DynamicDns => found.push(
            Code::NotServed,
            "spec.resolution",
            "DYNAMIC_DNS",
            "hosts are resolved ahead of requests: name them, with DNS; traffic to these hosts passes \
             through as to any address outside the mesh",
        ),
        Resolution::Dns | Resolution::DnsRoundRobin => {
            let wild = s.hosts.iter().enumerate().filter(|(_, h)| h.contains('*'));
            for (i, h) in wild.filter(|_| s.endpoints.is_empty()) {
                found.push(
                    Code::InvalidValue,
                    format!("spec.hosts[{i}]"),
                    format!("{h:?}"),
                    "a wildcard cannot be resolved: name the host whole, or give endpoints",
                );
            }
            if s.resolution == Resolution::DnsRoundRobin && s.endpoints.len() > 1 {
                found.push(
                    Code::InvalidValue,
                    "spec.endpoints",
                    format!("{} with DNS_ROUND_ROBIN", s.endpoints.len()),
                    "one at most: use DNS for several",
                );
            }
        }
    }
    for (i, a) in s.addresses.iter().enumerate().filter(|(_, a)| a.parse::<IpAddr>().is_err()) {
        let (code, remedy) = if is_block(a) {
            (Code::NotServed, "blocks of addresses are not served at L4: name single addresses")
        } else {
            (Code::InvalidValue, "an IP address")
        };
        found.push(code, format!("spec.addresses[{i}]"), format!("{a:?}"), remedy);
    }
    service_ports(s, found);
    // Of a ServiceEntry alone it may be said that nobody sees it.
    if s.export_to != ["~"] {
        export_to(&s.export_to, "spec.exportTo", found);
    }
    let by_name = matches!(s.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    for (i, e) in s.endpoints.iter().enumerate() {
        let path = format!("spec.endpoints[{i}]");
        if by_name && form::is_host(&e.address) {
            entry_ports(e, &path, found);
        } else {
            workload_entry(e, &path, found);
        }
    }
    if s.workload_selector.is_some() && !s.endpoints.is_empty() {
        found.push(
            Code::InvalidValue,
            "spec.workloadSelector",
            "together with endpoints",
            "use one of the two",
        );
    }
}

/// What Istio knows by name.
const PROTOCOLS: [&str; 13] = [
    "TCP",
    "UDP",
    "GRPC",
    "GRPC-WEB",
    "HTTP",
    "HTTP_PROXY",
    "HTTP2",
    "HTTPS",
    "TLS",
    "MONGO",
    "REDIS",
    "MYSQL",
    "HBONE",
];

fn service_ports(s: &ServiceEntry, found: &mut Found<'_>) {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (i, p) in s.ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let twice = |field: &str, what: String, found: &mut Found<'_>| {
            let at = format!("{path}.{field}");
            found.push(Code::InvalidValue, at, format!("{what} twice"), "each port has its own");
        };
        if p.number == 0 {
            port(found, &format!("{path}.number"), "0");
        } else if !numbers.insert(p.number) {
            twice("number", p.number.to_string(), found);
        }
        if p.name.is_empty() {
            let at = format!("{path}.name");
            found.push(Code::MissingValue, at, "no name", "give the port a name");
        } else if !names.insert(&p.name) {
            twice("name", format!("{:?}", p.name), found);
        }
        let protocol = p.protocol.to_ascii_uppercase();
        if !protocol.is_empty() && !PROTOCOLS.contains(&protocol.as_str()) {
            found.push(
                Code::InvalidValue,
                format!("{path}.protocol"),
                format!("{:?}", p.protocol),
                format!("one of {}", PROTOCOLS.join(", ")),
            );
        }
    }
}

fn is_host(host: &str) -> bool {
    let name = host.strip_prefix("*.").unwrap_or(host);
    !name.is_empty() && !name.contains('*')
}
