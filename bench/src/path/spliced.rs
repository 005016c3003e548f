//! Two sockets of a node spliced by `sk_msg`, bare: how fast they are beside plain TCP and beside the mesh, whose
//! connections are TCP, and what a program sees of them that is not TCP.

use super::{
    MOST_TURNS, bare,
    load::Load,
    measures::Measures,
    pair::{Pair, Pairs},
    probes,
};
use crate::{report::Row, role};
use anyhow::ensure;
use culvert_tests::{Mesh, MeshPod, SOON};

pub const SUITE: &str = "spliced";

const LOADS: [Load; 3] =
    [Load::Bulk { streams: 1, reverse: false }, Load::Requests { connections: 64 }, Load::PingPong];

pub fn run(runs: usize) -> anyhow::Result<Vec<Row>> {
    let mesh = Mesh::new("bench-spliced");
    let pairs = Pairs::new(&mesh, 1)?;
    let mut measures = Measures::new(SUITE);
    let turns = runs.min(MOST_TURNS);
    for turn in 1..=turns {
        eprintln!("{SUITE}, turn {turn} of {turns}");
        for load in LOADS {
            let plain = first_figure(load, &pairs.plain)?;
            measures.both(&name(load), plain.1, plain.0, first_figure(load, &pairs.mesh)?.0);
            let spliced = {
                let _attached = bare::splice(&[&pairs.plain.client, &pairs.plain.server], false)?;
                first_figure(load, &pairs.plain)?
            };
            measures.both(&format!("floor-sk-msg-{}", name(load)), plain.1, plain.0, spliced.0);
        }
    }
    let asked = mesh.pod(1, "asked");
    let plain = ask(&asked)?;
    ensure!(plain.iter().all(|as_tcp| *as_tcp == 1.0), "TCP is not as TCP is: {plain:?}");
    let spliced = {
        let _attached = bare::splice(&[&asked], true)?;
        ask(&asked)?
    };
    for (name, (plain, spliced)) in probes::names().into_iter().zip(plain.iter().zip(&spliced)) {
        measures.both(&format!("floor-sk-msg-is-tcp-{name}"), "", *plain, *spliced);
    }
    Ok(measures.rows())
}

/// As in the other suites.
fn name(load: Load) -> String {
    match load {
        Load::PingPong => format!("{}-p50", load.name()),
        _ => load.name(),
    }
}

fn first_figure(load: Load, pair: &Pair) -> anyhow::Result<(f64, &'static str)> {
    let seen = load.run(pair)?;
    let figure = seen.figures.first().expect("each load has a figure");
    Ok((figure.value, figure.unit))
}

fn ask(pod: &MeshPod) -> anyhow::Result<Vec<f64>> {
    let own = pod.ipv4().to_string();
    let role = pod.spawn(role::command(&["path", "probes", &own])?)?;
    Ok(role::said(&role, SOON, probes::names())?.to_vec())
}
