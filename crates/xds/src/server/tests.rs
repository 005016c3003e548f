use super::*;
use crate::proto::discovery::Node;
use prost_types::{Struct, Value};

const TYPE: &str = crate::ADDRESS_TYPE;
const OTHER: &str = crate::AUTHORIZATION_TYPE;

fn encoded(version: &str) -> Encoded {
    Encoded { version: version.to_owned(), body: version.into(), ..Encoded::default() }
}

fn aliased(version: &str, alias: &str) -> Encoded {
    Encoded { aliases: vec![alias.to_owned()], ..encoded(version) }
}

fn put(store: &Store, name: &str, version: &str) -> usize {
    store.update(TYPE, vec![(name.to_owned(), encoded(version))], Vec::new())
}

fn remove(store: &Store, name: &str) -> usize {
    store.update(TYPE, Vec::new(), vec![name.to_owned()])
}

fn store() -> Arc<Store> {
    let store = Store::new(&[TYPE, OTHER]);
    put(&store, "a", "1");
    put(&store, "b", "1");
    store
}

fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: TYPE.to_owned(),
        resource_names_subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
        ..Default::default()
    }
}

fn unsubscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_unsubscribe: names.iter().map(|n| (*n).to_owned()).collect(),
        ..subscribe(&[])
    }
}

/// Names with versions that were sent, and names that were removed, over all responses.
type Sent = (Vec<String>, Vec<String>);

fn sent(responses: impl IntoIterator<Item = UnopenedResponse>) -> Sent {
    let (mut updated, mut removed) = (Vec::new(), Vec::new());
    for r in responses {
        for message in r.resources {
            let resource = Resource::decode(message).unwrap();
            assert_eq!(resource.resource.as_ref().unwrap().type_url, r.type_url);
            updated.push(format!("{}={}", resource.name, resource.version));
        }
        removed.extend(r.removed_resources);
    }
    updated.sort();
    removed.sort();
    (updated, removed)
}

fn lists(updated: &[&str], removed: &[&str]) -> Sent {
    let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
    (own(updated), own(removed))
}

/// What the session answers.
fn ask(
    store: &Store,
    session: &mut Session,
    request: DeltaDiscoveryRequest,
) -> Vec<UnopenedResponse> {
    let answer = session.request(store, request, "c");
    said(session, answer)
}

fn said(session: &mut Session, answers: impl IntoIterator<Item = Answer>) -> Vec<UnopenedResponse> {
    let parts = |mut answer| std::iter::from_fn(|| session.part(&mut answer)).collect::<Vec<_>>();
    answers.into_iter().flat_map(parts).collect()
}

/// What the session says about everything that has changed since.
fn follow(
    store: &Store,
    session: &mut Session,
    changes: &mut broadcast::Receiver<Arc<Change>>,
) -> Vec<UnopenedResponse> {
    std::iter::from_fn(|| changes.try_recv().ok())
        .flat_map(|c| {
            let answer = session.change(store, &c);
            said(session, answer)
        })
        .collect()
}

#[test]
fn a_wildcard_gets_everything_and_then_the_changes() {
    let (store, mut session) = (store(), Session::default());
    let mut changes = store.changes.subscribe();
    let first = ask(&store, &mut session, subscribe(&["*"]));
    assert_eq!(sent(first), lists(&["a=1", "b=1"], &[]));
    put(&store, "b", "2");
    put(&store, "c", "1");
    remove(&store, "a");
    assert_eq!(sent(follow(&store, &mut session, &mut changes)), lists(&["b=2", "c=1"], &["a"]));
}

#[test]
fn a_first_request_without_names_is_a_wildcard() {
    let (store, mut session) = (store(), Session::default());
    assert_eq!(sent(ask(&store, &mut session, subscribe(&[]))), lists(&["a=1", "b=1"], &[]));
}

