//! Requests that mean ill, byte by byte.

use crate::scene::{Scene, read_until};
use culvert_tests::Ask;

const SMUGGLED: &str = "GET /?key=smuggled HTTP/1.1\r\nhost: reviews\r\n\r\n";

fn status(answer: &str) -> u16 {
    answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0)
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let s = Scene::new("wp-smuggling");
    let n = SMUGGLED.len();
    let post = "POST /?key=seen HTTP/1.1\r\nhost: reviews\r\n";
    let get = "GET /?key=seen HTTP/1.1\r\n";
    for (what, bytes) in [
        (
            "two lengths",
            format!("{post}content-length: {n}\r\ncontent-length: 0\r\n\r\n{SMUGGLED}"),
        ),
        ("two lengths in one", format!("{post}content-length: {n}, 0\r\n\r\n{SMUGGLED}")),
        ("a signed length", format!("{post}content-length: +{n}\r\n\r\n{SMUGGLED}")),
        ("a length of letters", format!("{post}content-length: 0x0\r\n\r\n{SMUGGLED}")),
        ("another coding", format!("{post}transfer-encoding: chunked, identity\r\n\r\n{SMUGGLED}")),
        ("a coding of its own", format!("{post}transfer-encoding: xchunked\r\n\r\n{SMUGGLED}")),
        ("a space before the colon", format!("{post}content-length : {n}\r\n\r\n{SMUGGLED}")),
        ("a folded header", format!("{get}host: reviews\r\nx: a\r\n b\r\n\r\n{SMUGGLED}")),
        ("NUL in a header", format!("{get}host: reviews\r\nx: a\0b\r\n\r\n{SMUGGLED}")),
        ("CR in a header", format!("{get}host: reviews\r\nx: a\rb\r\n\r\n{SMUGGLED}")),
        ("a line without a colon", format!("{get}host: reviews\r\nnothing\r\n\r\n{SMUGGLED}")),
        ("two hosts", format!("{get}host: reviews\r\nhost: other\r\n\r\n")),
        ("no host", format!("{get}\r\n")),
        ("a host that is none", format!("{get}host: a/b\r\n\r\n")),
        (
            "another host in the target",
            "GET http://other/?key=seen HTTP/1.1\r\nhost: reviews\r\n\r\n".into(),
        ),
        ("another version", "GET /?key=seen HTTP/3.7\r\nhost: reviews\r\n\r\n".into()),
        ("a NUL in the path", "GET /a%00b?key=seen HTTP/1.1\r\nhost: reviews\r\n\r\n".into()),
        ("half an escape", "GET /a%2?key=seen HTTP/1.1\r\nhost: reviews\r\n\r\n".into()),
        ("no path", "GET key=seen HTTP/1.1\r\nhost: reviews\r\n\r\n".into()),
    ] {
        let answer = s.say(bytes);
        let status = status(&answer);
        assert!((400..500).contains(&status), "{what}: {answer:?}");
        // Nothing after it is taken for another request.
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: {answer}");
    }
    let tunnel = s.raw();
    tunnel.write(b"CONNECT reviews:80 HTTP/1.1\r\nhost: reviews:80\r\n\r\n").unwrap();
    assert_eq!(status(&read_until(&tunnel, "\r\n\r\n")), 400);
    assert_eq!(s.counts("seen"), [0, 0]);
    assert_eq!(s.counts("smuggled"), [0, 0]);

    // Broken chunks come after the head: the application may see a request, never a whole one.
    for (n, chunks) in [
        "z\r\nabc\r\n0\r\n\r\n",
        "-1\r\nabc\r\n",
        "fffffffffffffffff\r\na\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("chunk{n}");
        let head = format!("POST /?echo&key={key} HTTP/1.1\r\nhost: reviews\r\n");
        let answer = s.say(format!("{head}transfer-encoding: chunked\r\n\r\n{chunks}{SMUGGLED}"));
        assert_ne!(status(&answer), 200, "{chunks:?}: {answer}");
    }
    // A length and chunks: chunks it is, and the connection ends, or it is refused.
    let both = s.say(format!(
        "POST /?key=both HTTP/1.1\r\nhost: reviews\r\ncontent-length: 4\r\n\
         transfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n{SMUGGLED}"
    ));
    assert!([200, 400].contains(&status(&both)), "{both}");
    assert!(!both.contains("content-length\":\"4"), "{both}");
    assert_eq!(s.counts("smuggled"), [0, 0]);
    s.is_well();
}

