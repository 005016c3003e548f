//! Packets that no socket of the kernel's TCP has made.

use std::net::{IpAddr, SocketAddr};

use culvert_tests::SOON;
use testbed::forge::{self, ACK, FIN, Mac, PSH, RST, SYN};
use testbed::{Puppet, RawSocket, Token, eventually, libc, sockaddr};

use crate::scene::{PORT, Scene, address_of, packets};

/// A way for a packet to leave the pod.
enum Way {
    /// Raw IP sockets of both families: the kernel routes it.
    Ip(RawSocket, RawSocket),
    /// A packet socket on eth0.
    Packet(RawSocket, Mac),
}

impl Way {
    fn ip(puppet: &Puppet) -> Self {
        let raw = |family| puppet.raw_socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW).unwrap();
        Self::Ip(raw(libc::AF_INET), raw(libc::AF_INET6))
    }

    /// `bypass` leaves out the qdisc, and with it what is attached to the interface within the pod.
    fn packet(scene: &Scene, puppet: &Puppet, bypass: bool) -> Self {
        let socket = packets(&scene.hostile, puppet);
        socket.set_int(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, bypass.into()).unwrap();
        Self::Packet(socket, scene.hostile.mac())
    }

    fn send(&self, packet: &[u8], to: IpAddr, next_hop: Mac) {
        match self {
            Self::Ip(v4, v6) => {
                let socket = if to.is_ipv4() { v4 } else { v6 };
                // Where the kernel will not route it, it does not leave either.
                let _ = socket.send_to(packet, 0, &sockaddr(SocketAddr::new(to, 0)));
            }
            Self::Packet(socket, from) => {
                let frame = forge::frame(*from, next_hop, &[], packet);
                socket.send_to(&frame, 0, &[]).unwrap();
            }
        }
    }
}

/// To pods of this node directly, to others by the gateway.
fn next_hop(scene: &Scene, to: IpAddr) -> Mac {
    let near = [IpAddr::from(scene.near.ipv4()), scene.near.ipv6().into()].contains(&to);
    if near { scene.near.mac() } else { scene.mesh.agent(1).node.mac() }
}

/// A process within the reach of the cgroup's hooks, and one beyond it.
fn puppets(scene: &Scene) -> [Puppet; 2] {
    [scene.puppet(), scene.hostile.stray_puppet().unwrap()]
}

fn every_way(scene: &Scene, mut send: impl FnMut(&Way, SocketAddr, u16)) {
    let mut port = 20_000;
    for puppet in puppets(scene) {
        let packet = |bypass| Way::packet(scene, &puppet, bypass);
        for way in [Way::ip(&puppet), packet(false), packet(true)] {
            for to in scene.targets() {
                port += 1;
                send(&way, to, port);
            }
        }
    }
}

#[test]
fn forged_segments_do_not_leave_the_pod() {
    let scene = Scene::new("forged");
    let token = Token::new();
    let watch = scene.watch();
    let before = (scene.counted("dropped_syn"), scene.counted("dropped_segment"));
    let mut sent = (0, 0);
    every_way(&scene, |way, to, port| {
        for source in [scene.own(to), address_of(&scene.silent, to)] {
            let from = SocketAddr::new(source, port);
            for target in [to, SocketAddr::new(to.ip(), 15008)] {
                let send = |flags, payload: &[u8]| {
                    let segment = forge::tcp_acking(from, target, flags, (1000, 1), payload);
                    let packet = forge::ip(from.ip(), to.ip(), forge::TCP, &segment);
                    way.send(&packet, to.ip(), next_hop(&scene, to.ip()));
                };
                send(SYN, b"");
                send(SYN, token.bytes());
                // With flags that belong to no beginning.
                send(SYN | FIN, b"");
                send(SYN | PSH | 0x20, token.bytes());
                sent.0 += 4;
                for flags in [PSH | ACK, ACK, FIN | ACK, SYN | ACK, RST, RST | ACK, 0] {
                    send(flags, token.bytes());
                    sent.1 += 1;
                }
                // Without payload they may leave, from the pod's own address.
                if source != scene.own(to) {
                    for flags in [ACK, RST, RST | ACK, FIN | ACK, SYN | ACK] {
                        send(flags, b"");
                        sent.1 += 1;
                    }
                }
            }
        }
    });
    watch.ends_quietly(&[token]);
    scene.never_heard_of(&scene.hostile);
    let dropped =
        (scene.counted("dropped_syn") - before.0, scene.counted("dropped_segment") - before.1);
    println!("sent {sent:?}, dropped {dropped:?}");
    assert_eq!(dropped, sent);
}

