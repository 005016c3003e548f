//! Status, written: what `verdicts` says, where it differs from what is there.

use super::{FIELD_MANAGER, kinds::WATCHED};
use crate::{
    control::Control,
    verdicts::{CONTROLLER, Condition, Judged, Verdict},
};
use istio_api::{Kind, ObjectKey};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject},
};
use routes::compile::WAYPOINT_CLASSES;
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Changes that come together are judged together.
const TOGETHER: Duration = Duration::from_millis(200);

/// After a write that failed.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Writes while this control plane leads.
pub async fn tell(client: Client, control: Arc<Control>, mut leads: watch::Receiver<bool>) {
    let mut changed = control.judged();
    let mut written: BTreeMap<ObjectKey, Judged> = BTreeMap::new();
    let mut classes_told = false;
    let mut again: Option<Instant> = None;
    loop {
        let pause = again
            .map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()));
        tokio::select! {
            Ok(()) = changed.changed() => tokio::time::sleep(TOGETHER).await,
            Ok(()) = leads.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
        changed.borrow_and_update();
        again = None;
        if !*leads.borrow() {
            written.clear();
            continue;
        }
        if !classes_told {
            classes_told = classes(&client).await;
        }
        let now = control.verdicts();
        written.retain(|key, _| now.contains_key(key));
        for (key, judged) in now {
            if written.get(&key) == Some(&judged) {
                continue;
            }
            match write(&client, &key, &judged).await {
                Ok(()) => drop(written.insert(key, judged)),
                // Gone meanwhile.
                Err(kube::Error::Api(s)) if s.code == 404 => {}
                Err(error) => {
                    again = Some(Instant::now() + TRY_AGAIN);
                    let (object, error) = (key.to_string(), super::reason(&error));
                    tracing::warn!(object, error, "status was not written; it is tried again");
                }
            }
        }
    }
}

async fn write(client: &Client, key: &ObjectKey, judged: &Judged) -> Result<(), kube::Error> {
    let Some(resource) = resource(key.kind) else { return Ok(()) };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &resource);
    let there = api.get(&key.name).await?;
    let generation = judged.0.or(there.metadata.generation);
    let before = there.data.get("status").cloned().unwrap_or_else(|| json!({}));
    let status = status(&judged.1, generation, &before, &Timestamp::now().to_string());
    // Of one that has nothing to say any more, what was said by this manager goes.
    let takes_back = matches!(&judged.1, Verdict::Conditions(all) if all.is_empty());
    if holds(&before, &status) && !takes_back {
        return Ok(());
    }
    let patch = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        // Of two that write at once one is refused, and looks again.
        "metadata": {
            "name": key.name, "namespace": key.namespace,
            "resourceVersion": there.metadata.resource_version,
        },
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch_status(&key.name, &params, &Patch::Apply(patch)).await.map(drop)
}

/// The oldest version that is taken is in every cluster that has the kind; status is the same in all.
fn resource(kind: Kind) -> Option<ApiResource> {
    let watched = WATCHED.iter().find(|w| w.kind == kind)?;
    let version = watched.versions.first()?;
    Some(ApiResource {
        group: watched.group.to_owned(),
        version: (*version).to_owned(),
        api_version: watched.api_version(version),
        kind: watched.object_kind.to_owned(),
        plural: watched.plural.to_owned(),
    })
}

fn status(verdict: &Verdict, generation: Option<i64>, before: &Value, now: &str) -> Value {
    let conditions = |all: &[Condition], before: &Value| -> Value {
        all.iter().map(|c| condition(c, generation, before, now)).collect()
    };
    let of = |list: &str, is_it: &dyn Fn(&Value) -> bool| -> Value {
        let all = before.get(list).and_then(Value::as_array);
        let found = all.and_then(|all| all.iter().find(|v| is_it(v)));
        found.and_then(|v| v.get("conditions")).cloned().unwrap_or_default()
    };
    let own = before.get("conditions").cloned().unwrap_or_default();
    match verdict {
        Verdict::Conditions(all) => json!({ "conditions": conditions(all, &own) }),
        Verdict::Gateway { conditions: all, listeners, addresses } => json!({
            "conditions": conditions(all, &own),
            "addresses": addresses.iter()
                .map(|a| json!({ "type": "IPAddress", "value": a })).collect::<Value>(),
            "listeners": listeners.iter().map(|l| json!({
                "name": l.name,
                "attachedRoutes": l.attached,
                "supportedKinds": [],
                "conditions": conditions(
                    &l.conditions,
                    &of("listeners", &|v| v.get("name").and_then(Value::as_str) == Some(&l.name)),
                ),
            })).collect::<Value>(),
        }),
        // The list is written whole: what other controllers say of their parents stays in it.
        Verdict::Route(parents) => json!({
            "parents": others(before).chain(parents.iter().map(|(parent, all)| {
                let mut named = Map::from_iter([("name".to_owned(), json!(parent.name))]);
                for (field, value) in [
                    ("group", &parent.group), ("kind", &parent.kind),
                    ("namespace", &parent.namespace), ("sectionName", &parent.section_name),
                ] {
                    if !value.is_empty() || field == "group" && parent.kind == "Service" {
                        named.insert(field.to_owned(), json!(value));
                    }
                }
                if let Some(port) = parent.port {
                    named.insert("port".to_owned(), json!(port));
                }
                let named = Value::Object(named);
                let before = of("parents", &|v| v.get("parentRef") == Some(&named));
                json!({
                    "parentRef": named,
                    "controllerName": CONTROLLER,
                    "conditions": conditions(all, &before),
                })
            })).collect::<Value>(),
        }),
    }
}

