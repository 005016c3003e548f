//! VirtualServices: of what hosts, for which proxies, in what order.

use super::{REVIEWS, all_to, all_to_with, service, world};
use crate::world::World;
use istio_api::Kind;
use routes::proto::http_route::Action;

const DEFAULT: &str = "shop/reviews.shop.svc.cluster.local to reviews.shop:9080";

#[test]
fn a_host_without_rules_is_sent_to_itself() {
    assert_eq!(world().http(REVIEWS), [DEFAULT]);
}

#[test]
fn short_names_are_services_of_the_rules_own_namespace() {
    let mut w = world();
    let spec = "{hosts: [reviews], http: [{route: [{destination: {host: ratings}}]}]}";
    // The waypoint's namespace may route the host, and means its own `reviews` by this.
    w.route("infra/r", spec);
    assert_eq!(w.http(REVIEWS), [DEFAULT]);
    w.route("shop/r", spec);
    assert_eq!(w.http(REVIEWS), ["shop/r to ratings.shop:9080"]);
    w.delete(Kind::VirtualService, "shop/r");
    w.put(&service("infra", "ratings"));
    w.route("infra/r", &all_to("ratings"));
    assert_eq!(w.http(REVIEWS), ["infra/r to ratings.infra:9080"]);
}

#[test]
fn names_of_hosts_have_no_case() {
    let mut w = world();
    w.route("shop/r", "{hosts: [Reviews], http: [{route: [{destination: {host: RATINGS}}]}]}");
    assert_eq!(w.http(REVIEWS), ["shop/r to ratings.shop:9080"]);
}

#[test]
fn a_virtual_service_counts_for_the_proxies_that_it_is_exported_to() {
    for (export_to, seen) in [
        ("[]", true),
        ("['*']", true),
        ("[infra]", true),
        ("[other, infra]", true),
        // The waypoint is of another namespace.
        ("['.']", false),
        ("[shop]", false),
        ("[other]", false),
    ] {
        let mut w = world();
        w.route("shop/r", &all_to_with("ratings", &format!("exportTo: {export_to}")));
        let expected = if seen { "shop/r to ratings.shop:9080" } else { DEFAULT };
        assert_eq!(w.http(REVIEWS), [expected], "{export_to}");
    }
    let mut w = world();
    let to = "ratings.shop.svc.cluster.local";
    w.route("infra/r", &all_to_with(to, "exportTo: ['.']"));
    assert_eq!(w.http(REVIEWS), ["infra/r to ratings.shop:9080"]);
}

#[test]
fn a_virtual_service_of_other_gateways_has_no_effect_within_the_mesh() {
    for (gateways, counts) in [
        ("[]", true),
        ("[mesh]", true),
        ("[shop/ingress, mesh]", true),
        ("[shop/ingress]", false),
        ("[ingress]", false),
        // What is called so is another gateway.
        ("[shop/mesh]", false),
    ] {
        let mut w = world();
        w.route("shop/r", &all_to_with("ratings", &format!("gateways: {gateways}")));
        let expected = if counts { "shop/r to ratings.shop:9080" } else { DEFAULT };
        assert_eq!(w.http(REVIEWS), [expected], "{gateways}");
    }
}

#[test]
fn one_of_other_gateways_stands_in_nobodys_way() {
    let mut w = world();
    w.route("shop/old@2020-01-01T00:00:00Z", &all_to_with("reviews", "gateways: [shop/ingress]"));
    w.route("shop/new@2021-01-01T00:00:00Z", &all_to("ratings"));
    assert_eq!(w.http(REVIEWS), ["shop/new to ratings.shop:9080"]);
}

#[test]
fn of_two_with_one_host_the_older_counts() {
    let mut w = world();
    w.route("shop/a@2022-01-01T00:00:00Z", &all_to("reviews"));
    w.route("shop/b@2021-01-01T00:00:00Z", &all_to("ratings"));
    assert_eq!(w.http(REVIEWS), ["shop/b to ratings.shop:9080"]);
    w.delete(Kind::VirtualService, "shop/b");
    assert_eq!(w.http(REVIEWS), ["shop/a to reviews.shop:9080"]);
}

