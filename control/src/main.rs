//! `culvertd`: discovery, certificates and validation for the mesh.

mod ca;
mod compile;
mod control;
mod grant;
mod kubernetes;
mod monitor;
mod policies;
mod snapshot;
mod source;
mod tls;
mod touched;
mod verdicts;
mod vips;
mod workloads;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use ca::Authority;
use clap::{Args, Parser, Subcommand};
use control::Control;
use grant::{Account, Caller, Callers, CertificateService, Tokens};
use kubernetes::{
    AuthorityStore, Candidate, Enrolments, KeptVips, Kubernetes, Reviews, WaypointSettings,
    give_nodes_back, keep_waypoints, publish_roots, register_webhook, serve_webhook, tell_status,
};
use source::{Directory, Source as _};
use std::{fs, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use tls::Serving;
use tokio::{net::TcpListener, sync::watch};
use tonic::transport::Server;
use tracing_subscriber::EnvFilter;
use workloads::Cluster;
use xds::{
    proto::{
        ca::istio_certificate_service_server::IstioCertificateServiceServer,
        node::node_server::NodeServer,
    },
    server::{Ads, Client},
};

/// Objects come and go as trees of small allocations: with glibc's allocator the change of one with
/// 10,000 routes took 505 ms of processor instead of 360.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "culvertd", version, about = "Culvert's control plane")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve what a directory of manifests, or a Kubernetes API server, holds.
    Run(Box<Run>),
    /// Say what is wrong with manifests; fail when something is.
    Validate {
        /// Files to read
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// On Kubernetes, before an uninstallation: have the agents give every node back, and wait until they have.
    GiveNodesBack {
        /// Theirs
        #[arg(long, env = "POD_NAMESPACE", default_value = "culvert-system")]
        namespace: String,
        #[arg(long, default_value_t = 240)]
        patience_seconds: u64,
    },
}

#[derive(Args)]
struct Run {
    /// The directory of Kubernetes manifests, watched
    #[arg(long, required_unless_present = "kubernetes")]
    config: Option<PathBuf>,
    /// Read the objects of a Kubernetes API server: this pod's, or the one that KUBECONFIG names
    #[arg(long, conflicts_with_all = ["config", "tokens", "ca_dir"])]
    kubernetes: bool,
    /// On Kubernetes: the namespace of this control plane
    #[arg(long, env = "POD_NAMESPACE", default_value = "culvert-system")]
    namespace: String,
    /// On Kubernetes: the name of this pod, by which it holds the Lease
    #[arg(long, env = "POD_NAME", default_value = "culvertd")]
    pod: String,
    /// On Kubernetes: the agents' service account, in the namespace of this control plane
    #[arg(long, default_value = "culvert-agent")]
    agent_account: String,
    /// On Kubernetes: the validating webhook, over TLS
    #[arg(long, default_value = "0.0.0.0:15017")]
    webhook: SocketAddr,
    /// On Kubernetes: the image of waypoints. Without one, no Gateway becomes a Deployment
    #[arg(long)]
    waypoint_image: Option<String>,
    /// On Kubernetes: as in a container's imagePullPolicy
    #[arg(long, default_value = "IfNotPresent")]
    waypoint_image_pull_policy: String,
    /// Keeps virtual addresses, and without Kubernetes the self-signed CA; root-cert.pem is written here
    #[arg(long, default_value = "/var/lib/culvert")]
    state_dir: PathBuf,
    /// A plugged-in CA: ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem
    #[arg(long)]
    ca_dir: Option<PathBuf>,
    /// Discovery and CA, over TLS
    #[arg(long, default_value = "0.0.0.0:15012")]
    listen: SocketAddr,
    /// /ready, /metrics and /debug/diagnostics
    #[arg(long, default_value = "0.0.0.0:15014")]
    monitor: SocketAddr,
    /// Lines of `<node> <token>`, and for waypoints `<namespace>/<service account> <token>`
    #[arg(long, required_unless_present = "kubernetes")]
    tokens: Option<PathBuf>,
    /// The DNS name of this control plane's certificate
    #[arg(long, default_value = "culvertd.culvert-system.svc")]
    name: String,
    #[arg(long, default_value = "Kubernetes")]
    cluster: String,
    #[arg(long, default_value = "")]
    network: String,
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// Longest life of a workload's certificate
    #[arg(long, default_value_t = 24 * 60 * 60, value_parser = clap::value_parser!(u64).range(5..))]
    cert_ttl_seconds: u64,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Validate { files } => validate(&files),
        Command::Run(run) => start(*run).map(|()| true),
        Command::GiveNodesBack { namespace, patience_seconds } => {
            give_back(&namespace, Duration::from_secs(patience_seconds)).map(|()| true)
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("culvertd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn give_back(namespace: &str, patience: Duration) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime
        .block_on(async { give_nodes_back(kubernetes::client().await?, namespace, patience).await })
}

fn validate(files: &[PathBuf]) -> anyhow::Result<bool> {
    let mut fine = true;
    for path in files {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let (objects, diagnostics) = istio_api::parse_documents(&path.display().to_string(), &text);
        for d in &diagnostics {
            println!("{d}");
            fine &= !d.code.is_error();
        }
        println!("{}: {} objects", path.display(), objects.len());
    }
    Ok(fine)
}

fn start(run: Run) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("CULVERT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(Box::pin(serve(run)))
}

async fn serve(run: Run) -> anyhow::Result<()> {
    fs::create_dir_all(&run.state_dir)
        .with_context(|| format!("creating {}", run.state_dir.display()))?;
    let cluster = Cluster {
        id: run.cluster.clone(),
        network: run.network.clone(),
        domain: run.cluster_domain.clone(),
    };
    let vips = run.state_dir.join("vips.json");
    let client = match run.kubernetes {
        true => Some(kubernetes::client().await?),
        false => None,
    };
    if let Some(client) = &client {
        KeptVips::new(client.clone(), &run.namespace, vips.clone()).restore().await?;
    }
    let control = Control::new(cluster, vips)?;
    monitor::serve(control.clone(), run.monitor).await?;
    let mut batches = match (&client, &run.config) {
        (Some(client), _) => {
            Kubernetes { client: client.clone(), namespace: run.namespace.clone() }.start()?
        }
        (None, Some(path)) => Directory { path: path.clone() }.start()?,
        (None, None) => anyhow::bail!("--config or --kubernetes says where objects are"),
    };
    // The trust domain is in the first batch.
    loop {
        let batch = batches.recv().await.context("the source ended before it began")?;
        let missing = batch.missing().map(ToString::to_string);
        control.apply(batch, missing.is_none());
        let Some(missing) = missing else { break };
        tracing::error!(missing, "not serving until this is mended");
    }
    let following = {
        let control = control.clone();
        tokio::spawn(async move { control.follow(batches).await })
    };
    let mesh = match client {
        Some(client) => on_kubernetes(&run, &control, client).await?,
        None => on_its_own(&run, &control)?,
    };
    let root_path = run.state_dir.join("root-cert.pem");
    fs::write(&root_path, &mesh.authority.load().roots)
        .with_context(|| format!("writing {}", root_path.display()))?;
    tokio::select! {
        outcome = serve_grpc(&run, &control, mesh) => outcome,
        _ = following => anyhow::bail!("the source of objects ended"),
    }
}

/// Whom the mesh trusts, and whom this control plane does.
struct Trust {
    authority: Arc<ArcSwap<Authority>>,
    serving: Arc<Serving>,
    callers: Arc<Callers>,
    enrolments: Option<Enrolments>,
}

impl Trust {
    fn new(run: &Run, authority: Authority, callers: Callers) -> anyhow::Result<Self> {
        let serving = Serving::new(&run.name, &authority)?;
        let authority = Arc::new(ArcSwap::from_pointee(authority));
        Ok(Self { authority, serving, callers: Arc::new(callers), enrolments: None })
    }
}

fn on_its_own(run: &Run, control: &Control) -> anyhow::Result<Trust> {
    let life = Duration::from_secs(run.cert_ttl_seconds);
    let authority = match &run.ca_dir {
        Some(dir) => Authority::plugged_in(dir, life)?,
        None => Authority::self_signed(&run.state_dir, &control.trust_domain(), life)?,
    };
    let file = run.tokens.clone().context("--tokens says who may call")?;
    Trust::new(run, authority, Callers::File(Tokens { file }))
}

async fn on_kubernetes(
    run: &Run,
    control: &Arc<Control>,
    client: kube::Client,
) -> anyhow::Result<Trust> {
    let life = Duration::from_secs(run.cert_ttl_seconds);
    let store = AuthorityStore::new(client.clone(), &run.namespace, life);
    let authority = store.get(&control.trust_domain()).await?;
    let roots = watch::Sender::new(authority.roots.clone());
    let agents = Account { namespace: run.namespace.clone(), name: run.agent_account.clone() };
    let callers = Callers::Kubernetes(Box::new(Reviews::new(client.clone(), agents)));
    let mut trust = Trust::new(run, authority, callers)?;
    trust.enrolments = Some(Enrolments {
        client: client.clone(),
        control: control.clone(),
        callers: trust.callers.clone(),
    });

    serve_webhook(&trust.serving, run.webhook).await?;
    tokio::spawn(register_webhook(client.clone(), trust.authority.clone()));
    let leads = watch::Sender::new(false);
    let told = leads.subscribe();
    tokio::spawn(publish_roots(client.clone(), control.clone(), roots.subscribe(), told));
    let vips = KeptVips::new(client.clone(), &run.namespace, run.state_dir.join("vips.json"));
    tokio::spawn(vips.keep(control.clone(), leads.subscribe()));
    tokio::spawn(tell_status(client.clone(), control.clone(), leads.subscribe()));
    if let Some(image) = &run.waypoint_image {
        let settings = WaypointSettings {
            image: image.clone(),
            image_pull_policy: run.waypoint_image_pull_policy.clone(),
            namespace: run.namespace.clone(),
            control_name: run.name.clone(),
            cluster: run.cluster.clone(),
            network: run.network.clone(),
        };
        let told = leads.subscribe();
        tokio::spawn(keep_waypoints(client.clone(), control.clone(), settings, told));
    }
    tokio::spawn(Candidate::new(client, &run.namespace, run.pod.clone()).run(leads));
    let (current, serving) = (trust.authority.clone(), trust.serving.clone());
    tokio::spawn(async move {
        store
            .follow(|authority| {
                if let Err(error) = serving.renew(&authority) {
                    tracing::error!(error = format!("{error:#}"), "a new authority is not used");
                    return;
                }
                roots.send_if_modified(|now| {
                    let other = *now != authority.roots;
                    now.clone_from(&authority.roots);
                    other
                });
                current.store(Arc::new(authority));
                tracing::info!("the authority in use is that of the Secret as it is now");
            })
            .await;
    });
    Ok(trust)
}

async fn serve_grpc(run: &Run, control: &Arc<Control>, trust: Trust) -> anyhow::Result<()> {
    let Trust { authority, serving, callers, enrolments } = trust;
    let (own, by) = (serving.clone(), authority.clone());
    tokio::spawn(async move { own.keep(&by).await });
    let authorize: xds::server::Authorize = {
        let (callers, control) = (callers.clone(), control.clone());
        Arc::new(move |metadata, from| {
            let (callers, control, metadata) = (callers.clone(), control.clone(), metadata.clone());
            Box::pin(async move {
                Ok(discovery_client(callers.caller(&metadata, from).await?, control))
            })
        })
    };
    let ads = Ads::new(control.store.clone(), authorize).service();
    let ca = IstioCertificateServiceServer::new(CertificateService {
        control: control.clone(),
        authority,
        callers,
    });
    let listener = TcpListener::bind(run.listen)
        .await
        .with_context(|| format!("listening on {}", run.listen))?;
    let connections = tls::accept(listener, serving.config(&[b"h2"])?);
    tracing::info!(listen = %run.listen, name = run.name, "serving");
    control.serves();
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(ads)
        .add_service(ca)
        .add_optional_service(enrolments.map(NodeServer::new))
        .serve_with_incoming_shutdown(connections, terminated())
        .await
        .with_context(|| format!("serving on {}", run.listen))
}

fn discovery_client(caller: Caller, control: Arc<Control>) -> Client {
    match caller {
        Caller::Node(name) => Client { name: format!("node {name}"), scope: None },
        Caller::Workload(account) => Client {
            name: account.to_string(),
            scope: Some(Box::new(move |gateway| {
                let (account, control) = (account.clone(), control.clone());
                Box::pin(async move { control.may_serve(&account, &gateway).await })
            })),
        },
    }
}

/// Agents come back by themselves: nothing here needs draining.
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
    // Discovery streams have no end of their own, so a graceful end would wait for ever.
    std::process::exit(0);
}
