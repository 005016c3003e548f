//! Too much of it: storms and sizes. What an agent keeps and says is bounded, and it goes on serving meanwhile.

use crate::scene::{ROOM_KIB, deny, scene};
use culvert_tests::stage::record;
use prost::Message as _;
use scripted::messages::{policy, raw, response, workload};
use std::time::Duration;
use xds::proto::{security, workload as pb};
use xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

/// What a gRPC server takes by default: a longer NACK would end the stream that carries it.
const LONGEST_NACK: usize = 4 * 1024 * 1024;

#[test]
fn a_storm_of_bad_responses_gets_one_answer_each() {
    let mut s = scene("storm");
    let before = s.stage.agent.resident_kib();
    const STORM: usize = 5_000;
    for i in 0..STORM {
        let bad = raw(AUTHORIZATION_TYPE, "quiet2/bad", "1", vec![0xff]);
        s.stream.send(&response(AUTHORIZATION_TYPE, &format!("storm-{i}"), vec![bad], &[]));
    }
    for i in 0..STORM {
        let answer = s.stream.request();
        assert_eq!(answer.response_nonce, format!("storm-{i}"));
        assert!(answer.error_detail.unwrap().message.contains("quiet2/bad"));
    }
    // In order, so that nothing was said twice: the next word is the answer to the next response.
    s.stream.send(&response(AUTHORIZATION_TYPE, "after", vec![], &[]));
    assert_eq!(s.stream.request().response_nonce, "after");
    assert!(s.stream.silent_for(Duration::from_millis(200)));
    let grown = s.stage.agent.resident_kib().saturating_sub(before);
    println!("a storm of {STORM} bad responses: {grown} KiB");
    assert!(grown < ROOM_KIB, "{grown} KiB more");
    s.passes("after the storm");
    s.undisturbed();
}

#[test]
fn fifty_megabytes_of_nonsense_are_named_in_a_nack_of_bounded_length() {
    let mut s = scene("nonsense");
    let before = s.stage.agent.resident_kib();
    let bad = |i: usize| raw(ADDRESS_TYPE, &format!("nonsense-{i:07}"), "1", vec![0xff; 100]);
    let all = response(ADDRESS_TYPE, "many", (0..300_000).map(bad).collect(), &[]);
    assert!(all.encoded_len() > 50_000_000, "{}", all.encoded_len());
    let nack = s.stream.rejected(&all);
    drop(all);
    assert!(nack.contains("nonsense-0000000"), "the first of them is named");
    assert!(nack.len() < LONGEST_NACK, "a NACK of {} bytes", nack.len());
    // One name of ten megabytes, and one reason.
    let name = "n".repeat(10_000_000);
    let long =
        pb::Workload { uid: name.clone(), trust_domain: "UPPER".into(), ..record(&s.server) };
    let nack = s.rejected(ADDRESS_TYPE, vec![workload("1", &long)]);
    assert!(nack.len() < LONGEST_NACK, "a NACK of {} bytes", nack.len());
    let services = [(name, pb::PortList::default())].into();
    let long = pb::Workload { services, ..record(&s.server) };
    let nack = s.rejected(ADDRESS_TYPE, vec![workload("1", &long)]);
    assert!(nack.len() < LONGEST_NACK, "a NACK of {} bytes", nack.len());
    assert!(s.stage.agent.log().len() < 100_000_000, "the log is longer than what it is about");
    let grown = s.stage.agent.resident_kib().saturating_sub(before);
    println!("after 50 MB of nonsense: {grown} KiB");
    s.passes("after it all");
    s.undisturbed();
}

