//! From the wire to the model. What a resource must have and has not is an error that names the
//! field; the resource before it stays.

use crate::{
    model::{
        Dns, HealthPolicy, Kin, LoadBalancing, Mode, NamespacedHostname, PortMapping, Scope,
        Service, Waypoint, Workload,
    },
    shared::Shared,
};
use ipnet::IpNet;
use policy::{
    Action, Clause, Match, Policy, PolicyName, Rule, Scope as PolicyScope, ServiceAccountMatch,
    StringMatch,
};
use prost::Message as _;
use prost_types::{Struct, Value, value::Kind};
use std::{net::IpAddr, sync::Arc};
use xds::Version;
use xds::proto::{security, workload as pb};

/// Why a resource is not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Invalid {
    pub field: &'static str,
    pub why: String,
}

pub(crate) fn invalid(field: &'static str, why: impl Into<String>) -> Invalid {
    Invalid { field, why: why.into() }
}

fn or_default(value: &str, default: &str) -> Arc<str> {
    if value.is_empty() { default.into() } else { value.into() }
}

/// As it would come over the wire under its own uid.
pub fn workload_from_proto(w: &pb::Workload) -> Result<Workload, Invalid> {
    let message = w.encode_to_vec();
    let made = Shared::default().workload(&w.uid, Version::default(), &message);
    made.map(|(workload, _)| workload).map_err(|(e, _)| e)
}

/// Of a message without the fields that are a workload's own.
pub(crate) fn kin_from_proto(w: pb::Workload) -> Result<Kin, Invalid> {
    let hbone = match w.tunnel_protocol() {
        pb::TunnelProtocol::Hbone => true,
        // Unknown values decode as the default.
        pb::TunnelProtocol::None | pb::TunnelProtocol::LegacyIstioMtls => false,
    };
    if pb::TunnelProtocol::try_from(w.tunnel_protocol).is_err() {
        return Err(invalid("tunnel_protocol", format!("unknown value {}", w.tunnel_protocol)));
    }
    let services = w
        .services
        .iter()
        .map(|(name, ports)| Ok((namespaced("services", name)?, port_list(&ports.ports)?.into())))
        .collect::<Result<_, Invalid>>()?;
    let policies = w
        .authorization_policies
        .iter()
        .map(|name| policy_name(name))
        .collect::<Result<Arc<[_]>, _>>()?;
    let workload_type = match w.workload_type() {
        pb::WorkloadType::Deployment => "deployment",
        pb::WorkloadType::Cronjob => "cronjob",
        pb::WorkloadType::Pod => "pod",
        pb::WorkloadType::Job => "job",
    };
    let host_network = match pb::NetworkMode::try_from(w.network_mode) {
        Ok(pb::NetworkMode::HostNetwork) => true,
        Ok(pb::NetworkMode::Standard) => false,
        // Whether its addresses are its own decides who is taken for it.
        Err(_) => {
            return Err(invalid("network_mode", format!("unknown value {}", w.network_mode)));
        }
    };
    let labels = extension(&w.extensions, xds::LABELS_EXTENSION)
        .map(|s| {
            s.fields.into_iter().filter_map(|(k, v)| Some((k.into(), text(v)?.into()))).collect()
        })
        .unwrap_or_default();
    let dns = extension(&w.extensions, xds::DNS_EXTENSION).map(|s| Box::new(dns(s)));
    let within = extension(&w.extensions, xds::SAME_NODE_EXTENSION);
    // Not by a getter, for which an unknown value is the default: healthy.
    let healthy = w.status == pb::WorkloadStatus::Healthy as i32;
    let kin = Kin {
        namespace: w.namespace.into(),
        network: w.network.into(),
        hbone,
        healthy,
        trust_domain: or_default(&w.trust_domain, "cluster.local"),
        service_account: or_default(&w.service_account, "default"),
        canonical_name: w.canonical_name.into(),
        canonical_revision: w.canonical_revision.into(),
        workload_type,
        workload_name: w.workload_name.into(),
        policies,
        cluster: w.cluster_id.into(),
        services,
        host_network,
        labels,
        waypoint: w.waypoint.map(waypoint),
        enroll: w.extensions.iter().any(|e| e.name == xds::ENROLL_EXTENSION),
        other_protocols: w.extensions.iter().any(|e| e.name == xds::OTHER_PROTOCOLS_EXTENSION),
        dns,
        encrypted_within: within.is_some_and(encrypted),
        hostname: (!w.hostname.is_empty()).then(|| w.hostname.into()),
    };
    kin.identity().map_err(|e| invalid("service_account", e.to_string()))?;
    Ok(kin)
}

