//! How long it takes a running pod to come into the mesh, and to leave it. Both are asked for by culvertctl, whose start
//! is part of it.

use super::measures::Measures;
use crate::report::Row;
use culvert_tests::Mesh;
use std::time::Instant;

pub const SUITE: &str = "enroll";

/// Of a run: in and out again.
const ROUNDS: usize = 4;

pub fn run(runs: usize) -> anyhow::Result<Vec<Row>> {
    let mesh = Mesh::new("bench-enroll");
    let pod = mesh.pod(1, "pod");
    let mut measures = Measures::new(SUITE);
    // The first has a certificate made.
    mesh.enroll(&pod);
    mesh.unenroll(&pod);
    eprintln!("{SUITE}, {} rounds", runs * ROUNDS);
    for _ in 0..runs * ROUNDS {
        let begun = Instant::now();
        mesh.capture(&pod);
        measures.mesh("captured", "ms", milliseconds(begun));
        mesh.announce(&pod);
        measures.mesh("captured-and-known-to-all", "ms", milliseconds(begun));
        let begun = Instant::now();
        mesh.unenroll(&pod);
        measures.mesh("left", "ms", milliseconds(begun));
    }
    Ok(measures.rows())
}

fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}
