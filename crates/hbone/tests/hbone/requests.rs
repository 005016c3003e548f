//! What is not a CONNECT to an address is refused, and the connection goes on.

use crate::{
    pair::{DESTINATION, connect_to, echo, pair},
    raw::{Raw, connect_frame},
};
use hbone::ClientError;
use http::{Method, Request, StatusCode};
use scripted::frames::{HEADERS, RST_STREAM, headers};

#[tokio::test]
async fn other_methods_are_refused() {
    let mut pair = pair().await;
    for method in [Method::GET, Method::POST, Method::OPTIONS, Method::PUT] {
        let request =
            Request::builder().method(method).uri("https://10.0.0.2:9080/quit").body(()).unwrap();
        let refused = pair.client.open(request).await.map(drop);
        assert!(
            matches!(refused, Err(ClientError::Refused(StatusCode::METHOD_NOT_ALLOWED))),
            "{refused:?}"
        );
    }
    let (mut client, mut server) = pair.open().await;
    echo((&mut client.send, &mut client.receive), (&mut server.0, &mut server.1), 1000).await;
}

#[tokio::test]
async fn authorities_that_are_no_destination_are_refused() {
    let mut pair = pair().await;
    for authority in [
        "10.0.0.2:0",
        "10.0.0.2:65536",
        "10.0.0.2",
        "[fe80::1]",
        "user@10.0.0.2:80",
        "10.0.0.256:80",
    ] {
        let Ok(uri) = authority.parse::<http::Uri>() else { continue };
        let request = Request::builder().method(Method::CONNECT).uri(uri).body(()).unwrap();
        let refused = pair.client.open(request).await.map(drop);
        assert!(
            matches!(refused, Err(ClientError::Refused(StatusCode::BAD_REQUEST))),
            "{authority}: {refused:?}"
        );
    }
    let (mut client, mut server) = pair.open().await;
    echo((&mut client.send, &mut client.receive), (&mut server.0, &mut server.1), 1000).await;
}

#[tokio::test]
async fn odd_connects_are_refused() {
    const METHOD: (&str, &str) = (":method", "CONNECT");
    const AUTHORITY: (&str, &str) = (":authority", "10.0.0.2:80");
    let odd: [&[(&str, &str)]; 8] = [
        &[METHOD],
        &[METHOD, (":authority", "")],
        &[METHOD, (":authority", "nonsense")],
        &[METHOD, (":authority", "10.0.0.2:80"), AUTHORITY],
        &[METHOD, (":protocol", "websocket"), (":scheme", "https"), (":path", "/x"), AUTHORITY],
        &[METHOD, (":protocol", "connect-udp"), AUTHORITY],
        &[METHOD, (":scheme", "https"), (":path", "/x"), AUTHORITY],
        &[METHOD, AUTHORITY, ("connection", "close")],
    ];
    let mut raw = Raw::connect().await;
    let mut stream = 1;
    for list in odd {
        raw.send(&headers(stream, list)).await;
        let answer = raw
            .read
            .answer(stream)
            .await
            .unwrap_or_else(|| panic!("{list:?} ended the connection"));
        // Malformed by HTTP/2's own rules is a reset, by HBONE's a 400.
        let refused = match answer.kind {
            RST_STREAM => true,
            HEADERS => answer.status() == Some(400),
            _ => false,
        };
        assert!(refused, "{list:?}: {:?}", answer.status());
        stream += 2;
        raw.send(&connect_frame(stream)).await;
        let accepted = raw.server.streams.recv().await.expect("the good one").accept(None);
        assert_eq!(raw.read.answer(stream).await.and_then(|f| f.status()), Some(200));
        drop(accepted.unwrap());
        stream += 2;
    }
    assert!(raw.server.streams.try_recv().is_err(), "only the good ones are handed on");
}

#[tokio::test]
async fn a_header_list_over_the_limit_is_refused() {
    let mut pair = pair().await;
    let mut request = connect_to(DESTINATION);
    request.headers_mut().insert("baggage", "x".repeat(20_000).parse().unwrap());
    let refused = pair.client.open(request).await.map(drop);
    assert!(
        matches!(refused, Err(ClientError::Refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE))),
        "{refused:?}"
    );
    let (mut client, mut server) = pair.open().await;
    echo((&mut client.send, &mut client.receive), (&mut server.0, &mut server.1), 1000).await;
}