pub(crate) fn addresses(all: &[&[u8]]) -> Result<Vec<IpAddr>, Invalid> {
    all.iter().map(|a| ip("addresses", a)).collect()
}

fn extension(all: &[pb::Extension], name: &str) -> Option<Struct> {
    let found = all.iter().find(|e| e.name == name)?;
    Struct::decode(found.config.as_ref()?.value.as_slice()).ok()
}

fn text(v: Value) -> Option<String> {
    match v.kind {
        Some(Kind::StringValue(s)) => Some(s),
        _ => None,
    }
}

/// What is not understood is taken for the careful word.
fn encrypted(mut s: Struct) -> bool {
    s.fields.remove("way").and_then(text).as_deref() != Some("direct")
}

fn dns(mut s: Struct) -> Dns {
    let mut string = |name| s.fields.remove(name).and_then(text).unwrap_or_default().to_lowercase();
    Dns {
        hostname: string("hostname"),
        subdomain: string("subdomain"),
        searches: s.fields.remove("searches").and_then(|v| match v.kind {
            Some(Kind::ListValue(list)) => {
                Some(list.values.into_iter().filter_map(text).map(|s| s.to_lowercase()).collect())
            }
            _ => None,
        }),
        not_captured: s
            .fields
            .remove("capture")
            .is_some_and(|v| v.kind == Some(Kind::BoolValue(false))),
    }
}

/// The addresses that can be read of a workload, whatever else is wrong with it.
pub(crate) fn readable_addresses(all: &[&[u8]]) -> Vec<IpAddr> {
    all.iter().filter_map(|a| ip("addresses", a).ok()).collect()
}

/// The same of a service.
pub(crate) fn readable_vips(s: &pb::Service) -> Vec<IpAddr> {
    s.addresses.iter().filter_map(|a| virtual_address(a).ok().flatten()).collect()
}

/// A block of addresses is not a virtual address that one can connect to as such.
fn virtual_address(a: &pb::NetworkAddress) -> Result<Option<IpAddr>, Invalid> {
    let ip = ip("addresses", &a.address)?;
    let whole = if ip.is_ipv4() { 32 } else { 128 };
    Ok(a.length.is_none_or(|l| l == whole).then_some(ip))
}

pub fn service_from_proto(s: pb::Service) -> Result<Service, Invalid> {
    if s.hostname.is_empty() || s.namespace.is_empty() {
        return Err(invalid("hostname", "namespace and hostname must not be empty"));
    }
    // `namespace/hostname` must be read one way only.
    if s.namespace.contains('/') {
        return Err(invalid("namespace", "has a slash in it"));
    }
    // A visibility that is not known here is narrower than public.
    let private = pb::Visibility::try_from(s.visibility) != Ok(pb::Visibility::Public);
    let mut addresses = Vec::new();
    for a in &s.addresses {
        if let Some(ip) = virtual_address(a)? {
            addresses.push((a.network.as_str().into(), ip));
        }
    }
    let ports = port_list(&s.ports)?;
    let load_balancing = match &s.load_balancing {
        None => LoadBalancing::default(),
        Some(lb) => load_balancing(lb)?,
    };
    let waypoint = s.waypoint.map(waypoint);
    Ok(Service {
        key: NamespacedHostname { namespace: s.namespace.into(), hostname: s.hostname.into() },
        name: s.name.into(),
        addresses: addresses.into(),
        ports: ports.into(),
        subject_alt_names: s.subject_alt_names,
        load_balancing,
        waypoint,
        private,
        version: Version::default(),
    })
}

fn waypoint(w: pb::GatewayAddress) -> Waypoint {
    use pb::gateway_address::Destination;
    match w.destination {
        Some(Destination::Hostname(h)) if !h.hostname.is_empty() => {
            Waypoint::Named(NamespacedHostname {
                namespace: h.namespace.into(),
                hostname: h.hostname.into(),
            })
        }
        Some(Destination::Address(a)) => match ip("waypoint", &a.address) {
            Ok(ip) => Waypoint::At(a.network.into(), ip),
            Err(_) => Waypoint::Unreadable,
        },
        Some(Destination::Hostname(_)) | None => Waypoint::Unreadable,
    }
}

