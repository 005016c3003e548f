//! A Gateway of a waypoint's class becomes a ServiceAccount, a Service and a Deployment of its name,
//! which go when it goes. Whatever somebody sets beside what is set here stays theirs.

use super::FIELD_MANAGER;
use crate::control::Control;
use istio_api::{Kind, Object, ObjectKey, Spec};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject},
};
use routes::compile::{GATEWAY_NAME, serves};
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// Somebody may have deleted or changed what was made: it is written again this often.
const AGAIN: Duration = Duration::from_secs(60);

/// After a write that failed.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// What all waypoints have in common.
#[derive(Clone, Debug)]
pub struct Settings {
    pub image: String,
    pub image_pull_policy: String,
    /// The control plane's namespace, in which its Service is called `culvertd`.
    pub namespace: String,
    pub control_name: String,
    pub cluster: String,
    pub network: String,
}

/// Keeps them there while this control plane leads.
pub async fn keep(
    client: Client,
    control: Arc<Control>,
    settings: Settings,
    mut leads: watch::Receiver<bool>,
) {
    let mut changed = control.changed();
    let mut written: HashMap<ObjectKey, Vec<Value>> = HashMap::new();
    let mut again = Instant::now() + AGAIN;
    loop {
        tokio::select! {
            Ok(()) = changed.changed() => {}
            Ok(()) = leads.changed() => {}
            () = tokio::time::sleep_until(again) => {}
        }
        // By the clock: where something changes all the time the sleep is never slept to its end.
        if Instant::now() >= again {
            again = Instant::now() + AGAIN;
            written.clear();
        }
        if !*leads.borrow() {
            written.clear();
            continue;
        }
        let wanted = wanted(&control, &settings);
        written.retain(|key, _| wanted.contains_key(key));
        for (key, objects) in wanted {
            if written.get(&key) == Some(&objects) {
                continue;
            }
            match write(&client, &key.namespace, &objects).await {
                Ok(()) => drop(written.insert(key, objects)),
                Err(error) => {
                    again = again.min(Instant::now() + TRY_AGAIN);
                    let gateway = key.to_string();
                    tracing::warn!(
                        gateway,
                        error,
                        "the waypoint was not written; it is tried again"
                    );
                }
            }
        }
    }
}

fn wanted(control: &Control, settings: &Settings) -> HashMap<ObjectKey, Vec<Value>> {
    control.with_snapshot(|snapshot| {
        let own = ObjectKey {
            kind: Kind::Service,
            namespace: settings.namespace.clone(),
            name: "culvertd".to_owned(),
        };
        // By address, so that a waypoint does not wait for the cluster's DNS, which may wait for it.
        let address = match snapshot.get(&own).map(|o| &o.spec) {
            Some(Spec::Service(s)) => s.spec.cluster_ip.parse().ok(),
            _ => None,
        };
        let control = match address {
            Some(ip) => format!("https://{}", std::net::SocketAddr::new(ip, 15012)),
            None => format!("https://{}:15012", settings.control_name),
        };
        let mesh = snapshot.mesh();
        snapshot
            .of_kind(Kind::KubernetesGateway)
            .filter(|o| serves(o).is_some() && o.meta.deletion_timestamp.is_none())
            .map(|o| {
                let words = Words { control: &control, trust_domain: &mesh.trust_domain };
                (o.key.clone(), objects(o, settings, &words))
            })
            .collect()
    })
}

/// On what is made for Gateways.
const MANAGED: (&str, &str) = ("gateway.istio.io/managed", "culvert.io-waypoint-controller");

struct Words<'a> {
    control: &'a str,
    trust_domain: &'a str,
}

