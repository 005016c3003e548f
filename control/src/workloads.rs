//! Pods, WorkloadEntries, Services and ServiceEntries, as an agent reads them.

use crate::{policies, snapshot::Snapshot, vips::Vips};
use istio_api::{
    EndpointSlice, Kind, Labels, OTHER_PROTOCOLS, Object, Pod, Resolution, SAME_NODE, Service,
    ServiceEntry, Spec, TargetPort, WorkloadEntry,
};
use prost::Message as _;
use prost_types::{Any, ListValue, Struct, Value, value::Kind as ValueKind};
use routes::{compile::GATEWAY_NAME, names::ProxyName};
use std::{collections::BTreeMap, net::IpAddr};
use xds::proto::workload as pb;

/// What is the same for the whole cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub id: String,
    pub network: String,
    pub domain: String,
}

pub fn pod_uid(cluster: &str, namespace: &str, name: &str) -> String {
    format!("{cluster}//Pod/{namespace}/{name}")
}

pub fn service_hostname(cluster: &Cluster, namespace: &str, name: &str) -> String {
    format!("{name}.{namespace}.svc.{}", cluster.domain)
}

fn bytes(ip: IpAddr) -> prost::bytes::Bytes {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    }
}

/// A pod that has not ended, and that has an address or waits on its node for one.
pub fn pod(o: &Object, p: &Pod, snapshot: &Snapshot, cluster: &Cluster) -> Option<pb::Workload> {
    let addresses = p.addresses();
    let starting = addresses.is_empty();
    if !p.live() || starting && (p.spec.node_name.is_empty() || p.spec.host_network) {
        return None;
    }
    let namespace = o.key.namespace.as_str();
    let labels = &o.meta.labels;
    let ambient = match labels.get("istio.io/dataplane-mode").map(String::as_str) {
        Some(mode) => mode == "ambient",
        None => snapshot
            .namespace_labels(namespace)
            .and_then(|l| l.get("istio.io/dataplane-mode"))
            .is_some_and(|m| m == "ambient"),
    };
    // Written by whoever has enrolled the pod, once it is captured.
    let redirected =
        o.meta.annotations.get("ambient.istio.io/redirection").is_some_and(|v| v == "enabled");
    // A waypoint's proxy ends HBONE itself.
    let proxy = is_proxy(o, snapshot, cluster);
    let hbone = proxy || ambient && redirected && !p.spec.host_network;
    let (workload_name, workload_type) = owner(o);
    let node = snapshot.node_labels(&p.spec.node_name);
    let mut services: BTreeMap<String, pb::PortList> = selecting(snapshot, namespace, labels)
        .map(|(key, s)| {
            let hostname = service_hostname(cluster, namespace, &key.key.name);
            (format!("{namespace}/{hostname}"), service_ports(s, p))
        })
        .collect();
    services.extend(entries_selecting(snapshot, namespace, labels));
    services.extend(slices_naming(snapshot, o, cluster));
    if starting {
        services.clear();
    }
    let enroll = ambient && !proxy && !p.spec.host_network && !has_sidecar(o);
    Some(pb::Workload {
        uid: pod_uid(&cluster.id, namespace, &o.key.name),
        name: o.key.name.clone(),
        namespace: namespace.to_owned(),
        addresses: addresses.into_iter().map(bytes).collect(),
        network: network(labels, cluster),
        tunnel_protocol: tunnel(hbone),
        trust_domain: snapshot.mesh().trust_domain.clone(),
        service_account: p.service_account().to_owned(),
        node: p.spec.node_name.clone(),
        canonical_name: canonical_name(labels, &workload_name),
        canonical_revision: canonical_revision(labels),
        workload_type: workload_type as i32,
        workload_name,
        authorization_policies: named_policies(snapshot, namespace, labels),
        // One that ends may have stopped to listen already; Kubernetes' endpoints have it no more, either.
        status: status(p.ready() && !starting && o.meta.deletion_timestamp.is_none()),
        cluster_id: cluster.id.clone(),
        services,
        locality: locality(node),
        network_mode: if p.spec.host_network {
            pb::NetworkMode::HostNetwork as i32
        } else {
            pb::NetworkMode::Standard as i32
        },
        extensions: std::iter::once(labels_extension(labels))
            .chain(dns_extension(o, p, cluster))
            .chain(same_node_extension(o, snapshot))
            .chain(other_protocols_extension(o))
            .chain(
                enroll.then(|| pb::Extension {
                    name: xds::ENROLL_EXTENSION.to_owned(),
                    config: None,
                }),
            )
            .collect(),
        pod_uid: o.meta.uid.clone(),
        native_tunnel: proxy,
        ..pb::Workload::default()
    })
}