#[test]
fn names_get_what_they_name_and_no_more() {
    let (store, mut session) = (store(), Session::default());
    let mut changes = store.changes.subscribe();
    assert_eq!(sent(ask(&store, &mut session, subscribe(&["a"]))), lists(&["a=1"], &[]));
    put(&store, "b", "2");
    remove(&store, "b");
    assert_eq!(sent(follow(&store, &mut session, &mut changes)), lists(&[], &[]));
    put(&store, "a", "2");
    assert_eq!(sent(follow(&store, &mut session, &mut changes)), lists(&["a=2"], &[]));
    put(&store, "d", "1");
    assert_eq!(sent(ask(&store, &mut session, subscribe(&["d"]))), lists(&["d=1"], &[]));
    assert!(follow(&store, &mut session, &mut changes).is_empty(), "it was sent already");
    assert!(ask(&store, &mut session, unsubscribe(&["a"])).is_empty());
    put(&store, "a", "3");
    assert!(follow(&store, &mut session, &mut changes).is_empty());
}

#[test]
fn an_absent_name_is_answered_by_its_removal_and_sent_once_it_comes() {
    let (store, mut session) = (store(), Session::default());
    let mut changes = store.changes.subscribe();
    assert_eq!(sent(ask(&store, &mut session, subscribe(&["z"]))), lists(&[], &["z"]));
    // Also beside a wildcard, which says everything that there is.
    let mut wild = Session::default();
    let both = sent(ask(&store, &mut wild, subscribe(&["*", "z"])));
    assert_eq!(both, lists(&["a=1", "b=1"], &["z"]));
    put(&store, "z", "1");
    assert_eq!(sent(follow(&store, &mut session, &mut changes)), lists(&["z=1"], &[]));
}

#[test]
fn asking_again_by_name_is_answered_again() {
    let (store, mut session) = (store(), Session::default());
    ask(&store, &mut session, subscribe(&["*"]));
    assert_eq!(sent(ask(&store, &mut session, subscribe(&["a"]))), lists(&["a=1"], &[]));
}

#[test]
fn acknowledgements_and_rejections_are_not_answered() {
    let (store, mut session) = (store(), Session::default());
    let first = ask(&store, &mut session, subscribe(&["*"]));
    let nonce = first[0].nonce.clone();
    let ack = DeltaDiscoveryRequest { response_nonce: nonce, ..subscribe(&[]) };
    assert!(ask(&store, &mut session, ack.clone()).is_empty());
    let status = crate::proto::discovery::Status { code: 3, message: "a: is bad".to_owned() };
    let nack = DeltaDiscoveryRequest { error_detail: Some(status), ..ack.clone() };
    for _ in 0..100 {
        assert!(ask(&store, &mut session, nack.clone()).is_empty(), "no storm");
    }
    let stale = DeltaDiscoveryRequest { response_nonce: "never given".to_owned(), ..ack };
    assert!(ask(&store, &mut session, stale).is_empty());
}

#[test]
fn who_comes_back_gets_what_it_does_not_have() {
    let (store, mut session) = (store(), Session::default());
    put(&store, "c", "2");
    let has = [("a", "1"), ("c", "1"), ("gone", "1")];
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: has.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
        ..subscribe(&["*"])
    };
    assert_eq!(sent(ask(&store, &mut session, request)), lists(&["b=1", "c=2"], &["gone"]));
}

#[test]
fn who_comes_back_up_to_date_is_answered_all_the_same() {
    let (store, mut session) = (store(), Session::default());
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: ["a", "b"].map(|n| (n.to_owned(), "1".to_owned())).into(),
        ..subscribe(&["*"])
    };
    // An empty answer says that nothing is missing: a client waits for its first.
    let answers = ask(&store, &mut session, request);
    assert_eq!(answers.len(), 1);
    assert_eq!(sent(answers), lists(&[], &[]));
}

#[test]
fn what_has_not_changed_is_not_sent_again() {
    let (store, mut session) = (store(), Session::default());
    let mut changes = store.changes.subscribe();
    ask(&store, &mut session, subscribe(&["*"]));
    assert_eq!(put(&store, "a", "1"), 0);
    assert_eq!(remove(&store, "never"), 0);
    assert!(changes.try_recv().is_err(), "nobody is told of nothing");
    // A change that came between the subscription and the first answer is in the answer already.
    let mut late = Session::default();
    put(&store, "a", "2");
    ask(&store, &mut late, subscribe(&["*"]));
    assert!(follow(&store, &mut late, &mut changes).is_empty());
}

