//! What people and scrapers ask the agent: the admin socket (JSON lines, root only), Prometheus'
//! `/metrics`, and `/healthz/ready`.

use crate::{agent::Agent, lost, scope::spawn_for_agent, why};
use anyhow::Context as _;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    fmt::Write as _,
    fs,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::Path,
    sync::Arc,
    time::SystemTime,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, BufWriter},
    net::{TcpListener, UnixListener, UnixStream},
};

pub fn open(path: &Path) -> anyhow::Result<UnixListener> {
    let _ = fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("binding {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A listener at `at`: the one that an earlier agent has given, where it is that.
pub fn bind(at: SocketAddr, inherited: Option<OwnedFd>) -> anyhow::Result<std::net::TcpListener> {
    let given = inherited.map(std::net::TcpListener::from);
    let listener = match given.filter(|l| l.local_addr().is_ok_and(|a| a == at)) {
        Some(listener) => listener,
        None => std::net::TcpListener::bind(at).with_context(|| format!("binding {at}"))?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// One word per connection; the answer is a JSON value per line, so that a dump of any size needs
/// no memory.
pub async fn serve(agent: Arc<Agent>, listener: UnixListener) {
    let mut serving = agent.serving.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if *serving.borrow() => accepted,
            changed = serving.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let Ok((stream, _)) = accepted else {
            pause().await;
            continue;
        };
        if !stream.peer_cred().is_ok_and(|c| c.uid() == 0) {
            continue;
        }
        let agent = agent.clone();
        spawn_for_agent(async move {
            // The other end has gone; there is nobody to tell.
            let _ = answer(&agent, stream).await;
        });
    }
}

/// After a failed accept: out of descriptors, most likely, which a spin would not mend.
async fn pause() {
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}

/// Longest question, in bytes.
const MAX_QUESTION: u64 = 1024;

async fn answer(agent: &Agent, stream: UnixStream) -> std::io::Result<()> {
    let (read, write) = stream.into_split();
    let mut word = String::new();
    BufReader::new(read.take(MAX_QUESTION)).read_line(&mut word).await?;
    let mut out = BufWriter::new(write);
    let mut words = word.split_whitespace();
    let rows: Box<dyn Iterator<Item = Value> + Send> = match words.next().unwrap_or_default() {
        "why" => match (words.next(), words.next(), words.next()) {
            (Some(source), Some(destination), None) => {
                Box::new(std::iter::once(why::why(agent, source, destination)))
            }
            _ => Box::new(std::iter::once(json!({"error": "why SOURCE DESTINATION[:PORT]"}))),
        },
        "status" => Box::new(std::iter::once(status(agent))),
        "workloads" => Box::new(agent.mesh.workloads().into_iter().map(|w| workload(&w))),
        "services" => {
            Box::new(agent.mesh.services().into_iter().map(|(s, endpoints)| service(&s, endpoints)))
        }
        "policies" => Box::new(agent.mesh.policies().into_iter().map(|p| policy(&p))),
        "certificates" => Box::new(agent.certs.status().into_iter().map(|c| certificate(&c))),
        "connections" => {
            agent.direct.hear(agent);
            agent.direct.count_bytes();
            let rows = agent.connections.rows().into_iter();
            Box::new(rows.map(|r| serde_json::to_value(r).unwrap_or_default()))
        }
        other => Box::new(std::iter::once(json!({
            "error": format!(
                "{other:?} is not one of status, workloads, services, policies, certificates, connections, why"
            )
        }))),
    };
    for row in rows {
        out.write_all(row.to_string().as_bytes()).await?;
        out.write_all(b"\n").await?;
    }
    out.flush().await
}

fn status(agent: &Agent) -> Value {
    let synced = *agent.mesh.synced().borrow();
    let (pooled, streams) = agent.pool.size();
    let pods: Vec<Value> = agent
        .pods
        .all()
        .iter()
        .map(|p| {
            let c = agent.capture.counts(p.owner);
            json!({
                "uid": *p.uid,
                "identity": p.identity.to_string(),
                "addresses": p.addresses,
                "earlier_connections": p.earlier_connections(),
                "tasks": p.scope.tasks(),
                "handshakes": p.scope.handshakes(),
                "captured": c.captured,
                "announce_failed": c.announce_failed,
                "dropped_syn": c.dropped_syn,
                "dropped_segment": c.dropped_segment,
                "dropped_fragment": c.dropped_fragment,
                "dropped_protocol": c.dropped_protocol,
                "dropped_malformed": c.dropped_malformed,
                "passed_udp": c.passed_udp,
                "passed_icmp": c.passed_icmp,
                "passed_other": c.passed_other,
                "dropped_impostor": c.dropped_impostor,
                "refused_plaintext": c.refused_plaintext,
                "direct": c.direct,
                "dropped_lease": c.dropped_lease,
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": agent.node,
        "ready": synced.ready(),
        "discovery_connected": synced.connected,
        "draining": *agent.draining.borrow(),
        "connections": agent.connections.len(),
        "pool": {"connections": pooled, "streams": streams},
        "pods": pods,
    })
}

fn workload(w: &mesh::Workload) -> Value {
    json!({
        "uid": *w.uid,
        "namespace": *w.namespace,
        "name": w.name(),
        "addresses": *w.addresses,
        "node": w.site.node,
        "protocol": if w.hbone { "HBONE" } else { "TCP" },
        "identity": w.identity().map(|i| i.to_string()).unwrap_or_default(),
        "healthy": w.healthy,
        "canonical_service": *w.canonical_name,
        "canonical_revision": *w.canonical_revision,
        "locality": w.site.locality,
        "services": w.services.iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>(),
        "policies": w.policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "labels": w.labels.iter().map(|(k, v)| (k.to_string(), Value::from(&**v))).collect::<serde_json::Map<_, _>>(),
    })
}

fn service(s: &mesh::Service, (healthy, all): (usize, usize)) -> Value {
    json!({
        "namespace": *s.key.namespace,
        "hostname": *s.key.hostname,
        "addresses": s.addresses.iter().map(|(_, ip)| ip).collect::<Vec<_>>(),
        "ports": s.ports,
        "endpoints": {"eligible": healthy, "known": all},
        "waypoint": s.waypoint.as_ref().map(ToString::to_string),
    })
}

fn policy(p: &policy::Policy) -> Value {
    json!({
        "name": p.name.to_string(),
        "scope": format!("{:?}", p.scope),
        "action": format!("{:?}", p.action),
        "rules": p.rules.len(),
        "dry_run": p.dry_run,
    })
}

fn certificate(c: &identity::CertStatus) -> Value {
    let seconds = |t: Option<SystemTime>| {
        t.and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok()).map(|d| d.as_secs())
    };
    let state = match c.not_after {
        Some(t) if t > SystemTime::now() => "valid",
        Some(_) => "expired",
        None => "requested",
    };
    json!({
        "identity": c.identity.to_string(),
        "state": state,
        "serial": c.serial,
        "not_before": seconds(c.not_before),
        "not_after": seconds(c.not_after),
        "last_error": c.last_error.as_deref(),
    })
}

/// Serves HTTP whenever the agent serves: `answer` gives the status and the body for a path.
pub fn serve_http(
    agent: &Agent,
    listener: TcpListener,
    answer: impl Fn(&str) -> (StatusCode, String) + Clone + Send + Sync + 'static,
) {
    let mut serving = agent.serving.subscribe();
    spawn_for_agent(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept(), if *serving.borrow() => accepted,
                changed = serving.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            let Ok((stream, _)) = accepted else {
                pause().await;
                continue;
            };
            let answer = answer.clone();
            spawn_for_agent(async move {
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (status, body) = answer(request.uri().path());
                    let mut response = Response::new(Full::new(Bytes::from(body)));
                    *response.status_mut() = status;
                    async move { Ok::<_, Infallible>(response) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(hyper_util::rt::TokioTimer::new())
                    .header_read_timeout(std::time::Duration::from_secs(10))
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
}

/// Prometheus' text format.
pub fn metrics(agent: &Agent) -> String {
    let mut out = String::new();
    agent.direct.hear(agent);
    agent.metrics.encode(&mut out);
    let (pooled, streams) = agent.pool.size();
    let pods = agent.pods.all();
    let mut gauge = |name: &str, help: &str, value: usize| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    };
    gauge("culvert_pods_enrolled", "Pods that are captured and guarded.", pods.len());
    gauge("culvert_connections_open", "Connections under way.", agent.connections.len());
    gauge("culvert_pool_connections", "HBONE connections of this agent as a client.", pooled);
    gauge("culvert_pool_streams", "Streams open on them.", streams);
    lost::metrics(&mut out, &pods);
    let mut totals = capture_abi::Counts::default();
    for p in &pods {
        totals += &agent.capture.counts(p.owner);
    }
    let name = "culvert_guard_packets";
    let _ =
        writeln!(out, "# HELP {name} Packets that the guards of the enrolled pods have judged.");
    let _ = writeln!(out, "# TYPE {name} gauge");
    for (verdict, reason, value) in [
        ("dropped", "unannounced_syn", totals.dropped_syn),
        ("dropped", "unannounced_segment", totals.dropped_segment),
        ("dropped", "fragment", totals.dropped_fragment),
        ("dropped", "protocol", totals.dropped_protocol),
        ("dropped", "malformed", totals.dropped_malformed),
        ("dropped", "impostor", totals.dropped_impostor),
        ("dropped", "plaintext_from_mesh", totals.refused_plaintext),
        ("dropped", "lease_ended", totals.dropped_lease),
        ("passed", "udp", totals.passed_udp),
        ("passed", "icmp", totals.passed_icmp),
        ("passed", "other", totals.passed_other),
    ] {
        let _ = writeln!(out, "{name}{{verdict={verdict:?},reason={reason:?}}} {value}");
    }
    for (name, help, counter) in [
        ("istio_dns_requests_total", "DNS questions of enrolled pods.", &agent.dns.asked),
        (
            "culvert_dns_answered_total",
            "DNS questions that were for the mesh.",
            &agent.dns.answered,
        ),
        (
            "istio_dns_upstream_requests_total",
            "DNS questions passed on to the pods' own name servers.",
            &agent.dns.forwarded,
        ),
        (
            "istio_dns_upstream_failures_total",
            "DNS questions that a name server did not answer.",
            &agent.dns.failed,
        ),
    ] {
        let value = counter.load(std::sync::atomic::Ordering::Relaxed);
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
    }
    let _ =
        writeln!(out, "# HELP culvert_connects Connects of enrolled pods, by what became of them.");
    let _ = writeln!(out, "# TYPE culvert_connects gauge");
    let _ = writeln!(out, "culvert_connects{{outcome=\"captured\"}} {}", totals.captured);
    let _ = writeln!(out, "culvert_connects{{outcome=\"direct\"}} {}", totals.direct);
    let _ = writeln!(out, "culvert_connects{{outcome=\"no_room\"}} {}", totals.announce_failed);
    let name = "culvert_direct_untold";
    let _ = writeln!(
        out,
        "# HELP {name} Openings and ends of connections past the agent that found no room to be told \
         of.\n# TYPE {name} gauge\n{name} {}",
        totals.untold
    );
    out
}
