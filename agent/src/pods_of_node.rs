//! Pods of this node that run already join when their record says so, and leave when it no longer does:
//! [`Following`] decides, [`follow`] carries out. (Pods that start come by the enrol socket.)

use crate::{agent::Agent, cri, enrolment, pods::lock};
use ::cri::Runtime;
use agent_api::enroll::Sandbox;
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// A pod of this node, by discovery.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// `metadata.uid`
    pub pod_uid: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub enroll: bool,
    pub addresses: Vec<IpAddr>,
}

/// A pod that is enrolled, by what the kernel calls its namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Enrolled {
    pub cookie: u64,
    pub uid: Arc<str>,
    pub pod_uid: Arc<str>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    Join(Record),
    /// Its record says that it is not of the mesh.
    Leave(Enrolled),
    /// It has no record any more: it is let go of unless it still runs.
    Vanish(Enrolled),
}

impl Action {
    fn pod_uid(&self) -> &Arc<str> {
        match self {
            Self::Join(record) => &record.pod_uid,
            Self::Leave(enrolled) | Self::Vanish(enrolled) => &enrolled.pod_uid,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Join(_) => Kind::Join,
            Self::Leave(_) => Kind::Leave,
            Self::Vanish(_) => Kind::Vanish,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Join,
    Leave,
    Vanish,
}

/// What became of an action.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Done,
    /// There is nothing to be said about it yet.
    NotYet,
    Failed(String),
}

/// Its peers hear of a pod's leaving when this agent does: what they send by HBONE until then arrives.
const FAREWELL: Duration = Duration::from_secs(1);

/// Pauses between attempts for one pod: first and longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

const NO_SANDBOX: &str = "the container runtime has no sandbox for it that is ready: is it the runtime that this \
     node's kubelet uses (--cri)?";

/// Pods that are being looked for at the runtime at a time.
const AT_ONCE: usize = 16;

/// What is being done, and what has failed, by `metadata.uid`.
#[derive(Default)]
pub struct Following {
    attempts: HashMap<Arc<str>, Attempt>,
}

struct Attempt {
    kind: Kind,
    under_way: bool,
    pause: Duration,
    not_before: Instant,
    said: Option<String>,
}

impl Following {
    /// What is to be done now; it is under way from here on.
    pub fn decide(
        &mut self,
        now: Instant,
        records: &[Record],
        enrolled: &[Enrolled],
    ) -> Vec<Action> {
        let here: HashSet<&str> = enrolled.iter().map(|e| &*e.pod_uid).collect();
        let by_pod: HashMap<&str, &Record> = records.iter().map(|r| (&*r.pod_uid, r)).collect();
        // Without an address its sandbox is still being made, and whoever makes it will ask.
        let joins = records
            .iter()
            .filter(|r| r.enroll && !r.addresses.is_empty() && !here.contains(&*r.pod_uid))
            .cloned()
            .map(Action::Join);
        let leaves = enrolled.iter().filter_map(|e| match by_pod.get(&*e.pod_uid) {
            Some(record) if record.enroll => None,
            Some(_) => Some(Action::Leave(e.clone())),
            None => Some(Action::Vanish(e.clone())),
        });
        let wanted: Vec<Action> = joins.chain(leaves).collect();
        let named: HashSet<Arc<str>> = wanted.iter().map(|a| a.pod_uid().clone()).collect();
        self.attempts.retain(|pod_uid, attempt| attempt.under_way || named.contains(pod_uid));
        let mut room = AT_ONCE - self.attempts.values().filter(|a| a.under_way).count();
        wanted.into_iter().filter(|action| self.begin(now, action, &mut room)).collect()
    }

    fn begin(&mut self, now: Instant, action: &Action, room: &mut usize) -> bool {
        let kind = action.kind();
        let wait = if kind == Kind::Join { Duration::ZERO } else { FAREWELL };
        let fresh = || Attempt {
            kind,
            under_way: false,
            pause: BACKOFF.0,
            not_before: now + wait,
            said: None,
        };
        let attempt = self.attempts.entry(action.pod_uid().clone()).or_insert_with(fresh);
        if attempt.under_way {
            return false;
        }
        if attempt.kind != kind {
            *attempt = fresh();
        }
        if now < attempt.not_before || *room == 0 {
            return false;
        }
        *room -= 1;
        attempt.under_way = true;
        true
    }