fn load_balancing(lb: &pb::LoadBalancing) -> Result<LoadBalancing, Invalid> {
    use pb::load_balancing as wire;
    let preference = lb
        .routing_preference
        .iter()
        .map(|s| match wire::Scope::try_from(*s) {
            Ok(wire::Scope::Region) => Ok(Scope::Region),
            Ok(wire::Scope::Zone) => Ok(Scope::Zone),
            Ok(wire::Scope::Subzone) => Ok(Scope::Subzone),
            Ok(wire::Scope::Node) => Ok(Scope::Node),
            Ok(wire::Scope::Cluster) => Ok(Scope::Cluster),
            Ok(wire::Scope::Network) => Ok(Scope::Network),
            Ok(wire::Scope::UnspecifiedScope) | Err(_) => {
                Err(invalid("load_balancing.routing_preference", format!("unknown scope {s}")))
            }
        })
        .collect::<Result<_, _>>()?;
    let mode = match wire::Mode::try_from(lb.mode) {
        Ok(wire::Mode::UnspecifiedMode) => Mode::Any,
        Ok(wire::Mode::Strict) => Mode::Strict,
        Ok(wire::Mode::Failover) => Mode::Failover,
        Ok(wire::Mode::Passthrough) => Mode::Passthrough,
        Err(_) => return Err(invalid("load_balancing.mode", format!("unknown mode {}", lb.mode))),
    };
    let health = match wire::HealthPolicy::try_from(lb.health_policy) {
        Ok(wire::HealthPolicy::AllowAll) => HealthPolicy::AllowAll,
        _ => HealthPolicy::OnlyHealthy,
    };
    Ok(LoadBalancing { preference, mode, health })
}

fn port_list(ports: &[pb::Port]) -> Result<Vec<PortMapping>, Invalid> {
    ports
        .iter()
        .map(|p| {
            Ok(PortMapping {
                service_port: port("service_port", p.service_port)?,
                target_port: u16::try_from(p.target_port).map_err(|_| {
                    invalid("target_port", format!("{} is not a port", p.target_port))
                })?,
            })
        })
        .collect()
}

fn port(field: &'static str, value: u32) -> Result<u16, Invalid> {
    match u16::try_from(value) {
        Ok(p) if p != 0 => Ok(p),
        _ => Err(invalid(field, format!("{value} is not a port from 1 to 65535"))),
    }
}

fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Invalid> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        return Ok(IpAddr::from(v6).to_canonical());
    }
    Err(invalid(field, format!("an address has {} bytes, not 4 or 16", bytes.len())))
}

fn namespaced(field: &'static str, name: &str) -> Result<NamespacedHostname, Invalid> {
    let (namespace, hostname) = name
        .split_once('/')
        .filter(|(n, h)| !n.is_empty() && !h.is_empty())
        .ok_or_else(|| invalid(field, format!("{name:?} is not namespace/hostname")))?;
    Ok(NamespacedHostname { namespace: namespace.into(), hostname: hostname.into() })
}

fn policy_name(name: &str) -> Result<PolicyName, Invalid> {
    let n = namespaced("authorization_policies", name)?;
    Ok(PolicyName { namespace: n.namespace, name: n.hostname })
}

