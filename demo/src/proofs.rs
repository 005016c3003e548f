//! What the demo shows, each a proof that fails the run when it does not hold.

use crate::bookinfo::Bookinfo;
use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use testbed::{LeakVerdict, eventually};

const REVIEWS: &str = "http://productpage:9080/api/v1/products/0/reviews";
const RATINGS: &str = "http://productpage:9080/api/v1/products/0/ratings";
const PAGE: &str = "http://productpage:9080/productpage";

const SOON: Duration = Duration::from_secs(30);

pub fn all(b: &Bookinfo) -> anyhow::Result<()> {
    title("Before: the bookstore in plaintext");
    let before = watched(b, "before", || whole_page(b))?;
    ensure!(!before.tokens.is_empty(), "without a mesh the tokens should be on the wire: {before}");
    println!(
        "  on the link between the nodes: {} sightings of the applications' tokens",
        before.tokens.len()
    );

    title("Enrolment: no pod restarts");
    let pids: Vec<i32> = b.pods.iter().map(crate::bookinfo::BookPod::pid).collect();
    for pod in b.all_pods() {
        b.mesh.enroll(pod);
        println!("  {} is {}", pod.name(), pod.identity());
    }
    let still: Vec<i32> = b.pods.iter().map(crate::bookinfo::BookPod::pid).collect();
    ensure!(pids == still, "processes changed");

    title("After: the same pages, over mutual TLS");
    let after = watched(b, "after", || whole_page(b))?;
    ensure!(after.is_clean(), "the link is not clean: {after}");
    ensure!(after.hbone_bytes > 0, "nothing crossed the link by HBONE: {after}");
    println!(
        "  on the link between the nodes: no token in {} packets; {} bytes of TLS to port 15008",
        after.packets, after.hbone_bytes
    );
    who_talked_to_whom(b)?;
    policy(b)?;
    out_and_in_again(b)
}

fn title(text: &str) {
    println!("\n== {text}");
}

/// The page, and reviews by each version, with their stars.
fn whole_page(b: &Bookinfo) -> anyhow::Result<()> {
    let page = b.get(PAGE)?;
    ensure!(
        page.contains("Book Details") && page.contains("William Shakespeare"),
        "odd page: {page}"
    );
    ensure!(page.contains("Signed in: jason"), "the header end-user did not arrive: {page}");
    for answer in b.every_version()? {
        let who = answer.get("podname").and_then(Value::as_str).unwrap_or_default().to_owned();
        let color = answer.pointer("/reviews/0/rating/color").and_then(Value::as_str);
        let expected = match who.as_str() {
            "reviews-v1" => None,
            "reviews-v2" => Some("black"),
            "reviews-v3" => Some("red"),
            other => bail!("who is {other}?"),
        };
        ensure!(color == expected, "{who} shows {color:?} stars, not {expected:?}: {answer}");
        println!("  {who}: {} stars", color.unwrap_or("no"));
    }
    Ok(())
}

