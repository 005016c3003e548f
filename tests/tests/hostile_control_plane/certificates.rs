//! A CA that answers wrongly, slowly, or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::ensure;
use culvert_tests::stage::{certified, record};
use culvert_tests::{MeshPod, SOON, at, attempt};
use scripted::control::{CaAnswer, Csr};
use scripted::messages::workload;
use scripted::pki::{HOUR, Pki, good_leaf, leaf};
use testbed::eventually;
use tonic::Code;
use xds::ADDRESS_TYPE;

use crate::scene::{PORT, Scene, scene};

/// What a CA may do instead of its duty, and what the agent says of it.
const KINDS: [(&str, &str); 11] = [
    ("wrong-san", "certified something else"),
    ("others-name", "certified something else"),
    ("others-key", "cannot be used"),
    ("empty-chain", "without a certificate"),
    ("no-pem", "without a certificate"),
    ("root-only", "without a certificate"),
    ("unknown-issuer", "no peer would accept it"),
    ("expired", "xpired"),
    ("not-yet-valid", "NotValidYet"),
    ("unavailable", "closed for today"),
    ("slow-loris", "did not answer"),
];

fn misbehave(kind: &str, pki: &Pki, csr: &Csr) -> CaAnswer {
    let now = SystemTime::now();
    let by = |params| CaAnswer::Chain(vec![pki.certify(&csr.pem, &params), pki.root_pem()]);
    match kind {
        "wrong-san" => by(good_leaf("https://cluster.local/login")),
        "others-name" => by(good_leaf("spiffe://cluster.local/ns/default/sa/server")),
        "others-key" => {
            let leaf = pki.certify_another_key(&good_leaf(&csr.identity));
            CaAnswer::Chain(vec![leaf, pki.root_pem()])
        }
        "empty-chain" => CaAnswer::Chain(vec![]),
        "no-pem" => CaAnswer::Chain(vec!["<html>proxy error</html>".into()]),
        "root-only" => CaAnswer::Chain(vec![pki.root_pem()]),
        "unknown-issuer" => CaAnswer::Chain(certified(&Pki::new("cluster.local"), csr, HOUR)),
        "expired" => by(leaf(&[&csr.identity], now - HOUR * 2, HOUR)),
        "not-yet-valid" => by(leaf(&[&csr.identity], now + HOUR, HOUR)),
        "unavailable" => CaAnswer::Status(Code::Unavailable, "closed for today"),
        "slow-loris" => CaAnswer::Never,
        other => panic!("{other}"),
    }
}

/// A pod for each kind, with the kind for its name and its service account.
fn pods(s: &mut Scene) -> Vec<MeshPod> {
    let pods: Vec<MeshPod> = KINDS.iter().map(|(kind, _)| s.stage.pod(*kind)).collect();
    s.taken(ADDRESS_TYPE, pods.iter().map(|p| workload("1", &record(p))).collect(), &[]);
    pods
}

/// The life of a first certificate: longer than the agent waits for a CA, twice.
const LIFE: Duration = Duration::from_secs(30);