#[test]
fn a_client_that_lagged_catches_up_with_one_answer() {
    let (store, mut session) = (store(), Session::default());
    let mut changes = store.changes.subscribe();
    ask(&store, &mut session, subscribe(&["*"]));
    for i in 0..5_000 {
        put(&store, "a", &format!("v{i}"));
        put(&store, &format!("brief{i}"), "1");
        remove(&store, &format!("brief{i}"));
    }
    remove(&store, "b");
    put(&store, "c", "1");
    assert!(matches!(changes.try_recv(), Err(broadcast::error::TryRecvError::Lagged(_))));
    let caught_up = session.catch_up(&store);
    assert_eq!(caught_up.len(), 1);
    assert_eq!(sent(said(&mut session, caught_up)), lists(&["a=v4999", "c=1"], &["b"]));
    // Changes that are still queued say nothing new.
    assert_eq!(follow(&store, &mut session, &mut changes), []);
    assert!(session.catch_up(&store).is_empty());
}

/// The queue may hold older news than what has been sent: none of it is taken back.
#[test]
fn a_queue_behind_an_answer_takes_nothing_back() {
    let (store, mut session) = (store(), Session::default());
    let mut changes = store.changes.subscribe();
    put(&store, "a", "2");
    remove(&store, "b");
    put(&store, "a", "3");
    put(&store, "b", "2");
    put(&store, "brief", "1");
    remove(&store, "brief");
    let first = ask(&store, &mut session, subscribe(&["*"]));
    assert_eq!(sent(first), lists(&["a=3", "b=2"], &[]));
    assert_eq!(follow(&store, &mut session, &mut changes), []);
}

#[test]
fn aliases_lead_to_the_resource_while_it_has_them() {
    let (store, mut session) = (store(), Session::default());
    let put = |name: &str, e| store.update(TYPE, vec![(name.to_owned(), e)], Vec::new());
    put("service", aliased("1", "10.0.0.1"));
    let answer = ask(&store, &mut session, subscribe(&["10.0.0.1"]));
    let resource = Resource::decode(answer[0].resources[0].clone()).unwrap();
    assert_eq!(resource.aliases, ["10.0.0.1"]);
    assert_eq!(sent(answer), lists(&["service=1"], &[]));
    // The alias goes to another, and the first one's end does not take it along.
    put("other", aliased("1", "10.0.0.1"));
    store.update(TYPE, Vec::new(), vec!["service".to_owned()]);
    let answer = ask(&store, &mut Session::default(), subscribe(&["10.0.0.1"]));
    assert_eq!(sent(answer), lists(&["other=1"], &[]));
    put("other", encoded("2"));
    let answer = ask(&store, &mut Session::default(), subscribe(&["10.0.0.1"]));
    assert_eq!(sent(answer), lists(&[], &["10.0.0.1"]));
}

/// As above, when the first one is updated instead: the alias is no longer its own to give up.
#[test]
fn an_update_takes_no_alias_from_another() {
    let store = store();
    let put = |name: &str, e| store.update(TYPE, vec![(name.to_owned(), e)], Vec::new());
    put("first", aliased("1", "10.0.0.1"));
    put("second", aliased("1", "10.0.0.1"));
    put("first", encoded("2"));
    let answer = ask(&store, &mut Session::default(), subscribe(&["10.0.0.1"]));
    assert_eq!(sent(answer), lists(&["second=1"], &[]));
}

#[test]
fn a_type_that_is_not_served_is_answered_with_nothing_once() {
    let (store, mut session) = (store(), Session::default());
    let odd = DeltaDiscoveryRequest { type_url: "odd".to_owned(), ..subscribe(&["*"]) };
    let answers = ask(&store, &mut session, odd.clone());
    assert_eq!((answers.len(), answers[0].type_url.as_str()), (1, "odd"));
    let ack = DeltaDiscoveryRequest { response_nonce: answers[0].nonce.clone(), ..odd };
    assert!(ask(&store, &mut session, ack).is_empty());
}

