//! `culvert-waypoint`: the L7 proxy of a namespace or a service.

mod admin;
mod body;
mod clients;
mod cluster;
mod discovery;
mod doors;
mod exchange;
mod forward;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gateway;
mod head;
mod http;
mod http2;
mod inbound;
mod interim;
mod parting;
mod proxy;
mod reply;
mod retry;
mod spans;
mod tables;
mod tcp;
mod telling;
mod tls;
mod trace;
mod upstream;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use clap::Parser;
use clients::Clients;
use doors::Doors;
use hbone::{Pool, PoolConfig};
use identity::{CertStore, RootsFile, SpiffeId};
use mesh::{Local, Mesh};
use proxy::{Dialler, Proxy};
use resolver::Resolver;
use std::{
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};
use telemetry::{Metrics, RequestMetrics, SeriesLimits};
use tokio::{net::TcpListener, sync::watch};
use xds::ControlPlane;

#[derive(Parser)]
#[command(name = "culvert-waypoint", version, about = "Culvert's L7 proxy")]
struct Cli {
    /// The Gateway that this proxy stands for
    #[arg(long, env = "GATEWAY_NAME")]
    gateway: String,
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    #[arg(long, env = "POD_NAME")]
    pod: String,
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "default")]
    service_account: String,
    /// The control plane's discovery and CA
    #[arg(long, default_value = "https://culvertd.culvert-system.svc:15012")]
    control: String,
    /// The name in the control plane's certificate
    #[arg(long, default_value = "culvertd.culvert-system.svc")]
    control_name: String,
    /// The mesh's root certificates, which the control plane's chain ends in as well
    #[arg(long, default_value = "/var/run/secrets/istio/root-cert.pem")]
    root_cert: PathBuf,
    /// This service account's token, read anew for each call
    #[arg(long)]
    token: Option<PathBuf>,
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    /// Another name of the trust domain; may be given more than once
    #[arg(long = "trust-domain-alias")]
    trust_domain_aliases: Vec<String>,
    #[arg(long, default_value = "Kubernetes")]
    cluster: String,
    #[arg(long, default_value = "")]
    network: String,
    /// HBONE
    #[arg(long, default_value_t = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15008))]
    listen: SocketAddr,
    /// /metrics and /healthz/ready
    #[arg(long, default_value_t = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15020))]
    monitor: SocketAddr,
    /// Threads that move requests; 0: one per processor
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// A name server, with its port, for hosts outside the mesh; may be given more than once. Without
    /// any: those of /etc/resolv.conf
    #[arg(long = "name-server")]
    name_servers: Vec<SocketAddr>,
    /// Connections from without, of which one client may have a quarter; 0: a third of the descriptors
    /// that the process may have (RLIMIT_NOFILE)
    #[arg(long, default_value_t = 0)]
    max_connections: usize,
    /// How long what is under way may take to end once SIGTERM has come
    #[arg(long, default_value_t = 45)]
    drain_seconds: u64,
    /// No line per request
    #[arg(long)]
    no_access_log: bool,
}

/// The program.
pub fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("culvert-waypoint: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    let _log = telemetry::log::start();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if cli.workers > 0 {
        builder.worker_threads(cli.workers);
    }
    let runtime = builder.enable_all().build()?;
    runtime.block_on(Box::pin(run(cli)))
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let control = ControlPlane {
        address: cli.control.clone(),
        name: cli.control_name.clone(),
        root_cert: cli.root_cert.clone(),
        token: cli.token.clone(),
        cluster: cli.cluster.clone(),
        validity: Duration::from_secs(24 * 60 * 60),
    };
    let (drain, draining) = watch::channel(false);
    let (spans, waiting) = spans::Spans::new();
    let uid = format!("{}//Pod/{}/{}", cli.cluster, cli.namespace, cli.pod);
    let (clients, asks) = Clients::new(&uid);
    let proxy = build(&cli, uid, control.clone(), clients, spans, draining)?;
    // Before anything is said to be ready.
    let listener = bind(cli.listen).await?;
    let monitor = bind(cli.monitor).await?;
    tokio::spawn(admin::listen(proxy.clone(), monitor));
    tokio::spawn(sweep(proxy.clone()));
    tokio::spawn(spans::export(proxy.clone(), waiting));
    {
        let node = discovery::node(&cli.namespace, &cli.pod, &cli.gateway, &cli.cluster);
        let following = discovery::Following::new(proxy.clone());
        tokio::spawn(async move {
            let types = &discovery::TYPES;
            match xds::client::follow_and_ask(&control, node, types, &following, asks).await {}
        });
    }
    tracing::info!(listen = %cli.listen, gateway = cli.gateway, identity = %proxy.identity, "serving");
    let serving = tokio::spawn(inbound::listen(proxy.clone(), listener));
    terminated().await;
    tracing::info!("draining");
    let _ = drain.send(true);
    let _ = serving.await;
    let deadline = Instant::now() + Duration::from_secs(cli.drain_seconds);
    // Whoever still has work holds the drain's other end, and so does the proxy itself.
    while drain.receiver_count() > 1 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn build(
    cli: &Cli,
    uid: String,
    control: ControlPlane,
    clients: Clients,
    spans: spans::Spans,
    draining: watch::Receiver<bool>,
) -> anyhow::Result<Arc<Proxy>> {
    let identity = SpiffeId::new(&cli.trust_domain, &cli.namespace, &cli.service_account)?;
    let (file, roots) =
        RootsFile::open(&cli.root_cert, &cli.trust_domain, &cli.trust_domain_aliases)?;
    let certs = CertStore::new(Arc::new(control), Arc::new(ArcSwap::from_pointee(roots)));
    let trusting = certs.clone();
    tokio::spawn(async move { match file.follow(&trusting).await {} });
    certs.want(&identity);
    let dialler = Dialler { own: identity.clone(), certs: certs.clone() };
    Ok(Arc::new(Proxy {
        uid,
        identity,
        mesh: Mesh::new(Local {
            cluster: cli.cluster.as_str().into(),
            network: cli.network.as_str().into(),
            ..Local::default()
        }),
        clients,
        resolver: Resolver::new(name_servers(cli)?),
        tables: Default::default(),
        listeners: Default::default(),
        certs,
        pool: Pool::new(dialler, PoolConfig::default()),
        doors: Doors::new(cli.max_connections),
        connections: Default::default(),
        requests: RequestMetrics::new(SeriesLimits::default()),
        flows: Metrics::new(SeriesLimits::default()),
        trust_domain_aliases: cli.trust_domain_aliases.iter().map(|a| a.as_str().into()).collect(),
        telling: ArcSwap::from_pointee(telling::Telling::own()),
        access_log: !cli.no_access_log,
        spans,
        draining,
        ready: watch::Sender::new(false),
    }))
}

fn name_servers(cli: &Cli) -> anyhow::Result<Vec<SocketAddr>> {
    if !cli.name_servers.is_empty() {
        return Ok(cli.name_servers.clone());
    }
    let text = fs::read_to_string("/etc/resolv.conf")
        .context("reading /etc/resolv.conf for name servers (or give --name-server)")?;
    Ok(resolver::servers(&text))
}

async fn bind(at: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(at).await.with_context(|| format!("listening on {at}"))
}

async fn sweep(proxy: Arc<Proxy>) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        let now = Instant::now();
        proxy.pool.sweep(now);
        proxy.connections.sweep(now);
        proxy.clients.sweep(now);
        if proxy.own().is_none() {
            proxy.clients.want_own(&proxy.uid);
        }
        proxy.requests.sweep(now);
        proxy.flows.sweep(now);
    }
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
