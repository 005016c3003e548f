//! A mesh: the bed, the control plane, an agent per node, and what is in it.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::{Bed, LeakCheck, Token, eventually};

use crate::logs::ShownOnPanic;
use crate::manifest::{self, Manifests};
use crate::{Agent, Clock, Control, MeshPod, SOON, Service, Spec};

/// How a [`Mesh`] is to be.
pub struct Builder {
    name: String,
    ttl: Option<u32>,
    agent_args: Vec<String>,
    clocks: bool,
}

/// Two nodes, `n1` and `n2`, with an agent each, and a control plane that both follow.
pub struct Mesh {
    // First to be dropped: the bed takes the files along.
    _logs: ShownOnPanic,
    pub control: Control,
    agents: Vec<Agent>,
    manifests: Manifests,
    services: AtomicU8,
    // Last: what runs in it is ended by its owners.
    pub bed: Bed,
}

impl Builder {
    /// The life of workload certificates.
    pub fn cert_ttl_seconds(mut self, seconds: u32) -> Self {
        self.ttl = Some(seconds);
        self
    }

    /// More arguments for `culvert-agent run`.
    pub fn agent_args(mut self, args: &[&str]) -> Self {
        self.agent_args.extend(args.iter().map(|&a| a.to_owned()));
        self
    }

    /// The nodes and the control plane have clocks that can be set: [`Agent::clock`], [`Control::clock`].
    pub fn clocks(mut self) -> Self {
        self.clocks = true;
        self
    }

    pub fn build(self) -> Mesh {
        let bed = Bed::new(&self.name).unwrap();
        let logs = ShownOnPanic { dir: bed.dir().to_owned() };
        let manifests = Manifests::new(bed.dir().join("config"));
        for namespace in ["default", "istio-system"] {
            manifests.ensure(&format!("namespace-{namespace}"), &manifest::namespace(namespace));
        }
        let tokens = bed.dir().join("tokens");
        let names = ["n1", "n2"];
        // Any secret will do; the node's name and the bed's make it differ.
        let token = |name: &str| format!("token-of-{name}-in-{}", bed.id());
        let lines: Vec<String> = names.iter().map(|n| format!("{n} {}\n", token(n))).collect();
        fs::write(&tokens, lines.concat()).unwrap();
        let clock = |name: &str| self.clocks.then(|| Clock::new(bed.dir(), name));
        let control = Control::start(&bed, manifests.dir(), &tokens, self.ttl, clock("control"));
        let agents: Vec<Agent> = names
            .iter()
            .map(|name| {
                let node = bed.node(name).unwrap();
                let file = node.dir().join("token");
                fs::write(&file, token(name)).unwrap();
                Agent::start(node, &control.root_cert(), &file, &self.agent_args, clock(name))
            })
            .collect();
        for agent in &agents {
            agent.wait_until_ready();
        }
        Mesh { _logs: logs, control, agents, manifests, services: AtomicU8::new(10), bed }
    }
}

impl Mesh {
    pub fn builder(name: &str) -> Builder {
        Builder { name: name.to_owned(), ttl: None, agent_args: Vec::new(), clocks: false }
    }

    pub fn new(name: &str) -> Self {
        Self::builder(name).build()
    }

    /// The agent of node `n1` or `n2`.
    pub fn agent(&self, number: usize) -> &Agent {
        &self.agents[number - 1]
    }

    pub fn agents(&self) -> &[Agent] {
        &self.agents
    }

    /// The agent of the pod's node.
    pub fn agent_of(&self, pod: &MeshPod) -> &Agent {
        self.agent(pod.node().number().into())
    }

