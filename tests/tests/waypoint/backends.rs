//! Endpoints that break the rules: whoever has asked them gets an answer that says so, and nobody else notices.

use crate::scene::{PORT, Played, read_until};
use culvert_tests::{Ask, Mesh, SOON};
use std::{thread, time::Duration};
use testbed::{Serve, Sock, eventually};

const OK: &str = "HTTP/1.1 200 OK\r\n";

fn ask(p: &Played) -> Sock {
    let client = p.raw();
    ask_again(&client);
    client
}

fn ask_again(client: &Sock) {
    client.write(format!("GET / HTTP/1.1\r\nhost: played:{PORT}\r\n\r\n").as_bytes()).unwrap();
}

/// The endpoint's end of a connection on which it has been asked.
fn asked(p: &Played) -> Sock {
    let app = p.accept();
    read_until(&app, "\r\n\r\n");
    app
}

fn is_well(p: &Played) {
    let client = ask(p);
    let well = format!("{OK}content-length: 4\r\nconnection: close\r\n\r\nwell");
    asked(p).write(well.as_bytes()).unwrap();
    read_until(&client, "\r\n\r\nwell");
    let log = p.waypoint.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn an_answer_that_cannot_be_read_is_an_answer_of_503() {
    let p = Played::new("wp-bad-answers", "http", Serve::Manual);
    let long = "a".repeat(1 << 20);
    let many: String = (0..10_000).map(|n| format!("x-{n}: {n}\r\n")).collect();
    for (what, bytes) in [
        ("HTTP/2", b"\0\0\0\x04\0\0\0\0\0".to_vec()),
        ("another protocol", b"SSH-2.0-server\r\n".to_vec()),
        ("two lengths", format!("{OK}content-length: 2\r\ncontent-length: 3\r\n\r\nabc").into()),
        ("a negative length", format!("{OK}content-length: -1\r\n\r\n").into()),
        ("NUL in a header", format!("{OK}x: a\0b\r\n\r\n").into()),
        ("no status", b"HTTP/1.1 OK\r\n\r\n".to_vec()),
        ("a head of a MiB", format!("{OK}x: {long}\r\n\r\n").into()),
        ("10,000 fields", format!("{OK}{many}\r\n").into()),
    ] {
        let client = ask(&p);
        // Whoever has read enough does not read the rest.
        let _ = asked(&p).write(&bytes);
        let said = read_until(&client, "\r\n\r\n");
        assert!(said.starts_with("HTTP/1.1 503"), "{what}: {said}");
        is_well(&p);
    }
}

#[test]
fn what_follows_an_answer_is_nobodys_answer() {
    let p = Played::new("wp-poison", "http", Serve::Manual);
    let client = ask(&p);
    let poison = format!("{OK}content-length: 6\r\n\r\npoison");
    let app = asked(&p);
    app.write(format!("{OK}content-length: 4\r\n\r\ngood{poison}").as_bytes()).unwrap();
    let said = read_until(&client, "\r\n\r\ngood");
    assert!(!said.contains("poison"), "{said}");
    ask_again(&client);
    asked(&p).write(format!("{OK}content-length: 4\r\n\r\nnext").as_bytes()).unwrap();
    let said = read_until(&client, "next");
    assert!(said.ends_with("\r\n\r\nnext") && !said.contains("poison"), "{said}");
    is_well(&p);
}

#[test]
fn of_interim_answers_without_number_some_go_on() {
    let p = Played::new("wp-storm", "http", Serve::Manual);
    let client = ask(&p);
    let app = asked(&p);
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n".repeat(1000);
    let last = format!("{OK}content-length: 4\r\nconnection: close\r\n\r\nlast");
    app.write(format!("{hints}{last}").as_bytes()).unwrap();
    let said = read_until(&client, "\r\n\r\nlast");
    assert_eq!(said.matches("HTTP/1.1 200").count(), 1, "{said}");
    let interim = said.matches("HTTP/1.1 103").count();
    assert_eq!(interim, 16, "what is passed on of one request's");
    is_well(&p);
}

#[test]
fn an_answer_without_an_end_waits_for_its_reader_and_ends_with_it() {
    let p = Played::new("wp-endless", "http", Serve::Manual);
    let client = ask(&p);
    let app = asked(&p);
    app.write(format!("{OK}transfer-encoding: chunked\r\n\r\n").as_bytes()).unwrap();
    read_until(&client, "\r\n\r\n");
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x1_0000));
    // Nobody reads: what is on its way is what sockets and windows hold.
    let patient = app.within(Duration::from_secs(3));
    let held = (0..4096).take_while(|_| patient.write(chunk.as_bytes()).is_ok()).count();
    assert!(held < 1024, "{held} chunks of 64 KiB went nowhere");
    client.reset().unwrap();
    eventually(SOON, || match app.within(Duration::from_secs(1)).read_exact(1) {
        Err(e) if e.kind() != "timeout" => Ok(()),
        other => anyhow::bail!("{other:?}"),
    })
    .unwrap();
    is_well(&p);
}

