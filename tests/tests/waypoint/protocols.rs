//! What HTTP is, through the waypoint.

use std::time::Duration;

use crate::scene::{PORT, Played, Scene, read_until};
use culvert_tests::Ask;
use scripted::frames::{
    DATA, END_HEADERS, END_STREAM, Frame, HEADERS, PREFACE, block, frame, headers, settings,
};
use telemetry::Messages;
use testbed::{Serve, Sock};

#[test]
fn both_versions_go_to_applications_as_their_ports_say() {
    let s = Scene::speaking("wp-http2", "http2");
    let ask = Ask::get(&s.url("/?trailer=late"));
    for ask in [ask.clone(), ask.http2()] {
        let answer = s.ask(&ask.header("te: trailers"));
        assert_eq!((answer.status, &answer.asked()["version"]), (200, &"HTTP/2.0".into()));
    }
    s.is_well();
}

#[test]
fn grpc_has_its_trailers_both_ways() {
    let s = Scene::speaking("wp-grpc", "grpc");
    let call = Ask::get(&s.url("/package.Service/Method?grpc=5"))
        .http2()
        .method("POST")
        .header("content-type: application/grpc")
        .header("te: trailers")
        .body("message")
        .trailer("x-late: from the client");
    let answer = s.ask(&call);
    assert_eq!((answer.status, &answer.trailers["grpc-status"]), (200, &"5".into()), "{answer:?}");
    let asked = answer.asked();
    assert_eq!(asked["trailers"]["x-late"], "from the client", "{asked}");
    assert_eq!((&asked["body"], &asked["headers"]["te"]), (&"message".into(), &"trailers".into()));
    let metrics = s.waypoint.metrics();
    let counted = metrics.lines().find(|l| l.starts_with("istio_requests_total")).unwrap();
    assert!(counted.contains("request_protocol=\"grpc\""), "{counted}");
    assert!(counted.contains("grpc_response_status=\"5\""), "{counted}");
    // To gRPC these bytes are messages, whatever the application makes of them.
    let messages = |bytes: &str| {
        let mut messages = Messages::default();
        messages.feed(bytes.as_bytes());
        messages.count
    };
    for (name, bytes) in [("request", "message"), ("response", answer.body.as_str())] {
        let start = format!("istio_{name}_messages_total{{");
        let counted = metrics.lines().find(|l| l.starts_with(&start)).unwrap();
        let value = format!("}} {}", messages(bytes));
        assert!(counted.ends_with(&value) && messages(bytes) > 0, "{counted}");
    }
    // A refusal has gRPC's form.
    s.mesh.write_policy(
        "default",
        "nobody",
        "{ targetRefs: [{ kind: Service, group: \"\", name: reviews }], action: DENY, rules: [{}] }",
    );
    let denied = s.until(&call, |a| a.headers["grpc-status"] == "7");
    assert_eq!(denied.status, 200);
}