    /// Takes down what became of an action. The answer is what has not been said of it before.
    pub fn ended(&mut self, now: Instant, pod_uid: &str, outcome: &Outcome) -> Option<String> {
        let attempt = self.attempts.get_mut(pod_uid)?;
        let why = match outcome {
            // What is as it should be is not wanted again, and forgotten with that.
            Outcome::Done => None,
            Outcome::NotYet if attempt.kind == Kind::Join && attempt.pause == BACKOFF.1 => {
                Some(NO_SANDBOX.to_owned())
            }
            Outcome::NotYet => None,
            Outcome::Failed(why) => Some(why.clone()),
        };
        attempt.under_way = false;
        attempt.not_before = now + attempt.pause;
        attempt.pause = (attempt.pause * 2).min(BACKOFF.1);
        let news = why.filter(|why| attempt.said.as_ref() != Some(why))?;
        attempt.said = Some(news.clone());
        Some(news)
    }

    /// When there may be something to do that no event tells of.
    pub fn next_look(&self) -> Option<Instant> {
        let (under_way, waiting): (Vec<&Attempt>, Vec<&Attempt>) =
            self.attempts.values().partition(|a| a.under_way);
        // Those that wait for room are looked at when one of these has ended.
        let may_begin = under_way.len() < AT_ONCE;
        waiting.into_iter().map(|a| a.not_before).min().filter(|_| may_begin)
    }
}

/// Changes come in bursts.
const QUIET: Duration = Duration::from_millis(20);

/// Follows discovery for as long as this agent serves.
pub async fn follow(agent: Arc<Agent>, runtime: Runtime) {
    let mut following = Following::default();
    let mut changes = agent.changes.subscribe();
    let mut serving = agent.serving.subscribe();
    let mut draining = agent.draining.clone();
    let mut under_way: FuturesUnordered<BoxFuture<'_, (Action, Outcome)>> = FuturesUnordered::new();
    loop {
        if *draining.borrow() || agent.is_superseded() {
            return;
        }
        let may_act = *serving.borrow_and_update() && agent.mesh.synced().borrow().ready();
        changes.borrow_and_update();
        if may_act {
            for action in following.decide(Instant::now(), &records(&agent), &enrolled(&agent)) {
                under_way.push(Box::pin(carry_out(&agent, &runtime, action)));
            }
        }
        let next = following.next_look().filter(|_| may_act);
        tokio::select! {
            changed = changes.changed() => match changed {
                Ok(()) => tokio::time::sleep(QUIET).await,
                Err(_) => return,
            },
            Some((action, outcome)) = under_way.next() => {
                if let Some(why) = following.ended(Instant::now(), action.pod_uid(), &outcome) {
                    tell(&action, &why);
                }
            }
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            _ = serving.changed() => {}
            _ = draining.changed() => {}
        }
    }
}

fn records(agent: &Agent) -> Vec<Record> {
    let of = |(w, pod_uid): (Arc<mesh::Workload>, Arc<str>)| Record {
        pod_uid,
        namespace: w.namespace.clone(),
        name: w.name().into(),
        enroll: w.enroll && !w.host_network,
        addresses: w.addresses.to_vec(),
    };
    agent.mesh.pods_here().into_iter().map(of).collect()
}

/// Those of which it is known which of the pods of their name they are.
fn enrolled(agent: &Agent) -> Vec<Enrolled> {
    let of = |(cookie, pod): (&u64, &Arc<crate::pods::Pod>)| {
        let pod_uid = pod.pod_uid.clone().or_else(|| agent.mesh.pod_uid(&pod.uid))?;
        Some(Enrolled { cookie: *cookie, uid: pod.uid.clone(), pod_uid })
    };
    lock(&agent.pods.all).iter().filter_map(of).collect()
}

async fn carry_out(agent: &Arc<Agent>, runtime: &Runtime, action: Action) -> (Action, Outcome) {
    let outcome = match &action {
        Action::Join(record) => join(agent, runtime, record).await,
        Action::Leave(pod) => enrolment::let_go(agent, pod.cookie).await.map(|()| Outcome::Done),
        Action::Vanish(pod) => match runtime.ready_sandboxes(&pod.pod_uid).await {
            Ok(ready) if ready.is_empty() => {
                enrolment::let_go(agent, pod.cookie).await.map(|()| Outcome::Done)
            }
            Ok(_) => Ok(Outcome::NotYet),
            Err(error) => Err(error.into()),
        },
    };
    (action, outcome.unwrap_or_else(|error| Outcome::Failed(format!("{error:#}"))))
}

async fn join(agent: &Arc<Agent>, runtime: &Runtime, record: &Record) -> anyhow::Result<Outcome> {
    let Some(netns) = cri::namespace_of(runtime, &record.pod_uid).await? else {
        return Ok(Outcome::NotYet);
    };
    let sandbox = Sandbox {
        namespace: record.namespace.to_string(),
        name: record.name.to_string(),
        pod_uid: record.pod_uid.to_string(),
        addresses: record.addresses.clone(),
    };
    Box::pin(enrolment::start(agent, netns, &sandbox)).await?;
    Ok(Outcome::Done)
}

fn tell(action: &Action, why: &str) {
    let (what, pod) = match action {
        Action::Join(r) => ("cannot join the mesh yet", format!("{}/{}", r.namespace, r.name)),
        Action::Leave(pod) => ("cannot leave the mesh yet", pod.uid.to_string()),
        Action::Vanish(pod) => ("is gone and cannot be let go of yet", pod.uid.to_string()),
    };
    tracing::warn!(pod, why, "a pod {what}; it is tried again");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pod_uid: &str, enroll: bool) -> Record {
        Record {
            pod_uid: pod_uid.into(),
            namespace: "shop".into(),
            name: "web".into(),
            enroll,
            addresses: vec![IpAddr::from([10, 0, 0, 1])],
        }
    }