#[test]
fn types_are_kept_apart() {
    let (store, mut session) = (store(), Session::default());
    let mut changes = store.changes.subscribe();
    ask(&store, &mut session, subscribe(&["*"]));
    store.update(OTHER, vec![("a".to_owned(), encoded("9"))], Vec::new());
    assert!(follow(&store, &mut session, &mut changes).is_empty(), "never asked for");
    let request = DeltaDiscoveryRequest { type_url: OTHER.to_owned(), ..subscribe(&["*"]) };
    assert_eq!(sent(ask(&store, &mut session, request)), lists(&["a=9"], &[]));
    assert_eq!((store.len(TYPE), store.len(OTHER)), (2, 1));
}

/// The end of a wildcard ends what only the wildcard brought.
#[test]
fn without_the_wildcard_the_names_stay() {
    let (store, mut session) = (store(), Session::default());
    let mut changes = store.changes.subscribe();
    ask(&store, &mut session, subscribe(&["*", "a"]));
    ask(&store, &mut session, unsubscribe(&["*"]));
    put(&store, "a", "2");
    put(&store, "b", "2");
    put(&store, "c", "1");
    assert_eq!(sent(follow(&store, &mut session, &mut changes)), lists(&["a=2"], &[]));
}

/// The first request of a client that says that it takes parts.
fn takes_parts() -> DeltaDiscoveryRequest {
    let yes = Value { kind: Some(Kind::BoolValue(true)) };
    let metadata = Struct { fields: [(TAKES_PARTS.to_owned(), yes)].into() };
    let node = Node { metadata: Some(metadata), ..Default::default() };
    DeltaDiscoveryRequest { node: Some(node), ..subscribe(&["*"]) }
}

#[test]
fn a_first_answer_comes_in_parts_to_those_who_take_them() {
    let store = store();
    let many = (0..PART * 2).map(|i| (format!("m{i}"), encoded("1"))).collect();
    store.update(TYPE, many, Vec::new());
    assert_eq!(ask(&store, &mut Session::default(), subscribe(&["*"])).len(), 1);
    let mut session = Session::default();
    let parts = ask(&store, &mut session, takes_parts());
    let sizes: Vec<usize> = parts.iter().map(|p| p.resources.len()).collect();
    assert_eq!(sizes, [PART, PART, 2]);
    let more: Vec<bool> = parts.iter().map(|p| p.system_version_info == MORE_FOLLOWS).collect();
    assert_eq!(more, [true, true, false]);
    let nonces: BTreeSet<&str> = parts.iter().map(|p| p.nonce.as_str()).collect();
    assert_eq!(nonces.len(), 3);
    put(&store, "a", "2");
    let next = ask(&store, &mut session, subscribe(&["a"]));
    assert!(next.iter().all(|r| !nonces.contains(r.nonce.as_str())));
}

#[test]
fn one_who_has_something_is_answered_at_once() {
    let store = store();
    store.update(TYPE, (0..PART * 2).map(|i| (format!("m{i}"), encoded("1"))).collect(), vec![]);
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: [("gone".to_owned(), "1".to_owned())].into(),
        ..takes_parts()
    };
    assert_eq!(ask(&store, &mut Session::default(), request).len(), 1);
}

const SCOPED: &str = "type.of.one.proxy";

/// Of two proxies, one resource each.
fn of_proxies() -> Arc<Store> {
    let store = Store::with_scoped(&[TYPE], &[SCOPED]);
    let names = ["ns/wp/a", "ns/wp2/b", "other/wp/c"];
    let all = names.map(|n| (n.to_owned(), encoded("1")));
    store.update(SCOPED, all.into(), Vec::new());
    store
}

fn of_type(type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..subscribe(names) }
}

#[test]
fn a_proxy_is_sent_its_own_and_nothing_of_others() {
    let store = of_proxies();
    let mut changes = store.changes.subscribe();
    let mut session = Session { scope: Some("ns/wp/".to_owned()), ..Session::default() };
    let first = ask(&store, &mut session, of_type(SCOPED, &["*"]));
    assert_eq!(sent(first), lists(&["ns/wp/a=1"], &[]));
    // Nor by name, nor by a change, nor after a lag.
    let by_name = ask(&store, &mut session, of_type(SCOPED, &["ns/wp2/b"]));
    assert_eq!(sent(by_name), lists(&[], &["ns/wp2/b"]));
    let next = ["ns/wp/a", "ns/wp2/b"].map(|n| (n.to_owned(), encoded("2")));
    store.update(SCOPED, next.into(), Vec::new());
    assert_eq!(sent(follow(&store, &mut session, &mut changes)), lists(&["ns/wp/a=2"], &[]));
    assert!(session.catch_up(&store).is_empty());
}

