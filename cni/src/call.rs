//! What a container runtime asks for: the CNI environment and the network configuration, read.

use agent_api::{client::Failure, enroll::Sandbox};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{net::IpAddr, path::PathBuf, time::Duration};

/// What network plugins still write is 0.3.1; of what has changed since, only CHECK is of any matter here.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
pub const LATEST: &str = "1.1.0";

pub struct Call {
    pub version: String,
    pub run_dir: PathBuf,
    pub patience: Duration,
    pub command: Command,
}

pub enum Command {
    /// Without a sandbox: a pod that is none of the mesh's business.
    Add {
        netns: String,
        sandbox: Option<Sandbox>,
        result: Value,
    },
    Check {
        netns: String,
        sandbox: Option<Sandbox>,
    },
    Del {
        netns: Option<String>,
    },
    Gc,
    Status,
    Version,
}

/// An error as the specification has it, section 5.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    code: u32,
    message: &'static str,
    details: String,
}

impl Refusal {
    fn version(details: String) -> Self {
        Self { code: 1, message: "incompatible CNI version", details }
    }

    fn environment(details: String) -> Self {
        Self { code: 4, message: "invalid environment variables", details }
    }

    pub fn io(details: String) -> Self {
        Self { code: 5, message: "I/O failure", details }
    }

    fn undecodable(details: String) -> Self {
        Self { code: 6, message: "failed to decode content", details }
    }

    fn config(details: String) -> Self {
        Self { code: 7, message: "invalid network config", details }
    }

    pub fn again(failure: Failure) -> Self {
        let message = match failure {
            Failure::NoAgent(_) => "the pod waits for culvert-agent",
            Failure::Refused(_) => "the pod cannot be captured yet",
        };
        Self { code: 11, message, details: failure.to_string() }
    }

    pub fn unavailable(failure: Failure) -> Self {
        Self { code: 50, message: "no pod can be started", details: failure.to_string() }
    }

    pub fn to_json(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "code": self.code,
            "msg": format!("culvert-cni: {}", self.message),
            "details": self.details,
        })
    }
}

/// The plugin's part of the network configuration.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    cni_version: String,
    #[serde(default = "run_dir")]
    run_dir: PathBuf,
    /// Pods of these namespaces start whether there is an agent or not: the control plane's own,
    /// which agents wait for.
    #[serde(default)]
    exclude_namespaces: Vec<String>,
    #[serde(default = "patience")]
    timeout_seconds: u64,
    prev_result: Option<Value>,
}

fn run_dir() -> PathBuf {
    "/run/culvert".into()
}

fn patience() -> u64 {
    30
}

#[derive(Deserialize)]
struct PrevResult {
    #[serde(default)]
    ips: Vec<PrevIp>,
    #[serde(default)]
    interfaces: Vec<PrevInterface>,
}

#[derive(Deserialize)]
struct PrevIp {
    address: String,
    interface: Option<usize>,
}

#[derive(Deserialize)]
struct PrevInterface {
    #[serde(default)]
    sandbox: String,
}

pub fn parse(config: &[u8], variable: impl Fn(&str) -> Option<String>) -> Result<Call, Refusal> {
    let needed = |name: &str| {
        variable(name)
            .filter(|v| !v.is_empty())
            .ok_or_else(|| Refusal::environment(format!("{name} is not set")))
    };
    let command = needed("CNI_COMMAND")?;
    // VERSION comes with a configuration of its version alone, or with none.
    if command == "VERSION" {
        return Ok(Call {
            version: LATEST.to_owned(),
            run_dir: run_dir(),
            patience: Duration::ZERO,
            command: Command::Version,
        });
    }
    let config: Config = serde_json::from_slice(config)
        .map_err(|e| Refusal::undecodable(format!("the network configuration: {e}")))?;
    if !VERSIONS.contains(&config.cni_version.as_str()) {
        return Err(Refusal::version(format!(
            "cniVersion is {:?}, and must be one of {}",
            config.cni_version,
            VERSIONS.join(", ")
        )));
    }
    let command = match command.as_str() {
        "ADD" => {
            let result = config.prev_result.clone().ok_or_else(|| {
                Refusal::config(
                    "there is no prevResult: culvert-cni comes after the plugin that gives the \
                     pod its addresses, in a configuration list"
                        .to_owned(),
                )
            })?;
            let sandbox = sandbox(&config, &needed("CNI_ARGS")?)?;
            Command::Add { netns: needed("CNI_NETNS")?, sandbox, result }
        }
        "CHECK" => Command::Check {
            netns: needed("CNI_NETNS")?,
            sandbox: sandbox(&config, &needed("CNI_ARGS")?)?,
        },
        "DEL" => Command::Del { netns: variable("CNI_NETNS").filter(|v| !v.is_empty()) },
        "GC" => Command::Gc,
        "STATUS" => Command::Status,
        other => {
            return Err(Refusal::environment(format!(
                "CNI_COMMAND is {other:?}, and must be ADD, CHECK, DEL, GC, STATUS or VERSION"
            )));
        }
    };
    Ok(Call {
        version: config.cni_version,
        run_dir: config.run_dir,
        patience: Duration::from_secs(config.timeout_seconds),
        command,
    })
}

