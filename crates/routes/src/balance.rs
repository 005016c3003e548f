//! Which endpoint gets a request, and which get none for a while. No clock and no chance of its own:
//! both are handed in.

use crate::{
    execute::{Outlier, TrafficPolicy},
    proto::Balancer,
};
use rand::Rng;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// An endpoint's state; it lives as long as somebody sends there.
#[derive(Debug)]
pub struct Endpoint<W> {
    pub workload: W,
    pub address: SocketAddr,
    /// 0 is the nearest.
    pub distance: u8,
    key: String,
    /// Shared with the endpoint of the set before: requests under way end there.
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    active: AtomicU32,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    errors: u32,
    gateway_errors: u32,
    local_errors: u32,
    ejected_until: Option<Instant>,
    /// How often it was ejected lately: each time is longer.
    ejections: u32,
}

/// How an attempt ended, as far as the endpoint is to blame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The status of its answer.
    Status(u16),
    /// No answer: the connection could not be made, or broke, or time ran out.
    Local,
}

/// Longest ejection, unless the base is longer (Envoy's `max_ejection_time`).
const LONGEST: Duration = Duration::from_secs(300);

impl<W> Endpoint<W> {
    pub fn active(&self) -> u32 {
        self.state.active.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.state.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_ejected(&self, now: Instant) -> bool {
        self.lock().is_ejected(now)
    }
}

impl Health {
    fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| now < until)
    }
}

/// A request under way at an endpoint.
pub struct Active<W>(pub Arc<Endpoint<W>>);

impl<W> Active<W> {
    pub fn new(endpoint: Arc<Endpoint<W>>) -> Self {
        endpoint.state.active.fetch_add(1, Ordering::Relaxed);
        Self(endpoint)
    }
}

impl<W> Drop for Active<W> {
    fn drop(&mut self) {
        self.0.state.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The endpoints of one port of one subset.
pub struct Endpoints<W> {
    all: Vec<Arc<Endpoint<W>>>,
    turn: AtomicUsize,
    /// Points of a hash ring, in order.
    ring: Vec<(u64, usize)>,
    ejecting: Mutex<()>,
}

/// Whether an endpoint may be chosen.
type Fits<'a, W> = dyn Fn(&Arc<Endpoint<W>>) -> bool + 'a;

impl<W> Default for Endpoints<W> {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            turn: AtomicUsize::new(0),
            ring: Vec::new(),
            ejecting: Mutex::default(),
        }
    }
}

/// One that there is now.
pub struct Present<W> {
    /// What it is known by from one set to the next.
    pub key: String,
    pub workload: W,
    pub address: SocketAddr,
    pub distance: u8,
}

impl<W> Endpoints<W> {
    /// A set of those that are there now; whoever was there before keeps its health. `start` is
    /// where turns begin.
    pub fn new(
        present: Vec<Present<W>>,
        before: &Self,
        policy: &TrafficPolicy,
        start: usize,
    ) -> Self {
        let old: HashMap<(&str, SocketAddr), &Arc<Endpoint<W>>> =
            before.all.iter().map(|e| ((e.key.as_str(), e.address), e)).collect();
        let mut all: Vec<Arc<Endpoint<W>>> = present
            .into_iter()
            .map(|p| {
                let known = old.get(&(p.key.as_str(), p.address));
                let state = known.map(|e| e.state.clone()).unwrap_or_default();
                Arc::new(Endpoint {
                    workload: p.workload,
                    address: p.address,
                    distance: p.distance,
                    key: p.key,
                    state,
                })
            })
            .collect();
        all.sort_by(|a, b| (a.distance, &a.key, a.address).cmp(&(b.distance, &b.key, b.address)));
        let ring = match &policy.hash {
            Some(hash) if policy.balancer == Balancer::ConsistentHash => {
                ring(&all, hash.minimum_ring_size)
            }
            _ => Vec::new(),
        };
        Self { all, turn: AtomicUsize::new(start), ring, ejecting: Mutex::default() }
    }