#[test]
fn one_who_is_no_proxy_is_sent_nothing_of_any() {
    let store = of_proxies();
    let mut changes = store.changes.subscribe();
    let mut session = Session::default();
    let names = ["*", "ns/wp/a"];
    let first = ask(&store, &mut session, of_type(SCOPED, &names));
    assert_eq!(sent(first), lists(&[], &["ns/wp/a"]));
    store.update(SCOPED, vec![("ns/wp/a".to_owned(), encoded("2"))], Vec::new());
    assert_eq!(sent(follow(&store, &mut session, &mut changes)), lists(&[], &[]));
}

const HOSTS: &str = "type/hosts";

/// What is of these groups, and leads to those.
fn member(version: &str, groups: &[&str], leads: &[&str]) -> Encoded {
    let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
    Encoded { groups: own(groups), leads: own(leads), ..encoded(version) }
}

/// Service `s`, its endpoint, which a policy binds, and another's.
fn narrowing() -> (Arc<Store>, Session) {
    let store = Store::with_scoped(&[OTHER, TYPE], &[HOSTS]);
    let put = |t, name: &str, e| store.update(t, vec![(name.to_owned(), e)], Vec::new());
    put(OTHER, "p1", member("1", &["policy p1"], &[]));
    put(OTHER, "p2", member("1", &["policy p2"], &[]));
    put(TYPE, "s", member("1", &["s"], &["s", "w"]));
    put(TYPE, "e", member("1", &["s"], &["policy p1"]));
    put(TYPE, "w", member("1", &["w"], &["w"]));
    put(TYPE, "other", member("1", &["other"], &["other", "policy p2"]));
    put(HOSTS, "ns/gw/s", encoded("1"));
    put(HOSTS, "ns/gw2/other", encoded("1"));
    (store, Session { scope: Some("ns/gw/".to_owned()), ..Session::default() })
}

fn of(type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..subscribe(names) }
}

#[test]
fn a_proxy_gets_what_its_own_resources_lead_to() {
    let (store, mut session) = narrowing();
    let mut changes = store.changes.subscribe();
    for (type_url, expected) in
        [(OTHER, &["p1=1"][..]), (TYPE, &["e=1", "s=1", "w=1"]), (HOSTS, &["ns/gw/s=1"])]
    {
        let first = ask(&store, &mut session, of(type_url, &["*"]));
        assert_eq!(sent(first), lists(expected, &[]), "{type_url}");
    }
    // What is not its business.
    store.update(TYPE, vec![("other".to_owned(), member("2", &["other"], &[]))], Vec::new());
    store.update(HOSTS, vec![("ns/gw2/other".to_owned(), encoded("2"))], Vec::new());
    assert!(follow(&store, &mut session, &mut changes).is_empty());
    // An endpoint more, one that changes its policy, one less.
    store.update(TYPE, vec![("e2".to_owned(), member("1", &["s"], &["policy p2"]))], Vec::new());
    let answers = follow(&store, &mut session, &mut changes);
    let types: Vec<&str> = answers.iter().map(|a| a.type_url.as_str()).collect();
    assert_eq!(types, [OTHER, TYPE], "what is named comes first");
    assert_eq!(sent(answers), lists(&["e2=1", "p2=1"], &[]));
    remove(&store, "e2");
    let answers = follow(&store, &mut session, &mut changes);
    let types: Vec<&str> = answers.iter().map(|a| a.type_url.as_str()).collect();
    assert_eq!(types, [TYPE, OTHER], "and goes last");
    assert_eq!(sent(answers), lists(&[], &["e2", "p2"]));
    // One that is its own no more.
    store.update(TYPE, vec![("e".to_owned(), member("2", &["other"], &["policy p1"]))], Vec::new());
    assert_eq!(sent(follow(&store, &mut session, &mut changes)), lists(&[], &["e", "p1"]));
    // Another host.
    store.update(HOSTS, vec![("ns/gw/other".to_owned(), encoded("1"))], Vec::new());
    let answers = follow(&store, &mut session, &mut changes);
    assert_eq!(answers.last().unwrap().type_url, HOSTS, "it comes after what it leads to");
    assert_eq!(sent(answers), lists(&["e=2", "ns/gw/other=1", "other=2", "p1=1"], &[]));
    store.update(HOSTS, Vec::new(), vec!["ns/gw/other".to_owned()]);
    let answers = follow(&store, &mut session, &mut changes);
    assert_eq!(sent(answers), lists(&[], &["e", "ns/gw/other", "other", "p1"]));
}

