//! A gateway and Envoy side by side: one worker each, the same routes, the same backend, no access
//! log. Whichever is measured has a processor; clients and backend share the other.

use super::{
    apply, envoy, gateway,
    place::{self, BACKEND_PORT, BACKENDS, OTHERS, Place},
    rows, to,
};
use crate::{
    load::{self, Load},
    process,
    report::{Goal, Row},
    role::Samples,
};
use culvert_tests::Mesh;

const HOST: &str = "alone.example";

/// Fast enough that a queue shows, slow enough for both.
const LOADS: [Load; 4] =
    [Load::Http1(16), Load::Http1(64), Load::Http2(4, 16), Load::Paced(20, 5000)];

/// Of the backends' requests, in hundredths.
const WEIGHTS: [u32; 2] = [75, 25];

pub fn run(mesh: &Mesh, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let place = Place::new(mesh, 1, "alone")?;
    let pod = &place.gateway.pod;
    let weighted: Vec<(&str, u32)> = BACKENDS.into_iter().zip(WEIGHTS).collect();
    let peer = envoy::start(pod, &weighted, BACKEND_PORT)?;
    gateway(mesh, "alone");
    apply(
        mesh,
        "VirtualService",
        "alone",
        &format!(
            "{{ hosts: [{HOST}], gateways: [alone], http: [\
               {{ match: [{{ headers: {{ end-user: {{ exact: jason }} }} }}], route: [{}] }}, \
               {{ route: [{{ destination: {{ host: backend.example, subset: v0 }}, weight: {} }}, \
                          {{ destination: {{ host: backend.example, subset: v1 }}, weight: {} }}] }}] }}",
            to("v1"),
            WEIGHTS[0],
            WEIGHTS[1],
        ),
    );
    place.serves(HOST, place::PORT, "/")?;
    place.serves(HOST, envoy::PORT, "/")?;
    process::pin(peer.pid(), place::proxys_processor())?;
    let sides = [(place.gateway.pid(), place::PORT), (peer.pid(), envoy::PORT)];
    let mut samples = [Samples::default(), Samples::default()];
    for ((pid, _), into) in sides.iter().zip(&mut samples) {
        into.add("alone: resident, fresh", process::resident(*pid)?);
    }
    for round in 0..=rounds {
        eprintln!("a waypoint alone, round {round} of {rounds}");
        for load in LOADS {
            for ((pid, port), into) in sides.iter().zip(&mut samples) {
                let url = place.url(mesh, HOST, *port, "/");
                // The first round is for warming up.
                if round == 0 {
                    load.run(pod, &url, OTHERS, 1)?;
                } else {
                    measure(&place, &[*pid], load, &url, OTHERS, "alone", into)?;
                }
            }
        }
    }
    for ((pid, _), into) in sides.iter().zip(&mut samples) {
        into.add("alone: resident, after load", process::resident(*pid)?);
    }
    let [own, theirs] = samples;
    let goal = |name: &str, theirs: f64| match name {
        n if n.ends_with("of a processor's second") => Some(Goal::AtLeast(theirs * 1.5)),
        n if n.ends_with("p99") => Some(Goal::AtMost(theirs)),
        n if n.contains("resident") => Some(Goal::AtMost(theirs / 4.0)),
        _ => None,
    };
    Ok(rows(&own, &theirs, goal))
}

/// One load, and what it cost these processes.
pub fn measure(
    place: &Place,
    pids: &[i32],
    load: Load,
    url: &str,
    on: &str,
    name: &str,
    into: &mut Samples,
) -> anyhow::Result<()> {
    let before = process::processor_seconds(pids)?;
    let seen = load.run(&place.gateway.pod, url, on, load::SECONDS)?;
    let spent = process::processor_seconds(pids)? - before;
    let name = format!("{name}: {}", load.name());
    if matches!(load, Load::Paced(..)) {
        into.add(&format!("{name}: processor for 1,000 requests"), spent / seen.requests * 1e6);
    } else {
        into.add(&format!("{name}: requests"), seen.per_second);
        let each = seen.requests / spent;
        into.add(&format!("{name}: requests of a processor's second"), each);
    }
    into.add(&format!("{name}: p50"), seen.p50);
    into.add(&format!("{name}: p99"), seen.p99);
    Ok(())
}