/// Of Istio's injector, which says so on the pod: it has a mesh of its own in it.
fn has_sidecar(o: &Object) -> bool {
    o.meta.annotations.contains_key("sidecar.istio.io/status")
}

/// Whether the pod stands for a waypoint's Gateway.
fn is_proxy(o: &Object, snapshot: &Snapshot, cluster: &Cluster) -> bool {
    let gateway = o.meta.labels.get(GATEWAY_NAME);
    gateway.is_some_and(|name| {
        let proxy = ProxyName { namespace: o.key.namespace.clone(), name: name.clone() };
        snapshot.view(&cluster.domain).waypoint(&proxy).is_some()
    })
}

/// The Service of a waypoint has its Gateway's name.
fn gateway_address(proxy: &ProxyName, cluster: &Cluster) -> pb::GatewayAddress {
    let hostname = pb::NamespacedHostname {
        namespace: proxy.namespace.clone(),
        hostname: service_hostname(cluster, &proxy.namespace, &proxy.name),
    };
    pb::GatewayAddress {
        destination: Some(pb::gateway_address::Destination::Hostname(hostname)),
        hbone_mtls_port: 15008,
    }
}

/// What is unlike other pods' about this one's names.
fn dns_extension(o: &Object, p: &Pod, cluster: &Cluster) -> Option<pb::Extension> {
    let mut fields = BTreeMap::new();
    let mut add = |name: &str, kind| fields.insert(name.to_owned(), Value { kind: Some(kind) });
    if !p.spec.hostname.is_empty() && !p.spec.subdomain.is_empty() {
        add("hostname", ValueKind::StringValue(p.spec.hostname.clone()));
        add("subdomain", ValueKind::StringValue(p.spec.subdomain.clone()));
    }
    let captured = o.meta.annotations.get("ambient.istio.io/dns-capture");
    if captured.is_some_and(|v| v == "false") {
        add("capture", ValueKind::BoolValue(false));
    }
    if let Some(searches) = searches(&o.key.namespace, p, cluster) {
        let values =
            searches.into_iter().map(|s| Value { kind: Some(ValueKind::StringValue(s)) }).collect();
        add("searches", ValueKind::ListValue(ListValue { values }));
    }
    (!fields.is_empty()).then(|| struct_extension(xds::DNS_EXTENSION, fields))
}

/// How the pod's own annotation, or else that of a Service that selects it, or else its namespace's, wants connections
/// within a node to travel. Of several Services the one that does not say `direct` counts.
fn same_node_extension(o: &Object, snapshot: &Snapshot) -> Option<pb::Extension> {
    let namespace = o.key.namespace.as_str();
    let of_services = || {
        selecting(snapshot, namespace, &o.meta.labels)
            .filter_map(|(service, _)| service.meta.annotations.get(SAME_NODE))
            .min_by_key(|way| *way == "direct")
    };
    let of_namespace = || snapshot.namespace_annotations(namespace)?.get(SAME_NODE);
    let way = o.meta.annotations.get(SAME_NODE).or_else(of_services).or_else(of_namespace)?;
    let way = Value { kind: Some(ValueKind::StringValue(way.clone())) };
    Some(struct_extension(xds::SAME_NODE_EXTENSION, [("way".to_owned(), way)].into()))
}

/// The pod's own word alone counts.
fn other_protocols_extension(o: &Object) -> Option<pb::Extension> {
    (o.meta.annotations.get(OTHER_PROTOCOLS)? == "allow").then(|| pb::Extension {
        name: xds::OTHER_PROTOCOLS_EXTENSION.to_owned(),
        ..pb::Extension::default()
    })
}

/// The search list of a pod whose spec says something about it.
fn searches(namespace: &str, p: &Pod, cluster: &Cluster) -> Option<Vec<String>> {
    let own = &p.spec.dns_config.searches;
    let of_cluster = match p.spec.dns_policy.as_str() {
        "None" | "Default" => false,
        // In the host's network, only ClusterFirstWithHostNet is the cluster's.
        _ if own.is_empty() => return None,
        _ => true,
    };
    let domain = &cluster.domain;
    let mut all = match of_cluster {
        true => vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()],
        false => Vec::new(),
    };
    all.extend(own.iter().map(|s| s.trim_end_matches('.').to_owned()));
    Some(all)
}

