//! A node whose control plane is a script: a real agent, real pods, and discovery and certificates as a test words
//! them.

use std::fs;
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use scripted::control::{AdsStream, CaAnswer, ControlPlane, Csr};
use scripted::messages::{policy, response, workload};
use scripted::pki::{HOUR, Pki, leaf};
use testbed::{Bed, eventually, inside};
use xds::proto::{security, workload as pb};
use xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

use crate::control::DISCOVERY;
use crate::logs::ShownOnPanic;
use crate::{Agent, MeshPod, SOON, Spec};

/// What an agent expects its control plane to be called.
const NAME: &str = "culvertd.culvert-system.svc";

pub struct Stage {
    // First to be dropped: the bed takes the files along.
    _logs: ShownOnPanic,
    control: Option<ControlPlane>,
    pub pki: Arc<Pki>,
    pub agent: Agent,
    // Last: what runs in it is ended by its owners.
    pub bed: Bed,
}

impl Stage {
    /// One node, an agent that follows the script, and a CA that answers as it should.
    pub fn new(name: &str) -> Self {
        Self::with_args(name, &[])
    }

    /// The same with more arguments for the agent.
    pub fn with_args(name: &str, args: &[&str]) -> Self {
        let bed = Bed::new(name).unwrap();
        let logs = ShownOnPanic { dir: bed.dir().to_owned() };
        let pki = Arc::new(Pki::new("cluster.local"));
        let node = bed.node("n1").unwrap();
        let (root, token) = (bed.dir().join("root-cert.pem"), bed.dir().join("token"));
        fs::write(&root, pki.root_pem()).unwrap();
        fs::write(&token, "any").unwrap();
        let control = serve(&bed, &pki);
        let args: Vec<String> = args.iter().map(|&a| a.to_owned()).collect();
        let agent = Agent::start(node, &root, &token, &args, None);
        Self { _logs: logs, control: Some(control), pki, agent, bed }
    }

    pub fn control(&self) -> &ControlPlane {
        self.control.as_ref().expect("the control plane has been stopped")
    }

    /// Its connections break, and nobody listens.
    pub fn stop_control(&mut self) {
        self.control = None;
    }

    /// A listener where the control plane is to be, for a script of the caller's.
    pub fn discovery_listener(&self) -> TcpListener {
        listen(&self.bed)
    }

    pub fn start_control(&mut self) {
        self.control = Some(serve(&self.bed, &self.pki));
    }

    /// A pod of this node. The agent hears of it by discovery only.
    pub fn pod(&self, spec: impl Into<Spec>) -> MeshPod {
        let spec = spec.into();
        MeshPod::new(self.agent.node.pod_in(&spec.namespace, &spec.name).unwrap(), spec)
    }

    /// The next discovery stream, answered with these, which the agent must take.
    pub fn answer(
        &self,
        workloads: &[pb::Workload],
        policies: &[security::Authorization],
    ) -> AdsStream {
        let mut stream = self.control().stream();
        let all = workloads.iter().map(|w| workload("1", w)).collect();
        stream.taken(&response(ADDRESS_TYPE, "addresses-1", all, &[]));
        let all = policies.iter().map(|p| policy("1", p)).collect();
        stream.taken(&response(AUTHORIZATION_TYPE, "policies-1", all, &[]));
        stream
    }
}

fn listen(bed: &Bed) -> TcpListener {
    // A process that is being started elsewhere in this test may hold the one before for a moment.
    let bind = || inside(&bed.fabric_netns_path(), || Ok(TcpListener::bind(DISCOVERY)?));
    eventually(SOON, bind).unwrap()
}

fn serve(bed: &Bed, pki: &Arc<Pki>) -> ControlPlane {
    let control = ControlPlane::serve(listen(bed), pki, NAME);
    let pki = pki.clone();
    control.answer_csrs(move |csr| CaAnswer::Chain(certified(&pki, csr, HOUR)));
    control
}

/// What a sound CA answers: a leaf that ends so long from now, and the root.
pub fn certified(pki: &Pki, csr: &Csr, life: Duration) -> Vec<String> {
    let now = SystemTime::now();
    let params = leaf(&[&csr.identity], now - HOUR, HOUR + life);
    vec![pki.certify(&csr.pem, &params), pki.root_pem()]
}

/// The pod's record: healthy, reached by HBONE.
pub fn record(pod: &MeshPod) -> pb::Workload {
    let addresses = [IpAddr::from(pod.ipv4()), pod.ipv6().into()];
    let bytes = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec().into(),
        IpAddr::V6(v6) => v6.octets().to_vec().into(),
    };
    pb::Workload {
        uid: pod.uid(),
        name: pod.name().to_owned(),
        namespace: pod.namespace().to_owned(),
        addresses: addresses.iter().map(bytes).collect(),
        tunnel_protocol: pb::TunnelProtocol::Hbone.into(),
        service_account: pod.account(),
        node: pod.node().name().to_owned(),
        workload_name: pod.name().to_owned(),
        canonical_name: pod.name().to_owned(),
        cluster_id: "Kubernetes".to_owned(),
        pod_uid: pod.object_uid(),
        ..Default::default()
    }
}
