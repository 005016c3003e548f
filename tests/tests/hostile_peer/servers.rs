//! Servers that the agent dials and that mean no good: the application's connection ends with a reset and a reason,
//! and nobody else's does.

use crate::den::{Den, PORT};
use culvert_tests::at;
use scripted::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, HEADERS, MAX_CONCURRENT_STREAMS, PING,
    PUSH_PROMISE, block, bomb, frame, goaway, headers, long_headers, reset, settings,
};
use scripted::pki::{Pki, Presented, good_leaf};
use scripted::tls::{self, H2};
use scripted::wire::{Wire, settings_ack};
use std::sync::atomic::{AtomicUsize, Ordering};
use testbed::{ConnectOpts, PuppetError};
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::server::TlsStream;

type Served = Wire<TlsStream<tokio::net::TcpStream>>;

impl Den {
    /// Makes mallory what clients reach by HBONE.
    fn announce(&self) -> tokio::net::TcpListener {
        self.mesh.announce(&self.mallory);
        self.listener()
    }

    /// The client's attempt to reach mallory while `script` answers.
    fn try_it(&self, script: impl Future<Output = ()>) -> Result<(), PuppetError> {
        let (client, to) = (self.client.clone(), at(self.mallory.ipv4(), PORT));
        // Whatever arrives first: what counts is that the end is no clean one.
        let attempt = std::thread::spawn(move || {
            let sock = client.puppet().unwrap().connect(to, ConnectOpts::default())?;
            sock.write(b"echo\nping")?;
            sock.read_to_end().map(drop)
        });
        self.block_on(async {
            let ended = async {
                while !attempt.is_finished() {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            };
            tokio::pin!(ended);
            tokio::select! {
                () = &mut ended => {}
                // What the script has begun stays until the client knows.
                () = async { script.await; std::future::pending().await } => {}
            }
        });
        attempt.join().unwrap()
    }

    /// It ends in a reset, and the agent says why.
    #[track_caller]
    fn fails(&self, what: &str, why: &str, script: impl Future<Output = ()>) {
        let before = self.mesh.agent(1).access_log().len();
        let begun = std::time::Instant::now();
        let refused = self.try_it(script).expect_err(what);
        assert_eq!(refused.kind(), "ECONNRESET", "{what}: {refused}");
        let to = format!("dst.addr=\"{}\"", at(self.mallory.ipv4(), PORT));
        testbed::eventually(culvert_tests::SOON, || {
            let log = self.mesh.agent(1).access_log();
            let of = log[before..].iter().find(|l| l.contains(&to) && l.contains("error="));
            let line = anyhow::Context::with_context(of, || format!("{what}: no line"))?;
            anyhow::ensure!(line.contains(why), "{what}: {line}");
            Ok(())
        })
        .unwrap();
        self.undisturbed(what);
        let grown = self.mesh.agent(1).resident_kib();
        println!("{what}: {grown} KiB resident, after {:?}", begun.elapsed());
    }
}

fn good(den: &Den) -> Presented {
    den.pki.odd(&good_leaf(&den.identity()))
}

#[test]
fn servers_that_are_somebody_else_are_not_spoken_to() {
    let den = Den::new("impostors");
    let listener = den.announce();
    let id = den.identity();
    let now = std::time::SystemTime::now();
    let hour = scripted::pki::HOUR;
    let other = "spiffe://cluster.local/ns/default/sa/client";
    let mut for_clients = good_leaf(&id);
    for_clients.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let mut no_uri = good_leaf(&id);
    no_uri.subject_alt_names =
        vec![rcgen::SanType::DnsName("mallory.default.svc".try_into().unwrap())];
    let own_key = rcgen::KeyPair::generate().unwrap();
    let self_signed = (vec![good_leaf(&id).self_signed(&own_key).unwrap().der().clone()], own_key);
    let (mut orphan, orphan_key) = den.pki.intermediate().odd(&good_leaf(&id));
    orphan.truncate(1);
    let uri = |u: &str| den.pki.odd(&good_leaf(u));
    let early = scripted::pki::leaf(&[&id], now + hour, hour * 2);
    let two = scripted::pki::leaf(&[&id, other], now - hour, hour * 2);
    let cases: Vec<(&str, Presented, &[&[u8]], &str)> = vec![
        ("another identity", den.pki.odd(&good_leaf(other)), H2, "was expected"),
        (
            "the same of another domain",
            den.pki.odd(&good_leaf("spiffe://elsewhere.local/ns/default/sa/mallory")),
            H2,
            "no roots",
        ),
        ("another authority", Pki::new("cluster.local").odd(&good_leaf(&id)), H2, "the same roots"),
        ("two identities", den.pki.odd(&two), H2, "more than one URI"),
        (
            "expired",
            den.pki.odd(&scripted::pki::leaf(&[&id], now - hour * 2, hour)),
            H2,
            "has run out",
        ),
        ("valid in an hour", den.pki.odd(&early), H2, "clocks agree"),
        ("no URI", den.pki.odd(&no_uri), H2, "no SPIFFE id"),
        (
            "NUL in the URI",
            uri("spiffe://cluster.local/ns/default/sa/mallory\0.x"),
            H2,
            "character",
        ),
        (
            "an upper case domain",
            uri("spiffe://Cluster.Local/ns/default/sa/mallory"),
            H2,
            "character",
        ),
        ("an escaped slash", uri("spiffe://cluster.local/ns/default/sa/a%2fb"), H2, "character"),
        ("self-signed", self_signed, H2, "the same roots"),
        ("an intermediate that is missing", (orphan, orphan_key), H2, "the same roots"),
        ("for clients", den.pki.odd(&for_clients), H2, "refused"),
        ("no ALPN", good(&den), &[], "ALPN"),
    ];
    let heard = AtomicUsize::new(0);
    for (what, presented, alpn, why) in cases {
        let config = tls::server_config(presented, alpn);
        den.fails(what, why, async {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(tls) = tls::accept(tcp, config).await else { return };
            let mut wire = Wire::new(tls);
            // Not a word of the application's, nor of HTTP/2.
            let first = wire.read.frame().await;
            heard.fetch_add(usize::from(first.is_some_and(|f| f.kind == DATA)), Ordering::Relaxed);
        });
    }
    assert_eq!(heard.load(Ordering::Relaxed), 0, "an impostor got data");
    // Other ends of the same road.
    den.fails("plain HTTP", "TLS", async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let _ = tcp.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
    });
    den.fails("an end at once", "TLS", async {
        drop(listener.accept().await.unwrap());
    });
    // Nobody there at all: the usual reasons are named.
    drop(listener);
    den.fails("nobody listens", "does a NetworkPolicy block HBONE port 15008?", async {});
    let listener = den.listener();
    // And with the right one it works, so that it was not for another reason.
    let config = tls::server_config(good(&den), H2);
    let mut through = false;
    let _ = den.try_it(async {
        let (mut wire, stream) = serve(&listener, config, &settings(&[])).await;
        wire.send(&frame(HEADERS, END_HEADERS, stream, &[0x88])).await.unwrap();
        through = wire.read.until(|f| f.kind == DATA).await.is_some();
        wire.send(&reset(stream, 8)).await.unwrap();
    });
    assert!(through, "the right identity was refused");
}