fn tunnel(hbone: bool) -> i32 {
    if hbone { pb::TunnelProtocol::Hbone as i32 } else { pb::TunnelProtocol::None as i32 }
}

fn status(healthy: bool) -> i32 {
    if healthy { pb::WorkloadStatus::Healthy as i32 } else { pb::WorkloadStatus::Unhealthy as i32 }
}

fn network(labels: &Labels, cluster: &Cluster) -> String {
    labels.get("topology.istio.io/network").unwrap_or(&cluster.network).clone()
}

fn locality(labels: Option<&Labels>) -> Option<pb::Locality> {
    let label = |l: &Labels, k: &str| l.get(k).cloned().unwrap_or_default();
    labels.map(|l| pb::Locality {
        region: label(l, "topology.kubernetes.io/region"),
        zone: label(l, "topology.kubernetes.io/zone"),
        subzone: label(l, "topology.istio.io/subzone"),
    })
}

fn canonical_name(labels: &Labels, workload: &str) -> String {
    ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]
        .iter()
        .find_map(|k| labels.get(*k))
        .cloned()
        .unwrap_or_else(|| workload.to_owned())
}

fn canonical_revision(labels: &Labels) -> String {
    ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]
        .iter()
        .find_map(|k| labels.get(*k))
        .cloned()
        .unwrap_or_else(|| "latest".to_owned())
}

/// What made the pod, as people know it: a Deployment rather than its ReplicaSet.
fn owner(o: &Object) -> (String, pb::WorkloadType) {
    let Some(owner) = o.meta.owner_references.first() else {
        return (o.key.name.clone(), pb::WorkloadType::Pod);
    };
    let hash = o.meta.labels.get("pod-template-hash");
    let kind = match owner.kind.as_str() {
        "ReplicaSet" => {
            let name = hash
                .and_then(|h| owner.name.strip_suffix(h.as_str()))
                .and_then(|n| n.strip_suffix('-'));
            return (name.unwrap_or(&owner.name).to_owned(), pb::WorkloadType::Deployment);
        }
        "Job" => pb::WorkloadType::Job,
        "CronJob" => pb::WorkloadType::Cronjob,
        _ => pb::WorkloadType::Deployment,
    };
    (owner.name.clone(), kind)
}

fn labels_extension(labels: &Labels) -> pb::Extension {
    let fields = labels
        .iter()
        .map(|(k, v)| (k.clone(), Value { kind: Some(ValueKind::StringValue(v.clone())) }))
        .collect();
    struct_extension(xds::LABELS_EXTENSION, fields)
}

fn struct_extension(name: &str, fields: BTreeMap<String, Value>) -> pb::Extension {
    pb::Extension {
        name: name.to_owned(),
        config: Some(Any {
            type_url: "type.googleapis.com/google.protobuf.Struct".to_owned(),
            value: Struct { fields }.encode_to_vec(),
        }),
    }
}

fn named_policies(snapshot: &Snapshot, namespace: &str, labels: &Labels) -> Vec<String> {
    let mut names: Vec<String> = snapshot
        .authorization_for(namespace)
        .filter(|(_, p)| {
            policies::is_served(p.action)
                && p.selector
                    .as_ref()
                    .is_some_and(|s| !s.match_labels.is_empty() && s.matches(labels))
        })
        .map(|(o, _)| format!("{}/{}", o.key.namespace, o.key.name))
        .collect();
    names.extend(policies::mutual_tls_policy(snapshot, namespace, labels));
    names
}

/// Services of the namespace whose selector the labels meet.
fn selecting<'a>(
    snapshot: &'a Snapshot,
    namespace: &'a str,
    labels: &'a Labels,
) -> impl Iterator<Item = (&'a Object, &'a Service)> {
    snapshot.in_namespace(Kind::Service, namespace).filter_map(move |o| match &o.spec {
        Spec::Service(s) if selects(&s.spec.selector, labels) => Some((&**o, &**s)),
        _ => None,
    })
}

/// An empty selector selects nothing.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

