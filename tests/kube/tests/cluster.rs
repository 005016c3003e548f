//! A cluster runs pods, as a cluster does, and nothing of it stays behind.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use kubebed::Cluster;
use testbed::reaper::leftovers_of;
use testbed::{Bed, eventually};

const SOON: Duration = Duration::from_secs(120);

#[test]
fn pods_start_on_two_nodes_and_reach_each_other() {
    let before = OfTheMachine::now();
    let bed = Bed::new("kube-cluster").unwrap();
    let cluster = Cluster::start(&bed, &["n1", "n2"]).unwrap();
    let image = cluster.busybox().name().to_owned();
    for node in ["n1", "n2"] {
        cluster.api().apply(&server(node, &image)).unwrap();
    }
    cluster.api().apply(&pod("client", "none", "n1", &image, "exec sleep 1000")).unwrap();
    cluster
        .api()
        .apply(
            "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.80,
              selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}",
        )
        .unwrap();
    running(&cluster);
    by_address(&cluster);
    by_service(&cluster);
    the_api_server_with_the_pods_own_token(&cluster, &bed);
    a_pod_that_is_deleted_is_gone(&cluster);

    cluster.check().unwrap();
    let id = bed.id().to_owned();
    drop(cluster);
    bed.close().unwrap();
    assert_eq!(leftovers_of(&id).unwrap(), Vec::<String>::new());
    assert_eq!(OfTheMachine::now(), before);
}

/// It serves its node's name.
fn server(node: &str, image: &str) -> String {
    let serve = format!("mkdir /www; echo {node} >/www/index.html; exec httpd -f -p 8080 -h /www");
    pod(&format!("on-{node}"), "web", node, image, &serve)
}

fn pod(name: &str, app: &str, node: &str, image: &str, script: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {app}}}}}, spec: {{
            nodeSelector: {{kubernetes.io/hostname: {node}}}, terminationGracePeriodSeconds: 1,
            containers: [{{name: c, image: '{image}', imagePullPolicy: Never,
                command: [bash, -c, '{script}']}}]}}}}"
    )
}

fn running(cluster: &Cluster) {
    let wait = ["wait", "--for=condition=Ready", "pod", "--all", "--timeout=180s"];
    if let Err(e) = cluster.api().kubectl(&wait) {
        let described = cluster.api().kubectl(&["describe", "pods"]).unwrap_or_default();
        panic!("{e}\n{described}");
    }
}

fn address(cluster: &Cluster, node: &str) -> String {
    let pod = format!("on-{node}");
    cluster.api().kubectl(&["get", "pod", &pod, "-o", "jsonpath={.status.podIP}"]).unwrap()
}

/// What a program in a pod prints: `kubectl exec` goes by the API server and the kubelet.
fn exec(cluster: &Cluster, pod: &str, words: &[&str]) -> anyhow::Result<String> {
    let args: Vec<&str> = ["exec", pod, "--"].into_iter().chain(words.iter().copied()).collect();
    cluster.api().kubectl(&args)
}

/// The body that a pod gets from port 80 or another of an address.
fn get(cluster: &Cluster, pod: &str, address: &str, port: u16) -> anyhow::Result<String> {
    let script = format!(
        r"exec 3<>/dev/tcp/{address}/{port} && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && cat <&3"
    );
    let said = exec(cluster, pod, &["bash", "-c", &script])?;
    Ok(said.lines().next_back().unwrap_or_default().to_owned())
}

fn by_address(cluster: &Cluster) {
    for (from, to) in [("on-n1", "n2"), ("on-n2", "n1"), ("client", "n1")] {
        let address = address(cluster, to);
        let number = cluster.nodes().iter().find(|n| n.bed().name() == to).unwrap().bed().number();
        assert!(address.starts_with(&format!("10.10.{number}.")), "{to} has a pod at {address}");
        assert_eq!(get(cluster, from, &address, 8080).unwrap(), to);
    }
}

/// Both pods answer for the service, to a pod that is beside one of them: the controllers have made its EndpointSlice
/// and the nodes its rules.
fn by_service(cluster: &Cluster) {
    for wanted in ["n1", "n2"] {
        eventually(SOON, || {
            let said = get(cluster, "client", "10.96.0.80", 80)?;
            anyhow::ensure!(said == wanted, "{said}");
            Ok(())
        })
        .unwrap();
    }
}

fn the_api_server_with_the_pods_own_token(cluster: &Cluster, bed: &Bed) {
    const DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    let token = exec(cluster, "client", &["cat", &format!("{DIR}/token")]).unwrap();
    let config = bed.dir().join("token");
    std::fs::write(&config, "").unwrap();
    let token = format!("--token={}", token.trim());
    let server = format!("--server={}", cluster.api().url());
    let authority = cluster.api().root_certificate();
    let authority = format!("--certificate-authority={}", authority.display());
    let args = [
        "auth",
        "whoami",
        &token,
        &server,
        &authority,
        "-o",
        "jsonpath={.status.userInfo.username}",
    ];
    let user = cluster.api().kubectl_as(&config, &args, "").unwrap();
    assert_eq!(user, "system:serviceaccount:default:default");
    // The address that a pod knows the API server by is a service's, too.
    exec(cluster, "client", &["bash", "-c", "exec 3<>/dev/tcp/10.96.0.1/443"]).unwrap();
}

fn a_pod_that_is_deleted_is_gone(cluster: &Cluster) {
    let address = address(cluster, "n2");
    cluster.api().kubectl(&["delete", "pod", "on-n2", "--timeout=60s"]).unwrap();
    assert!(get(cluster, "client", &address, 8080).is_err());
}

/// What a kubelet would change for the whole machine, were it let.
#[derive(Debug, PartialEq)]
struct OfTheMachine(Vec<Option<String>>, Vec<bool>);

impl OfTheMachine {
    fn now() -> Self {
        let sysctls =
            ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"];
        let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).ok();
        let dirs = ["/var/lib/kubelet", "/var/log/pods", "/var/lib/cni", "/usr/libexec/kubernetes"];
        let more = ["/run/containerd/containerd.sock", "/etc/cni/net.d/10-bed.conflist"];
        let there = dirs.iter().chain(&more).map(|p| Path::new(p).exists());
        Self(sysctls.map(read).into(), there.collect())
    }
}
