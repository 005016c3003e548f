//! Streams over one connection: open, echo, end, and neglect of some that must not hurt another.

use crate::pair::{
    DESTINATION, Pair, assert_ended, connect_to, echo, pair, pattern, receive, send,
};
use bytes::Bytes;
use h2::{RecvStream, SendStream};
use hbone::{ClientError, WINDOWS};
use http::StatusCode;
use std::future::poll_fn;
use tokio::sync::watch;

#[tokio::test]
async fn a_stream_opens_and_echoes() {
    let mut pair = pair().await;
    let mut request = connect_to(DESTINATION);
    request.headers_mut().insert("baggage", "service.name=a".parse().unwrap());
    let (client, server) = tokio::join!(pair.client.open(request), async {
        let stream = pair.server.streams.recv().await.unwrap();
        assert_eq!(stream.authority.to_string(), DESTINATION);
        assert_eq!(stream.headers["baggage"], "service.name=a");
        stream.accept(Some("service.name=b".into())).unwrap()
    });
    let (mut client, mut server) = (client.unwrap(), server);
    assert_eq!(client.response.headers["baggage"], "service.name=b");
    echo((&mut client.send, &mut client.receive), (&mut server.0, &mut server.1), 3_000_000).await;
}

#[tokio::test]
async fn a_direction_ends_alone() {
    let mut pair = pair().await;
    let (mut client, mut server) = pair.open().await;
    client.send.send_data(Bytes::from_static(b"last words"), true).unwrap();
    assert_eq!(receive(&mut server.1, 10).await, b"last words");
    assert_ended(&mut server.1).await;
    // The other direction goes on, for more than a window.
    let answer = pattern(2_000_000);
    let (sent, got) = tokio::join!(
        send(&mut server.0, answer.clone()),
        receive(&mut client.receive, answer.len())
    );
    sent.unwrap();
    assert!(got == answer);
    server.0.send_data(Bytes::new(), true).unwrap();
    assert_ended(&mut client.receive).await;
}

#[tokio::test]
async fn a_refusal_is_the_status_that_the_server_gave() {
    let mut pair = pair().await;
    for status in [StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE] {
        let (refused, ()) = tokio::join!(pair.client.open(connect_to(DESTINATION)), async {
            pair.server.streams.recv().await.unwrap().refuse(status);
        });
        assert!(matches!(refused, Err(ClientError::Refused(s)) if s == status));
    }
    // The connection is as good as before.
    let (mut client, mut server) = pair.open().await;
    echo((&mut client.send, &mut client.receive), (&mut server.0, &mut server.1), 1000).await;
}

#[tokio::test]
async fn a_reset_is_an_error_to_the_peer_and_to_no_other_stream() {
    let mut pair = pair().await;
    let (mut other, mut other_far) = pair.open().await;
    let (mut by_client, mut far) = pair.open().await;
    by_client.send.send_reset(h2::Reason::CANCEL);
    let seen = far.1.data().await.expect("an error, not an end").unwrap_err();
    assert_eq!(seen.reason(), Some(h2::Reason::CANCEL));
    let (mut near, mut by_server) = pair.open().await;
    by_server.0.send_reset(h2::Reason::CANCEL);
    let seen = near.receive.data().await.expect("an error, not an end").unwrap_err();
    assert_eq!(seen.reason(), Some(h2::Reason::CANCEL));
    echo((&mut other.send, &mut other.receive), (&mut other_far.0, &mut other_far.1), 1000).await;
}

/// Sends for ever; the watch says how much was taken.
async fn flood(mut stream: SendStream<Bytes>, sent: watch::Sender<usize>) {
    let chunk = Bytes::from(vec![7; 16 * 1024]);
    loop {
        stream.reserve_capacity(chunk.len());
        let Some(Ok(room)) = poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
        let part = chunk.slice(..room.min(chunk.len()));
        let n = part.len();
        if stream.send_data(part, false).is_err() {
            return;
        }
        sent.send_modify(|s| *s += n);
    }
}

/// The ends of a stream that nobody reads: kept, so that the stream stays open.
type Kept = (Option<SendStream<Bytes>>, RecvStream, RecvStream);

/// Opens `n` streams that one end floods and the other does not read, and comes back when each has
/// taken all that it may.
async fn neglect(pair: &mut Pair, n: usize, upload: bool) -> Vec<(Kept, watch::Receiver<usize>)> {
    let mut all = Vec::new();
    for _ in 0..n {
        let (client, (send, receive)) = pair.open().await;
        let (flooding, quiet) = if upload { (client.send, send) } else { (send, client.send) };
        let (tx, rx) = watch::channel(0);
        tokio::spawn(flood(flooding, tx));
        all.push(((Some(quiet), client.receive, receive), rx));
    }
    for (_, sent) in &mut all {
        sent.wait_for(|s| *s >= WINDOWS.stream as usize).await.unwrap();
    }
    all
}

async fn neglected_streams_stall_no_other(n: usize, upload: bool) {
    let mut pair = pair().await;
    let neglected = neglect(&mut pair, n, upload).await;
    let (mut client, mut server) = pair.open().await;
    // Several windows, there and back.
    echo((&mut client.send, &mut client.receive), (&mut server.0, &mut server.1), 4_000_000).await;
    for (_, sent) in &neglected {
        assert_eq!(*sent.borrow(), WINDOWS.stream as usize, "a stream took more than its window");
    }
}

#[tokio::test]
async fn five_neglected_downloads_stall_no_other() {
    neglected_streams_stall_no_other(5, false).await;
}

#[tokio::test]
async fn five_neglected_uploads_stall_no_other() {
    neglected_streams_stall_no_other(5, true).await;
}

#[tokio::test]
async fn every_other_stream_neglected_both_ways_stalls_none() {
    let all_but_one = WINDOWS.streams as usize - 1;
    neglected_streams_stall_no_other(all_but_one, true).await;
    neglected_streams_stall_no_other(all_but_one, false).await;
}

#[tokio::test]
async fn a_neglected_stream_goes_on_when_it_is_read() {
    let mut pair = pair().await;
    let mut neglected = neglect(&mut pair, 1, false).await;
    let ((_, receive_end, _), sent) = &mut neglected[0];
    let more = WINDOWS.stream as usize * 4;
    let got = receive(receive_end, more).await;
    assert!(got.len() >= more);
    assert!(*sent.borrow() >= more);
}

/// Credit that came with data which nobody read returns to the connection when the stream ends.
#[tokio::test]
async fn abandoned_streams_leave_the_connection_its_window() {
    let mut pair = pair().await;
    for upload in [true, false] {
        // More than the connection's window in all.
        for _ in 0..WINDOWS.streams + 8 {
            drop(neglect(&mut pair, 1, upload).await);
        }
    }
    let (mut client, mut server) = pair.open().await;
    echo((&mut client.send, &mut client.receive), (&mut server.0, &mut server.1), 4_000_000).await;
}
