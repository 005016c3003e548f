//! Frames that cost little to send and much to answer, by a client with a good certificate.

use crate::den::Den;
use scripted::frames::{
    CANCEL, CONTINUATION, DATA, END_STREAM, ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, GOAWAY, HEADERS,
    PADDED, PING, PRIORITY, PROTOCOL_ERROR, RST_STREAM, WINDOW_UPDATE, block, bomb, connect, frame,
    goaway, headers, long_headers, reset, settings,
};
use scripted::pki::good_leaf;
use scripted::tls::{self, H2};
use scripted::wire::Wire;
use std::iter::{once, repeat_n};
use std::time::Duration;
use testbed::eventually;
use tokio::io::AsyncWriteExt as _;

/// What a flood is to end in.
enum End {
    /// The agent ends the connection, for one of these reasons.
    Goodbye(&'static [u32]),
    /// It answers so many frames at most, and stays.
    Answers(usize),
}

/// What a flood may cost the agent in processor time, the bystander's traffic meanwhile with it; without
/// optimisation, on a slow machine.
const MOST_SPENT: Duration = Duration::from_secs(2);

/// Both ends say a few frames in any case: SETTINGS, their acknowledgement, a window, a GOAWAY.
const COURTESIES: usize = 16;

type Flood<'a> = (&'a str, Box<dyn Iterator<Item = Vec<u8>> + 'a>, End);

fn flood<'a>(what: &'a str, frames: impl Iterator<Item = Vec<u8>> + 'a, end: End) -> Flood<'a> {
    (what, Box::new(frames), end)
}

#[test]
fn floods_end_their_connection_or_are_answered_one_for_one() {
    let den = Den::new("floods");
    let open = || once(den.connect(1));
    let any = &[PROTOCOL_ERROR, FLOW_CONTROL_ERROR, ENHANCE_YOUR_CALM, 5, 6, 9];
    let rapid = (0..10_000_u32).map(|i| {
        let stream = i * 2 + 1;
        [den.connect(stream), reset(stream, CANCEL)].concat()
    });
    let continuation = frame(CONTINUATION, 0, 1, &block(&[("x", "0123456789")]));
    let unfinished = frame(HEADERS, 0, 1, &block(&[(":method", "CONNECT")]));
    let update = |stream, n: u32| frame(WINDOW_UPDATE, 0, stream, &n.to_be_bytes());
    let priorities = (0..50_000_u32).map(|i| frame(PRIORITY, 0, i * 2 + 3, &[0, 0, 0, 0, 7]));
    let unknown = frame(0xbe, 0xff, 0, &[7; 100]);
    let n = 20_000;
    let floods = vec![
        flood("rapid reset", rapid, End::Goodbye(&[ENHANCE_YOUR_CALM])),
        flood(
            "CONTINUATION without end",
            once(unfinished.clone()).chain(repeat_n(continuation, 100_000)),
            End::Goodbye(any),
        ),
        flood(
            "empty CONTINUATION without end",
            once(unfinished).chain(repeat_n(frame(CONTINUATION, 0, 1, &[]), 100_000)),
            End::Goodbye(any),
        ),
        flood(
            "empty DATA",
            open().chain(repeat_n(frame(DATA, 0, 1, &[]), 100_000)),
            End::Goodbye(&[ENHANCE_YOUR_CALM]),
        ),
        flood("PING", repeat_n(frame(PING, 0, 0, &[0; 8]), n), End::Answers(n)),
        flood("SETTINGS", repeat_n(settings(&[(4, 65_535)]), n), End::Answers(n)),
        flood("PRIORITY", priorities, End::Answers(0)),
        flood("unknown frames", repeat_n(unknown, 50_000), End::Answers(0)),
        flood("WINDOW_UPDATE of zero", once(update(0, 0)), End::Goodbye(&[PROTOCOL_ERROR])),
        // RFC 9113 asks for the stream alone; the connection is what h2 ends.
        flood(
            "WINDOW_UPDATE of zero for a stream",
            open().chain(once(update(1, 0))),
            End::Goodbye(&[PROTOCOL_ERROR]),
        ),
        flood(
            "windows beyond 2^31",
            repeat_n(update(0, 0x7fff_ffff), 2),
            End::Goodbye(&[FLOW_CONTROL_ERROR]),
        ),
        flood("small WINDOW_UPDATEs", repeat_n(update(0, 1), 100_000), End::Answers(0)),
        flood(
            "padding longer than the frame",
            open().chain(once(frame(DATA, PADDED, 1, &[255]))),
            End::Goodbye(&[PROTOCOL_ERROR]),
        ),
        flood(
            "padded HEADERS of no length",
            once(frame(HEADERS, PADDED | 4, 1, &[])),
            End::Goodbye(any),
        ),
        flood("GOAWAY after GOAWAY", repeat_n(goaway(0, 0), 50_000), End::Answers(0)),
        flood(
            "RST_STREAM of streams that never were",
            (0..1000).map(|i| reset(i * 2 + 1, CANCEL)),
            End::Goodbye(&[PROTOCOL_ERROR]),
        ),
        flood("DATA where no stream is", once(frame(DATA, 0, 1, b"x")), End::Goodbye(any)),
        flood(
            "an answer, which only servers give",
            once(headers(2, &[(":status", "200")])),
            End::Goodbye(any),
        ),
        flood(
            "a frame of 16 MB",
            once(frame(DATA, 0, 1, &vec![0; (1 << 24) - 1])),
            End::Goodbye(any),
        ),
    ];
    for (what, frames, end) in floods {
        let before = den.mesh.agent(2).processor_time();
        let siege = den.block_on(async { den.wire().await.assault(frames).await });
        let spent = den.mesh.agent(2).processor_time() - before;
        println!("{what}: {siege:?}, {spent:?} of the agent's processor time");
        assert!(spent < MOST_SPENT, "{what}: {spent:?}");
        match end {
            End::Goodbye(codes) => {
                let code = siege.goodbye.unwrap_or_else(|| panic!("{what}: no GOAWAY: {siege:?}"));
                assert!(codes.contains(&code), "{what}: {siege:?}");
            }
            End::Answers(most) => {
                assert!(siege.answered <= most + COURTESIES, "{what}: {siege:?}");
                assert!(siege.goodbye.is_none_or(|code| code == 0), "{what}: {siege:?}");
            }
        }
        den.undisturbed(what);
    }
}

/// A client that asks and does not listen to the answers: what it has not taken does not pile up.
#[test]
fn a_flooder_that_does_not_read_is_not_read_from() {
    let den = Den::new("deaf");
    for (what, f) in [("PING", frame(PING, 0, 0, &[0; 8])), ("SETTINGS", settings(&[]))] {
        let stuck = den.block_on(async {
            let mut wire = den.wire().await;
            let chunk = f.repeat(1000);
            let mut written = 0;
            while written < 256 * 1024 * 1024 {
                let write = wire.write.write_all(&chunk);
                match tokio::time::timeout(Duration::from_secs(3), write).await {
                    Ok(Ok(())) => written += chunk.len(),
                    // Ended or stuck: either bounds what the agent holds.
                    _ => break,
                }
            }
            (wire, written)
        });
        println!("{what}: {} bytes went out", stuck.1);
        // While it is still connected.
        den.undisturbed(what);
    }
}

/// One byte a frame: the application gets them all.
#[test]
fn a_byte_a_frame_arrives() {
    let den = Den::new("bytes");
    let n: usize = 20_000;
    let answered = den.block_on(async {
        let mut wire = den.wire().await;
        wire.send(&den.connect(1)).await.unwrap();
        assert_eq!(wire.read.answer(1).await.unwrap().status(), Some(200));
        wire.send(&frame(DATA, 0, 1, b"sink\n")).await.unwrap();
        let scripted::wire::Wire { write, read } = &mut wire;
        let writing = async {
            for _ in 0..n {
                write.write_all(&frame(DATA, 0, 1, b"x")).await.unwrap();
            }
            write.write_all(&frame(DATA, END_STREAM, 1, b"")).await.unwrap();
            write.flush().await.unwrap();
        };
        let reading = async {
            let answer = read.until(|f| f.kind == DATA && f.stream == 1).await;
            String::from_utf8(answer.expect("an answer").payload).unwrap()
        };
        tokio::join!(writing, reading).1
    });
    assert!(answered.starts_with(&format!("{n} ")), "{answered}");
    den.undisturbed("a byte a frame");
}

/// Errors of one stream end that stream.
#[test]
fn a_broken_stream_leaves_its_connection_alone() {
    let den = Den::new("broken-streams");
    den.block_on(async {
        let mut wire = den.wire().await;
        let mut stream = 1;
        for (what, bad) in [
            ("a window beyond 2^31", frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])),
            ("trailers that do not end it", headers(3, &[("x", "y")])),
        ] {
            wire.send(&den.connect(stream)).await.unwrap();
            assert_eq!(wire.read.answer(stream).await.unwrap().status(), Some(200), "{what}");
            wire.send(&bad).await.unwrap();
            let end = wire.read.until(|f| f.stream == stream && f.kind == RST_STREAM).await;
            assert!(end.is_some(), "{what}: the connection ended");
            stream += 2;
        }
        wire.send(&den.connect(stream)).await.unwrap();
        assert_eq!(wire.read.answer(stream).await.unwrap().status(), Some(200));
    });
    den.undisturbed("broken streams");
}

