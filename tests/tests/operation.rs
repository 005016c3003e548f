//! What an operator sees and does.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::process::{Command, Output};

use culvert_tests::dialogue::{echo, echo_to, serve};
use culvert_tests::{Mesh, MeshPod, SOON, at, attempt, binary, denied};
use testbed::{Serve, eventually};

const PORT: u16 = 8080;

struct Pair {
    mesh: Mesh,
    client: MeshPod,
    server: MeshPod,
    to: String,
}

fn pair(name: &str) -> Pair {
    let mesh = Mesh::new(name);
    let (client, server) = (mesh.pod(1, "client"), mesh.pod(2, "server"));
    serve(&server, PORT, Serve::Script);
    mesh.enroll_all(&[client.clone(), server.clone()]);
    let to = at(server.ipv4(), PORT);
    Pair { mesh, client, server, to }
}

#[test]
fn culvertctl_tells_as_json_what_the_agent_knows() {
    let p = pair("ctl");
    let service = p.mesh.service("server", 80, PORT, &[&p.server]);
    p.mesh.policy(
        "default",
        "no-port",
        "{ action: DENY, rules: [{ to: [{ operation: { ports: ['1'] } }] }] }",
    );
    let live = echo_to(&p.client, &service.at4()).unwrap();
    echo(&live, 1000, 1).unwrap();
    let agent = p.mesh.agent(1);

    let status = agent.status();
    assert_eq!((&status["node"], &status["ready"]), (&"n1".into(), &true.into()), "{status}");
    let pods = status["pods"].as_array().unwrap();
    let pod = pods.iter().find(|row| row["uid"] == p.client.uid()).unwrap();
    assert_eq!(pod["identity"], p.client.identity());
    for counter in [
        "captured",
        "announce_failed",
        "dropped_syn",
        "dropped_segment",
        "dropped_fragment",
        "dropped_protocol",
        "dropped_malformed",
        "passed_udp",
        "passed_icmp",
        "passed_other",
    ] {
        assert!(pod[counter].is_u64(), "no {counter} in {pod}");
    }
    assert!(pod["captured"].as_u64().unwrap() >= 1, "{pod}");

    let workload = agent.workload(&p.server.uid()).unwrap();
    assert_eq!((&workload["protocol"], &workload["node"]), (&"HBONE".into(), &"n2".into()));
    assert_eq!(workload["identity"], p.server.identity());

    let services = agent.rows("services").unwrap();
    let row = services.iter().find(|s| s["hostname"] == service.hostname()).unwrap();
    assert_eq!(row["endpoints"]["eligible"], 1, "{row}");
    assert!(
        row["addresses"].as_array().unwrap().contains(&service.ipv4.to_string().into()),
        "{row}"
    );

    let policies = agent.rows("policies").unwrap();
    assert!(policies.iter().any(|row| row["name"] == "default/no-port"), "{policies:?}");

    let certificates = agent.rows("certificates").unwrap();
    let row = certificates.iter().find(|c| c["identity"] == p.client.identity()).unwrap();
    assert_eq!(row["state"], "valid", "{row}");

    let connections = agent.connections();
    let row = connections.iter().find(|c| c["direction"] == "outbound").unwrap();
    assert_eq!(row["source"]["identity"], p.client.identity(), "{row}");
    assert_eq!(row["destination"]["identity"], p.server.identity(), "{row}");
    assert_eq!(row["transport"], "hbone", "{row}");
    assert_eq!(row["service"]["hostname"], service.hostname(), "{row}");
    let there = p.mesh.agent(2).connections();
    let row = there.iter().find(|c| c["direction"] == "inbound").unwrap();
    assert_eq!(row["source"]["identity"], p.client.identity(), "{row}");
}