#[test]
fn of_two_as_old_as_each_other_the_first_by_name_counts() {
    let mut w = world();
    w.route("shop/b", &all_to("ratings"));
    w.route("shop/a", &all_to("reviews"));
    assert_eq!(w.http(REVIEWS), ["shop/a to reviews.shop:9080"]);
    // By name first, and only then by namespace.
    w.route("infra/b", &all_to(REVIEWS));
    assert_eq!(w.http(REVIEWS), ["shop/a to reviews.shop:9080"]);
    w.route("infra/a", &all_to(REVIEWS));
    assert_eq!(w.http(REVIEWS), ["infra/a to reviews.shop:9080"]);
}

#[test]
fn an_exact_host_comes_before_any_wildcard_however_old() {
    let wild = |host: &str| {
        format!("{{hosts: ['{host}'], http: [{{route: [{{destination: {{host: ratings}}}}]}}]}}")
    };
    let mut w = world();
    w.route("shop/all@2020-01-01T00:00:00Z", &wild("*.local"));
    assert_eq!(w.http(REVIEWS), ["shop/all to ratings.shop:9080"]);
    w.route("shop/some@2021-01-01T00:00:00Z", &wild("*.shop.svc.cluster.local"));
    assert_eq!(w.http(REVIEWS), ["shop/some to ratings.shop:9080"]);
    w.route("shop/one@2022-01-01T00:00:00Z", &all_to("reviews"));
    assert_eq!(w.http(REVIEWS), ["shop/one to reviews.shop:9080"]);
    // Other hosts are still the wildcards'.
    let ratings = w.http("ratings.shop.svc.cluster.local");
    assert_eq!(ratings, ["shop/some to ratings.shop:9080"]);
}

#[test]
fn a_namespace_that_neither_owns_nor_serves_a_host_does_not_route_it() {
    let mut w = world();
    w.route("other/r@2020-01-01T00:00:00Z", &all_to("ratings.shop.svc.cluster.local"));
    w.route(
        "other/wild@2020-01-01T00:00:00Z",
        "{hosts: ['*'], http: [{route: [{destination: {host: ratings}}]}]}",
    );
    assert_eq!(w.http(REVIEWS), [DEFAULT]);
    w.route("infra/r@2021-01-01T00:00:00Z", &all_to("ratings.shop.svc.cluster.local"));
    assert_eq!(w.http(REVIEWS), ["infra/r to ratings.shop:9080"]);
}

#[test]
fn routes_are_at_the_ports_and_gateways_of_their_matches() {
    let mut w = world();
    w.put(
        "kind: Service
metadata: {name: reviews, namespace: shop}
spec: {ports: [{name: http, port: 9080}, {name: http-admin, port: 9090}]}",
    );
    let to = "route: [{destination: {host: ratings}}]";
    w.route(
        "shop/r",
        &format!(
            "{{hosts: [reviews], gateways: [mesh, shop/ingress], http: [
               {{name: a, match: [{{port: 9090}}], {to}}},
               {{name: b, match: [{{gateways: [shop/ingress]}}], {to}}},
               {{name: c, match: [{{port: 9090}}, {{port: 9080, uri: {{prefix: /c}}}}], {to}}},
               {{name: d, match: [{{gateways: [mesh], uri: {{prefix: /d}}}}], {to}}}],
              tcp: [{{match: [{{port: 9090}}], {to}}}]}}"
        ),
    );
    let table = w.table(REVIEWS);
    let names = |port: usize| {
        table.ports[port].http.iter().map(|r| (&*r.name, r.matches.len())).collect::<Vec<_>>()
    };
    assert_eq!(names(0), [("c", 1), ("d", 1)]);
    assert_eq!(names(1), [("a", 1), ("c", 1), ("d", 1)]);
    let tcp = |port: usize| &*table.ports[port].tcp[0].origin;
    assert_eq!(tcp(0), "shop/reviews.shop.svc.cluster.local");
    assert_eq!(tcp(1), "shop/r");
}

