//! Resources that are malformed, contradict themselves, or come from a later version.

use crate::scene::{PORT, allow, block, deny, exact, named, rule, scene, scene_with, with_more};
use culvert_tests::stage::record;
use culvert_tests::{at, attempt};
use prost::Message as _;
use scripted::messages::{policy, raw, response, service, workload};
use testbed::{ConnectOpts, LeakCheck, Token};
use xds::proto::discovery::Resource;
use xds::proto::{security, workload as pb};
use xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

const ALICE: &str = "cluster.local/ns/default/sa/alice";

fn only_alice(name: &str) -> security::Authorization {
    let m = security::Match { principals: vec![exact(ALICE)], ..Default::default() };
    allow(name, vec![rule(m)])
}

/// A length-delimited field around some bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
    out.extend(bytes);
    out
}

/// An ALLOW for everybody, were it not for a restriction in field 14 of the match, which no version has yet.
fn restricted_by_the_future(name: &str) -> Resource {
    let everybody = security::Match { destination_ports: vec![8080], ..Default::default() };
    let m = [everybody.encode_to_vec(), field(14, &field(1, b"elsewhere.local"))].concat();
    with_more(&allow(name, vec![]), &field(5, &field(1, &field(2, &m))))
}

/// What no agent may take, with a word of the reason.
fn bad_policies(name: &str) -> Vec<(Resource, &'static str)> {
    let with = |m: security::Match| policy("2", &allow(name, vec![rule(m)]));
    let source = |b| security::Match { source_ips: vec![b], ..Default::default() };
    let not_source = |b| security::Match { not_source_ips: vec![b], ..Default::default() };
    let ports = |p| security::Match { destination_ports: vec![p], ..Default::default() };
    let mapped = [&[0; 10][..], &[0xff, 0xff, 10, 0, 0, 0]].concat();
    let extension = security::Extension { name: "istio.io/later".into(), config: None };
    let of_match =
        security::Match { extensions: vec![extension.clone()], ..ports(u32::from(PORT)) };
    let of_policy = security::Authorization { extensions: vec![extension], ..allow(name, vec![]) };
    let unknown_kind = security::Match {
        principals: vec![security::StringMatch { match_type: None }],
        ..Default::default()
    };
    let mut cut = policy("2", &only_alice(name));
    cut.resource.as_mut().unwrap().value.truncate(20);
    let mut misnamed = policy("2", &only_alice("somebody-else"));
    misnamed.name = format!("default/{name}");
    vec![
        (policy("2", &security::Authorization { action: 2, ..only_alice(name) }), "action 2"),
        (policy("2", &security::Authorization { scope: 9, ..only_alice(name) }), "scope 9"),
        (policy("2", &of_policy), "istio.io/later"),
        (with(of_match), "istio.io/later"),
        (with(source(block(&[10, 0, 0, 0], 33))), "/33"),
        (with(not_source(block(&[10, 0, 0, 0], 33))), "/33"),
        (with(source(block(&[0; 16], 129))), "/129"),
        (with(source(block(&mapped, 95))), "/95"),
        (with(source(block(&[10, 0, 0], 8))), "3 bytes"),
        (with(ports(0)), "0 is not a port"),
        (with(ports(70_000)), "70000"),
        (with(unknown_kind), "unknown kind"),
        (cut, "decoded"),
        (misnamed, "somebody-else"),
        (with_more(&only_alice(name), &[8 << 3, 1]), "not known"),
        (restricted_by_the_future(name), "not known"),
    ]
}