    fn enrolled(pod_uid: &str) -> Enrolled {
        let cookie = pod_uid.bytes().map(u64::from).sum();
        Enrolled { cookie, uid: "c//Pod/shop/web".into(), pod_uid: pod_uid.into() }
    }

    #[test]
    fn a_pod_whose_record_says_so_joins_once() {
        let mut f = Following::default();
        let now = Instant::now();
        let records = [record("a", true), record("b", false)];
        assert_eq!(f.decide(now, &records, &[]), [Action::Join(record("a", true))]);
        assert_eq!(f.decide(now, &records, &[]), [], "it is under way");
        assert_eq!(f.ended(now, "a", &Outcome::Done), None);
        assert_eq!(f.decide(now, &records, &[enrolled("a")]), []);
        assert_eq!(f.next_look(), None);
    }

    #[test]
    fn what_waits_for_room_is_looked_at_when_there_is_some() {
        let mut f = Following::default();
        let now = Instant::now();
        let records: Vec<Record> = (0..50).map(|n| record(&format!("p{n}"), true)).collect();
        let begun = f.decide(now, &records, &[]);
        assert_eq!(begun.len(), AT_ONCE);
        assert_eq!(f.next_look(), None, "an end wakes whoever waits");
        assert_eq!(f.ended(now, begun[0].pod_uid(), &Outcome::Done), None);
        assert_eq!(f.next_look(), Some(now));
        assert_eq!(f.decide(now, &records, &[]).len(), 1);
    }

    #[test]
    fn a_pod_without_an_address_is_waited_for() {
        let starting = Record { addresses: Vec::new(), ..record("a", true) };
        assert_eq!(Following::default().decide(Instant::now(), &[starting], &[]), []);
    }

    #[test]
    fn a_failure_is_said_once_and_tried_again_with_longer_pauses() {
        let mut f = Following::default();
        let begun = Instant::now();
        let mut now = begun;
        let failed = Outcome::Failed("the runtime is away".into());
        for n in 0..10 {
            assert_eq!(f.decide(now, &[record("a", true)], &[]).len(), 1, "attempt {n}");
            assert_eq!(f.ended(now, "a", &failed).is_some(), n == 0);
            assert_eq!(f.decide(now, &[record("a", true)], &[]), [], "not at once");
            let next = f.next_look().unwrap();
            assert!(next > now && next <= now + BACKOFF.1);
            now = next;
        }
        assert!(now - begun > 3 * BACKOFF.1, "{:?}", now - begun);
        assert_eq!(f.decide(now, &[record("a", true)], &[]).len(), 1);
        assert!(f.ended(now, "a", &Outcome::Failed("another reason".into())).is_some());
    }

