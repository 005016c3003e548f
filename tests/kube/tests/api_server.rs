//! An API server is a real one, and nothing of it stays behind.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::TcpStream;
use std::path::Path;

use kubebed::{ADDRESS, ApiServer};
use testbed::reaper::leftovers_of;
use testbed::{Bed, inside};

/// One server for all that does not break it: starting one takes longer than everything that is asked of it.
#[test]
fn objects_tokens_and_rights_are_kubernetes_own() {
    let bed = Bed::new("kube-api").unwrap();
    let api = ApiServer::start(&bed).unwrap();

    objects_are_validated_and_kept(&api);
    a_token_is_an_accounts_and_rbac_decides(&api);
    a_user_by_certificate_has_no_rights_of_their_own(&api);
    pods_are_taken_without_controllers(&api);

    // Reachable where a client of the bed is, and nowhere else.
    inside(&bed.fabric_netns_path(), || Ok(TcpStream::connect(ADDRESS)?)).unwrap();
    api.check().unwrap();
    drop(api);
    bed.close().unwrap();
}

fn objects_are_validated_and_kept(api: &ApiServer) {
    api.apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {a: b}}}").unwrap();
    let label = api.kubectl(&["get", "ns", "shop", "-o", "jsonpath={.metadata.labels.a}"]).unwrap();
    assert_eq!(label, "b");
    let service = |ports: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: shop}}, spec: {{ports: {ports}}}}}"
        )
    };
    let error = api.apply(&service("[{port: 70000}]")).unwrap_err().to_string();
    assert!(error.contains("must be between 1 and 65535"), "{error}");
    api.apply(&service("[{port: 80}]")).unwrap();
    let vip = api
        .kubectl(&["get", "service", "s", "-n", "shop", "-o", "jsonpath={.spec.clusterIP}"])
        .unwrap();
    assert!(vip.starts_with("10.96."), "{vip}");
}

fn a_token_is_an_accounts_and_rbac_decides(api: &ApiServer) {
    api.apply("{apiVersion: v1, kind: ServiceAccount, metadata: {name: reader, namespace: shop}}")
        .unwrap();
    let reader = api.account_kubeconfig("shop", "reader").unwrap();
    let get = || api.kubectl_as(&reader, &["get", "services", "-n", "shop", "-o", "name"], "");
    let error = get().unwrap_err().to_string();
    assert!(error.contains("system:serviceaccount:shop:reader"), "{error}");
    assert!(error.contains("Forbidden"), "{error}");
    api.apply(
        "{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: r, namespace: shop},
          rules: [{apiGroups: [''], resources: [services], verbs: [get, list, watch]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: r, namespace: shop},
 roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: r},
 subjects: [{kind: ServiceAccount, name: reader, namespace: shop}]}",
    )
    .unwrap();
    // The authorizer hears of a binding by a watch of its own.
    testbed::eventually(std::time::Duration::from_secs(30), get).unwrap();
    assert_eq!(get().unwrap().trim(), "service/s");

    // A token for another audience says who it is for, and is not one for the API server.
    let token = api.token("shop", "reader", &["istio-ca"]).unwrap();
    let review = |audience: &str| {
        let review = format!(
            "{{apiVersion: authentication.k8s.io/v1, kind: TokenReview, spec: {{token: {token}, audiences: [{audience}]}}}}"
        );
        let args =
            ["create", "-f", "-", "-o", "jsonpath={.status.authenticated} {.status.user.username}"];
        api.kubectl_as(api.admin_kubeconfig(), &args, &review).unwrap()
    };
    assert_eq!(review("istio-ca"), "true system:serviceaccount:shop:reader");
    assert_eq!(review("another").trim(), "");
}

fn a_user_by_certificate_has_no_rights_of_their_own(api: &ApiServer) {
    let nobody = api.user_kubeconfig("nobody", None).unwrap();
    let error = api.kubectl_as(&nobody, &["get", "pods"], "").unwrap_err().to_string();
    assert!(error.contains("User \"nobody\" cannot list resource \"pods\""), "{error}");
}

fn pods_are_taken_without_controllers(api: &ApiServer) {
    api.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop},
          spec: {nodeName: n1, containers: [{name: c, image: none}]}}",
    )
    .unwrap();
    let pod = ["get", "pod", "p", "-n", "shop", "-o", "jsonpath={.status.phase} {.spec.nodeName}"];
    assert_eq!(api.kubectl(&pod).unwrap(), "Pending n1");
}

#[test]
fn a_server_that_was_killed_comes_back_with_its_objects() {
    let bed = Bed::new("kube-restart").unwrap();
    let mut api = ApiServer::start(&bed).unwrap();
    api.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: kept}, data: {a: b}}").unwrap();
    api.kill().unwrap();
    assert!(api.check().is_err());
    assert!(api.kubectl(&["get", "configmap", "kept"]).is_err());
    api.restart(&bed).unwrap();
    let value = api.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.a}"]).unwrap();
    assert_eq!(value, "b");
}

#[test]
fn a_panic_leaves_nothing() {
    let (send, receive) = std::sync::mpsc::channel();
    let test = std::thread::spawn(move || {
        let bed = Bed::new("kube-panic").unwrap();
        let api = ApiServer::start(&bed).unwrap();
        let pids = std::fs::read_to_string(bed.cgroup().join("fabric/cgroup.procs")).unwrap();
        send.send((bed.id().to_owned(), pids, api.admin_kubeconfig().to_owned())).unwrap();
        panic!("as intended");
    });
    assert!(test.join().is_err());
    let (id, pids, kubeconfig) = receive.recv().unwrap();
    assert_eq!(pids.lines().count(), 2, "etcd and the API server: {pids}");
    for pid in pids.lines() {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} runs still");
    }
    assert!(!kubeconfig.exists());
    assert_eq!(leftovers_of(&id).unwrap(), Vec::<String>::new());
}
