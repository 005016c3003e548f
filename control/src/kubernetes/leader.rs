//! Which of several control planes writes: the one that holds the Lease. Reading, discovery and the CA
//! are everybody's.

use anyhow::Context as _;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const NAME: &str = "culvertd";
/// A holder that has not been heard of for this long has lost it.
const LASTS: Duration = Duration::from_secs(15);
const RENEWED: Duration = Duration::from_secs(5);

pub struct Candidate {
    api: Api<Lease>,
    /// The pod's name.
    me: String,
    /// What the Lease said, and since when by our own clock: another's is not trusted.
    seen: Option<(LeaseSpec, Instant)>,
    renewed: Option<Instant>,
}

impl Candidate {
    pub fn new(client: Client, namespace: &str, me: String) -> Self {
        Self { api: Api::namespaced(client, namespace), me, seen: None, renewed: None }
    }

    /// Tells whether this one leads, for ever.
    pub async fn run(mut self, leads: watch::Sender<bool>) {
        loop {
            let before = *leads.borrow();
            // An API server that says nothing must not keep this one in the belief that it leads.
            let attempt = tokio::time::timeout(RENEWED, self.attempt()).await;
            let attempt = attempt.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in time")));
            let now = match attempt {
                Ok(held) => held,
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the Lease cannot be had");
                    // Ours until the others may think it is not, less the time to the next look.
                    before && self.renewed.is_some_and(|r| r.elapsed() < LASTS - RENEWED * 2)
                }
            };
            if now != before {
                tracing::info!(leads = now, "leadership");
                leads.send_replace(now);
            }
            tokio::time::sleep(RENEWED).await;
        }
    }

    async fn attempt(&mut self) -> anyhow::Result<bool> {
        let told = |e: &kube::Error| anyhow::anyhow!("Lease {NAME}: {}", super::reason(e));
        let Some(mut lease) = self.api.get_opt(NAME).await.map_err(|e| told(&e))? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
                spec: Some(self.mine(None)),
            };
            return self.written(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == spec => *since,
            _ => Instant::now(),
        };
        self.seen = Some((spec.clone(), since));
        if !may_take(&spec, &self.me, since.elapsed()) {
            return Ok(false);
        }
        lease.spec = Some(self.mine(Some(&spec)));
        // With the version that was read: of two that try at once one is refused.
        let name = lease.metadata.name.clone().context("a Lease without a name")?;
        self.written(self.api.replace(&name, &PostParams::default(), &lease).await)
    }

    fn written(&mut self, outcome: Result<Lease, kube::Error>) -> anyhow::Result<bool> {
        match outcome {
            Ok(_) => {
                self.renewed = Some(Instant::now());
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(e) => Err(anyhow::anyhow!("Lease {NAME}: {}", super::reason(&e))),
        }
    }

    fn mine(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let held = before.filter(|b| b.holder_identity.as_deref() == Some(&self.me));
        let changes = before.and_then(|b| b.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            acquire_time: held.and_then(|b| b.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(changes.saturating_add(i32::from(held.is_none()))),
            ..LeaseSpec::default()
        }
    }
}

/// Whether `me` may write itself into a Lease that has said the same for `unchanged`.
fn may_take(spec: &LeaseSpec, me: &str, unchanged: Duration) -> bool {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let lasts = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
    holder.is_empty() || holder == me || unchanged > lasts.map_or(LASTS, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_nobody_holds_it_any_more() {
        let held_by = |holder: &str| LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        };
        let s = Duration::from_secs;
        assert!(may_take(&LeaseSpec::default(), "me", s(0)));
        assert!(may_take(&held_by(""), "me", s(0)), "given up");
        assert!(may_take(&held_by("me"), "me", s(0)));
        assert!(!may_take(&held_by("other"), "me", s(15)));
        assert!(may_take(&held_by("other"), "me", s(16)));
    }
}
