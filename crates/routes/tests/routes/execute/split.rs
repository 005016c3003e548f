//! Weights, as many threads see them.

use super::{get, port, table};
use routes::execute::{Action, Split};
use std::sync::atomic::{AtomicU64, Ordering};

/// Of a chi-squared variable with so many degrees of freedom, less than 0.001 lies above.
const CRITICAL: [f64; 5] = [f64::INFINITY, 10.828, 13.816, 16.266, 18.467];

fn chi_squared(seen: &[u64], weights: &[u32]) -> f64 {
    let total: u64 = seen.iter().sum();
    let sum: u32 = weights.iter().sum();
    let share = |w: u32| total as f64 * f64::from(w) / f64::from(sum);
    let term = |(seen, w): (&u64, &u32)| (*seen as f64 - share(*w)).powi(2) / share(*w);
    seen.iter().zip(weights).map(term).sum()
}

/// Picks of 8 threads at once, by what they picked.
fn picks(of: usize, each: usize, pick: impl Fn() -> usize + Sync) -> Vec<u64> {
    let seen: Vec<AtomicU64> = (0..of).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                for _ in 0..each {
                    seen[pick()].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    seen.into_iter().map(AtomicU64::into_inner).collect()
}

#[test]
fn many_threads_see_the_weights() {
    for weights in [
        &[50, 50][..],
        &[90, 10],
        &[70, 20, 9, 1],
        &[1, 1, 1, 1, 1],
        // Rounds too long to be written down.
        &[33_333, 66_667],
        &[50_001, 30_000, 15_000, 4_999],
    ] {
        for start in [0, 17] {
            let split = Split::new(weights, start);
            // No whole number of rounds.
            let seen = picks(weights.len(), 12_347, || split.pick().unwrap());
            let chi = chi_squared(&seen, weights);
            assert!(chi < CRITICAL[weights.len() - 1], "{weights:?}: {seen:?}, {chi}");
        }
    }
}

#[test]
fn whole_rounds_of_many_threads_are_exact() {
    let split = Split::new(&[70, 20, 9, 1], 5);
    let seen = picks(4, 1_000, || split.pick().unwrap());
    assert_eq!(seen, [5_600, 1_600, 720, 80]);
}

#[test]
fn a_compiled_route_is_split_by_its_weights() {
    let t = table(
        "{route: [{destination: {host: reviews}, weight: 75},
                  {destination: {host: ratings}, weight: 25},
                  {destination: {host: nowhere}, weight: 0}]}",
    );
    let ask = get("/");
    let (route, _) = port(&t).route(&ask.view()).unwrap();
    let Action::Forward(f) = &route.action else { panic!("{route:?}") };
    let seen = picks(3, 2_501, || match f.pick().unwrap().target.service.hostname.as_str() {
        "reviews.shop.svc.cluster.local" => 0,
        "ratings.shop.svc.cluster.local" => 1,
        _ => 2,
    });
    assert_eq!(seen[2], 0);
    let chi = chi_squared(&seen[..2], &[75, 25]);
    assert!(chi < CRITICAL[1], "{seen:?}, {chi}");
}

#[test]
fn one_destination_has_everything_whatever_its_weight() {
    let t = table("{route: [{destination: {host: ratings}, weight: 0}]}");
    let ask = get("/");
    let (route, _) = port(&t).route(&ask.view()).unwrap();
    let Action::Forward(f) = &route.action else { panic!("{route:?}") };
    assert!(f.pick().is_some());
}
