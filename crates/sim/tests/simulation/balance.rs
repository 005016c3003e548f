//! Endpoints that come, go and become others, answers of every kind, retries and a clock of its own:
//! what every balancer may choose, whom it ejects, and who comes back.
//!
//! The world around it does what a waypoint does: it makes a new set from the one before when
//! something changes, counts a request while it is under way, and tells the set that there is then
//! how it ended.

use crate::{
    endpoints::{Life, Pod, To, World, address, life, policy},
    health::has_room,
};
use routes::{
    balance::{Active, Endpoints, Outcome, Present, hash},
    execute::TrafficPolicy,
    proto::Balancer,
};
use sim::{Run, simulate};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

const STEPS: usize = 300;
/// Hashes that are watched.
const HASHES: u32 = 48;

impl World {
    fn pick(&self, run: &mut Run, hash: Option<u64>, avoid: &[To]) -> Option<To> {
        let chosen = self.set.pick(&self.policy, self.now, &mut run.rng, hash, avoid);
        let fit = self.fit();
        let Some(to) = &chosen else {
            assert!(fit.is_empty(), "nobody is chosen of {fit:?}");
            return None;
        };
        let pod = self.pods.iter().find(|p| p.life == life(to)).expect("it is not there");
        assert_eq!((to.address, to.workload.1), (pod.address, pod.record), "as it was before");
        assert!(fit.contains(&pod.life), "{pod:?} is ejected");
        let avoided = |life: &Life| avoid.iter().any(|a| a.workload.0 == *life);
        let untried = fit.iter().any(|l| !avoided(l));
        assert!(!untried || !avoided(&pod.life), "{pod:?} again, of {fit:?}");
        // Farther than it need be only if all that are near enough have been tried.
        let shares = self.shares();
        let tried_out = shares.keys().any(|d| {
            let there =
                self.pods.iter().filter(|p| self.distance(p) == *d && fit.contains(&p.life));
            there.map(|p| p.life).all(|l| avoided(&l))
        });
        assert!(shares.contains_key(&self.distance(pod)) || tried_out, "{pod:?}, of {shares:?}");
        chosen
    }

    /// Begins a request, maybe a retry.
    fn begin(&mut self, run: &mut Run) -> String {
        let now_there = self.set.all().to_vec();
        let under_way = self.requests.iter().map(|r| r.0.clone()).collect();
        let avoid = match run.pick(&[0, 0, 1, 2]) {
            0 => Vec::new(),
            1 => run.some(now_there),
            _ => run.some(under_way),
        };
        let hash = run.chance(0.8).then(|| hash(&run.pick(&[1_u8, 2, 3, 4]).to_be_bytes()));
        let Some(to) = self.pick(run, hash, &avoid) else { return "nobody to ask".to_owned() };
        let what = format!("{} is asked, {} avoided", life(&to), avoid.len());
        self.requests.push(Active::new(to));
        what
    }

    /// A request ends, as well as its endpoint is.
    fn end(&mut self, run: &mut Run) -> String {
        let numbers: Vec<usize> = (0..self.requests.len()).collect();
        if numbers.is_empty() {
            return "nothing is under way".to_owned();
        }
        let request = self.requests.swap_remove(run.pick(&numbers));
        let life = life(&request.0);
        let sick = self.pods.iter().any(|p| p.life == life && p.sick);
        let outcome = match run.chance(if sick { 0.95 } else { 0.1 }) {
            true => run.pick(&[
                Outcome::Status(500),
                Outcome::Status(503),
                Outcome::Status(504),
                Outcome::Local,
            ]),
            false => run.pick(&[Outcome::Status(200), Outcome::Status(404)]),
        };
        let Some(outlier) = &self.policy.outlier else { return format!("{life}: {outcome:?}") };
        let room = has_room(outlier, self.pods.len(), self.ejected());
        let ejected = match self.health.get_mut(&life) {
            Some(health) => {
                let out = health.count(outlier, outcome, self.now) && room;
                if out {
                    health.eject(outlier, self.now);
                }
                out
            }
            // It has gone meanwhile.
            None => false,
        };
        let said = self.set.report(&request.0, outlier, outcome, self.now);
        assert_eq!(said, ejected, "{life}, after {outcome:?}: whether it is ejected");
        format!("{life}: {outcome:?}, ejected: {ejected}")
    }

    /// What holds always.
    fn check(&self) {
        let there: BTreeSet<Life> = self.set.all().iter().map(life).collect();
        assert_eq!(there, self.pods.iter().map(|p| p.life).collect());
        for e in self.set.all() {
            let ejected = self.health[&life(e)].is_ejected(self.now);
            assert_eq!(e.is_ejected(self.now), ejected, "{}: whether it is ejected", life(e));
            let under_way = self.requests.iter().filter(|r| life(&r.0) == life(e)).count();
            assert_eq!(e.active() as usize, under_way, "{}: requests under way", life(e));
        }
    }

    /// A hash goes where it went, but for what has gone from there and what has come to be chosen.
    /// `moved`: one is at another distance, maybe.
    fn check_homes(&mut self, run: &mut Run, moved: bool) {
        let fit = self.fit();
        let homes: Vec<Option<Life>> = (0..HASHES)
            .map(|n| self.pick(run, Some(hash(&n.to_be_bytes())), &[]).map(|to| life(&to)))
            .collect();
        // Between distances it also goes by what each can take.
        let shares = self.shares();
        let moved = self.policy.locality.is_some() && (moved || shares != self.shares_then);
        for (now, before) in homes.iter().zip(&self.homes) {
            let (Some(now), Some(before)) = (now, before) else { continue };
            let reason = !fit.contains(before) || !self.fit_then.contains(now);
            assert!(now == before || reason || moved, "a hash went from {before} to {now}");
        }
        (self.homes, self.fit_then, self.shares_then) = (homes, fit, shares);
    }