/// The pod, unless its namespace is excluded.
fn sandbox(config: &Config, args: &str) -> Result<Option<Sandbox>, Refusal> {
    let arg = |name: &str| {
        args.split(';')
            .find_map(|a| a.strip_prefix(name)?.strip_prefix('='))
            .filter(|v| !v.is_empty())
            .map(str::to_owned)
            .ok_or_else(|| {
                Refusal::environment(format!(
                    "CNI_ARGS has no {name}: the container runtime must say whose sandbox this is"
                ))
            })
    };
    let namespace = arg("K8S_POD_NAMESPACE")?;
    if config.exclude_namespaces.contains(&namespace) {
        return Ok(None);
    }
    let addresses = match &config.prev_result {
        Some(result) => addresses(result)?,
        None => Vec::new(),
    };
    Ok(Some(Sandbox {
        namespace,
        name: arg("K8S_POD_NAME")?,
        pod_uid: arg("K8S_POD_UID")?,
        addresses,
    }))
}

/// The addresses inside the sandbox, as the plugins before this one have given them.
fn addresses(result: &Value) -> Result<Vec<IpAddr>, Refusal> {
    let bad = |why: String| Refusal::config(format!("prevResult: {why}"));
    let result = PrevResult::deserialize(result).map_err(|e| bad(e.to_string()))?;
    let inside = |ip: &&PrevIp| {
        let interface = ip.interface.and_then(|i| result.interfaces.get(i));
        interface.is_none_or(|i| !i.sandbox.is_empty())
    };
    let addresses: Vec<IpAddr> = result
        .ips
        .iter()
        .filter(inside)
        .map(|ip| {
            let (address, _) = ip.address.split_once('/').unwrap_or((&ip.address, ""));
            address.parse().map_err(|_| bad(format!("{:?} is not an address", ip.address)))
        })
        .collect::<Result<_, _>>()?;
    if addresses.is_empty() {
        return Err(bad("the pod has no address".to_owned()));
    }
    Ok(addresses)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const RESULT: &str = r#"{"cniVersion": "1.0.0",
        "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
        "ips": [{"address": "10.1.0.1/24", "interface": 0},
                {"address": "10.1.0.7/24", "interface": 1},
                {"address": "fd00::7/64", "interface": 1}]}"#;
    const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u-1";

    fn call(command: &str, more: &str, args: &str) -> Result<Call, Refusal> {
        let config =
            format!(r#"{{"cniVersion": "1.0.0", "name": "n", "type": "culvert-cni"{more}}}"#);
        parse(config.as_bytes(), |name| match name {
            "CNI_COMMAND" => Some(command.to_owned()),
            "CNI_NETNS" => Some("/run/netns/x".to_owned()),
            "CNI_ARGS" => Some(args.to_owned()),
            _ => None,
        })
    }

    fn with_result(more: &str) -> String {
        format!(r#", "prevResult": {RESULT}{more}"#)
    }

    fn refused(outcome: Result<Call, Refusal>, code: u32, says: &str) {
        let refusal = outcome.err().unwrap();
        assert_eq!(refusal.code, code, "{refusal:?}");
        assert!(refusal.details.contains(says), "{refusal:?}");
    }

    #[test]
    fn the_pod_is_named_by_its_arguments_and_the_result_before() {
        let Command::Add { sandbox, result, netns } =
            call("ADD", &with_result(""), ARGS).unwrap().command
        else {
            panic!("not an ADD")
        };
        let sandbox = sandbox.unwrap();
        assert_eq!(
            (&*sandbox.namespace, &*sandbox.name, &*sandbox.pod_uid),
            ("shop", "web-0", "u-1")
        );
        let inside: Vec<IpAddr> = ["10.1.0.7", "fd00::7"].map(|a| a.parse().unwrap()).into();
        assert_eq!(sandbox.addresses, inside, "and not the bridge's");
        assert_eq!(result, serde_json::from_str::<Value>(RESULT).unwrap());
        assert_eq!(netns, "/run/netns/x");
    }

    #[test]
    fn an_excluded_namespace_asks_nobody() {
        let more = with_result(r#", "excludeNamespaces": ["kube-system", "shop"]"#);
        let Command::Add { sandbox, .. } = call("ADD", &more, ARGS).unwrap().command else {
            panic!("not an ADD")
        };
        assert_eq!(sandbox, None);
    }

    #[test]
    fn what_is_missing_is_named() {
        refused(call("ADD", "", ARGS), 7, "prevResult");
        refused(call("ADD", &with_result(""), "K8S_POD_NAMESPACE=shop"), 4, "K8S_POD_NAME");
        let unnamed = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0";
        refused(call("ADD", &with_result(""), unnamed), 4, "K8S_POD_UID");
        refused(call("", &with_result(""), ARGS), 4, "CNI_COMMAND");
        refused(call("EAT", &with_result(""), ARGS), 4, "EAT");
        refused(call("ADD", r#", "prevResult": {"ips": []}"#, ARGS), 7, "no address");
        refused(call("ADD", r#", "prevResult": {"ips": [{"address": "x"}]}"#, ARGS), 7, "\"x\"");
        refused(parse(b"no json", |_| Some("ADD".to_owned())), 6, "network configuration");
        refused(parse(br#"{"cniVersion": "9.0"}"#, |_| Some("ADD".to_owned())), 1, "9.0");
    }

    #[test]
    fn an_end_needs_no_namespace_and_a_version_no_configuration() {
        let del = parse(br#"{"cniVersion": "1.1.0"}"#, |n| {
            (n == "CNI_COMMAND").then(|| "DEL".to_owned())
        });
        assert!(matches!(del.unwrap().command, Command::Del { netns: None }));
        let version = parse(b"", |_| Some("VERSION".to_owned()));
        assert!(matches!(version.unwrap().command, Command::Version));
    }
}
