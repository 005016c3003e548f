//! The leak checker, on the link between the nodes, from the first packet to the last.

use crate::scene::Scene;
use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};
use testbed::{Capture, LeakCheck};

/// Each recording; the next one begins before it ends.
const PIECE: Duration = Duration::from_secs(10);

/// What the checker has found, over all pieces.
#[derive(Default)]
pub struct Wire {
    pub pieces: u64,
    pub packets: u64,
    pub hbone_bytes: u64,
    /// Verdicts that were not clean, in words.
    pub findings: Vec<String>,
}

pub fn watch(scene: &Scene) {
    let check = LeakCheck {
        tokens: scene.cast.tokens.clone(),
        // Nobody here speaks before enrolment or after it.
        enrolled: addresses(),
        ..LeakCheck::default()
    };
    let node = &scene.mesh.agent(1).node;
    let begin = || node.capture_link("soak").unwrap();
    let mut running = begin();
    loop {
        scene.pause(PIECE);
        let ended = scene.has_ended();
        // Guests take a moment to leave.
        let next = (!ended).then(begin);
        judge(scene, &check, running);
        match next {
            Some(next) => running = next,
            None => return,
        }
    }
}

fn judge(scene: &Scene, check: &LeakCheck, capture: Capture) {
    let report = capture.stop().unwrap();
    let verdict = check.check(&report).unwrap();
    fs::remove_file(&report.path).unwrap();
    let mut notes = scene.notes();
    let wire = &mut notes.wire;
    wire.pieces += 1;
    wire.packets += verdict.packets;
    wire.hbone_bytes += verdict.hbone_bytes;
    if !verdict.is_clean() {
        wire.findings.push(verdict.to_string());
    }
}

/// Of every pod that there may be.
fn addresses() -> HashSet<IpAddr> {
    let of = |node: u8, k: u8| {
        let v6 = Ipv6Addr::new(0xfd10, 0x10, node.into(), 0, 0, 0, 0, k.into());
        [IpAddr::from(Ipv4Addr::new(10, 10, node, k)), v6.into()]
    };
    (1..=2).flat_map(|node| (2..=254).flat_map(move |k| of(node, k))).collect()
}