/// What guards the pod does not need the agent.
#[test]
fn forged_segments_do_not_leave_while_the_agent_is_dead() {
    let scene = Scene::new("forged-dead");
    let token = Token::new();
    let capture = scene.mesh.agent(1).node.capture_link("link").unwrap();
    let near = scene.near.capture_host_end("near").unwrap();
    scene.mesh.agent(1).kill();
    every_way(&scene, |way, to, port| {
        let from = SocketAddr::new(scene.own(to), port);
        for (flags, payload) in
            [(SYN, b"".as_slice()), (SYN, token.bytes()), (PSH | ACK, token.bytes())]
        {
            let segment = forge::tcp(from, to, flags, 1000, payload);
            let packet = forge::ip(from.ip(), to.ip(), forge::TCP, &segment);
            way.send(&packet, to.ip(), next_hop(&scene, to.ip()));
        }
    });
    for capture in [capture, near] {
        let report = capture.stop().unwrap();
        let verdict = scene.mesh.leak_check(&[token], &scene.pods()).check(&report).unwrap();
        assert!(verdict.is_clean(), "{verdict}");
    }
    scene.mesh.agent(1).restart();
    scene.never_heard_of(&scene.hostile);
    assert!(scene.counted("dropped_syn") > 0 && scene.counted("dropped_segment") > 0);
}

/// Without payload and SYN a segment may leave: it carries nothing and opens nothing. It must not close anything either.
#[test]
fn forged_ends_close_no_connection_of_others() {
    let scene = Scene::new("forged-ends");
    let watch = scene.watch();
    let live = culvert_tests::dialogue::echo_to(
        &scene.client,
        &SocketAddr::new(scene.far.ipv4().into(), crate::scene::PORT).to_string(),
    )
    .unwrap();
    culvert_tests::echo(&live, 1000, 1).unwrap();
    let way = Way::packet(&scene, &scene.puppet(), true);
    let (client, far) = (scene.client.ipv4().into(), scene.far.ipv4().into());
    // Every port that it could be.
    for port in 1024..=u16::MAX {
        let (from, to) = (SocketAddr::new(client, port), SocketAddr::new(far, 15008));
        let segment = forge::tcp(from, to, RST, 0x1234_5678, b"");
        let packet = forge::ip(client, far, forge::TCP, &segment);
        way.send(&packet, far, next_hop(&scene, far));
    }
    culvert_tests::echo(&live, 100_000, 2).unwrap();
    watch.ends_quietly(&[]);
}

