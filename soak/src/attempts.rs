//! One connection after the other, each noted with what was expected of it and what came.

use crate::{
    cast::{ACCOUNTS, OPEN, VOLATILE, own_port},
    scene::Scene,
};
use culvert_tests::{MeshPod, at, dialogue::ask_whoami};
use rand::{Rng as _, seq::IndexedRandom as _};
use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};
use testbed::{ConnectOpts, PuppetError, Token};

/// Longer than anything that the agent waits for, so that its log has the cause.
const PATIENCE: Duration = Duration::from_secs(40);
/// Between two connections of one client.
const PAUSE: Duration = Duration::from_millis(15);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// Unless something is broken at the moment, which then has a name.
    Allowed,
    /// Whatever else is the case.
    Refused,
    /// As the policies of that time say.
    AsPolicySays,
    /// The other end may go at any time.
    Either,
}

#[derive(Clone, Debug)]
pub struct Attempt {
    pub node: usize,
    pub identity: String,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub begun: SystemTime,
    pub ended: SystemTime,
    pub expected: Expected,
    pub error: Option<String>,
}

/// A client's life: to the servers on every port, and to whichever guest is there.
pub fn client(scene: &Scene, n: usize) {
    let (pod, token) = (&scene.cast.clients[n], scene.cast.tokens[n]);
    let mut rng = rand::rng();
    while !scene.has_ended() {
        let server = scene.cast.servers.choose(&mut rng).unwrap();
        let someone = rng.random_range(0..ACCOUNTS.len());
        let (port, expected) = match rng.random_range(0..10) {
            0..=3 => (OPEN, Expected::Allowed),
            4..=5 => (own_port(n), Expected::Allowed),
            6 if someone != n => (own_port(someone), Expected::Refused),
            7..=8 => (VOLATILE, Expected::AsPolicySays),
            _ => {
                let guest = scene.guests.lock().unwrap().choose(&mut rng).cloned();
                if let Some(guest) = guest {
                    one(scene, pod, &guest, OPEN, token, Expected::Either);
                }
                continue;
            }
        };
        one(scene, pod, server, port, token, expected);
        scene.pause(PAUSE);
    }
}

/// Connects, asks the server whom it sees, and has it echo the token.
pub fn one(
    scene: &Scene,
    pod: &MeshPod,
    server: &MeshPod,
    port: u16,
    token: Token,
    expected: Expected,
) {
    let v6 = rand::rng().random_bool(0.3);
    let to = if v6 { at(server.ipv6(), port) } else { at(server.ipv4(), port) };
    let own = if v6 { pod.ipv6().into() } else { pod.ipv4().into() };
    let mut from = SocketAddr::new(own, 0);
    let begun = SystemTime::now();
    let said = say(pod, &to, token, &mut from);
    let attempt = Attempt {
        node: pod.node().number().into(),
        identity: pod.identity(),
        from,
        to: to.parse().unwrap(),
        begun,
        ended: SystemTime::now(),
        expected,
        error: said.err().map(|e| e.to_string()),
    };
    scene.notes().attempts.push(attempt);
}

fn say(pod: &MeshPod, to: &str, token: Token, from: &mut SocketAddr) -> Result<(), PuppetError> {
    let puppet = pod.puppet().map_err(|e| PuppetError::new("gone", e.to_string()))?;
    let opts = ConnectOpts { timeout: PATIENCE, ..ConnectOpts::default() };
    let sock = puppet.connect(to, opts)?.within(PATIENCE);
    if let Ok(names) = sock.names() {
        *from = names.local;
    }
    let seen = ask_whoami(&sock)?;
    // The right address or none, at both ends.
    let (peer, local) = (seen.peer.ip(), seen.local.to_string());
    if peer != from.ip() || local != to {
        let what = format!("WRONG ADDRESS: {from} to {to} is {peer} to {local} at the server");
        return Err(PuppetError::new("data", what));
    }
    sock.write(token.bytes())?;
    let back = sock.read_exact(token.bytes().len())?;
    if back != token.bytes() {
        return Err(PuppetError::new("data", "WRONG BYTES: the echo differs from what was sent"));
    }
    Ok(())
}