/// Every update that cannot be taken is named, the rest of its response is taken, and what was there before goes on
/// judging.
#[test]
fn a_bad_update_of_a_policy_is_named_and_the_version_before_stays() {
    let mut s = scene_with("bad-policies", &[only_alice("guard")]);
    let intruder = s.quiet_client.clone();
    s.passes("before");
    for (i, (bad, why)) in bad_policies("guard").into_iter().enumerate() {
        let good = deny(&format!("beside-{i}"), vec![]);
        let nack = s.rejected(AUTHORIZATION_TYPE, vec![bad, policy("1", &good)]);
        assert!(nack.contains("default/guard") && nack.contains(why), "{why}: {nack}");
        assert!(!nack.contains("beside"), "{why}: {nack}");
        let known = s.stage.agent.rows("policies").unwrap();
        let beside = format!("default/{}", good.name);
        assert!(known.iter().any(|p| p["name"] == beside.as_str()), "{why}: {known:?}");
        s.passes(why);
        let let_in = attempt(&intruder, &s.target());
        assert!(let_in.is_err(), "{why}: a stranger was let in");
    }
    s.undisturbed();
}

/// Without an earlier version nobody knows whom it would have let in.
#[test]
fn a_policy_that_was_never_understood_denies_where_it_stands_until_it_is_removed() {
    let mut s = scene("never-understood");
    for i in 0..bad_policies("").len() {
        // Of another name each, so that each is new.
        let name = format!("never-{i}");
        let (bad, why) = bad_policies(&name).swap_remove(i);
        let of = format!("default/{name}");
        let nack = s.rejected(AUTHORIZATION_TYPE, vec![bad]);
        assert!(nack.contains(&of), "{why}: {nack}");
        // An ALLOW of global scope by the bytes, or one whose scope cannot be known: denied in its namespace at least.
        s.denied(why);
        s.remove_policy(&of);
        s.passes(why);
    }
    s.undisturbed();
}

/// Fields that this version does not know may be restrictions.
#[test]
fn an_allow_with_a_field_of_the_future_lets_nobody_in_whom_it_might_have_kept_out() {
    let mut s = scene("future-field");
    let nack = s.rejected(AUTHORIZATION_TYPE, vec![restricted_by_the_future("later")]);
    assert!(nack.contains("default/later"), "{nack}");
    s.denied("an ALLOW with an unknown restriction");
    s.undisturbed();
}

#[test]
fn a_bad_update_of_a_workload_is_named_and_the_version_before_stays() {
    let mut s = scene("bad-workloads");
    let w = record(&s.server);
    let services = |name: &str, port: u32| -> std::collections::BTreeMap<String, pb::PortList> {
        let ports = vec![pb::Port { service_port: port, target_port: 80, ..Default::default() }];
        [(name.to_owned(), pb::PortList { ports })].into()
    };
    let body = |w: pb::Workload| workload("2", &w);
    let mut cut = body(w.clone());
    cut.resource.as_mut().unwrap().value.truncate(25);
    let mut misnamed = body(pb::Workload { uid: "somebody-else".into(), ..w.clone() });
    misnamed.name.clone_from(&w.uid);

    let cases = [
        (body(pb::Workload { addresses: vec![vec![1, 2, 3].into()], ..w.clone() }), "3 bytes"),
        (body(pb::Workload { tunnel_protocol: 99, ..w.clone() }), "unknown value 99"),
        (body(pb::Workload { network_mode: 9, ..w.clone() }), "network_mode"),
        (body(pb::Workload { services: services("no-slash", 80), ..w.clone() }), "no-slash"),
        (body(pb::Workload { services: services("ns/h", 0), ..w.clone() }), "0 is not a port"),
        (
            body(pb::Workload { authorization_policies: vec!["p".into()], ..w.clone() }),
            "namespace/hostname",
        ),
        (body(pb::Workload { trust_domain: "UPPER".into(), ..w.clone() }), "trust domain"),
        (body(pb::Workload { service_account: "a/b".into(), ..w.clone() }), "service_account"),
        (cut, "decoded"),
        (misnamed, "somebody-else"),
        (raw(ADDRESS_TYPE, &w.uid, "2", vec![]), "neither"),
        (raw(AUTHORIZATION_TYPE, &w.uid, "2", vec![]), "in a response of"),
        (Resource { name: w.uid.clone(), ..Default::default() }, "no body"),
    ];
    for (bad, why) in cases {
        let nack = s.rejected(ADDRESS_TYPE, vec![bad]);
        assert!(nack.contains(&w.uid) && nack.contains(why), "{why}: {nack}");
        s.passes(why);
    }
    s.undisturbed();
}