/// Resets that are paced so that each stream is taken up first, towards an application that does not answer: what was
/// begun for a stream ends with it.
#[test]
fn streams_that_are_reset_leave_no_work_behind() {
    let den = Den::new("paced-resets");
    // Nobody answers on that port, not even with a reset. It is none that the agent's own sockets have.
    const DEAF: u16 = 999;
    let rules = format!(
        "add table inet deaf; add chain inet deaf in {{ type filter hook input priority 0; }}; \
         add rule inet deaf in tcp dport {DEAF} drop"
    );
    let nft = std::process::Command::new("ip")
        .args(["netns", "exec", &den.server.netns_name(), "nft", &rules])
        .status()
        .unwrap();
    assert!(nft.success());
    let before = den.mesh.agent(2).descriptors();
    let target = culvert_tests::at(den.server.ipv4(), DEAF);
    let mut connections = 0;
    let (most, _wires) = den.block_on(async {
        let mut most = 0;
        let mut wires = vec![];
        let mut batches = 0;
        while batches < 100 {
            // The agent may call one of them too much; there are more where it came from.
            connections += 1;
            wires.push(den.wire().await);
            let wire = wires.last_mut().unwrap();
            for first in (1..1_000_000_u32).step_by(40) {
                let streams: Vec<u32> = (first..first + 40).step_by(2).collect();
                let opened: Vec<u8> = streams.iter().flat_map(|s| connect(*s, &target)).collect();
                let ping = frame(PING, 0, 0, &[1; 8]);
                let resets: Vec<u8> = streams.iter().flat_map(|s| reset(*s, CANCEL)).collect();
                let taken_up = wire.send(&[opened, ping].concat()).await.is_ok()
                    && wire.read.until(|f| f.kind == PING && f.flags == 1).await.is_some()
                    && wire.send(&resets).await.is_ok();
                most = most.max(den.mesh.agent(2).descriptors());
                batches += 1;
                if !taken_up || batches == 100 {
                    break;
                }
            }
        }
        (most, wires)
    });
    println!("{connections} connections");
    println!("at most {} descriptors more", most.saturating_sub(before));
    // A connection's streams at a time, twice, and some for the client's own traffic.
    assert!(most < before + 200, "{most} descriptors, {before} before");
    den.undisturbed("paced resets");
}

