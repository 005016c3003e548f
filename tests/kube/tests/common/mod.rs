//! culvertd on an API server, for tests that look at both.
#![allow(dead_code)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use identity::{CertificateAuthority as _, SpiffeId, new_request};
use kubebed::ApiServer;
use testbed::{Bed, Proc, binary, eventually, inside};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use xds::ControlPlane;
use xds::proto::node::{ReportRequest, node_client::NodeClient};

pub const SOON: Duration = Duration::from_secs(60);
pub const SYSTEM: &str = "culvert-system";

/// A control plane beside the API server, under its own service account and rights.
pub struct Culvertd<'a> {
    pub api: &'a ApiServer,
    pub bed: &'a Bed,
    pub proc: Option<Proc>,
    pub dir: PathBuf,
}

impl<'a> Culvertd<'a> {
    /// Waits until it serves.
    pub fn start(bed: &'a Bed, api: &'a ApiServer) -> Self {
        let this = Self::begin(bed, api);
        this.ready().unwrap();
        this
    }

    /// With nothing kept from an earlier one.
    pub fn begin(bed: &'a Bed, api: &'a ApiServer) -> Self {
        let dir = bed.dir().join("culvertd");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let mut this = Self { api, bed, proc: None, dir };
        this.restart();
        this
    }

    pub fn restart(&mut self) {
        drop(self.proc.take());
        let kubeconfig = self.api.account_kubeconfig(SYSTEM, "culvertd").unwrap();
        let mut cmd = Command::new(binary("culvertd").unwrap());
        cmd.args(["run", "--kubernetes", "--namespace", SYSTEM, "--pod", "culvertd-0"])
            .args(["--waypoint-image", "culvert:test", "--state-dir"])
            .arg(&self.dir)
            .env("KUBECONFIG", kubeconfig);
        self.proc = Some(self.bed.spawn_fabric(cmd).unwrap());
    }

    pub fn log(&self) -> String {
        let proc = self.proc.as_ref().unwrap();
        format!("{}{}", proc.stdout(), proc.stderr())
    }

    /// What the monitoring port answers.
    pub fn ask(&self, path: &str) -> Result<String> {
        inside(&self.bed.fabric_netns_path(), || {
            let mut s = TcpStream::connect("127.0.0.1:15014")?;
            write!(s, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            s.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }

    pub fn ready(&self) -> Result<()> {
        eventually(SOON, || {
            let answer = self.ask("/ready")?;
            ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            Ok(())
        })
        .with_context(|| self.log())
    }

    pub fn resources(&self, kind: &str) -> Result<u64> {
        let metrics = self.ask("/metrics")?;
        let wanted = format!("culvertd_resources{{type=\"{kind}\"}} ");
        let line = metrics.lines().find_map(|l| l.strip_prefix(&wanted));
        Ok(line.with_context(|| metrics.clone())?.parse()?)
    }

    /// Asks the CA for an identity with a token.
    pub fn certify(&self, token: &str, identity: &str) -> Result<Vec<String>> {
        let (token_file, root) = (self.dir.join("token"), self.dir.join("root-cert.pem"));
        std::fs::write(&token_file, token)?;
        let control = ControlPlane {
            address: "https://127.0.0.1:15012".to_owned(),
            name: "culvertd.culvert-system.svc".to_owned(),
            root_cert: root,
            token: Some(token_file),
            cluster: "Kubernetes".to_owned(),
            validity: Duration::from_secs(3600),
        };
        let identity: SpiffeId = identity.parse()?;
        self.inside(async move {
            let csr = new_request(&identity)?;
            Ok(control.certify(&identity, &csr.csr_pem).await?)
        })
    }

    /// Says what an agent says of a pod.
    pub fn report(
        &self,
        token: &str,
        pod_uid: &str,
        namespace: &str,
        name: &str,
        enrolled: bool,
    ) -> Result<()> {
        let root = std::fs::read(self.dir.join("root-cert.pem"))?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(root))
            .domain_name("culvertd.culvert-system.svc");
        let (pod_uid, namespace, name) = (pod_uid.into(), namespace.into(), name.into());
        let report = ReportRequest { pod_uid, namespace, name, enrolled };
        let bearer = format!("Bearer {token}").parse()?;
        self.inside(async move {
            let endpoint = Endpoint::from_static("https://127.0.0.1:15012").tls_config(tls)?;
            let mut request = tonic::Request::new(report);
            request.metadata_mut().insert("authorization", bearer);
            match NodeClient::new(endpoint.connect().await?).report(request).await {
                Ok(_) => Ok(()),
                Err(status) => bail!("{:?}: {}", status.code(), status.message()),
            }
        })
    }

    /// In the network of the API server.
    pub fn inside<T: Send>(&self, what: impl Future<Output = Result<T>> + Send) -> Result<T> {
        inside(&self.bed.fabric_netns_path(), || {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(what)
        })
    }
}

pub fn chart(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(name)
}

/// An API server with everything that the chart brings.
pub fn installed(bed: &Bed) -> ApiServer {
    let api = ApiServer::start(bed).unwrap();
    api.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {SYSTEM}}}}}"))
        .unwrap();
    let crds = chart("helm/culvert/crds");
    let mut files: Vec<_> = std::fs::read_dir(&crds).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    for file in files {
        api.kubectl(&["apply", "--server-side", "-f", file.to_str().unwrap()]).unwrap();
    }
    let all = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
    // Of one without any condition yet it thinks nothing good.
    eventually(SOON, || api.kubectl(&all)).unwrap();
    manifests(&api);
    // Nothing here routes addresses of services: the control plane's is one of the API server's own machine.
    let address = field(&api, "service/culvertd", SYSTEM, ".spec.clusterIP").unwrap();
    inside(&bed.fabric_netns_path(), || {
        let address = format!("{address}/32");
        let add = Command::new("ip").args(["address", "add", &address, "dev", "lo"]).status()?;
        ensure!(add.success(), "ip: {add}");
        Ok(())
    })
    .unwrap();
    api
}

