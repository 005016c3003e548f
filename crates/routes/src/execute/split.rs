//! Weighted choice, smooth: of any as many picks in a row as the weights add up to, each
//! destination has its weight.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

/// Most picks that are written down beforehand.
const SCHEDULE: u64 = 16_384;

#[derive(Debug)]
pub enum Split {
    /// Nothing has a weight.
    Nowhere,
    One(usize),
    /// A round of picks, and where it stands.
    Schedule(Box<[u16]>, AtomicUsize),
    /// Too long a round to be written down.
    Running(Box<[u64]>, Mutex<Vec<i128>>),
}

impl Split {
    /// `start`: where in the round to begin, so that tables which are made anew often do not all
    /// begin with the same pick.
    pub fn new(weights: &[u32], start: usize) -> Self {
        let with_weight = || weights.iter().enumerate().filter(|(_, w)| **w > 0);
        let mut all = with_weight();
        match (all.next(), all.next()) {
            (None, _) => return Self::Nowhere,
            (Some((only, _)), None) => return Self::One(only),
            _ => {}
        }
        let common = with_weight().fold(0, |g, (_, w)| gcd(g, u64::from(*w))).max(1);
        let weights: Box<[u64]> = weights.iter().map(|w| u64::from(*w) / common).collect();
        let round: u64 = weights.iter().sum();
        if round > SCHEDULE || weights.len() > usize::from(u16::MAX) {
            let state = vec![0; weights.len()];
            return Self::Running(weights, Mutex::new(state));
        }
        let mut state = vec![0; weights.len()];
        let picks = (0..round).map(|_| u16::try_from(next(&weights, &mut state)).unwrap_or(0));
        Self::Schedule(picks.collect(), AtomicUsize::new(start))
    }

    pub fn pick(&self) -> Option<usize> {
        match self {
            Self::Nowhere => None,
            Self::One(only) => Some(*only),
            Self::Schedule(picks, at) => {
                // A wrap-around of the counter is a jump within the round, once in 2^64 picks.
                let at = at.fetch_add(1, Ordering::Relaxed).checked_rem(picks.len())?;
                picks.get(at).map(|p| usize::from(*p))
            }
            Self::Running(weights, state) => {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                Some(next(weights, &mut state))
            }
        }
    }
}

/// Each gains its weight; the richest is picked, and pays for the round.
fn next(weights: &[u64], credit: &mut [i128]) -> usize {
    let round: u64 = weights.iter().sum();
    let mut best = None;
    for (at, (c, w)) in credit.iter_mut().zip(weights).enumerate() {
        *c += i128::from(*w);
        if *w > 0 && best.is_none_or(|(_, richest)| *c > richest) {
            best = Some((at, *c));
        }
    }
    let at = best.map_or(0, |(at, _)| at);
    if let Some(c) = credit.get_mut(at) {
        *c -= i128::from(round);
    }
    at
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_round_has_each_weight(
            weights in prop::collection::vec(0_u32..20, 1..6),
            start in 0_usize..50,
            skip in 0_usize..50,
        ) {
            let split = Split::new(&weights, start);
            let sum: u32 = weights.iter().sum();
            if sum == 0 {
                prop_assert_eq!(split.pick(), None);
                return Ok(());
            }
            for _ in 0..skip {
                split.pick();
            }
            let mut seen = vec![0; weights.len()];
            for _ in 0..sum {
                seen[split.pick().unwrap_or(usize::MAX)] += 1;
            }
            prop_assert_eq!(seen, weights);
        }
    }

    #[test]
    fn long_rounds_are_fair_too() {
        let split = Split::new(&[99_999, 1], 0);
        let ones = (0..100_000).filter(|_| split.pick() == Some(1)).count();
        assert_eq!(ones, 1);
    }

    #[test]
    fn a_quarter_is_spread_out() {
        let split = Split::new(&[75, 25], 0);
        let picks: Vec<usize> = (0..8).filter_map(|_| split.pick()).collect();
        assert_eq!(picks.iter().filter(|p| **p == 1).count(), 2);
        assert!(picks.windows(2).all(|w| w != [1, 1]));
    }
}
