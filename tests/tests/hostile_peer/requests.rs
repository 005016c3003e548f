//! CONNECTs that are none, or to what is nobody's to give.

use crate::den::{Den, PORT};
use culvert_tests::{at, attempt};
use scripted::frames::{HEADERS, RST_STREAM, block, frame, headers};
use std::net::{IpAddr, SocketAddr};

const METHOD: (&str, &str) = (":method", "CONNECT");

/// What came of one request: its status, or none when the stream was reset or the connection ended.
async fn ask(den: &Den, list: &[(&str, &[u8])]) -> Option<u16> {
    let mut wire = den.wire().await;
    wire.send(&frame(HEADERS, 4, 1, &block(list))).await.unwrap();
    let answer = wire.read.answer(1).await?;
    match answer.kind {
        RST_STREAM => None,
        _ => Some(answer.status().expect("a status that can be read")),
    }
}

#[test]
fn authorities_that_are_not_the_pods_own_are_refused() {
    let den = Den::new("authorities");
    let neighbour = den.mesh.pod(2, "neighbour");
    culvert_tests::dialogue::serve(&neighbour, PORT, testbed::Serve::Script);
    den.mesh.enroll(&neighbour);
    let own = den.server.ipv4();
    let v6: IpAddr = den.server.ipv6().into();
    let cases: Vec<(String, &[Option<u16>])> = vec![
        (at(own, PORT), &[Some(200)]),
        // The pod's own, but a client at an IPv4 address cannot keep it on the way to this one.
        (SocketAddr::new(v6, PORT).to_string(), &[Some(503)]),
        (format!("[::ffff:{own}]:{PORT}"), &[Some(200)]),
        // Of others, on this node and elsewhere.
        (at(neighbour.ipv4(), PORT), &[Some(400)]),
        (at(den.client.ipv4(), PORT), &[Some(400)]),
        (at(den.mesh.agent(2).node.ipv4(), PORT), &[Some(400)]),
        (at([127, 0, 0, 1], PORT), &[Some(400)]),
        (format!("[::1]:{PORT}"), &[Some(400)]),
        (at([0, 0, 0, 0], PORT), &[Some(400)]),
        (at([169, 254, 169, 254], 80), &[Some(400)]),
        (at([224, 0, 0, 1], PORT), &[Some(400)]),
        ("server.default.svc.cluster.local:8080".into(), &[Some(400)]),
        // No addresses.
        (own.to_string(), &[Some(400)]),
        (format!("{own}:0"), &[Some(400)]),
        (format!("{own}:65536"), &[Some(400), None]),
        (format!("{own}:+80"), &[Some(400), None]),
        (format!("[fe80::1%eth0]:{PORT}"), &[Some(400), None]),
        (format!("{v6}:{PORT}"), &[Some(400), None]),
        (format!("user@{own}:{PORT}"), &[Some(400), None]),
        (format!("{own}:{PORT}/path"), &[Some(400), None]),
        (String::new(), &[Some(400), None]),
        // The mesh's own ports.
        (at(own, 15001), &[Some(400)]),
        (at(own, 15006), &[Some(400)]),
        (at(own, 15008), &[Some(400)]),
        (at(own, 15053), &[Some(400)]),
        // Free for applications, of which there is none here. The agent's own are not in this namespace.
        (at(own, 15000), &[Some(503)]),
        (at(own, 15020), &[Some(503)]),
        (at(own, 15021), &[Some(503)]),
    ];
    for (authority, wanted) in cases {
        let list = [(METHOD.0, METHOD.1.as_bytes()), (":authority", authority.as_bytes())];
        let got = den.block_on(ask(&den, &list));
        assert!(wanted.contains(&got), "{authority}: {got:?}");
    }
    den.told(2, &["HBONE stream refused", &at(neighbour.ipv4(), PORT), "mallory"]);
    attempt(&den.client, &at(neighbour.ipv4(), PORT)).unwrap();
    den.undisturbed("authorities");
}