/// Small blocks that stand for much, and blocks that are much.
#[test]
fn header_bombs_are_not_unpacked() {
    let den = Den::new("bombs");
    let target = culvert_tests::at(den.server.ipv4(), crate::den::PORT);
    let first = [(":method", "CONNECT"), (":authority", target.as_str())];
    let with = |more: Vec<(&str, String)>| {
        let mut list: Vec<(&str, &str)> = first.to_vec();
        list.extend(more.iter().map(|(n, v)| (*n, v.as_str())));
        block(&list)
    };
    let crumbs = with((0..10_000).map(|i| ("cookie", format!("a{i}=b"))).collect());
    let cases = [
        ("a bomb", bomb(&first)),
        ("ten thousand crumbs of cookies", crumbs),
        ("a header of 70 KiB", with(vec![("x", "y".repeat(70 * 1024))])),
        ("a baggage of 10 MB", with(vec![("baggage", "k=v,".repeat(2_500_000))])),
        ("five thousand headers", with((0..5000).map(|i| ("x", i.to_string())).collect())),
    ];
    for (what, block) in cases {
        den.block_on(async {
            let mut wire = den.wire().await;
            // It may be ended in the middle.
            let _ = wire.send(&long_headers(1, &block)).await;
            let answer =
                wire.read.until(|f| f.kind == GOAWAY || (f.stream == 1 && f.kind != DATA)).await;
            println!("{what}: {:?}", answer.as_ref().map(|f| (f.kind, f.status())));
            if let Some(f) = answer.filter(|f| f.kind == HEADERS) {
                assert_eq!(f.status(), Some(431), "{what}");
            }
        });
        den.undisturbed(what);
    }
    // Nothing of it reached the application's side of the agent.
    let access = den.mesh.agent(2).access_log();
    assert!(!access.iter().any(|l| l.contains("mallory")), "{access:?}");
}

