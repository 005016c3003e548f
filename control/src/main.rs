//! `culvertd`: discovery, certificates and validation for the mesh.

mod ca;
mod compile;
mod control;
mod grant;
mod monitor;
mod policies;
mod snapshot;
mod source;
mod vips;
mod workloads;

use anyhow::Context as _;
use ca::Authority;
use clap::{Args, Parser, Subcommand};
use control::Control;
use grant::{Caller, CertificateService, Tokens};
use source::{Directory, Source as _};
use std::{fs, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tracing_subscriber::EnvFilter;
use workloads::Cluster;
use xds::{
    MAX_MESSAGE,
    proto::{
        ca::istio_certificate_service_server::IstioCertificateServiceServer,
        discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    },
    server::{Ads, Client},
};

#[derive(Parser)]
#[command(name = "culvertd", version, about = "Culvert's control plane")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a directory of manifests.
    Run(Box<Run>),
    /// Say what is wrong with manifests; fail when something is.
    Validate {
        /// Files to read
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

#[derive(Args)]
struct Run {
    /// The directory of Kubernetes manifests, watched
    #[arg(long)]
    config: PathBuf,
    /// Keeps the self-signed CA; root-cert.pem is written here
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
    #[arg(long)]
    tokens: PathBuf,
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
    let control = Control::new(cluster, run.state_dir.join("vips.json"))?;
    monitor::serve(control.clone(), run.monitor).await?;
    let mut batches = Directory { path: run.config.clone() }.start()?;
    // The trust domain is in the first batch.
    loop {
        let batch = batches.recv().await.context("the source ended before it began")?;
        let missing = batch.missing().map(ToString::to_string);
        control.apply(batch, missing.is_none());
        let Some(missing) = missing else { break };
        tracing::error!(missing, "not serving until this is mended");
    }

    let life = Duration::from_secs(run.cert_ttl_seconds);
    let authority = Arc::new(match &run.ca_dir {
        Some(dir) => Authority::plugged_in(dir, life)?,
        None => Authority::self_signed(&run.state_dir, &control.trust_domain(), life)?,
    });
    let root_path = run.state_dir.join("root-cert.pem");
    fs::write(&root_path, &authority.roots)
        .with_context(|| format!("writing {}", root_path.display()))?;

    let following = {
        let control = control.clone();
        tokio::spawn(async move { control.follow(batches).await })
    };
    let served = serve_grpc(&run, &control, authority);
    tokio::select! {
        outcome = served => outcome,
        _ = following => anyhow::bail!("the source of objects ended"),
    }
}

async fn serve_grpc(
    run: &Run,
    control: &Arc<Control>,
    authority: Arc<Authority>,
) -> anyhow::Result<()> {
    let (certificate, key) = authority.own(&run.name)?;
    let tokens = Tokens { file: run.tokens.clone() };
    let authorize: xds::server::Authorize = {
        let (tokens, control) = (tokens.clone(), control.clone());
        Arc::new(move |metadata| {
            let caller = tokens.caller(metadata);
            let control = control.clone();
            Box::pin(async move { Ok(discovery_client(caller?, control)) })
        })
    };
    let ads = AggregatedDiscoveryServiceServer::new(Ads::new(control.store.clone(), authorize))
        .max_encoding_message_size(MAX_MESSAGE);
    let ca = IstioCertificateServiceServer::new(CertificateService {
        control: control.clone(),
        authority,
        tokens,
    });
    tracing::info!(listen = %run.listen, name = run.name, "serving");
    Server::builder()
        .tls_config(ServerTlsConfig::new().identity(Identity::from_pem(certificate, key)))?
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(ads)
        .add_service(ca)
        .serve_with_shutdown(run.listen, terminated())
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