#[test]
fn culvertctl_prints_tables_and_yaml_and_fails_with_a_reason() {
    let p = pair("ctl-forms");
    let agent = p.mesh.agent(1);
    for what in ["status", "workloads", "services", "policies", "certificates", "connections"] {
        for args in [vec![what], vec![what, "-o", "yaml"], vec![what, "-o", "json"]] {
            let out = agent.ctl(&args);
            assert!(out.status.success(), "{args:?}: {}", text(&out));
            assert!(!out.stdout.is_empty(), "{args:?} printed nothing");
        }
    }
    let table = text(&agent.ctl(&["workloads"]));
    assert!(table.contains("server") && table.contains("HBONE"), "{table}");

    let refused = |args: &[&str]| {
        let out = agent.ctl(args);
        assert!(!out.status.success(), "{args:?}: {}", text(&out));
        assert!(!out.stderr.is_empty(), "{args:?} failed without a word");
        text(&out)
    };
    refused(&["unenroll", "--namespace", "default", "--name", "nobody"]);
    refused(&["nonsense"]);
    p.mesh.agent(1).kill();
    refused(&["status"]);
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(&[out.stdout.as_slice(), &out.stderr].concat()).into_owned()
}

#[test]
fn a_pod_is_enrolled_only_as_what_it_is() {
    let p = pair("as-it-is");
    let (one, two) = (p.mesh.pod(1, "one"), p.mesh.pod(1, "two"));
    let agent = p.mesh.agent(1);
    let enroll = |netns: &MeshPod, name: &str, account: &str| {
        agent.ctl(&[
            "enroll",
            "--netns",
            &netns.netns_path().display().to_string(),
            "--namespace",
            "default",
            "--name",
            name,
            "--service-account",
            account,
        ])
    };
    for (netns, name, account, why) in [
        (&two, "one", "one", "another pod's namespace"),
        (&one, "one", "client", "another service account"),
        (&one, "nobody", "nobody", "a pod that the control plane does not have"),
        (&p.client, "one", "one", "a namespace that is enrolled already"),
    ] {
        let out = enroll(netns, name, account);
        assert!(!out.status.success(), "{why} was taken: {}", text(&out));
    }
    // What was refused is as it was.
    attempt(&one, &p.to).unwrap();
    assert_eq!(agent.status()["pods"].as_array().unwrap().len(), 1);
    // Twice is as good as once.
    p.mesh.capture(&one);
    p.mesh.capture(&one);
    assert_eq!(agent.status()["pods"].as_array().unwrap().len(), 2);
    attempt(&one, &p.to).unwrap();
}

#[test]
fn an_invalid_manifest_is_reported_and_the_last_good_state_stays() {
    let p = pair("invalid");
    assert!(p.mesh.control.diagnostics().is_empty(), "{:?}", p.mesh.control.diagnostics());
    let rule =
        format!("{{ from: [{{ source: {{ principals: ['{}'] }} }}] }}", p.client.principal());
    p.mesh.policy("default", "closed", &format!("{{ action: DENY, rules: [{rule}] }}"));
    denied(&p.client, &p.to);

    let bad = [
        ("an unknown action", "{ action: NONSENSE, rules: [{}] }"),
        (
            "not an address",
            "{ action: DENY, rules: [{ from: [{ source: { ipBlocks: ['nowhere'] } }] }] }",
        ),
        ("not a port", "{ action: DENY, rules: [{ to: [{ operation: { ports: ['http'] } }] }] }"),
        ("not YAML", "{ action: [ }"),
    ];
    for (what, spec) in bad {
        p.mesh.write_policy("default", "closed", spec);
        let found = eventually(SOON, || {
            let all = p.mesh.control.diagnostics();
            let of_file = all.into_iter().find(|d| {
                d["file"].as_str().is_some_and(|f| f.ends_with("policy-default-closed.yaml"))
            });
            of_file.ok_or_else(|| anyhow::anyhow!("{what}: nothing is reported"))
        })
        .unwrap();
        println!("{what}: {found}");
        for field in ["code", "found", "remedy"] {
            assert!(found[field].as_str().is_some_and(|s| !s.is_empty()), "{what}: {found}");
        }
        denied(&p.client, &p.to);
        // Others are still heard.
        let name = format!("after-{}", what.replace(' ', "-").to_lowercase());
        p.mesh.policy(
            "default",
            &name,
            "{ action: DENY, rules: [{ to: [{ operation: { ports: ['1'] } }] }] }",
        );
        denied(&p.client, &p.to);
        // Mended, or the next would be told from this one by its words only.
        p.mesh.write_policy("default", "closed", &format!("{{ action: DENY, rules: [{rule}] }}"));
        eventually(SOON, || {
            let all = p.mesh.control.diagnostics();
            anyhow::ensure!(all.is_empty(), "{what}: {all:?}");
            Ok(())
        })
        .unwrap();
    }
    p.mesh.remove_policy("default", "closed");
    attempt(&p.client, &p.to).unwrap();
}

