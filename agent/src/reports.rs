//! What the control plane is told of enrolments, so that it can tell other nodes which pods are reached
//! by HBONE: [`Reports`] holds what is to be said, [`tell`] says it.

use crate::{agent::Agent, pods::lock};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tonic::{Code, Request, metadata::MetadataValue, transport::Channel};
use xds::{
    ControlPlane,
    client::Connect as _,
    proto::node::{ReportRequest, node_client::NodeClient},
};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// `metadata.uid`
    pub pod_uid: Arc<str>,
    /// What it is called in discovery.
    pub uid: Arc<str>,
    pub enrolled: bool,
}

/// What is to be said, the last word for each pod.
#[derive(Default)]
pub struct Reports {
    pending: Mutex<Pending>,
    more: Notify,
}

#[derive(Default)]
struct Pending(Vec<Unsaid>);

struct Unsaid {
    report: Report,
    pause: Duration,
    not_before: Option<Instant>,
}

/// Pauses between attempts: first and longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

impl Pending {
    fn say(&mut self, report: Report) {
        self.0.retain(|u| u.report.pod_uid != report.pod_uid);
        self.0.push(Unsaid { report, pause: BACKOFF.0, not_before: None });
    }

    /// What is to be said now, the oldest first; or when there will be something.
    fn next(&self, now: Instant) -> Result<Report, Option<Instant>> {
        let due = |u: &&Unsaid| u.not_before.is_none_or(|t| t <= now);
        match self.0.iter().find(due) {
            Some(unsaid) => Ok(unsaid.report.clone()),
            None => Err(self.0.iter().filter_map(|u| u.not_before).min()),
        }
    }

    /// Another word for the pod may have come meanwhile.
    fn said(&mut self, report: &Report) {
        self.0.retain(|u| u.report != *report);
    }

    fn failed(&mut self, now: Instant, report: &Report) {
        if let Some(unsaid) = self.0.iter_mut().find(|u| u.report == *report) {
            unsaid.not_before = Some(now + unsaid.pause);
            unsaid.pause = (unsaid.pause * 2).min(BACKOFF.1);
        }
    }
}

impl Reports {
    /// Pods whose `metadata.uid` nobody knows cannot be told of.
    pub fn say(&self, pod_uid: Option<&Arc<str>>, uid: &Arc<str>, enrolled: bool) {
        let Some(pod_uid) = pod_uid.cloned() else { return };
        lock(&self.pending).say(Report { pod_uid, uid: uid.clone(), enrolled });
        self.more.notify_one();
    }
}

/// Says what is enrolled whenever the control plane is reached anew: it may have forgotten, or be another.
pub async fn say_again(agent: Arc<Agent>) {
    let mut synced = agent.mesh.synced();
    loop {
        if synced.wait_for(|s| s.connected).await.is_err() || agent.is_superseded() {
            return;
        }
        for pod in agent.pods.all() {
            agent.reports.say(pod.pod_uid.as_ref(), &pod.uid, true);
        }
        if synced.wait_for(|s| !s.connected).await.is_err() {
            return;
        }
    }
}

/// Says what there is to say, until another agent does.
pub async fn tell(agent: Arc<Agent>, control: ControlPlane) {
    let mut client: Option<NodeClient<Channel>> = None;
    let mut pause = BACKOFF.0;
    while !agent.is_superseded() {
        let next = lock(&agent.reports.pending).next(Instant::now());
        let report = match next {
            Ok(report) => report,
            Err(when) => {
                // The next word may be long in coming.
                client = None;
                let until = when.unwrap_or_else(Instant::now);
                tokio::select! {
                    () = agent.reports.more.notified() => {}
                    () = tokio::time::sleep_until(until), if when.is_some() => {}
                }
                continue;
            }
        };
        let mut connected = match client.take() {
            Some(client) => client,
            None => match control.connect().await {
                Ok(channel) => {
                    pause = BACKOFF.0;
                    NodeClient::new(channel)
                }
                Err(why) => {
                    tracing::debug!(why, "the control plane cannot be told of enrolments yet");
                    sleep(pause).await;
                    pause = (pause * 2).min(BACKOFF.1);
                    continue;
                }
            },
        };
        if send(&agent, &control, &mut connected, &report).await {
            client = Some(connected);
        }
    }
}