    /// A pod that is not enrolled; returns once its own node's agent has heard of it.
    pub fn pod(&self, node: usize, spec: impl Into<Spec>) -> MeshPod {
        let spec = spec.into();
        let node = &self.agent(node).node;
        let (namespace, account) = (spec.namespace.clone(), spec.account.clone());
        self.manifests.ensure(&format!("namespace-{namespace}"), &manifest::namespace(&namespace));
        self.manifests.ensure(
            &manifest::file_name("serviceaccount", &namespace, &account),
            &manifest::service_account(&namespace, &account),
        );
        let pod = MeshPod::new(node.pod_in(&namespace, &spec.name).unwrap(), spec);
        self.write_pod(&pod);
        pod
    }

    /// A pod whose sandbox is made and in which nothing runs yet, as the API server knows it then: on its node, without
    /// an address. [`Agent::cni`] is what comes next.
    pub fn sandbox(&self, node: usize, spec: impl Into<Spec>) -> MeshPod {
        let pod = self.sandbox_nobody_heard_of(node, spec);
        self.write_pod(&pod);
        pod
    }

    /// As [`Mesh::sandbox`], while the API server's word of it has not come.
    pub fn sandbox_nobody_heard_of(&self, node: usize, spec: impl Into<Spec>) -> MeshPod {
        let spec = spec.into();
        let node = &self.agent(node).node;
        let pod = MeshPod::new(node.pod_in(&spec.namespace.clone(), &spec.name).unwrap(), spec);
        pod.record.lock().unwrap().started = false;
        pod
    }

    /// A new sandbox for the same pod, whose first is gone: the object has not changed.
    pub fn sandbox_again(&self, node: usize, pod: &MeshPod) -> MeshPod {
        let sandbox = self.agent(node).node.pod_in(pod.namespace(), pod.name()).unwrap();
        MeshPod { pod: sandbox, record: pod.record.clone() }
    }

    /// Writes the pod as it is now.
    pub fn tell(&self, pod: &MeshPod) {
        self.write_pod(pod);
    }

    /// The pod's containers run, and its status says so.
    pub fn has_started(&self, pod: &MeshPod) {
        pod.record.lock().unwrap().started = true;
        self.write_pod(pod);
    }

    /// A pod that both agents know to be in the mesh.
    pub fn enrolled_pod(&self, node: usize, spec: impl Into<Spec>) -> MeshPod {
        let pod = self.pod(node, spec);
        self.enroll(&pod);
        pod
    }

    /// Enrols a running pod as a CNI plugin does: capture first, then the word to all.
    pub fn enroll(&self, pod: &MeshPod) {
        self.capture(pod);
        self.announce(pod);
    }

    /// Only the word to all: that the pod is reached by HBONE, whoever answers there.
    pub fn announce(&self, pod: &MeshPod) {
        pod.record.lock().unwrap().redirected = true;
        self.write_pod(pod);
        self.known_as(pod, "HBONE");
    }

    /// Enrols many, and waits once.
    pub fn enroll_all(&self, pods: &[MeshPod]) {
        for pod in pods {
            self.capture(pod);
            pod.record.lock().unwrap().redirected = true;
            self.write_pod(pod);
        }
        for pod in pods {
            self.known_as(pod, "HBONE");
        }
    }

    /// Only the node's part: others still think of it as outside the mesh.
    pub fn capture(&self, pod: &MeshPod) {
        self.try_capture(pod).unwrap();
    }

    /// As [`Mesh::capture`], which fails while the pod's agent is away.
    pub fn try_capture(&self, pod: &MeshPod) -> Result<()> {
        self.agent_of(pod).try_enroll(pod)
    }

    /// As [`Mesh::enroll`], by someone who tries again until the agent is there, as a CNI plugin's
    /// caller does.
    pub fn enroll_patiently(&self, pod: &MeshPod) {
        eventually(SOON, || self.try_capture(pod)).unwrap();
        pod.record.lock().unwrap().redirected = true;
        self.write_pod(pod);
        self.known_as(pod, "HBONE");
    }

    /// As [`Mesh::unenroll`], by someone who tries again until the agent is there.
    pub fn unenroll_patiently(&self, pod: &MeshPod) {
        pod.record.lock().unwrap().redirected = false;
        self.write_pod(pod);
        self.known_as(pod, "TCP");
        eventually(SOON, || self.try_release(self.agent_of(pod), pod.namespace(), pod.name()))
            .unwrap();
    }