    #[test]
    fn that_the_runtime_has_no_sandbox_is_said_when_it_lasts() {
        let mut f = Following::default();
        let mut now = Instant::now();
        let mut said = Vec::new();
        for _ in 0..12 {
            assert_eq!(f.decide(now, &[record("a", true)], &[]).len(), 1);
            said.extend(f.ended(now, "a", &Outcome::NotYet));
            now = f.next_look().unwrap();
        }
        assert_eq!(said, [NO_SANDBOX]);
    }

    #[test]
    fn one_that_fails_holds_up_no_other() {
        let mut f = Following::default();
        let now = Instant::now();
        f.decide(now, &[record("a", true)], &[]);
        f.ended(now, "a", &Outcome::Failed("no".into()));
        let both = [record("a", true), record("b", true)];
        assert_eq!(f.decide(now, &both, &[]), [Action::Join(record("b", true))]);
    }

    #[test]
    fn only_so_many_are_looked_for_at_a_time() {
        let mut f = Following::default();
        let now = Instant::now();
        let many: Vec<Record> = (0..100).map(|n| record(&format!("p{n}"), true)).collect();
        let first = f.decide(now, &many, &[]);
        assert_eq!(first.len(), AT_ONCE);
        assert_eq!(f.decide(now, &many, &[]), []);
        f.ended(now, first[0].pod_uid(), &Outcome::NotYet);
        assert_eq!(f.decide(now, &many, &[]).len(), 1);
    }

    #[test]
    fn a_pod_whose_record_no_longer_says_so_leaves_after_its_peers_have_heard() {
        let mut f = Following::default();
        let now = Instant::now();
        let (records, here) = ([record("a", false)], [enrolled("a")]);
        assert_eq!(f.decide(now, &records, &here), []);
        assert_eq!(f.next_look(), Some(now + FAREWELL));
        // The label comes back in time.
        assert_eq!(f.decide(now + FAREWELL, &[record("a", true)], &here), []);
        assert_eq!(f.next_look(), None);
        assert_eq!(f.decide(now + FAREWELL, &records, &here), []);
        assert_eq!(f.decide(now + 2 * FAREWELL, &records, &here), [Action::Leave(enrolled("a"))]);
    }

    #[test]
    fn a_pod_without_a_record_is_let_go_of_unless_it_runs() {
        let mut f = Following::default();
        let now = Instant::now();
        f.decide(now, &[], &[enrolled("a")]);
        let later = now + FAREWELL;
        assert_eq!(f.decide(later, &[], &[enrolled("a")]), [Action::Vanish(enrolled("a"))]);
        assert_eq!(f.ended(later, "a", &Outcome::NotYet), None);
        assert_eq!(f.decide(later, &[], &[enrolled("a")]), []);
        assert_eq!(f.next_look(), Some(later + BACKOFF.0));
    }

    #[test]
    fn a_namesake_joins_while_the_one_before_it_goes() {
        let mut f = Following::default();
        let now = Instant::now();
        let (records, here) = ([record("new", true)], [enrolled("old")]);
        assert_eq!(f.decide(now, &records, &here), [Action::Join(record("new", true))]);
        f.ended(now, "new", &Outcome::Done);
        assert_eq!(f.decide(now, &records, &[enrolled("new")]), []);
        assert_eq!(f.next_look(), None, "nothing is left of the old one");
    }

    #[test]
    fn a_pod_that_leaves_while_it_joins_leaves_afterwards() {
        let mut f = Following::default();
        let now = Instant::now();
        f.decide(now, &[record("a", true)], &[]);
        assert_eq!(f.decide(now, &[record("a", false)], &[enrolled("a")]), []);
        f.ended(now, "a", &Outcome::Done);
        f.decide(now, &[record("a", false)], &[enrolled("a")]);
        let later = now + FAREWELL;
        let left = f.decide(later, &[record("a", false)], &[enrolled("a")]);
        assert_eq!(left, [Action::Leave(enrolled("a"))]);
    }
}
