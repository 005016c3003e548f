//! The definitions that are checked in are those of the types.
#![allow(clippy::unwrap_used)]

use istio_api::{crds, parse_documents};
use std::{collections::BTreeMap, fs, path::Path};

fn checked_in() -> BTreeMap<String, String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/helm/culvert/crds");
    let files = fs::read_dir(dir).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read_to_string(entry.path()).unwrap())
    });
    files.collect()
}

#[test]
fn what_is_checked_in_is_what_is_made() {
    let (made, there) = (BTreeMap::from_iter(crds::files().unwrap()), checked_in());
    let remedy = "run `cargo xtask crds`, and commit what it writes";
    assert!(made.keys().eq(there.keys()), "{:?}, not {:?}: {remedy}", there.keys(), made.keys());
    for (name, text) in &made {
        assert!(there.get(name) == Some(text), "{name} is not what is made: {remedy}");
    }
}

/// Every version that a definition serves is one that is read: an object without anything in it is refused for what it
/// lacks, or taken, but never unknown.
#[test]
fn what_is_served_is_read() {
    for (file, text) in crds::files().unwrap() {
        let crd: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        let at = |path: &str| crd.pointer(path).and_then(|v| v.as_str()).unwrap().to_owned();
        let (group, kind) = (at("/spec/group"), at("/spec/names/kind"));
        // Not an object of the mesh: only who serves a Gateway goes by it.
        if kind == "GatewayClass" {
            continue;
        }
        for version in crd.pointer("/spec/versions").unwrap().as_array().unwrap() {
            let version = version.pointer("/name").unwrap().as_str().unwrap();
            let object = format!(
                "apiVersion: {group}/{version}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {{}}\n"
            );
            let (_, found) = parse_documents(&file, &object);
            assert!(found.iter().all(|d| d.path != "kind"), "{group}/{version} {kind}: {found:?}");
        }
    }
}