/// Up to the client's CONNECT: the connection, and that stream.
async fn serve(
    listener: &tokio::net::TcpListener,
    config: std::sync::Arc<rustls::ServerConfig>,
    first: &[u8],
) -> (Served, u32) {
    let tls = loop {
        let (tcp, _) = listener.accept().await.unwrap();
        // One that the client has given up meanwhile is none.
        if let Ok(tls) = tls::accept(tcp, config.clone()).await {
            break tls;
        }
    };
    let mut wire = Wire::server(tls, first).await.unwrap();
    wire.send(&settings_ack()).await.unwrap();
    let Frame { stream, .. } =
        wire.read.until(|f| f.kind == HEADERS).await.expect("the client asks for a stream");
    (wire, stream)
}

type Answers<'a> = Vec<(&'a str, &'a str, Box<dyn Fn(u32) -> Vec<u8> + 'a>)>;

#[test]
fn answers_that_break_the_rules_end_their_stream_or_connection() {
    let den = Den::new("bad-answers");
    let listener = den.announce();
    let ok = |stream| frame(HEADERS, END_HEADERS, stream, &[0x88]);
    let status = |s: &'static str| move |stream| headers(stream, &[(":status", s)]);
    let cases: Answers<'_> = vec![
        ("401", "policy refused", Box::new(status("401"))),
        ("503", "did not take the connection", Box::new(status("503"))),
        ("302", "302", Box::new(status("302"))),
        ("201, which is not 200", "201", Box::new(status("201"))),
        ("no status", "error=", Box::new(|s| headers(s, &[("x", "y")]))),
        ("a status of letters", "error=", Box::new(status("abc"))),
        (
            "two statuses",
            "error=",
            Box::new(|s| headers(s, &[(":status", "200"), (":status", "200")])),
        ),
        (
            "a line break",
            "error=",
            Box::new(|s| headers(s, &[(":status", "200"), ("x", "a\r\nb")])),
        ),
        ("a reset", "refused the stream", Box::new(|s| reset(s, 2))),
        (
            "headers of 20 KiB",
            "error=",
            Box::new(|s| {
                long_headers(s, &block(&[(":status", "200".to_owned()), ("x", "y".repeat(20_000))]))
            }),
        ),
        ("a bomb", "error=", Box::new(|s| long_headers(s, &bomb(&[(":status", "200")])))),
        (
            "ten thousand cookies",
            "error=",
            Box::new(|s| {
                let crumbs = (0..10_000).map(|i| ("set-cookie".to_owned(), format!("a{i}=b")));
                let all: Vec<_> = std::iter::once((":status".to_owned(), "200".to_owned()))
                    .chain(crumbs)
                    .collect();
                long_headers(s, &block(&all))
            }),
        ),
        (
            "CONTINUATION without end",
            "error=",
            Box::new(|s| {
                let first = frame(HEADERS, 0, s, &[0x88]);
                [first, frame(CONTINUATION, 0, s, &block(&[("x", "0123456789")])).repeat(50_000)]
                    .concat()
            }),
        ),
        (
            "a push",
            "error=",
            Box::new(|s| {
                frame(
                    PUSH_PROMISE,
                    END_HEADERS,
                    s,
                    &[&[0, 0, 0, 2][..], &block(&[(":method", "GET")])].concat(),
                )
            }),
        ),
        ("DATA before an answer", "error=", Box::new(|s| frame(DATA, 0, s, b"x"))),
        ("DATA of a stream that is not", "error=", Box::new(|_| frame(DATA, 0, 99, b"x"))),
        (
            "more than the window",
            "error=",
            Box::new(move |s| [ok(s), frame(DATA, 0, s, &[0; 16_000]).repeat(4_000)].concat()),
        ),
        (
            "padding longer than the frame",
            "error=",
            Box::new(move |s| [ok(s), frame(DATA, 8, s, &[255])].concat()),
        ),
        (
            "empty DATA",
            "error=",
            Box::new(move |s| [ok(s), frame(DATA, 0, s, &[]).repeat(100_000)].concat()),
        ),
        (
            "the end at once",
            "error=",
            Box::new(move |s| [ok(s), frame(DATA, END_STREAM, s, &[]), reset(s, 2)].concat()),
        ),
        (
            "GOAWAY that takes back what it answered",
            "error=",
            Box::new(move |s| [ok(s), goaway(0, 0)].concat()),
        ),
        (
            "a window beyond 2^31",
            "error=",
            Box::new(|_| {
                frame(scripted::frames::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]).repeat(2)
            }),
        ),
        ("a frame of 16 MB", "error=", Box::new(|s| frame(DATA, 0, s, &vec![0; (1 << 24) - 1]))),
        ("nonsense", "error=", Box::new(|_| vec![0xff; 10_000])),
    ];
    for (what, why, answer) in cases {
        let config = tls::server_config(good(&den), H2);
        den.fails(what, why, async {
            // A connection that broke before an answer is tried again, and breaks again.
            loop {
                let (mut wire, stream) = serve(&listener, config.clone(), &settings(&[])).await;
                // The client may hang up in the middle.
                let _ = wire.send(&answer(stream)).await;
                wire.read.to_the_end().await;
            }
        });
    }
}