#[test]
fn connections_are_counted_with_both_principals_at_both_ends() {
    let p = pair("metrics");
    let service = p.mesh.service("server", 80, PORT, &[&p.server]);
    let sock = echo_to(&p.client, &service.at4()).unwrap();
    echo(&sock, 100_000, 1).unwrap();
    sock.shutdown_write().unwrap();
    sock.read_to_end().unwrap();
    drop(sock);
    let (client, server) = (p.client.identity(), p.server.identity());
    let pair = [
        ("source_principal", client.as_str()),
        ("destination_principal", server.as_str()),
        ("source_workload", "client"),
        ("destination_workload", "server"),
        ("source_workload_namespace", "default"),
        ("destination_workload_namespace", "default"),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
    ];
    for (agent, reporter) in [(p.mesh.agent(1), "source"), (p.mesh.agent(2), "destination")] {
        let labels = [pair.as_slice(), &[("reporter", reporter)]].concat();
        eventually(SOON, || {
            for (name, least) in [
                ("istio_tcp_connections_opened_total", 1.0),
                ("istio_tcp_connections_closed_total", 1.0),
                ("istio_tcp_sent_bytes_total", 100_000.0),
                ("istio_tcp_received_bytes_total", 100_000.0),
            ] {
                let value = agent.metric(name, &labels);
                anyhow::ensure!(
                    value >= least,
                    "{reporter}: {name} is {value}\n{}",
                    agent.metrics()
                );
            }
            Ok(())
        })
        .unwrap();
    }
    let by_service = [("destination_service", service.hostname())];
    let by_service = by_service.each_ref().map(|(k, v)| (*k, v.as_str()));
    assert_eq!(p.mesh.agent(1).metric("istio_tcp_connections_opened_total", &by_service), 1.0);
    // In plaintext it says so.
    let plain = p.mesh.pod(1, "plain");
    attempt(&plain, &p.to).unwrap();
    let unknown = [("reporter", "destination"), ("connection_security_policy", "unknown")];
    assert_eq!(p.mesh.agent(2).metric("istio_tcp_connections_opened_total", &unknown), 1.0);
    // A refusal is a connection that never opened.
    p.mesh.policy("default", "closed", "{ action: DENY, rules: [{}] }");
    denied(&p.client, &p.to);
    let refused = [("reporter", "destination"), ("response_flags", "DENY")];
    assert!(p.mesh.agent(2).metric("istio_tcp_connections_failed_total", &refused) >= 1.0);
}

#[test]
fn the_control_plane_counts_what_it_does() {
    let p = pair("control-metrics");
    let metrics = p.mesh.control.metrics();
    for name in ["culvertd_objects_compiled_total", "culvertd_resources_sent_total"] {
        let value = metrics
            .lines()
            .find_map(|l| l.strip_prefix(name)?.trim().parse::<f64>().ok())
            .unwrap_or_else(|| panic!("no {name} in\n{metrics}"));
        assert!(value > 0.0, "{name} is {value}");
    }
    assert!(metrics.contains("culvertd_resources{type="), "{metrics}");
}