#[test]
fn a_port_at_which_no_route_can_match_sends_to_the_service_itself() {
    let mut w = world();
    let spec = "{hosts: [reviews], http: [
        {match: [{port: 1}], route: [{destination: {host: ratings}}]}]}";
    w.route("shop/r", spec);
    assert_eq!(w.http(REVIEWS), [DEFAULT]);
}

#[test]
fn a_route_to_no_service_is_broken_until_the_service_is_there() {
    let mut w = world();
    w.route("shop/r", &all_to("new"));
    let why = "no service new.shop.svc.cluster.local is known in namespace shop";
    assert_eq!(w.http(REVIEWS), [format!("shop/r to nothing, as {why}")]);
    w.put(&service("shop", "new"));
    assert_eq!(w.http(REVIEWS), ["shop/r to new.shop:9080"]);
    w.delete(Kind::Service, "shop/new");
    assert_eq!(w.http(REVIEWS), [format!("shop/r to nothing, as {why}")]);
    // Another namespace's service of that name is no help, a ServiceEntry of that host is.
    w.put(&service("other", "new"));
    assert_eq!(w.http(REVIEWS), [format!("shop/r to nothing, as {why}")]);
    w.put(
        "kind: ServiceEntry
metadata: {name: new, namespace: other}
spec: {hosts: [new.shop.svc.cluster.local], ports: [{number: 9080, name: http, protocol: HTTP}]}",
    );
    assert_eq!(w.http(REVIEWS), ["shop/r to new.shop:9080"]);
}

#[test]
fn a_service_that_is_not_exported_here_is_none() {
    let hidden = |to: &str| {
        format!(
            "kind: Service\nmetadata: {{name: far, namespace: other, annotations: \
             {{networking.istio.io/exportTo: \"{to}\"}}}}\n\
             spec: {{ports: [{{name: http, port: 9080}}]}}\n"
        )
    };
    let mut w = world();
    w.route("shop/r", &all_to("far.other.svc.cluster.local"));
    for (to, seen) in [(".", false), ("~", false), ("third", false), ("shop", true), ("*", true)] {
        w.put(&hidden(to));
        let whole = w.http(REVIEWS) == ["shop/r to far.other:9080"];
        assert_eq!(whole, seen, "{to}: {:?}", w.http(REVIEWS));
    }
}

#[test]
fn a_route_to_no_port_is_broken_until_the_port_is_there() {
    let mut w = world();
    w.route(
        "shop/r",
        "{hosts: [reviews], http: [{route: [{destination: {host: ratings, port: {number: 81}}}]}]}",
    );
    let why = "service ratings.shop.svc.cluster.local has no port 81";
    assert_eq!(w.http(REVIEWS), [format!("shop/r to nothing, as {why}")]);
    w.put(
        "kind: Service
metadata: {name: ratings, namespace: shop}
spec: {ports: [{name: http, port: 9080}, {name: http-81, port: 81}]}",
    );
    assert_eq!(w.http(REVIEWS), ["shop/r to ratings.shop:81"]);
    w.put(&service("shop", "ratings"));
    assert_eq!(w.http(REVIEWS), [format!("shop/r to nothing, as {why}")]);
}

#[test]
fn without_a_port_the_only_one_is_meant_or_the_one_that_was_asked_for() {
    let mut w = world();
    w.route("shop/r", &all_to("ratings"));
    let ports = |w: &mut crate::world::World, ports: &str| {
        w.put(&format!(
            "kind: Service\nmetadata: {{name: ratings, namespace: shop}}\nspec: {{ports: [{ports}]}}"
        ));
        w.http(REVIEWS)
    };
    assert_eq!(ports(&mut w, "{port: 80}"), ["shop/r to ratings.shop:80"]);
    assert_eq!(ports(&mut w, "{port: 80}, {port: 9080}"), ["shop/r to ratings.shop:9080"]);
    let why = "service ratings.shop.svc.cluster.local has no port 9080";
    assert_eq!(ports(&mut w, "{port: 80}, {port: 81}"), [format!("shop/r to nothing, as {why}")]);
}