#[test]
fn bodies_of_any_length_and_none_go_both_ways() {
    let s = Scene::new("wp-bodies-both");
    let big = Ask::get(&s.url("/?echo")).method("POST").pattern(20 << 20);
    for ask in [big.clone(), big.http2()] {
        let answer = s.ask(&ask);
        assert_eq!((answer.status, answer.length), (200, 20 << 20));
        assert!(answer.is_pattern);
    }
    let chunked = s.say(
        "POST /?echo HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\
         transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\n\r\n",
    );
    assert!(chunked.ends_with("\r\n\r\nabcdefg"), "{chunked}");
    // Of a method that seldom has one.
    let asked = s.say(
        "GET /?echo HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\
         transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    );
    assert!(asked.ends_with("\r\n\r\nabc") || asked.contains("\r\n3\r\nabc\r\n"), "{asked}");
    assert_eq!(s.get("/?chunks=3").body, "chunk 0\nchunk 1\nchunk 2\n");
    let head = s.say("HEAD /?size=1000 HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("content-length: 1000\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    for status in [204, 304] {
        // On one connection: a body that is not there delays nobody.
        let path = format!("/?size=0&status={status}");
        let all = Ask::get(&s.url(&path)).times(&s.client, 3).unwrap();
        assert!(all.iter().all(|a| a.status == status && a.length == 0), "{all:?}");
    }
    // Breaks off: never a clean end.
    for ask in [Ask::get(&s.url("/?broken=1000")), Ask::get(&s.url("/?broken=1000")).http2()] {
        let error = format!("{:#}", ask.from(&s.client).unwrap_err());
        assert!(error.contains("reading the answer"), "{error}");
    }
    s.is_well();
}

#[test]
fn an_answer_reaches_a_client_that_says_that_it_will_close_or_has_closed() {
    let s = Scene::new("wp-close");
    let size = 4 << 20;
    let get = format!("GET /?size={size} HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n");
    let closing = s.raw();
    closing.write(get.as_bytes()).unwrap();
    assert!(closing.read_to_end().unwrap().len() > size);
    let half_closed = s.raw();
    half_closed.write(get.as_bytes()).unwrap();
    half_closed.shutdown_write().unwrap();
    assert!(half_closed.read_to_end().unwrap().len() > size);
    // One that is refused while it still sends.
    s.mesh.write_policy(
        "default",
        "no-post",
        "{ targetRefs: [{ kind: Service, group: \"\", name: reviews }], action: DENY, \
         rules: [{ to: [{ operation: { methods: [POST] } }] }] }",
    );
    s.until(&Ask::get(&s.url("/")).method("POST"), |a| a.status == 403);
    for _ in 0..5 {
        let client = s.raw();
        let mut post =
            b"POST / HTTP/1.1\r\nhost: reviews\r\ncontent-length: 4000000\r\n\r\n".to_vec();
        post.resize(3_000_000, b'x');
        let _ = client.write(&post);
        let said = read_until(&client, "RBAC: access denied");
        assert!(said.starts_with("HTTP/1.1 403"), "{said}");
    }
    s.is_well();
}

#[test]
fn a_client_that_waits_to_be_told_is_told() {
    let s = Scene::new("wp-continue");
    let client = s.raw();
    let head = "POST / HTTP/1.1\r\nhost: reviews\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\
                connection: close\r\n\r\n";
    client.write(head.as_bytes()).unwrap();
    read_until(&client, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write(b"body").unwrap();
    let answer = String::from_utf8(client.read_to_end().unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"body\":\"body\""), "{answer}");
}

#[test]
fn interim_answers_come_before_the_answer() {
    let p = Played::new("wp-interim", "http", Serve::Manual);
    let client = p.raw();
    let ask = |line: &str| {
        client.write(format!("GET / {line}\r\nhost: played:{PORT}\r\n\r\n").as_bytes()).unwrap();
    };
    ask("HTTP/1.1");
    let app = p.accept();
    read_until(&app, "\r\n\r\n");
    for link in ["</style.css>", "</script.js>"] {
        let hints = format!(
            "HTTP/1.1 103 Early Hints\r\nlink: {link}\r\nconnection: x-hop\r\nx-hop: 1\r\n\r\n"
        );
        app.write(hints.as_bytes()).unwrap();
        let come = read_until(&client, "\r\n\r\n");
        assert_eq!(come, format!("HTTP/1.1 103 Early Hints\r\nlink: {link}\r\n\r\n"));
    }
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
    app.write(format!("{answer}ok").as_bytes()).unwrap();
    let come = read_until(&client, "\r\n\r\nok");
    assert!(come.starts_with("HTTP/1.1 200"), "{come}");
    // The next request, whose interim answers come with the answer.
    ask("HTTP/1.1");
    read_until(&app, "\r\n\r\n");
    let processing = "HTTP/1.1 102 Processing\r\n\r\n";
    app.write(format!("{processing}{processing}{answer}go").as_bytes()).unwrap();
    let come = read_until(&client, "\r\n\r\ngo");
    let rest = come.strip_prefix(&processing.repeat(2)).unwrap();
    assert!(rest.starts_with("HTTP/1.1 200"), "{come}");
    // Whoever speaks HTTP/1.0 does not know of them.
    ask("HTTP/1.0");
    read_until(&app, "\r\n\r\n");
    app.write(format!("{processing}{answer}no").as_bytes()).unwrap();
    let come = read_until(&client, "\r\n\r\nno");
    assert!(come.starts_with("HTTP/1.0 200"), "{come}");
}

/// The next frame of this kind, with what it is of HTTP/2 before it.
#[track_caller]
pub fn next(sock: &Sock, kind: u8) -> Frame {
    loop {
        let head = sock.read_exact(9).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let payload = sock.read_exact(length as usize).unwrap();
        if head[3] == kind {
            return Frame { kind, flags: head[4], stream, payload };
        }
    }
}

/// A client of HTTP/2 that has asked once.
fn asks_http2(p: &Played) -> Sock {
    let client = p.raw();
    let authority = format!("played:{PORT}");
    let request = block(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", authority.as_str()),
    ]);
    let request = frame(HEADERS, END_HEADERS | END_STREAM, 1, &request);
    client.write(&[PREFACE, &settings(&[]), &request].concat()).unwrap();
    client
}

#[test]
fn interim_answers_go_from_http2_to_either_version() {
    let p = Played::new("wp-interim-h2", "http2", Serve::Manual);
    let client = asks_http2(&p);
    let app = p.accept();
    assert_eq!(app.read_exact(PREFACE.len()).unwrap(), PREFACE);
    app.write(&settings(&[])).unwrap();
    let asked = next(&app, HEADERS).stream;
    for status in [102_u16, 103] {
        app.write(&headers(asked, &[(":status", status.to_string())])).unwrap();
        assert_eq!(next(&client, HEADERS).status(), Some(status));
    }
    let answer = |stream: u32| {
        [headers(stream, &[(":status", "200")]), frame(DATA, END_STREAM, stream, b"ok")].concat()
    };
    app.write(&answer(asked)).unwrap();
    assert_eq!(next(&client, HEADERS).status(), Some(200));
    assert_eq!(next(&client, DATA).payload, b"ok");
    // On the same connection to the application.
    let client = p.raw();
    client.write(format!("GET / HTTP/1.1\r\nhost: played:{PORT}\r\n\r\n").as_bytes()).unwrap();
    let asked = next(&app, HEADERS).stream;
    app.write(&headers(asked, &[(":status", "103"), ("link", "</style.css>")])).unwrap();
    let come = read_until(&client, "\r\n\r\n");
    assert_eq!(come, "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n");
    app.write(&answer(asked)).unwrap();
    let come = read_until(&client, "ok");
    assert!(come.starts_with("HTTP/1.1 200"), "{come}");
}

/// A client of HTTP/1 has all that was said before the stream has ended, and asks for no more.
#[test]
fn an_answer_whose_end_comes_late_is_whole() {
    let p = Played::new("wp-late-end", "http2", Serve::Manual);
    let client = p.raw();
    client.write(format!("GET / HTTP/1.1\r\nhost: played:{PORT}\r\n\r\n").as_bytes()).unwrap();
    let app = p.accept();
    assert_eq!(app.read_exact(PREFACE.len()).unwrap(), PREFACE);
    app.write(&settings(&[])).unwrap();
    let asked = next(&app, HEADERS).stream;
    let head = headers(asked, &[(":status", "200"), ("content-length", "4")]);
    app.write(&[head, frame(DATA, 0, asked, b"well")].concat()).unwrap();
    read_until(&client, "\r\n\r\nwell");
    let told = || {
        let log = p.waypoint.access_log();
        let Some(line) = log.first() else { anyhow::bail!("nothing is told") };
        anyhow::ensure!(line["response_code"] == 200 && line["response_flags"] == "-", "{line}");
        Ok(())
    };
    testbed::eventually(culvert_tests::SOON, told).unwrap();
}

#[test]
fn interim_answers_go_from_http1_to_http2() {
    let p = Played::new("wp-interim-h1", "http", Serve::Manual);
    let client = asks_http2(&p);
    let app = p.accept();
    read_until(&app, "\r\n\r\n");
    app.write(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n").unwrap();
    assert_eq!(next(&client, HEADERS).status(), Some(103));
    app.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
    assert_eq!(next(&client, HEADERS).status(), Some(200));
    assert_eq!(next(&client, DATA).payload, b"ok");
}

/// What is not HTTP at once is not bytes for that, on a port that is said to be HTTP.
#[test]
fn a_client_that_is_silent_at_first_is_judged_like_any() {
    let s = Scene::new("wp-silent");
    let sock = s.raw();
    // Longer than a port is looked at whose protocol nobody says.
    std::thread::sleep(Duration::from_secs(6));
    sock.write(b"GET /%00 HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n").unwrap();
    let answer = String::from_utf8_lossy(&sock.read_to_end().unwrap()).into_owned();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    s.is_well();
}

#[test]
fn a_connection_switches_to_another_protocol_and_carries_it() {
    let s = Scene::new("wp-upgrade");
    let client = s.raw();
    let head = "GET /chat HTTP/1.1\r\nhost: reviews\r\nconnection: keep-alive, Upgrade\r\n\
                upgrade: websocket\r\nsec-websocket-key: x\r\n\r\n";
    client.write(head.as_bytes()).unwrap();
    let switched = read_until(&client, "\r\n\r\n");
    assert!(switched.starts_with("HTTP/1.1 101"), "{switched}");
    assert!(switched.contains("upgrade: websocket\r\n"), "{switched}");
    for word in ["hello", "again"] {
        client.write(word.as_bytes()).unwrap();
        assert_eq!(client.read_exact(5).unwrap(), word.to_uppercase().as_bytes());
    }
    // From here on it is no HTTP: what looks like a request is not one.
    let smuggled = "GET /?key=smuggled HTTP/1.1\r\nhost: reviews\r\n\r\n";
    client.write(smuggled.as_bytes()).unwrap();
    assert_eq!(client.read_exact(smuggled.len()).unwrap(), smuggled.to_uppercase().as_bytes());
    client.shutdown_write().unwrap();
    assert_eq!(client.read_to_end().unwrap(), b"");
    assert_eq!(s.counts("smuggled"), [0, 0]);
    // The same over HTTP/2, by an extended CONNECT.
    let over_http2 =
        Ask::get(&s.url("/upgrade")).websocket().body("hello").from(&s.client).unwrap();
    assert_eq!((over_http2.status, over_http2.body.as_str()), (200, "HELLO"));
    for name in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(over_http2.headers[name].is_null(), "{over_http2:?}");
    }
    // HTTP/2 by an upgrade would be requests that nobody judges: the answer is one of HTTP/1.1.
    let client = s.raw();
    client
        .write(
            b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: Upgrade, HTTP2-Settings\r\n\
         upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
        )
        .unwrap();
    let h2c = read_until(&client, "\"count\"");
    assert!(h2c.starts_with("HTTP/1.1 200"), "{h2c}");
    assert!(!h2c.contains("h2c") && !h2c.contains("http2-settings"), "{h2c}");
    s.is_well();
}

#[test]
fn an_answer_streams_as_it_is_written() {
    let p = Played::new("wp-stream", "http", Serve::Manual);
    let client = p.raw();
    client.write(format!("GET / HTTP/1.1\r\nhost: played:{PORT}\r\n\r\n").as_bytes()).unwrap();
    let app = p.accept();
    read_until(&app, "\r\n\r\n");
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                transfer-encoding: chunked\r\n\r\n";
    app.write(head.as_bytes()).unwrap();
    read_until(&client, "\r\n\r\n");
    // The next is written only once the one before has come.
    for n in 0..5 {
        let event = format!("data: {n}\n\n");
        app.write(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).unwrap();
        read_until(&client, &event);
    }
    // A request likewise.
    app.write(b"0\r\n\r\n").unwrap();
    read_until(&client, "0\r\n\r\n");
    client.write(b"POST / HTTP/1.1\r\nhost: played\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    read_until(&app, "\r\n\r\n");
    for n in 0..5 {
        client.write(format!("2\r\n{n}!\r\n").as_bytes()).unwrap();
        read_until(&app, &format!("{n}!"));
    }
    // The application is gone in the middle of a request.
    app.reset().unwrap();
    let answer = read_until(&client, "\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}

#[test]
fn an_endpoint_that_does_not_switch_opens_no_websocket_over_http2() {
    let p = Played::new("wp-no-switch", "http", Serve::Manual);
    let ask = Ask::get(&format!("http://played:{PORT}/chat")).websocket();
    // A success would say that it speaks WebSocket; a refusal is the endpoint's own.
    for (answer, status) in [("200 OK", 503), ("403 Forbidden", 403)] {
        let answered = std::thread::scope(|scope| {
            let asking = scope.spawn(|| ask.from(&p.client).unwrap());
            let endpoint = p.accept();
            let head = read_until(&endpoint, "\r\n\r\n").to_ascii_lowercase();
            assert!(head.starts_with("get /chat http/1.1\r\n"), "{head}");
            assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
            assert!(head.contains("\r\nsec-websocket-key: "), "{head}");
            let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 2\r\n\r\nno");
            endpoint.write(answer.as_bytes()).unwrap();
            asking.join().unwrap()
        });
        assert_eq!(answered.status, status, "{answered:?}");
    }
}
