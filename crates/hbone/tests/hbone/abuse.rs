//! A client with a good certificate that means no good: its own connection ends, with a bounded
//! amount of work, and the server says why.

use crate::raw::{Raw, connect_frame};
use hbone::ServerError;
use scripted::frames::{
    CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frame, HEADERS, PING,
    SETTINGS, WINDOW_UPDATE, block, bomb, frame, headers, long_headers, reset,
};
use tokio::io::AsyncWriteExt as _;

#[tokio::test]
async fn rapid_reset_is_told_to_calm_down() {
    let raw = Raw::connect().await;
    let storm = (0..10_000_u32).map(|i| {
        let stream = i * 2 + 1;
        let mut pair = connect_frame(stream);
        pair.extend(reset(stream, CANCEL));
        pair
    });
    let ((_, goodbye), mut server) = raw.assault(storm).await;
    assert_eq!(goodbye, Some(ENHANCE_YOUR_CALM));
    let ended = server.ended.await.unwrap();
    assert!(
        matches!(&ended, Err(ServerError::H2(e)) if e.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM)),
        "{ended:?}"
    );
    let mut handed_on = 0;
    while server.streams.try_recv().is_ok() {
        handed_on += 1;
    }
    assert!(handed_on < 1000, "{handed_on} of 10,000 streams reached the application");
}

#[tokio::test]
async fn headers_without_end_are_cut_off() {
    let raw = Raw::connect().await;
    let first = frame(HEADERS, 0, 1, &block(&[(":method", "CONNECT")]));
    let more = frame(CONTINUATION, 0, 1, &block(&[("x", "0123456789")]));
    let flood = std::iter::once(first).chain(std::iter::repeat_n(more, 100_000));
    let ((written, goodbye), mut server) = raw.assault(flood).await;
    assert!(server.ended.await.unwrap().is_err());
    assert!(goodbye.is_some_and(|code| code != 0), "{goodbye:?} after {written}");
    assert!(server.streams.try_recv().is_err());
}

/// A small block that stands for a megabyte: one long header in the table, named ten thousand times.
#[tokio::test]
async fn a_header_bomb_is_not_unpacked() {
    let mut raw = Raw::connect().await;
    // Literal with incremental indexing, name of 1 byte, value of 3,000 (RFC 7541, section 5.1).
    let bomb = bomb(&[(":method", "CONNECT"), (":authority", "10.0.0.2:80")]);
    raw.send(&long_headers(1, &bomb)).await;
    let answer = raw.read.answer(1).await;
    assert!(answer.is_none_or(|f| f.status() != Some(200)), "it was let in");
    assert!(raw.server.streams.try_recv().is_err());
}

/// Each is a connection error by RFC 9113.
#[tokio::test]
async fn broken_rules_end_the_connection() {
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("window overflow", vec![frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]); 2]),
        ("empty window update", vec![frame(WINDOW_UPDATE, 0, 0, &[0; 4])]),
        ("data on stream zero", vec![frame(DATA, 0, 0, b"x")]),
        ("data before headers", vec![frame(DATA, 0, 1, b"x")]),
        ("an even stream", vec![connect_frame(2)]),
        ("streams backwards", vec![connect_frame(5), connect_frame(3)]),
        ("a ping of seven bytes", vec![frame(PING, 0, 0, &[0; 7])]),
        ("settings of five bytes", vec![frame(SETTINGS, 0, 0, &[0; 5])]),
        ("a frame over the limit", vec![frame(DATA, 0, 1, &vec![0; 70_000])]),
        ("padding longer than the frame", vec![connect_frame(1), frame(DATA, 8, 1, &[255, 0])]),
        ("an unfinished block", vec![frame(HEADERS, 0, 1, &[]), frame(PING, 0, 0, &[0; 8])]),
        ("a name in upper case", vec![headers(1, &[(":method", "CONNECT"), ("Upper", "case")])]),
        ("an index into nothing", vec![frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0x7f])]),
    ];
    for (what, frames) in cases {
        let ((_, goodbye), server) = Raw::connect().await.assault(frames.into_iter()).await;
        assert!(goodbye.is_some_and(|code| code != 0), "{what}: {goodbye:?}");
        assert!(server.ended.await.unwrap().is_err(), "{what}");
    }
}

#[tokio::test]
async fn another_preface_is_refused() {
    let mut raw = Raw::connect_without_preface().await;
    raw.send(b"GET / HTTP/1.1\r\nhost: 10.0.0.2\r\n\r\n").await;
    raw.read.goodbye().await;
    assert!(matches!(raw.server.ended.await.unwrap(), Err(ServerError::H2(_))));
}

/// Frames that cost nothing to send: the server answers what it must and stays with its client.
#[tokio::test]
async fn floods_of_small_frames_stall_nothing() {
    let mut raw = Raw::connect().await;
    raw.send(&connect_frame(1)).await;
    let (_send, mut receive) = raw.server.streams.recv().await.unwrap().accept(None).unwrap();
    let Raw { write, read, .. } = &mut raw;
    let flood = async {
        for i in 0..5_000_u32 {
            write.write_all(&frame(PING, 0, 0, &[0; 8])).await.unwrap();
            write.write_all(&frame(DATA, 0, 1, &[u8::try_from(i % 251).unwrap()])).await.unwrap();
        }
        write.write_all(&frame(DATA, END_STREAM, 1, &[])).await.unwrap();
        write.flush().await.unwrap();
    };
    let drain = async {
        let mut n = 0;
        while let Some(chunk) = receive.data().await {
            let chunk = chunk.unwrap();
            receive.flow_control().release_capacity(chunk.len()).unwrap();
            n += chunk.len();
        }
        n
    };
    let pongs = async {
        let mut n = 0;
        while n < 5_000 {
            let Frame { kind, .. } = read.frame().await.expect("the connection goes on");
            n += usize::from(kind == PING);
        }
    };
    let ((), n, ()) = tokio::join!(flood, drain, pongs);
    assert_eq!(n, 5_000);
}
