//! What is taken and does nothing is told.

use super::world;
use crate::world::document;

#[test]
fn rules_for_what_no_waypoint_serves_are_told() {
    let mut w = world();
    w.route("shop/served", "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}]}");
    w.route("shop/elsewhere", "{hosts: [nobody.example], http: [{directResponse: {status: 404}}]}");
    w.route("shop/delegate", "{http: [{directResponse: {status: 404}}]}");
    w.route(
        "shop/outside",
        "{hosts: [nobody.example], gateways: [g], http: [{directResponse: {status: 404}}]}",
    );
    w.put(&document(
        "AuthorizationPolicy",
        "shop/guards",
        "{targetRefs: [{group: '', kind: Service, name: reviews}]}",
    ));
    w.put(&document(
        "AuthorizationPolicy",
        "shop/guards-nothing",
        "{targetRefs: [{group: '', kind: Service, name: nobody}]}",
    ));
    let named: Vec<String> = w.idle().into_iter().map(|(key, _)| key).collect();
    assert_eq!(named, ["AuthorizationPolicy shop/guards-nothing", "VirtualService shop/elsewhere"]);
    assert!(w.idle()[1].1.contains("nobody.example"), "{:?}", w.idle());
}
