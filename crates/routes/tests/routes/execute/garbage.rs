//! Resources that nobody compiled: refused or taken, never a panic.

use super::{Ask, get};
use crate::scope::{REVIEWS, world};
use http::{HeaderMap, Method};
use policy::Request;
use proptest::{prelude::*, sample::Index, test_runner::Config};
use prost::Message as _;
use routes::{
    execute::{Action, Destination, HostTable, TcpView},
    proto,
};

/// A table with something of everything.
fn table() -> proto::HostTable {
    let mut w = world();
    w.route(
        "shop/r",
        "{hosts: [reviews],
          http: [
           {match: [{uri: {prefix: /a}, headers: {x: {regex: 'a+'}}, queryParams: {q: {exact: '1'}},
                     withoutHeaders: {y: {}}, sourceLabels: {app: a}, ignoreUriCase: true},
                    {uri: {regex: '/x/(.*)'}, method: {prefix: G}, authority: {exact: a}}],
            route: [{destination: {host: reviews}, weight: 70}, {destination: {host: ratings}, weight: 30,
                     headers: {request: {set: {a: b}, add: {c: d}, remove: [e]}}}],
            rewrite: {uri: /new, authority: other}, timeout: 3s, retries: {attempts: 2, retryOn: '5xx,503'},
            fault: {delay: {fixedDelay: 1s, percentage: {value: 10}},
                    abort: {httpStatus: 500, percentage: {value: 5}}},
            mirror: {host: ratings}, mirrorPercentage: {value: 1},
            corsPolicy: {allowOrigins: [{regex: 'https://.*'}], allowMethods: [GET], maxAge: 1h}},
           {match: [{uri: {exact: /r}}], redirect: {uri: /t, authority: b, redirectCode: 302}},
           {match: [{uri: {exact: /d}}], directResponse: {status: 418, body: {string: tea}}},
           {rewrite: {uriRegexRewrite: {match: '/(.)', rewrite: '/\\1\\1'}},
            route: [{destination: {host: nowhere}}]}],
          tls: [{match: [{sniHosts: ['*.a']}], route: [{destination: {host: ratings}}]}],
          tcp: [{match: [{destinationSubnets: [10.0.0.0/8]}], route: [{destination: {host: ratings}}]}]}",
    );
    let mut table = w.table(REVIEWS);
    let path = |kind| proto::PathMatch { kind: Some(kind) };
    let text = |kind| proto::StringMatch { kind: Some(kind) };
    let asked = proto::PolicyMatch {
        connection: b"x".to_vec(),
        hosts: vec![text(proto::string_match::Kind::Suffix(".a".into()))],
        methods: vec!["G*".into()],
        paths: vec![path(proto::path_match::Kind::Template("/a/{*}".into()))],
        headers: vec![proto::HeaderValues { name: "x".into(), ..Default::default() }],
        ..proto::PolicyMatch::default()
    };
    table.policies.push(proto::HttpPolicy {
        rules: vec![proto::PolicyRule {
            clauses: vec![proto::PolicyClause { matches: vec![asked] }],
        }],
        ..proto::HttpPolicy::default()
    });
    table
}

fn destination() -> proto::Destination {
    let mut w = world();
    w.rule(
        "shop/d",
        "{host: reviews, subsets: [{name: v1, labels: {v: a}}],
          trafficPolicy: {
            loadBalancer: {consistentHash: {httpCookie: {name: c, path: /, ttl: 1h}},
                           localityLbSetting: {failover: [{from: a, to: b}]}},
            connectionPool: {tcp: {maxConnections: 5}, http: {maxRetries: 3, idleTimeout: 1m}},
            outlierDetection: {consecutive5xxErrors: 3, interval: 1s},
            retryBudget: {percent: 10}}}",
    );
    w.destinations()[&("infra/wp".to_owned(), format!("shop/{REVIEWS}"))].clone()
}