    /// Many in a row: everybody has a part, and as much as is due.
    fn check_many(&mut self, run: &mut Run) {
        let shares = self.shares();
        let fit = self.fit();
        let of: Vec<&Pod> = self
            .pods
            .iter()
            .filter(|p| fit.contains(&p.life) && shares.contains_key(&self.distance(p)))
            .collect();
        let mut ask = |times: usize| {
            let mut count: BTreeMap<Life, usize> = BTreeMap::new();
            for _ in 0..times {
                let to = self.set.pick(&self.policy, self.now, &mut run.rng, None, &[]).unwrap();
                *count.entry(life(&to)).or_default() += 1;
            }
            count
        };
        if self.policy.balancer == Balancer::RoundRobin && shares.len() == 1 {
            let round = ask(of.len());
            assert!(round.len() == of.len(), "{round:?} of {of:?}");
        }
        // What is shared where all are short differs little.
        let is_short = shares.len() > 1 && self.levels().values().sum::<usize>() < 100;
        let many = of.len() * if is_short { 4000 } else { 400 };
        let count = ask(many);
        let got = |of: &Pod| count.get(&of.life).copied().unwrap_or_default();
        for (distance, share) in &shares {
            let there = of.iter().filter(|p| self.distance(p) == *distance);
            let got = 100.0 * there.map(|p| got(p)).sum::<usize>() as f64 / many as f64;
            // Six standard deviations.
            let near = 6.0 * (share * (100.0 - share) / many as f64).sqrt();
            assert!((got - share).abs() <= near, "{distance}: {got} % for {share} %, {shares:?}");
        }
        assert!(of.iter().all(|p| got(p) > 0), "{count:?} of {of:?}");
    }
}

fn play(balancer: Balancer) {
    simulate(|run| {
        let mut w = World::new(run, balancer);
        let begun = w.now;
        run.note(format!("{:?}", w.policy));
        for _ in 0..STEPS {
            let event = run.pick(&[0, 1, 2, 2, 2, 2, 3, 3, 3, 3]);
            let what = match event {
                0 => w.change(run),
                1 => {
                    w.now += Duration::from_secs(run.pick(&[0, 1, 4, 5, 11, 60, 301]));
                    "later".to_owned()
                }
                2 => w.begin(run),
                _ => w.end(run),
            };
            run.note(format!("{:5} s: {what}", (w.now - begun).as_secs()));
            w.check();
            if balancer == Balancer::ConsistentHash {
                w.check_homes(run, event == 0);
            } else if run.chance(0.1) && !w.fit().is_empty() {
                w.check_many(run);
            }
        }
        while !w.requests.is_empty() {
            w.end(run);
            w.check();
        }
        // With time, all come back.
        w.now += Duration::from_secs(401);
        assert!(w.set.all().iter().all(|e| e.active() == 0 && !e.is_ejected(w.now)));
    });
}

#[test]
fn round_robin_takes_turns_among_those_who_are_well() {
    play(Balancer::RoundRobin);
}

#[test]
fn least_request_chooses_among_those_who_are_well() {
    play(Balancer::LeastRequest);
}

#[test]
fn random_chooses_among_those_who_are_well() {
    play(Balancer::Random);
}

#[test]
fn a_hash_stays_where_it_is_while_it_can() {
    play(Balancer::ConsistentHash);
}

/// One more takes its own share from all, and moves nothing between the others.
#[test]
fn who_comes_takes_its_share_of_hashes_and_no_more() {
    const KEYS: u32 = 1000;
    simulate(|run| {
        let policy = TrafficPolicy { outlier: None, ..policy(run, Balancer::ConsistentHash) };
        let set_of = |count: u8, before: &Endpoints<(Life, u32)>| {
            let present = (0..count).map(|n| Present {
                key: n.to_string(),
                workload: (n.into(), 0),
                address: address(n),
                distance: 0,
            });
            Endpoints::new(present.collect(), before, &policy, 0)
        };
        let salt = run.pick(&[1_u64, 2, 3, 4]) << 32;
        let mut before = set_of(1, &Endpoints::default());
        for count in 2..=12 {
            let after = set_of(count, &before);
            let mut home = |set: &Endpoints<_>, key: u32| {
                let h = hash(&(salt + u64::from(key)).to_be_bytes());
                life(&set.pick(&policy, Instant::now(), &mut run.rng, Some(h), &[]).unwrap())
            };
            let moved: Vec<Life> = (0..KEYS)
                .map(|key| (home(&before, key), home(&after, key)))
                .filter(|(then, now)| then != now)
                .map(|(_, now)| now)
                .collect();
            let elsewhere = moved.iter().filter(|to| **to != u64::from(count) - 1).count();
            assert_eq!(elsewhere, 0, "of {} that moved, with {count} endpoints", moved.len());
            let share = f64::from(KEYS) / f64::from(count);
            assert!((moved.len() as f64) < 1.8 * share, "{} moved for {share}", moved.len());
            before = after;
        }
    });
}
