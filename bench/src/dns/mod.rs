//! The agent's resolver, as a pod meets it: a real agent answers and forwards, and a pod outside the
//! mesh asks the same name server directly.

pub mod ask;

use crate::{
    memory::processor_seconds_of,
    peers,
    report::{Peer, Row},
    role::{self, Samples},
};
use anyhow::ensure;
use culvert_tests::{
    Mesh, MeshPod, SOON,
    names::{RecordType, addresses, lookup, server_of},
};
use std::{net::IpAddr, time::Duration};
use testbed::eventually;

pub const SUITE: &str = "dns";

/// Of a flood; a round takes seconds.
const QUESTIONS: u32 = 500_000;
/// Of a round at a fixed rate.
const PACED: u32 = 10_000;

const ENTRY_HOST: &str = "api.entry.example";
const OTHER_HOST: &str = "www.outside.example";

const ENTRY: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { namespace: default, name: entry }
spec:
  hosts: [api.entry.example]
  ports: [{ number: 80, name: http, protocol: HTTP }]
  resolution: STATIC
  endpoints: [{ address: 192.0.2.7 }]
";

/// One way to a name.
struct Way<'a> {
    name: &'static str,
    from: &'a MeshPod,
    host: String,
    by: Answerer,
}

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answerer {
    Agent,
    ServerThroughAgent,
    Server,
}

pub fn run(runs: usize) -> anyhow::Result<Vec<Row>> {
    let mesh = Mesh::new("bench-dns");
    let (enrolled, outside) = (mesh.enrolled_pod(1, "shop"), mesh.pod(1, "outside"));
    let service = mesh.service("shop", 80, 8080, &[&enrolled]);
    mesh.apply("entry", ENTRY);
    mesh.bed.dns(OTHER_HOST, &[IpAddr::from([192, 0, 2, 8])]);
    let way = |name, from, host: &str, by| Way { name, from, host: host.to_owned(), by };
    let ways = [
        way("service", &enrolled, &service.hostname(), Answerer::Agent),
        way("ServiceEntry", &enrolled, ENTRY_HOST, Answerer::Agent),
        way("forwarded", &enrolled, OTHER_HOST, Answerer::ServerThroughAgent),
        way("without a mesh", &outside, OTHER_HOST, Answerer::Server),
    ];
    for way in &ways {
        eventually(SOON, || {
            let answer = lookup(way.from, &way.host, RecordType::A)?;
            ensure!(!addresses(&answer).is_empty(), "{} has no address", way.host);
            Ok(())
        })?;
    }
    let mut samples = Samples::default();
    // In turn, so that what else the machine does meets all of them.
    for round in 1..=runs {
        eprintln!("DNS, round {round} of {runs}");
        for way in &ways {
            way.flood(&mesh, &mut samples)?;
            way.pace(&mut samples)?;
        }
    }
    Ok(samples.iter().map(|(name, values)| row(name, values)).collect())
}

impl Way<'_> {
    fn flood(&self, mesh: &Mesh, into: &mut Samples) -> anyhow::Result<()> {
        let agent = mesh.agent_of(self.from);
        let counted = || {
            ["culvert_dns_answered_total", "istio_dns_upstream_requests_total"]
                .map(|name| agent.metric(name, &[]))
        };
        let (before, [answered, forwarded]) = (processor_seconds_of(agent.pid())?, counted());
        let said = self.ask("flood", QUESTIONS)?;
        let spent = processor_seconds_of(agent.pid())? - before;
        let all = counted();
        let (answered, forwarded) = (all[0] - answered, all[1] - forwarded);
        let by = match (answered > 0.0, forwarded > 0.0) {
            (true, false) => Answerer::Agent,
            (false, true) => Answerer::ServerThroughAgent,
            _ => Answerer::Server,
        };
        ensure!(by == self.by, "{}: {answered} answered, {forwarded} forwarded", self.name);
        for (name, value) in said {
            into.add(&format!("{}: {name}", self.name), value);
        }
        if self.by != Answerer::Server {
            let each = spent * 100_000.0 / f64::from(QUESTIONS);
            into.add(&format!("{}: CPU of the agent for 100,000", self.name), each);
        }
        Ok(())
    }

    fn pace(&self, into: &mut Samples) -> anyhow::Result<()> {
        for (name, value) in self.ask("pace", PACED)? {
            into.add(&format!("{}: {name}", self.name), value);
        }
        Ok(())
    }

    /// What the client says, which runs in the pod.
    fn ask(&self, how: &str, questions: u32) -> anyhow::Result<Vec<(String, f64)>> {
        let server = server_of(self.from).to_string();
        let questions = questions.to_string();
        let client =
            self.from.spawn(role::command(&["ask", how, &server, &self.host, &questions])?)?;
        let status = client.wait(Duration::from_secs(300))?;
        ensure!(status.success(), "the client ended with {status}: {}", client.stderr());
        role::samples(&client.stdout())
    }
}

fn row(name: &str, values: &[f64]) -> Row {
    let unit = match name {
        n if n.ends_with("answers") => "1/s",
        n if n.contains("CPU") => "s",
        n if n.ends_with("lost") => "",
        _ => "us",
    };
    let mut row = Row::new(SUITE, name.to_owned(), unit, values);
    let (goal, ztunnel) = peers::dns(name);
    (row.goal, row.peer) = (goal, ztunnel.map(Peer::Ztunnel));
    row
}
