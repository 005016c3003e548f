//! `culvert-agent`: captures the traffic of a node's enrolled pods, gives each its identity, and
//! enforces L4 policy.

mod admin;
mod agent;
mod capture;
mod connections;
mod dial;
mod discovery;
mod dns;
mod enroll;
mod inbound;
mod log;
mod netlink;
mod netns;
mod outbound;
mod pods;
mod scope;
mod sockets;
mod sys;

use agent::Agent;
use anyhow::Context as _;
use arc_swap::ArcSwap;
use capture::{Capture, Sizes};
use clap::{Args, Parser, Subcommand};
use dial::AgentDial;
use discovery::ControlPlane;
use hbone::{Pool, PoolConfig};
use http::StatusCode;
use identity::{CertStore, Roots};
use mesh::{Local, Mesh};
use pods::Pods;
use scope::spawn_for_agent;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use telemetry::{Metrics, SeriesLimits};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

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
    /// Take capture and guards off this node: its pods are unmeshed from then on.
    Detach {
        #[arg(long, default_value = "/sys/fs/bpf/culvert")]
        bpffs: PathBuf,
    },
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
    /// Connections of all enrolled pods together that the kernel keeps track of
    #[arg(long, default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(1024..))]
    max_flows: u32,
    /// An HBONE connection without streams is closed after this long
    #[arg(long, default_value_t = 90)]
    pool_idle_seconds: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Check { cgroup } => netns::remember_home()
            .map_err(Into::into)
            .map(|()| capture::check::check(cgroup.as_deref())),
        Command::Detach { bpffs } => capture::detach(&bpffs).map(|()| true),
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
    log::start();
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(Box::pin(serve(run)))
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

async fn serve(run: Run) -> anyhow::Result<()> {
    fs::create_dir_all(&run.run_dir)
        .with_context(|| format!("creating {}", run.run_dir.display()))?;
    let _only_one = lock(&run.run_dir)?;
    let cgroup = match &run.cgroup {
        Some(c) => c.clone(),
        None => capture::find_cgroup2()?,
    };
    let capture = Capture::open(&run.bpffs, &cgroup, Sizes { flows: run.max_flows })?;

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (drain, draining) = watch::channel(false);
    let agent = build(&run, capture, draining)?;

    let enroll = enroll::open(&run.run_dir.join("enroll.sock"))?;
    let admin_socket = admin::open(&run.run_dir.join("admin.sock"))?;
    spawn_for_agent(follow_discovery(agent.clone(), control_plane(&run), run.node.clone()));
    spawn_for_agent(agent.clone().judge_live_connections());
    spawn_for_agent(sweep(agent.clone()));
    spawn_for_agent(admin::serve(agent.clone(), admin_socket));
    serve_metrics(&agent, run.metrics).await?;

    // Pods of an earlier agent first: they are closed until then.
    let (taken_up, is_taken_up) = watch::channel(false);
    serve_readiness(&agent, run.readiness, is_taken_up).await?;
    {
        let agent = agent.clone();
        spawn_for_agent(async move {
            // Their records come with discovery's first answer.
            agent.synced().await;
            Box::pin(pods::take_up(&agent, true)).await;
            let _ = taken_up.send(true);
            enroll::serve(agent, enroll).await;
        });
    }
    tracing::info!(node = run.node, cgroup = %cgroup.display(), "agent started");

    tokio::select! {
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
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
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
    draining: watch::Receiver<bool>,
) -> anyhow::Result<Arc<Agent>> {
    let roots = Arc::new(ArcSwap::from_pointee(read_roots(run)?));
    let certs = CertStore::new(Arc::new(control_plane(run)), roots.clone());
    let dial = AgentDial { agent: Arc::new(OnceLock::new()), certs: certs.clone() };
    let late = dial.agent.clone();
    let idle = Duration::from_secs(run.pool_idle_seconds);
    let agent = Arc::new(Agent {
        capture,
        mesh: Mesh::new(Local {
            node: run.node.as_str().into(),
            cluster: run.cluster.as_str().into(),
            network: run.network.as_str().into(),
            ..Local::default()
        }),
        certs,
        pool: Pool::new(dial, PoolConfig { idle }),
        connections: Arc::default(),
        metrics: Arc::new(Metrics::new(SeriesLimits::default())),
        pods: Pods::new(run.run_dir.join("pods"))?,
        trust_domain_aliases: run.trust_domain_aliases.iter().map(|a| a.as_str().into()).collect(),
        draining,
        node: run.node.clone(),
        cluster_domain: run.cluster_domain.to_lowercase(),
        dns: dns::Counters::default(),
    });
    let _ = late.set(Arc::downgrade(&agent));
    Ok(agent)
}

fn read_roots(run: &Run) -> anyhow::Result<Roots> {
    let pem = fs::read(&run.root_cert).with_context(|| {
        format!(
            "reading the mesh's root certificates {} (--root-cert): culvertd writes them into its \
             state directory as root-cert.pem",
            run.root_cert.display()
        )
    })?;
    let mut roots = Roots::from_pem(&run.trust_domain, &pem)?;
    for alias in &run.trust_domain_aliases {
        roots.alias(&run.trust_domain, alias);
    }
    Ok(roots)
}

/// Two agents on one node's state would undo each other's work.
fn lock(run_dir: &Path) -> anyhow::Result<nix::fcntl::Flock<fs::File>> {
    let path = run_dir.join("agent.lock");
    let file = fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|_| {
        anyhow::anyhow!(
            "another agent holds {}: stop it first, or give this one another --run-dir and --bpffs",
            path.display()
        )
    })
}