/// A peer that goes away has not looked at the stream, so it may be tried again: three times, and not for ever.
#[test]
fn a_server_that_always_goes_away_is_tried_three_times() {
    let den = Den::new("goaway");
    let listener = den.announce();
    let dialled = AtomicUsize::new(0);
    den.fails("GOAWAY for ever", "error=", async {
        loop {
            let config = tls::server_config(good(&den), H2);
            let (mut wire, _) = serve(&listener, config, &settings(&[])).await;
            dialled.fetch_add(1, Ordering::Relaxed);
            // That it takes no more streams, then that it looked at none, again and again.
            let _ = wire.send(&settings(&[(MAX_CONCURRENT_STREAMS, 0)])).await;
            let _ = wire.send(&goaway(0, 0).repeat(1000)).await;
        }
    });
    assert_eq!(dialled.load(Ordering::Relaxed), 3);
    let refusals = AtomicUsize::new(0);
    den.fails("REFUSED_STREAM for ever", "error=", async {
        loop {
            let config = tls::server_config(good(&den), H2);
            let (mut wire, stream) = serve(&listener, config, &settings(&[])).await;
            refusals.fetch_add(1, Ordering::Relaxed);
            let _ = wire.send(&reset(stream, 7)).await;
        }
    });
    assert_eq!(refusals.load(Ordering::Relaxed), 3);
}

