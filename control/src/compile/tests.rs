use super::*;
use crate::vips::Vips;
use istio_api::parse_documents;

fn cluster() -> Cluster {
    Cluster { id: "Kubernetes".into(), network: String::new(), domain: "cluster.local".into() }
}

fn changes(yaml: &str) -> Vec<Change> {
    let (objects, diagnostics) = parse_documents("test.yaml", yaml);
    assert!(diagnostics.iter().all(|d| !d.code.is_error()), "{diagnostics:?}");
    objects.into_iter().map(|o| Change { key: o.key.clone(), object: Some(Arc::new(o)) }).collect()
}

fn pod(name: &str, ip: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: ns, labels: {{{labels}}}}}\n\
         spec: {{nodeName: n, serviceAccountName: sa}}\n\
         status: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: 'True'}}]}}\n---\n"
    )
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: ns}\n\
    spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n";

fn many(n: u32) -> String {
    (0..n)
        .map(|i| {
            pod(
                &format!("p{i}"),
                &format!("10.{}.{}.{}", i >> 16, (i >> 8) & 255, i & 255),
                "app: web",
            )
        })
        .collect()
}

/// Compiling a change costs what changed, whatever exists beside it.
#[test]
fn one_change_costs_the_same_at_any_size() {
    let mut costs = Vec::new();
    for size in [1_000, 100_000] {
        let mut compiler = Compiler::new(cluster(), Vips::default());
        // In portions: one text of a hundred thousand documents is past the YAML reader's budget.
        for chunk in 0..(size / 1000) {
            let text: String = (0..1000)
                .map(|i| chunk * 1000 + i)
                .map(|i| {
                    let ip = format!("10.{}.{}.{}", i >> 16, (i >> 8) & 255, i & 255);
                    pod(&format!("p{i}"), &ip, "app: web")
                })
                .collect();
            compiler.apply(changes(&text));
        }
        compiler.apply(changes(SERVICE));
        let out = compiler.apply(changes(&pod("p7", "10.200.0.1", "app: web")));
        assert_eq!(out.addresses.updated.len(), 1);
        costs.push((out.compiled, out.addresses.updated.len() + out.addresses.removed.len()));
    }
    assert_eq!(costs[0], costs[1]);
    assert_eq!(costs[0], (1, 1));
}

/// A run of changes and one batch of all of them come to the same resources.
#[test]
fn a_change_equals_the_whole() {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
        metadata: {name: p, namespace: ns}\nspec: {selector: {matchLabels: {app: web}}, action: DENY, \
        rules: [{from: [{source: {namespaces: [x]}}]}]}\n";
    let peer = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
        metadata: {name: default, namespace: ns}\nspec: {mtls: {mode: STRICT}}\n";
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
        metadata: {name: e, namespace: ns}\nspec: {hosts: [e.example], addresses: [240.0.0.1], \
        resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], \
        endpoints: [{address: 192.0.2.1}]}\n";
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n, labels: \
        {topology.kubernetes.io/region: r1}}\n";
    let parts = [many(3), SERVICE.into(), policy.into(), peer.into(), entry.into(), node.into()];
    let mut whole = Compiler::new(cluster(), Vips::default());
    let expected = whole.apply(parts.iter().flat_map(|p| changes(p)).collect());
    // Every order of the parts, by rotation and reversal.
    for rotation in 0..parts.len() {
        for reversed in [false, true] {
            let mut order: Vec<&String> = parts.iter().collect();
            order.rotate_left(rotation);
            if reversed {
                order.reverse();
            }
            let mut stepwise = Compiler::new(cluster(), Vips::default());
            let mut state: BTreeMap<String, String> = BTreeMap::new();
            for part in order {
                for (_, delta) in stepwise.apply(changes(part)).into_deltas() {
                    for name in delta.removed {
                        state.remove(&name);
                    }
                    state.extend(delta.updated.into_iter().map(|(n, e)| (n, e.version)));
                }
            }
            let mut want: BTreeMap<String, String> = BTreeMap::new();
            want.extend(
                expected.addresses.updated.iter().map(|(n, e)| (n.clone(), e.version.clone())),
            );
            want.extend(
                expected.authorizations.updated.iter().map(|(n, e)| (n.clone(), e.version.clone())),
            );
            assert_eq!(state, want);
        }
    }
}

