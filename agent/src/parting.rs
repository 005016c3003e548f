//! Addresses that are no longer reached by HBONE, for the moment after: their own node may not have heard
//! of it yet, or holds their pod until its peers have, and refuses what comes from the mesh in plaintext.

use crate::pods::lock;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

/// How long a pod that leaves is held (`pods_of_node`), and as long again for the news to arrive.
const MOMENT: Duration = Duration::from_secs(2);

/// Between two attempts to connect to one.
pub const PAUSE: Duration = Duration::from_millis(50);

#[derive(Default)]
pub struct Parting(Mutex<HashMap<IpAddr, Instant>>);

impl Parting {
    /// Takes down by what addresses are reached from now on.
    pub fn note(&self, now: Instant, changes: &[(IpAddr, bool)]) {
        let mut parting = lock(&self.0);
        for (ip, is_meshed) in changes {
            match is_meshed {
                true => parting.remove(ip),
                false => parting.insert(*ip, now),
            };
        }
    }

    /// Whether a connection in plaintext that is refused may be let in if it comes again.
    pub fn is(&self, now: Instant, ip: IpAddr) -> bool {
        lock(&self.0).get(&ip).is_some_and(|since| now.duration_since(*since) < MOMENT)
    }

    pub fn sweep(&self, now: Instant) {
        let mut parting = lock(&self.0);
        parting.retain(|_, since| now.duration_since(*since) < MOMENT);
        // Of a namespace that has left there may have been many.
        parting.shrink_to(64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_parting_for_a_moment_and_not_once_it_is_back() {
        let (parting, begun) = (Parting::default(), Instant::now());
        let [a, b] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        parting.note(begun, &[(a, false), (b, false)]);
        assert!(parting.is(begun, a) && parting.is(begun, b));
        parting.note(begun, &[(b, true)]);
        assert!(!parting.is(begun, b));
        parting.sweep(begun);
        assert!(parting.is(begun + MOMENT / 2, a), "sweeping spares it");
        assert!(!parting.is(begun + MOMENT, a));
        parting.sweep(begun + MOMENT);
        assert!(lock(&parting.0).is_empty());
    }
}
