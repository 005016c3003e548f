//! Who may: AuthorizationPolicy and PeerAuthentication, as the applications feel them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use culvert_tests::dialogue::{echo, echo_to, serve};
use culvert_tests::{Mesh, MeshPod, SOON, Spec, at, attempt, denied};
use testbed::{Serve, eventually};

const PORT: u16 = 8080;
const OTHER_PORT: u16 = 8081;

/// A server and three who ask: `alice` of its namespace, `bob` of another, and one without an identity.
struct Court {
    mesh: Mesh,
    server: MeshPod,
    alice: MeshPod,
    bob: MeshPod,
    plain: MeshPod,
}

fn court(name: &str) -> Court {
    let mesh = Mesh::new(name);
    let server = mesh.pod(2, "server");
    let alice = mesh.pod(1, "alice");
    let bob = mesh.pod(1, Spec::named("bob").namespace("other"));
    let plain = mesh.pod(1, "plain");
    for port in [PORT, OTHER_PORT] {
        serve(&server, port, Serve::Script);
    }
    mesh.enroll_all(&[server.clone(), alice.clone(), bob.clone()]);
    Court { mesh, server, alice, bob, plain }
}

impl Court {
    fn all(&self) -> [&MeshPod; 3] {
        [&self.alice, &self.bob, &self.plain]
    }

    /// Who of [`Court::all`] gets through to a port of the server's.
    #[track_caller]
    fn passes(&self, port: u16, wanted: [bool; 3]) {
        for (from, wanted) in self.all().into_iter().zip(wanted) {
            for to in [at(self.server.ipv4(), port), at(self.server.ipv6(), port)] {
                if wanted {
                    if let Err(e) = attempt(from, &to) {
                        panic!("{from:?} to {to} was refused: {e}");
                    }
                } else {
                    denied(from, &to);
                }
            }
        }
    }

    /// ALLOW and DENY, by an attribute of the source and by its `not`. `matched` says who has the attribute.
    #[track_caller]
    fn by_source(&self, field: &str, values: &str, matched: [bool; 3]) {
        let mut letters = field.chars();
        let first = letters.next().unwrap().to_ascii_uppercase();
        let not = format!("not{first}{}", letters.as_str());
        let others = matched.map(|m| !m);
        for (action, field, allowed) in [
            ("ALLOW", field, matched),
            ("DENY", field, others),
            ("ALLOW", &not, others),
            ("DENY", &not, matched),
        ] {
            // A name of its own each, so that the one before is not taken for it.
            let name = format!("{action}-{field}").to_lowercase();
            println!("{action} {field}: {values}");
            let rule = format!("{{ from: [{{ source: {{ {field}: {values} }} }}] }}");
            self.mesh.policy("default", &name, &format!("{{ action: {action}, rules: [{rule}] }}"));
            self.passes(PORT, allowed);
            self.mesh.remove_policy("default", &name);
        }
        self.passes(PORT, [true; 3]);
    }
}

#[test]
fn by_principal() {
    let c = court("principal");
    c.by_source("principals", &format!("['{}']", c.alice.principal()), [true, false, false]);
}

#[test]
fn by_a_principals_beginning_and_end_and_by_any() {
    let c = court("wildcards");
    c.by_source("principals", "['cluster.local/ns/default/*']", [true, false, false]);
    c.by_source("principals", "['*/sa/bob']", [false, true, false]);
    c.by_source("principals", "['*']", [true, true, false]);
}

#[test]
fn by_namespace() {
    let c = court("namespace");
    c.by_source("namespaces", "[other]", [false, true, false]);
}

#[test]
fn by_service_account() {
    let c = court("account");
    c.by_source("serviceAccounts", "[default/alice]", [true, false, false]);
}

#[test]
fn by_ip_block() {
    let c = court("block");
    let of = |p: &MeshPod| format!("['{}', '{}']", p.ipv4(), p.ipv6());
    c.by_source("ipBlocks", &of(&c.bob), [false, true, false]);
    c.by_source("ipBlocks", &of(&c.plain), [false, false, true]);
    c.by_source("ipBlocks", "['10.10.1.0/24', 'fd10:10:1::/64']", [true; 3]);
}

#[test]
fn by_port() {
    let c = court("port");
    for (action, field, port, other) in [
        ("ALLOW", "ports", true, false),
        ("DENY", "ports", false, true),
        ("ALLOW", "notPorts", false, true),
        ("DENY", "notPorts", true, false),
    ] {
        let name = format!("{action}-{field}").to_lowercase();
        println!("{action} {field}");
        let rule = format!("{{ to: [{{ operation: {{ {field}: ['{PORT}'] }} }}] }}");
        c.mesh.policy("default", &name, &format!("{{ action: {action}, rules: [{rule}] }}"));
        c.passes(PORT, [port; 3]);
        c.passes(OTHER_PORT, [other; 3]);
        c.mesh.remove_policy("default", &name);
    }
}

