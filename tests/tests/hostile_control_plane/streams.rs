//! Discovery streams that break, repeat themselves, speak of what nobody asked for, or say nothing at all.

use std::collections::HashMap;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::scene::{Scene, allow, deny, scene};
use culvert_tests::stage::record;
use scripted::messages::{policy, raw, response, workload};
use scripted::tls;
use tonic::Code;
use xds::proto::{discovery::DeltaDiscoveryRequest, security, workload as pb};
use xds::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

fn all() -> Vec<security::Rule> {
    vec![security::Rule::default()]
}

impl Scene {
    /// Ends the stream, and takes up the next.
    fn broken(&mut self, code: Code, why: &str) -> (DeltaDiscoveryRequest, DeltaDiscoveryRequest) {
        self.stream.fail(code, why);
        self.next_stream()
    }

    /// Takes up the next stream; what the client says in opening it, by type.
    fn next_stream(&mut self) -> (DeltaDiscoveryRequest, DeltaDiscoveryRequest) {
        self.stream = self.stage.control().stream();
        (self.stream.request_of(ADDRESS_TYPE), self.stream.request_of(AUTHORIZATION_TYPE))
    }
}

fn pairs(list: &[(&str, &str)]) -> HashMap<String, String> {
    list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn a_stream_that_breaks_is_taken_up_with_what_is_held() {
    let mut s = scene("reconnect");
    s.taken(
        AUTHORIZATION_TYPE,
        vec![policy("1", &deny("guard", vec![])), policy("1", &deny("old", vec![]))],
        &[],
    );
    let later = |name: &str| security::Authorization { action: 9, ..allow(name, all()) };
    s.rejected(AUTHORIZATION_TYPE, vec![policy("2", &later("guard"))]);
    s.rejected(AUTHORIZATION_TYPE, vec![policy("1", &later("never"))]);
    s.denied("a policy that was never understood");

    let (addresses, policies) = s.broken(Code::Unavailable, "maintenance");
    let pods =
        [&s.server, &s.alice, &s.quiet_client, &s.quiet_server].map(|p| (p.uid(), "1".to_owned()));
    assert_eq!(addresses.initial_resource_versions, pods.into());
    // Of the rejected update the version before is held; of what was never taken none, and the control plane must
    // know of it all the same: else it would never say that it is gone.
    let held = pairs(&[("default/guard", "1"), ("default/old", "1"), ("default/never", "")]);
    assert_eq!(policies.initial_resource_versions, held);
    for request in [&addresses, &policies] {
        assert_eq!(request.resource_names_subscribe, ["*"]);
        assert!(request.response_nonce.is_empty() && request.error_detail.is_none());
    }
    assert!(addresses.node.is_some() || policies.node.is_some());

    // What went while the stream was down.
    s.taken(AUTHORIZATION_TYPE, vec![], &["default/never", "default/old"]);
    s.passes("the policy that was never understood is gone");
    // A version that is older by its number is the control plane's word all the same.
    s.taken(AUTHORIZATION_TYPE, vec![policy("0", &deny("guard", all()))], &[]);
    s.denied("the guard of an earlier version");
    s.undisturbed();
}

#[test]
fn the_last_good_state_stays_while_nobody_answers() {
    let mut s = scene("away");
    s.put_policy(&deny("guard", all()));
    s.denied("by the guard");
    s.stage.stop_control();
    s.denied("with the control plane gone");
    s.undisturbed();
    s.stage.start_control();
    let (_, policies) = s.next_stream();
    assert_eq!(policies.initial_resource_versions, pairs(&[("default/guard", "1")]));
    s.remove_policy("default/guard");
    s.passes("removed by the one that came back");
    s.undisturbed();
}

#[test]
fn a_nonce_that_comes_again_is_answered_again_and_its_content_counts() {
    let mut s = scene("nonces");
    let guard = response(AUTHORIZATION_TYPE, "n", vec![policy("1", &deny("guard", all()))], &[]);
    for _ in 0..3 {
        s.stream.taken(&guard);
        s.denied("by the guard");
    }
    // The nonce is not what a response is known by.
    s.stream.taken(&response(AUTHORIZATION_TYPE, "n", vec![], &["default/guard"]));
    s.passes("removed under the same nonce");
    s.stream.taken(&response(AUTHORIZATION_TYPE, "", vec![], &[]));
    s.stream.taken(&guard);
    s.denied("an old response again is what the control plane says now");
    s.undisturbed();
}

#[test]
fn what_nobody_asked_for_changes_nothing() {
    let mut s = scene("unasked");
    let odd = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    for type_url in [odd, "", "type.googleapis.com/istio.workload.Workload", &"x".repeat(100_000)] {
        s.stream.send(&response(type_url, "odd", vec![raw(type_url, "a", "1", vec![1])], &["b"]));
    }
    // The next answer is for the next response of a known type: those above got none.
    s.stream.taken(&response(
        AUTHORIZATION_TYPE,
        "known",
        vec![],
        &["absent/host", "no-slash", ""],
    ));
    // As an answer to a subscription on demand would be: by an address, and for a host that is not there.
    let pod = record(&s.server);
    let mut by_address = workload("1", &pod);
    by_address.name = format!("/{}", s.server.ipv4());
    let nack = s.rejected(ADDRESS_TYPE, vec![by_address]);
    assert!(nack.contains(&format!("/{}: ", s.server.ipv4())), "{nack}");
    s.taken(ADDRESS_TYPE, vec![], &["/10.10.1.99", "default/absent.example", "*"]);
    s.passes("after all that");
    s.undisturbed();
}

#[test]
fn messages_that_cannot_be_decoded_end_their_stream_and_nothing_else() {
    use prost::Message as _;
    let mut s = scene("truncated");
    s.put_policy(&deny("guard", vec![]));
    let sound = response(
        AUTHORIZATION_TYPE,
        "n",
        vec![policy("1", &deny("guard", all()))],
        &["default/guard"],
    )
    .encode_to_vec();
    let mut cut = sound.clone();
    cut.truncate(sound.len() - 3);
    for bytes in [cut, vec![0xff; 64], vec![0x12, 0xff, 0xff, 0xff, 0xff, 0x0f]] {
        s.stream.send_bytes(bytes);
        s.stream.ended();
        let (_, policies) = s.next_stream();
        assert_eq!(policies.initial_resource_versions, pairs(&[("default/guard", "1")]));
        s.passes("the guard that keeps nobody out is still in force");
    }
    // An empty message is a response of no type.
    s.stream.send_bytes(vec![]);
    s.put_policy(&deny("guard", all()));
    s.denied("the stream after them is as good as any");
    s.undisturbed();
}

/// Each stream of these costs both ends a TLS handshake. That one answer came is no reason to hurry back.
#[test]
fn streams_that_break_at_once_are_opened_ever_more_slowly() {
    let mut s = scene("hurry");
    let begun = Instant::now();
    for _ in 0..8 {
        s.stream.taken(&response(AUTHORIZATION_TYPE, "n", vec![], &[]));
        s.broken(Code::Unavailable, "not now");
    }
    // From 10 ms, doubled each time, and half of it at the least by jitter.
    assert!(begun.elapsed() > Duration::from_millis(1200), "{:?}", begun.elapsed());
    s.passes("meanwhile");
    s.undisturbed();
}

#[test]
fn errors_of_every_kind_are_survived() {
    let mut s = scene("errors");
    for code in [Code::Unauthenticated, Code::Internal, Code::ResourceExhausted, Code::Ok] {
        let (_, policies) = s.broken(code, "go away\nand \"stay\" away");
        assert!(policies.initial_resource_versions.is_empty());
        s.passes("after an error");
    }
    s.put_policy(&deny("guard", all()));
    s.denied("and the stream works");
    // A status message cannot write lines of the log.
    let log = s.stage.agent.log();
    assert!(!log.lines().any(|l| l.starts_with("and ")), "{log}");
    s.undisturbed();
}

/// A socket that is taken and then nothing more is said on it, before and after the TLS handshake: it is given up, and
/// tried again.
#[test]
fn a_control_plane_that_stalls_is_left_and_tried_again() {
    use std::io::Read as _;
    let mut s = scene("stalled");
    s.put_policy(&deny("guard", vec![]));
    s.stage.stop_control();
    let listener = s.stage.discovery_listener();
    // Nothing but TCP. The agent ends it, which is what is waited for.
    let left = |mut tcp: TcpStream| {
        tcp.set_read_timeout(Some(Duration::from_secs(90))).unwrap();
        std::io::copy(&mut tcp.by_ref().take(1 << 20), &mut std::io::sink())
    };
    let (tcp, _) = listener.accept().unwrap();
    left(tcp).expect("the agent gives up a handshake that does not go on");
    s.passes("while the control plane stalls");
    // TLS, and then not a frame.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (certificate, key) = s.stage.pki.dns("culvertd.culvert-system.svc");
    let config = tls::plain_server_config(&certificate, &key);
    let (tcp, _) = listener.accept().unwrap();
    tcp.set_nonblocking(true).unwrap();
    runtime.block_on(async {
        use tokio::io::AsyncReadExt as _;
        let tcp = tokio::net::TcpStream::from_std(tcp).unwrap();
        let mut tls = tls::accept(tcp, config).await.unwrap();
        let mut heard = vec![];
        let ended = tls.read_to_end(&mut heard);
        let ended = tokio::time::timeout(Duration::from_secs(90), ended).await;
        assert!(ended.is_ok(), "the agent gives up a connection on which nothing is said");
    });
    drop(listener);
    s.passes("still");
    s.stage.start_control();
    s.next_stream();
    s.put_policy(&deny("guard", all()));
    s.denied("by the one that speaks");
    s.undisturbed();
}

/// A workload may claim what it likes; an agent holds its own pods to their own addresses.
#[test]
fn an_address_that_two_claim_goes_back_when_one_lets_go() {
    let mut s = scene("claims");
    let thief = pb::Workload { uid: "Kubernetes//Pod/default/thief".into(), ..record(&s.server) };
    let thief = pb::Workload {
        service_account: "thief".into(),
        name: "thief".into(),
        node: "elsewhere".into(),
        ..thief
    };
    s.put_workload(&thief);
    // Who answers there is not whom the record names: the client refuses it.
    assert!(culvert_tests::attempt(&s.alice, &s.target()).is_err());
    s.stage.agent.logged(&["was expected"]);
    s.taken(ADDRESS_TYPE, vec![], &[&thief.uid]);
    s.passes("the thief has let go");
    s.undisturbed();
}
