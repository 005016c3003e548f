//! HTTP/2 inside the mesh's own, by clients that mean ill.

use crate::scene::Scene;
use testbed::Sock;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ENHANCE_YOUR_CALM: u8 = 11;
const PADDED: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

fn begin() -> Vec<u8> {
    let mut out = PREFACE.to_vec();
    out.extend(frame(SETTINGS, 0, 0, &[]));
    out
}

/// `GET http://reviews/`
fn get() -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x84, 0x01, 7];
    block.extend(b"reviews");
    block
}

/// The flood, then whatever the waypoint has to say of it: it ends the connection or serves on.
fn flood(s: &Scene, frames: &[u8]) -> Sock {
    let sock = s.raw();
    for part in frames.chunks(64 * 1024) {
        if sock.write(part).is_err() {
            break;
        }
    }
    s.is_well();
    sock
}

#[test]
fn requests_that_are_taken_back_at_once_cost_only_whoever_sends_them() {
    let s = Scene::new("wp-rapid-reset");
    let mut frames = begin();
    for n in 0..20_000 {
        frames.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &get()));
        frames.extend(frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8]));
    }
    let sock = flood(&s, &frames);
    // It is told to calm down, where its own rush has not torn the connection before it has read that.
    let mut said = Vec::new();
    let is_torn = loop {
        match sock.read_some(64 * 1024) {
            Ok(part) if part.is_empty() => break false,
            Ok(part) => said.extend(part),
            Err(_) => break true,
        }
    };
    let is_goaway = |w: &[u8]| w[3] == GOAWAY && w[13..17] == [0, 0, 0, ENHANCE_YOUR_CALM];
    assert!(is_torn || said.windows(17).any(is_goaway), "{said:?}");
    s.is_well();
}

#[test]
fn heads_without_an_end_are_ended() {
    let s = Scene::new("wp-continuation");
    let mut frames = begin();
    frames.extend(frame(HEADERS, END_STREAM, 1, &get()));
    let mut part = vec![0x00, 4];
    part.extend(b"name");
    part.push(100);
    part.extend([b'v'; 100]);
    for _ in 0..50_000 {
        frames.extend(frame(CONTINUATION, 0, 1, &part));
    }
    let sock = flood(&s, &frames);
    // It did not wait for more.
    let _ = sock.read_to_end();
    s.is_well();
}

#[test]
fn a_head_that_grows_when_it_is_read_is_refused() {
    let s = Scene::new("wp-hpack");
    let mut frames = begin();
    // One long header into the table, then thousands of references of one byte to it.
    let mut block = get();
    block.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    block.extend(vec![b'v'; 4000]);
    block.extend(vec![0xbe; 12_000]);
    for n in 0..200 {
        frames.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &block));
    }
    flood(&s, &frames);
    assert!(
        !s.waypoint.access_log().iter().any(|l| l["bytes_sent"] == 0 && l["response_code"] == 200)
    );
    s.is_well();
}

#[test]
fn frames_that_ask_for_answers_and_frames_that_are_none_harm_nobody() {
    let s = Scene::new("wp-frames");
    let mut pings = begin();
    for _ in 0..50_000 {
        pings.extend(frame(PING, 0, 0, &[0; 8]));
        pings.extend(frame(SETTINGS, 0, 0, &[]));
    }
    flood(&s, &pings);
    for bad in [
        frame(HEADERS, END_STREAM | END_HEADERS, 0, &get()),
        frame(HEADERS, END_STREAM | END_HEADERS, 2, &get()),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff; 100]),
        frame(CONTINUATION, END_HEADERS, 1, &get()),
        frame(0, 0, 1, b"data of no stream"),
        frame(SETTINGS, 0, 0, &[1, 2, 3]),
        frame(200, 0xff, 77, &[0; 100]),
        // CONNECT, and a path that is none.
        frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x02\x07CONNECT\x01\x07reviews"),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\x82\x86\x04\x04nope\x01\x07reviews"),
    ] {
        let mut frames = begin();
        frames.extend(bad);
        flood(&s, &frames);
    }
}

/// Bodies in parts that are next to nothing, and words about streams that nobody needs.
#[test]
fn small_change_without_end_disturbs_nobody() {
    let s = Scene::new("wp-small-change");
    let mut post = vec![0x83, 0x86, 0x84, 0x01, 7];
    post.extend(b"reviews");
    let begun = || [begin(), frame(HEADERS, END_HEADERS, 1, &post)].concat();
    let many = |one: Vec<u8>| [begun(), one.repeat(50_000)].concat();
    for flood_of in [
        many(frame(0, 0, 1, &[])),
        many(frame(0, 0, 1, b"x")),
        many(frame(0, PADDED, 1, &[200; 201])),
        many(frame(2, 0, 3, &[0, 0, 0, 1, 7])),
        many(frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
        [begun(), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat(),
        [begun(), frame(WINDOW_UPDATE, 0, 0, &[0; 4])].concat(),
        many(frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        many(frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])),
        // Padding that is longer than its frame.
        [begun(), frame(0, PADDED, 1, &[200; 100])].concat(),
    ] {
        drop(flood(&s, &flood_of));
    }
    // Cookies crumb by crumb are one, and there are as many as fields may be.
    let crumbs = |n: usize| {
        let mut block = get();
        for _ in 0..n {
            block.extend(b"\x00\x06cookie\x03a=b");
        }
        [begin(), frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)].concat()
    };
    for n in [100, 5_000] {
        drop(flood(&s, &crumbs(n)));
    }
    let log = s.waypoint.access_log();
    assert!(!log.iter().any(|l| l["response_code"] == 500), "{log:?}");
}
