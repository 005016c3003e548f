//! How others learn that the agent is ready: a port of the node's, which one agent hands to the next, and a
//! file of the agent's own.

use crate::{admin, agent::Agent};
use http::StatusCode;
use std::{fs, path::PathBuf, sync::Arc};
use tokio::{net::TcpListener, sync::watch};

/// `/healthz/ready`: whether this node's pods are carried, by whichever agent listens at the port.
pub fn serve(agent: &Arc<Agent>, at: TcpListener, taken_up: watch::Receiver<bool>) {
    let own = agent.clone();
    admin::serve_http(agent, at, move |path| {
        let discovered = own.mesh.synced().borrow().ready();
        let unavailable = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
        match path {
            "/healthz/ready" if *own.draining.borrow() => unavailable("draining"),
            "/healthz/ready" if !discovered => unavailable("discovery has not answered yet"),
            "/healthz/ready" if !*taken_up.borrow() => unavailable("taking up enrolled pods"),
            "/healthz/ready" => (StatusCode::OK, "ready\n".to_owned()),
            _ => (StatusCode::NOT_FOUND, "/healthz/ready is here\n".to_owned()),
        }
    });
}

/// The file is there for as long as this very agent serves.
pub async fn keep_file(agent: Arc<Agent>, path: PathBuf, mut taken_up: watch::Receiver<bool>) {
    let _ = fs::remove_file(&path);
    let mut serving = agent.serving.subscribe();
    if taken_up.wait_for(|t| *t).await.is_err() {
        return;
    }
    loop {
        if serving.wait_for(|s| *s).await.is_err() {
            return;
        }
        if let Err(error) = fs::write(&path, "") {
            tracing::error!(%error, path = %path.display(), "nobody learns that this agent serves");
        }
        if serving.wait_for(|s| !*s).await.is_err() {
            return;
        }
        let _ = fs::remove_file(&path);
    }
}
