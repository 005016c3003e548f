//! What the parts of the way across nodes cost at least: its three TCP connections without any mesh, the crypto, the
//! copy loop.

use super::{iperf, measures::Measures, pair::Pair};
use crate::{
    process,
    report::Row,
    role::{self, Samples},
};
use culvert_tests::{MeshPod, SOON, at};
use std::net::{IpAddr, Ipv4Addr};
use testbed::Proc;

/// The relays'.
const PORT: u16 = 15000;
const SECONDS: u64 = 2;

pub fn measure(suite: &'static str, plain: &Pair, turns: usize) -> anyhow::Result<Vec<Row>> {
    let mut relayed = Measures::new(suite);
    let far = relay(&plain.server, at(Ipv4Addr::LOCALHOST, iperf::PORT))?;
    let near = relay(&plain.client, at(plain.server.ipv4(), PORT))?;
    let relays = [near.pid(), far.pid()];
    let bulk = |to: IpAddr, port| {
        iperf::Run::start(&plain.client, to, port, 1, false, SECONDS)?.received()
    };
    let mut samples = Samples::default();
    for turn in 1..=turns {
        eprintln!("{suite}: floors, turn {turn} of {turns}");
        let direct = bulk(plain.server.ipv4().into(), iperf::PORT)?;
        let before = process::processor_seconds(&relays)?;
        let through = bulk(Ipv4Addr::LOCALHOST.into(), PORT)?;
        let spent = process::processor_seconds(&relays)? - before;
        let rates = [&direct, &through].map(|r| r.bits_per_second / 1e9);
        relayed.both("floor-relay-iperf3-1", "Gbit/s", rates[0], rates[1]);
        relayed.mesh("floor-relay-cpu", "s/GB", spent / through.bytes * 1e9);
        role::measure(&["path", "crypto"], &mut samples)?;
        role::measure(&["path", "copy"], &mut samples)?;
    }
    let mut rows = relayed.rows();
    rows.extend(samples.iter().map(|(name, values)| {
        let unit = if name.ends_with("cpu") { "s/GB" } else { "GB/s" };
        Row::new(suite, name.to_owned(), unit, values)
    }));
    Ok(rows)
}

fn relay(pod: &MeshPod, to: String) -> anyhow::Result<Proc> {
    let relay = pod.spawn(role::command(&["path", "relay", &PORT.to_string(), &to])?)?;
    relay.wait_for_output("listens", SOON)?;
    Ok(relay)
}