    pub fn all(&self) -> &[Arc<Endpoint<W>>] {
        &self.all
    }

    /// One to send to. `hash` counts with a consistent hash; `avoid` are those that have been tried,
    /// taken again only where there is no other.
    pub fn pick(
        &self,
        policy: &TrafficPolicy,
        now: Instant,
        rng: &mut impl Rng,
        hash: Option<u64>,
        avoid: &[Arc<Endpoint<W>>],
    ) -> Option<Arc<Endpoint<W>>> {
        let ejecting = policy.outlier.as_ref().filter(|o| !self.is_panic(o, now));
        let usable = |e: &Arc<Endpoint<W>>| ejecting.is_none() || !e.is_ejected(now);
        let tried = |e: &Arc<Endpoint<W>>| avoid.iter().any(|a| Arc::ptr_eq(&a.state, &e.state));
        let hash = hash.filter(|_| !self.ring.is_empty());
        let distance = self.distance(policy, usable, |below| match hash {
            // The same hash goes to the same distance.
            Some(hash) => hash % below,
            None => rng.random_range(0..below),
        });
        let near = |e: &Arc<Endpoint<W>>| usable(e) && distance.is_none_or(|d| d == e.distance);
        let untried = self.all.iter().find(|e| usable(e) && !tried(e)).map(|e| e.distance);
        // Where the near have been tried, the nearest that has not.
        let farther = |e: &Arc<Endpoint<W>>| usable(e) && !tried(e) && untried == Some(e.distance);
        let ways: [&Fits<'_, W>; 3] = [&|e| near(e) && !tried(e), &farther, &near];
        ways.into_iter().find_map(|fits| match hash {
            Some(hash) => self.from(hash).find(|e| fits(e)).cloned(),
            None => self.balanced(policy.balancer, rng, fits),
        })
    }

    /// The endpoints of the ring's points, from a hash on and once around.
    fn from(&self, hash: u64) -> impl Iterator<Item = &Arc<Endpoint<W>>> {
        let at = self.ring.partition_point(|(point, _)| *point < hash);
        let (before, after) = (self.ring.get(..at), self.ring.get(at..));
        after.into_iter().chain(before).flatten().filter_map(|(_, i)| self.all.get(*i))
    }

    fn balanced(
        &self,
        balancer: Balancer,
        rng: &mut impl Rng,
        fits: &Fits<'_, W>,
    ) -> Option<Arc<Endpoint<W>>> {
        let of: Vec<&Arc<Endpoint<W>>> = self.all.iter().filter(|e| fits(e)).collect();
        let mut random = || of.get(rng.random_range(0..of.len().max(1))).copied().cloned();
        match balancer {
            Balancer::RoundRobin => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                of.get(turn.checked_rem(of.len())?).copied().cloned()
            }
            Balancer::Random => random(),
            // Of two at random the one that has less to do (Envoy's default choice count).
            _ => {
                let (a, b) = (random()?, random()?);
                Some(if b.active() < a.active() { b } else { a })
            }
        }
    }

    /// How far those are that are chosen among: the nearest, as far as enough of them are fit; what
    /// they cannot take goes to the next (Envoy's priority levels, with its overprovisioning of 1.4).
    /// `draw` gives a number below another. None: it does not matter.
    fn distance(
        &self,
        policy: &TrafficPolicy,
        usable: impl Fn(&Arc<Endpoint<W>>) -> bool,
        draw: impl FnOnce(u64) -> u64,
    ) -> Option<u8> {
        policy.locality.as_ref()?;
        let mut left = 100;
        let mut shares: Vec<(u8, u64)> = Vec::new();
        for level in self.all.chunk_by(|a, b| a.distance == b.distance) {
            let of = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            let fit = of(level.iter().filter(|e| usable(e)).count());
            let share = (fit.saturating_mul(140) / of(level.len())).min(left);
            left -= share;
            shares.extend(level.first().map(|e| (e.distance, share)));
            if left == 0 {
                break;
            }
        }
        // Where all together are short, they share it as far as they are fit.
        let whole = 100 - left;
        let mut draw = if whole == 0 { return None } else { draw(whole) };
        let chosen = shares.into_iter().find(|(_, share)| {
            let is_here = draw < *share;
            draw = draw.saturating_sub(*share);
            is_here
        });
        chosen.map(|(distance, _)| distance)
    }