/// Everything that can be asked of a table.
fn ask_all(t: &HostTable) {
    let asks = [
        get("/a/b?q=1").with("x", "aaa").from("app", "a"),
        Ask { authority: "a", ..get("/x/y") },
        get("/r"),
        get("/d?"),
        Ask { method: Method::OPTIONS, authority: "", ..get("*") }
            .with("origin", "https://a")
            .with("access-control-request-method", "GET"),
        get("/\u{e9}\u{df}?%zz=%"),
    ];
    let connection = Request {
        peer: None,
        source: "10.0.0.1:1".parse().unwrap(),
        destination: "[::1]:2".parse().unwrap(),
        trust_domains: [].into(),
    };
    for ask in &asks {
        let view = ask.view();
        let _ = t.policies.judge(&view, &connection);
        let _ = t.policies.on_trial(&view, &connection).count();
        for port in (0..=u16::MAX).filter_map(|p| t.port(p)) {
            let tcp = TcpView {
                sni: Some("b.a"),
                destination: connection.destination.ip(),
                source: view.source,
            };
            for r in &port.tcp {
                let _ = (r.matches(&tcp), r.pick().is_some());
            }
            let Some((r, matched)) = port.route(&view) else { continue };
            let mut headers = HeaderMap::new();
            r.request_headers.apply(&mut headers);
            r.response_headers.apply(&mut headers);
            let _ = r.rewrite.as_ref().map(|x| x.path(view.path, matched));
            if let Some(cors) = &r.cors {
                let _ = cors.preflight(view.method, view.headers);
                cors.permit_response(view.headers, &mut headers);
            }
            match &r.action {
                Action::Forward(f) => {
                    let _ = f.pick().map(|w| w.request_headers.apply(&mut headers));
                }
                Action::Redirect(x) => {
                    let _ = x.location("http", "a:1", 1, view.path, view.query, matched);
                }
                Action::Direct(_) => {}
            }
        }
    }
}

fn load(bytes: &[u8]) -> bool {
    let mut loaded = false;
    let connection = |bytes: &[u8]| match bytes {
        b"x" => Ok(policy::Match::default()),
        _ => Err("it is another".to_owned()),
    };
    if let Ok(t) = HostTable::load(bytes.to_vec().into(), None, &connection, bytes.len()) {
        ask_all(&t);
        loaded = true;
    }
    if let Ok(d) = proto::Destination::decode(bytes)
        && let Ok(d) = Destination::load(&d)
    {
        let _ = (d.port("", 9080), d.port("v1", 9080), d.port("", 0));
        loaded = true;
    }
    loaded
}

/// Bytes with some of them changed, left out or doubled.
fn damaged(mut bytes: Vec<u8>, damage: &[(Index, u8, u8)]) -> Vec<u8> {
    for (at, kind, by) in damage {
        if bytes.is_empty() {
            break;
        }
        let at = at.index(bytes.len());
        match kind % 5 {
            0 => bytes[at] = *by,
            1 => bytes[at] ^= 1 << (by % 8),
            2 => {
                bytes.remove(at);
            }
            3 => bytes.insert(at, *by),
            _ => bytes.truncate(at),
        }
    }
    bytes
}

#[test]
fn whole_resources_are_taken() {
    assert!(load(&table().encode_to_vec()));
    assert!(load(&destination().encode_to_vec()));
    assert!(load(&[]));
}

proptest! {
    #![proptest_config(Config { cases: 2000, failure_persistence: None, ..Config::default() })]

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        load(&bytes);
    }

    #[test]
    fn damaged_resources_are_taken_or_refused(
        damage in prop::collection::vec((any::<Index>(), any::<u8>(), any::<u8>()), 1..6),
        whole in any::<bool>(),
    ) {
        let bytes = if whole { TABLE.with(Clone::clone) } else { DESTINATION.with(Clone::clone) };
        load(&damaged(bytes, &damage));
    }
}

thread_local! {
    static TABLE: Vec<u8> = table().encode_to_vec();
    static DESTINATION: Vec<u8> = destination().encode_to_vec();
}