/// Runs `traffic` with the link between the nodes recorded, and looks for the tokens there.
fn watched(
    b: &Bookinfo,
    label: &str,
    traffic: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<LeakVerdict> {
    let node = b.pod("details-v1")?.pod.node().clone();
    let capture = node.capture_link(label)?;
    let outcome = traffic();
    let report = capture.stop()?;
    outcome?;
    let mut tokens: Vec<_> = b.pods.iter().map(|p| p.token).collect();
    tokens.push(b.client_token);
    b.mesh.leak_check(&tokens, &b.all_pods()).check(&report)
}

/// Reads the agents' access logs, as an operator would.
fn who_talked_to_whom(b: &Bookinfo) -> anyhow::Result<()> {
    title("Who talked to whom, from the agents' access logs");
    let expected = [
        ("sleep", "bookinfo-productpage"),
        ("bookinfo-productpage", "bookinfo-details"),
        ("bookinfo-productpage", "bookinfo-reviews"),
        ("bookinfo-reviews", "bookinfo-ratings"),
    ];
    eventually(SOON, || {
        let mut hops: BTreeMap<(String, String), usize> = BTreeMap::new();
        for line in b.mesh.agents().iter().flat_map(|a| a.access_log()) {
            if !line.contains("direction=\"inbound\"") {
                continue;
            }
            if let (Some(from), Some(to)) =
                (field(&line, "src.identity"), field(&line, "dst.identity"))
            {
                *hops.entry((from, to)).or_default() += 1;
            }
        }
        let pairs: BTreeSet<(String, String)> = hops.keys().cloned().collect();
        for (from, to) in expected {
            let id = |sa: &str| format!("spiffe://cluster.local/ns/default/sa/{sa}");
            ensure!(
                pairs.contains(&(id(from), id(to))),
                "no connection from {from} to {to} was logged"
            );
        }
        ensure!(pairs.len() == expected.len(), "unexpected pairs: {pairs:?}");
        for ((from, to), n) in &hops {
            println!("  {from} -> {to}: {n} connections");
        }
        Ok(())
    })
}

fn field(line: &str, name: &str) -> Option<String> {
    let (_, rest) = line.split_once(&format!("{name}=\""))?;
    Some(rest.split_once('"')?.0.to_owned())
}

fn policy(b: &Bookinfo) -> anyhow::Result<()> {
    title("A DENY policy, applied while it runs");
    b.get_json(RATINGS).context("productpage may ask ratings, for now")?;
    b.mesh.policy(
        "default",
        "no-ratings-for-productpage",
        "{selector: {matchLabels: {app: ratings}}, action: DENY, rules: [{from: [{source: \
         {principals: [cluster.local/ns/default/sa/bookinfo-productpage]}}]}]}",
    );
    eventually(SOON, || {
        ensure!(b.get_json(RATINGS).is_err(), "productpage still gets ratings");
        Ok(())
    })?;
    let ratings = &b.pod("ratings-v1")?.pod;
    let line = b
        .mesh
        .agent_of(ratings)
        .logged(&["bookinfo-productpage", "deny policy default/no-ratings-for-productpage"]);
    println!("  refused; the agent says: ... {}", line.split_once("error=").map_or("", |(_, e)| e));
    let reviews = b.every_version()?;
    ensure!(
        reviews.iter().any(|r| r.pointer("/reviews/0/rating/stars").is_some()),
        "reviews may still ask ratings, and does not get them"
    );
    println!("  reviews, which the policy does not name, still gets its stars");
    b.mesh.remove_policy("default", "no-ratings-for-productpage");
    eventually(SOON, || b.get_json(RATINGS).map(drop))?;
    println!("  the policy withdrawn: productpage gets ratings again");
    Ok(())
}

/// One pod leaves the mesh and comes back, without a restart.
fn out_and_in_again(b: &Bookinfo) -> anyhow::Result<()> {
    title("A pod leaves the mesh, and comes back, without a restart");
    let details = b.pod("details-v1")?;
    let pid = details.pid();
    b.mesh.unenroll(&details.pod);
    let out =
        watched(b, "out", || b.get_json("http://productpage:9080/api/v1/products/0").map(drop))?;
    ensure!(
        !out.tokens.is_empty(),
        "to a pod outside the mesh the bytes go in plaintext, and none were seen: {out}"
    );
    println!(
        "  out: reached in plaintext, as {} sightings of its tokens on the link show",
        out.tokens.len()
    );
    b.mesh.enroll(&details.pod);
    let back = watched(b, "back", || {
        for _ in 0..10 {
            b.get_json("http://productpage:9080/api/v1/products/0")?;
        }
        b.get_json(REVIEWS).map(drop)
    })?;
    ensure!(back.is_clean(), "the link is not clean: {back}");
    ensure!(details.pid() == pid, "the process changed");
    println!("  back in: no token on the link; it is process {pid} all along");
    Ok(())
}
