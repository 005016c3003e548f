//! Two pods of one node: the first connection through the agent, the next past it, both with both
//! identities, and an end by policy.

use crate::bookinfo::Bookinfo;
use anyhow::ensure;
use culvert_tests::{MeshPod, at};
use serde_json::Value;
use std::time::Duration;
use testbed::{ConnectOpts, Sock, eventually};

const PORT: u16 = 9080;
const SOON: Duration = Duration::from_secs(30);

pub fn all(b: &Bookinfo) -> anyhow::Result<()> {
    for pod in b.all_pods() {
        b.mesh.enroll(pod);
    }
    let (page, ratings) = (&b.pod("productpage-v1")?.pod, &b.pod("ratings-v1")?.pod);
    println!("\n== productpage and ratings, on one node");
    println!("  {}\n  {}", page.identity(), ratings.identity());

    println!("\n== The first connection: through the agent");
    drop(asked(page, ratings)?);
    told(b, page, ratings, "hbone")?;
    ensure!(counts(b, page) == (1, 0), "captured and direct: {:?}", counts(b, page));

    println!("\n== The second: past it");
    let open = asked(page, ratings)?;
    ensure!(counts(b, page) == (1, 1), "captured and direct: {:?}", counts(b, page));
    told(b, page, ratings, "direct")?;
    let names = open.names()?;
    println!("  plain TCP from {} to {}", names.local, names.peer);

    println!("\n== A policy against productpage, while that connection is open");
    b.mesh.policy(
        "default",
        "no-ratings-for-productpage",
        "{selector: {matchLabels: {app: ratings}}, action: DENY, rules: [{from: [{source: \
         {principals: [cluster.local/ns/default/sa/bookinfo-productpage]}}]}]}",
    );
    match open.within(SOON).read_to_end() {
        Err(e) if e.kind() == "ECONNRESET" => println!("  the connection is reset"),
        other => anyhow::bail!("the connection should be reset, and is {other:?}"),
    }
    let line = b
        .mesh
        .agent_of(ratings)
        .logged(&["bookinfo-productpage", "deny policy default/no-ratings-for-productpage"]);
    println!("  the agent says: ... {}", line.split_once("error=").map_or("", |(_, e)| e));
    ensure!(asked(page, ratings).is_err(), "productpage still gets ratings");
    println!("  and a new one is refused");
    b.mesh.remove_policy("default", "no-ratings-for-productpage");
    eventually(SOON, || asked(page, ratings).map(drop))?;
    let before = counts(b, page).1;
    asked(page, ratings)?;
    ensure!(counts(b, page).1 == before + 1, "the way is not found again");
    println!("  the policy withdrawn: through the agent once, and past it again");
    Ok(())
}

/// One request over a new connection, which stays open.
fn asked(from: &MeshPod, to: &MeshPod) -> anyhow::Result<Sock> {
    let sock = from.puppet()?.connect(at(to.ipv4(), PORT), ConnectOpts::default())?.within(SOON);
    sock.write(b"GET /ratings/0 HTTP/1.1\r\nHost: ratings:9080\r\n\r\n")?;
    ensure!(sock.read_exact(12)? == b"HTTP/1.1 200", "ratings does not answer with 200");
    Ok(sock)
}

/// The pod's connects that its agent captured, and that went past it.
fn counts(b: &Bookinfo, pod: &MeshPod) -> (u64, u64) {
    let agent = b.mesh.agent_of(pod);
    (agent.counter(pod, "captured"), agent.counter(pod, "direct"))
}

/// Both ends of the connection, as the agent tells of them.
fn told(b: &Bookinfo, from: &MeshPod, to: &MeshPod, transport: &str) -> anyhow::Result<()> {
    let identity = |row: &Value, end: &str| row.pointer(&format!("/{end}/identity")).cloned();
    let agent = b.mesh.agent_of(from);
    let (source, destination) = (from.identity(), to.identity());
    match transport {
        "direct" => eventually(SOON, || {
            let rows = agent.connections();
            let both = rows.iter().filter(|row| {
                row.get("transport").and_then(Value::as_str) == Some(transport)
                    && identity(row, "source") == Some(source.as_str().into())
                    && identity(row, "destination") == Some(destination.as_str().into())
            });
            ensure!(both.count() == 2, "not told of at both ends: {rows:?}");
            Ok(())
        })?,
        _ => {
            for direction in ["outbound", "inbound"] {
                agent.logged(&[&source, &destination, "dst.hbone_addr", direction]);
            }
        }
    }
    println!("  told of at both ends, with both identities, as {transport}");
    Ok(())
}