#[test]
fn a_head_that_comes_byte_by_byte_is_waited_for_as_long_as_the_route_says() {
    let p = Played::new("wp-trickle", "http", Serve::Manual);
    p.mesh.apply(
        "virtualservice-played",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{ namespace: default, name: played }}\n\
             spec: {{ hosts: [played], http: [{{ timeout: 1s, \
             route: [{{ destination: {{ host: played, port: {{ number: {PORT} }} }} }}] }}] }}\n"
        ),
    );
    let slow = format!("{OK}x: {}", "a".repeat(40));
    // Until the route is there, nobody says how long.
    eventually(SOON, || {
        let client = ask(&p);
        let app = asked(&p);
        thread::scope(|s| {
            s.spawn(|| {
                for byte in slow.bytes() {
                    if app.write(&[byte]).is_err() {
                        break;
                    }
                    thread::sleep(Duration::from_millis(100));
                }
                let _ = app.reset();
            });
            let said = read_until(&client, "\r\n\r\n");
            anyhow::ensure!(said.starts_with("HTTP/1.1 504"), "{said}");
            Ok(())
        })
    })
    .unwrap();
    let client = ask(&p);
    asked(&p).write(format!("{OK}content-length: 4\r\n\r\nwell").as_bytes()).unwrap();
    read_until(&client, "\r\n\r\nwell");
}

#[test]
fn an_endpoint_of_http_1_where_http_2_is_declared_is_an_answer_of_503() {
    let p = Played::new("wp-not-http2", "http2", Serve::Manual);
    let refusal = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    thread::scope(|s| {
        // As often as it is tried.
        s.spawn(|| {
            while let Ok(app) = p.listener.accept(Duration::from_secs(5)) {
                let _ = app.write(refusal.as_bytes());
            }
        });
        let said = read_until(&ask(&p), "\r\n\r\n");
        assert!(said.starts_with("HTTP/1.1 503"), "{said}");
    });
    let log = p.waypoint.log();
    assert!(!log.contains("panicked"), "{log}");
}

/// What is left of a request is on its connection still: the next would be read as a part of it.
#[test]
fn a_connection_whose_request_was_answered_before_its_end_carries_no_other() {
    let p = Played::new("wp-answered-early", "http", Serve::Manual);
    let client = p.raw();
    let head = format!("POST / HTTP/1.1\r\nhost: played:{PORT}\r\ncontent-length: 10\r\n\r\n");
    client.write(format!("{head}12345").as_bytes()).unwrap();
    let app = asked(&p);
    app.write(format!("{OK}content-length: 5\r\n\r\nearly").as_bytes()).unwrap();
    read_until(&client, "\r\n\r\nearly");
    // On a connection of its own, which the application takes.
    is_well(&p);
    drop((client, app));
    is_well(&p);
}

/// What follows it is no answer to anybody.
#[test]
fn a_switch_of_protocols_that_nobody_asked_for_is_an_answer_of_503() {
    let p = Played::new("wp-unasked-101", "http", Serve::Manual);
    let switched =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n";
    let behind = format!("{OK}content-length: 6\r\n\r\npoison");
    for bytes in [switched.to_owned(), format!("{switched}{behind}")] {
        let client = ask(&p);
        let app = asked(&p);
        app.write(bytes.as_bytes()).unwrap();
        let said = read_until(&client, "\r\n\r\n");
        assert!(said.starts_with("HTTP/1.1 503"), "{said}");
        // On the connection of either end.
        is_well(&p);
        drop((client, app));
        is_well(&p);
    }
}

/// Whoever answers at an endpoint's address must be who lives there.
#[test]
fn an_endpoint_with_anothers_certificate_is_sent_nothing() {
    use scripted::{
        pki::{Pki, good_leaf},
        tls::{self, H2},
    };
    use tokio::io::AsyncReadExt as _;
    let mesh = Mesh::new("wp-impostor");
    let (mallory, client) = (mesh.pod(1, "played"), mesh.enrolled_pod(2, "client"));
    let service = mesh.service_of("played", "http", PORT, PORT, &[&mallory]);
    mesh.announce(&mallory);
    mesh.apply(
        "destinationrule-played",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: { namespace: default, name: played }\nspec: { host: played, trafficPolicy: { \
         connectionPool: { tcp: { connectTimeout: 1s } } } }\n",
    );
    let waypoint = mesh.waypoint(2, "waypoint");
    mesh.use_waypoint(Some("waypoint"));
    mesh.bound(&service, Some("waypoint"));
    let (certificate, key) = mesh.control.authority();
    let pki = Pki::from_pem("cluster.local", &certificate, &key);
    let at = std::net::SocketAddr::new(mallory.ipv4().into(), 15008);
    let listener = mallory.inside(|| Ok(std::net::TcpListener::bind(at)?)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("http://played:{PORT}/");
    for (identity, is_it) in [(client.identity(), false), (mallory.identity(), true)] {
        let listener = listener.try_clone().unwrap();
        let config = tls::server_config(pki.odd(&good_leaf(&identity)), H2);
        let heard = std::thread::scope(|scope| {
            let asking = scope.spawn(|| Ask::get(&url).from(&client));
            let heard = runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                // Every attempt, until one is taken for good or all have failed.
                let serving = async {
                    loop {
                        let (tcp, _) = listener.accept().await.unwrap();
                        let Ok(mut tls) = tls::accept(tcp, config.clone()).await else { continue };
                        let mut first = [0; 1];
                        if tls.read_exact(&mut first).await.is_ok() {
                            return Some(first);
                        }
                    }
                };
                let answered = async {
                    while !asking.is_finished() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::select! {
                    heard = serving => heard,
                    () = answered => None,
                }
            });
            let answer = asking.join().unwrap().unwrap();
            assert_eq!(answer.status, 503, "{identity}: {answer:?}");
            heard
        });
        assert_eq!(heard.is_some(), is_it, "{identity}: {heard:?}");
    }
    let log = waypoint.access_log();
    let why = |l: &serde_json::Value| l["response_code_details"].to_string();
    assert!(log.iter().any(|l| why(l).contains("was expected")), "{log:?}");
}
