//! Manifests, compiled for a waypoint: whatever is accepted compiles to what the waypoint loads.

#![no_main]

use istio_api::{MeshConfig, Object, parse_documents};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use routes::{
    DESTINATION_TYPE, HOST_TABLE_TYPE, LISTENER_TYPE, TELEMETRY_TYPE,
    compile::{Changed, Compiler, Objects, View},
    execute::{Destination, HostTable},
    proto,
};
use std::sync::{Arc, LazyLock};

/// A service and a waypoint before it, and a gateway's pod.
static BASE: LazyLock<Vec<Object>> = LazyLock::new(|| {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: {istio.io/use-waypoint: w}}\n\
                spec: {ports: [{port: 80, name: http}]}\n---\n\
                apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w}\n\
                spec: {gatewayClassName: istio-waypoint, \
                listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n---\n\
                apiVersion: v1\nkind: Pod\nmetadata: {name: g, labels: {istio: ingressgateway, \
                gateway.networking.k8s.io/gateway-name: g}}\n\
                spec: {serviceAccountName: g}\n";
    parse_documents("base", text).0
});

fuzz_target!(|text: &str| {
    let (given, _) = parse_documents("fuzz", text);
    let all: Objects =
        BASE.iter().cloned().chain(given).map(|o| (o.key.clone(), Arc::new(o))).collect();
    let mesh = MeshConfig::default();
    let view = View { objects: &all, mesh: &mesh, domain: "cluster.local" };
    let changes: Vec<Changed<'_>> =
        all.iter().map(|(key, o)| Changed { key, old: None, new: Some(o) }).collect();
    let out = Compiler::default().apply(view, &changes, |_, _| None);
    let load = |_: &[u8]| Err("there are no policies".to_owned());
    for (type_url, name, body) in out.updated {
        let loaded = match type_url {
            HOST_TABLE_TYPE => {
                let table = HostTable::load(body.into(), None, &load, 0);
                table.map(drop).map_err(|e| e.to_string())
            }
            DESTINATION_TYPE => {
                let d = proto::Destination::decode(&*body).expect("it was encoded");
                Destination::load(&d).map(drop).map_err(|e| e.to_string())
            }
            LISTENER_TYPE => culvert_waypoint::fuzzing::listener(&body, "a.example"),
            TELEMETRY_TYPE => culvert_waypoint::fuzzing::telemetry(&body),
            other => panic!("{other} is not known"),
        };
        assert_eq!(loaded, Ok(()), "{name} of {text}");
    }
});
