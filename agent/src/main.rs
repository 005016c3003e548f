//! `culvert-agent`: captures the traffic of a node's enrolled pods, gives each its identity, and
//! enforces L4 policy.

mod admin;
mod agent;
mod capture;
mod cause;
mod cni_config;
mod connections;
mod cri;
mod detach;
mod dial;
mod direct;
mod discovery;
mod dns;
mod enroll;
mod enrolment;
mod fault;
mod handover;
mod inbound;
mod installer;
mod kubelet;
mod kubernetes;
mod lost;
mod netlink;
mod netns;
mod outbound;
mod parting;
mod pods;
mod pods_of_node;
mod readiness;
mod reports;
mod scope;
mod seqpacket;
mod sockets;
mod sys;
mod why;
mod workers;

use agent::Agent;
use agent_api::handover::NodeSocket;
use anyhow::Context as _;
use arc_swap::ArcSwap;
use capture::{Capture, Sizes};
use clap::{Args, Parser, Subcommand};
use dial::AgentDial;
use direct::Direct;
use handover::{Estate, InheritedPod, TakingOver};
use hbone::{Pool, PoolConfig};
use http::StatusCode;
use identity::{CertStore, RootsFile};
use kubelet::Kubelet;
use mesh::{Local, Mesh};
use parting::Parting;
use pods::Pods;
use reports::Reports;
use scope::spawn_for_agent;
use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use telemetry::{Metrics, SeriesLimits};
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use workers::Workers;
use xds::ControlPlane;

#[derive(Parser)]
#[command(name = "culvert-agent", version, about = "Culvert's node agent")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent.
    Run(Box<Run>),
    /// Tell, hook by hook, what this kernel offers; fail when capture could not be complete.
    Check {
        /// The cgroup2 to try hooks in [default: where one is mounted]
        #[arg(long)]
        cgroup: Option<PathBuf>,
    },
    /// Tell whether the agent of `run --ready-file` carries this node's pods.
    Ready {
        /// As in `run`
        #[arg(long)]
        ready_file: PathBuf,
    },
    /// Take capture and guards off this node: its pods are unmeshed from then on.
    Detach(detach::Options),
}