/// A message nested a hundred thousand deep costs a decoder that recurses its stack.
#[test]
fn deep_nesting_is_rejected_and_the_agent_lives() {
    let mut s = scene("nesting");
    // google.protobuf.Struct: fields { key, Value { struct_value } }, by hand, from the inside out.
    let mut value: Vec<u8> = vec![];
    let length = |n: usize, out: &mut Vec<u8>| {
        let mut n = n;
        while n >= 128 {
            out.push(u8::try_from(n % 128).unwrap() | 128);
            n /= 128;
        }
        out.push(u8::try_from(n).unwrap());
    };
    for _ in 0..20_000 {
        // list_value = 6 of Value, values = 1 of ListValue.
        let mut list = vec![0x0a];
        length(value.len(), &mut list);
        list.append(&mut value);
        value = vec![0x32];
        length(list.len(), &mut value);
        value.append(&mut list);
    }
    let mut entry = vec![0x0a, 1, b'k', 0x12];
    length(value.len(), &mut entry);
    entry.append(&mut value);
    let mut fields = vec![0x0a];
    length(entry.len(), &mut fields);
    fields.append(&mut entry);
    let config = prost_types::Any {
        type_url: "type.googleapis.com/google.protobuf.Struct".into(),
        value: fields.clone(),
    };
    // In the labels, and as the body itself.
    let labels = pb::Extension { name: xds::LABELS_EXTENSION.into(), config: Some(config) };
    let w = pb::Workload { extensions: vec![labels], ..record(&s.server) };
    let nonce = s.nonce();
    let all = vec![workload("2", &w)];
    // Taken without its labels or rejected: what counts is that there is an answer.
    s.stream.exchange(&response(ADDRESS_TYPE, &nonce, all, &[]));
    let nack =
        s.rejected(AUTHORIZATION_TYPE, vec![raw(AUTHORIZATION_TYPE, "quiet2/nested", "1", fields)]);
    assert!(nack.contains("quiet2/nested"), "{nack}");
    s.passes("nested");
    s.undisturbed();
}

/// The endpoint says something of its health that is not known here: no connection is risked on it while its record
/// says no better.
#[test]
fn a_status_of_the_future_is_not_health() {
    let mut s = scene("future-status");
    let vip = [10, 96, 0, 7];
    let hostname = "server.default.svc.cluster.local";
    let ports = vec![pb::Port { service_port: 80, target_port: PORT.into(), ..Default::default() }];
    let svc = pb::Service {
        name: "server".into(),
        namespace: "default".into(),
        hostname: hostname.into(),
        addresses: vec![pb::NetworkAddress { address: vip.to_vec().into(), ..Default::default() }],
        ports: ports.clone(),
        ..Default::default()
    };
    let of = |status: i32| pb::Workload {
        status,
        services: [(format!("default/{hostname}"), pb::PortList { ports: ports.clone() })].into(),
        ..record(&s.server)
    };
    let (healthy, unknown) = (of(0), of(7));
    s.taken(ADDRESS_TYPE, vec![service("1", &svc), workload("2", &healthy)], &[]);
    attempt(&s.alice, &at(vip, 80)).unwrap();
    let nonce = s.nonce();
    let all = vec![workload("3", &unknown)];
    let answer = s.stream.exchange(&response(ADDRESS_TYPE, &nonce, all, &[]));
    match answer.error_detail {
        // The last good state stays.
        Some(nack) => assert!(nack.message.contains("status"), "{}", nack.message),
        None => {
            let refused = attempt(&s.alice, &at(vip, 80)).unwrap_err();
            assert_eq!(refused.kind(), "ECONNRESET");
            s.stage.agent.logged(&["no healthy endpoint"]);
        }
    }
    s.put_workload(&healthy);
    attempt(&s.alice, &at(vip, 80)).unwrap();
    s.undisturbed();
}