#[test]
fn one_changed_object_is_compiled_and_sent_alone() {
    let p = pair("incremental");
    let read = |name: &str| {
        let metrics = p.mesh.control.metrics();
        metrics.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap()
    };
    let before = read("culvertd_resources_sent_total");
    p.mesh.policy(
        "default",
        "one",
        "{ action: DENY, rules: [{ to: [{ operation: { ports: ['1'] } }] }] }",
    );
    // One resource for each of two agents.
    assert_eq!(read("culvertd_resources_sent_total") - before, 2);
}

#[test]
fn the_check_finds_this_kernel_fit() {
    let mesh = Mesh::new("check");
    let node = &mesh.agent(1).node;
    let mut cmd = Command::new(binary("culvert-agent"));
    cmd.arg("check").arg("--cgroup").arg(node.cgroup());
    let check = node.spawn(cmd).unwrap();
    let status = check.wait(SOON).unwrap();
    assert!(status.success(), "{}{}", check.stdout(), check.stderr());
    for hook in ["connect4", "connect6", "sk_lookup", "guard", "tcp_events"] {
        assert!(check.stdout().contains(hook), "{}", check.stdout());
    }
    assert!(!check.stdout().contains("missing"), "{}", check.stdout());
}

#[test]
fn detaching_gives_the_pods_back() {
    let p = pair("detach");
    let outside = p.mesh.pod(2, "outside");
    serve(&outside, PORT, Serve::Script);
    let to = at(outside.ipv4(), PORT);
    attempt(&p.client, &to).unwrap();
    p.mesh.agent(1).kill();
    assert!(attempt(&p.client, &to).is_err());
    let (node, run_dir) = (&p.mesh.agent(1).node, p.mesh.agent(1).run_dir());
    let others = run_dir.join("somebody-elses");
    fs::write(&others, "").unwrap();
    let mut cmd = Command::new(binary("culvert-agent"));
    cmd.arg("detach").arg("--bpffs").arg(node.bpffs()).arg("--run-dir").arg(run_dir);
    let detach = node.spawn(cmd).unwrap();
    assert!(detach.wait(SOON).unwrap().success(), "{}{}", detach.stdout(), detach.stderr());
    eventually(SOON, || Ok(attempt(&p.client, &to)?)).unwrap();
    let seen = culvert_tests::whoami(&p.client, &to).unwrap();
    assert_eq!(seen.peer.ip(), p.client.ipv4());
    let mut show = Command::new("sh");
    show.args(["-c", "ip rule; ip -6 rule; cat /proc/sys/net/ipv4/*fwmark*"]);
    let shown = p.client.spawn(show).unwrap();
    assert!(shown.wait(SOON).unwrap().success());
    let (shown, settings) = (shown.stdout(), ["0", "0"]);
    assert!(!shown.contains("fwmark"), "{shown}");
    assert!(shown.trim().lines().rev().zip(settings).all(|(l, s)| l == s), "{shown}");
    let left: Vec<_> = fs::read_dir(run_dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, [others], "of the agent's directory");
}

/// Neither tokens nor keys are in what people and machines are told.
#[test]
fn secrets_are_in_no_log_and_no_dump() {
    let p = pair("secrets");
    attempt(&p.client, &p.to).unwrap();
    let mut told = vec![p.mesh.control.log(), p.mesh.control.metrics()];
    for agent in p.mesh.agents() {
        told.extend([agent.log(), agent.metrics()]);
        for what in ["status", "workloads", "services", "policies", "certificates", "connections"] {
            told.push(agent.ask(what).unwrap().to_string());
        }
    }
    for text in told {
        assert!(!text.is_empty());
        for secret in ["token-of-", "PRIVATE KEY", "Bearer "] {
            assert!(!text.contains(secret), "{secret:?} is in {text}");
        }
    }
}