/// Every wait for a peer has an end.
#[test]
fn servers_that_keep_a_client_waiting_are_given_up() {
    let den = Den::new("waiting");
    let listener = den.announce();
    den.fails("TCP and no TLS", "did not end within 10s", async {
        let (_tcp, _) = listener.accept().await.unwrap();
        std::future::pending().await
    });
    den.fails("a CONNECT that is not answered", "did not answer the CONNECT within 10s", async {
        let config = tls::server_config(good(&den), H2);
        let (mut wire, _) = serve(&listener, config, &settings(&[])).await;
        wire.read.to_the_end().await;
    });
    den.fails("no stream allowed", "within 10s", async {
        let config = tls::server_config(good(&den), H2);
        let none = settings(&[(MAX_CONCURRENT_STREAMS, 0)]);
        let (tcp, _) = listener.accept().await.unwrap();
        let tls = tls::accept(tcp, config).await.unwrap();
        let mut wire = Wire::server(tls, &none).await.unwrap();
        wire.read.to_the_end().await;
    });
    den.fails("1xx without end", "within 10s", async {
        let config = tls::server_config(good(&den), H2);
        let (mut wire, stream) = serve(&listener, config, &settings(&[])).await;
        let early = headers(stream, &[(":status", "103")]);
        let Wire { write, read } = &mut wire;
        let storm = async {
            while write.write_all(&early).await.is_ok() && write.flush().await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(storm, read.to_the_end());
    });
    den.fails("PINGs instead of an answer", "within 10s", async {
        let config = tls::server_config(good(&den), H2);
        let (mut wire, _) = serve(&listener, config, &settings(&[])).await;
        let Wire { write, read } = &mut wire;
        let storm = async {
            while write.write_all(&frame(PING, 0, 0, &[0; 8])).await.is_ok()
                && write.flush().await.is_ok()
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(storm, read.to_the_end());
    });
}