#[test]
fn by_condition() {
    let c = court("when");
    let cases = [
        ("source.principal", c.alice.principal(), [true, false, false]),
        ("source.namespace", "other".to_owned(), [false, true, false]),
        ("destination.port", OTHER_PORT.to_string(), [false; 3]),
    ];
    for (n, (key, value, matched)) in cases.into_iter().enumerate() {
        for (values, allowed) in [("values", matched), ("notValues", matched.map(|m| !m))] {
            let name = format!("when-{n}-{values}").to_lowercase();
            println!("when {key} {values} {value}");
            let rule = format!("{{ when: [{{ key: {key}, {values}: ['{value}'] }}] }}");
            c.mesh.policy("default", &name, &format!("{{ action: ALLOW, rules: [{rule}] }}"));
            c.passes(PORT, allowed);
            c.mesh.remove_policy("default", &name);
        }
    }
}

#[test]
fn all_parts_of_a_rule_must_match_and_any_rule_will_do() {
    let c = court("and-or");
    let from =
        |p: &MeshPod| format!("from: [{{ source: {{ principals: ['{}'] }} }}]", p.principal());
    let to = |port: u16| format!("to: [{{ operation: {{ ports: ['{port}'] }} }}]");
    let rules = format!(
        "[{{ {}, {} }}, {{ {}, {} }}]",
        from(&c.alice),
        to(PORT),
        from(&c.bob),
        to(OTHER_PORT)
    );
    c.mesh.policy("default", "both", &format!("{{ action: ALLOW, rules: {rules} }}"));
    c.passes(PORT, [true, false, false]);
    c.passes(OTHER_PORT, [false, true, false]);
    // DENY goes before ALLOW.
    c.mesh.policy(
        "default",
        "deny",
        &format!("{{ action: DENY, rules: [{{ {} }}] }}", from(&c.alice)),
    );
    c.passes(PORT, [false; 3]);
    c.passes(OTHER_PORT, [false, true, false]);
}

#[test]
fn an_allow_policy_without_rules_allows_nobody() {
    let c = court("nobody");
    c.mesh.policy("default", "nothing", "{}");
    c.passes(PORT, [false; 3]);
}

#[test]
fn a_policy_binds_its_namespace_or_all_or_the_selected() {
    let c = court("scopes");
    let third = c.mesh.pod(2, Spec::named("third").namespace("other").label("tier", "web"));
    serve(&third, PORT, Serve::Script);
    c.mesh.enroll(&third);
    let (server, third_at) = (at(c.server.ipv4(), PORT), at(third.ipv4(), PORT));
    let deny_all = "{ action: DENY, rules: [{}] }";

    c.mesh.policy("default", "namespace", deny_all);
    denied(&c.alice, &server);
    attempt(&c.alice, &third_at).unwrap();
    c.mesh.remove_policy("default", "namespace");

    c.mesh.policy("istio-system", "root", deny_all);
    denied(&c.alice, &server);
    denied(&c.alice, &third_at);
    c.mesh.remove_policy("istio-system", "root");

    let selected = "{ action: DENY, selector: { matchLabels: { tier: web } }, rules: [{}] }";
    c.mesh.policy("other", "selected", selected);
    c.mesh.policy_bound("other/selected", &third);
    denied(&c.alice, &third_at);
    attempt(&c.alice, &server).unwrap();
}

#[test]
fn policy_holds_on_one_node_and_for_a_pod_to_itself() {
    let c = court("near");
    let near = c.mesh.pod(1, "near");
    serve(&near, PORT, Serve::Script);
    serve(&c.alice, PORT, Serve::Script);
    c.mesh.enroll(&near);
    let rule = format!("{{ from: [{{ source: {{ principals: ['{}'] }} }}] }}", c.alice.principal());
    c.mesh.policy("default", "not-alice", &format!("{{ action: DENY, rules: [{rule}] }}"));
    denied(&c.alice, &at(near.ipv4(), PORT));
    denied(&c.alice, &at(c.alice.ipv4(), PORT));
    attempt(&c.bob, &at(near.ipv4(), PORT)).unwrap();
    attempt(&near, &at(c.alice.ipv4(), PORT)).unwrap();
}

#[test]
fn a_refusal_is_logged_with_its_policy_and_both_identities() {
    let c = court("refusal");
    let rule = format!("{{ from: [{{ source: {{ principals: ['{}'] }} }}] }}", c.alice.principal());
    c.mesh.policy("default", "not-alice", &format!("{{ action: DENY, rules: [{rule}] }}"));
    denied(&c.alice, &at(c.server.ipv4(), PORT));
    c.mesh.agent(2).logged(&[
        "direction=\"inbound\"",
        "denied by policy: deny policy default/not-alice, rule 0",
        &format!("src.identity=\"{}\"", c.alice.identity()),
        &format!("dst.identity=\"{}\"", c.server.identity()),
    ]);
    // The client's node says that it was policy as well.
    c.mesh.agent(1).logged(&["direction=\"outbound\"", "policy", &c.alice.identity()]);
}

