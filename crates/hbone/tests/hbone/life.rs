//! A connection's end: the certificate's, the peer's, the program's.

use crate::pair::{
    Server, assert_ended, connect, connect_to, echo, pair, pair_of, raw_pair, serve,
};
use bytes::Bytes;
use h2::{client, server};
use http::Response;
use rustls::pki_types::ServerName;
use scripted::pki::{HOUR, Pki};
use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Long enough for a handshake on a busy machine; certificates count in whole seconds.
const SHORT: Duration = Duration::from_secs(4);

/// The server does not rely on its client to leave when the client's certificate ends.
#[tokio::test]
async fn the_server_ends_what_an_expired_certificate_made() {
    let pki = Pki::new("cluster.local");
    let certified = pki.certified_from("client", SystemTime::now() - HOUR, HOUR + SHORT);
    let (near, far) = raw_pair();
    let Server { mut streams, ended, .. } = serve(far, &pki.certified("server"));
    // A client that knows nothing of expiry.
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    let tls = TlsConnector::from(certified.client.clone()).connect(name, near).await.unwrap();
    let (requests, connection) = client::handshake(tls).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut requests = requests.ready().await.unwrap();
    let (response, _send) = requests.send_request(connect_to("10.0.0.2:80"), false).unwrap();
    let (_server_send, _server_receive) = streams.recv().await.unwrap().accept(None).unwrap();
    let mut receive = response.await.unwrap().into_body();
    ended.await.unwrap().unwrap();
    assert!(SystemTime::now() >= certified.not_after, "it ended before its time");
    let seen = receive.data().await;
    assert!(seen.is_none_or(|chunk| chunk.is_err()), "the stream outlived its connection");
    drop(connection);
}

/// Nor the client on its server, whichever of the two certificates is the shorter.
#[tokio::test]
async fn the_client_ends_what_an_expired_certificate_made() {
    for own in [true, false] {
        let pki = Pki::new("cluster.local");
        let short = |name| pki.certified_from(name, SystemTime::now() - HOUR, HOUR + SHORT);
        let (certified, serving) = match own {
            true => (short("client"), pki.certified("server")),
            false => (pki.certified("client"), short("server")),
        };
        let (near, far) = raw_pair();
        let acceptor = TlsAcceptor::from(serving.server.clone());
        // A server that knows nothing of expiry.
        let server = tokio::spawn(async move {
            let tls = acceptor.accept(far).await.unwrap();
            let mut connection = server::handshake(tls).await.unwrap();
            let mut open = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let send: h2::SendStream<Bytes> =
                    respond.send_response(Response::new(()), false).unwrap();
                open.push((request, send));
            }
        });
        let (connection, driver) = connect(near, &certified, &serving).await.unwrap();
        let mut stream = connection.open(connect_to("10.0.0.2:80")).await.unwrap();
        driver.await.unwrap();
        let ends = certified.not_after.min(serving.not_after);
        assert!(SystemTime::now() >= ends, "it ended before its time");
        let seen = stream.receive.data().await;
        assert!(seen.is_none_or(|chunk| chunk.is_err()), "the stream outlived its connection");
        assert!(connection.open(connect_to("10.0.0.2:80")).await.is_err());
        server.await.unwrap();
    }
}

/// A renewal elsewhere does not touch what the earlier certificate made.
#[tokio::test]
async fn a_newer_certificate_leaves_older_connections_alone() {
    let pki = Pki::new("cluster.local");
    let server = pki.certified("server");
    let mut old = pair_of(&pki.certified("client"), &server).await;
    let (mut near, mut far) = old.open().await;
    let mut new = pair_of(&pki.certified("client"), &pki.certified("server")).await;
    let (mut near_new, mut far_new) = new.open().await;
    echo((&mut near.send, &mut near.receive), (&mut far.0, &mut far.1), 1000).await;
    echo((&mut near_new.send, &mut near_new.receive), (&mut far_new.0, &mut far_new.1), 1000).await;
}

#[tokio::test]
async fn a_draining_server_finishes_what_is_open() {
    let mut pair = pair().await;
    let (mut near, mut far) = pair.open().await;
    pair.server.drain.send(true).unwrap();
    echo((&mut near.send, &mut near.receive), (&mut far.0, &mut far.1), 1_000_000).await;
    near.send.send_data(Bytes::new(), true).unwrap();
    far.0.send_data(Bytes::new(), true).unwrap();
    assert_ended(&mut far.1).await;
    assert_ended(&mut near.receive).await;
    drop((near, far));
    pair.server.ended.await.unwrap().unwrap();
    pair.driver.await.unwrap();
}
