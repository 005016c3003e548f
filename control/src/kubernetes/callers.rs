//! Who calls, by a token that the API server vouches for: projected into a pod, for the audience
//! `istio-ca`, and bound to that pod.

use super::refusals::Refusals;
use crate::grant::{Account, Caller};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::{Api, Client, api::PostParams};
use sha2::{Digest as _, Sha256};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};
use tokio::sync::Mutex as AsyncMutex;
use tonic::{Code, Status};

/// Whom tokens must be for.
pub const AUDIENCE: &str = "istio-ca";

/// A review counts for so long: an agent asks for many certificates at once.
const COUNTS_FOR: Duration = Duration::from_secs(10);

/// Reviews that are kept. Beyond, those that have ended are dropped, and then all.
const KEPT: usize = 4096;

pub struct Reviews {
    client: Client,
    /// The agents' own account.
    agents: Account,
    kept: Mutex<HashMap<[u8; 32], (Instant, Caller)>>,
    refusals: Mutex<Refusals>,
    /// Tokens that are being looked at.
    turns: Mutex<HashMap<[u8; 32], Weak<AsyncMutex<()>>>>,
}

impl Reviews {
    pub fn new(client: Client, agents: Account) -> Self {
        Self {
            client,
            agents,
            kept: Mutex::default(),
            refusals: Mutex::default(),
            turns: Mutex::default(),
        }
    }

    /// Who presents this token. Reviews cost the API server: an address whose tokens are refused gets few.
    pub async fn caller(&self, token: &str, from: Option<IpAddr>) -> Result<Caller, Status> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(caller) = self.kept(&digest) {
            return Ok(caller);
        }
        // Of many calls that come at once with one token, one has it reviewed.
        let turn = self.turn(&digest);
        let _turn = turn.lock().await;
        if let Some(caller) = self.kept(&digest) {
            return Ok(caller);
        }
        // Taken before the review: many at once are counted as many. Whoever was let in before is not
        // kept out by others behind the same address.
        let charged = from.filter(|_| !lock(&self.kept).contains_key(&digest));
        if charged.is_some_and(|a| !lock(&self.refusals).take(a, Instant::now())) {
            return Err(Status::resource_exhausted(
                "too many tokens from this address were refused: one is looked at each second",
            ));
        }
        let reviewed = self.review(token).await;
        let is_refused = reviewed.as_ref().is_err_and(|s| s.code() == Code::Unauthenticated);
        if let Some(address) = charged.filter(|_| !is_refused) {
            lock(&self.refusals).give_back(address);
        }
        let caller = reviewed?;
        self.keep(digest, caller.clone());
        Ok(caller)
    }

    async fn review(&self, token: &str) -> Result<Caller, Status> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(|e| {
            let error = super::reason(&e);
            tracing::error!(error, "the API server reviews no tokens: nobody can be let in");
            Status::unavailable("the control plane cannot have tokens reviewed now")
        })?;
        let status = answer.status.unwrap_or_default();
        let for_us = || status.audiences.as_ref().is_some_and(|a| a.iter().any(|a| a == AUDIENCE));
        if status.authenticated != Some(true) || !for_us() {
            let why = status.error.unwrap_or_default();
            return Err(Status::unauthenticated(format!(
                "the token is not one of this cluster for the audience {AUDIENCE}: {why}"
            )));
        }
        caller(&status.user.unwrap_or_default(), &self.agents)
            .map_err(|why| Status::unauthenticated(why.to_owned()))
    }

    fn kept(&self, digest: &[u8; 32]) -> Option<Caller> {
        let kept = lock(&self.kept);
        let (until, caller) = kept.get(digest)?;
        (Instant::now() < *until).then(|| caller.clone())
    }

    fn turn(&self, digest: &[u8; 32]) -> Arc<AsyncMutex<()>> {
        let mut turns = lock(&self.turns);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let under_way = turns.get(digest).and_then(Weak::upgrade);
        under_way.unwrap_or_else(|| {
            let turn = Arc::default();
            turns.insert(*digest, Arc::downgrade(&turn));
            turn
        })
    }

    fn keep(&self, digest: [u8; 32], caller: Caller) {
        let now = Instant::now();
        let mut kept = lock(&self.kept);
        if kept.len() >= KEPT {
            kept.retain(|_, (until, _)| now < *until);
        }
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(digest, (now + COUNTS_FOR, caller));
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

const NODE: &str = "authentication.kubernetes.io/node-name";
const POD: &str = "authentication.kubernetes.io/pod-name";

/// An agent is its node, by the pod that its token is bound to; everybody else is their service account.
fn caller(user: &UserInfo, agents: &Account) -> Result<Caller, &'static str> {
    let name = user.username.as_deref().unwrap_or_default();
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .ok_or("the token is not a service account's")?;
    let account = Account { namespace: account.0.to_owned(), name: account.1.to_owned() };
    let extra = |key: &str| -> Option<&str> {
        match user.extra.as_ref()?.get(key)?.as_slice() {
            [only] => Some(only.as_str()),
            _ => None,
        }
    };
    if extra(POD).is_none() {
        return Err("the token is bound to no pod: only projected tokens are taken");
    }
    if account != *agents {
        return Ok(Caller::Workload(account));
    }
    match extra(NODE) {
        Some(node) => Ok(Caller::Node(node.to_owned())),
        None => Err("the agent's token does not say which node its pod is on: that takes \
                     Kubernetes 1.30 or newer"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn user(name: &str, extra: &[(&str, &[&str])]) -> UserInfo {
        let owned = |(k, v): &(&str, &[&str])| {
            ((*k).to_owned(), v.iter().map(|v| (*v).to_owned()).collect())
        };
        UserInfo {
            username: Some(name.to_owned()),
            extra: Some(extra.iter().map(owned).collect::<BTreeMap<_, _>>()),
            ..UserInfo::default()
        }
    }

    fn agents() -> Account {
        Account { namespace: "culvert-system".into(), name: "culvert-agent".into() }
    }

    #[test]
    fn an_agent_is_its_node_and_others_are_their_account() {
        let pod = (POD, ["p"].as_slice());
        let agent = "system:serviceaccount:culvert-system:culvert-agent";
        let here = user(agent, &[pod, (NODE, &["n1"])]);
        assert_eq!(caller(&here, &agents()).unwrap(), Caller::Node("n1".into()));
        let waypoint = user("system:serviceaccount:shop:waypoint", &[pod, (NODE, &["n1"])]);
        let account = Account { namespace: "shop".into(), name: "waypoint".into() };
        assert_eq!(caller(&waypoint, &agents()).unwrap(), Caller::Workload(account));
        // The agents' name in another namespace is somebody else's.
        let other = user("system:serviceaccount:shop:culvert-agent", &[pod, (NODE, &["n1"])]);
        assert!(matches!(caller(&other, &agents()).unwrap(), Caller::Workload(_)));
    }

    #[test]
    fn a_token_without_a_pod_or_a_node_is_nobodys() {
        let agent = "system:serviceaccount:culvert-system:culvert-agent";
        let pod = (POD, ["p"].as_slice());
        for (user, expected) in [
            (user(agent, &[(NODE, &["n1"])]), "bound to no pod"),
            (user(agent, &[pod]), "which node"),
            (user(agent, &[pod, (NODE, &["n1", "n2"])]), "which node"),
            (user("admin", &[pod]), "not a service account's"),
            (user("system:serviceaccount:odd", &[pod]), "not a service account's"),
        ] {
            let error = caller(&user, &agents()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
