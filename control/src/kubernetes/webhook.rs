//! The validating webhook: what would be refused is refused when it is written, with the same words.
//! The certificate is the control plane's own; the API server is told the mesh's roots to know it by.

use crate::{ca::Authority, tls};
use anyhow::Context as _;
use arc_swap::ArcSwap;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use istio_api::{Diagnostic, parse_object};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;

/// Of an admission request: the largest object that etcd takes, twice, in JSON.
const LARGEST: usize = 8 * 1024 * 1024;

/// An API server that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(10);

const CONFIGURATION: &str = "culvert-validator";

/// How often somebody is looked for who has changed it, such as an upgrade of the chart.
const LOOK: Duration = Duration::from_secs(10);

pub async fn serve(serving: &Arc<tls::Serving>, at: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(at).await.with_context(|| format!("binding {at}"))?;
    let mut connections = tls::accept(listener, serving.config(&[b"http/1.1"])?);
    tokio::spawn(async move {
        while let Some(Ok(connection)) = connections.next().await {
            tokio::spawn(async move {
                let service =
                    service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(SILENCE)
                    .serve_connection(TokioIo::new(connection), service)
                    .await;
            });
        }
    });
    Ok(())
}

async fn answer(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let answered = |status: StatusCode, body: String| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let json = http::HeaderValue::from_static("application/json");
        response.headers_mut().insert(http::header::CONTENT_TYPE, json);
        response
    };
    if request.uri().path() != "/validate" || request.method() != Method::POST {
        return answered(StatusCode::NOT_FOUND, "here is POST /validate\n".to_owned());
    }
    let body = Limited::new(request.into_body(), LARGEST).collect();
    let body = match tokio::time::timeout(SILENCE, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(e)) => return answered(StatusCode::BAD_REQUEST, format!("{e}\n")),
        Err(_) => return answered(StatusCode::REQUEST_TIMEOUT, "no body in time\n".to_owned()),
    };
    match review(&body) {
        Ok(review) => answered(StatusCode::OK, review.to_string()),
        Err(e) => answered(StatusCode::BAD_REQUEST, format!("no AdmissionReview: {e}\n")),
    }
}

#[derive(Deserialize)]
struct Review {
    request: Asked,
}

#[derive(Deserialize)]
struct Asked {
    uid: String,
    #[serde(default)]
    object: Value,
}

/// The answer to an AdmissionReview of `admission.k8s.io/v1`.
fn review(body: &[u8]) -> serde_json::Result<Value> {
    let Review { request } = serde_json::from_slice(body)?;
    // What is deleted has no object.
    let diagnostics = match request.object.is_null() {
        true => Vec::new(),
        false => parse_object("admission", request.object).1,
    };
    let (errors, warnings): (Vec<&Diagnostic>, Vec<_>) =
        diagnostics.iter().partition(|d| d.code.is_error());
    let all = |those: Vec<&Diagnostic>| those.into_iter().map(told).collect::<Vec<_>>();
    let (allowed, errors, warnings) = (errors.is_empty(), all(errors), all(warnings));
    let mut response = Map::from_iter([
        ("uid".to_owned(), json!(request.uid)),
        ("allowed".to_owned(), json!(allowed)),
    ]);
    if !warnings.is_empty() {
        response.insert("warnings".to_owned(), json!(warnings));
    }
    if !allowed {
        let message = errors.join("\n");
        let status = json!({ "code": 422, "reason": "Invalid", "message": message });
        response.insert("status".to_owned(), status);
    }
    Ok(json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": response,
    }))
}

/// Whoever asks knows which object it is.
fn told(d: &Diagnostic) -> String {
    format!("{}: {}; {}", d.path, d.found, d.remedy)
}

/// Tells the API server by which roots it knows this webhook, and from then on to let nothing past it.
pub async fn register(client: Client, authority: Arc<ArcSwap<Authority>>) {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(client);
    let mut told_absent = false;
    loop {
        match look(&api, &authority.load().roots).await {
            Ok(Found::Absent) if !told_absent => {
                told_absent = true;
                tracing::warn!(
                    "there is no ValidatingWebhookConfiguration {CONFIGURATION}: mistakes are told in \
                     this log and in status, when they have been written already"
                );
            }
            Ok(Found::Mended) => tracing::info!("the validating webhook is registered"),
            Ok(_) => {}
            Err(error) => tracing::warn!(
                error = %super::reason(&error),
                "ValidatingWebhookConfiguration {CONFIGURATION} cannot be kept"
            ),
        }
        tokio::time::sleep(LOOK).await;
    }
}

enum Found {
    Absent,
    Mended,
    AsItShould,
}

async fn look(
    api: &Api<ValidatingWebhookConfiguration>,
    roots: &str,
) -> Result<Found, kube::Error> {
    let Some(there) = api.get_opt(CONFIGURATION).await? else { return Ok(Found::Absent) };
    let webhooks = there.webhooks.unwrap_or_default();
    let is_well = |w: &k8s_openapi::api::admissionregistration::v1::ValidatingWebhook| {
        let bundle = w.client_config.ca_bundle.as_ref();
        bundle.is_some_and(|b| b.0 == roots.as_bytes())
            && w.failure_policy.as_deref() == Some("Fail")
    };
    if webhooks.iter().all(is_well) {
        return Ok(Found::AsItShould);
    }
    let bundle = k8s_openapi::ByteString(roots.as_bytes().to_vec());
    let mended: Vec<Value> = webhooks
        .iter()
        .map(|w| {
            json!({
                "name": w.name,
                "clientConfig": { "caBundle": bundle },
                "failurePolicy": "Fail",
            })
        })
        .collect();
    // Merged by name, so that the rest of each stays as the chart has it.
    let patch = Patch::Strategic(json!({ "webhooks": mended }));
    api.patch(CONFIGURATION, &PatchParams::default(), &patch).await?;
    Ok(Found::Mended)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn reviewed(object: &Value) -> Value {
        let asked = json!({ "request": { "uid": "u", "object": object } });
        let mut answer = review(asked.to_string().as_bytes()).unwrap();
        assert_eq!(answer["kind"], "AdmissionReview");
        answer["response"].take()
    }

    fn policy(action: &str) -> Value {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": { "name": "p", "namespace": "ns" }, "spec": { "action": action, "rules": [{}] },
        })
    }

    #[test]
    fn what_would_be_refused_is_refused_with_field_and_remedy() {
        assert_eq!(reviewed(&policy("DENY")), json!({ "uid": "u", "allowed": true }));
        let refused = reviewed(&policy("DENNY"));
        assert_eq!(refused["allowed"], false);
        let message = refused["status"]["message"].as_str().unwrap();
        assert!(message.contains("spec.action"), "{message}");
        assert!(message.contains("did you mean \"DENY\"?"), "{message}");
    }

    #[test]
    fn what_is_deleted_is_let_go_and_what_nobody_reads_is_warned_of() {
        assert_eq!(reviewed(&Value::Null)["allowed"], true);
        let odd = json!({ "apiVersion": "x.io/v1", "kind": "Odd", "metadata": { "name": "o" } });
        let answer = reviewed(&odd);
        assert_eq!(answer["allowed"], true);
        assert_eq!(answer["warnings"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn what_is_no_review_is_an_error() {
        for body in ["", "{}", "[]", "{\"request\": {}}", "{\"request\": {\"uid\": 1}}"] {
            assert!(review(body.as_bytes()).is_err(), "{body}");
        }
    }
}