    /// Hears how an attempt ended. The answer is whether the endpoint was ejected for it.
    pub fn report(
        &self,
        endpoint: &Endpoint<W>,
        outlier: &Outlier,
        outcome: Outcome,
        now: Instant,
    ) -> bool {
        let mut health = endpoint.lock();
        if health.is_ejected(now) {
            // It was asked before; what it is like now will be seen when it is back.
            return false;
        }
        let local_counts = outlier.split_local;
        match outcome {
            Outcome::Status(status) if status < 500 => {
                (health.errors, health.gateway_errors, health.local_errors) = (0, 0, 0);
                return false;
            }
            Outcome::Status(status) => {
                health.errors += 1;
                health.local_errors = 0;
                health.gateway_errors = match status {
                    502..=504 => health.gateway_errors + 1,
                    _ => 0,
                };
            }
            Outcome::Local if local_counts => health.local_errors += 1,
            // Taken for a status of 503.
            Outcome::Local => {
                health.errors += 1;
                health.gateway_errors += 1;
            }
        }
        let over = |count: u32, limit: u32| limit > 0 && count >= limit;
        let bad = over(health.errors, outlier.consecutive_5xx)
            || over(health.gateway_errors, outlier.consecutive_gateway)
            || local_counts && over(health.local_errors, outlier.consecutive_local);
        drop(health);
        if !bad {
            return false;
        }
        // One at a time: two together would be more than may be ejected.
        let _one = self.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let may = self.may_eject(endpoint, outlier, now);
        let mut health = endpoint.lock();
        if !may || health.is_ejected(now) {
            return false;
        }
        // Envoy forgets one ejection per interval between them.
        if let Some(until) = health.ejected_until {
            let between = now.saturating_duration_since(until).as_nanos();
            let quiet = between / outlier.interval.as_nanos().max(1);
            let quiet = u32::try_from(quiet).unwrap_or(u32::MAX);
            health.ejections = health.ejections.saturating_sub(quiet);
        }
        health.ejections += 1;
        let time = outlier.base_ejection.saturating_mul(health.ejections);
        health.ejected_until = Some(now + time.min(LONGEST.max(outlier.base_ejection)));
        (health.errors, health.gateway_errors, health.local_errors) = (0, 0, 0);
        true
    }

    /// One at least, and no more than the share that is allowed; none where too few are well, and none
    /// that is gone.
    fn may_eject(&self, endpoint: &Endpoint<W>, outlier: &Outlier, now: Instant) -> bool {
        let ejected = self.ejected(now);
        let most = usize::try_from(outlier.max_ejection_percent).unwrap_or(100);
        let in_bounds = ejected == 0 || (ejected + 1) * 100 <= most * self.all.len();
        let is_here = self.all.iter().any(|e| Arc::ptr_eq(&e.state, &endpoint.state));
        in_bounds && is_here && !self.is_panic(outlier, now)
    }

    fn ejected(&self, now: Instant) -> usize {
        self.all.iter().filter(|e| e.is_ejected(now)).count()
    }

    /// So few are well that those who are not are needed, too (Istio's `minHealthPercent`).
    fn is_panic(&self, outlier: &Outlier, now: Instant) -> bool {
        let least = usize::try_from(outlier.min_health_percent).unwrap_or(0);
        let all = self.all.len();
        least > 0 && all.saturating_sub(self.ejected(now)) * 100 < least * all
    }
}

/// Points of one endpoint, where nothing is said: eight have a ring of Istio's default of 1024.
const POINTS: u64 = 128;