fn service_ports(s: &Service, p: &Pod) -> pb::PortList {
    let ports = s
        .spec
        .ports
        .iter()
        .filter(|port| matches!(port.protocol.as_str(), "" | "TCP"))
        .filter_map(|port| {
            let target = match &port.target_port {
                None => port.port,
                Some(TargetPort::Number(0)) => port.port,
                Some(TargetPort::Number(n)) => *n,
                // A pod without a port of that name does not serve it.
                Some(TargetPort::Name(name)) => p.named_port(name)?,
            };
            Some(pb::Port {
                service_port: u32::from(port.port),
                target_port: u32::from(target),
                app_protocol: app_protocol(&port.name, &port.app_protocol) as i32,
            })
        })
        .collect();
    pb::PortList { ports }
}

fn app_protocol(name: &str, app_protocol: &str) -> pb::AppProtocol {
    use routes::proto::Protocol;
    match routes::compile::protocol(name, app_protocol) {
        Protocol::Http1 => pb::AppProtocol::Http11,
        Protocol::Http2 => pb::AppProtocol::Http2,
        Protocol::Grpc => pb::AppProtocol::Grpc,
        Protocol::Tcp => pb::AppProtocol::Tcp,
        Protocol::Tls => pb::AppProtocol::Tls,
        Protocol::Detect => pb::AppProtocol::Unknown,
    }
}

/// Services without a selector that name this pod in an EndpointSlice.
fn slices_naming<'a>(
    snapshot: &'a Snapshot,
    pod: &'a Object,
    cluster: &'a Cluster,
) -> impl Iterator<Item = (String, pb::PortList)> + 'a {
    let namespace = pod.key.namespace.as_str();
    snapshot.in_namespace(Kind::EndpointSlice, namespace).filter_map(move |o| {
        let Spec::EndpointSlice(slice) = &o.spec else { return None };
        let named = slice.endpoints.iter().any(|e| {
            e.target_ref.as_ref().is_some_and(|t| t.kind == "Pod" && t.name == pod.key.name)
        });
        named.then(|| slice_service(snapshot, o, slice, cluster)).flatten()
    })
}

/// The service without a selector that a slice belongs to, and its ports there.
fn slice_service(
    snapshot: &Snapshot,
    o: &Object,
    slice: &EndpointSlice,
    cluster: &Cluster,
) -> Option<(String, pb::PortList)> {
    let name = o.meta.labels.get("kubernetes.io/service-name")?;
    let key = istio_api::ObjectKey {
        kind: Kind::Service,
        namespace: o.key.namespace.clone(),
        name: name.clone(),
    };
    let Spec::Service(s) = &snapshot.get(&key)?.spec else { return None };
    if !s.spec.selector.is_empty() {
        return None;
    }
    let ports = s
        .spec
        .ports
        .iter()
        .filter_map(|p| {
            let target = slice.ports.iter().find(|t| t.name == p.name)?.port?;
            Some(pb::Port {
                service_port: u32::from(p.port),
                target_port: u32::from(target),
                app_protocol: app_protocol(&p.name, &p.app_protocol) as i32,
            })
        })
        .collect();
    let hostname = service_hostname(cluster, &o.key.namespace, name);
    Some((format!("{}/{hostname}", o.key.namespace), pb::PortList { ports }))
}

/// Endpoints of a slice that are no pods: workloads without identity of their own.
pub fn slice(
    o: &Object,
    slice: &EndpointSlice,
    snapshot: &Snapshot,
    cluster: &Cluster,
) -> Vec<pb::Workload> {
    let Some((service, ports)) = slice_service(snapshot, o, slice, cluster) else {
        return Vec::new();
    };
    slice
        .endpoints
        .iter()
        .filter(|e| e.target_ref.is_none())
        .flat_map(|e| e.addresses.iter().map(move |a| (e, *a)))
        .map(|(e, address)| pb::Workload {
            uid: format!(
                "{}/discovery.k8s.io/EndpointSlice/{}/{}/{address}",
                cluster.id, o.key.namespace, o.key.name
            ),
            name: o.key.name.clone(),
            namespace: o.key.namespace.clone(),
            addresses: vec![bytes(address)],
            network: cluster.network.clone(),
            trust_domain: snapshot.mesh().trust_domain.clone(),
            node: e.node_name.clone().unwrap_or_default(),
            workload_name: o.key.name.clone(),
            workload_type: pb::WorkloadType::Pod as i32,
            status: status(e.conditions.ready.unwrap_or(true)),
            cluster_id: cluster.id.clone(),
            services: [(service.clone(), ports.clone())].into(),
            extensions: e.hostname.iter().map(|h| host_of_slice(h, o)).collect(),
            ..pb::Workload::default()
        })
        .collect()
}

