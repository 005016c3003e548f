//! Endpoints of HTTP/2 that break its rules: whoever has asked them gets an answer that says so, or the
//! end of the one that had begun, and nobody else notices.

use crate::protocols::next;
use crate::scene::{PORT, Played, read_until};
use culvert_tests::SOON;
use scripted::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PREFACE,
    PUSH_PROMISE, SETTINGS, WINDOW_UPDATE, block, bomb, frame, goaway, headers, long_headers,
    reset, settings,
};
use testbed::{Serve, Sock, eventually};

fn ask(p: &Played) -> Sock {
    ask_in(p, "1.1")
}

fn ask_in(p: &Played, version: &str) -> Sock {
    let client = p.raw();
    let request = format!("GET / HTTP/{version}\r\nhost: played:{PORT}\r\n\r\n");
    client.write(request.as_bytes()).unwrap();
    client
}

/// The endpoint's end of a new connection on which it has been asked, and the stream.
fn asked(p: &Played) -> (Sock, u32) {
    let app = p.accept();
    assert_eq!(app.read_exact(PREFACE.len()).unwrap(), PREFACE);
    app.write(&settings(&[])).unwrap();
    let stream = next(&app, HEADERS).stream;
    (app, stream)
}

/// The status of the answer, after whichever interim ones.
fn read_until_answer(client: &Sock) -> String {
    let mut all = String::new();
    loop {
        while let Some((head, rest)) = all.split_once("\r\n\r\n") {
            let status = head.split(' ').nth(1).unwrap().to_owned();
            if !status.starts_with('1') {
                return status;
            }
            all = rest.to_owned();
        }
        let part = client.read_some(64 * 1024).unwrap();
        assert!(!part.is_empty(), "ended: {all:?}");
        all.push_str(&String::from_utf8_lossy(&part));
    }
}

/// The connection is over, and the waypoint knows it: it uses it for nobody any more.
fn ends(app: &Sock) {
    let _ = app.shutdown_write();
    let _ = app.read_to_end();
}

fn good(stream: u32) -> Vec<u8> {
    let head = headers(stream, &[(":status", "200"), ("content-length", "4")]);
    [head, frame(DATA, END_STREAM, stream, b"well")].concat()
}

#[track_caller]
fn is_well(p: &Played) {
    let client = ask(p);
    let (app, stream) = asked(p);
    app.write(&good(stream)).unwrap();
    read_until(&client, "\r\n\r\nwell");
    // It is not used again: each begins with a connection of its own.
    app.write(&goaway(stream, 0)).unwrap();
    ends(&app);
    let log = p.waypoint.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn an_endpoint_that_breaks_the_rules_of_http_2_is_an_answer_of_503() {
    let p = Played::new("wp-bad-http2", "http2", Serve::Manual);
    let update = |stream, n: u32| frame(WINDOW_UPDATE, 0, stream, &n.to_be_bytes());
    let unfinished = |s| frame(HEADERS, 0, s, &block(&[(":status", "200")]));
    type Breaks<'a> = Box<dyn Fn(u32) -> Vec<u8> + 'a>;
    let cases: Vec<(&str, Breaks<'_>)> = vec![
        ("no status", Box::new(|s| headers(s, &[("x-a", "b")]))),
        ("a status that is none", Box::new(|s| headers(s, &[(":status", "2000")]))),
        ("a status of letters", Box::new(|s| headers(s, &[(":status", "abc")]))),
        ("a switch of protocols", Box::new(|s| headers(s, &[(":status", "101")]))),
        (
            "a request for an answer",
            Box::new(|s| headers(s, &[(":method", "GET"), (":path", "/")])),
        ),
        (
            "a pseudo-field after a field",
            Box::new(|s| headers(s, &[("x", "y"), (":status", "200")])),
        ),
        (
            "fields of a connection",
            Box::new(|s| headers(s, &[(":status", "200"), ("transfer-encoding", "chunked")])),
        ),
        ("upper case", Box::new(|s| headers(s, &[(":status", "200"), ("X-Upper", "a")]))),
        ("NUL in a field", Box::new(|s| headers(s, &[(":status", "200"), ("x", "a\0b")]))),
        (
            "a line break in a field",
            Box::new(|s| headers(s, &[(":status", "200"), ("x", "a\r\nb: c")])),
        ),
        ("DATA before HEADERS", Box::new(|s| frame(DATA, END_STREAM, s, b"early"))),
        ("a stream that nobody opened", Box::new(|s| frame(DATA, END_STREAM, s + 100, b"x"))),
        (
            "a push that nobody wants",
            Box::new(|s| {
                let promised = [&2u32.to_be_bytes()[..], &block(&[(":method", "GET")])].concat();
                frame(PUSH_PROMISE, END_HEADERS, s, &promised)
            }),
        ),
        (
            "padding beyond its frame",
            Box::new(|s| frame(HEADERS, PADDED | END_HEADERS, s, &[255, 0x88])),
        ),
        ("a window of more than 2^31", Box::new(|_| update(0, 0x7fff_ffff).repeat(2))),
        ("a window that does not grow", Box::new(move |_| update(0, 0))),
        ("SETTINGS of no length", Box::new(|_| frame(SETTINGS, 0, 0, &[1, 2, 3]))),
        ("PING of no length", Box::new(|_| frame(PING, 0, 0, &[1, 2, 3]))),
        ("a frame of 16 MB", Box::new(|s| vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, s as u8])),
        ("CONTINUATION of nothing", Box::new(|s| frame(CONTINUATION, END_HEADERS, s, &[0x88]))),
        (
            "another frame in the middle of HEADERS",
            Box::new(move |s| [unfinished(s), frame(PING, 0, 0, &[0; 8])].concat()),
        ),
        (
            "CONTINUATION without end",
            Box::new(move |s| {
                let more = frame(CONTINUATION, 0, s, &block(&[("x", "0123456789")]));
                [unfinished(s), more.repeat(10_000)].concat()
            }),
        ),
        (
            "a head of a MiB",
            Box::new(|s| {
                long_headers(s, &block(&[(":status", "200"), ("x", &"a".repeat(1 << 20))]))
            }),
        ),
        (
            "a head that grows when it is read",
            Box::new(|s| long_headers(s, &bomb(&[(":status", "200")]))),
        ),
        ("no HPACK", Box::new(|s| frame(HEADERS, END_HEADERS, s, &[0xff; 40]))),
        ("HTTP/1", Box::new(|_| b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec())),
        ("a reset", Box::new(|s| reset(s, 2))),
        ("an end", Box::new(|s| goaway(s, 2))),
    ];
    for (what, bytes) in cases {
        println!("{what}");
        let client = ask(&p);
        let (app, stream) = asked(&p);
        // Whoever has read enough does not read the rest.
        let _ = app.write(&bytes(stream));
        // An end says only that nothing more will be taken: the answer may come still, until the connection goes.
        if what == "an end" {
            ends(&app);
        }
        let said = read_until(&client, "\r\n\r\n");
        assert!(said.starts_with("HTTP/1.1 503"), "{what}: {said}");
        ends(&app);
        is_well(&p);
    }
}