fn objects(gateway: &Object, settings: &Settings, words: &Words<'_>) -> Vec<Value> {
    let ObjectKey { namespace, name, .. } = &gateway.key;
    let labels = json!({
        GATEWAY_NAME: name,
        MANAGED.0: MANAGED.1,
        "app.kubernetes.io/managed-by": FIELD_MANAGER,
    });
    let metadata = |labels: &Value| {
        json!({
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "ownerReferences": [{
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "name": name,
                "uid": gateway.meta.uid,
                "controller": true,
            }],
        })
    };
    let selector = json!({ GATEWAY_NAME: name });
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(&labels),
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(&labels),
        "spec": {
            "type": "ClusterIP",
            "selector": selector,
            "ports": [{
                "name": "mesh", "port": 15008, "protocol": "TCP", "targetPort": 15008,
                "appProtocol": "hbone",
            }],
        },
    });
    // It ends HBONE itself, and nothing of it is to be captured.
    let pod_labels = json!({
        GATEWAY_NAME: name,
        MANAGED.0: MANAGED.1,
        "istio.io/dataplane-mode": "none",
        "sidecar.istio.io/inject": "false",
    });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(&labels),
        "spec": {
            "selector": { "matchLabels": selector },
            "template": {
                "metadata": { "labels": pod_labels },
                "spec": pod(name, settings, words),
            },
        },
    });
    vec![account, service, deployment]
}

fn pod(name: &str, settings: &Settings, words: &Words<'_>) -> Value {
    let from_field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    json!({
        "serviceAccountName": name,
        "terminationGracePeriodSeconds": 60,
        // As namespaces may demand that enforce Pod Security's "restricted".
        "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{
            "name": "waypoint",
            "image": settings.image,
            "imagePullPolicy": settings.image_pull_policy,
            "command": ["culvert-waypoint"],
            "args": [
                "--gateway", name,
                "--service-account", name,
                "--control", words.control,
                "--control-name", settings.control_name,
                "--trust-domain", words.trust_domain,
                "--cluster", settings.cluster,
                "--network", settings.network,
                "--root-cert", "/var/run/secrets/istio/root-cert.pem",
                "--token", "/var/run/secrets/tokens/istio-token",
            ],
            "env": [
                from_field("POD_NAMESPACE", "metadata.namespace"),
                from_field("POD_NAME", "metadata.name"),
            ],
            "ports": [
                { "name": "mesh", "containerPort": 15008 },
                { "name": "metrics", "containerPort": 15020 },
            ],
            "readinessProbe": {
                "httpGet": { "path": "/healthz/ready", "port": 15020 },
                "periodSeconds": 2,
            },
            "resources": { "requests": { "cpu": "50m", "memory": "32Mi" } },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": { "drop": ["ALL"] },
                "readOnlyRootFilesystem": true,
                "runAsNonRoot": true,
                "runAsUser": 1337,
            },
            "volumeMounts": [
                { "name": "roots", "mountPath": "/var/run/secrets/istio", "readOnly": true },
                { "name": "token", "mountPath": "/var/run/secrets/tokens", "readOnly": true },
            ],
        }],
        "volumes": [
            { "name": "roots", "configMap": { "name": "istio-ca-root-cert" } },
            { "name": "token", "projected": { "sources": [{ "serviceAccountToken": {
                "audience": super::AUDIENCE, "expirationSeconds": 3600, "path": "istio-token",
            } }] } },
        ],
    })
}

/// Nothing that was there before its Gateway, or is somebody else's since, is written over.
async fn write(client: &Client, namespace: &str, objects: &[Value]) -> Result<(), String> {
    for object in objects {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let resource = match text("/kind") {
            Some("Deployment") => of("apps", "Deployment", "deployments"),
            Some("Service") => of("", "Service", "services"),
            _ => of("", "ServiceAccount", "serviceaccounts"),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let name = text("/metadata/name").unwrap_or_default();
        let told = |e: kube::Error| super::reason(&e);
        if let Some(there) = api.get_opt(name).await.map_err(told)?
            && there.metadata.labels.unwrap_or_default().get(MANAGED.0).map(String::as_str)
                != Some(MANAGED.1)
        {
            return Err(format!(
                "there is a {} {namespace}/{name} already that is no waypoint's: give the Gateway another name",
                resource.kind
            ));
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        api.patch(name, &params, &Patch::Apply(object)).await.map_err(told)?;
    }
    Ok(())
}

fn of(group: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: group.to_owned(),
        version: "v1".to_owned(),
        api_version: if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") },
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}