/// Whether the connection may serve for the next.
async fn send(
    agent: &Agent,
    control: &ControlPlane,
    client: &mut NodeClient<Channel>,
    report: &Report,
) -> bool {
    let Report { uid, enrolled, .. } = report;
    let outcome = match request(control, report) {
        Ok(request) => client.report(request).await.map(drop),
        Err(why) => Err(tonic::Status::unauthenticated(why)),
    };
    let mut pending = lock(&agent.reports.pending);
    match outcome {
        Ok(()) => {
            tracing::debug!(%uid, enrolled, "the control plane has been told");
            pending.said(report);
            true
        }
        // A control plane that does not want to know, or a pod that is gone.
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::NotFound) => {
            let why = status.message();
            tracing::debug!(%uid, enrolled, why, "the control plane has no use for an enrolment");
            pending.said(report);
            true
        }
        Err(status) => {
            let why = format!("{:?}: {}", status.code(), status.message());
            tracing::warn!(%uid, enrolled, why,
                "the control plane did not take the word of an enrolment; it is told again");
            pending.failed(Instant::now(), report);
            false
        }
    }
}

/// For one answer.
const TIMEOUT: Duration = Duration::from_secs(10);

fn request(control: &ControlPlane, report: &Report) -> Result<Request<ReportRequest>, String> {
    let (namespace, name) = namespace_and_name(&report.uid);
    let mut request = Request::new(ReportRequest {
        pod_uid: report.pod_uid.to_string(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        enrolled: report.enrolled,
    });
    request.set_timeout(TIMEOUT);
    if let Some(token) = control.token()? {
        let value = MetadataValue::try_from(format!("Bearer {token}"))
            .map_err(|_| "the token file holds characters that no header can carry")?;
        request.metadata_mut().insert("authorization", value);
    }
    Ok(request)
}

/// Of `<cluster>//Pod/<namespace>/<name>`.
fn namespace_and_name(uid: &str) -> (&str, &str) {
    let mut parts = uid.rsplit('/');
    let name = parts.next().unwrap_or_default();
    (parts.next().unwrap_or_default(), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(pod_uid: &str, enrolled: bool) -> Report {
        let uid = format!("c//Pod/shop/{pod_uid}");
        Report { pod_uid: pod_uid.into(), uid: uid.into(), enrolled }
    }

    #[test]
    fn the_last_word_for_a_pod_counts() {
        let (mut p, now) = (Pending::default(), Instant::now());
        p.say(report("a", true));
        p.say(report("b", true));
        let under_way = p.next(now).unwrap();
        assert_eq!(under_way, report("a", true));
        p.say(report("a", false));
        p.said(&under_way);
        assert_eq!(p.next(now), Ok(report("b", true)));
        p.said(&report("b", true));
        assert_eq!(p.next(now), Ok(report("a", false)));
        p.said(&report("a", false));
        assert_eq!(p.next(now), Err(None));
    }

    #[test]
    fn what_was_not_taken_is_said_again_and_holds_up_nothing() {
        let (mut p, now) = (Pending::default(), Instant::now());
        p.say(report("a", true));
        p.say(report("b", true));
        p.failed(now, &report("a", true));
        assert_eq!(p.next(now), Ok(report("b", true)));
        p.said(&report("b", true));
        assert_eq!(p.next(now), Err(Some(now + BACKOFF.0)));
        assert_eq!(p.next(now + BACKOFF.0), Ok(report("a", true)));
        for _ in 0..20 {
            p.failed(now, &report("a", true));
        }
        assert_eq!(p.next(now), Err(Some(now + BACKOFF.1)));
    }

    #[test]
    fn a_pod_is_named_by_its_uid_in_discovery() {
        assert_eq!(namespace_and_name("c//Pod/shop/web-0"), ("shop", "web-0"));
    }
}