/// Streams up to the limit, none of which is ever read: the connection is held to its window.
#[test]
fn a_client_that_reads_nothing_holds_no_more_than_its_windows() {
    let den = Den::new("neglect");
    let wire = den.block_on(async {
        let mut wire = den.wire().await;
        // 1 MiB windows, 128 streams: all that an agent would send at once.
        wire.send(&settings(&[(4, 1 << 20)])).await.unwrap();
        wire.send(&frame(WINDOW_UPDATE, 0, 0, &(128_u32 << 20).to_be_bytes())).await.unwrap();
        for i in 0..128 {
            let stream = i * 2 + 1;
            wire.send(&den.connect(stream)).await.unwrap();
            wire.read.answer(stream).await.unwrap();
            wire.send(&frame(DATA, 0, stream, b"source 100000000 1\n")).await.unwrap();
        }
        wire
    });
    eventually(culvert_tests::SOON, || {
        let open = den.mesh.agent(2).connections().len();
        anyhow::ensure!(open >= 128, "{open} open");
        Ok(())
    })
    .unwrap();
    den.undisturbed("128 streams that nobody reads");
    drop(wire);
}

/// Certified connections, on which nothing is asked.
#[test]
fn a_peer_that_opens_connections_has_its_share_and_no_more() {
    let den = Den::new("many-connections");
    let mut held: Vec<_> = Vec::new();
    den.block_on(async {
        for _ in 0..1024 {
            held.push(den.wire().await);
        }
        let (own, tcp) = (den.pki.odd(&good_leaf(&den.identity())), den.tcp().unwrap());
        let one_more = tls::connect(tcp, tls::client_config(Some(own), H2)).await;
        assert!(one_more.is_err(), "it is taken");
    });
    den.undisturbed("1,024 connections of one peer");
    held.truncate(1000);
    eventually(culvert_tests::SOON, || {
        den.block_on(async {
            let own = den.pki.odd(&good_leaf(&den.identity()));
            let tls = tls::connect(den.tcp()?, tls::client_config(Some(own), H2)).await?;
            Wire::client(tls).await?;
            anyhow::Ok(())
        })
    })
    .unwrap();
}