/// The name of one endpoint within the slice's service.
fn host_of_slice(hostname: &str, slice: &Object) -> pb::Extension {
    let service = slice.meta.labels.get("kubernetes.io/service-name").cloned().unwrap_or_default();
    let text = |s: String| Value { kind: Some(ValueKind::StringValue(s)) };
    let fields = [
        ("hostname".to_owned(), text(hostname.to_owned())),
        ("subdomain".to_owned(), text(service)),
    ];
    struct_extension(xds::DNS_EXTENSION, fields.into())
}

/// ServiceEntries of the namespace whose selector the labels meet, by `namespace/host`.
fn entries_selecting(
    snapshot: &Snapshot,
    namespace: &str,
    labels: &Labels,
) -> Vec<(String, pb::PortList)> {
    let mut out = Vec::new();
    for o in snapshot.in_namespace(Kind::ServiceEntry, namespace) {
        let Spec::ServiceEntry(s) = &o.spec else { continue };
        let met = s.workload_selector.as_ref().is_some_and(|w| selects(&w.labels, labels));
        if met {
            for host in &s.hosts {
                out.push((format!("{namespace}/{host}"), entry_ports(s, None)));
            }
        }
    }
    out
}

fn entry_ports(s: &ServiceEntry, endpoint: Option<&WorkloadEntry>) -> pb::PortList {
    let ports = s
        .ports
        .iter()
        .map(|p| {
            let own = endpoint.and_then(|e| e.ports.get(&p.name).copied());
            pb::Port {
                service_port: u32::from(p.number),
                target_port: u32::from(own.or(p.target_port).unwrap_or(p.number)),
                app_protocol: app_protocol("", &p.protocol.to_lowercase()) as i32,
            }
        })
        .collect();
    pb::PortList { ports }
}

pub fn workload_entry(
    o: &Object,
    w: &WorkloadEntry,
    snapshot: &Snapshot,
    cluster: &Cluster,
) -> Option<pb::Workload> {
    let namespace = o.key.namespace.as_str();
    let address: IpAddr = w.address.parse().ok()?;
    let mut labels = o.meta.labels.clone();
    labels.extend(w.labels.clone());
    let mut services: BTreeMap<String, pb::PortList> = BTreeMap::new();
    for (service, s) in selecting(snapshot, namespace, &labels) {
        let ports = s
            .spec
            .ports
            .iter()
            .map(|p| {
                let own = w.ports.get(&p.name).copied();
                let target = own.or(match &p.target_port {
                    Some(TargetPort::Number(n)) if *n != 0 => Some(*n),
                    _ => None,
                });
                pb::Port {
                    service_port: u32::from(p.port),
                    target_port: u32::from(target.unwrap_or(p.port)),
                    app_protocol: app_protocol(&p.name, &p.app_protocol) as i32,
                }
            })
            .collect();
        let hostname = service_hostname(cluster, namespace, &service.key.name);
        services.insert(format!("{namespace}/{hostname}"), pb::PortList { ports });
    }
    for o in snapshot.in_namespace(Kind::ServiceEntry, namespace) {
        let Spec::ServiceEntry(s) = &o.spec else { continue };
        if s.workload_selector.as_ref().is_some_and(|sel| selects(&sel.labels, &labels)) {
            for host in &s.hosts {
                services.insert(format!("{namespace}/{host}"), entry_ports(s, Some(w)));
            }
        }
    }
    Some(entry_workload(
        format!("{}/networking.istio.io/WorkloadEntry/{namespace}/{}", cluster.id, o.key.name),
        o,
        w,
        Whereabouts::At(address),
        &labels,
        services,
        snapshot,
        cluster,
    ))
}

/// Where an endpoint is: at an address, or wherever its name leads.
enum Whereabouts<'a> {
    At(IpAddr),
    Named(&'a str),
}

