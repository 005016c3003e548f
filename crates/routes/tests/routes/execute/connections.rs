//! Routes of connections: by what is asked of their names, addresses and clients, and by weights.

use super::{load, port};
use crate::scope::{REVIEWS, world};
use routes::execute::{HostTable, Source, TcpView};
use std::sync::Arc;

/// Where a connection goes under a rule of `reviews`; the label of its client is `app`.
struct Asks<'a> {
    sni: Option<&'a str>,
    destination: &'a str,
    namespace: &'a str,
    app: &'a str,
}

const ASKS: Asks<'_> =
    Asks { sni: None, destination: "10.1.2.3", namespace: "shop", app: "client" };

fn table(rule: &str) -> HostTable {
    let mut w = world();
    w.route("shop/r", &format!("{{hosts: [{REVIEWS}], {rule}}}"));
    load(&w.table(REVIEWS))
}

fn goes(table: &HostTable, asks: &Asks<'_>) -> String {
    let labels: Vec<(Arc<str>, Arc<str>)> = vec![("app".into(), asks.app.into())];
    let view = TcpView {
        sni: asks.sni,
        destination: asks.destination.parse().unwrap(),
        source: Source { address: None, namespace: asks.namespace, labels: &labels },
    };
    let route = port(table).tcp.iter().find(|r| r.matches(&view));
    route.and_then(|r| Some(r.pick()?.target.service.hostname.clone())).unwrap_or_default()
}

fn one(kind: &str, asked: &str) -> String {
    format!(
        "{kind}: [{{match: [{{{asked}}}], route: [{{destination: {{host: ratings}}}}]}}, \
         {{match: [{{{}}}], route: [{{destination: {{host: reviews}}}}]}}]",
        if kind == "tls" { "sniHosts: [\"*\"]" } else { "port: 9080" }
    )
}

const RATINGS: &str = "ratings.shop.svc.cluster.local";

#[test]
fn connections_go_by_what_is_asked_of_them() {
    let is_taken = |rule: &str, asks: &Asks<'_>| goes(&table(rule), asks) == RATINGS;
    let tcp = |asked: &str| one("tcp", asked);
    for (asked, yes, no) in [
        ("destinationSubnets: [10.1.0.0/16]", ASKS, Asks { destination: "10.2.0.1", ..ASKS }),
        ("destinationSubnets: [10.1.2.3]", ASKS, Asks { destination: "10.1.2.4", ..ASKS }),
        (
            "destinationSubnets: [192.0.2.0/24, \"fd00::/8\"]",
            Asks { destination: "fd00::1", ..ASKS },
            Asks { destination: "fe00::1", ..ASKS },
        ),
        ("sourceLabels: {app: client}", ASKS, Asks { app: "other", ..ASKS }),
        ("sourceNamespace: shop", ASKS, Asks { namespace: "infra", ..ASKS }),
        (
            "sourceNamespace: shop, sourceLabels: {app: client}",
            ASKS,
            Asks { namespace: "infra", ..ASKS },
        ),
    ] {
        assert!(is_taken(&tcp(asked), &yes), "{asked}");
        assert!(!is_taken(&tcp(asked), &no), "{asked}");
    }
    assert!(!is_taken(&tcp("port: 9081"), &ASKS));
    let tls = one("tls", "sniHosts: [a.example, \"*.b.example\"], sourceLabels: {app: client}");
    for (sni, app, is_it) in [
        (Some("a.example"), "client", true),
        (Some("x.b.example"), "client", true),
        (Some("b.example"), "client", false),
        (Some("a.example"), "other", false),
        (None, "client", false),
    ] {
        assert_eq!(is_taken(&tls, &Asks { sni, app, ..ASKS }), is_it, "{sni:?} {app}");
    }
}

#[test]
fn connections_are_split_by_weights() {
    let table = table(
        "tcp: [{route: [{destination: {host: ratings}, weight: 3}, {destination: {host: reviews}, weight: 1}]}]",
    );
    let of_ratings = (0..40).filter(|_| goes(&table, &ASKS) == RATINGS).count();
    assert_eq!(of_ratings, 30);
}
