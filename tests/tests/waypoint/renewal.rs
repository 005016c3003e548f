//! What is renewed while clients go on asking: the waypoint itself, and everybody's certificates.

use crate::scene::Scene;
use anyhow::ensure;
use culvert_tests::{Answer, Ask, Mesh, SOON};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use testbed::{Pod, eventually};

/// One attempt of a client, from when to when.
struct Attempt {
    begun: Instant,
    ended: Instant,
    answer: Result<Answer, String>,
}

/// Clients that ask on new connections, and ask again what has got no answer.
#[derive(Default)]
struct Clients {
    stop: AtomicBool,
    attempts: Mutex<Vec<Attempt>>,
}

impl Clients {
    fn ask_on(&self, ask: &Ask, from: &Pod, times: usize) {
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let answered = ask.times(from, times);
            let ended = Instant::now();
            let attempt = |answer| Attempt { begun, ended, answer };
            let mut attempts = self.attempts.lock().unwrap();
            match answered {
                Ok(all) => attempts.extend(all.into_iter().map(|a| attempt(Ok(a)))),
                Err(e) => attempts.push(attempt(Err(format!("{e:#}")))),
            }
        }
    }

    /// Waits until so many more have been answered, of those that begin now.
    fn are_answered(&self, more: usize) {
        let from = Instant::now();
        eventually(SOON, || {
            let attempts = self.attempts.lock().unwrap();
            let new = attempts.iter().filter(|a| a.begun >= from && a.answer.is_ok()).count();
            ensure!(new >= more, "{new} answers");
            Ok(())
        })
        .unwrap();
    }
}

/// While it is away nothing goes through; what is asked before and after is answered, and as the routes say.
#[test]
fn a_waypoint_that_is_killed_loses_nothing_but_the_gap() {
    let mut s = Scene::new("wp-killed");
    s.subsets();
    s.routes(
        "{ match: [{ headers: { x-to: { exact: v2 } } }], \
           route: [{ destination: { host: reviews, subset: v2 } }] }, \
         { route: [{ destination: { host: reviews, subset: v1 } }] }",
    );
    let clients = Clients::default();
    let to_v1 = Ask::get(&s.url("/"));
    let to_v2 = to_v1.clone().header("x-to: v2");
    let from = s.client.clone();
    let gaps: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        for ask in [&to_v1, &to_v1, &to_v2] {
            scope.spawn(|| clients.ask_on(ask, &from, 1));
        }
        let gaps = (0..3).map(|_| {
            clients.are_answered(20);
            let killed = Instant::now();
            s.waypoint.kill();
            s.waypoint.restart(&s.mesh);
            (killed, Instant::now())
        });
        let gaps = gaps.collect();
        clients.are_answered(20);
        clients.stop.store(true, Ordering::Relaxed);
        gaps
    });
    let attempts = clients.attempts.into_inner().unwrap();
    let in_a_gap = |a: &Attempt| gaps.iter().any(|(from, to)| a.begun <= *to && a.ended >= *from);
    for a in &attempts {
        match &a.answer {
            Ok(answer) => {
                assert_eq!(answer.status, 200, "{answer:?}");
                let asked = answer.asked();
                let wanted = match asked["headers"]["x-to"].as_str() {
                    Some(to) => format!("reviews-{to}"),
                    None => "reviews-v1".to_owned(),
                };
                assert_eq!(answer.by(), wanted);
            }
            Err(e) => assert!(in_a_gap(a), "{e}, while the waypoint was there"),
        }
    }
    s.is_well();
}

/// Longer than a life of everybody's certificates, over connections that are kept and shared.
#[test]
fn certificates_that_are_renewed_and_end_fail_no_request() {
    let mesh = Mesh::builder("wp-certs").cert_ttl_seconds(12).build();
    let s = Scene::on(mesh, "");
    let clients = Clients::default();
    let http1 = Ask::get(&s.url("/?delay=100"));
    let http2 = http1.clone().http2();
    std::thread::scope(|scope| {
        for ask in [&http1, &http1, &http2, &http2] {
            scope.spawn(|| clients.ask_on(ask, &s.client, 5));
        }
        let identity = s.waypoint.pod.identity();
        let issued = format!("certificate issued identity={identity} ");
        let now = || s.mesh.control.log().matches(&issued).count();
        // At half of a life each.
        let goal = now() + 5;
        eventually(SOON, || {
            ensure!(now() >= goal, "{} of {goal} certificates", now());
            Ok(())
        })
        .unwrap();
        clients.are_answered(20);
        clients.stop.store(true, Ordering::Relaxed);
    });
    let attempts = clients.attempts.into_inner().unwrap();
    let failed: Vec<String> = attempts
        .iter()
        .filter_map(|a| match &a.answer {
            Ok(answer) => (answer.status != 200).then(|| format!("{answer:?}")),
            Err(e) => Some(e.clone()),
        })
        .collect();
    assert!(failed.is_empty(), "{} of {}: {failed:#?}", failed.len(), attempts.len());
    s.is_well();
}