#[allow(clippy::too_many_arguments)]
fn entry_workload(
    uid: String,
    o: &Object,
    w: &WorkloadEntry,
    whereabouts: Whereabouts<'_>,
    labels: &Labels,
    services: BTreeMap<String, pb::PortList>,
    snapshot: &Snapshot,
    cluster: &Cluster,
) -> pb::Workload {
    let mut parts = w.locality.splitn(3, '/').map(ToOwned::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    // A machine that runs an agent of its own says so as a pod does.
    let hbone =
        o.meta.annotations.get("ambient.istio.io/redirection").is_some_and(|v| v == "enabled");
    let (addresses, hostname) = match whereabouts {
        Whereabouts::At(address) => (vec![bytes(address)], String::new()),
        Whereabouts::Named(name) => (Vec::new(), name.to_ascii_lowercase()),
    };
    pb::Workload {
        uid,
        name: o.key.name.clone(),
        namespace: o.key.namespace.clone(),
        addresses,
        hostname,
        network: if w.network.is_empty() { network(labels, cluster) } else { w.network.clone() },
        tunnel_protocol: tunnel(hbone),
        trust_domain: snapshot.mesh().trust_domain.clone(),
        service_account: w.service_account.clone(),
        canonical_name: canonical_name(labels, &o.key.name),
        canonical_revision: canonical_revision(labels),
        workload_type: pb::WorkloadType::Pod as i32,
        workload_name: o.key.name.clone(),
        authorization_policies: named_policies(snapshot, &o.key.namespace, labels),
        status: status(true),
        cluster_id: cluster.id.clone(),
        services,
        locality: Some(pb::Locality { region: part(), zone: part(), subzone: part() }),
        extensions: vec![labels_extension(labels)],
        capacity: w.weight,
        ..pb::Workload::default()
    }
}

/// A ServiceEntry's services, one per host, and the workloads of its own endpoints.
pub fn service_entry(
    o: &Object,
    s: &ServiceEntry,
    snapshot: &Snapshot,
    cluster: &Cluster,
    vips: &mut Vips,
) -> (Vec<pb::Service>, Vec<pb::Workload>) {
    let namespace = o.key.namespace.as_str();
    let allocated = o
        .meta
        .labels
        .get("networking.istio.io/enable-autoallocate-ip")
        .is_none_or(|v| v != "false");
    let waypoint = snapshot.view(&cluster.domain).waypoint_of_service(o);
    let by_name = matches!(s.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    let mut own_or_given = |host: &str| {
        // A waypoint resolves names; without one, whoever asks does, and goes there by himself.
        if by_name && waypoint.is_none() {
            return Vec::new();
        }
        // As Istio has it: an address stands for one host. A wildcard has those that it is given, or
        // its endpoints'.
        let given = s.addresses.is_empty()
            && allocated
            && s.resolution != Resolution::None
            && !host.starts_with('*');
        if given {
            let of = |ip| network_address(ip, cluster);
            return vips.of(namespace, host).into_iter().map(of).collect();
        }
        addresses(s.addresses.iter(), cluster)
    };
    let gateway = waypoint.as_ref().map(|w| gateway_address(w, cluster));
    let services = s
        .hosts
        .iter()
        .map(|host| pb::Service {
            name: o.key.name.clone(),
            namespace: namespace.to_owned(),
            hostname: host.clone(),
            addresses: own_or_given(host),
            ports: entry_ports(s, None).ports,
            subject_alt_names: s.subject_alt_names.clone(),
            load_balancing: (s.resolution == Resolution::None).then(passthrough),
            visibility: visibility(&s.export_to, namespace),
            waypoint: gateway.clone(),
            ..pb::Service::default()
        })
        .collect();
    let uid = |at: &str| {
        let id = &cluster.id;
        format!("{id}/networking.istio.io/ServiceEntry/{namespace}/{}/{at}", o.key.name)
    };
    let endpoint = |e: &WorkloadEntry, whereabouts: Whereabouts<'_>, hosts: &[String]| {
        let ports = entry_ports(s, Some(e));
        let services = hosts.iter().map(|h| (format!("{namespace}/{h}"), ports.clone())).collect();
        let uid = match whereabouts {
            Whereabouts::At(address) => uid(&address.to_string()),
            Whereabouts::Named(name) => uid(name),
        };
        entry_workload(uid, o, e, whereabouts, &e.labels, services, snapshot, cluster)
    };
    let itself = s.endpoints.is_empty() && s.workload_selector.is_none() && by_name;
    let own = s.endpoints.iter().filter_map(|e| match e.address.parse() {
        Ok(address) => Some(endpoint(e, Whereabouts::At(address), &s.hosts)),
        Err(_) if by_name => Some(endpoint(e, Whereabouts::Named(&e.address), &s.hosts)),
        Err(_) => None,
    });
    let none = WorkloadEntry::default();
    let hosts = s.hosts.iter().filter(|h| itself && !h.starts_with('*'));
    let of_hosts = hosts.map(|h| endpoint(&none, Whereabouts::Named(h), std::slice::from_ref(h)));
    let workloads = own.chain(of_hosts).collect();
    (services, workloads)
}

/// Connections go where they were going.
fn passthrough() -> pb::LoadBalancing {
    pb::LoadBalancing {
        mode: pb::load_balancing::Mode::Passthrough as i32,
        health_policy: pb::load_balancing::HealthPolicy::AllowAll as i32,
        ..pb::LoadBalancing::default()
    }
}

/// `.` means: this namespace alone.
fn visibility(export_to: &[String], namespace: &str) -> i32 {
    let private = !export_to.is_empty() && export_to.iter().all(|e| e == "." || e == namespace);
    if private { pb::Visibility::Namespace as i32 } else { pb::Visibility::Public as i32 }
}

fn addresses<'a>(
    all: impl Iterator<Item = &'a String>,
    cluster: &Cluster,
) -> Vec<pb::NetworkAddress> {
    all.filter_map(|a| a.parse().ok()).map(|ip| network_address(ip, cluster)).collect()
}