#[test]
fn peer_authentication_by_port_and_by_selector() {
    let c = court("port-level");
    c.mesh.apply(
        "strict",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{ namespace: default, name: server }}\n\
             spec: {{ selector: {{ matchLabels: {{ app: server }} }}, mtls: {{ mode: STRICT }}, \
             portLevelMtls: {{ {OTHER_PORT}: {{ mode: PERMISSIVE }} }} }}\n"
        ),
    );
    eventually(SOON, || {
        anyhow::ensure!(attempt(&c.plain, &at(c.server.ipv4(), PORT)).is_err(), "still permissive");
        Ok(())
    })
    .unwrap();
    c.passes(PORT, [true, true, false]);
    c.passes(OTHER_PORT, [true; 3]);
    // Not selected.
    serve(&c.alice, PORT, Serve::Script);
    attempt(&c.plain, &at(c.alice.ipv4(), PORT)).unwrap();
}

#[test]
fn a_new_deny_closes_a_live_connection() {
    let c = court("live");
    let to = at(c.server.ipv4(), PORT);
    let live = c.all().map(|from| echo_to(from, &to).unwrap());
    for sock in &live {
        echo(sock, 1000, 1).unwrap();
    }
    let rule = format!("{{ from: [{{ source: {{ principals: ['{}'] }} }}] }}", c.alice.principal());
    c.mesh.write_policy("default", "not-alice", &format!("{{ action: DENY, rules: [{rule}] }}"));
    assert_eq!(live[0].read_to_end().unwrap_err().kind(), "ECONNRESET");
    c.mesh
        .agent(2)
        .logged(&["denied by policy: deny policy default/not-alice, rule 0", &c.alice.identity()]);
    // The others have not noticed.
    for sock in &live[1..] {
        echo(sock, 1000, 2).unwrap();
    }
    c.mesh.policy_known("default/not-alice");
    denied(&c.alice, &to);
}

#[test]
fn a_live_plaintext_connection_is_closed_by_a_new_deny() {
    let c = court("live-plain");
    let live = echo_to(&c.plain, &at(c.server.ipv4(), PORT)).unwrap();
    echo(&live, 1000, 1).unwrap();
    let rule = format!("{{ from: [{{ source: {{ ipBlocks: ['{}'] }} }}] }}", c.plain.ipv4());
    c.mesh.write_policy("default", "no-address", &format!("{{ action: DENY, rules: [{rule}] }}"));
    assert_eq!(live.read_to_end().unwrap_err().kind(), "ECONNRESET");
}

#[test]
fn a_selector_policy_that_is_attached_later_closes_a_live_connection() {
    let c = court("attached");
    let live = echo_to(&c.alice, &at(c.server.ipv4(), PORT)).unwrap();
    let selected = "{ action: DENY, selector: { matchLabels: { locked: 'yes' } }, rules: [{}] }";
    c.mesh.policy("default", "locked", selected);
    // Known, and binding nobody.
    echo(&live, 1000, 1).unwrap();
    c.mesh.label(&c.server, "locked", "yes");
    assert_eq!(live.read_to_end().unwrap_err().kind(), "ECONNRESET");
    c.mesh.policy_bound("default/locked", &c.server);
    denied(&c.alice, &at(c.server.ipv4(), PORT));
    c.mesh.label(&c.server, "locked", "no");
    eventually(SOON, || Ok(attempt(&c.alice, &at(c.server.ipv4(), PORT))?)).unwrap();
}

#[test]
fn selector_policies_that_admit_come_and_go_without_closing_a_live_connection() {
    let c = court("passing");
    let live = echo_to(&c.alice, &at(c.server.ipv4(), PORT)).unwrap();
    let admitting = "{ action: ALLOW, selector: { matchLabels: { app: server } }, rules: [{}] }";
    for n in 0..20 {
        c.mesh.policy("default", "passing", admitting);
        c.mesh.policy_bound("default/passing", &c.server);
        echo(&live, 1000, n).unwrap();
        c.mesh.remove_policy("default", "passing");
        echo(&live, 1000, n).unwrap();
    }
    let closed = c.mesh.agent_of(&c.server).access_log();
    assert!(closed.is_empty(), "{closed:?}");
}

#[test]
fn an_allow_policy_that_is_removed_or_narrowed_closes_what_it_let_in() {
    let c = court("narrowed");
    let allow = |p: &MeshPod| {
        format!(
            "{{ action: ALLOW, rules: [{{ from: [{{ source: {{ principals: ['{}'] }} }}] }}] }}",
            p.principal()
        )
    };
    c.mesh.policy("default", "only", &allow(&c.alice));
    let live = echo_to(&c.alice, &at(c.server.ipv4(), PORT)).unwrap();
    echo(&live, 1000, 1).unwrap();
    c.mesh.write_policy("default", "only", &allow(&c.bob));
    assert_eq!(live.read_to_end().unwrap_err().kind(), "ECONNRESET");
    c.passes(PORT, [false, true, false]);
}
