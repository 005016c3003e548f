//! What each field of an HTTP route of a VirtualService becomes.

use super::{REVIEWS, world};
use routes::proto::{self, http_route::Action, string_match::Kind};
use std::collections::HashMap;

/// A rule's one route, as the proxy has it.
fn route(fields: &str) -> proto::HttpRoute {
    let mut w = world();
    w.route("shop/r", &format!("{{hosts: [reviews], http: [{{{fields}}}]}}"));
    let table = w.table(REVIEWS);
    let port = table.ports.iter().find(|p| p.port == 9080).unwrap();
    assert_eq!(port.http.len(), 1, "{fields}");
    port.http[0].clone()
}

fn to_ratings(fields: &str) -> proto::HttpRoute {
    route(&format!("route: [{{destination: {{host: ratings}}}}], {fields}"))
}

fn text(s: &str) -> String {
    s.to_owned()
}

#[test]
fn redirects() {
    let of = |fields: &str| match route(&format!("redirect: {{{fields}}}")).action {
        Some(Action::Redirect(r)) => r,
        other => panic!("{other:?}"),
    };
    let r = of("uri: /to, authority: b.example, scheme: https, port: 8443, redirectCode: 307");
    let whole = proto::Redirect {
        uri: text("/to"),
        authority: text("b.example"),
        scheme: text("https"),
        port: 8443,
        code: 307,
        ..proto::Redirect::default()
    };
    assert_eq!(r, whole);
    assert_eq!(of("uri: /to").code, 301);
    assert!(of("uri: /to, derivePort: FROM_REQUEST_PORT").keep_port);
    assert!(!of("uri: /to, derivePort: FROM_PROTOCOL_DEFAULT").keep_port);
}

#[test]
fn rewrites_answers_and_headers() {
    let r = to_ratings("rewrite: {uri: /new, authority: other.example}").rewrite.unwrap();
    assert_eq!((r.uri.as_str(), r.authority.as_str()), ("/new", "other.example"));
    let r = to_ratings("rewrite: {uriRegexRewrite: {match: '/a/(.*)', rewrite: '/b/\\1'}}");
    let r = r.rewrite.unwrap();
    assert_eq!((r.regex.as_str(), r.substitution.as_str()), ("/a/(.*)", "/b/\\1"));
    for (body, wanted) in [("string: hello", b"hello".as_slice()), ("bytes: aGk=", b"hi")] {
        let r = route(&format!("directResponse: {{status: 418, body: {{{body}}}}}"));
        let Some(Action::Direct(d)) = r.action else { panic!("{r:?}") };
        assert_eq!((d.status, d.body.as_slice()), (418, wanted));
    }
    let r = to_ratings(
        "headers: {request: {set: {a: '100%%'}, add: {b: '2'}, remove: [c]}, response: {set: {d: '4'}}}",
    );
    let request = r.request_headers.unwrap();
    assert_eq!(request.set, HashMap::from([(text("a"), text("100%"))]).into_iter().collect());
    assert_eq!(request.add.get("b"), Some(&text("2")));
    assert_eq!(request.remove, ["c"]);
    assert_eq!(r.response_headers.unwrap().set.get("d"), Some(&text("4")));
}

#[test]
fn times_retries_faults_and_mirrors() {
    assert_eq!(to_ratings("timeout: 1.5s").timeout_ms, 1500);
    let r = to_ratings(
        "retries: {attempts: 4, perTryTimeout: 2s, retryOn: '5xx,503,retriable-status-codes', backoff: 1s, \
         retryIgnorePreviousHosts: false}",
    );
    let wanted = proto::Retry {
        attempts: 4,
        per_try_timeout_ms: 2000,
        on: vec![text("5xx")],
        statuses: vec![503],
        backoff_ms: 1000,
        same_host_again: true,
    };
    assert_eq!(r.retry, Some(wanted));
    let usual = to_ratings("timeout: 1s").retry.unwrap();
    assert_eq!((usual.attempts, usual.same_host_again, usual.backoff_ms), (2, false, 25));
    assert_eq!(to_ratings("retries: {attempts: 0}").retry, None);
    let percent = |ppm: u32| Some(proto::Percent { ppm });
    let f = to_ratings(
        "fault: {delay: {fixedDelay: 2s, percentage: {value: 12.5}}, abort: {httpStatus: 503, percentage: {value: 0.1}}}",
    );
    let f = f.fault.unwrap();
    assert_eq!(
        (f.delay_ms, f.delayed, f.abort_status, f.aborted),
        (2000, percent(125_000), 503, percent(1000))
    );
    let f = to_ratings("fault: {abort: {grpcStatus: UNAVAILABLE}}").fault.unwrap();
    assert_eq!((f.abort_grpc, f.grpc_status, f.aborted), (true, 14, percent(1_000_000)));
    let m = to_ratings(
        "mirrors: [{destination: {host: reviews}, percentage: {value: 30}}, {destination: {host: ratings}}]",
    );
    let shares: Vec<_> = m.mirrors.iter().map(|m| m.share).collect();
    assert_eq!(shares, [percent(300_000), percent(1_000_000)]);
    let m = to_ratings("mirror: {host: reviews}, mirrorPercent: 7").mirrors;
    assert_eq!((m.len(), m[0].share), (1, percent(70_000)));
}

#[test]
fn cors() {
    let c = to_ratings(
        "corsPolicy: {allowOrigins: [{exact: 'https://a.example'}, {prefix: 'https://b'}, {regex: '.*'}], \
         allowMethods: [GET, PUT], allowHeaders: [x-a, x-b], exposeHeaders: [x-c], maxAge: 24h, \
         allowCredentials: true, unmatchedPreflights: IGNORE}",
    );
    let c = c.cors.unwrap();
    let kinds: Vec<_> = c.origins.into_iter().filter_map(|o| o.kind).collect();
    let wanted = [
        Kind::Exact(text("https://a.example")),
        Kind::Prefix(text("https://b")),
        Kind::Regex(text(".*")),
    ];
    assert_eq!(kinds, wanted);
    assert_eq!((c.allow_methods.as_str(), c.allow_headers.as_str()), ("GET,PUT", "x-a,x-b"));
    assert_eq!((c.expose_headers.as_str(), c.max_age.as_str()), ("x-c", "86400"));
    assert!(c.allow_credentials && !c.forward_unmatched);
    assert!(to_ratings("corsPolicy: {allowMethods: [GET]}").cors.unwrap().forward_unmatched);
}