/// What had begun cannot be taken back: it is broken off, and never looks whole.
#[test]
fn an_answer_that_breaks_off_over_http_2_is_broken_off() {
    let p = Played::new("wp-broken-http2", "http2", Serve::Manual);
    for (what, rest) in [
        ("a reset", &(|s| reset(s, 2)) as &dyn Fn(u32) -> Vec<u8>),
        ("more than was said", &|s| frame(DATA, END_STREAM, s, &[b'x'; 100])),
        ("less than was said", &|s| frame(DATA, END_STREAM, s, b"x")),
        ("a second head", &|s| headers(s, &[(":status", "200")])),
        ("an end of everything", &|_| goaway(0, 2)),
    ] {
        let client = ask(&p);
        let (app, stream) = asked(&p);
        let head = headers(stream, &[(":status", "200"), ("content-length", "10")]);
        app.write(&[head, frame(DATA, 0, stream, b"half")].concat()).unwrap();
        read_until(&client, "half");
        app.write(&rest(stream)).unwrap();
        if what == "an end of everything" {
            ends(&app);
        }
        let end = client.within(SOON).read_to_end();
        let whole = end.as_ref().is_ok_and(|rest| rest.len() >= 6);
        assert!(!whole, "{what}: {end:?}");
        ends(&app);
        is_well(&p);
    }
}

/// Frames that ask for answers and carry nothing: they are answered or ended, and disturb nobody.
#[test]
fn an_endpoint_that_floods_disturbs_nobody() {
    let p = Played::new("wp-flooding-http2", "http2", Serve::Manual);
    let before = p.waypoint.resident_kib();
    let hint = |s| headers(s, &[(":status", "103"), ("link", &*"x".repeat(1000))]);
    type Floods<'a> = &'a dyn Fn(u32) -> Vec<u8>;
    for (what, flood) in [
        ("PING", &(|_| frame(PING, 0, 0, &[0; 8])) as Floods<'_>),
        ("SETTINGS", &|_| settings(&[(4, 65_535)])),
        ("GOAWAY", &|_| goaway(0x7fff_ffff, 0)),
        ("frames of no known kind", &|_| frame(0xbe, 0, 0, &[7; 20])),
        ("WINDOW_UPDATE", &|_| frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())),
        ("interim answers", &hint),
        ("interim answers to who knows of none", &hint),
    ] {
        let client = ask_in(&p, if what.ends_with("none") { "1.0" } else { "1.1" });
        let (app, stream) = asked(&p);
        let flood = flood(stream);
        let chunk = flood.repeat(1000);
        for _ in 0..20 {
            // It may have been ended for that.
            if app.write(&chunk).is_err() {
                break;
            }
        }
        let _ = app.write(&good(stream));
        let said = read_until_answer(&client);
        assert!(["200", "503"].contains(&&*said), "{what}: {said}");
        // Of those that ask to be answered it has read no more than it could answer.
        let _ = app.write(&frame(GOAWAY, 0, 0, &[0; 8]));
        ends(&app);
        is_well(&p);
    }
    eventually(SOON, || {
        let grown = p.waypoint.resident_kib().saturating_sub(before);
        anyhow::ensure!(grown < 64 * 1024, "{grown} KiB");
        Ok(())
    })
    .unwrap();
}
