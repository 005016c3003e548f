//! Clients that are not who they must be, by every certificate that says so.

use crate::den::{Den, HBONE, PORT};
use culvert_tests::dialogue::{echo_to, serve};
use culvert_tests::{Mesh, at};
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P384_SHA384,
    PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use scripted::frames::{PREFACE, settings};
use scripted::pki::{HOUR, Pki, Presented, good_leaf, leaf};
use scripted::tls::{self, H2, hello_of_tls_1_2};
use scripted::wire::Wire;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Whether the server speaks HTTP/2 to whoever presents this: its first frame is for a client that it has accepted.
async fn let_in(den: &Den, config: Arc<rustls::ClientConfig>) -> bool {
    // A client in TLS 1.3 is done before the server has seen its certificate.
    let Ok(tls) = tls::connect(den.tcp().unwrap(), config).await else { return false };
    let mut wire = Wire::new(tls);
    let _ = wire.send(PREFACE).await;
    let _ = wire.send(&settings(&[])).await;
    wire.read.frame().await.is_some()
}

fn with_sans(id: &str, more: Vec<SanType>) -> CertificateParams {
    let mut params = good_leaf(id);
    params.subject_alt_names.extend(more);
    params
}

/// An OtherName: Microsoft's user principal name.
fn other_name() -> SanType {
    SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], "mallory@elsewhere".into()))
}

fn usage(id: &str, usages: Vec<ExtendedKeyUsagePurpose>) -> CertificateParams {
    let mut params = good_leaf(id);
    params.extended_key_usages = usages;
    params
}

/// A chain of so many intermediates.
fn deep(pki: &Pki, depth: usize) -> Pki {
    (1..depth).fold(pki.intermediate(), |pki, _| pki.intermediate())
}

/// The certificate's signature algorithm, of which the last byte is changed in both places: the signature itself need
/// not fit, as no verifier may come so far.
fn resigned_with(pki: &Pki, id: &str, last: u8) -> Presented {
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let between = pki.intermediate_with(rsa);
    let (mut chain, key) = between.odd(&good_leaf(id));
    // sha256WithRSAEncryption is 1.2.840.113549.1.1.11.
    let oid = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11];
    let mut der = chain[0].to_vec();
    let places: Vec<usize> =
        (0..der.len() - oid.len()).filter(|i| der[*i..].starts_with(&oid)).collect();
    assert_eq!(places.len(), 2, "in the certificate and beside its signature");
    for at in places {
        der[at + oid.len() - 1] = last;
    }
    chain[0] = der.into();
    (chain, key)
}