#[test]
fn fragments_and_header_chains_do_not_leave_the_pod() {
    let scene = Scene::new("fragments");
    let token = Token::new();
    let watch = scene.watch();
    let names = ["dropped_fragment", "dropped_syn", "dropped_segment", "dropped_malformed"];
    let before = names.map(|n| scene.counted(n));
    every_way(&scene, |way, to, port| {
        let from = SocketAddr::new(scene.own(to), port);
        let send = |packet: &[u8]| way.send(packet, to.ip(), next_hop(&scene, to.ip()));
        for (flags, payload) in [(SYN, token.bytes()), (PSH | ACK, token.bytes()), (SYN, b"")] {
            let segment = forge::tcp(from, to, flags, 1, payload);
            // So small that the flags are in the second one.
            for size in [8, 16, 24] {
                for piece in forge::fragments(from.ip(), to.ip(), forge::TCP, &segment, size) {
                    send(&piece);
                }
            }
            let IpAddr::V6(_) = to.ip() else { continue };
            let v6 = |next, payload: &[u8]| send(&forge::ip(from.ip(), to.ip(), next, payload));
            for next in [forge::HOP_BY_HOP, forge::ROUTING, forge::DESTINATION] {
                v6(next, &forge::extension(forge::TCP, &segment));
            }
            // Longer and longer chains, past what anybody would follow.
            let mut chain = segment.clone();
            let mut next = forge::TCP;
            for _ in 0..12 {
                chain = forge::extension(next, &chain);
                next = forge::DESTINATION;
                v6(next, &chain);
            }
            // The chain goes on behind the fragment header, in the first fragment only.
            let behind = forge::extension(forge::TCP, &segment);
            for size in [8, 16, 64] {
                for piece in forge::fragments(from.ip(), to.ip(), forge::DESTINATION, &behind, size)
                {
                    send(&piece);
                }
            }
            // A fragment header and nothing cut (RFC 6946).
            let whole = [[forge::TCP, 0, 0, 0, 0, 0, 0, 1].as_slice(), &segment].concat();
            v6(forge::FRAGMENT, &whole);
        }
    });
    watch.ends_quietly(&[token]);
    scene.never_heard_of(&scene.hostile);
    let dropped: Vec<_> =
        names.iter().zip(before).map(|(n, b)| (n, scene.counted(n) - b)).collect();
    println!("{dropped:?}");
    assert!(dropped.iter().all(|(_, n)| *n > 0), "{dropped:?}");
}

#[test]
fn tunnels_and_vlans_do_not_leave_the_pod() {
    let scene = Scene::new("tunnels");
    let token = Token::new();
    let watch = scene.watch();
    let before = (scene.counted("dropped_protocol"), scene.counted("dropped_malformed"));
    let mut sent = 0;
    every_way(&scene, |way, to, port| {
        let from = SocketAddr::new(scene.own(to), port);
        for (flags, payload) in [(SYN, b"".as_slice()), (PSH | ACK, token.bytes())] {
            let segment = forge::tcp(from, to, flags, 1, payload);
            let inner = forge::ip(from.ip(), to.ip(), forge::TCP, &segment);
            let kind = if to.is_ipv4() { forge::IPIP } else { forge::SIT };
            let ethertype: u16 = if to.is_ipv4() { 0x0800 } else { 0x86dd };
            let gre = [&[0, 0], ethertype.to_be_bytes().as_slice(), &inner].concat();
            // Tunnels, ESP and AH, SCTP, and one that is nobody's.
            for (protocol, payload) in [
                (kind, &inner),
                (forge::GRE, &gre),
                (50, &segment),
                (51, &segment),
                (132, &segment),
                (253, &segment),
            ] {
                let packet = forge::ip(from.ip(), to.ip(), protocol, payload);
                way.send(&packet, to.ip(), next_hop(&scene, to.ip()));
                sent += 1;
            }
            if let Way::Packet(socket, mac) = way {
                for vlans in [[7].as_slice(), &[7, 8]] {
                    let hop = next_hop(&scene, to.ip());
                    let frame = forge::frame(*mac, hop, vlans, &inner);
                    socket.send_to(&frame, 0, &[]).unwrap();
                    sent += 1;
                }
            }
        }
    });
    watch.ends_quietly(&[token]);
    scene.never_heard_of(&scene.hostile);
    let dropped = scene.counted("dropped_protocol") - before.0;
    assert_eq!(dropped, sent, "{} malformed", scene.counted("dropped_malformed") - before.1);
}