#[test]
fn what_goes_is_removed() {
    let mut compiler = Compiler::new(cluster(), Vips::default());
    compiler.apply(changes(&many(1)));
    let key = ObjectKey { kind: Kind::Pod, namespace: "ns".into(), name: "p0".into() };
    let out = compiler.apply(vec![Change { key, object: None }]);
    assert_eq!(out.addresses.removed, ["Kubernetes//Pod/ns/p0"]);
    assert!(out.addresses.updated.is_empty());
}

/// Its connections go on; no new one is to begin there.
#[test]
fn a_pod_that_ends_is_no_endpoint() {
    use prost::Message as _;
    let status = |pod: &str| {
        let mut compiler = Compiler::new(cluster(), Vips::default());
        let out = compiler.apply(changes(pod));
        let address = pb::Address::decode(&*out.addresses.updated[0].1.body).unwrap();
        let Some(pb::address::Type::Workload(w)) = address.r#type else { panic!("no workload") };
        w.status()
    };
    let lives = pod("p", "10.0.0.1", "app: web");
    assert_eq!(status(&lives), pb::WorkloadStatus::Healthy);
    let ends =
        lives.replace("namespace: ns,", "namespace: ns, deletionTimestamp: 2026-01-01T00:00:00Z,");
    assert_eq!(status(&ends), pb::WorkloadStatus::Unhealthy);
}

/// A policy that is named and not known denies, so it must be there before it is named, and go after.
#[test]
fn a_policy_is_served_for_as_long_as_a_workload_names_it() {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
        metadata: {name: p, namespace: ns}\nspec: {selector: {matchLabels: {app: web}}, \
        rules: [{}]}\n";
    let mut compiler = Compiler::new(cluster(), Vips::default());
    compiler.apply(changes(&many(1)));
    let brief = |out: Output| -> Vec<(&str, usize, usize)> {
        let deltas = out.into_deltas().into_iter();
        let brief = deltas.map(|(url, d)| (url, d.updated.len(), d.removed.len()));
        brief.filter(|(_, updated, removed)| updated + removed > 0).collect()
    };
    let comes = brief(compiler.apply(changes(policy)));
    assert_eq!(comes, [(AUTHORIZATION_TYPE, 1, 0), (ADDRESS_TYPE, 1, 0)]);
    let key =
        ObjectKey { kind: Kind::AuthorizationPolicy, namespace: "ns".into(), name: "p".into() };
    let goes = brief(compiler.apply(vec![Change { key, object: None }]));
    assert_eq!(goes, [(ADDRESS_TYPE, 1, 0), (AUTHORIZATION_TYPE, 0, 1)]);
}

/// STRICT is sent only where a PeerAuthentication exists, and goes with the last one.
#[test]
fn strict_comes_and_goes_with_peer_authentication() {
    let peer = |name: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: {name}, namespace: ns}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
        )
    };
    let mut compiler = Compiler::new(cluster(), Vips::default());
    compiler.apply(changes(&many(1)));
    let out = compiler.apply(changes(&peer("a")));
    assert_eq!(out.authorizations.updated[0].0, "istio-system/istio_converted_static_strict");
    assert_eq!(out.addresses.updated.len(), 1, "the pod names it now");
    compiler.apply(changes(&peer("b")));
    let gone = |name: &str| {
        let key =
            ObjectKey { kind: Kind::PeerAuthentication, namespace: "ns".into(), name: name.into() };
        vec![Change { key, object: None }]
    };
    assert!(compiler.apply(gone("a")).authorizations.removed.is_empty());
    assert_eq!(
        compiler.apply(gone("b")).authorizations.removed,
        ["istio-system/istio_converted_static_strict"]
    );
}