    /// The reverse of [`Mesh::enroll`]: first nobody sends it HBONE any more, then it is let go.
    pub fn unenroll(&self, pod: &MeshPod) {
        pod.record.lock().unwrap().redirected = false;
        self.write_pod(pod);
        self.known_as(pod, "TCP");
        self.release(pod);
    }

    /// Only the node's part.
    pub fn release(&self, pod: &MeshPod) {
        let (namespace, name) = (pod.namespace(), pod.name());
        let out = self.agent_of(pod).ctl(&["unenroll", "--namespace", namespace, "--name", name]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "cannot release {pod:?}: {said}");
    }

    /// Only the node's part, of a pod that may be gone; fails while the agent is away. One whose
    /// answer was lost has done it all the same.
    pub fn try_release(&self, agent: &Agent, namespace: &str, name: &str) -> Result<()> {
        let out = agent.ctl(&["unenroll", "--namespace", namespace, "--name", name]);
        let said = String::from_utf8_lossy(&out.stderr);
        let done = out.status.success() || said.contains("is enrolled on this node");
        ensure!(done, "cannot release {namespace}/{name}: {said}");
        Ok(())
    }

    /// Removes the pod and its manifest. Its enrolment, if any, is the caller's to end.
    pub fn delete_pod(&self, pod: MeshPod) {
        self.forget_pod(&pod);
        self.kill_pod(&pod);
    }

    /// Ends the pod; the control plane still thinks that it is there.
    pub fn kill_pod(&self, pod: &MeshPod) {
        pod.pod.clone().delete().unwrap();
    }

    /// Tells the control plane that the pod is gone.
    pub fn forget_pod(&self, pod: &MeshPod) {
        self.manifests.remove(&manifest::file_name("pod", pod.namespace(), pod.name()));
    }

    /// Sets a label of a running pod.
    pub fn label(&self, pod: &MeshPod, key: &str, value: &str) {
        pod.record.lock().unwrap().labels.insert(key.to_owned(), value.to_owned());
        self.write_pod(pod);
    }

    /// Takes the pod's address of IPv4 off its status, as in a cluster of IPv6 only.
    pub fn only_ipv6(&self, pod: &MeshPod) {
        let ip = pod.ipv6();
        pod.record.lock().unwrap().more["status"] =
            json!({ "podIP": ip, "podIPs": [{ "ip": ip }] });
        self.write_pod(pod);
    }

    fn write_pod(&self, pod: &MeshPod) {
        let file = manifest::file_name("pod", pod.namespace(), pod.name());
        self.manifests.write_object(&file, &pod.manifest());
    }

    /// Waits until every agent has the pod with this protocol.
    fn known_as(&self, pod: &MeshPod, protocol: &str) {
        self.workload_known(pod, |w| w["protocol"] == protocol);
    }

    /// Waits until every agent's record of the pod is as wanted.
    pub fn workload_known(&self, pod: &MeshPod, wanted: impl Fn(&Value) -> bool) {
        for agent in &self.agents {
            eventually(SOON, || {
                let workload = agent.workload(&pod.uid())?;
                ensure!(wanted(&workload), "on {} it is {workload}", agent.node.name());
                Ok(())
            })
            .unwrap();
        }
    }

    /// A service over all pods with the label `app: <name>`, reached by its addresses and its name; `pods` says which
    /// those are. For pods outside the mesh the nodes translate the address, as kube-proxy does.
    pub fn service(&self, name: &str, port: u16, target: u16, pods: &[&MeshPod]) -> Service {
        self.service_of(name, "tcp", port, target, pods)
    }

