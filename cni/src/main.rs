//! `culvert-cni`: a chained CNI plugin (spec 0.3.0 to 1.1.0). ADD returns once the agent has
//! captured the pod, or knows that it is not of the mesh; while no agent answers it fails, and the
//! kubelet tries again: no process of the pod runs before.

mod call;

use agent_api::{
    client::{self, Failure},
    enroll::Request,
};
use call::{Call, Command, Refusal};
use serde_json::json;
use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::AsFd as _,
    process::ExitCode,
};

/// Longest network configuration that is read, in bytes.
const MAX_CONFIG: u64 = 1024 * 1024;

fn main() -> ExitCode {
    let mut config = Vec::new();
    let read = io::stdin().lock().take(MAX_CONFIG).read_to_end(&mut config);
    let variable = |name: &str| std::env::var(name).ok();
    let call = match read {
        Ok(_) => call::parse(&config, variable),
        Err(e) => Err(Refusal::io(format!("reading the network configuration: {e}"))),
    };
    let version = call.as_ref().map_or(call::LATEST.to_owned(), |c| c.version.clone());
    match call.and_then(|c| carry_out(&c)) {
        Ok(Some(result)) => {
            println!("{result}");
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(refusal) => {
            println!("{}", refusal.to_json(&version));
            ExitCode::FAILURE
        }
    }
}

/// What is printed.
fn carry_out(call: &Call) -> Result<Option<String>, Refusal> {
    match &call.command {
        Command::Version => Ok(Some(
            json!({"cniVersion": call.version, "supportedVersions": call::VERSIONS}).to_string(),
        )),
        Command::Status => {
            ask(call, &Request::Ping, None).map(|()| None).map_err(Refusal::unavailable)
        }
        Command::Gc => Ok(None),
        Command::Add { netns, sandbox, result } => {
            if let Some(sandbox) = sandbox {
                ask(call, &Request::Start(sandbox.clone()), Some(netns)).map_err(Refusal::again)?;
            }
            Ok(Some(result.to_string()))
        }
        Command::Check { netns, sandbox } => match sandbox {
            Some(s) => ask(call, &Request::Check(s.clone()), Some(netns))
                .map(|()| None)
                .map_err(Refusal::again),
            None => Ok(None),
        },
        // Nothing keeps a pod from ending. One whose namespace is gone has nothing to be let go of;
        // one that no agent hears of is let go of when the next agent finds the namespace gone.
        Command::Del { netns } => {
            if let Some(netns) = netns {
                let _ = ask(call, &Request::Stop, Some(netns));
            }
            Ok(None)
        }
    }
}

fn ask(call: &Call, request: &Request, netns: Option<&String>) -> Result<(), Failure> {
    let netns = netns
        .map(|path| {
            File::open(path).map_err(|e| Failure::Refused(format!("CNI_NETNS {path}: {e}")))
        })
        .transpose()?;
    client::ask(&call.run_dir, request, netns.as_ref().map(File::as_fd), call.patience)
}
