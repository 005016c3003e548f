//! What comes and goes: pods, which take over each other's addresses under other identities, and
//! policies.

use crate::{
    attempts::{Expected, one},
    cast::{ACCOUNTS, CLIENTS, GUESTS, OPEN, VOLATILE, admitting, allow, own_port, principal},
    scene::{Reign, Scene, Span},
};
use anyhow::ensure;
use culvert_tests::{MeshPod, SOON, Spec, dialogue::serve};
use rand::{Rng as _, seq::IndexedRandom as _};
use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, SystemTime},
};
use testbed::{Serve, eventually};

/// One guest after the other: enters, is enrolled, calls and is called on, and leaves.
pub fn guests(scene: &Scene, n: usize) {
    let guests_accounts = ACCOUNTS.len() - CLIENTS;
    let mut rng = rand::rng();
    for turn in 0.. {
        if scene.has_ended() {
            return;
        }
        let account = CLIENTS + (turn * GUESTS + n) % guests_accounts;
        let node = rng.random_range(1..=2);
        let spec = Spec::named(&format!("guest{n}-{turn}")).account(ACCOUNTS[account]);
        let pod = {
            let _moving = scene.moving.lock().unwrap_or_else(PoisonError::into_inner);
            let since = SystemTime::now();
            let pod = scene.mesh.pod(node, spec);
            scene.moved_in(&pod, since);
            pod
        };
        serve(&pod, OPEN, Serve::Script);
        scene.mesh.enroll_patiently(&pod);
        let pod = Arc::new(pod);
        scene.guests.lock().unwrap().push(pod.clone());
        scene.guests_seen.fetch_add(1, Ordering::Relaxed);
        stay(scene, &pod, account);
        scene.guests.lock().unwrap().retain(|g| !Arc::ptr_eq(g, &pod));
        leave(scene, &pod, rng.random());
    }
}

fn stay(scene: &Scene, pod: &MeshPod, account: usize) {
    let token = scene.cast.tokens[CLIENTS];
    let mut rng = rand::rng();
    for _ in 0..rng.random_range(5..30) {
        let server = scene.cast.servers.choose(&mut rng).unwrap();
        let someone = rng.random_range(0..ACCOUNTS.len());
        let (port, expected) = match rng.random_range(0..4) {
            0 => (OPEN, Expected::Allowed),
            1 => (own_port(account), Expected::Allowed),
            2 if someone != account => (own_port(someone), Expected::Refused),
            _ => (VOLATILE, Expected::AsPolicySays),
        };
        one(scene, pod, server, port, token, expected);
        if scene.has_ended() {
            return;
        }
        scene.pause(Duration::from_millis(50));
    }
}

/// Either in order, or the pod dies while others talk to it, and the word of it comes after.
fn leave(scene: &Scene, pod: &Arc<MeshPod>, in_order: bool) {
    let nobody_calls = || {
        eventually(SOON, || {
            ensure!(Arc::strong_count(pod) == 1, "somebody talks to {pod:?}");
            Ok(())
        })
        .unwrap();
    };
    if in_order {
        // From here on it is outside the mesh, and its connections are in plaintext.
        nobody_calls();
        scene.mesh.unenroll_patiently(pod);
        scene.mesh.delete_pod(MeshPod::clone(pod));
        return;
    }
    let _moving = scene.moving.lock().unwrap_or_else(PoisonError::into_inner);
    scene.mesh.kill_pod(pod);
    nobody_calls();
    scene.mesh.forget_pod(pod);
    let agent = scene.mesh.agent_of(pod);
    eventually(SOON, || scene.mesh.try_release(agent, pod.namespace(), pod.name())).unwrap();
}

/// One policy after the other for the volatile port. Each has a name of its own, so that one can
/// tell when it has arrived.
pub fn policies(scene: &Scene) {
    let mut rng = rand::rng();
    let mut before: Option<String> = None;
    for turn in 0.. {
        if scene.has_ended() {
            return;
        }
        let admitted: Vec<String> =
            (0..ACCOUNTS.len()).filter(|_| rng.random_bool(0.5)).map(principal).collect();
        let name = format!("volatile{turn}");
        let begun = SystemTime::now();
        // An ALLOW without principals would be anybody's.
        let rules = if admitted.is_empty() { String::new() } else { admitting(&admitted) };
        scene.mesh.policy("default", &name, &allow(&rules));
        for server in &scene.cast.servers {
            scene.mesh.policy_bound(&format!("default/{name}"), server);
        }
        if let Some(before) = before.replace(name) {
            scene.mesh.remove_policy("default", &before);
        }
        let settled = SystemTime::now();
        scene.notes().changes.push(Span { from: begun, to: Some(settled) });
        scene.pause(Duration::from_millis(rng.random_range(500..3000)));
        let admitted = admitted.iter().map(|p| format!("spiffe://{p}")).collect();
        let span = Span { from: settled, to: Some(SystemTime::now()) };
        scene.notes().reigns.push(Reign { admitted, span });
    }
}
