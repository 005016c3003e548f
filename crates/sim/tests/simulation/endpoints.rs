//! Endpoints that come, go and become others, as plainly as possible: who is there, who may be chosen,
//! and what each distance gets.

use crate::health::{Health, is_panic};
use routes::{
    balance::{Active, Endpoint, Endpoints, Present},
    execute::{HashKey, HashOf, Locality, Outlier, TrafficPolicy},
    proto::Balancer,
};
use sim::Run;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// Pods at a time.
const MOST: usize = 8;

/// One life of a pod at one address: what has its key and address is the same to the balancer.
pub type Life = u64;

#[derive(Clone, Debug)]
pub struct Pod {
    pub life: Life,
    pub key: String,
    pub address: SocketAddr,
    /// Its record's version: a change of it is no new life.
    pub record: u32,
    pub distance: u8,
    /// It fails nearly always.
    pub sick: bool,
}

pub struct World {
    pub policy: TrafficPolicy,
    pub set: Endpoints<(Life, u32)>,
    pub pods: Vec<Pod>,
    pub health: BTreeMap<Life, Health>,
    pub requests: Vec<Active<(Life, u32)>>,
    /// Where each hash went when it was last looked at, who could be chosen then, and what each
    /// distance had.
    pub homes: Vec<Option<Life>>,
    pub fit_then: BTreeSet<Life>,
    pub shares_then: BTreeMap<u8, f64>,
    lives: Life,
    /// How many of them are sick.
    sickness: f64,
    pub now: Instant,
}

pub type To = Arc<Endpoint<(Life, u32)>>;

pub fn life(to: &To) -> Life {
    to.workload.0
}

pub fn policy(run: &mut Run, balancer: Balancer) -> TrafficPolicy {
    let seconds = |run: &mut Run, of: &[u64]| Duration::from_secs(run.pick(of));
    let outlier = run.chance(0.8).then(|| Outlier {
        consecutive_5xx: run.pick(&[0, 1, 3, 5]),
        consecutive_gateway: run.pick(&[0, 2, 3]),
        consecutive_local: run.pick(&[0, 1, 3]),
        split_local: run.chance(0.5),
        interval: seconds(run, &[1, 10, 100]),
        base_ejection: seconds(run, &[5, 30, 200, 400]),
        max_ejection_percent: run.pick(&[1, 10, 34, 50, 80, 100]),
        min_health_percent: run.pick(&[0, 0, 30, 50, 100]),
    });
    let near_first = outlier.is_some() && run.chance(0.5);
    TrafficPolicy {
        balancer,
        hash: (balancer == Balancer::ConsistentHash)
            .then_some(HashKey { of: HashOf::SourceIp, minimum_ring_size: 0 }),
        locality: near_first.then(|| Locality { failover: BTreeMap::new() }),
        connect_timeout: Duration::from_secs(10),
        idle_timeout: None,
        max_connections: None,
        max_pending: None,
        max_requests: None,
        max_requests_per_connection: None,
        max_retries: None,
        retry_budget: None,
        outlier,
        upgrade_to_http2: false,
        use_client_protocol: false,
        tls: None,
    }
}

impl World {
    pub fn new(run: &mut Run, balancer: Balancer) -> Self {
        Self {
            policy: policy(run, balancer),
            set: Endpoints::default(),
            pods: Vec::new(),
            health: BTreeMap::new(),
            requests: Vec::new(),
            homes: Vec::new(),
            fit_then: BTreeSet::new(),
            shares_then: BTreeMap::new(),
            lives: 0,
            sickness: run.pick(&[0.2, 0.5, 0.9]),
            now: Instant::now(),
        }
    }

    /// A pod that was not there before, at an address that may have been another's.
    fn born(&mut self, run: &mut Run) -> Pod {
        self.lives += 1;
        let free: Vec<u8> = (1..=MOST as u8 + 2)
            .filter(|n| self.pods.iter().all(|p| p.address != address(*n)))
            .collect();
        Pod {
            life: self.lives,
            key: format!("uid-{}", self.lives),
            address: address(run.pick(&free)),
            record: 0,
            distance: run.pick(&[0, 0, 1, 4]),
            sick: run.chance(self.sickness),
        }
    }

    /// Something about the pods changes.
    pub fn change(&mut self, run: &mut Run) -> String {
        let numbers: Vec<usize> = (0..self.pods.len()).collect();
        let what = if numbers.is_empty() || numbers.len() < MOST && run.chance(0.4) {
            let pod = self.born(run);
            self.pods.push(pod.clone());
            format!("{pod:?} comes")
        } else {
            let n = run.pick(&numbers);
            match run.pick(&[0, 1, 2, 3]) {
                0 => format!("{:?} goes", self.pods.remove(n)),
                1 => {
                    let new = Pod { address: self.pods[n].address, ..self.born(run) };
                    self.pods[n] = new.clone();
                    format!("its address is now that of {new:?}")
                }
                2 => {
                    self.pods[n].record += 1;
                    self.pods[n].distance = run.pick(&[0, 1, 4]);
                    format!("it is now {:?}", self.pods[n])
                }
                _ => {
                    self.pods[n].sick = !self.pods[n].sick;
                    format!("it is now {:?}", self.pods[n])
                }
            }
        };
        let present = self.pods.iter().map(|p| Present {
            key: p.key.clone(),
            workload: (p.life, p.record),
            address: p.address,
            distance: p.distance,
        });
        let start = run.pick(&[0, 1, 65_535]);
        self.set = Endpoints::new(present.collect(), &self.set, &self.policy, start);
        self.health.retain(|life, _| self.pods.iter().any(|p| p.life == *life));
        for p in &self.pods {
            self.health.entry(p.life).or_default();
        }
        what
    }

    pub fn ejected(&self) -> usize {
        self.health.values().filter(|h| h.is_ejected(self.now)).count()
    }

    /// Who may be chosen.
    pub fn fit(&self) -> BTreeSet<Life> {
        let outlier = self.policy.outlier.as_ref();
        let panic = outlier.is_some_and(|o| is_panic(o, self.pods.len(), self.ejected()));
        let of = self.health.iter().filter(|(_, h)| panic || !h.is_ejected(self.now));
        of.map(|(life, _)| *life).collect()
    }

    pub fn distance(&self, p: &Pod) -> u8 {
        self.policy.locality.as_ref().map_or(0, |_| p.distance)
    }

    /// What each distance takes, in percent: Envoy's priority levels. Together they may be short.
    pub fn levels(&self) -> BTreeMap<u8, usize> {
        let fit = self.fit();
        let mut levels = BTreeMap::new();
        let mut left = 100;
        for distance in 0..=4 {
            let there = self.pods.iter().filter(|p| self.distance(p) == distance);
            let all = there.clone().count();
            let fit = there.filter(|p| fit.contains(&p.life)).count();
            let share = (fit * 140).checked_div(all).unwrap_or(0).min(left);
            left -= share;
            levels.insert(distance, share);
        }
        levels.retain(|_, share| *share > 0);
        levels
    }

    /// What each distance gets: all of it between them.
    pub fn shares(&self) -> BTreeMap<u8, f64> {
        let levels = self.levels();
        let whole = levels.values().sum::<usize>() as f64;
        levels.into_iter().map(|(d, share)| (d, 100.0 * share as f64 / whole)).collect()
    }
}

pub fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 8080))
}
