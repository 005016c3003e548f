//! The mesh's root is replaced by another, with both trusted for a while: nothing is refused, nothing is cut.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use culvert_tests::dialogue::{echo, echo_to, serve};
use culvert_tests::stage::{Stage, certified, record};
use culvert_tests::{MeshPod, SOON, Traffic, at};
use scripted::control::CaAnswer;
use scripted::pki::{HOUR, Pki};
use testbed::{Serve, Token, eventually};

const PORT: u16 = 8080;

/// Of certificates by the first root: they are renewed soon, by whoever is the CA then.
const LIFE: Duration = Duration::from_secs(20);

/// As Kubernetes does it: at no time is there no file, or half of one.
fn put_roots(stage: &Stage, of: &[&Pki]) {
    let dir = stage.bed.dir();
    let pem: String = of.iter().map(|pki| pki.root_pem()).collect();
    fs::write(dir.join("root-cert.next"), pem).unwrap();
    fs::rename(dir.join("root-cert.next"), dir.join("root-cert.pem")).unwrap();
}

fn roots_seen(stage: &Stage, times: usize) {
    eventually(SOON, || {
        let seen = stage.agent.log().matches("the mesh's roots have changed").count();
        ensure!(seen == times, "seen {seen} times");
        Ok(())
    })
    .unwrap();
}

/// Waits until its certificate is one that lasts.
fn has_lasting_certificate(stage: &Stage, pod: &MeshPod) {
    let soon = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + HOUR / 2;
    eventually(SOON, || {
        let (_, end) = stage.agent.certificate(&pod.identity())?;
        ensure!(end > soon.as_secs(), "it ends at {end}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn the_root_is_replaced_under_traffic_and_nothing_is_refused() {
    let mut stage = Stage::with_args("roots", &["--same-node", "hbone"]);
    let (a, b) = (stage.pki.clone(), Arc::new(Pki::new("cluster.local")));
    let by_a = a.clone();
    stage.control().answer_csrs(move |csr| CaAnswer::Chain(certified(&by_a, csr, LIFE)));
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let records = [record(&client), record(&server)];
    let stream = stage.answer(&records, &[]);
    stage.agent.wait_until_ready();
    serve(&server, PORT, Serve::Script);
    for pod in [&client, &server] {
        stage.agent.enroll(pod);
    }
    let to = at(server.ipv4(), PORT);
    let traffic = Traffic::start(&client, &to, Token::new());
    traffic.succeeds(10);

    put_roots(&stage, &[&a, &b]);
    roots_seen(&stage, 1);
    drop(stream);
    stage.stop_control();
    stage.pki = b.clone();
    stage.start_control();
    let _stream = stage.answer(&records, &[]);
    for pod in [&client, &server] {
        has_lasting_certificate(&stage, pod);
    }
    let live = echo_to(&client, &to).unwrap();
    echo(&live, 100_000, 1).unwrap();

    put_roots(&stage, &[&b]);
    roots_seen(&stage, 2);
    traffic.succeeds(50);
    echo(&live, 1_000_000, 2).unwrap();
    let failure = traffic.last_failure(std::slice::from_ref(&stage.agent));
    assert_eq!(traffic.stop().failed, 0, "{failure}");

    // A file that is no good, or gone, changes nothing.
    let path = stage.bed.dir().join("root-cert.pem");
    fs::write(&path, "-----BEGIN CERTIFICATE-----\nx").unwrap();
    eventually(SOON, || {
        let log = stage.agent.log();
        log.contains("stay trusted").then_some(()).context("nothing is said of the bad file")
    })
    .unwrap();
    culvert_tests::attempt(&client, &to).unwrap();
    fs::remove_file(&path).unwrap();
    culvert_tests::attempt(&client, &to).unwrap();
}