#[test]
fn certificates_that_are_nobodys_are_refused_with_a_reason() {
    let den = Den::new("nobody");
    let (pki, id) = (&den.pki, den.identity());
    let now = SystemTime::now();
    let uri = |u: &str| Some(pki.odd(&good_leaf(u)));
    let of = |params: &CertificateParams| Some(pki.odd(params));
    let key = |alg| KeyPair::generate_for(alg).unwrap();
    let mut no_uri = good_leaf(&id);
    no_uri.subject_alt_names = vec![SanType::DnsName("server.default.svc".try_into().unwrap())];
    let mut only_other = good_leaf(&id);
    only_other.subject_alt_names = vec![other_name()];
    let own = KeyPair::generate().unwrap();
    let self_signed = (vec![good_leaf(&id).self_signed(&own).unwrap().der().clone()], own);
    let (mut orphan, orphan_key) = pki.intermediate().odd(&good_leaf(&id));
    orphan.truncate(1);
    type Case<'a> = (&'a str, Option<Presented>, &'a str);
    let refused: Vec<Case<'_>> = vec![
        ("no certificate", None, "no certificates"),
        ("no URI", of(&no_uri), "no SPIFFE id"),
        ("an OtherName alone", of(&only_other), "no SPIFFE id"),
        (
            "two URIs",
            of(&leaf(&[&id, "spiffe://cluster.local/ns/default/sa/client"], now - HOUR, HOUR * 2)),
            "more than one URI",
        ),
        ("the same URI twice", of(&leaf(&[&id, &id], now - HOUR, HOUR * 2)), "more than one URI"),
        ("NUL in the URI", uri("spiffe://cluster.local/ns/default/sa/client\0.x"), "character"),
        ("an upper case scheme", uri("SPIFFE://cluster.local/ns/default/sa/mallory"), "spiffe://"),
        ("an upper case domain", uri("spiffe://Cluster.Local/ns/default/sa/mallory"), "character"),
        ("a longer path", uri("spiffe://cluster.local/ns/default/sa/mallory/extra"), "the path"),
        ("no trust domain", uri("spiffe:///ns/default/sa/mallory"), "trust domain"),
        ("an escaped slash", uri("spiffe://cluster.local/ns/default/sa/a%2fb"), "character"),
        ("a port", uri("spiffe://cluster.local:1/ns/default/sa/mallory"), "character"),
        ("a user", uri("spiffe://x@cluster.local/ns/default/sa/mallory"), "character"),
        ("a query", uri("spiffe://cluster.local/ns/default/sa/mallory?x"), "character"),
        ("a dot segment", uri("spiffe://cluster.local/ns/../sa/mallory"), "relative path"),
        (
            "3,000 characters",
            uri(&format!("spiffe://cluster.local/ns/x/sa/{}", "a".repeat(3000))),
            "2048",
        ),
        ("a foreign domain", uri("spiffe://elsewhere.local/ns/default/sa/mallory"), "no roots"),
        ("another authority", Some(Pki::new("cluster.local").odd(&good_leaf(&id))), "certificate"),
        ("self-signed", Some(self_signed), "the same roots"),
        ("expired an hour ago", of(&leaf(&[&id], now - HOUR * 3, HOUR * 2)), "has run out"),
        ("valid in an hour", of(&leaf(&[&id], now + HOUR, HOUR * 2)), "clocks agree"),
        ("for servers", of(&usage(&id, vec![ExtendedKeyUsagePurpose::ServerAuth])), "refused"),
        ("for code", of(&usage(&id, vec![ExtendedKeyUsagePurpose::CodeSigning])), "refused"),
        ("an intermediate that is missing", Some((orphan, orphan_key)), "UnknownIssuer"),
        ("ten intermediates", Some(deep(pki, 10).odd(&good_leaf(&id))), "certificate"),
        ("signed with MD5", Some(resigned_with(pki, &id, 4)), "lgorithm"),
        ("signed with SHA-1", Some(resigned_with(pki, &id, 5)), "lgorithm"),
    ];
    for (what, presented, why) in refused {
        let config = tls::client_config(presented, H2);
        assert!(!den.block_on(let_in(&den, config)), "{what}: was let in");
        let peer = den.mallory.ipv4().to_string();
        println!("{what}");
        den.told(2, &["HBONE handshake failed", &peer, why]);
    }
    den.undisturbed("nobodies");

    // Sound, if uncommon: exactly one URI, and keys that are strong.
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let dns = SanType::DnsName("mallory.default.svc".try_into().unwrap());
    let sound: Vec<(&str, Presented)> = vec![
        ("DNS beside the URI", pki.odd(&with_sans(&id, vec![dns]))),
        ("an OtherName beside the URI", pki.odd(&with_sans(&id, vec![other_name()]))),
        ("ed25519", pki.odd_key(&good_leaf(&id), key(&PKCS_ED25519))),
        ("P-384", pki.odd_key(&good_leaf(&id), key(&PKCS_ECDSA_P384_SHA384))),
        ("P-521", pki.odd_key(&good_leaf(&id), key(&PKCS_ECDSA_P521_SHA512))),
        ("RSA-2048", pki.odd_key(&good_leaf(&id), rsa)),
        ("three intermediates", deep(pki, 3).odd(&good_leaf(&id))),
        ("half an hour old", pki.odd(&leaf(&[&id], now - HOUR / 2, HOUR))),
    ];
    for (what, presented) in sound {
        let config = tls::client_config(Some(presented), H2);
        assert!(den.block_on(let_in(&den, config)), "{what}: was refused");
    }
    den.undisturbed("uncommon ones");
}