    /// The same of a port whose name says what is spoken there.
    pub fn service_of(
        &self,
        name: &str,
        protocol: &str,
        port: u16,
        target: u16,
        pods: &[&MeshPod],
    ) -> Service {
        let number = self.services.fetch_add(1, Ordering::Relaxed);
        let service = Service::new(name, number, protocol, port, target);
        service.install(&self.bed, pods);
        self.manifests
            .write_object(&manifest::file_name("service", "default", name), &service.manifest());
        for agent in &self.agents {
            eventually(SOON, || {
                let all = agent.rows("services")?;
                let row = all.iter().find(|s| s["hostname"] == service.hostname());
                let row = row.context("the service is not known")?;
                ensure!(row["endpoints"]["eligible"] == pods.len(), "{row}");
                Ok(())
            })
            .unwrap();
        }
        service
    }

    /// Writes any manifest; `file` names it for [`Mesh::delete`].
    pub fn apply(&self, file: &str, yaml: &str) {
        self.manifests.write(file, yaml);
    }

    pub(crate) fn apply_object(&self, file: &str, object: &Value) {
        self.manifests.write_object(file, object);
    }

    /// Lets another caller in: `who` is `<namespace>/<service account>`.
    pub(crate) fn add_token(&self, who: &str, token: &str) {
        let path = self.bed.dir().join("tokens");
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str(&format!("{who} {token}\n"));
        fs::write(&path, text).unwrap();
    }

    pub fn delete(&self, file: &str) {
        self.manifests.remove(file);
    }

    /// Applies an AuthorizationPolicy and waits until every agent has it. `spec` is the object's `spec`, in YAML flow
    /// style or JSON.
    pub fn policy(&self, namespace: &str, name: &str, spec: &str) {
        self.write_policy(namespace, name, spec);
        self.policy_known(&format!("{namespace}/{name}"));
    }

    /// Applies an AuthorizationPolicy without waiting.
    pub fn write_policy(&self, namespace: &str, name: &str, spec: &str) {
        let file = manifest::file_name("policy", namespace, name);
        self.apply(
            &file,
            &format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                 metadata: {{ namespace: {namespace}, name: {name} }}\nspec: {spec}\n"
            ),
        );
    }

    /// Removes an AuthorizationPolicy and waits until no agent has it.
    pub fn remove_policy(&self, namespace: &str, name: &str) {
        self.delete(&manifest::file_name("policy", namespace, name));
        let name = format!("{namespace}/{name}");
        for agent in &self.agents {
            eventually(SOON, || {
                let known = agent.rows("policies")?.iter().any(|p| p["name"] == name.as_str());
                ensure!(!known, "{name} is still known on {}", agent.node.name());
                Ok(())
            })
            .unwrap();
        }
    }

    /// Waits until every agent has the policy, `namespace/name`.
    pub fn policy_known(&self, name: &str) {
        for agent in &self.agents {
            eventually(SOON, || {
                let known = agent.rows("policies")?;
                ensure!(
                    known.iter().any(|p| p["name"] == name),
                    "{name} is not known on {}: {known:?}",
                    agent.node.name()
                );
                Ok(())
            })
            .unwrap();
        }
    }

    /// Waits until the pod's own agent knows that the selector policy `namespace/name` binds it.
    pub fn policy_bound(&self, name: &str, pod: &MeshPod) {
        let agent = self.agent_of(pod);
        eventually(SOON, || {
            let workload = agent.workload(&pod.uid())?;
            let bound = workload["policies"].as_array().context("no policies")?;
            ensure!(bound.iter().any(|p| p == name), "bound by {bound:?}");
            Ok(())
        })
        .unwrap();
    }

    /// What must not be seen between these pods.
    pub fn leak_check(&self, tokens: &[Token], pods: &[&MeshPod]) -> LeakCheck {
        let addresses: HashSet<IpAddr> =
            pods.iter().flat_map(|p| [IpAddr::from(p.ipv4()), p.ipv6().into()]).collect();
        LeakCheck { tokens: tokens.to_vec(), enrolled: addresses, ..LeakCheck::default() }
    }
}
