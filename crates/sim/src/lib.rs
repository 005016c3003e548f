//! Runs a world from seeds: each seed is one order of events, and a seed that fails is named, with
//! the events that led there, so that it can be run again alone.
//!
//! `CULVERT_SIM_SEEDS=<n>` runs so many random seeds beside the fixed ones, `CULVERT_SIM_SEED=<seed>`
//! only that one.
#![allow(clippy::panic)]

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};
use std::{
    env,
    panic::{self, AssertUnwindSafe},
};

/// Run each time: what has passed once must go on passing.
const FIXED: std::ops::Range<u64> = 0..64;
const RANDOM: u64 = 64;
/// Of a failing seed's events, so many are shown.
const SHOWN: usize = 60;

/// One run: its dice, and what has happened so far.
pub struct Run {
    pub rng: SmallRng,
    events: Vec<String>,
}

impl Run {
    pub fn new(seed: u64) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed), events: Vec::new() }
    }

    /// Remembers an event, to be shown should the run fail.
    pub fn note(&mut self, event: String) {
        self.events.push(event);
    }

    /// Whether something of this probability happens.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.rng.random_bool(probability)
    }

    /// # Panics
    /// Without anything to choose from.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let Some(chosen) = from.choose(&mut self.rng) else { panic!("nothing to choose from") };
        *chosen
    }

    /// Some of them, in their order; all, one in three times.
    pub fn some<T>(&mut self, mut of: Vec<T>) -> Vec<T> {
        if !self.chance(0.33) {
            of.retain(|_| self.rng.random_bool(0.5));
        }
        of
    }
}

/// Plays `world` with every seed.
///
/// # Panics
/// As the world did, with the first seed that failed.
pub fn simulate(world: impl Fn(&mut Run)) {
    for seed in seeds() {
        let mut run = Run::new(seed);
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| world(&mut run)));
        if let Err(panic) = outcome {
            let first = run.events.len().saturating_sub(SHOWN);
            for (n, event) in run.events.iter().enumerate().skip(first) {
                eprintln!("{n:5} {event}");
            }
            eprintln!("seed {seed} failed; CULVERT_SIM_SEED={seed} runs it again, alone");
            panic::resume_unwind(panic);
        }
    }
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| -> Option<u64> {
        let text = env::var(name).ok()?;
        match text.parse() {
            Ok(n) => Some(n),
            Err(_) => panic!("{name}={text} is not a number"),
        }
    };
    if let Some(seed) = number("CULVERT_SIM_SEED") {
        return vec![seed];
    }
    let random = number("CULVERT_SIM_SEEDS").unwrap_or(RANDOM);
    FIXED.chain((0..random).map(|_| rand::random())).collect()
}
