//! How many tokens that are refused an address may present. Each costs the API server a review, and
//! anybody who reaches the control plane can make them up.

use std::{collections::HashMap, net::IpAddr, time::Instant};

/// Tokens that are looked at though all before them were refused: a pod that restarts with old ones.
const AT_ONCE: f64 = 20.0;

/// One more after so many seconds.
const AGAIN: f64 = 1.0;

/// Addresses that are remembered. Beyond, those are forgotten that have been quiet, and then all.
const REMEMBERED: usize = 4096;

/// What is left to an address, and since when.
#[derive(Default)]
pub struct Refusals {
    left: HashMap<IpAddr, (f64, Instant)>,
}

impl Refusals {
    /// Whether one more may be looked at.
    pub fn take(&mut self, address: IpAddr, now: Instant) -> bool {
        if self.left.len() >= REMEMBERED && !self.left.contains_key(&address) {
            self.left.retain(|_, (left, since)| by_now(*left, *since, now) < AT_ONCE);
            if self.left.len() >= REMEMBERED {
                self.left.clear();
            }
        }
        let (left, since) = self.left.entry(address).or_insert((AT_ONCE, now));
        let have = by_now(*left, *since, now);
        let may = have >= 1.0;
        (*left, *since) = (if may { have - 1.0 } else { have }, now);
        may
    }

    /// That one was good, or was never judged.
    pub fn give_back(&mut self, address: IpAddr) {
        if let Some((left, _)) = self.left.get_mut(&address) {
            *left = (*left + 1.0).min(AT_ONCE);
        }
    }
}

fn by_now(left: f64, since: Instant, now: Instant) -> f64 {
    (left + now.saturating_duration_since(since).as_secs_f64() / AGAIN).min(AT_ONCE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn who_presents_bad_tokens_has_few_looked_at() {
        let mut refusals = Refusals::default();
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        assert_eq!((0..100).filter(|_| refusals.take(address(1), at(0))).count(), 20);
        assert!(refusals.take(address(2), at(0)), "another address is another's");
        // However often it asks: one a second.
        assert_eq!((0..1000).filter(|n| refusals.take(address(1), at(n * 10))).count(), 9);
        assert_eq!((0..100).filter(|_| refusals.take(address(1), at(3_600_000))).count(), 20);
    }

    #[test]
    fn what_was_good_costs_nothing() {
        let mut refusals = Refusals::default();
        let now = Instant::now();
        for _ in 0..1000 {
            assert!(refusals.take(address(1), now));
            refusals.give_back(address(1));
        }
    }

    #[test]
    fn what_is_remembered_has_an_end() {
        let mut refusals = Refusals::default();
        let begin = Instant::now();
        for n in 0..10_000 {
            refusals.take(address(n), begin + Duration::from_millis(u64::from(n)));
        }
        assert!(refusals.left.len() <= REMEMBERED);
    }
}
