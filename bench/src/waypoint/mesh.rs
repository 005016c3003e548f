//! The whole way: a client's agent, a waypoint, the server's agent; beside the same client and server
//! outside the mesh.

use super::{SUITE, place, unit};
use crate::{
    load::{Load, SECONDS, Seen},
    process,
    report::Row,
    role::Samples,
};
use culvert_tests::{Ask, Mesh, MeshPod, SOON};
use testbed::eventually;

const PORT: u16 = 9080;

const LOADS: [Load; 3] = [Load::Http1(16), Load::Http2(4, 16), Load::Paced(10, 1000)];

pub fn run(mesh: &Mesh, rounds: usize) -> anyhow::Result<Vec<Row>> {
    let (client, server) = (mesh.enrolled_pod(1, "client"), mesh.enrolled_pod(2, "shop"));
    let (outside, plain) = (mesh.pod(1, "outside"), mesh.pod(2, "plain"));
    let _backends = [place::backend(&server, PORT)?, place::backend(&plain, PORT)?];
    let shop = mesh.service_of("shop", "http", PORT, PORT, &[&server]);
    let bare = mesh.service_of("plain", "http", PORT, PORT, &[&plain]);
    let waypoint = mesh.waypoint(2, "waypoint");
    mesh.use_waypoint(Some("waypoint"));
    mesh.bound(&shop, Some("waypoint"));
    let mesh_url = format!("http://{}:{PORT}/", shop.hostname());
    let plain_url = format!("http://{}:{PORT}/", bare.hostname());
    eventually(SOON, || {
        let answer = Ask::get(&mesh_url).from(&client)?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })?;
    let proxies = [mesh.agent(1).pid(), waypoint.pid(), mesh.agent(2).pid()];
    let mut samples = Samples::default();
    for round in 1..=rounds {
        eprintln!("the whole mesh path, round {round} of {rounds}");
        for load in LOADS {
            let direct = through(&outside, &plain_url, load, "plain", &mut samples)?;
            let before = process::processor_seconds(&proxies)?;
            let way = through(&client, &mesh_url, load, "mesh", &mut samples)?;
            let spent = process::processor_seconds(&proxies)? - before;
            let name = format!("mesh: {}", load.name());
            let each = spent / way.requests * 1e6;
            samples.add(&format!("{name}: processor of three proxies for 1,000 requests"), each);
            if !matches!(load, Load::Paced(..)) {
                let ratio = way.per_second / direct.per_second;
                samples.add(&format!("{name}: share of plain"), ratio);
            }
        }
    }
    Ok(samples
        .iter()
        .map(|(name, values)| Row::new(SUITE, name.to_owned(), unit(name), values))
        .collect())
}

fn through(
    from: &MeshPod,
    url: &str,
    load: Load,
    way: &str,
    into: &mut Samples,
) -> anyhow::Result<Seen> {
    let seen = load.run(from, url, &process::everywhere(), SECONDS)?;
    let name = format!("{way}: {}", load.name());
    if !matches!(load, Load::Paced(..)) {
        into.add(&format!("{name}: requests"), seen.per_second);
    }
    into.add(&format!("{name}: p50"), seen.p50);
    into.add(&format!("{name}: p99"), seen.p99);
    Ok(seen)
}