fn others(before: &Value) -> impl Iterator<Item = Value> {
    let all = before.get("parents").and_then(Value::as_array).into_iter().flatten();
    let ours = |p: &Value| p.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER);
    all.filter(move |p| !ours(p)).cloned()
}

/// With the time when it last became what it is.
fn condition(c: &Condition, generation: Option<i64>, before: &Value, now: &str) -> Value {
    let met = if c.met { "True" } else { "False" };
    let same = before.as_array().and_then(|all| {
        all.iter().find(|b| {
            b.get("type").and_then(Value::as_str) == Some(c.r#type)
                && b.get("status").and_then(Value::as_str) == Some(met)
        })
    });
    let since = same.and_then(|b| b.get("lastTransitionTime")).cloned();
    let mut value = Map::from_iter(
        [
            ("type", json!(c.r#type)),
            ("status", json!(met)),
            ("reason", json!(c.reason)),
            ("message", json!(c.message)),
            ("lastTransitionTime", since.unwrap_or_else(|| json!(now))),
        ]
        .map(|(field, value)| (field.to_owned(), value)),
    );
    if let Some(generation) = generation {
        value.insert("observedGeneration".to_owned(), json!(generation));
    }
    Value::Object(value)
}

/// Whether all of `wanted` is in `there`. Conditions and fields that others have written beside it do not
/// count; other lists are written whole.
fn holds(there: &Value, wanted: &Value) -> bool {
    let has_all = |there: &[Value], wanted: &[Value]| {
        wanted.iter().all(|w| there.iter().any(|t| holds(t, w)))
    };
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => {
            wanted.iter().all(|(field, w)| match (there.get(field), w) {
                (Some(Value::Array(t)), Value::Array(w)) => {
                    has_all(t, w) && (field == "conditions" || t.len() == w.len())
                }
                (Some(t), w) => holds(t, w),
                (None, w) => w.as_array().is_some_and(Vec::is_empty),
            })
        }
        (there, wanted) => there == wanted,
    }
}

/// Gateway classes that are ours say that they are obeyed. Whether all could be told.
async fn classes(client: &Client) -> bool {
    let resource = ApiResource {
        group: "gateway.networking.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "gateway.networking.k8s.io/v1".to_owned(),
        kind: "GatewayClass".to_owned(),
        plural: "gatewayclasses".to_owned(),
    };
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let mut told = true;
    for name in WAYPOINT_CLASSES {
        let there = match api.get_opt(name).await {
            Ok(Some(there)) => there,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(class = name, error = %super::reason(&error), "GatewayClass");
                told = false;
                continue;
            }
        };
        let spec = there.data.get("spec").and_then(|s| s.get("controllerName"));
        if spec.and_then(Value::as_str) != Some(CONTROLLER) {
            continue;
        }
        let accepted =
            Condition { r#type: "Accepted", met: true, reason: "Accepted", message: String::new() };
        let before = there.data.get("status").cloned().unwrap_or_default();
        let verdict = Verdict::Conditions(vec![accepted]);
        let generation = there.metadata.generation;
        let status = status(&verdict, generation, &before, &Timestamp::now().to_string());
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": name },
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        if let Err(error) = api.patch_status(name, &params, &Patch::Apply(patch)).await {
            tracing::warn!(class = name, error = %super::reason(&error), "GatewayClass");
            told = false;
        }
    }
    told
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn accepted(met: bool) -> Verdict {
        let reason = if met { "Accepted" } else { "Invalid" };
        Verdict::Conditions(vec![Condition {
            r#type: "Accepted",
            met,
            reason,
            message: String::new(),
        }])
    }

    #[test]
    fn the_time_is_when_the_condition_became_what_it_is() {
        let first = status(&accepted(true), Some(1), &Value::Null, "then");
        let same = status(&accepted(true), Some(2), &first, "now");
        assert_eq!(same["conditions"][0]["lastTransitionTime"], "then");
        assert_eq!(same["conditions"][0]["observedGeneration"], 2);
        let other = status(&accepted(false), Some(3), &same, "now");
        assert_eq!(other["conditions"][0]["lastTransitionTime"], "now");
    }

    #[test]
    fn what_is_there_already_is_not_written() {
        let mut there = status(&accepted(true), Some(1), &Value::Null, "then");
        assert!(holds(&there, &status(&accepted(true), Some(1), &there, "now")));
        there["conditions"].as_array_mut().unwrap().push(json!({ "type": "Somebody's" }));
        assert!(holds(&there, &status(&accepted(true), Some(1), &there, "now")));
        assert!(!holds(&there, &status(&accepted(true), Some(2), &there, "now")));
        assert!(!holds(&there, &status(&accepted(false), Some(1), &there, "now")));
    }

    #[test]
    fn a_parent_that_a_route_no_longer_has_goes_and_anothers_stays() {
        let ours = json!({ "parentRef": { "name": "a" }, "controllerName": CONTROLLER });
        let anothers = json!({ "parentRef": { "name": "b" }, "controllerName": "somebody" });
        let there = json!({ "parents": [ours, anothers] });
        let now = status(&Verdict::Route(Vec::new()), Some(1), &there, "now");
        assert_eq!(now, json!({ "parents": [anothers] }));
        assert!(!holds(&there, &now), "the old one is to go");
        assert!(holds(&now, &now));
        // What nobody ever wrote a status of needs none.
        let nothing = status(&Verdict::Route(Vec::new()), Some(1), &Value::Null, "now");
        assert!(holds(&json!({}), &nothing));
    }
}
