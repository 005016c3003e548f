//! What is not HTTP, and what nobody said is.

use crate::scene::{PORT, Played, Scene, read_until};
use culvert_tests::{Ask, Mesh, SOON, dialogue};
use std::time::Duration;
use testbed::{ConnectOpts, Serve, eventually};

#[test]
fn bytes_of_a_tcp_port_go_both_ways_and_so_do_ends_and_resets() {
    let p = Played::new("wp-tcp", "tcp", Serve::Manual);
    let (client, app) = (p.raw(), p.accept());
    dialogue_of(&client, &app);
    client.shutdown_write().unwrap();
    assert_eq!(app.read_to_end().unwrap(), b"");
    app.write(b"after your end").unwrap();
    app.shutdown_write().unwrap();
    assert_eq!(client.read_to_end().unwrap(), b"after your end");

    let (client, app) = (p.raw(), p.accept());
    dialogue_of(&client, &app);
    client.reset().unwrap();
    assert_eq!(app.read_to_end().unwrap_err().kind(), "ECONNRESET");

    let (client, app) = (p.raw(), p.accept());
    dialogue_of(&client, &app);
    app.reset().unwrap();
    assert_eq!(client.read_to_end().unwrap_err().kind(), "ECONNRESET");

    let (client, app) = (p.raw(), p.accept());
    let sent = 20 << 20;
    let there = client.clone();
    let sending = std::thread::spawn(move || there.send_pattern(sent, 7));
    let got = app.recv_pattern(Some(sent)).unwrap();
    sending.join().unwrap().unwrap();
    assert_eq!(got.sha256, testbed::pattern::sha256(sent, 7));
    // What is HTTP for its looks goes through like anything else.
    let client = p.raw();
    client.write(b"GET /../ HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(p.accept().read_exact(21).unwrap(), b"GET /../ HTTP/1.1\r\n\r\n");
    let metrics = p.waypoint.metrics();
    assert!(metrics.contains("istio_tcp_connections_opened_total"), "{metrics}");
}

#[test]
fn a_connection_ends_when_it_is_no_longer_allowed() {
    let p = Played::new("wp-tcp-policy", "tcp", Serve::Manual);
    // Of the service, and of the workload behind it.
    for whose in [
        "targetRefs: [{ kind: Service, group: \"\", name: played }]",
        "selector: { matchLabels: { app: played } }",
    ] {
        let (client, app) = (p.raw(), p.accept());
        dialogue_of(&client, &app);
        let everybody = |action: &str| {
            let spec = format!("{{ {whose}, action: {action}, rules: [{{}}] }}");
            p.mesh.write_policy("default", "everybody", &spec);
        };
        everybody("DENY");
        for end in [client, app] {
            let end = end.within(SOON).read_to_end().unwrap_err();
            assert_eq!(end.kind(), "ECONNRESET", "{whose}: {end}");
        }
        everybody("ALLOW");
        eventually(SOON, || {
            let client = p.raw();
            client.write(b"again")?;
            let app = p.listener.accept(Duration::from_secs(1))?;
            anyhow::ensure!(app.read_exact(5)? == b"again");
            Ok(())
        })
        .unwrap();
    }
}

/// However they travelled: through an agent, or past all of them.
#[test]
fn connections_end_when_a_waypoint_comes_to_stand_before_their_server() {
    let mesh = Mesh::new("wp-comes");
    let (near, far) = (mesh.enrolled_pod(1, "near"), mesh.enrolled_pod(2, "far"));
    let server = mesh.enrolled_pod(1, "server");
    let listener = dialogue::serve(&server, PORT, Serve::Manual);
    let service = mesh.service_of("server", "tcp", PORT, PORT, &[&server]);
    let by_address = dialogue::at(server.ipv4(), PORT);
    let pairs: Vec<_> = [&near, &far]
        .into_iter()
        .flat_map(|client| [(client, service.by_name()), (client, by_address.clone())])
        // The first of each goes through the agent, the next of its node past it.
        .flat_map(|(client, to)| {
            [0, 1].map(|_| {
                let (client, app) = dialogue::by_hand(client, &to, &listener);
                dialogue_of(&client, &app);
                (client, app)
            })
        })
        .collect();
    assert!(mesh.agent_of(&near).counter(&near, "direct") > 0);
    let _waypoint = mesh.waypoint(2, "waypoint");
    mesh.use_waypoint(Some("waypoint"));
    for (n, (client, app)) in pairs.into_iter().enumerate() {
        for end in [client, app] {
            let end = end.within(SOON).read_exact(1).unwrap_err();
            // As a reset from the wire, or by the kernel's own hand.
            assert!(["ECONNRESET", "ECONNABORTED"].contains(&end.kind()), "{n}: {end}");
        }
    }
    mesh.bound(&service, Some("waypoint"));
    for client in [&near, &far] {
        eventually(SOON, || {
            let client = client.puppet()?.connect(service.by_name(), ConnectOpts::default())?;
            client.write(b"there")?;
            let app = listener.accept(Duration::from_secs(1))?;
            anyhow::ensure!(app.read_exact(5)? == b"there");
            Ok(())
        })
        .unwrap();
    }
}

fn dialogue_of(client: &testbed::Sock, app: &testbed::Sock) {
    client.write(b"there").unwrap();
    assert_eq!(app.read_exact(5).unwrap(), b"there");
    app.write(b"back").unwrap();
    assert_eq!(client.read_exact(4).unwrap(), b"back");
}

fn hello(name: &str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut tls = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    tls.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn tls_goes_by_the_name_in_its_hello() {
    let p = Played::new("wp-tls", "tls", Serve::Manual);
    let host = "played.default.svc.cluster.local";
    p.mesh.apply(
        "virtualservice-played",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{ namespace: default, name: played }}\n\
             spec: {{ hosts: [{host}], tls: [{{ match: [{{ port: {PORT}, sniHosts: [{host}] }}], \
             route: [{{ destination: {{ host: played }} }}] }}] }}\n"
        ),
    );
    // Until the route is there, any name goes through.
    eventually(SOON, || {
        let client = p.raw();
        client.write(&hello("other.example"))?;
        let client = client.within(std::time::Duration::from_secs(1));
        match client.read_exact(1) {
            Err(e) if e.kind() == "ECONNRESET" => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    })
    .unwrap();
    let client = p.raw();
    let hello = hello(host);
    // In two parts.
    client.write(&hello[..20]).unwrap();
    client.write(&hello[20..]).unwrap();
    let app = eventually(SOON, || {
        let app = p.accept();
        // Others came before the route did.
        let got = app.within(std::time::Duration::from_secs(5)).read_exact(hello.len());
        anyhow::ensure!(got.is_ok_and(|got| got == hello), "another's");
        Ok(app)
    })
    .unwrap();
    app.write(b"server hello").unwrap();
    assert_eq!(client.read_exact(12).unwrap(), b"server hello");
}

#[test]
fn a_port_without_a_name_speaks_whatever_comes() {
    let s = Scene::speaking("wp-detect", "");
    let ask = Ask::get(&s.url("/"));
    for (ask, version) in [(ask.clone(), "HTTP/1.1"), (ask.http2(), "HTTP/2.0")] {
        let answer = s.ask(&ask);
        assert_eq!((answer.status, &answer.asked()["version"]), (200, &version.into()));
        assert!(answer.asked()["headers"]["x-request-id"].is_string(), "{answer:?}");
    }
}

#[test]
fn a_server_may_speak_first_where_nothing_is_said_of_its_port() {
    let p = Played::new("wp-first", "", Serve::Banner("220 ready\r\n".to_owned()));
    let client = dialogue::connect(&p.client, &p.service.by_name());
    read_until(&client, "220 ready\r\n");
    client.write(b"EHLO").unwrap();
    assert_eq!(client.read_exact(4).unwrap(), b"EHLO");
}