/// What the chart brings, with the webhook at the port that the control plane itself listens at.
pub fn manifests(api: &ApiServer) {
    let manifests = chart("manifests/culvert.yaml");
    let manifests = manifests.to_str().unwrap();
    api.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", manifests]).unwrap();
    let port =
        r#"[{"op": "replace", "path": "/webhooks/0/clientConfig/service/port", "value": 15017}]"#;
    let webhook = ["patch", "validatingwebhookconfiguration", "culvert-validator"];
    api.kubectl(&[&webhook[..], &["--type=json", "-p", port]].concat()).unwrap();
    let ports = r#"{"spec": {"ports": [{"name": "direct", "port": 15017, "targetPort": 15017}]}}"#;
    api.kubectl(&["patch", "service", "culvertd", "-n", SYSTEM, "-p", ports]).unwrap();
}

pub fn apply(api: &ApiServer, yaml: &str) {
    api.apply(yaml).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
}

pub fn field(api: &ApiServer, what: &str, namespace: &str, path: &str) -> Result<String> {
    api.kubectl(&["get", what, "-n", namespace, "-o", &format!("jsonpath={{{path}}}")])
}

pub fn becomes(api: &ApiServer, what: &str, namespace: &str, path: &str, wanted: &str) {
    let seen = eventually(SOON, || {
        let found = field(api, what, namespace, path)?;
        ensure!(found.contains(wanted), "{what} {path}: {found:?}, not {wanted:?}");
        Ok(())
    });
    seen.unwrap();
}

/// A pod that runs, as far as the API server knows.
pub fn pod(
    api: &ApiServer,
    namespace: &str,
    name: &str,
    account: &str,
    node: &str,
    ip: &str,
    labels: &str,
) {
    apply(
        api,
        &format!(
            "{{apiVersion: v1, kind: ServiceAccount, metadata: {{name: {account}, namespace: {namespace}}}}}\n---\n\
             {{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}},\n\
             spec: {{nodeName: {node}, serviceAccountName: {account}, containers: [{{name: c, image: none}}]}}}}"
        ),
    );
    let status = format!(
        "{{\"status\":{{\"phase\":\"Running\",\"podIP\":\"{ip}\",\"podIPs\":[{{\"ip\":\"{ip}\"}}],\
         \"conditions\":[{{\"type\":\"Ready\",\"status\":\"True\"}}]}}}}"
    );
    api.kubectl(&["patch", "pod", name, "-n", namespace, "--subresource=status", "-p", &status])
        .unwrap();
}

pub fn token(
    api: &ApiServer,
    namespace: &str,
    account: &str,
    audience: &str,
    pod: Option<&str>,
) -> String {
    let mut args = vec!["create", "token", account, "-n", namespace, "--audience", audience];
    if let Some(pod) = pod {
        args.extend(["--bound-object-kind", "Pod", "--bound-object-name", pod]);
    }
    api.kubectl(&args).unwrap().trim().to_owned()
}
