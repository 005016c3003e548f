//! A table after the one before it: the same as without one, and what has not changed is what it was.

use super::{again, get, load, port, taken};
use crate::{
    scope::{REVIEWS, world},
    world::World,
};
use proptest::prelude::*;
use routes::execute::{HostTable, Route};
use std::sync::Arc;

/// Routes by their names, each for a path of its own and for one that all have.
fn compiled(names: &[u8]) -> routes::proto::HostTable {
    let mut w: World = world();
    let one = |n: &u8| {
        format!(
            "{{name: r{n}, match: [{{uri: {{exact: /{n}}}}}, {{uri: {{prefix: /all}}}}], \
             route: [{{destination: {{host: ratings}}}}]}}"
        )
    };
    let http: Vec<String> = names.iter().map(one).collect();
    w.route("shop/r", &format!("{{hosts: [reviews], http: [{}]}}", http.join(", ")));
    w.table(REVIEWS)
}

fn route(t: &HostTable, path: &str) -> Option<Arc<Route>> {
    let path: &'static str = String::leak(path.to_owned());
    port(t).route(&get(path).view()).map(|(r, _)| r.clone())
}

proptest! {
    #[test]
    fn a_table_is_the_same_whatever_was_before(
        before in prop::collection::vec(0u8..6, 1..8),
        now in prop::collection::vec(0u8..6, 1..8),
    ) {
        let (first, second) = (compiled(&before), compiled(&now));
        let whole = load(&second);
        let after = again(&second, Some(&load(&first)));
        for path in ["/0", "/1", "/2", "/3", "/4", "/5", "/all", "/none"] {
            let ask = get(path);
            prop_assert_eq!(taken(&after, &ask), taken(&whole, &ask), "{}", path);
        }
        prop_assert_eq!(after.destinations, whole.destinations);
    }
}

#[test]
fn what_has_not_changed_is_what_it_was() {
    let first = load(&compiled(&[1, 2, 3, 4, 5]));
    for (now, kept, new) in [
        (&[1u8, 2, 9, 4, 5][..], &[1u8, 2, 4, 5][..], &[9u8][..]),
        (&[8, 1, 2, 3, 4, 5], &[1, 2, 3, 4, 5], &[8]),
        (&[1, 2, 3], &[1, 2, 3], &[]),
        (&[1, 2, 3, 4, 5, 6], &[1, 2, 3, 4, 5], &[6]),
        (&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5], &[]),
        (&[4, 5], &[4, 5], &[]),
    ] {
        let after = again(&compiled(now), Some(&first));
        for n in kept {
            let path = format!("/{n}");
            let (was, is) = (route(&first, &path).unwrap(), route(&after, &path).unwrap());
            assert!(Arc::ptr_eq(&was, &is), "{n} of {now:?}");
        }
        for n in new {
            let is = route(&after, &format!("/{n}")).unwrap();
            assert_eq!(&*is.name, format!("r{n}"));
        }
    }
}
