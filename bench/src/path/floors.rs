//! What the parts of the way across nodes cost at least: its three TCP connections without any mesh, the same with
//! TLS between the two relays, the crypto, the copy loop.

use super::{
    iperf,
    load::{self, Load},
    measures::Measures,
    nginx,
    pair::Pair,
};
use crate::{
    process,
    report::Row,
    role::{self, Samples},
};
use culvert_tests::{MeshPod, SOON, at};
use std::net::{IpAddr, Ipv4Addr};
use testbed::Proc;

/// A pair of relays, from the client's loopback to a server.
struct Relayed {
    name: &'static str,
    /// What each of them does about TLS.
    near: &'static str,
    far: &'static str,
    /// Where the near one listens, and the far one above it.
    port: u16,
    to: u16,
}

const BULK: [Relayed; 2] = [plain(15100, iperf::PORT), tls(15200, iperf::PORT)];
const HTTP: [Relayed; 2] = [plain(15300, nginx::PORT), tls(15400, nginx::PORT)];
/// With TLS each connection would shake hands, which is what connections that are kept are there to avoid.
const WARM: Relayed = Relayed {
    name: "warm-tls-relay",
    near: "begins-warm",
    far: "ends-warm",
    port: 15500,
    to: nginx::PORT,
};

const fn plain(port: u16, to: u16) -> Relayed {
    Relayed { name: "relay", near: "plain", far: "plain", port, to }
}

const fn tls(port: u16, to: u16) -> Relayed {
    Relayed { name: "tls-relay", near: "begins-tls", far: "ends-tls", port, to }
}

const SECONDS: u64 = 2;

pub fn measure(suite: &'static str, plain: &Pair, turns: usize) -> anyhow::Result<Vec<Row>> {
    let mut measures = Measures::new(suite);
    let bulk = [BULK[0].start(plain)?, BULK[1].start(plain)?];
    let http = [HTTP[0].start(plain)?, HTTP[1].start(plain)?];
    let warm = WARM.start(plain)?;
    let mut samples = Samples::default();
    for turn in 1..=turns {
        eprintln!("{suite}: floors, turn {turn} of {turns}");
        for (relayed, running) in BULK.iter().zip(&bulk) {
            relayed.bulk(plain, running, &mut measures)?;
        }
        for (relayed, running) in HTTP.iter().zip(&http) {
            relayed.requests(plain, running, Load::Requests { connections: 64 }, &mut measures)?;
            relayed.paced(plain, &mut measures)?;
        }
        for (relayed, running) in [(&HTTP[0], &http[0]), (&WARM, &warm)] {
            relayed.requests(plain, running, Load::Connects { at_once: 16 }, &mut measures)?;
        }
        role::measure(&["path", "crypto"], &mut samples)?;
        role::measure(&["path", "copy"], &mut samples)?;
    }
    let mut rows = measures.rows();
    rows.extend(samples.iter().map(|(name, values)| {
        let unit = if name.ends_with("cpu") { "s/GB" } else { "GB/s" };
        Row::new(suite, name.to_owned(), unit, values)
    }));
    Ok(rows)
}

impl Relayed {
    fn start(&self, plain: &Pair) -> anyhow::Result<[Proc; 2]> {
        let far = relay(&plain.server, self.port + 1, at(Ipv4Addr::LOCALHOST, self.to), self.far)?;
        let through = at(plain.server.ipv4(), self.port + 1);
        let near = relay(&plain.client, self.port, through, self.near)?;
        Ok([near, far])
    }

    fn bulk(&self, plain: &Pair, running: &[Proc; 2], into: &mut Measures) -> anyhow::Result<()> {
        let bulk = |to: IpAddr, port| {
            iperf::Run::start(&plain.client, to, port, 1, false, SECONDS)?.received()
        };
        let direct = bulk(plain.server.ipv4().into(), iperf::PORT)?;
        let relays = pids(running);
        let before = process::processor_seconds(&relays)?;
        let through = bulk(Ipv4Addr::LOCALHOST.into(), self.port)?;
        let spent = process::processor_seconds(&relays)? - before;
        let rates = [&direct, &through].map(|r| r.bits_per_second / 1e9);
        into.both(&format!("floor-{}-iperf3-1", self.name), "Gbit/s", rates[0], rates[1]);
        into.mesh(&format!("floor-{}-cpu", self.name), "s/GB", spent / through.bytes * 1e9);
        Ok(())
    }

    fn requests(
        &self,
        plain: &Pair,
        running: &[Proc; 2],
        load: Load,
        into: &mut Measures,
    ) -> anyhow::Result<()> {
        let relays = pids(running);
        let direct = load.requests_to(plain, plain.server.ipv4(), nginx::PORT)?;
        let before = process::processor_seconds(&relays)?;
        let through = load.requests_to(plain, Ipv4Addr::LOCALHOST, self.port)?;
        let spent = process::processor_seconds(&relays)? - before;
        let name = format!("floor-{}-{}", self.name, load.name());
        into.both(&name, "1/s", direct.per_second, through.per_second);
        into.mesh(&format!("{name}-cpu"), "us/request", spent / through.requests * 1e6);
        Ok(())
    }

    fn paced(&self, plain: &Pair, into: &mut Measures) -> anyhow::Result<()> {
        let rate = |ip, port| load::PACED.run(&plain.client, ip, port, SECONDS);
        let direct = rate(plain.server.ipv4(), nginx::PORT)?;
        let through = rate(Ipv4Addr::LOCALHOST, self.port)?;
        let name = format!("floor-{}-{}", self.name, Load::Paced.name());
        into.both(&format!("{name}-p50"), "us", direct.p50, through.p50);
        into.both(&format!("{name}-p99"), "us", direct.p99, through.p99);
        into.mesh(&format!("{name}-p50-added"), "us", through.p50 - direct.p50);
        into.mesh(&format!("{name}-p99-added"), "us", through.p99 - direct.p99);
        Ok(())
    }
}

fn pids(relays: &[Proc; 2]) -> [i32; 2] {
    [relays[0].pid(), relays[1].pid()]
}

fn relay(pod: &MeshPod, port: u16, to: String, tls: &str) -> anyhow::Result<Proc> {
    let relay = pod.spawn(role::command(&["path", "relay", &port.to_string(), &to, tls])?)?;
    relay.wait_for_output("listens", SOON)?;
    Ok(relay)
}