/// A workload or a service that was refused and of which there is no earlier version is not taken for something
/// outside the mesh: in plaintext its pods must not be reached.
#[test]
fn what_was_refused_is_not_reached_in_plaintext() {
    let mut s = scene("refused");
    let uid = s.server.uid();
    // A service that its cluster translates, and that this agent cannot take.
    let vip = std::net::Ipv4Addr::new(10, 96, 0, 8);
    s.stage.bed.service(vip, None, 80, &[(s.server.ipv4(), None, PORT)]).unwrap();
    let svc = pb::Service {
        name: "server".into(),
        namespace: "default".into(),
        hostname: "server.default.svc.cluster.local".into(),
        addresses: vec![pb::NetworkAddress {
            address: vip.octets().to_vec().into(),
            ..Default::default()
        }],
        load_balancing: Some(pb::LoadBalancing { mode: 42, ..Default::default() }),
        ..Default::default()
    };
    let nack = s.rejected(ADDRESS_TYPE, vec![service("1", &svc)]);
    assert!(nack.contains("default/server.default.svc"), "{nack}");

    let mut misnamed = workload("1", &pb::Workload { uid: "other".into(), ..record(&s.server) });
    misnamed.name.clone_from(&uid);
    let bad_workloads = [
        workload("1", &pb::Workload { tunnel_protocol: 99, ..record(&s.server) }),
        workload("1", &pb::Workload { network_mode: 9, ..record(&s.server) }),
        misnamed,
    ];
    let mut targets = vec![(None, at(vip, 80))];
    targets.extend(bad_workloads.into_iter().map(|w| (Some(w), s.target())));
    for (bad, target) in targets {
        if let Some(bad) = bad {
            s.taken(ADDRESS_TYPE, vec![], &[&uid]);
            let nack = s.rejected(ADDRESS_TYPE, vec![bad]);
            assert!(nack.contains(&uid), "{nack}");
        }
        let token = Token::new();
        let wire = s.alice.capture_host_end("refused").unwrap();
        let opts = ConnectOpts::default();
        let said = s.alice.puppet().unwrap().connect(&target, opts).and_then(|sock| {
            sock.write(b"echo\n")?;
            sock.write(token.bytes())?;
            sock.read_exact(token.bytes().len())
        });
        assert!(said.is_err(), "{target} was reached");
        let check = LeakCheck {
            tokens: vec![token],
            enrolled: [s.server.ipv4().into(), s.alice.ipv4().into(), vip.into()].into(),
            ..LeakCheck::default()
        };
        let verdict = check.check(&wire.stop().unwrap()).unwrap();
        assert!(verdict.tokens.is_empty() && verdict.plaintext.is_empty(), "{target}: {verdict}");
    }
    s.undisturbed();
}

/// Of a name that comes twice in one response the last counts; if that one is bad, the first stays, and the client
/// does not claim to hold it.
#[test]
fn duplicates_in_one_response_leave_the_last_good_one() {
    let mut s = scene("duplicates");
    let nack = s.rejected(
        AUTHORIZATION_TYPE,
        vec![
            policy("1", &deny("twice", vec![security::Rule::default()])),
            policy("2", &security::Authorization { action: 9, ..named("twice") }),
        ],
    );
    assert!(nack.contains("default/twice"), "{nack}");
    s.denied("a DENY and then nonsense");
    s.taken(
        AUTHORIZATION_TYPE,
        vec![
            policy("3", &deny("twice", vec![security::Rule::default()])),
            policy("4", &deny("twice", vec![])),
        ],
        &["default/twice"],
    );
    s.passes("the last of two counts");
    s.undisturbed();
}
