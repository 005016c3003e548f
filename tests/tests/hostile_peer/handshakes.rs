//! Clients that begin and do not go on, or begin something else.

use crate::den::Den;
use culvert_tests::SOON;
use scripted::frames::PREFACE;
use scripted::tls::{self, H2};
use scripted::wire::Wire;
use testbed::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Many at once, each at another point: all are given up, and nothing of them stays.
#[test]
fn clients_that_stall_are_given_up_wherever_they_stall() {
    let den = Den::new("stalled");
    let agent = den.mesh.agent(2);
    let before = agent.descriptors();
    let mut hello = vec![22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.extend([7; 100]);
    den.block_on(async {
        let mut silent = vec![];
        let mut spoken = vec![];
        // As many as one address may have under way, and a few less.
        for i in 0..30 {
            let mut tcp = den.tcp().unwrap();
            match i % 3 {
                // Nothing at all; the beginning of a record; of a ClientHello.
                0 => {}
                1 => tcp.write_all(&hello[..3]).await.unwrap(),
                _ => tcp.write_all(&hello).await.unwrap(),
            }
            silent.push(tcp);
        }
        for i in 0..30 {
            let mut wire = Wire::new(den.tls().await);
            // TLS and then nothing; half a preface.
            if i % 2 == 0 {
                wire.send(&PREFACE[..10]).await.unwrap();
            }
            spoken.push(wire);
        }
        // While all of them hold the line.
        den.undisturbed("while clients stall");
        for mut tcp in silent {
            // An alert may come first; then the end, by whichever kind of close.
            let _ = tcp.read_to_end(&mut vec![]).await;
        }
        for mut wire in spoken {
            wire.read.to_the_end().await;
        }
    });
    eventually(SOON, || {
        let now = agent.descriptors();
        anyhow::ensure!(now < before + 50, "{now} descriptors, {before} before");
        Ok(())
    })
    .unwrap();
    den.told(2, &["HBONE handshake failed", &den.mallory.ipv4().to_string(), "10s"]);
    den.undisturbed("after clients stalled");
}

#[test]
fn what_is_no_tls_and_no_http2_is_refused_at_once() {
    let den = Den::new("other-protocols");
    den.block_on(async {
        for nonsense in [
            &b"GET / HTTP/1.1\r\nHost: server\r\n\r\n"[..],
            PREFACE,
            // SOCKS5: no authentication.
            b"\x05\x01\x00",
            // PROXY protocol.
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
            &[0; 1000],
            // A record of more than TLS allows.
            &[22, 3, 1, 0xff, 0xff, 1],
        ] {
            let mut tcp = den.tcp().unwrap();
            tcp.write_all(nonsense).await.unwrap();
            tcp.shutdown().await.unwrap();
            let mut answer = vec![];
            let _ = tcp.read_to_end(&mut answer).await;
            assert!(answer.len() < 100, "{nonsense:?}: {} bytes", answer.len());
        }
        for preface in [
            &b"GET / HTTP/1.1\r\nHost: server\r\n\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
            b"CONNECT 10.0.0.1:80 HTTP/1.1\r\nHost: 10.0.0.1:80\r\n\r\n",
        ] {
            let mut tls = den.tls().await;
            tls.write_all(preface).await.unwrap();
            tls.flush().await.unwrap();
            let mut answer = vec![];
            let _ = tls.read_to_end(&mut answer).await;
            assert!(!answer.starts_with(b"HTTP/1"), "{answer:?}");
            assert!(answer.len() < 100, "{} bytes", answer.len());
        }
    });
    den.told(2, &["HBONE handshake failed", "HTTP/2"]);
    den.undisturbed("other protocols");
}

/// A ClientHello as rustls makes it, whose server name is then made into something else.
#[test]
fn server_names_that_are_none_end_their_handshake_alone() {
    let den = Den::new("server-names");
    let name = "absurd.example";
    let mut config = std::sync::Arc::unwrap_or_clone(tls::client_config(None, H2));
    config.enable_sni = true;
    let server = rustls::pki_types::ServerName::try_from(name).unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), server).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    let at = hello.windows(name.len()).position(|w| w == name.as_bytes()).unwrap();
    // RFC 6066, 3: length of the list, kind of the name, its length, the name.
    let odd = |range: std::ops::Range<usize>, bytes: &[u8]| {
        let mut odd = hello.clone();
        odd[range].copy_from_slice(bytes);
        odd
    };
    let end = at + name.len();
    for (what, hello) in [
        ("NULs", odd(at..end, &[0; 14])),
        ("no text", odd(at..end, &[0xff; 14])),
        ("dots alone", odd(at..end, &[b'.'; 14])),
        ("an address", odd(at..end, b"192.168.100.10")),
        ("a line break", odd(at..at + 2, b"\r\n")),
        ("no length", odd(at - 2..at, &[0, 0])),
        ("a length beyond the list", odd(at - 2..at, &[0, 15])),
        ("a length beyond everything", odd(at - 2..at, &[0xff, 0xff])),
        ("a kind that nobody has", odd(at - 3..at - 2, &[9])),
        ("an empty list", odd(at - 5..at - 3, &[0, 0])),
        ("a list beyond its extension", odd(at - 5..at - 3, &[0xff, 0xff])),
    ] {
        let answer = den.block_on(async {
            let mut tcp = den.tcp().unwrap();
            tcp.write_all(&hello).await.unwrap();
            tcp.shutdown().await.unwrap();
            let mut answer = vec![];
            let _ = tcp.read_to_end(&mut answer).await;
            answer
        });
        // An alert (21), or a ServerHello (22) to a client that then went away: names are not looked at.
        assert!(matches!(answer.first(), Some(21 | 22)), "{what}: {answer:x?}");
        den.undisturbed(what);
    }
}

/// The agent's own HTTP/1 (metrics, readiness) upgrades nothing and has no body to smuggle a request in.
#[test]
fn the_agents_own_http_is_not_upgraded() {
    let den = Den::new("upgrade");
    let ask = |request: &str| {
        use std::io::{Read as _, Write as _};
        den.mesh
            .agent(2)
            .node
            .inside(|| {
                let mut tcp = std::net::TcpStream::connect("127.0.0.1:15020")?;
                tcp.set_read_timeout(Some(SOON))?;
                tcp.write_all(request.as_bytes())?;
                let mut answer = String::new();
                tcp.read_to_string(&mut answer)?;
                Ok(answer)
            })
            .unwrap()
    };
    let host = "Host: x\r\nConnection: close\r\n";
    for request in [
        "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n".to_owned(),
        format!("CONNECT 10.0.0.1:80 HTTP/1.1\r\n{host}\r\n"),
        format!("POST /metrics HTTP/1.1\r\n{host}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        "GET /metrics HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: close\r\n\r\n".to_owned(),
    ] {
        let answer = ask(&request);
        assert!(!answer.contains(" 101 "), "{request}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), usize::from(!answer.is_empty()), "{answer}");
    }
    den.undisturbed("upgrades");
}