pub fn policy_from_proto(a: security::Authorization) -> Result<Policy, Invalid> {
    if a.name.is_empty() {
        return Err(invalid("name", "is empty"));
    }
    if a.namespace.contains('/') {
        return Err(invalid("namespace", "has a slash in it"));
    }
    let action = match security::Action::try_from(a.action) {
        Ok(security::Action::Allow) => Action::Allow,
        Ok(security::Action::Deny) => Action::Deny,
        Err(_) => return Err(invalid("action", format!("unknown action {}", a.action))),
    };
    let scope = match security::Scope::try_from(a.scope) {
        Ok(security::Scope::Global) => PolicyScope::Global,
        Ok(security::Scope::Namespace) => PolicyScope::Namespace,
        Ok(security::Scope::WorkloadSelector) => PolicyScope::WorkloadSelector,
        Err(_) => return Err(invalid("scope", format!("unknown scope {}", a.scope))),
    };
    if let Some(e) = a.extensions.first() {
        return Err(invalid("extensions", format!("{:?} is not known here", e.name)));
    }
    let rules = a
        .rules
        .into_iter()
        .map(|rule| {
            let clauses = rule
                .clauses
                .into_iter()
                .map(|c| {
                    let matches =
                        c.matches.into_iter().map(match_from_proto).collect::<Result<_, _>>()?;
                    Ok(Clause { matches })
                })
                .collect::<Result<_, Invalid>>()?;
            Ok(Rule { clauses })
        })
        .collect::<Result<_, Invalid>>()?;
    Ok(Policy {
        name: PolicyName { namespace: a.namespace.into(), name: a.name.into() },
        scope,
        action,
        rules,
        dry_run: a.dry_run,
    })
}

/// Stands in for a policy that cannot be understood and of which there is no earlier version:
/// denies whatever it would have judged.
pub(crate) fn deny_instead(name: PolicyName, scope: PolicyScope) -> Policy {
    Policy { name, scope, action: Action::Deny, rules: vec![Rule::default()], dry_run: false }
}

/// `istio.security.Match`, encoded: what one clause asks of a connection.
pub fn match_from_bytes(bytes: &[u8]) -> Result<Match, Invalid> {
    let m = security::Match::decode(bytes)
        .map_err(|e| invalid("connection", format!("cannot be decoded: {e}")))?;
    match_from_proto(m)
}

fn match_from_proto(m: security::Match) -> Result<Match, Invalid> {
    if let Some(e) = m.extensions.first() {
        return Err(invalid("extensions", format!("{:?} is not known here", e.name)));
    }
    Ok(Match {
        namespaces: strings(m.namespaces)?,
        not_namespaces: strings(m.not_namespaces)?,
        principals: strings(m.principals)?,
        not_principals: strings(m.not_principals)?,
        service_accounts: accounts(m.service_accounts),
        not_service_accounts: accounts(m.not_service_accounts),
        source_ips: blocks("source_ips", m.source_ips)?,
        not_source_ips: blocks("not_source_ips", m.not_source_ips)?,
        destination_ips: blocks("destination_ips", m.destination_ips)?,
        not_destination_ips: blocks("not_destination_ips", m.not_destination_ips)?,
        destination_ports: ports("destination_ports", &m.destination_ports)?,
        not_destination_ports: ports("not_destination_ports", &m.not_destination_ports)?,
    })
}

fn strings(list: Vec<security::StringMatch>) -> Result<Vec<StringMatch>, Invalid> {
    use security::string_match::MatchType;
    list.into_iter()
        .map(|s| match s.match_type {
            Some(MatchType::Exact(s)) => Ok(StringMatch::Exact(s)),
            Some(MatchType::Prefix(s)) => Ok(StringMatch::Prefix(s)),
            Some(MatchType::Suffix(s)) => Ok(StringMatch::Suffix(s)),
            Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
            None => Err(invalid("match", "a string match of an unknown kind")),
        })
        .collect()
}

fn accounts(list: Vec<security::ServiceAccountMatch>) -> Vec<ServiceAccountMatch> {
    list.into_iter()
        .map(|a| ServiceAccountMatch { namespace: a.namespace, service_account: a.service_account })
        .collect()
}

fn blocks(field: &'static str, list: Vec<security::Address>) -> Result<Vec<IpNet>, Invalid> {
    list.into_iter()
        .map(|a| {
            let v6 = a.address.len() == 16;
            let ip = ip(field, &a.address)?;
            // A mapped IPv4 block counts its 96 leading bits.
            let length = if v6 && ip.is_ipv4() { a.length.checked_sub(96) } else { Some(a.length) };
            length
                .and_then(|l| u8::try_from(l).ok())
                .and_then(|l| IpNet::new(ip, l).ok())
                .ok_or_else(|| invalid(field, format!("{ip}/{} is not an address block", a.length)))
        })
        .collect()
}

fn ports(field: &'static str, list: &[u32]) -> Result<Vec<u16>, Invalid> {
    list.iter().map(|p| port(field, *p)).collect()
}
