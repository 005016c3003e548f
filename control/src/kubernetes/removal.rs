//! Before an uninstallation: the agents' DaemonSet gives every node back. Without it the pods that are captured
//! would have no network once the agents are gone, and no pod would start.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The agents' DaemonSet, and the container in it.
const AGENT: &str = "culvert-agent";

/// What of the arguments of `run` those of `detach` are.
const SHARED: [&str; 4] = ["--cni-conf-dir=", "--cni-bin-dir=", "--run-dir=", "--ready-file="];

const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Has the agents of this namespace detach, and waits until they have, on every node.
pub async fn give_nodes_back(
    client: Client,
    namespace: &str,
    patience: Duration,
) -> anyhow::Result<()> {
    let all: Api<DaemonSet> = Api::namespaced(client, namespace);
    let named = || format!("DaemonSet {namespace}/{AGENT}");
    let Some(agents) = all.get_opt(AGENT).await.with_context(named)? else {
        println!("no {}: nothing is on the nodes by it", named());
        return Ok(());
    };
    if let Some(patch) = detaching(&agents).with_context(named)? {
        let patch = Patch::Strategic(patch);
        all.patch(AGENT, &PatchParams::default(), &patch).await.with_context(named)?;
    }
    let deadline = Instant::now() + patience;
    loop {
        let agents = all.get(AGENT).await.with_context(named)?;
        let Some(left) = left(&agents) else {
            println!("nothing of the mesh is left on any node");
            return Ok(());
        };
        ensure!(
            Instant::now() < deadline,
            "{left} of the nodes of {} have not been given back within {} s: see the logs of its pods. A node \
             that is gone for good is to be deleted first",
            named(),
            patience.as_secs()
        );
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// What makes it detach; none where it does.
fn detaching(agents: &DaemonSet) -> anyhow::Result<Option<Value>> {
    let pod = agents.spec.as_ref().and_then(|s| s.template.spec.as_ref());
    let container = pod.and_then(|p| p.containers.iter().find(|c| c.name == AGENT));
    let args = container.and_then(|c| c.args.as_ref());
    let args = args.with_context(|| format!("it has no container {AGENT} with arguments"))?;
    if args.first().is_some_and(|a| a == "detach") {
        return Ok(None);
    }
    let shared = args.iter().filter(|a| SHARED.iter().any(|s| a.starts_with(s)));
    let args: Vec<&str> =
        ["detach", "--linger"].into_iter().chain(shared.map(String::as_str)).collect();
    Ok(Some(json!({ "spec": {
        // What detaches comes after what it takes away.
        "updateStrategy": { "rollingUpdate": { "maxSurge": 0, "maxUnavailable": "100%" } },
        "template": { "spec": { "containers": [
            { "name": AGENT, "args": args, "livenessProbe": null },
        ] } },
    } })))
}

/// On how many nodes it is not done.
fn left(agents: &DaemonSet) -> Option<i32> {
    let Some(status) = &agents.status else { return Some(1) };
    let wanted = status.desired_number_scheduled;
    if status.observed_generation < agents.metadata.generation {
        return Some(wanted);
    }
    let updated = status.updated_number_scheduled.unwrap_or(0);
    Some(wanted - updated.min(status.number_ready)).filter(|left| *left > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agents(args: Value, status: Value) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": { "name": AGENT, "generation": 4 },
            "spec": { "selector": {}, "template": { "spec": { "containers": [
                { "name": "other", "args": ["run"] }, { "name": AGENT, "args": args },
            ] } } },
            "status": status,
        }))
        .unwrap()
    }

    fn status(observed: i64, updated: i32, ready: i32) -> Value {
        json!({ "observedGeneration": observed, "desiredNumberScheduled": 3, "updatedNumberScheduled": updated,
                "numberReady": ready, "currentNumberScheduled": 3, "numberMisscheduled": 0 })
    }

    #[test]
    fn an_agent_detaches_with_what_it_ran_with() {
        let run = json!([
            "run",
            "--node=$(NODE_NAME)",
            "--cni-conf-dir=/c",
            "--cni-bin-dir=/b",
            "--linger",
            "--run-dir=/r",
            "--drain-seconds=30",
            "--ready-file=/own/ready"
        ]);
        let patch = detaching(&agents(run, status(4, 3, 3))).unwrap().unwrap();
        let container = &patch["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(
            container["args"],
            json!([
                "detach",
                "--linger",
                "--cni-conf-dir=/c",
                "--cni-bin-dir=/b",
                "--run-dir=/r",
                "--ready-file=/own/ready"
            ])
        );
        assert!(container["livenessProbe"].is_null(), "{container}");
        assert!(detaching(&agents(json!(["detach"]), status(4, 3, 3))).unwrap().is_none());
        let error = detaching(&agents(Value::Null, status(4, 3, 3))).unwrap_err();
        assert!(error.to_string().contains("no container culvert-agent"), "{error}");
    }

    #[test]
    fn a_node_is_given_back_when_the_pod_that_does_it_is_ready() {
        let left_of = |observed, updated, ready| {
            left(&agents(json!(["detach"]), status(observed, updated, ready)))
        };
        assert_eq!(left_of(3, 3, 3), Some(3), "of what was before");
        assert_eq!(left_of(4, 2, 3), Some(1), "an agent that has not ended");
        assert_eq!(left_of(4, 3, 1), Some(2));
        assert_eq!(left_of(4, 3, 3), None);
    }
}