/// What a client may say in TLS beside its certificate.
#[test]
fn tls_is_1_3_with_h2_and_nothing_before_it() {
    let den = Den::new("tls");
    let presented = || Some(den.pki.odd(&good_leaf(&den.identity())));
    for (what, alpn, why) in [
        ("http/1.1", &[&b"http/1.1"[..]][..], "any known protocol"),
        ("h3", &[b"h3"], "any known protocol"),
        ("nothing", &[], "ALPN"),
    ] {
        let config = tls::client_config(presented(), alpn);
        assert!(!den.block_on(let_in(&den, config)), "ALPN {what}: was let in");
        den.told(2, &["HBONE handshake failed", &den.mallory.ipv4().to_string(), why]);
    }
    // Among others, it is chosen.
    let config = tls::client_config(presented(), &[b"http/1.1", b"h2"]);
    assert!(den.block_on(let_in(&den, config)));

    // A fatal alert: protocol_version.
    let answer = den.block_on(async {
        let mut tcp = den.tcp().unwrap();
        tcp.write_all(&hello_of_tls_1_2()).await.unwrap();
        let mut answer = vec![];
        let _ = tcp.read_to_end(&mut answer).await;
        answer
    });
    assert_eq!(answer[5..], [2, 70], "TLS 1.2");

    // Names are not looked at, however absurd.
    for name in ["a.b.c", &format!("{}.example", "x".repeat(60)), "xn--nothing"] {
        let mut config = Arc::unwrap_or_clone(tls::client_config(presented(), H2));
        config.enable_sni = true;
        let went = den.block_on(async {
            let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
            let tls = tokio_rustls::TlsConnector::from(Arc::new(config))
                .connect(name, den.tcp().unwrap())
                .await;
            let mut wire = Wire::client(tls.unwrap()).await.unwrap();
            wire.read.frame().await.is_some()
        });
        assert!(went, "SNI {name}");
    }

    // Without the post-quantum group: as strong as Istio's own, and so it is taken.
    let mut classic = rustls::crypto::aws_lc_rs::default_provider();
    classic.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let config = tls::client_config_by(classic, presented(), H2);
    assert!(den.block_on(let_in(&den, config)), "X25519 alone");
    den.undisturbed("TLS");
}

