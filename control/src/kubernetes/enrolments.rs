//! What agents say of their pods, written where other control planes and other meshes read it: an
//! enrolled pod's annotation says that it is reached by HBONE.

use crate::{
    control::Control,
    grant::{Caller, Callers},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use std::sync::Arc;
use tonic::{Request, Response, Status};
use xds::proto::node::{ReportRequest, ReportResponse, node_server::Node};

pub struct Enrolments {
    pub client: Client,
    pub control: Arc<Control>,
    pub callers: Arc<Callers>,
}

#[tonic::async_trait]
impl Node for Enrolments {
    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportResponse>, Status> {
        let caller = self.callers.caller(request.metadata(), request.remote_addr()).await?;
        let Caller::Node(node) = caller else {
            return Err(Status::permission_denied("only agents enrol pods"));
        };
        let report = request.into_inner();
        if !self.control.is_on(&node, &report.namespace, &report.name, &report.pod_uid) {
            return Err(Status::not_found(format!(
                "no pod {}/{} with the uid {} is on node {node}",
                report.namespace, report.name, report.pod_uid
            )));
        }
        self.annotate(&report).await?;
        Ok(Response::new(ReportResponse {}))
    }
}

impl Enrolments {
    async fn annotate(&self, report: &ReportRequest) -> Result<(), Status> {
        let value = if report.enrolled { json!("enabled") } else { Value::Null };
        // With its uid the patch is for this very pod: one of the same name after it is a conflict.
        let patch = json!({"metadata": {
            "uid": report.pod_uid,
            "annotations": {"ambient.istio.io/redirection": value},
        }});
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &report.namespace);
        match api.patch_metadata(&report.name, &PatchParams::default(), &Patch::Merge(patch)).await
        {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(s)) if s.code == 404 || s.code == 409 => {
                Err(Status::not_found(format!("the pod is gone: {}", s.message)))
            }
            Err(e) => Err(Status::unavailable(super::reason(&e))),
        }
    }
}