/// As Istio has it: a wildcard has the addresses that it is given, and none of its own.
#[test]
fn a_wildcard_has_no_address_but_those_that_it_is_given() {
    use prost::Message as _;
    let entry = |host: &str, more: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: e, namespace: ns}}\nspec: {{hosts: ['{host}'], \
             ports: [{{number: 80, name: http, protocol: HTTP}}], {more}}}\n"
        )
    };
    let compiled = |host: &str, more: &str| {
        let mut compiler = Compiler::new(cluster(), Vips::default());
        let out = compiler.apply(changes(&entry(host, more)));
        let name = format!("ns/{host}");
        let (_, made) = out.addresses.updated.iter().find(|(n, _)| *n == name).unwrap();
        let address = pb::Address::decode(&*made.body).unwrap();
        let Some(pb::address::Type::Service(s)) = address.r#type else { panic!("no service") };
        (s.addresses.len(), s.load_balancing.map(|l| l.mode()))
    };
    let wild = "*.wild.example";
    let endpoints = "resolution: STATIC, endpoints: [{address: 192.0.2.1}]";
    assert_eq!(compiled("one.example", endpoints), (2, None));
    assert_eq!(compiled(wild, endpoints), (0, None));
    assert_eq!(compiled(wild, &format!("{endpoints}, addresses: [192.0.2.50]")), (1, None));
    let passthrough = Some(pb::load_balancing::Mode::Passthrough);
    assert_eq!(compiled(wild, "resolution: NONE"), (0, passthrough));
    assert_eq!(compiled("one.example", "resolution: NONE"), (0, passthrough));
    for (host, more) in [
        ("*", endpoints),
        ("a*.wild.example", endpoints),
        ("*.*.example", endpoints),
        (wild, "resolution: DYNAMIC_DNS"),
        (wild, "resolution: NONE, endpoints: [{address: 192.0.2.1}]"),
    ] {
        let (objects, diagnostics) = parse_documents("test.yaml", &entry(host, more));
        assert!(objects.is_empty() && diagnostics.len() == 1, "{host} {more}: {diagnostics:?}");
    }
}

/// Istio's ztunnel is not told of them, which makes such an ALLOW an ALLOW for everybody.
#[test]
fn trust_domains_bind_at_l4() {
    use prost::Message as _;
    use xds::proto::security::{Authorization, string_match::MatchType};
    let compiled = |source: &str| {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p, namespace: ns}}\nspec: {{rules: [{{from: [{{source: {source}}}]}}]}}\n"
        );
        let mut compiler = Compiler::new(cluster(), Vips::default());
        let out = compiler.apply(changes(&text));
        let (_, made) = out.authorizations.updated.iter().find(|(n, _)| n == "ns/p").unwrap();
        let policy = Authorization::decode(&*made.body).unwrap();
        policy.rules[0].clauses[0].matches[0].clone()
    };
    let prefix = |s: &str| Some(MatchType::Prefix(s.to_owned()));
    let m = compiled("{trustDomains: [cluster.local, partner.example, 'dev*']}");
    let kinds: Vec<_> = m.principals.into_iter().map(|p| p.match_type).collect();
    assert_eq!(kinds, [prefix("cluster.local/"), prefix("partner.example/"), prefix("dev")]);
    let m = compiled("{notTrustDomains: [partner.example], notPrincipals: [a/ns/b/sa/c]}");
    assert_eq!((m.principals.len(), m.not_principals.len()), (0, 2));
    for (bad, words) in [
        ("{trustDomains: ['*.example']}", "name each"),
        ("{trustDomains: [a/b]}", "trust domain"),
        ("{trustDomains: [a], principals: [a/ns/b/sa/c]}", "begin the principals"),
    ] {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p, namespace: ns}}\nspec: {{rules: [{{from: [{{source: {bad}}}]}}]}}\n"
        );
        let (objects, diagnostics) = parse_documents("test.yaml", &text);
        assert!(objects.is_empty(), "{bad}");
        assert!(diagnostics[0].remedy.contains(words), "{bad}: {diagnostics:?}");
    }
}

