//! `culvertctl`: the operator's shell for one node's agent.

mod client;
mod output;

use agent_api::enroll::{self, Request};
use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use client::Failure;
use serde_json::{Value, json};
use std::{os::fd::AsFd as _, path::PathBuf, process::ExitCode};

#[derive(Parser)]
#[command(
    name = "culvertctl",
    version,
    about = "Inspect and steer Culvert's agent on this node",
    after_help = "Exit codes: 0 done, 1 the agent refused or something failed, 2 wrong usage, \
                  3 no agent answers."
)]
struct Cli {
    /// The agent's run directory, with its sockets
    #[arg(long, global = true, default_value = "/run/culvert", env = "CULVERT_RUN_DIR")]
    run_dir: PathBuf,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    Yaml,
}

#[derive(Subcommand)]
enum Command {
    /// The agent, and the pods that are enrolled
    Status,
    /// Workloads that discovery has delivered
    Workloads,
    /// Services and how many endpoints they have
    Services,
    /// Authorization policies in force
    Policies,
    /// Certificates held for this node's pods
    Certificates,
    /// Connections under way
    Connections,
    /// What would become of a connection, who decides it, and what would change the answer
    Why {
        /// NAMESPACE/POD, or an address
        source: String,
        /// A host name, NAMESPACE/NAME or an address, with :PORT where there are several
        destination: String,
    },
    /// Capture a pod: acknowledged once it is guarded
    Enroll(Enroll),
    /// Let a pod go
    Unenroll(PodName),
    /// Print a completion script
    Completion { shell: clap_complete::Shell },
}

#[derive(Args)]
struct PodName {
    #[arg(long, default_value = "default")]
    namespace: String,
    #[arg(long)]
    name: String,
    #[arg(long, default_value = "Kubernetes")]
    cluster: String,
}

impl PodName {
    fn uid(&self) -> String {
        format!("{}//Pod/{}/{}", self.cluster, self.namespace, self.name)
    }
}

#[derive(Args)]
struct Enroll {
    #[command(flatten)]
    pod: PodName,
    #[arg(long, default_value = "default")]
    service_account: String,
    /// The pod's network namespace, such as /proc/PID/ns/net or /run/netns/NAME
    #[arg(long)]
    netns: PathBuf,
    /// Let tunnels and unknown protocols leave the pod
    #[arg(long)]
    allow_other_protocols: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::NoAgent(error)) => {
            eprintln!("culvertctl: {error:#}");
            ExitCode::from(3)
        }
        Err(Failure::Other(error)) => {
            eprintln!("culvertctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let word = match &cli.command {
        Command::Status => "status",
        Command::Workloads => "workloads",
        Command::Services => "services",
        Command::Policies => "policies",
        Command::Certificates => "certificates",
        Command::Connections => "connections",
        Command::Why { source, destination } => {
            let rows = client::ask(&cli.run_dir, &format!("why {source} {destination}"))?;
            match cli.output {
                Format::Table => output::why(&rows),
                Format::Json => output::json(&rows, true)?,
                Format::Yaml => output::yaml(&rows, true)?,
            }
            return Ok(());
        }
        Command::Enroll(e) => return enroll(cli, e),
        Command::Unenroll(pod) => {
            client::enrol(&cli.run_dir, &Request::Unenroll { uid: pod.uid() }, None)?;
            return say(cli, &format!("{} is un-enrolled", pod.uid()));
        }
        Command::Completion { shell } => {
            clap_complete::generate(
                *shell,
                &mut Cli::command(),
                "culvertctl",
                &mut std::io::stdout(),
            );
            return Ok(());
        }
    };
    let rows = client::ask(&cli.run_dir, word)?;
    // One agent has one status; of all else there is a list.
    let single = word == "status";
    match cli.output {
        Format::Table => output::table(word, &rows),
        Format::Json => output::json(&rows, single)?,
        Format::Yaml => output::yaml(&rows, single)?,
    }
    Ok(())
}

fn enroll(cli: &Cli, e: &Enroll) -> Result<(), Failure> {
    let netns = std::fs::File::open(&e.netns)
        .with_context(|| format!("opening the network namespace {}", e.netns.display()))?;
    let request = Request::Enroll(enroll::Enroll {
        uid: e.pod.uid(),
        namespace: e.pod.namespace.clone(),
        name: e.pod.name.clone(),
        service_account: e.service_account.clone(),
        allow_other_protocols: e.allow_other_protocols,
    });
    client::enrol(&cli.run_dir, &request, Some(netns.as_fd()))?;
    say(cli, &format!("{} is enrolled: captured and guarded", e.pod.uid()))
}

fn say(cli: &Cli, text: &str) -> Result<(), Failure> {
    match cli.output {
        Format::Table => println!("{text}"),
        Format::Json => println!("{}", json!({"done": text})),
        Format::Yaml => output::yaml(&[json!({"done": text}) as Value], true)?,
    }
    Ok(())
}