async fn follow_discovery(agent: Arc<Agent>, control: ControlPlane, name: String) {
    let ip = std::net::Ipv4Addr::UNSPECIFIED.to_string();
    let node = discovery::node(&name, &ip, &control.cluster);
    let types = [xds::ADDRESS_TYPE, xds::AUTHORIZATION_TYPE];
    match xds::client::follow(&control, node, &types, &*agent.mesh).await {}
}

async fn sweep(agent: Arc<Agent>) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        let now = Instant::now();
        agent.pool.sweep(now);
        agent.metrics.sweep(now);
        pods::sweep_earlier(&agent);
        // Not before the first attempt, which waits for discovery.
        if agent.mesh.synced().borrow().ready() && !*agent.draining.borrow() {
            Box::pin(pods::take_up(&agent, false)).await;
        }
    }
}

async fn serve_metrics(agent: &Arc<Agent>, at: SocketAddr) -> anyhow::Result<()> {
    let agent = agent.clone();
    admin::serve_http(at, move |path| match path {
        "/metrics" | "/stats/prometheus" => (StatusCode::OK, admin::metrics(&agent)),
        _ => (StatusCode::NOT_FOUND, "/metrics is here\n".to_owned()),
    })
    .await
}

async fn serve_readiness(
    agent: &Arc<Agent>,
    at: SocketAddr,
    taken_up: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let agent = agent.clone();
    admin::serve_http(at, move |path| {
        let discovered = agent.mesh.synced().borrow().ready();
        let unavailable = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
        match path {
            "/healthz/ready" if *agent.draining.borrow() => unavailable("draining"),
            "/healthz/ready" if !discovered => unavailable("discovery has not answered yet"),
            "/healthz/ready" if !*taken_up.borrow() => unavailable("taking up enrolled pods"),
            "/healthz/ready" => (StatusCode::OK, "ready\n".to_owned()),
            _ => (StatusCode::NOT_FOUND, "/healthz/ready is here\n".to_owned()),
        }
    })
    .await
}

/// Returns once the last frame of the last connection has left.
async fn until_idle(agent: &Agent) {
    let pods = agent.pods.all();
    for pod in &pods {
        pod.scope.idle().await;
    }
    agent.pool.let_go(|_| true);
    for pod in &pods {
        pod.scope.settle(pods::LAST_FRAMES).await;
    }
}