#[test]
fn a_route_to_no_subset_is_broken_until_a_destination_rule_has_it() {
    let mut w = world();
    w.route(
        "shop/r",
        "{hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v2}}]}]}",
    );
    let why = "no DestinationRule has a subset v2 of reviews.shop.svc.cluster.local";
    assert_eq!(w.http(REVIEWS), [format!("shop/r to nothing, as {why}")]);
    let rule = |name: &str| format!("{{host: reviews, subsets: [{{name: {name}}}]}}");
    w.rule("shop/d", &rule("v1"));
    assert_eq!(w.http(REVIEWS), [format!("shop/r to nothing, as {why}")]);
    w.rule("shop/d", &rule("v2"));
    assert_eq!(w.http(REVIEWS), ["shop/r to reviews.shop:9080 v2"]);
    w.delete(Kind::DestinationRule, "shop/d");
    assert_eq!(w.http(REVIEWS), [format!("shop/r to nothing, as {why}")]);
}

/// Whose services a waypoint takes is for its own namespace to say.
#[test]
fn a_waypoint_of_another_namespace_takes_what_its_listener_admits() {
    let mut w = world();
    let listener = |from: &str| {
        let allowed = format!("allowedRoutes: {{namespaces: {from}}}");
        let mesh = format!("{{name: mesh, port: 15008, protocol: HBONE, {allowed}}}");
        let spec = format!("{{gatewayClassName: istio-waypoint, listeners: [{mesh}]}}");
        format!("kind: Gateway\nmetadata: {{name: wp, namespace: infra}}\nspec: {spec}\n")
    };
    let is_served = |w: &World| w.tables().iter().any(|(_, t)| t.hostname == REVIEWS);
    assert!(is_served(&w));
    w.put(&listener("{from: Same}"));
    assert!(!is_served(&w));
    w.put(&listener("{from: Selector, selector: {matchLabels: {served: \"yes\"}}}"));
    assert!(!is_served(&w));
    let labels = "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: infra";
    let shop = |more: &str| {
        format!("kind: Namespace\nmetadata: {{name: shop, labels: {{{labels}{more}}}}}\n")
    };
    w.put(&shop(", served: \"yes\""));
    assert!(is_served(&w));
    w.put(&shop(""));
    assert!(!is_served(&w));
    w.put("kind: Gateway\nmetadata: {name: wp, namespace: infra}\nspec: {gatewayClassName: istio-waypoint}\n");
    assert!(!is_served(&w), "nobody else's, where nothing is said");
}

/// An entry for a host does not take it over from the Service that is it.
#[test]
fn a_service_is_meant_before_any_entry_and_then_the_oldest() {
    let mut w = world();
    let api = "api.payments.svc.cluster.local";
    let rule = format!(
        "kind: VirtualService\nmetadata: {{name: r, namespace: shop}}\n\
         spec: {{hosts: [reviews], http: [{{route: [{{destination: {{host: {api}}}}}]}}]}}\n"
    );
    w.put(&rule);
    let entry = |namespace: &str, created: &str| {
        format!(
            "kind: ServiceEntry\nmetadata: {{name: e, namespace: {namespace}, creationTimestamp: \"{created}\"}}\n\
             spec: {{hosts: [{api}], ports: [{{number: 9080, name: http, protocol: HTTP}}], resolution: STATIC}}\n"
        )
    };
    w.put(&entry("dev", "2020-01-02T00:00:00Z"));
    let to = |w: &World| -> Vec<String> {
        let table = w.table(REVIEWS);
        let Some(Action::Forward(f)) = &table.ports[0].http[0].action else { panic!("{table:?}") };
        let all = f.destinations.iter().map(|d| d.to.as_ref().unwrap());
        all.map(|d| format!("{}/{}", d.namespace, d.hostname)).collect()
    };
    assert_eq!(to(&w), [format!("dev/{api}")]);
    w.put(&entry("zoo", "2020-01-01T00:00:00Z"));
    assert_eq!(to(&w), [format!("zoo/{api}")]);
    w.put(&service("payments", "api"));
    assert_eq!(to(&w), [format!("payments/{api}")]);
}