fn network_address(ip: IpAddr, cluster: &Cluster) -> pb::NetworkAddress {
    pb::NetworkAddress { network: cluster.network.clone(), address: bytes(ip), length: None }
}

pub fn service(
    o: &Object,
    s: &Service,
    snapshot: &Snapshot,
    cluster: &Cluster,
) -> Option<pb::Service> {
    if s.spec.r#type == "ExternalName" {
        return None;
    }
    let namespace = o.key.namespace.as_str();
    let mut ips = s.spec.cluster_ips.clone();
    if ips.is_empty() {
        ips.push(s.spec.cluster_ip.clone());
    }
    let ports = s
        .spec
        .ports
        .iter()
        .filter(|p| matches!(p.protocol.as_str(), "" | "TCP"))
        .map(|p| pb::Port {
            service_port: u32::from(p.port),
            target_port: match p.target_port {
                Some(TargetPort::Number(n)) => u32::from(n),
                // The workload says, for its own port of that name.
                Some(TargetPort::Name(_)) => 0,
                None => u32::from(p.port),
            },
            app_protocol: app_protocol(&p.name, &p.app_protocol) as i32,
        })
        .collect();
    let distribution = o
        .meta
        .annotations
        .get("networking.istio.io/traffic-distribution")
        .unwrap_or(&s.spec.traffic_distribution);
    let exported: Vec<String> = o
        .meta
        .annotations
        .get("networking.istio.io/exportTo")
        .map(|e| e.split(',').map(|s| s.trim().to_owned()).collect())
        .unwrap_or_default();
    Some(pb::Service {
        name: o.key.name.clone(),
        namespace: namespace.to_owned(),
        hostname: service_hostname(cluster, namespace, &o.key.name),
        addresses: addresses(ips.iter(), cluster),
        ports,
        load_balancing: load_balancing(
            distribution,
            &s.spec.internal_traffic_policy,
            s.spec.publish_not_ready_addresses,
        ),
        visibility: visibility(&exported, namespace),
        waypoint: snapshot
            .view(&cluster.domain)
            .waypoint_of_service(o)
            .map(|w| gateway_address(&w, cluster)),
        ..pb::Service::default()
    })
}

fn load_balancing(
    distribution: &str,
    internal_policy: &str,
    not_ready_too: bool,
) -> Option<pb::LoadBalancing> {
    use pb::load_balancing::{HealthPolicy, Mode, Scope};
    let near = [Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone];
    let (scopes, mode) = match (internal_policy, distribution) {
        ("Local", _) => (vec![Scope::Node], Mode::Strict),
        (_, "PreferClose" | "PreferSameZone") => (near.to_vec(), Mode::Failover),
        (_, "PreferSameNode") => {
            let mut scopes = near.to_vec();
            scopes.push(Scope::Node);
            (scopes, Mode::Failover)
        }
        _ => (Vec::new(), Mode::UnspecifiedMode),
    };
    let health = if not_ready_too { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    let default = scopes.is_empty() && !not_ready_too;
    (!default).then(|| pb::LoadBalancing {
        routing_preference: scopes.into_iter().map(|s| s as i32).collect(),
        mode: mode as i32,
        health_policy: health as i32,
    })
}
