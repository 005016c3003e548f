//! The types are Istio's and Gateway API's, field by field: `tests/istio/` and `tests/gateway-api/` have
//! what each of their messages holds.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use istio_api::{
    AuthorizationPolicy, PeerAuthentication, ServiceEntry, WorkloadEntry,
    gateway_api::{gateway::GatewaySpec, grpc_route::GrpcRouteSpec, http_route::HttpRouteSpec},
    honour::{Fate, TABLE},
    istio::{
        destination_rule::DestinationRule, gateway::Gateway, mesh_config, telemetry::Telemetry,
        virtual_service::VirtualService,
    },
    parse_documents,
    schema::{Schema, fields},
};
use std::{collections::BTreeMap, fs};

/// `Message.field<TAB>what it holds`, a line each.
fn theirs(kind: &str) -> BTreeMap<String, String> {
    let file = match kind.split_once('/') {
        Some((_, kind)) => format!("gateway-api/{kind}"),
        None => format!("istio/{kind}"),
    };
    let path = format!("{}/tests/{file}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    let pairs = lines.map(|l| l.split_once('\t').unwrap());
    pairs.map(|(field, holds)| (field.to_owned(), holds.to_owned())).collect()
}

fn same<T: Schema>(kind: &str) {
    let (ours, theirs) = (fields(T::shape()), theirs(kind));
    let gone: Vec<_> = theirs.iter().filter(|(f, _)| !ours.contains_key(*f)).collect();
    assert!(gone.is_empty(), "{kind}: not here: {gone:#?}");
    let more: Vec<_> = ours.iter().filter(|(f, _)| !theirs.contains_key(*f)).collect();
    assert!(more.is_empty(), "{kind}: not theirs: {more:#?}");
    for (field, holds) in &ours {
        // JSON's keys are strings.
        let wanted = theirs.get(field).unwrap().replace("map<uint32,", "map<string,");
        assert_eq!(*holds, wanted, "{kind}: {field}");
    }
}

fn listed<T: Schema>(kind: &str) {
    let ours = fields(T::shape());
    let table = &TABLE[kind];
    let missing: Vec<_> = ours.keys().filter(|f| !table.contains_key(f.as_str())).collect();
    assert!(missing.is_empty(), "{kind}: honoured.tsv does not say what becomes of {missing:#?}");
    let gone: Vec<_> = table.keys().filter(|f| **f != "*" && !ours.contains_key(**f)).collect();
    assert!(gone.is_empty(), "{kind}: honoured.tsv has {gone:#?}, and no type has");
    for (field, (fate, words)) in table {
        let silent = words.is_empty() && *fate == Fate::Idle;
        assert!(!silent, "{kind}: whoever gives {field} is told nothing");
    }
}

#[test]
fn of_every_field_the_table_says_what_becomes_of_it() {
    listed::<VirtualService>("VirtualService");
    listed::<DestinationRule>("DestinationRule");
    listed::<Gateway>("Gateway");
    listed::<Telemetry>("Telemetry");
    listed::<mesh_config::MeshConfig>("MeshConfig");
    listed::<ServiceEntry>("ServiceEntry");
    listed::<WorkloadEntry>("WorkloadEntry");
    listed::<AuthorizationPolicy>("AuthorizationPolicy");
    listed::<PeerAuthentication>("PeerAuthentication");
    listed::<GatewaySpec>("gateway.networking.k8s.io/Gateway");
    listed::<HttpRouteSpec>("gateway.networking.k8s.io/HTTPRoute");
    listed::<GrpcRouteSpec>("gateway.networking.k8s.io/GRPCRoute");
}

/// What culvertd would say of an object: path, words.
fn told(text: &str) -> Vec<(String, String)> {
    let (_, diagnostics) = parse_documents("f.yaml", text);
    diagnostics.into_iter().map(|d| (d.path, d.remedy)).collect()
}

#[test]
fn what_is_not_obeyed_is_told() {
    let entry = told(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\n\
         spec: {hosts: [a.example], location: MESH_EXTERNAL, resolution: STATIC,\n\
         ports: [{number: 80, name: http, protocol: HTTP}],\n\
         endpoints: [{address: 192.0.2.1, weight: 3}]}\n",
    );
    let paths: Vec<&str> = entry.iter().map(|(p, _)| p.as_str()).collect();
    assert_eq!(paths, ["spec.endpoints[0].weight", "spec.location"]);
    let routes = told(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\n\
         spec: {hosts: [a], http: [{rout: []}]}\n",
    );
    assert_eq!(routes[0], ("spec.http[0].rout".to_owned(), "did you mean \"route\"?".to_owned()));
    let mesh = told(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
         data: {mesh: \"trustDomain: td\\nconnectTimeout: 1s\\ntrustDomainAlias: [a]\"}\n",
    );
    let paths: Vec<&str> = mesh.iter().map(|(p, _)| p.as_str()).collect();
    assert_eq!(paths, ["data.mesh.connectTimeout", "data.mesh.trustDomainAlias"]);
    assert_eq!(mesh[1].1, "did you mean \"trustDomainAliases\"?");
}

#[test]
fn every_field_of_theirs_is_here_and_no_other() {
    same::<VirtualService>("VirtualService");
    same::<DestinationRule>("DestinationRule");
    same::<Gateway>("Gateway");
    same::<Telemetry>("Telemetry");
    same::<mesh_config::MeshConfig>("MeshConfig");
    same::<ServiceEntry>("ServiceEntry");
    same::<WorkloadEntry>("WorkloadEntry");
    same::<AuthorizationPolicy>("AuthorizationPolicy");
    same::<PeerAuthentication>("PeerAuthentication");
    same::<GatewaySpec>("gateway.networking.k8s.io/Gateway");
    same::<HttpRouteSpec>("gateway.networking.k8s.io/HTTPRoute");
    same::<GrpcRouteSpec>("gateway.networking.k8s.io/GRPCRoute");
}