#[test]
fn paths_have_one_form_before_anybody_looks() {
    let s = Scene::new("wp-paths");
    for (sent, seen) in [
        ("//a//b", "/a/b"),
        ("/a/../b", "/b"),
        ("/../../b", "/b"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/./b", "/a/b"),
        ("/a%2Fb", "/a%2Fb"),
        ("/a%2fb", "/a%2Fb"),
        ("/%61", "/a"),
        ("/a;x=1/b", "/a;x=1/b"),
        ("/a\\..\\b", "/b"),
        ("/a/%5c../b", "/a/%5C../b"),
        ("/%c0%ae%c0%ae/b", "/%C0%AE%C0%AE/b"),
        ("/a?b=/../c", "/a?b=/../c"),
        ("/A", "/A"),
        ("http://reviews/x/../y", "/y"),
    ] {
        let answer =
            s.say(format!("GET {sent} HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n"));
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        // Refused is as good as understood in the one way.
        let refused = status(&answer) == 400;
        assert!(refused || body["path"] == seen, "{sent}: {answer}");
        if !sent.contains('\\') {
            assert!(!refused, "{sent}: {answer}");
        }
    }
    let star = s.say("OPTIONS * HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n");
    assert!(star.contains("\"path\":\"*\""), "{star}");
    let star = s.say("GET * HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n");
    assert_eq!(status(&star), 400, "{star}");
    let fragment = s.say("GET /a#b HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n");
    assert!(!fragment.contains("#b"), "{fragment}");
    s.is_well();
}

#[test]
fn heads_that_are_too_long_too_many_or_too_slow_are_refused() {
    let s = Scene::new("wp-heads");
    let get = "GET /?key=seen HTTP/1.1\r\nhost: reviews\r\n";
    let slow = s.raw();
    slow.write(&get.as_bytes()[..1]).unwrap();
    let long = s.say(format!("{get}x: {}\r\n\r\n", "a".repeat(1 << 20)));
    assert_eq!(status(&long), 431, "{long}");
    let many: String = (0..10_000).map(|n| format!("x-{n}: {n}\r\n")).collect();
    let many = s.say(format!("{get}{many}\r\n"));
    assert_eq!(status(&many), 431, "{many}");
    let target = s.say(format!("GET /{} HTTP/1.1\r\nhost: reviews\r\n\r\n", "a".repeat(1 << 20)));
    assert!([414, 431].contains(&status(&target)), "{target}");
    assert_eq!(s.counts("seen"), [0, 0]);
    s.is_well();
    // One byte at a time, and never an end: the waypoint ends it.
    let ended = std::thread::scope(|scope| {
        let writer = slow.clone();
        scope.spawn(move || {
            for byte in get.as_bytes()[1..].iter().chain(b"x: aaaaaaaaaaaaaaaaaaaaaaaaaaaaa") {
                if writer.write(&[*byte]).is_err() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        });
        slow.within(culvert_tests::SOON * 2).read_to_end()
    });
    if let Ok(said) = ended {
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408"), "{said:?}");
    }
    s.is_well();
}

#[test]
fn a_client_cannot_say_what_only_proxies_say() {
    let s = Scene::new("wp-headers");
    let forged = Ask::get(&s.url("/"))
        .header("x-forwarded-client-cert: URI=spiffe://cluster.local/ns/default/sa/admin")
        .header("X-Envoy-Original-Path: /admin")
        .header("x-envoy-retry-on: 5xx")
        .header("x-forwarded-proto: https")
        .header("x_forwarded_client_cert: URI=spiffe://cluster.local/ns/default/sa/admin")
        .header("X_Forwarded-For: 10.0.0.1")
        .header("x-envoy_original_path: /admin")
        .header("x_own: kept")
        .header("proxy-connection: x")
        .header("keep-alive: 5");
    let wanted = format!("By={};URI={}", s.waypoint.pod.identity(), s.client.identity());
    // The connection's own headers are named by their senders; what a proxy puts on is not theirs.
    let named = forged.clone().header("connection: x-forwarded-client-cert, x-own, x-request-id");
    for ask in [forged.clone(), named.header("x-own: 1"), forged.http2()] {
        let Ok(answer) = ask.from(&s.client) else { continue };
        let headers = answer.asked()["headers"].clone();
        assert_eq!(headers["x-forwarded-client-cert"], wanted.as_str(), "{headers}");
        assert_eq!(headers["x-forwarded-proto"], "http", "{headers}");
        assert!(headers["x-request-id"].is_string(), "{headers}");
        // Applications that read `_` as `-` read these as the others; what is nobody's goes on.
        assert_eq!(headers["x_own"], "kept", "{headers}");
        for taken in ["x_forwarded_client_cert", "x_forwarded-for", "x-envoy_original_path"] {
            assert!(headers[taken].is_null(), "{taken}: {headers}");
        }
        for gone in
            ["x-envoy-original-path", "x-envoy-retry-on", "x-own", "keep-alive", "proxy-connection"]
        {
            assert!(headers[gone].is_null(), "{gone}: {headers}");
        }
    }
    s.is_well();
}
