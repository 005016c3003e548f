//! What an endpoint has done, kept as plainly as possible, and what follows from it: Envoy's rules
//! of outlier detection, without any code of the balancer's.

use routes::{balance::Outcome, execute::Outlier};
use std::time::{Duration, Instant};

/// Envoy's `max_ejection_time`.
const LONGEST: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, Default)]
pub struct Health {
    errors: u32,
    gateway: u32,
    local: u32,
    ejections: u32,
    until: Option<Instant>,
}

impl Health {
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }

    /// Counts an outcome. The answer is whether it has failed as often in a row as is let pass.
    pub fn count(&mut self, outlier: &Outlier, outcome: Outcome, now: Instant) -> bool {
        if self.is_ejected(now) {
            return false;
        }
        match outcome {
            Outcome::Status(500..) => {
                let gateway = matches!(outcome, Outcome::Status(502..=504));
                self.errors += 1;
                self.gateway = if gateway { self.gateway + 1 } else { 0 };
                self.local = 0;
            }
            Outcome::Status(_) => (self.errors, self.gateway, self.local) = (0, 0, 0),
            Outcome::Local if outlier.split_local => self.local += 1,
            Outcome::Local => {
                self.errors += 1;
                self.gateway += 1;
            }
        }
        let failed = !matches!(outcome, Outcome::Status(..500));
        let limits = [
            (self.errors, outlier.consecutive_5xx),
            (self.gateway, outlier.consecutive_gateway),
            (self.local, outlier.consecutive_local),
        ];
        failed && limits.iter().any(|(count, limit)| *limit > 0 && count >= limit)
    }

    /// Each time is longer than the one before, less one for each interval between them.
    pub fn eject(&mut self, outlier: &Outlier, now: Instant) {
        if let Some(until) = self.until {
            let quiet = (now - until).as_secs_f64() / outlier.interval.as_secs_f64();
            for _ in 0..quiet as u64 {
                self.ejections = self.ejections.saturating_sub(1);
            }
        }
        self.ejections += 1;
        let time = outlier.base_ejection * self.ejections;
        self.until = Some(now + time.min(LONGEST.max(outlier.base_ejection)));
        (self.errors, self.gateway, self.local) = (0, 0, 0);
    }
}

/// Whether one more of so many may be ejected: one at least, then no more than the share that is
/// allowed, and none where too few are well.
pub fn has_room(outlier: &Outlier, all: usize, ejected: usize) -> bool {
    let most = usize::try_from(outlier.max_ejection_percent).unwrap();
    (ejected == 0 || (ejected + 1) * 100 <= most * all) && !is_panic(outlier, all, ejected)
}

/// Whether so few are well that health counts for nothing (Istio's `minHealthPercent`).
pub fn is_panic(outlier: &Outlier, all: usize, ejected: usize) -> bool {
    let least = usize::try_from(outlier.min_health_percent).unwrap();
    (all - ejected) * 100 < least * all
}
