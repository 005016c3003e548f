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

/// What nothing concerns is not asked again, however much there is of it.
#[test]
fn a_change_asks_those_whom_it_concerns() {
    let mut w = world();
    let all: Vec<String> = (0..500)
        .map(|n| {
            let spec =
                format!("{{hosts: [h{n}.example], http: [{{directResponse: {{status: 404}}}}]}}");
            document("VirtualService", &format!("shop/r{n}"), &spec)
        })
        .collect();
    w.put(&all.join("\n---\n"));
    assert_eq!(w.idle().len(), 500);
    let changed = w.route("shop/r7", "{hosts: [reviews], http: [{directResponse: {status: 404}}]}");
    assert_eq!((changed.judged, w.idle().len()), (1, 499));
    // The host of one of them comes, and is served: the rule, the policy and the host itself.
    w.put(&document(
        "AuthorizationPolicy",
        "shop/p",
        "{targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: h}]}",
    ));
    assert_eq!(w.idle().len(), 500);
    let came = w.put(&document(
        "ServiceEntry",
        "shop/h",
        "{hosts: [h9.example], resolution: STATIC, ports: [{number: 9080, name: http, protocol: HTTP}]}",
    ));
    assert_eq!((came.judged, w.idle().len()), (3, 498));
}