/// Early data can be replayed, and needs a ticket from an earlier connection: none is given.
#[test]
fn no_ticket_is_given_with_which_early_data_could_be_sent() {
    #[derive(Debug, Default)]
    struct Tickets(AtomicUsize);
    impl rustls::client::ClientSessionStore for Tickets {
        fn set_kx_hint(&self, _: rustls::pki_types::ServerName<'static>, _: rustls::NamedGroup) {}
        fn kx_hint(&self, _: &rustls::pki_types::ServerName<'_>) -> Option<rustls::NamedGroup> {
            None
        }
        fn set_tls12_session(
            &self,
            _: rustls::pki_types::ServerName<'static>,
            _: rustls::client::Tls12ClientSessionValue,
        ) {
        }
        fn tls12_session(
            &self,
            _: &rustls::pki_types::ServerName<'_>,
        ) -> Option<rustls::client::Tls12ClientSessionValue> {
            None
        }
        fn remove_tls12_session(&self, _: &rustls::pki_types::ServerName<'static>) {}
        fn insert_tls13_ticket(
            &self,
            _: rustls::pki_types::ServerName<'static>,
            _: rustls::client::Tls13ClientSessionValue,
        ) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn take_tls13_ticket(
            &self,
            _: &rustls::pki_types::ServerName<'static>,
        ) -> Option<rustls::client::Tls13ClientSessionValue> {
            None
        }
    }
    let den = Den::new("early");
    let tickets = Arc::new(Tickets::default());
    let own = den.pki.odd(&good_leaf(&den.identity()));
    let mut config = Arc::unwrap_or_clone(tls::client_config(Some(own), H2));
    config.resumption = rustls::client::Resumption::store(tickets.clone());
    config.enable_early_data = true;
    // Its first frame comes after any tickets.
    assert!(den.block_on(let_in(&den, Arc::new(config))));
    assert_eq!(tickets.0.load(Ordering::Relaxed), 0, "tickets");
    den.undisturbed("early data");
}

/// By OpenSSL, which still makes what the library of these tests no longer does.
#[test]
fn weak_keys_and_old_versions_are_refused() {
    let den = Den::new("weak");
    let dir = den.mesh.bed.dir().join("weak");
    fs::create_dir_all(&dir).unwrap();
    let (certificate, key) = den.mesh.control.authority();
    fs::write(dir.join("ca.pem"), certificate).unwrap();
    fs::write(dir.join("ca.key"), key).unwrap();
    let extensions =
        format!("subjectAltName=URI:{}\nextendedKeyUsage=clientAuth\n", den.identity());
    fs::write(dir.join("ext"), extensions).unwrap();
    let openssl = |args: &str| {
        let out = Command::new("openssl").current_dir(&dir).args(args.split(' ')).output().unwrap();
        assert!(out.status.success(), "{args}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let to = at(den.server.ipv4(), HBONE);
    for (what, make, version, why) in [
        ("rsa:2048", "-sha256", "-tls1_3", None),
        ("rsa:1024", "-sha256", "-tls1_3", Some("handshake failed")),
        ("rsa:2048", "-sha1", "-tls1_3", Some("lgorithm")),
        ("rsa:2048", "-sha256", "-tls1_2", Some("handshake failed")),
    ] {
        openssl(&format!("req -newkey {what} -nodes -keyout leaf.key -subj /CN=x -out leaf.csr"));
        openssl(&format!(
            "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -days 1 {make} -extfile ext -out leaf.pem"
        ));
        let mut cmd = Command::new("timeout");
        cmd.current_dir(&dir).args(["10", "openssl", "s_client", "-connect", &to, version]);
        cmd.args(["-cert", "leaf.pem", "-key", "leaf.key", "-alpn", "h2", "-cipher"]);
        cmd.args(["DEFAULT@SECLEVEL=0", "-ign_eof", "-quiet"]);
        let earlier = den.mesh.agent(2).log().len();
        let proc = den.mallory.spawn(cmd).unwrap();
        let _ = proc.wait(culvert_tests::SOON);
        let log = den.mesh.agent(2).log().split_off(earlier);
        let failed = log.lines().find(|l| l.contains("HBONE handshake failed"));
        println!("{what} {make} {version}: {failed:?}");
        match why {
            // OpenSSL speaks no HTTP/2: the server waits for its preface in vain.
            None => assert!(
                failed.is_none_or(|l| l.contains("within") || l.contains("HTTP/2")),
                "{failed:?}"
            ),
            Some(why) => {
                let failed = failed.unwrap_or_else(|| panic!("{what} {make} {version}: {log}"));
                assert!(
                    failed.contains(why) && !failed.contains("within"),
                    "{what} {make}: {failed}"
                );
            }
        }
    }
    den.undisturbed("weak ones");
}

/// Streams that are open while their certificates are renewed, at both ends, go on over the connections that they have.
#[test]
fn renewal_leaves_thousands_of_live_streams_alone() {
    const STREAMS: usize = 10_000;
    let mesh = Mesh::builder("renewal").cert_ttl_seconds(120).build();
    let (client, server) = (mesh.pod(1, "client"), mesh.pod(2, "server"));
    serve(&server, PORT, testbed::Serve::Script);
    mesh.enroll_all(&[client.clone(), server.clone()]);
    let to = at(server.ipv4(), PORT);
    let serials = || {
        let of = |pod: &culvert_tests::MeshPod| {
            mesh.agent_of(pod).certificate(&pod.identity()).unwrap().0
        };
        (of(&client), of(&server))
    };
    let before = serials();
    let all: Vec<_> = (0..STREAMS).map(|_| echo_to(&client, &to).unwrap()).collect();
    assert_eq!(serials(), before, "every stream is older than the renewal");
    testbed::eventually(std::time::Duration::from_secs(110), || {
        let now = serials();
        anyhow::ensure!(now.0 != before.0 && now.1 != before.1, "not renewed yet");
        Ok(())
    })
    .unwrap();
    for (i, sock) in all.iter().enumerate() {
        sock.write(b"still there").unwrap_or_else(|e| panic!("stream {i}: {e}"));
    }
    for (i, sock) in all.iter().enumerate() {
        let back = sock.read_exact(11).unwrap_or_else(|e| panic!("stream {i}: {e}"));
        assert_eq!(back, b"still there", "stream {i}");
    }
}
