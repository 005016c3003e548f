//! Who may speak to whom: each end refuses a peer that is not who it must be, and says why.

use crate::pair::{connect, connect_to, echo, pair_of, raw_pair, serve};
use hbone::{ClientError, Expected, ServerError, accept, handshake};
use identity::Certified;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::{ClientConfig, pki_types::ServerName};
use scripted::{
    pki::{HOUR, Pki, leaf},
    tls::{client_config, hello_of_tls_1_2},
};
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::SystemTime,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

#[tokio::test]
async fn both_ends_learn_who_the_other_is() {
    let pki = Pki::new("cluster.local");
    let (near, far) = raw_pair();
    let (client, server) = (pki.certified("client"), pki.certified("server"));
    let (near, far) =
        tokio::join!(connect(near, &client, &server), accept(far, server.server.clone()));
    assert_eq!(near.unwrap().0.peer, pki.id("server"));
    assert_eq!(far.unwrap().peer, pki.id("client"));
}

#[tokio::test]
async fn a_server_of_another_identity_is_refused_by_the_client() {
    let pki = Pki::new("cluster.local");
    let (near, far) = raw_pair();
    let _server = serve(far, &pki.certified("server"));
    let expected = Expected(vec![pki.id("reviews"), pki.id("ratings")]);
    match handshake(near, &pki.certified("client"), &expected).await.map(drop) {
        Err(ClientError::OtherIdentity { got, expected: e }) => {
            assert_eq!(got, pki.id("server"));
            assert_eq!(e, expected.0);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_nobody_expects_anything_of_is_refused() {
    let pki = Pki::new("cluster.local");
    let (near, far) = raw_pair();
    let _server = serve(far, &pki.certified("server"));
    let refused = handshake(near, &pki.certified("client"), &Expected(Vec::new())).await.map(drop);
    assert!(matches!(refused, Err(ClientError::OtherIdentity { .. })));
}

/// The same name, under another root.
#[tokio::test]
async fn a_server_of_the_same_name_by_another_authority_is_refused() {
    let (pki, impostor) = (Pki::new("cluster.local"), Pki::new("cluster.local"));
    let (near, far) = raw_pair();
    let server = impostor.certified("server");
    let _server = serve(far, &server);
    let refused = connect(near, &pki.certified("client"), &server).await.map(drop);
    assert!(matches!(refused, Err(ClientError::Tls(_))), "{refused:?}");
}

#[tokio::test]
async fn a_server_whose_certificate_has_expired_is_refused() {
    let pki = Pki::new("cluster.local");
    let (near, far) = raw_pair();
    let server = pki.certified_from("server", SystemTime::now() - HOUR * 2, HOUR);
    let _server = serve(far, &server);
    let refused = connect(near, &pki.certified("client"), &server).await.map(drop);
    assert!(matches!(&refused, Err(ClientError::Tls(e)) if says(e, "xpired")), "{refused:?}");
}

#[tokio::test]
async fn a_server_without_http2_is_refused() {
    let pki = Pki::new("cluster.local");
    let server = pki.certified("server");
    let mut config = rustls::ServerConfig::clone(&server.server);
    config.alpn_protocols.clear();
    let (near, far) = raw_pair();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let client = pki.certified("client");
    let (refused, _accepted) = tokio::join!(connect(near, &client, &server), acceptor.accept(far));
    assert!(matches!(refused.map(drop), Err(ClientError::Alpn)));
}

fn says(e: &impl std::fmt::Display, what: &str) -> bool {
    e.to_string().contains(what)
}

fn presenting(pki: &Pki, params: &CertificateParams) -> Arc<ClientConfig> {
    client_config(Some(pki.odd(params)), &[b"h2"])
}

/// Connects as `config` says, and asks for a stream; what the server made of it.
async fn try_as(config: Arc<ClientConfig>, server: &Certified) -> Result<(), ServerError> {
    let (near, far) = raw_pair();
    let server = accept(far, server.server.clone());
    let client = async {
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
        // A client in TLS 1.3 is done before the server has seen its certificate.
        let mut tls = TlsConnector::from(config).connect(name, near).await?;
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        let mut first = [0; 9];
        tls.read_exact(&mut first).await.map(|_| tls)
    };
    let (accepted, client) = tokio::join!(server, client);
    assert_eq!(accepted.is_ok(), client.is_ok(), "both see the same");
    accepted.map(drop)
}

#[tokio::test]
async fn clients_that_are_nobody_are_refused_and_the_server_goes_on() {
    let (pki, other) = (Pki::new("cluster.local"), Pki::new("elsewhere.local"));
    let impostor = Pki::new("cluster.local");
    let server = pki.certified("server");
    let now = SystemTime::now();
    let id = pki.id("client").to_string();
    let good = || leaf(&[&id], now - HOUR, HOUR * 2);

    // One that was there before, and is to notice nothing.
    let mut bystander = pair_of(&pki.certified("client"), &server).await;
    let (mut near, mut far) = bystander.open().await;

    let several = [id.as_str(), "spiffe://cluster.local/ns/ns/sa/other"];
    let mut dns = leaf(&[], now - HOUR, HOUR * 2);
    dns.subject_alt_names = vec![SanType::DnsName("client.ns".try_into().unwrap())];
    let mut server_only = good();
    server_only.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let own_key = KeyPair::generate().unwrap();
    let self_signed = vec![good().self_signed(&own_key).unwrap().der().clone()];
    let odd_id = |uri: &str| presenting(&pki, &leaf(&[uri], now - HOUR, HOUR * 2));

    type Case<'a> = (&'a str, Arc<ClientConfig>, &'a str);
    let cases: Vec<Case<'_>> = vec![
        ("no certificate", client_config(None, &[b"h2"]), "no certificates"),
        (
            "another trust domain",
            presenting(&other, &leaf(&[&other.id("client").to_string()], now - HOUR, HOUR * 2)),
            "no roots",
        ),
        ("another authority", presenting(&impostor, &good()), "BadSignature"),
        // By an authority that is trusted, but not for that domain.
        (
            "our authority for another domain",
            odd_id("spiffe://elsewhere.local/ns/ns/sa/client"),
            "no roots",
        ),
        ("self-signed", client_config(Some((self_signed, own_key)), &[b"h2"]), "UnknownIssuer"),
        (
            "two URI SANs",
            presenting(&pki, &leaf(&several, now - HOUR, HOUR * 2)),
            "more than one URI",
        ),
        ("no SAN", presenting(&pki, &leaf(&[], now - HOUR, HOUR * 2)), "no SPIFFE id"),
        ("a DNS name only", presenting(&pki, &dns), "no SPIFFE id"),
        ("another scheme", odd_id("https://cluster.local/ns/ns/sa/client"), "not spiffe://"),
        ("a longer path", odd_id("spiffe://cluster.local/ns/ns/sa/client/extra"), "not spiffe://"),
        ("an escaped slash", odd_id("spiffe://cluster.local/ns/ns/sa/a%2fb"), "character outside"),
        ("no trust domain", odd_id("spiffe:///ns/ns/sa/client"), "trust domain"),
        ("expired", presenting(&pki, &leaf(&[&id], now - HOUR * 2, HOUR)), "xpired"),
        ("not yet valid", presenting(&pki, &leaf(&[&id], now + HOUR, HOUR)), "NotValidYet"),
        ("a certificate for servers", presenting(&pki, &server_only), "refused"),
        (
            "ALPN http/1.1",
            client_config(Some(pki.odd(&good())), &[b"http/1.1"]),
            "any known protocol",
        ),
        ("no ALPN", client_config(Some(pki.odd(&good())), &[]), "ALPN"),
    ];
    for (what, config, why) in cases {
        match try_as(config, &server).await {
            Ok(()) => panic!("{what}: was let in"),
            Err(e) => assert!(says(&e, why), "{what}: {e}"),
        }
        let fine = presenting(&pki, &good());
        try_as(fine, &server).await.unwrap_or_else(|e| panic!("after {what}: {e}"));
        echo((&mut near.send, &mut near.receive), (&mut far.0, &mut far.1), 1000).await;
    }
    assert!(matches!(
        bystander.client.open(connect_to("10.0.0.2:0")).await.map(drop),
        Err(ClientError::Refused(_))
    ));
}

/// By hand, because the client's library is built without TLS 1.2.
#[tokio::test]
async fn a_client_with_tls_1_2_alone_is_refused() {
    let pki = Pki::new("cluster.local");
    let server = pki.certified("server");
    let (mut near, far) = raw_pair();
    let record = hello_of_tls_1_2();
    let (refused, answer) = tokio::join!(accept(far, server.server.clone()), async {
        near.write_all(&record).await.unwrap();
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        answer
    });
    assert!(matches!(refused.map(drop), Err(ServerError::Tls(_))));
    // A fatal alert: protocol_version.
    assert_eq!(answer[5..], [2, 70]);
}

#[tokio::test]
async fn what_is_no_tls_is_refused() {
    let pki = Pki::new("cluster.local");
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0; 64]]
    {
        let (mut near, far) = raw_pair();
        near.write_all(nonsense).await.unwrap();
        near.shutdown().await.unwrap();
        let refused = accept(far, pki.certified("server").server.clone()).await.map(drop);
        assert!(matches!(refused, Err(ServerError::Tls(_))));
    }
}
