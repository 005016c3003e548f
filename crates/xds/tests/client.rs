//! Delta ADS, the client's end without a network: what it answers, and what it comes back with.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use prost_types::Any;
use std::sync::Mutex;
use xds::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, TAKES_PARTS,
    client::{Apply, Delivered, Rejected, Subscriptions},
    proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource},
};

/// One call: the type, the names that came, and those that were removed.
type Call = (String, Vec<String>, Vec<String>);

/// Rejects what holds `bad`, and remembers what it was given.
#[derive(Default)]
struct Taker(Mutex<Vec<Call>>);

impl Apply for Taker {
    fn apply(
        &self,
        type_url: &str,
        resources: &[Delivered<'_>],
        removed: &[String],
    ) -> Vec<Rejected> {
        let names = resources.iter().map(|r| r.name.to_owned()).collect();
        self.0.lock().unwrap().push((type_url.to_owned(), names, removed.to_vec()));
        let bad = resources.iter().filter(|r| r.body == b"bad");
        bad.map(|r| Rejected { name: r.name.to_owned(), reason: "is bad".to_owned() }).collect()
    }

    fn apply_part(
        &self,
        type_url: &str,
        resources: &[Delivered<'_>],
        removed: &[String],
    ) -> Vec<Rejected> {
        self.apply(type_url, resources, removed)
    }

    fn connected(&self, _: bool) {}
}

fn resource(name: &str, version: &str, body: &[u8]) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(Any { type_url: ADDRESS_TYPE.to_owned(), value: body.to_vec() }),
        ..Default::default()
    }
}

fn response(nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.to_owned(),
        nonce: nonce.to_owned(),
        resources,
        removed_resources: removed.iter().map(|r| (*r).to_owned()).collect(),
        ..Default::default()
    }
}

fn subscriptions() -> Subscriptions {
    Subscriptions::new(&[ADDRESS_TYPE, AUTHORIZATION_TYPE])
}

fn handle(
    s: &mut Subscriptions,
    response: DeltaDiscoveryResponse,
    taker: &Taker,
) -> Option<DeltaDiscoveryRequest> {
    s.handle(&response.into(), taker).unwrap()
}

/// What the client says it has, when it comes back.
fn held(s: &Subscriptions) -> Vec<(String, String)> {
    let requests = s.first_requests(&Node::default(), &Taker::default());
    let address = requests.into_iter().find(|r| r.type_url == ADDRESS_TYPE).unwrap();
    let mut all: Vec<_> = address.initial_resource_versions.into_iter().collect();
    all.sort();
    all
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn a_stream_opens_with_everything_of_each_type() {
    let node = Node { id: "n".to_owned(), ..Default::default() };
    let requests = subscriptions().first_requests(&node, &Taker::default());
    assert_eq!(requests.len(), 2);
    let first = requests[0].node.clone().unwrap();
    assert_eq!(first.id, node.id);
    assert!(first.metadata.unwrap().fields.contains_key(TAKES_PARTS));
    assert_eq!(requests[1].node, None, "the first alone carries it");
    for request in &requests {
        assert_eq!(request.resource_names_subscribe, ["*"]);
        assert!(request.initial_resource_versions.is_empty());
    }
    let mut asked: Vec<&str> = requests.iter().map(|r| r.type_url.as_str()).collect();
    asked.sort_unstable();
    assert_eq!(asked, [AUTHORIZATION_TYPE, ADDRESS_TYPE]);
}

#[test]
fn what_was_taken_is_acknowledged_by_its_nonce() {
    let (mut s, taker) = (subscriptions(), Taker::default());
    let reply =
        handle(&mut s, response("7", vec![resource("a", "1", b"good")], &["b"]), &taker).unwrap();
    let expected = DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.to_owned(),
        response_nonce: "7".to_owned(),
        ..Default::default()
    };
    assert_eq!(reply, expected);
    let calls = taker.0.lock().unwrap();
    assert_eq!(*calls, [(ADDRESS_TYPE.to_owned(), vec!["a".to_owned()], vec!["b".to_owned()])]);
}

#[test]
fn what_was_rejected_is_named_with_the_reason_and_the_rest_is_taken() {
    let (mut s, taker) = (subscriptions(), Taker::default());
    let other = Resource {
        resource: Some(Any { type_url: AUTHORIZATION_TYPE.to_owned(), value: Vec::new() }),
        ..resource("other", "1", b"")
    };
    let empty = Resource { resource: None, ..resource("empty", "1", b"") };
    let all = vec![resource("a", "1", b"good"), resource("b", "1", b"bad"), other, empty];
    let reply = handle(&mut s, response("1", all, &[]), &taker).unwrap();
    assert_eq!(reply.response_nonce, "1");
    let error = reply.error_detail.unwrap();
    assert_eq!(error.code, tonic::Code::InvalidArgument as i32);
    for part in ["b: is bad", "other: is a", "empty: has no body"] {
        assert!(error.message.contains(part), "{}", error.message);
    }
    assert!(!error.message.contains("a: "), "{}", error.message);
    assert_eq!(held(&s), pairs(&[("a", "1"), ("b", ""), ("empty", ""), ("other", "")]));
}

#[test]
fn a_type_that_nobody_asked_for_gets_no_answer_and_is_not_applied() {
    let (mut s, taker) = (subscriptions(), Taker::default());
    let odd = DeltaDiscoveryResponse {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        ..response("1", vec![resource("a", "1", b"good")], &[])
    };
    assert_eq!(handle(&mut s, odd, &taker), None);
    assert!(taker.0.lock().unwrap().is_empty());
    assert_eq!(held(&s), []);
}

#[test]
fn a_new_stream_begins_where_the_last_one_ended() {
    let (mut s, taker) = (subscriptions(), Taker::default());
    let first = vec![
        resource("gone", "1", b"good"),
        resource("kept", "1", b"good"),
        resource("never", "1", b"bad"),
        resource("updated", "1", b"good"),
    ];
    handle(&mut s, response("1", first, &[]), &taker);
    let second = vec![resource("updated", "2", b"good"), resource("kept", "2", b"bad")];
    handle(&mut s, response("2", second, &["gone"]), &taker);
    // Of `kept` the version before is still in use; of `never` there is none, but its removal is to
    // be heard of.
    assert_eq!(held(&s), pairs(&[("kept", "1"), ("never", ""), ("updated", "2")]));
    handle(&mut s, response("3", vec![resource("never", "2", b"good")], &["kept"]), &taker);
    assert_eq!(held(&s), pairs(&[("never", "2"), ("updated", "2")]));
}

#[test]
fn repeated_responses_are_answered_each() {
    let (mut s, taker) = (subscriptions(), Taker::default());
    for _ in 0..3 {
        let again = response("1", vec![resource("a", "1", b"good")], &["b"]);
        assert_eq!(handle(&mut s, again, &taker).unwrap().error_detail, None);
    }
    assert_eq!(held(&s), pairs(&[("a", "1")]));
}

#[test]
fn a_name_that_comes_twice_is_held_only_if_both_were_taken() {
    let (mut s, taker) = (subscriptions(), Taker::default());
    let twice = vec![resource("a", "1", b"good"), resource("a", "2", b"bad")];
    let reply = handle(&mut s, response("1", twice, &[]), &taker).unwrap();
    assert!(reply.error_detail.is_some());
    assert_eq!(held(&s), pairs(&[("a", "")]));
    // Removed and sent in one response: it is there.
    handle(&mut s, response("2", vec![resource("a", "3", b"good")], &["a"]), &taker);
    assert_eq!(held(&s), pairs(&[("a", "3")]));
}