/// A renewal that fails leaves the certificate that is there, until it ends; then nothing passes, not in plaintext
/// either; and when the CA is well again, so is the pod.
#[test]
fn a_renewal_that_fails_leaves_the_certificate_in_use_until_it_ends() {
    let mut s = scene("renewals");
    let pods = pods(&mut s);
    let well = Arc::new(AtomicBool::new(false));
    let (pki, is_well) = (s.stage.pki.clone(), well.clone());
    s.stage.control().answer_csrs(move |csr| {
        let kind = csr.identity.rsplit('/').next().unwrap();
        let bad = KINDS.iter().any(|(k, _)| *k == kind);
        match (bad, is_well.load(Ordering::Relaxed)) {
            (true, false) if csr.earlier == 0 => CaAnswer::Chain(certified(&pki, csr, LIFE)),
            (true, false) => misbehave(kind, &pki, csr),
            _ => CaAnswer::Chain(certified(&pki, csr, HOUR)),
        }
    });
    let agent = &s.stage.agent;
    let mut serials = vec![];
    for pod in &pods {
        agent.enroll(pod);
        attempt(pod, &s.target()).unwrap();
        serials.push(agent.certificate(&pod.identity()).unwrap());
    }
    // Each has been tried in vain while the first one is good, and the first one is still in use.
    for ((pod, (kind, why)), serial) in pods.iter().zip(KINDS).zip(&serials) {
        let identity = pod.identity();
        eventually(SOON, || {
            let log = agent.log();
            let told = log.lines().any(|l| {
                l.contains("no new certificate") && l.contains(&identity) && l.contains(why)
            });
            ensure!(told, "{kind}: no line about {identity} says {why:?}");
            Ok(())
        })
        .unwrap();
        assert_eq!(agent.certificate(&identity).unwrap(), *serial, "{kind}");
        attempt(pod, &s.target()).unwrap_or_else(|e| panic!("{kind}: {e}"));
    }
    s.undisturbed();
    // After its end nothing passes. At the same time: each attempt waits as long as an agent waits for a certificate.
    let target = s.target();
    std::thread::scope(|scope| {
        for (pod, (kind, _)) in pods.iter().zip(KINDS) {
            let target = &target;
            scope.spawn(move || {
                // One that is under way at that moment is cut, which is another reason.
                let refused = || {
                    ensure!(attempt(pod, target).is_err(), "{kind}: it still passes");
                    let log = agent.access_log();
                    let from = format!("src.addr=\"{}:", pod.ipv4());
                    let why = log.iter().any(|l| l.contains(&from) && l.contains("has expired"));
                    ensure!(why, "{kind}: refused, and not for its end");
                    Ok(())
                };
                eventually(SOON, refused).unwrap();
            });
        }
    });
    s.passes("alice is not concerned");
    well.store(true, Ordering::Relaxed);
    std::thread::scope(|scope| {
        for (pod, (kind, _)) in pods.iter().zip(KINDS) {
            let target = &target;
            scope.spawn(move || {
                eventually(SOON, || Ok(attempt(pod, target)?))
                    .unwrap_or_else(|e| panic!("{kind}, well again: {e}"));
            });
        }
    });
    s.undisturbed();
}

/// A pod whose first certificate cannot be used has no identity: nothing leaves it, and nothing reaches it.
#[test]
fn a_first_certificate_that_cannot_be_used_lets_nothing_through() {
    let mut s = scene("first");
    let pods = pods(&mut s);
    let well = Arc::new(AtomicBool::new(false));
    let (pki, is_well) = (s.stage.pki.clone(), well.clone());
    s.stage.control().answer_csrs(move |csr| {
        let kind = csr.identity.rsplit('/').next().unwrap();
        let bad = KINDS.iter().any(|(k, _)| *k == kind);
        match bad && !is_well.load(Ordering::Relaxed) {
            true => misbehave(kind, &pki, csr),
            false => CaAnswer::Chain(certified(&pki, csr, HOUR)),
        }
    });
    for pod in &pods {
        s.stage.agent.enroll(pod);
        culvert_tests::dialogue::serve(pod, PORT, testbed::Serve::Script);
    }
    // At the same time: each waits as long as an agent waits for a certificate.
    std::thread::scope(|scope| {
        for pod in &pods {
            let (alice, target) = (&s.alice, s.target());
            scope.spawn(move || {
                assert!(attempt(pod, &target).is_err(), "{pod:?} got out");
                let to = at(pod.ipv4(), PORT);
                assert!(attempt(alice, &to).is_err(), "{pod:?} was reached");
            });
        }
    });
    for (pod, (_, why)) in pods.iter().zip(KINDS) {
        s.stage.agent.logged(&[&pod.ipv4().to_string(), "no certificate for", why]);
    }
    s.undisturbed();
    well.store(true, Ordering::Relaxed);
    for pod in &pods {
        eventually(SOON, || Ok(attempt(pod, &s.target())?)).unwrap();
        attempt(&s.alice, &at(pod.ipv4(), PORT)).unwrap();
    }
}
