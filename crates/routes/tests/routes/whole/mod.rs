//! Compiling a change gives what compiling the whole would.

mod objects;

use crate::world::{DOMAIN, Edit, World};
use objects::edits;
use proptest::{prelude::*, test_runner::Config};
use prost::Message as _;
use routes::{
    execute,
    proto::{self, http_route::Action},
};
use std::collections::BTreeSet;

/// The whole, at once.
fn anew(w: &World) -> World {
    let mut fresh = World::default();
    fresh.apply(w.objects.iter().map(|(key, o)| (key.clone(), Some((**o).clone()))));
    fresh
}

/// Every reference of a table.
fn refs(t: &proto::HostTable) -> Vec<proto::DestinationRef> {
    let mut all = Vec::new();
    for p in &t.ports {
        for r in &p.http {
            if let Some(Action::Forward(f)) = &r.action {
                all.extend(f.destinations.iter().filter_map(|d| d.to.clone()));
            }
            all.extend(r.mirrors.iter().filter_map(|m| m.to.clone()));
        }
        let of_tcp = p.tcp.iter().flat_map(|r| &r.destinations);
        all.extend(of_tcp.filter_map(|d| d.to.clone()));
    }
    all
}

/// What holds of the resources at all times, whatever led there.
fn check(w: &World) -> Result<(), TestCaseError> {
    let destinations = w.destinations();
    for (proxy, table) in w.tables() {
        let load = |_: &[u8]| Err("no connection is asked about".to_owned());
        let loaded = execute::HostTable::load(table.encode_to_vec().into(), None, &load, 0);
        prop_assert!(loaded.is_ok(), "{loaded:?} {table:#?}");
        let mut needed = BTreeSet::new();
        for to in refs(&table).into_iter().filter(|to| to.broken.is_empty()) {
            let service = format!("{}/{}", to.namespace, to.hostname);
            let found = destinations.get(&(proxy.clone(), service.clone()));
            prop_assert!(found.is_some(), "{proxy} does not have {service}");
            let found = execute::Destination::load(found.unwrap()).unwrap();
            let port = found.port(&to.subset, u16::try_from(to.port).unwrap());
            prop_assert!(port.is_some(), "{to:?} of {found:#?}");
            needed.insert(service);
        }
        let waited_for: BTreeSet<String> =
            loaded.unwrap().destinations.iter().map(ToString::to_string).collect();
        prop_assert_eq!(waited_for, needed);
    }
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: 600, failure_persistence: None, ..Config::default() })]

    #[test]
    fn compiling_a_change_equals_compiling_the_whole(
        batches in prop::collection::vec(prop::collection::vec(edits(), 1..6), 1..12),
    ) {
        let mut w = World::default();
        w.apply(objects::ground());
        for batch in batches {
            let said = format!("{:?}", batch.iter().map(|(k, o)| (k, o.is_some())).collect::<Vec<_>>());
            let out = w.apply(batch);
            let updated: BTreeSet<_> = out.updated.iter().map(|(t, n, _)| (*t, n)).collect();
            prop_assert_eq!(updated.len(), out.updated.len(), "once each");
            let twice = out.removed.iter().find(|(t, n)| updated.contains(&(*t, n)));
            prop_assert!(twice.is_none(), "{:?} goes and comes at once", twice);
            let whole = anew(&w);
            prop_assert_eq!(show(&w), show(&whole), "after {}", said);
            // What only looks the same is not.
            prop_assert_eq!(&w.resources, &whole.resources);
            prop_assert_eq!(w.idle(), whole.idle(), "what does nothing, after {}", said);
            check(&w)?;
        }
        // And with the last object goes the last resource.
        let all: Vec<Edit> = w.objects.keys().map(|key| (key.clone(), None)).collect();
        w.apply(all);
        prop_assert!(w.resources.is_empty(), "{:?}", w.resources.keys());
    }

    #[test]
    fn one_by_one_equals_all_at_once(batch in prop::collection::vec(edits(), 1..40)) {
        let (mut at_once, mut one_by_one) = (World::default(), World::default());
        at_once.apply(objects::ground());
        one_by_one.apply(objects::ground());
        for edit in batch.clone() {
            one_by_one.apply([edit]);
        }
        at_once.apply(batch);
        prop_assert_eq!(show(&at_once), show(&one_by_one));
        prop_assert_eq!(at_once.idle(), one_by_one.idle());
        prop_assert_eq!(at_once.resources, one_by_one.resources);
    }
}

/// For whoever reads a failure.
fn show(w: &World) -> String {
    let tables: Vec<_> = w.tables();
    format!("{tables:#?}\n{:#?}", w.destinations()).replace(&format!(".svc.{DOMAIN}"), "")
}

/// That the generated worlds have what they are to test.
#[test]
fn generated_worlds_route_delegate_and_break() {
    use proptest::{strategy::ValueTree as _, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut w = World::default();
    w.apply(objects::ground());
    let (mut seen, mut idle) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..6000 {
        w.apply([edits().new_tree(&mut runner).unwrap().current()]);
        for (o, _) in w.idle() {
            idle.extend(o.split_once(' ').map(|(kind, _)| kind.to_owned()));
        }
        for (_, t) in w.tables() {
            seen.extend((!t.policies.is_empty()).then_some("policy"));
            seen.extend(t.namespace.starts_with("gateway:").then_some("gateway"));
            for r in t.ports.iter().flat_map(|p| &p.http) {
                seen.extend((r.origin.ends_with("/d1")).then_some("delegate"));
                seen.extend((!r.mirrors.is_empty()).then_some("mirror"));
            }
            for to in refs(&t) {
                seen.extend((!to.broken.is_empty()).then_some("broken"));
                let whole = to.broken.is_empty();
                seen.extend((whole && !to.subset.is_empty()).then_some("subset"));
                seen.extend((whole && to.namespace != t.namespace).then_some("elsewhere"));
            }
        }
    }
    let all = ["broken", "delegate", "elsewhere", "gateway", "mirror", "policy", "subset"];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
    let all = [
        "AuthorizationPolicy",
        "Gateway",
        "HttpRoute",
        "ServiceEntry",
        "Telemetry",
        "VirtualService",
    ];
    assert_eq!(idle.into_iter().collect::<Vec<_>>(), all);
}