/// The kernel takes a tag off, and of network 0 it reads what is within as if there had been none.
#[test]
fn tags_hide_no_tcp_where_other_protocols_pass() {
    let scene = Scene::new("tags");
    scene.mesh.unenroll(&scene.hostile);
    scene.mesh.agent(1).enroll_with(&scene.hostile, &["--allow-other-protocols"]).unwrap();
    scene.mesh.announce(&scene.hostile);
    let token = Token::new();
    let watch = scene.watch();
    let names = ["dropped_syn", "dropped_segment", "dropped_protocol"];
    let counted = || names.map(|n| scene.counted(n));
    let (before, passed) = (counted(), scene.counted("passed_other"));
    let (mut sent, mut others) = ([0; 3], 0);
    every_way(&scene, |way, to, port| {
        let Way::Packet(socket, mac) = way else { return };
        let from = SocketAddr::new(scene.own(to), port);
        let send = |vlans: &[u16], protocol, payload: &[u8]| {
            let packet = forge::ip(from.ip(), to.ip(), protocol, payload);
            let frame = forge::frame(*mac, next_hop(&scene, to.ip()), vlans, &packet);
            socket.send_to(&frame, 0, &[]).unwrap();
        };
        for (n, flags, payload) in [(0, SYN, b"".as_slice()), (1, PSH | ACK, token.bytes())] {
            let segment = forge::tcp(from, to, flags, 1, payload);
            for one in [0, 7] {
                send(&[one], forge::TCP, &segment);
                sent[n] += 1;
                // A second tag hides what is within.
                send(&[one, 8], forge::TCP, &segment);
                sent[2] += 1;
            }
        }
        send(&[7], 253, b"of its own");
        others += 1;
    });
    watch.ends_quietly(&[token]);
    scene.never_heard_of(&scene.hostile);
    let now = counted();
    assert_eq!([0, 1, 2].map(|n| now[n] - before[n]), sent);
    assert!(scene.counted("passed_other") - passed >= others);
}

/// What comes to a pod and may be TCP, where nobody can see of what connection, does not come in.
#[test]
fn what_hides_its_tuple_comes_into_no_pod() {
    let scene = Scene::past_the_agent("hidden");
    let outside = scene.mesh.pod(1, "outside");
    let socket = packets(&outside, &outside.puppet().unwrap());
    let near = &scene.near;
    let dropped = || scene.mesh.agent(1).counter(near, "dropped_malformed");
    let before = dropped();
    let from = SocketAddr::new(outside.ipv6().into(), 4000);
    let to = SocketAddr::new(near.ipv6().into(), PORT);
    let segment = forge::tcp(from, to, SYN, 1, b"");
    let send = |vlans: &[u16], next, payload: &[u8]| {
        let packet = forge::ip(from.ip(), to.ip(), next, payload);
        socket.send_to(&forge::frame(outside.mac(), near.mac(), vlans, &packet), 0, &[]).unwrap();
    };
    let mut chain = forge::extension(forge::TCP, &segment);
    for _ in 0..8 {
        chain = forge::extension(forge::DESTINATION, &chain);
    }
    let mut sent = 0;
    for vlans in [[0, 0], [0, 7], [7, 0]] {
        send(&vlans, forge::TCP, &segment);
        sent += 1;
    }
    for vlans in [[].as_slice(), &[0]] {
        send(vlans, forge::DESTINATION, &chain);
        sent += 1;
    }
    eventually(SOON, || {
        let dropped = dropped() - before;
        anyhow::ensure!(dropped == sent, "{dropped} of {sent} were dropped");
        Ok(())
    })
    .unwrap();
}

/// UDP leaves as it is, whatever is in it. What is in it is not taken for a connection by anybody who did not ask for it.
#[test]
fn a_connection_within_udp_is_a_datagram_and_nothing_else() {
    let scene = Scene::new("vxlan");
    let watch = scene.watch();
    let before = scene.counted("passed_udp");
    every_way(&scene, |way, to, port| {
        let from = SocketAddr::new(scene.own(to), port);
        let segment = forge::tcp(from, to, SYN, 1, b"");
        let inner = forge::ip(from.ip(), to.ip(), forge::TCP, &segment);
        let inner = forge::frame(scene.hostile.mac(), next_hop(&scene, to.ip()), &[], &inner);
        for vxlan_port in [4789, 8472] {
            let payload = [[8, 0, 0, 0, 0, 0, 1, 0].as_slice(), &inner].concat();
            let to = SocketAddr::new(to.ip(), vxlan_port);
            let datagram = forge::udp(from, to, &payload);
            let packet = forge::ip(from.ip(), to.ip(), forge::UDP, &datagram);
            way.send(&packet, to.ip(), next_hop(&scene, to.ip()));
        }
    });
    watch.ends_quietly(&[]);
    scene.never_heard_of(&scene.hostile);
    assert!(scene.counted("passed_udp") > before);
}
