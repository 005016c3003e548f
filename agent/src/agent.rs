//! What every part of the agent shares.

use crate::{
    capture::Capture,
    connections::{Connections, Judged},
    dial::{AgentDial, PoolKey},
    direct::Direct,
    dns::Counters,
    fault,
    kubelet::Kubelet,
    parting::Parting,
    pods::Pods,
    reports::Reports,
    workers::Workers,
};
use hbone::Pool;
use identity::CertStore;
use mesh::{Mesh, Workload};
use policy::{Decision, Request, Verdict};
use std::{sync::Arc, time::Duration};
use telemetry::Metrics;
use tokio::sync::watch;

pub struct Agent {
    pub capture: Capture,
    pub workers: Workers,
    pub mesh: Arc<Mesh>,
    pub certs: Arc<CertStore>,
    pub pool: Arc<Pool<PoolKey, AgentDial>>,
    pub connections: Arc<Connections>,
    pub direct: Direct,
    /// Whether connections between pods of this node may go past it.
    pub goes_direct: bool,
    pub metrics: Arc<Metrics>,
    pub pods: Arc<Pods>,
    /// Other names of the trust domain, for service accounts in policies.
    pub trust_domain_aliases: Vec<Arc<str>>,
    /// True once the agent takes no new work.
    pub draining: watch::Receiver<bool>,
    /// Whether it is this agent that accepts connections, and not the one before or after it.
    pub serving: watch::Sender<bool>,
    /// True once another agent has taken this one's place.
    pub superseded: watch::Sender<bool>,
    /// The agent whose place this one has taken carries connections still.
    pub succeeds: watch::Sender<bool>,
    /// Enrol clients that are owed an answer.
    pub enrol_clients: watch::Sender<usize>,
    /// What the control plane is to be told of enrolments.
    pub reports: Reports,
    /// Goes up with whatever discovery changes.
    pub changes: watch::Sender<u64>,
    pub kubelet: Kubelet,
    pub parting: Parting,
    pub node: String,
    pub cluster: String,
    /// What the names of the cluster's services end in.
    pub cluster_domain: String,
    pub dns: Counters,
}

/// How long a connection waits for discovery's first answer, for a certificate, and for the pod's
/// own record.
pub const PATIENCE: Duration = Duration::from_secs(10);

impl Agent {
    /// What policy says of a connection to `destination`, whose record is this workload.
    pub fn judge(&self, destination: &Workload, request: &Request) -> Verdict {
        if let Some(decision) = self.around_waypoint(destination, request) {
            let allowed = decision == Decision::ThroughWaypoint;
            return Verdict { allowed, decision, dry_run: Vec::new() };
        }
        let verdict = self.mesh.policies_for(destination).evaluate(request);
        for name in &verdict.dry_run {
            tracing::info!(policy = %name, source = %request.source, destination = %request.destination,
                "a dry-run policy matches");
        }
        verdict
    }

    /// What a waypoint before the destination makes of a connection: one from it has been judged
    /// there, and any other goes around it. None where policies decide.
    pub fn around_waypoint(&self, destination: &Workload, request: &Request) -> Option<Decision> {
        let guard = self.mesh.guard(destination, request.destination.port())?;
        let source = request.source.ip().to_canonical();
        let own = destination.addresses.contains(&source);
        if own {
            return None;
        }
        let through = request.peer.as_ref().is_some_and(|peer| guard.identities.contains(peer));
        Some(match through {
            true => Decision::ThroughWaypoint,
            false => Decision::AroundWaypoint(guard.waypoints),
        })
    }

    /// A verdict for the log: what met it, or what came nearest to allowing it.
    pub fn in_words(&self, destination: &Workload, request: &Request, verdict: &Verdict) -> String {
        policy::in_words(&self.mesh.policies_for(destination), request, verdict)
    }

    pub fn trust_domains(&self, w: &Workload) -> Arc<[Arc<str>]> {
        std::iter::once(w.trust_domain.clone())
            .chain(self.trust_domain_aliases.iter().cloned())
            .collect()
    }

    /// Returns once this agent is the only one that carries connections here, but for one that comes after it.
    pub async fn is_alone(&self) {
        let _ = self.succeeds.subscribe().wait_for(|succeeds| !succeeds).await;
    }

    pub fn is_superseded(&self) -> bool {
        *self.superseded.borrow()
    }

    /// Before discovery has answered once, nobody knows who is who: connections wait.
    pub async fn synced(&self) -> bool {
        let mut synced = self.mesh.synced();
        tokio::time::timeout(PATIENCE, synced.wait_for(mesh::Synced::ready))
            .await
            .is_ok_and(|r| r.is_ok())
    }

    /// Ends connections that policy no longer allows, whenever it changes.
    pub async fn judge_live_connections(self: Arc<Self>) {
        let mut judgements = self.mesh.judgements();
        while judgements.changed().await.is_ok() {
            let ended = self.connections.judge_again(|judged| self.no_longer_allowed(judged));
            if ended > 0 {
                fault::point("policy-judged");
                tracing::info!(ended, "connections ended by a change of policy");
            }
        }
    }

    pub fn no_longer_allowed(&self, judged: &Judged) -> Option<String> {
        if judged.by_kubelet {
            return None;
        }
        // A workload that is gone has no policies to ask; its pod's end closes the connection.
        let destination = self.mesh.workload(&judged.destination_uid)?;
        let verdict = self.judge(&destination, &judged.request);
        (!verdict.allowed).then(|| self.in_words(&destination, &judged.request, &verdict))
    }
}
