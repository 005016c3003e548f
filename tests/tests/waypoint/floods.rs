//! HTTP/2 inside the mesh's own, by clients that mean ill.

use crate::scene::Scene;
use testbed::Sock;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
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
    flood(&s, &frames);
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