#[derive(Args)]
struct Run {
    /// This node's name, as pods have it in spec.nodeName
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Holds the enrol and admin sockets and what is remembered of enrolled pods
    #[arg(long, default_value = "/run/culvert")]
    run_dir: PathBuf,
    /// Where programs, links and maps are pinned
    #[arg(long, default_value = "/sys/fs/bpf/culvert")]
    bpffs: PathBuf,
    /// The cgroup2 whose processes can be enrolled [default: the root of the hierarchy]
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// The control plane
    #[arg(long, default_value = "https://culvertd.culvert-system.svc:15012")]
    control: String,
    /// The DNS name that the control plane's certificate must have
    #[arg(long, default_value = "culvertd.culvert-system.svc")]
    control_name: String,
    /// Root certificates of the mesh and of the control plane, PEM
    #[arg(long, default_value = "/var/run/secrets/culvert/root-cert.pem")]
    root_cert: PathBuf,
    /// The token to present to the control plane; read anew for each call
    #[arg(long)]
    token: Option<PathBuf>,
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    /// Other names of the trust domain
    #[arg(long = "trust-domain-alias")]
    trust_domain_aliases: Vec<String>,
    #[arg(long, default_value = "Kubernetes")]
    cluster: String,
    /// What the names of the cluster's services end in
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    #[arg(long, default_value = "")]
    network: String,
    #[arg(long, default_value = "0.0.0.0:15020")]
    metrics: SocketAddr,
    #[arg(long, default_value = "0.0.0.0:15021")]
    readiness: SocketAddr,
    /// How long connections may take to finish after SIGTERM
    #[arg(long, default_value_t = 30)]
    drain_seconds: u64,
    /// Is there while this agent, and not one before or after it, carries the node's pods
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// Once another agent has taken over and all connections have ended, wait for SIGTERM: what starts agents
    /// would start this one again, to take over in turn
    #[arg(long)]
    linger: bool,
    /// Connections of all enrolled pods together that the kernel keeps track of
    #[arg(long, default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(1024..))]
    max_flows: u32,
    /// How connections between pods of this node travel: past the agent, in plaintext, after the first
    /// that policy allows; or encrypted like any other
    #[arg(long, value_enum, default_value_t = SameNode::Direct)]
    same_node: SameNode,
    /// Threads that carry connections [default: one for each processor, at most 4]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,
    /// An HBONE connection without streams is closed after this long
    #[arg(long, default_value_t = 90)]
    pool_idle_seconds: u64,
    #[command(flatten)]
    kubernetes: kubernetes::Options,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum SameNode {
    Direct,
    Hbone,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Check { cgroup } => netns::remember_home()
            .map_err(Into::into)
            .map(|()| capture::check::check(cgroup.as_deref())),
        Command::Ready { ready_file } => Ok(ready_file.exists()),
        Command::Detach(options) => options.detach().map(|()| true),
        Command::Run(run) => start(*run).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("culvert-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(run: Run) -> anyhow::Result<()> {
    sys::forbid_dumps();
    netns::remember_home()?;
    let _log = telemetry::log::start();
    raise_descriptor_limit();
    let (workers, _threads) =
        Workers::start(run.workers.map_or_else(default_workers, usize::from))?;
    // All that carries no bytes: discovery, enrolment, what the node asks.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(Box::pin(serve(run, workers)))
}

/// Each has HBONE connections of its own: more than a few would rarely share any.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}

/// Each connection takes two descriptors.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = hard.max(1_048_576);
        if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_err() {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
    }
}

async fn serve(run: Run, workers: Workers) -> anyhow::Result<()> {
    fs::create_dir_all(&run.run_dir)
        .with_context(|| format!("creating {}", run.run_dir.display()))?;
    let heritage = Heritage::claim(&run.run_dir).await?;
    let cgroup = match &run.cgroup {
        Some(c) => c.clone(),
        None => capture::find_cgroup2()?,
    };
    let capture = Capture::open(&run.bpffs, &cgroup, Sizes { flows: run.max_flows })?;

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (drain, draining) = watch::channel(false);
    let agent = build(&run, capture, workers, draining, heritage.taking_over.is_none())?;
    let mut superseded = agent.superseded.subscribe();

    let (taken_up, is_taken_up) = watch::channel(false);
    let sockets = NodeSockets::open(&run, heritage.sockets)?;
    let estate = sockets.estate(heritage.lock)?;
    sockets.serve(&agent, is_taken_up.clone())?;
    spawn_for_agent(follow_discovery(agent.clone(), control_plane(&run), run.node.clone()));
    spawn_for_agent(agent.clone().judge_live_connections());
    spawn_for_agent(sweep(agent.clone()));
    spawn_for_agent(give_memory_back(agent.clone()));
    if let Some(path) = run.ready_file.clone() {
        spawn_for_agent(readiness::keep_file(agent.clone(), path, is_taken_up.clone()));
    }
    run.kubernetes.start(&agent, control_plane(&run), &run.run_dir, &is_taken_up)?;
    spawn_for_agent(direct::keep(agent.clone(), is_taken_up));
    tracing::info!(node = run.node, cgroup = %cgroup.display(), "agent started");

    let begin = begin(&agent, heritage.pods, heritage.taking_over, taken_up);
    tokio::select! {
        begun = Box::pin(begin) => {
            begun?;
            // The next agent finds this one from here on.
            let path = run.run_dir.join(HANDOVER);
            let listener = seqpacket::Listener::bind(&path)?;
            fault::point("handover-offering");
            spawn_for_agent(handover::offer(agent.clone(), listener, path, estate));
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = superseded.wait_for(|s| *s) => {
                    tracing::info!("another agent has taken over");
                }
            }
        }
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(connections = agent.connections.len(), "draining");
    let _ = drain.send(true);
    for pod in agent.pods.all() {
        pod.leave();
    }
    tokio::select! {
        () = until_idle(&agent) => tracing::info!("every connection has finished"),
        () = tokio::time::sleep(Duration::from_secs(run.drain_seconds)) => {
            tracing::warn!(connections = agent.connections.len(), "the drain's deadline has passed");
        }
        // A second signal means now.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    if run.linger && *superseded.borrow() {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    Ok(())
}

/// In the run directory: who runs, the sockets, and the records of enrolled pods.
const LOCK: &str = "agent.lock";
/// By which one agent takes another's place.
const HANDOVER: &str = "handover.sock";
const ENROLL: &str = "enroll.sock";
const ADMIN: &str = "admin.sock";
const PODS: &str = "pods";

/// What an agent begins with: the lock on its directory, and all that another gives.
struct Heritage {
    lock: OwnedFd,
    sockets: HashMap<NodeSocket, OwnedFd>,
    pods: Vec<InheritedPod>,
    taking_over: Option<TakingOver>,
}

impl Heritage {
    /// Two agents on one node's state would undo each other's work: the one that is there already is
    /// asked to hand over, and is waited for if it is about to end.
    async fn claim(run_dir: &Path) -> anyhow::Result<Self> {
        let path = run_dir.join(LOCK);
        let deadline = Instant::now() + END_OF_ANOTHER;
        loop {
            let file =
                fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
            if file.try_lock().is_ok() {
                return Ok(Self {
                    lock: file.into(),
                    sockets: HashMap::new(),
                    pods: Vec::new(),
                    taking_over: None,
                });
            }
            match handover::take_over(&run_dir.join(HANDOVER)).await {
                Ok(handover::Outcome::TakenOver(inherited)) => {
                    let (lock, sockets, pods, line) = inherited.split();
                    tracing::info!(pods = pods.len(), "taking over from another agent");
                    return Ok(Self { lock, sockets, pods, taking_over: Some(line) });
                }
                Ok(handover::Outcome::Nobody) if Instant::now() < deadline => {}
                Ok(handover::Outcome::Nobody) => anyhow::bail!(
                    "another agent holds {} and does not hand over: stop it first, or give this one \
                     another --run-dir and --bpffs",
                    path.display()
                ),
                Err(error) => return Err(error).context("taking over from the agent that is here"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// How long an agent that is ending already is waited for.
const END_OF_ANOTHER: Duration = Duration::from_secs(5);

/// Pods of an earlier agent first: they are closed until then, or the earlier agent's.
async fn begin(
    agent: &Arc<Agent>,
    inherited: Vec<InheritedPod>,
    taking_over: Option<TakingOver>,
    taken_up: watch::Sender<bool>,
) -> anyhow::Result<()> {
    let prepare = async {
        // Their records come with discovery's first answer.
        let synced = agent.synced().await;
        if synced {
            agent.capture.retain_meshed(|ip| agent.mesh.is_meshed(ip));
        }
        let outcome = Box::pin(enrolment::take_up(agent, true, inherited)).await;
        (synced, outcome)
    };
    match taking_over {
        None => drop(Box::pin(prepare).await),
        Some(line) => {
            let prepared = async {
                let (synced, outcome) = prepare.await;
                if !synced {
                    return Err("discovery has not answered this agent yet".to_owned());
                }
                outcome?;
                for pod in agent.pods.all() {
                    let fetched = agent.certs.fetch(&pod.identity, agent::PATIENCE).await;
                    fetched.map_err(|why| format!("no certificate for {}: {why}", pod.identity))?;
                }
                fault::point("handover-prepared");
                Ok(())
            };
            line.finish(agent, Box::pin(prepared))
                .await
                .context("taking over from the agent that is here")?;
            tracing::info!("this agent serves now");
        }
    }
    let _ = taken_up.send(true);
    Ok(())
}

/// What the node talks to this agent by.
struct NodeSockets {
    enroll: seqpacket::Listener,
    admin: UnixListener,
    metrics: TcpListener,
    readiness: TcpListener,
}

impl NodeSockets {
    fn open(run: &Run, mut inherited: HashMap<NodeSocket, OwnedFd>) -> anyhow::Result<Self> {
        let mut tcp = |which, at| -> anyhow::Result<TcpListener> {
            Ok(TcpListener::from_std(admin::bind(at, inherited.remove(&which))?)?)
        };
        let metrics = tcp(NodeSocket::Metrics, run.metrics)?;
        let readiness = tcp(NodeSocket::Readiness, run.readiness)?;
        let enroll = match inherited.remove(&NodeSocket::Enroll) {
            Some(fd) => seqpacket::Listener::from_fd(fd)?,
            None => seqpacket::Listener::bind(&run.run_dir.join(ENROLL))?,
        };
        let admin = match inherited.remove(&NodeSocket::Admin) {
            Some(fd) => UnixListener::from_std(fd.into())?,
            None => admin::open(&run.run_dir.join(ADMIN))?,
        };
        Ok(Self { enroll, admin, metrics, readiness })
    }

    fn estate(&self, lock: OwnedFd) -> anyhow::Result<Estate> {
        let sockets = [
            (NodeSocket::Enroll, self.enroll.as_fd()),
            (NodeSocket::Admin, self.admin.as_fd()),
            (NodeSocket::Metrics, self.metrics.as_fd()),
            (NodeSocket::Readiness, self.readiness.as_fd()),
        ];
        let sockets = sockets
            .into_iter()
            .map(|(which, fd)| Ok((which, fd.try_clone_to_owned()?)))
            .collect::<std::io::Result<_>>()?;
        Ok(Estate { lock, sockets })
    }

    fn serve(self, agent: &Arc<Agent>, taken_up: watch::Receiver<bool>) -> anyhow::Result<()> {
        serve_metrics(agent, self.metrics);
        readiness::serve(agent, self.readiness, taken_up.clone());
        spawn_for_agent(admin::serve(agent.clone(), self.admin));
        let (agent, mut taken_up) = (agent.clone(), taken_up);
        spawn_for_agent(async move {
            if taken_up.wait_for(|t| *t).await.is_ok() {
                enroll::serve(agent, self.enroll).await;
            }
        });
        Ok(())
    }
}

fn control_plane(run: &Run) -> ControlPlane {
    ControlPlane {
        address: run.control.clone(),
        name: run.control_name.clone(),
        root_cert: run.root_cert.clone(),
        token: run.token.clone(),
        cluster: run.cluster.clone(),
        validity: Duration::from_secs(24 * 60 * 60),
    }
}

fn build(
    run: &Run,
    capture: Capture,
    workers: Workers,
    draining: watch::Receiver<bool>,
    serving: bool,
) -> anyhow::Result<Arc<Agent>> {
    let (file, roots) =
        RootsFile::open(&run.root_cert, &run.trust_domain, &run.trust_domain_aliases)?;
    let roots = Arc::new(ArcSwap::from_pointee(roots));
    let certs = CertStore::new(Arc::new(control_plane(run)), roots);
    let trusting = certs.clone();
    spawn_for_agent(async move { match file.follow(&trusting).await {} });
    let dial = AgentDial { agent: Arc::new(OnceLock::new()), certs: certs.clone() };
    let late = dial.agent.clone();
    let capture_generation = capture.generation();
    let idle = Duration::from_secs(run.pool_idle_seconds);
    let agent = Arc::new(Agent {
        capture,
        workers,
        mesh: Mesh::new(Local {
            node: run.node.as_str().into(),
            cluster: run.cluster.as_str().into(),
            network: run.network.as_str().into(),
            ..Local::default()
        }),
        certs,
        pool: Pool::new(dial, PoolConfig { idle }),
        connections: Arc::default(),
        direct: Direct::after(capture_generation),
        goes_direct: run.same_node == SameNode::Direct && can_end_connections(),
        metrics: Arc::new(Metrics::new(SeriesLimits::default())),
        pods: Pods::new(run.run_dir.join(PODS))?,
        trust_domain_aliases: run.trust_domain_aliases.iter().map(|a| a.as_str().into()).collect(),
        draining,
        serving: watch::Sender::new(serving),
        superseded: watch::Sender::new(false),
        succeeds: watch::Sender::new(false),
        enrol_clients: watch::Sender::new(0),
        reports: Reports::default(),
        changes: watch::Sender::new(0),
        kubelet: Kubelet::new(&run.kubernetes.kubelet_program),
        parting: Parting::default(),
        node: run.node.clone(),
        cluster: run.cluster.clone(),
        cluster_domain: run.cluster_domain.to_lowercase(),
        dns: dns::Counters::default(),
    });
    let _ = late.set(Arc::downgrade(&agent));
    let told = Arc::downgrade(&agent);
    agent.mesh.tell_changed(move || {
        if let Some(agent) = told.upgrade() {
            agent.direct.expire(&agent);
            agent.changes.send_modify(|n| *n = n.wrapping_add(1));
        }
    });
    let told = Arc::downgrade(&agent);
    agent.mesh.tell_meshed(move |changes| {
        if let Some(agent) = told.upgrade() {
            agent.parting.note(Instant::now(), changes);
            agent.capture.set_meshed(changes);
        }
    });
    Ok(agent)
}

/// Connections past the agent are ended in the kernel when policy changes, or there are none.
fn can_end_connections() -> bool {
    let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
    let outcome = netlink::destroy_tcp(nobody, nobody, 1);
    if let Err(error) = &outcome {
        tracing::warn!(%error, "this kernel does not let connections be reset (CONFIG_INET_DIAG_DESTROY): \
            those between pods of this node go through the agent");
    }
    outcome.is_ok()
}

async fn follow_discovery(agent: Arc<Agent>, control: ControlPlane, name: String) {
    let ip = std::net::Ipv4Addr::UNSPECIFIED.to_string();
    let node = discovery::node(&name, &ip, &control.cluster);
    let types = [xds::ADDRESS_TYPE, xds::AUTHORIZATION_TYPE];
    let following = discovery::Following(agent.mesh.clone());
    match xds::client::follow(&control, node, &types, &following).await {}
}

async fn sweep(agent: Arc<Agent>) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        let now = Instant::now();
        agent.pool.sweep(now);
        agent.metrics.sweep(now);
        agent.parting.sweep(now);
        lost::tell(&agent.pods.all());
        enrolment::sweep_earlier(&agent);
        // Not before the first attempt, which waits for discovery.
        let ready = agent.mesh.synced().borrow().ready();
        if ready && *agent.serving.borrow() && !*agent.draining.borrow() {
            let _ = Box::pin(enrolment::take_up(&agent, false, Vec::new())).await;
        }
    }
}

/// The allocator keeps what was freed between what is in use: of 15,000 connections that had ended, 195 MB
/// remained, and 90 MB do now. The first second, too, leaves some behind, and so does each enrolment.
async fn give_memory_back(agent: Arc<Agent>) {
    let (mut most, mut enrolled) = (usize::MAX, 0);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let open = agent.connections.len();
        most = most.max(open);
        let enrolments = agent.pods.next_owner.load(std::sync::atomic::Ordering::Relaxed);
        if most - open >= MANY_ENDED || enrolments != enrolled {
            let has_enrolled = enrolments != enrolled;
            (most, enrolled) = (open, enrolments);
            let give_back = move || {
                sys::give_memory_back();
                // Connections run the same code again and again.
                if has_enrolled {
                    sys::give_code_back();
                }
            };
            let _ = tokio::task::spawn_blocking(give_back).await;
        }
    }
}

/// Some 10 MB.
const MANY_ENDED: usize = 1000;

fn serve_metrics(agent: &Arc<Agent>, at: TcpListener) {
    let own = agent.clone();
    admin::serve_http(agent, at, move |path| match path {
        "/metrics" | "/stats/prometheus" => (StatusCode::OK, admin::metrics(&own)),
        _ => (StatusCode::NOT_FOUND, "/metrics is here\n".to_owned()),
    });
}

/// Returns once the last frame of the last connection has left.
pub async fn until_idle(agent: &Agent) {
    let pods = agent.pods.all();
    for pod in &pods {
        pod.scope.idle().await;
    }
    agent.pool.let_go(|_| true);
    for pod in &pods {
        pod.scope.settle(enrolment::LAST_FRAMES).await;
    }
    agent.pods.let_go().await;
    let _ = agent.enrol_clients.subscribe().wait_for(|clients| *clients == 0).await;
}
