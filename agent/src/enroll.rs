//! The enrol socket, mode 0600, for root alone: a request with the network namespace's descriptor
//! beside it, and one message back, sent only once the pod is captured and guarded, or let go.

use crate::{
    agent::Agent,
    enrolment,
    netns::Netns,
    scope::spawn_for_agent,
    seqpacket::{Listener, Seqpacket},
};
use agent_api::enroll::{Request, Response, parse};
use anyhow::{Context as _, bail};
use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

/// Between a connection and its request.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Answers whenever this agent serves.
pub async fn serve(agent: Arc<Agent>, listener: Listener) {
    let mut serving = agent.serving.subscribe();
    loop {
        if serving.wait_for(|s| *s).await.is_err() {
            return;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = serving.wait_for(|s| !*s) => continue,
        };
        match accepted {
            Ok(connection) => {
                let agent = agent.clone();
                agent.enrol_clients.send_modify(|clients| *clients += 1);
                spawn_for_agent(async move {
                    if let Err(error) = client(&agent, &connection).await {
                        tracing::warn!(
                            error = format!("{error:#}"),
                            "an enrol client was turned away"
                        );
                    }
                    agent.enrol_clients.send_modify(|clients| *clients -= 1);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept on the enrol socket failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn client(agent: &Arc<Agent>, connection: &Seqpacket) -> anyhow::Result<()> {
    connection.only_root()?;
    loop {
        let received = tokio::select! {
            biased;
            received = connection.receive() => received?,
            () = last_words(agent) => return Ok(()),
        };
        let Some((bytes, fds)) = received else { return Ok(()) };
        let outcome = match parse(&bytes) {
            Ok(request) => carry_out(agent, request, fds).await,
            Err(why) => Err(anyhow::anyhow!(why)),
        };
        let error = outcome.err().map(|e| format!("{e:#}"));
        let response = Response { moved: error.is_some() && agent.is_superseded(), error };
        if let Some(error) = &response.error {
            tracing::warn!(error, "an enrol request failed");
        }
        connection.send(&serde_json::to_vec(&response)?, &[]).await?;
    }
}

/// Returns when a client of an agent that drains has had the time to say what he came for.
async fn last_words(agent: &Agent) {
    let _ = agent.draining.clone().wait_for(|d| *d).await;
    tokio::time::sleep(LAST_WORDS).await;
}

async fn carry_out(agent: &Arc<Agent>, request: Request, fds: Vec<OwnedFd>) -> anyhow::Result<()> {
    match request {
        Request::Enroll(request) => Box::pin(enrolment::enroll(agent, netns(fds)?, &request)).await,
        Request::Unenroll { uid } => enrolment::unenroll(agent, &uid).await,
        Request::Start(sandbox) => Box::pin(enrolment::start(agent, netns(fds)?, &sandbox)).await,
        Request::Check(sandbox) => enrolment::check(agent, &netns(fds)?, &sandbox),
        Request::Stop => enrolment::stop(agent, &netns(fds)?).await,
        Request::Ping => Ok(()),
    }
}

fn netns(fds: Vec<OwnedFd>) -> anyhow::Result<Netns> {
    let mut fds = fds.into_iter();
    let (Some(fd), None) = (fds.next(), fds.next()) else {
        bail!("the request comes with one descriptor: the pod's network namespace");
    };
    Netns::new(fd).context("the descriptor beside the request is not a network namespace")
}