/// Which pods an agent is told to enrol, as Istio has it.
#[test]
fn pods_join_by_label_and_not_those_that_have_a_mesh_of_their_own() {
    const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\n\
        metadata: {name: ns, labels: {istio.io/dataplane-mode: ambient}}\n---\n";
    let enrolled = |namespace: &str, labels: &str, annotations: &str, spec: &str| {
        let mut compiler = Compiler::new(cluster(), Vips::default());
        let text = format!(
            "{namespace}apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: ns, \
             labels: {{{labels}}}, annotations: {{{annotations}}}}}\nspec: {{nodeName: n{spec}}}\n\
             status: {{phase: Running, podIP: 10.0.0.1}}\n"
        );
        let out = compiler.apply(changes(&text));
        let (_, encoded) = &out.addresses.updated[0];
        let address = <pb::Address as prost::Message>::decode(&*encoded.body).unwrap();
        let Some(pb::address::Type::Workload(w)) = address.r#type else { panic!("{address:?}") };
        w.extensions.iter().any(|e| e.name == xds::ENROLL_EXTENSION)
    };
    assert!(enrolled(NAMESPACE, "", "", ""));
    assert!(!enrolled("", "", "", ""), "nobody asked");
    assert!(enrolled("", "istio.io/dataplane-mode: ambient", "", ""), "by its own label");
    assert!(!enrolled(NAMESPACE, "istio.io/dataplane-mode: none", "", ""), "opted out");
    assert!(!enrolled(NAMESPACE, "", "sidecar.istio.io/status: '{}'", ""), "has a sidecar");
    assert!(!enrolled(NAMESPACE, "", "", ", hostNetwork: true"), "is in the node's network");
}

#[test]
fn a_service_says_how_connections_of_its_pods_travel_within_a_node() {
    use prost::Message as _;
    use prost_types::{Struct, value::Kind as ValueKind};
    use xds::proto::workload::{Address, address::Type};
    let service = |name: &str, way: Option<&str>| {
        let way = way.map(|w| format!("culvert.io/same-node: {w}")).unwrap_or_default();
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: ns, annotations: {{{way}}}}}\n\
             spec: {{clusterIP: None, selector: {{app: web}}, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let mut compiler = Compiler::new(cluster(), Vips::default());
    let mut way_after = |yaml: &str| {
        let out = compiler.apply(changes(yaml));
        let (_, made) = out.addresses.updated.iter().find(|(n, _)| n.ends_with("/p"))?;
        let Some(Type::Workload(w)) = Address::decode(&*made.body).unwrap().r#type else {
            panic!("a pod is a workload")
        };
        let same_node = w.extensions.iter().find(|e| e.name == xds::SAME_NODE_EXTENSION);
        let said = same_node.map(|e| {
            let said = Struct::decode(&*e.config.as_ref().unwrap().value).unwrap();
            match &said.fields["way"].kind {
                Some(ValueKind::StringValue(way)) => way.clone(),
                other => panic!("{other:?}"),
            }
        });
        Some(said)
    };
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns, annotations: \
        {culvert.io/same-node: direct}}\n---\n";
    let said = |way: &str| Some(Some(way.to_owned()));
    assert_eq!(way_after(&pod("p", "10.0.0.1", "app: web")), Some(None));
    assert_eq!(way_after(&service("a", Some("hbone"))), said("hbone"));
    // Nearer than the namespace; of two the careful one.
    way_after(namespace);
    assert_eq!(way_after(&service("b", Some("direct"))), said("hbone"));
    assert_eq!(way_after(&service("a", None)), said("direct"));
    assert_eq!(way_after(&service("b", Some("hbone"))), said("hbone"));
    // The pod's own word is the last.
    let own = pod("p", "10.0.0.1", "app: web")
        .replace("namespace: ns,", "namespace: ns, annotations: {culvert.io/same-node: direct},");
    assert_eq!(way_after(&own), said("direct"));
}