#[test]
fn a_proxy_may_ask_for_more_by_name_and_give_it_back() {
    let (store, mut session) = narrowing();
    let mut changes = store.changes.subscribe();
    ask(&store, &mut session, of(TYPE, &["*"]));
    ask(&store, &mut session, of(HOSTS, &["*"]));
    let client = |version: &str| Encoded {
        aliases: vec!["net/10.0.0.9".to_owned()],
        ..member(version, &["far"], &[])
    };
    store.update(TYPE, vec![("c".to_owned(), client("1"))], Vec::new());
    assert!(follow(&store, &mut session, &mut changes).is_empty());
    let by_alias = ask(&store, &mut session, of(TYPE, &["net/10.0.0.9"]));
    assert_eq!(sent(by_alias), lists(&["c=1"], &[]));
    store.update(TYPE, vec![("c".to_owned(), client("2"))], Vec::new());
    assert_eq!(sent(follow(&store, &mut session, &mut changes)), lists(&["c=2"], &[]));
    assert_eq!(sent(ask(&store, &mut session, unsubscribe(&["net/10.0.0.9"]))), lists(&[], &["c"]));
    // What comes unasked stays.
    ask(&store, &mut session, of(TYPE, &["e"]));
    assert!(ask(&store, &mut session, unsubscribe(&["e"])).is_empty());
    let unknown = ask(&store, &mut session, of(TYPE, &["net/10.0.0.10"]));
    assert_eq!(sent(unknown), lists(&[], &["net/10.0.0.10"]));
    assert!(ask(&store, &mut session, unsubscribe(&["net/10.0.0.10"])).is_empty());
}

#[test]
fn what_a_scope_leads_to_change_by_change_is_what_it_leads_to_at_once() {
    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (store, mut session) = narrowing();
        let mut changes = store.changes.subscribe();
        let mut held: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        let mut take = |answers: Vec<UnopenedResponse>| {
            for a in answers {
                let of_type = held.entry(a.type_url).or_default();
                for n in a.removed_resources {
                    of_type.remove(&n);
                }
                let resources = a.resources.into_iter().map(|m| Resource::decode(m).unwrap());
                of_type.extend(resources.map(|r| (r.name, r.version)));
            }
            held.clone()
        };
        for t in [OTHER, TYPE, HOSTS] {
            take(ask(&store, &mut session, of(t, &["*"])));
        }
        for step in 0..40 {
            let pick = |rng: &mut StdRng| format!("{}", rng.random_range(0..6));
            let (t, name) = match rng.random_range(0..4) {
                0 => (HOSTS, format!("ns/gw/{}", pick(&mut rng))),
                1 => (OTHER, pick(&mut rng)),
                _ => (TYPE, pick(&mut rng)),
            };
            if rng.random_bool(0.3) {
                store.update(t, Vec::new(), vec![name]);
            } else {
                let mut groups = |n| (0..n).map(|_| pick(&mut rng)).collect::<Vec<String>>();
                let e =
                    Encoded { groups: groups(2), leads: groups(2), ..encoded(&step.to_string()) };
                store.update(t, vec![(name, e)], Vec::new());
            }
            let mut all = take(follow(&store, &mut session, &mut changes));
            let mut fresh = Session { scope: session.scope.clone(), ..Session::default() };
            for t in [OTHER, TYPE, HOSTS] {
                let (whole, _) = sent(ask(&store, &mut fresh, of(t, &["*"])));
                let has = all.remove(t).unwrap_or_default();
                let has: Vec<String> = has.iter().map(|(n, v)| format!("{n}={v}")).collect();
                assert_eq!(has, whole, "seed {seed}, step {step}, {t}");
            }
        }
    }
}
