//! A waypoint as others are measured: alone as a reverse proxy beside Envoy, with few routes and with
//! many, and as a part of the mesh.

mod alone;
pub mod backend;
mod envoy;
mod many;
mod mesh;
mod place;

use crate::{
    report::{Goal, Peer, Row},
    role::Samples,
};
use culvert_tests::Mesh;

pub const SUITE: &str = "waypoint";

/// More rounds than this say no more, and the whole is to be over in minutes.
const MOST_ROUNDS: usize = 4;

type Part = fn(&Mesh, usize) -> anyhow::Result<Vec<Row>>;

const PARTS: [(&str, Part); 3] = [("alone", alone::run), ("many", many::run), ("mesh", mesh::run)];

/// `part`: how the names of those parts begin that are wanted.
pub fn run(runs: usize, part: &str) -> anyhow::Result<Vec<Row>> {
    let rounds = runs.min(MOST_ROUNDS);
    let world = Mesh::new("bench-waypoint");
    let mut rows = Vec::new();
    backends(&world);
    for (_, run) in PARTS.iter().filter(|(name, _)| name.starts_with(part)) {
        rows.extend(run(&world, rounds)?);
    }
    Ok(rows)
}

/// An object of Istio's networking API in `default`.
fn apply(mesh: &Mesh, kind: &str, name: &str, spec: &str) {
    mesh.apply(
        &format!("{}-{name}", kind.to_lowercase()),
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: {kind}\n\
             metadata: {{ namespace: default, name: {name} }}\nspec: {spec}\n"
        ),
    );
}

/// The backends of every place, outside the mesh, as two subsets of one host.
fn backends(mesh: &Mesh) {
    let endpoints: Vec<String> = place::BACKENDS
        .iter()
        .enumerate()
        .map(|(i, address)| format!("{{ address: {address}, labels: {{ version: v{i} }} }}"))
        .collect();
    apply(
        mesh,
        "ServiceEntry",
        "backend",
        &format!(
            "{{ hosts: [backend.example], location: MESH_EXTERNAL, resolution: STATIC, \
               ports: [{{ number: 80, name: http, protocol: HTTP, targetPort: {} }}], \
               endpoints: [{}] }}",
            place::BACKEND_PORT,
            endpoints.join(", ")
        ),
    );
    apply(
        mesh,
        "DestinationRule",
        "backend",
        "{ host: backend.example, subsets: [\
           { name: v0, labels: { version: v0 } }, { name: v1, labels: { version: v1 } }] }",
    );
}

/// A Gateway for the place whose pod has this label, and for all hosts.
fn gateway(mesh: &Mesh, label: &str) {
    apply(
        mesh,
        "Gateway",
        label,
        &format!(
            "{{ selector: {{ istio: {label} }}, servers: [\
               {{ port: {{ number: 80, name: http, protocol: HTTP }}, hosts: [\"*\"] }}] }}"
        ),
    );
}

/// To one of the backends.
fn to(subset: &str) -> String {
    format!("{{ destination: {{ host: backend.example, subset: {subset} }} }}")
}

/// Rows of one side, with the other's figures and what they ask for beside them.
fn rows(own: &Samples, peer: &Samples, goal: impl Fn(&str, f64) -> Option<Goal>) -> Vec<Row> {
    own.iter()
        .map(|(name, values)| {
            let mut row = Row::new(SUITE, name.to_owned(), unit(name), values);
            if let Some((_, values)) = peer.iter().find(|(n, _)| *n == name) {
                let theirs = Row::new(SUITE, name.to_owned(), unit(name), values).median();
                row.peer = Some(Peer::Envoy(theirs));
                row.goal = goal(name, theirs);
            }
            row
        })
        .collect()
}

fn unit(name: &str) -> &'static str {
    match name {
        n if n.ends_with("of a processor's second") => "requests",
        n if n.ends_with("1,000 requests") => "ms",
        n if n.ends_with("requests") => "1/s",
        n if n.ends_with("p50") || n.ends_with("p99") => "us",
        n if n.contains("resident") => "MB",
        n if n.contains("in effect") => "ms",
        _ => "",
    }
}