/// Of each endpoint as many points whatever the others, so that one more or less moves none of
/// theirs.
fn ring<W>(all: &[Arc<Endpoint<W>>], minimum: u64) -> Vec<(u64, usize)> {
    let each = minimum.div_ceil(8).clamp(POINTS, 8 * POINTS);
    let mut ring: Vec<(u64, usize)> = all
        .iter()
        .enumerate()
        .flat_map(|(i, e)| {
            (0..each).map(move |n| (hash(format!("{}_{n}", e.address).as_bytes()), i))
        })
        .collect();
    ring.sort_unstable();
    ring
}

/// The same for all proxies: FNV-1a, mixed as MurmurHash3 ends.
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (fnv ^ fnv >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ mixed >> 33
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::execute::{HashKey, HashOf, Locality};
    use rand::{SeedableRng as _, rngs::SmallRng};

    fn policy(balancer: Balancer) -> TrafficPolicy {
        let d = crate::proto::Destination {
            ports: vec![crate::proto::DestinationPort {
                port: 80,
                policy: Some(crate::proto::TrafficPolicy {
                    balancer: balancer as i32,
                    ..Default::default()
                }),
                ..Default::default()
            }],
            ..Default::default()
        };
        let d = crate::execute::Destination::load(&d).unwrap();
        d.port("", 80).unwrap().0.policy.clone()
    }

    fn outlier() -> Outlier {
        Outlier {
            consecutive_5xx: 3,
            consecutive_gateway: 0,
            consecutive_local: 5,
            split_local: false,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection_percent: 50,
            min_health_percent: 0,
        }
    }

    fn some(distances: &[u8], policy: &TrafficPolicy) -> Endpoints<()> {
        let present = distances
            .iter()
            .enumerate()
            .map(|(i, distance)| Present {
                key: i.to_string(),
                workload: (),
                address: SocketAddr::from(([10, 0, 0, u8::try_from(i).unwrap()], 80)),
                distance: *distance,
            })
            .collect();
        Endpoints::new(present, &Endpoints::default(), policy, 0)
    }

    fn last(e: &Endpoint<()>) -> u8 {
        match e.address {
            SocketAddr::V4(a) => a.ip().octets()[3],
            SocketAddr::V6(_) => panic!(),
        }
    }

    #[test]
    fn turns_are_taken_in_order() {
        let p = policy(Balancer::RoundRobin);
        let e = some(&[0, 0, 0], &p);
        let (now, mut rng) = (Instant::now(), SmallRng::seed_from_u64(1));
        let picks: Vec<u8> =
            (0..6).map(|_| last(&e.pick(&p, now, &mut rng, None, &[]).unwrap())).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn the_busy_get_less() {
        let p = policy(Balancer::LeastRequest);
        let e = some(&[0, 0], &p);
        let _busy: Vec<Active<()>> = (0..10).map(|_| Active::new(e.all()[0].clone())).collect();
        let (now, mut rng) = (Instant::now(), SmallRng::seed_from_u64(1));
        let of_busy =
            (0..1000).filter(|_| last(&e.pick(&p, now, &mut rng, None, &[]).unwrap()) == 0).count();
        // Only where both draws fall on it.
        assert!((150..350).contains(&of_busy), "{of_busy}");
    }

    #[test]
    fn a_retry_goes_elsewhere_while_there_is_an_elsewhere() {
        let p = policy(Balancer::Random);
        let e = some(&[0, 0, 0], &p);
        let (now, mut rng) = (Instant::now(), SmallRng::seed_from_u64(1));
        let mut tried = Vec::new();
        for _ in 0..3 {
            tried.push(e.pick(&p, now, &mut rng, None, &tried).unwrap());
        }
        let mut numbers: Vec<u8> = tried.iter().map(|e| last(e)).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2]);
        assert!(e.pick(&p, now, &mut rng, None, &tried).is_some());
    }

    #[test]
    fn errors_in_a_row_eject_and_time_brings_back() {
        let mut p = policy(Balancer::Random);
        p.outlier = Some(outlier());
        let e = some(&[0, 0], &p);
        let o = p.outlier.clone().unwrap();
        let (start, mut rng) = (Instant::now(), SmallRng::seed_from_u64(1));
        let at = |s: u64| start + Duration::from_secs(s);
        let bad = e.all()[0].clone();
        assert!(!e.report(&bad, &o, Outcome::Status(500), at(0)));
        assert!(!e.report(&bad, &o, Outcome::Status(500), at(0)));
        assert!(!e.report(&bad, &o, Outcome::Status(200), at(0)));
        assert!(!e.report(&bad, &o, Outcome::Status(503), at(0)));
        assert!(!e.report(&bad, &o, Outcome::Local, at(0)));
        assert!(e.report(&bad, &o, Outcome::Status(500), at(0)));
        for _ in 0..50 {
            assert_eq!(last(&e.pick(&p, at(29), &mut rng, None, &[]).unwrap()), 1);
        }
        // The share that may be ejected is used up.
        for _ in 0..9 {
            assert!(!e.report(&e.all()[1], &o, Outcome::Status(500), at(1)));
        }
        assert!(!bad.is_ejected(at(31)));
        for _ in 0..2 {
            e.report(&bad, &o, Outcome::Status(500), at(31));
        }
        assert!(e.report(&bad, &o, Outcome::Status(500), at(31)));
        // The second time is twice as long; and a new set remembers.
        assert!(bad.is_ejected(at(31 + 59)) && !bad.is_ejected(at(31 + 61)));
        let present = e
            .all()
            .iter()
            .map(|x| Present { key: x.key.clone(), workload: (), address: x.address, distance: 0 })
            .collect();
        let e = Endpoints::new(present, &e, &p, 0);
        assert!(e.all()[0].is_ejected(at(40)));
    }

    #[test]
    fn the_far_get_what_the_near_cannot_take() {
        let mut p = policy(Balancer::Random);
        p.outlier = Some(Outlier { max_ejection_percent: 100, ..outlier() });
        p.locality = Some(Locality { failover: Default::default() });
        let e = some(&[0, 0, 1], &p);
        let o = p.outlier.clone().unwrap();
        let (now, mut rng) = (Instant::now(), SmallRng::seed_from_u64(1));
        let mut far = |e: &Endpoints<()>| {
            (0..1000).filter(|_| last(&e.pick(&p, now, &mut rng, None, &[]).unwrap()) == 2).count()
        };
        assert_eq!(far(&e), 0);
        for _ in 0..3 {
            e.report(&e.all()[0], &o, Outcome::Status(500), now);
        }
        // Half of the near, times 1.4.
        let some_of_it = far(&e);
        assert!((250..350).contains(&some_of_it), "{some_of_it}");
        for _ in 0..3 {
            e.report(&e.all()[1], &o, Outcome::Status(500), now);
        }
        assert_eq!(far(&e), 1000);
    }

    #[test]
    fn a_hash_stays_where_it_was_when_others_leave() {
        let mut p = policy(Balancer::ConsistentHash);
        p.hash = Some(HashKey { of: HashOf::SourceIp, minimum_ring_size: 0 });
        let five = some(&[0; 5], &p);
        let four = some(&[0; 4], &p);
        let (now, mut rng) = (Instant::now(), SmallRng::seed_from_u64(1));
        let mut moved = 0;
        for n in 0..1000_u32 {
            let h = Some(hash(&n.to_be_bytes()));
            let before = last(&five.pick(&p, now, &mut rng, h, &[]).unwrap());
            let again = last(&five.pick(&p, now, &mut rng, h, &[]).unwrap());
            assert_eq!(before, again);
            let after = last(&four.pick(&p, now, &mut rng, h, &[]).unwrap());
            if before != 4 {
                moved += usize::from(after != before);
            }
        }
        assert_eq!(moved, 0);
    }
}