#[test]
fn what_is_no_plain_connect_is_refused() {
    let den = Den::new("no-connect");
    let target = at(den.server.ipv4(), PORT);
    let authority = (":authority", target.as_bytes());
    let method = |m: &'static str| (":method", m.as_bytes());
    let https = (":scheme", &b"https"[..]);
    let root = (":path", &b"/"[..]);
    let other = at(den.client.ipv4(), PORT);
    let refused = &[None, Some(400)];
    type Case<'a> = (&'a str, Vec<(&'a str, &'a [u8])>, &'a [Option<u16>]);
    let cases: Vec<Case<'_>> = vec![
        ("GET", vec![method("GET"), https, authority, root], &[Some(405)]),
        ("POST", vec![method("POST"), https, authority, root], &[Some(405)]),
        ("an unknown method", vec![method("BREW"), https, authority, root], &[Some(405)]),
        ("CONNECT with a path", vec![method("CONNECT"), https, authority, root], refused),
        ("CONNECT with a scheme", vec![method("CONNECT"), https, authority], refused),
        ("without an authority", vec![method("CONNECT")], refused),
        (
            "with Host for an authority",
            vec![method("CONNECT"), ("host", target.as_bytes())],
            refused,
        ),
        ("two authorities", vec![method("CONNECT"), authority, authority], refused),
        (
            "websocket",
            vec![
                method("CONNECT"),
                (":protocol", b"websocket"),
                https,
                authority,
                (":path", b"/x"),
            ],
            refused,
        ),
        ("a header of HTTP/1", vec![method("CONNECT"), authority, ("upgrade", b"h2c")], refused),
        ("upper case", vec![method("CONNECT"), authority, ("Baggage", b"a=b")], refused),
        ("NUL in a value", vec![method("CONNECT"), authority, ("x", b"a\0b")], refused),
        ("a line break", vec![method("CONNECT"), authority, ("x", b"a\r\nb: c")], refused),
        ("a line break in a name", vec![method("CONNECT"), authority, ("x\r\ny", b"a")], refused),
        ("a pseudo header late", vec![method("CONNECT"), ("x", b"a"), authority], refused),
        (
            "a response's pseudo header",
            vec![method("CONNECT"), authority, (":status", b"200")],
            refused,
        ),
    ];
    for (what, list, wanted) in cases {
        let got = den.block_on(ask(&den, &list));
        assert!(wanted.contains(&got), "{what}: {got:?}");
        den.undisturbed(what);
    }
    // Host beside the authority decides nothing: the stream goes where the authority says, or nowhere.
    let shouting = target.to_uppercase();
    for host in [other.as_str(), shouting.as_str(), "server.default.", &format!("{target}.")] {
        for hosts in [vec![host], vec![host, target.as_str()]] {
            let mut list = vec![method("CONNECT"), authority];
            list.extend(hosts.iter().map(|h| ("host", h.as_bytes())));
            let got = den.block_on(ask(&den, &list));
            assert!([None, Some(400), Some(200)].contains(&got), "{hosts:?}: {got:?}");
        }
    }
    let access = den.mesh.agent(1).access_log();
    assert!(!access.iter().any(|l| l.contains("mallory")), "it reached the client: {access:?}");
    den.undisturbed("hosts");
}

/// `baggage` is the peer's word on who it is, for logs and metrics: it decides nothing, and it fills nothing.
#[test]
fn baggage_is_neither_believed_nor_kept_beyond_reason() {
    let den = Den::new("baggage");
    let target = at(den.server.ipv4(), PORT);
    let odd: [&[u8]; 9] = [
        b"%",
        b"k8s.deployment.name=%zz,service.name=%f",
        b"k8s.deployment.name=a,k8s.deployment.name=b",
        b"k8s.deployment.name=%ff%fe",
        b"\xff\xfe=\x80",
        b",,,;;;===",
        b"k8s.deployment.name=a%0aaccess: src.identity=%22forged%22",
        b"k8s.namespace.name=quiet,k8s.deployment.name=client,service.name=client",
        &[b'='; 9000],
    ];
    for value in odd {
        let list = [
            (METHOD.0, METHOD.1.as_bytes()),
            (":authority", target.as_bytes()),
            ("baggage", value),
        ];
        assert_eq!(den.block_on(ask(&den, &list)), Some(200), "{value:?}");
    }
    let log = den.mesh.agent(2).log();
    assert!(!log.lines().any(|l| l.starts_with("access:")), "a line was forged: {log}");
    // Who it is stands in its certificate, whatever it says.
    den.mesh.agent(2).logged(&["src.identity=\"spiffe://cluster.local/ns/default/sa/mallory\""]);

    // From an address that no workload has, the names are the peer's own: many, and long ones.
    let before = den.mesh.agent(2).metrics().len();
    // Its manifest goes; the pod stays.
    den.mesh.delete(&format!("pod-default-{}", den.mallory.name()));
    testbed::eventually(culvert_tests::SOON, || {
        anyhow::ensure!(den.mesh.agent(2).workload(&den.mallory.uid()).is_err(), "still known");
        Ok(())
    })
    .unwrap();
    let long = "x".repeat(2000);
    den.block_on(async {
        let mut wire = den.wire().await;
        for i in 0..200_u32 {
            let value =
                format!("k8s.deployment.name={long}{i},service.name={long},service.version={long}");
            let list = [METHOD, (":authority", target.as_str()), ("baggage", value.as_str())];
            let stream = i * 2 + 1;
            wire.send(&headers(stream, &list)).await.unwrap();
            assert_eq!(wire.read.answer(stream).await.unwrap().status(), Some(200));
            wire.send(&scripted::frames::reset(stream, 8)).await.unwrap();
        }
    });
    let grown = den.mesh.agent(2).metrics().len() - before;
    println!("200 streams with 6 KB of baggage each: {grown} bytes more of metrics");
    assert!(grown < 200 * 4 * 2048, "{grown} bytes of metrics for 200 streams");
    den.undisturbed("baggage");
}
