//! The types are Istio's, field by field: `tests/istio/` has what each of its messages holds.
#![allow(clippy::unwrap_used)]

use istio_api::{
    AuthorizationPolicy, PeerAuthentication, ServiceEntry, WorkloadEntry,
    istio::{
        destination_rule::DestinationRule, gateway::Gateway, mesh_config, telemetry::Telemetry,
        virtual_service::VirtualService,
    },
    schema::{Schema, fields},
};
use std::{collections::BTreeMap, fs};

/// `Message.field<TAB>what it holds`, a line each.
fn istios(kind: &str) -> BTreeMap<String, String> {
    let path = format!("{}/tests/istio/{kind}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    let pairs = lines.map(|l| l.split_once('\t').unwrap());
    pairs.map(|(field, holds)| (field.to_owned(), holds.to_owned())).collect()
}

fn same<T: Schema>(kind: &str) {
    let (ours, theirs) = (fields(T::shape()), istios(kind));
    let gone: Vec<_> = theirs.iter().filter(|(f, _)| !ours.contains_key(*f)).collect();
    assert!(gone.is_empty(), "{kind}: not here: {gone:#?}");
    let more: Vec<_> = ours.iter().filter(|(f, _)| !theirs.contains_key(*f)).collect();
    assert!(more.is_empty(), "{kind}: not Istio's: {more:#?}");
    for (field, holds) in &ours {
        // JSON's keys are strings.
        let wanted = theirs.get(field).unwrap().replace("map<uint32,", "map<string,");
        assert_eq!(*holds, wanted, "{kind}: {field}");
    }
}

#[test]
fn every_field_of_istios_is_here_and_no_other() {
    same::<VirtualService>("VirtualService");
    same::<DestinationRule>("DestinationRule");
    same::<Gateway>("Gateway");
    same::<Telemetry>("Telemetry");
    same::<mesh_config::MeshConfig>("MeshConfig");
    same::<ServiceEntry>("ServiceEntry");
    same::<WorkloadEntry>("WorkloadEntry");
    same::<AuthorizationPolicy>("AuthorizationPolicy");
    same::<PeerAuthentication>("PeerAuthentication");
}