/// Sound, and 50 MB: it is taken, and given back when it is removed.
#[test]
fn fifty_megabytes_of_workloads_are_taken_while_connections_go_on() {
    let mut s = scene("fifty");
    let before = s.stage.agent.resident_kib();
    let one = |i: u32| {
        let w = pb::Workload {
            uid: format!("Kubernetes//Pod/elsewhere/w-{i}"),
            namespace: "elsewhere".into(),
            node: "n9".into(),
            // 172.64.0.0/10 is nobody's here.
            addresses: vec![(0xac40_0000 + i).to_be_bytes().to_vec().into()],
            hostname: "h".repeat(400),
            ..record(&s.server)
        };
        workload("1", &w)
    };
    let all = response(ADDRESS_TYPE, "many", (0..90_000).map(one).collect(), &[]);
    assert!(all.encoded_len() > 50_000_000, "{}", all.encoded_len());
    let quiet = s.quiet.tally().ok;
    s.stream.taken(&all);
    let held = s.stage.agent.resident_kib().saturating_sub(before);
    println!("90,000 workloads in one message: {held} KiB");
    assert!(s.quiet.tally().ok > quiet, "connections went on");
    let names: Vec<String> = all.resources.iter().map(|r| r.name.clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    drop(all);
    s.taken(ADDRESS_TYPE, vec![], &names);
    s.passes("afterwards");
    s.undisturbed();
}

/// Past the limit of a message the stream ends, the state stays, and the next stream is as good as new.
#[test]
fn a_message_past_the_limit_ends_its_stream_and_no_more() {
    let mut s = scene("too-long");
    s.put_policy(&deny("guard", vec![]));
    let before = s.stage.agent.resident_kib();
    let all = raw(AUTHORIZATION_TYPE, "default/guard", "2", vec![0; xds::MAX_MESSAGE]);
    s.stream.send(&response(AUTHORIZATION_TYPE, "long", vec![all], &[]));
    s.stream.ended();
    s.stream = s.stage.control().stream();
    let held = s.stream.request_of(AUTHORIZATION_TYPE).initial_resource_versions;
    assert_eq!(held.get("default/guard").map(String::as_str), Some("1"));
    let grown = s.stage.agent.resident_kib().saturating_sub(before);
    println!("a message past the limit: {grown} KiB");
    assert!(grown < ROOM_KIB, "{grown} KiB more: it was read all the same");
    s.put_policy(&deny("guard", vec![security::Rule::default()]));
    s.denied("by the next stream's word");
    s.undisturbed();
}

/// All of them apply to every connection, which a policy each must not make slow beyond use.
#[test]
fn ten_thousand_policies_and_one_of_ten_thousand_rules_still_judge() {
    let mut s = scene("many-policies");
    let harmless = |i: u32| {
        let port = security::Match { destination_ports: vec![9], ..Default::default() };
        deny(&format!("p{i}"), vec![crate::scene::rule(port)])
    };
    s.taken(AUTHORIZATION_TYPE, (0..10_000).map(|i| policy("1", &harmless(i))).collect(), &[]);
    s.passes("with ten thousand policies");
    let mut wide = harmless(0);
    wide.rules = vec![wide.rules[0].clone(); 10_000];
    wide.rules.push(security::Rule::default());
    s.put_policy(&wide);
    s.denied("by the last of ten thousand rules");
    s.undisturbed();
}

/// Each claim is remembered, so that the address goes back when a later one lets go. That must not cost each of them a
/// walk past all the others.
#[test]
fn a_hundred_thousand_claims_of_one_address_are_taken_and_let_go() {
    let mut s = scene("claims");
    let nobodys = vec![172, 64, 0, 1];
    let one = |i: u32| {
        let w = pb::Workload {
            uid: format!("w-{i}"),
            node: "n9".into(),
            addresses: vec![nobodys.clone().into()],
            ..record(&s.server)
        };
        workload("1", &w)
    };
    let all: Vec<_> = (0..100_000).map(one).collect();
    let names: Vec<String> = all.iter().map(|r| r.name.clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let begun = std::time::Instant::now();
    s.taken(ADDRESS_TYPE, all, &[]);
    println!("taken in {:?}", begun.elapsed());
    s.passes("while a hundred thousand claim an address");
    s.taken(ADDRESS_TYPE, vec![], &names);
    println!("and let go after {:?}", begun.elapsed());
    s.undisturbed();
}
