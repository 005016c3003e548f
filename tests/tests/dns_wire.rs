//! Names on the wire: who answers, from where, and what passes by untouched.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use culvert_tests::dialogue::connect;
use culvert_tests::names::{
    RecordType, ResponseCode, addresses, ask, asker, lookup, parse, question, server_of,
};
use culvert_tests::{Mesh, MeshPod, SOON, Service};
use testbed::{Puppet, RawSocket, Serve, Sock, eventually, libc, sockaddr};

const FABRIC4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 254);

struct One {
    mesh: Mesh,
    pod: MeshPod,
    service: Service,
}

/// An enrolled pod with a service that only the mesh has a name for.
fn one(name: &str) -> One {
    let mesh = Mesh::new(name);
    let pod = mesh.enrolled_pod(1, "a");
    let service = mesh.service("a", 80, 8080, &[&pod]);
    mesh.bed.dns(&service.hostname(), &[]);
    mesh.bed.dns("plain.example", &[[192, 0, 2, 1].into()]);
    One { mesh, pod, service }
}

impl One {
    /// A question that the mesh answers, and one that the server behind it does; with what is answered.
    fn questions(&self) -> [(Vec<u8>, IpAddr); 2] {
        [
            (question(1, &self.service.hostname(), RecordType::A, None), self.service.ipv4.into()),
            (question(2, "plain.example", RecordType::A, None), [192, 0, 2, 1].into()),
        ]
    }

    /// The resolvers of both nodes, by both families.
    fn servers(&self) -> [SocketAddr; 4] {
        let node = |n: usize| self.mesh.agent(n).node.clone();
        [
            (node(1).gateway4().into(), 53),
            (node(2).gateway4().into(), 53),
            (node(1).gateway6().into(), 53),
            (node(2).gateway6().into(), 53),
        ]
        .map(|(ip, port): (IpAddr, u16)| SocketAddr::new(ip, port))
    }
}

fn mapped(v4: SocketAddr) -> SocketAddr {
    match v4.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), v4.port()),
        IpAddr::V6(_) => v4,
    }
}

#[test]
fn the_answer_comes_from_the_server_that_was_asked() {
    let t = one("dns-from");
    let puppet = t.pod.puppet().unwrap();
    let mut servers: Vec<SocketAddr> = t.servers().into();
    servers.extend(t.servers().into_iter().filter(SocketAddr::is_ipv4).map(mapped));
    for server in servers {
        for (asked, wanted) in t.questions() {
            let answered = |(bytes, from): (Vec<u8>, SocketAddr)| {
                assert_eq!(addresses(&parse(&bytes)), [wanted], "{server}");
                assert_eq!(from, server);
            };
            let connected = puppet.udp_socket(server).unwrap();
            connected.connect(server).unwrap();
            assert_eq!(connected.peer().unwrap(), server);
            let local = connected.local().unwrap().ip().to_canonical();
            assert!([IpAddr::from(t.pod.ipv4()), t.pod.ipv6().into()].contains(&local), "{local}");
            connected.send(&asked).unwrap();
            answered(connected.receive_from(4096).unwrap());
            assert_eq!(connected.peer().unwrap(), server);

            let free = puppet.udp_socket(server).unwrap();
            free.send_to(&asked, 0, &sockaddr(server)).unwrap();
            answered(free.receive_from(4096).unwrap());

            let any: IpAddr = match server {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let own: IpAddr = match server {
                SocketAddr::V4(_) => t.pod.ipv4().into(),
                SocketAddr::V6(s) if s.ip().to_ipv4_mapped().is_some() => {
                    t.pod.ipv4().to_ipv6_mapped().into()
                }
                SocketAddr::V6(_) => t.pod.ipv6().into(),
            };
            for ip in [any, own] {
                let bound = puppet.udp_socket(server).unwrap();
                bound.bind(SocketAddr::new(ip, 0)).unwrap();
                bound.send_to(&asked, 0, &sockaddr(server)).unwrap();
                answered(bound.receive_from(4096).unwrap());
                bound.connect(server).unwrap();
                bound.send(&asked).unwrap();
                answered(bound.receive_from(4096).unwrap());
            }
            let device = |name: &[u8]| {
                let socket = puppet.udp_socket(server).unwrap();
                socket.set(libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name).unwrap();
                socket
            };
            let bound = device(b"eth0");
            bound.connect(server).unwrap();
            bound.send(&asked).unwrap();
            answered(bound.receive_from(4096).unwrap());
            // The kernel has chosen the device of this datagram before any program sees it: the second one arrives.
            let bound = device(b"eth0");
            bound.send_to(&asked, 0, &sockaddr(server)).unwrap();
            bound.send_to(&asked, 0, &sockaddr(server)).unwrap();
            answered(bound.receive_from(4096).unwrap());
        }
    }
}

#[test]
fn one_socket_may_ask_two_servers_at_once() {
    let t = one("dns-two");
    let puppet = t.pod.puppet().unwrap();
    let [near4, far4, near6, far6] = t.servers();
    for [near, far] in [[near4, far4], [near6, far6], [mapped(near4), far6]] {
        let socket = puppet.udp_socket(near).unwrap();
        for (server, id) in [(near, 10), (far, 20)] {
            for (n, (mut asked, _)) in t.questions().into_iter().enumerate() {
                asked[..2].copy_from_slice(&(id + n as u16).to_be_bytes());
                socket.send_to(&asked, 0, &sockaddr(server)).unwrap();
            }
        }
        let mut seen: Vec<(u16, SocketAddr)> = (0..4)
            .map(|_| {
                let (bytes, from) = socket.receive_from(4096).unwrap();
                (parse(&bytes).id(), from)
            })
            .collect();
        seen.sort();
        assert_eq!(seen, [(10, near), (11, near), (20, far), (21, far)]);
    }
}

/// A name server by hand.
struct Server {
    socket: RawSocket,
    at: SocketAddr,
    // Holds the process.
    _puppet: Puppet,
}

impl Server {
    fn new(puppet: Puppet, ip: impl Into<IpAddr>) -> Self {
        let at = SocketAddr::new(ip.into(), 53);
        let socket = puppet.udp_socket(at).unwrap();
        socket.bind(at).unwrap();
        Self { socket, at, _puppet: puppet }
    }

    /// What comes in is `wanted`, from `pod`; `answer` goes back.
    fn serves(&self, wanted: &[u8], pod: &MeshPod, answer: &[u8]) {
        let (bytes, from) = self
            .socket
            .receive_from(65_535)
            .unwrap_or_else(|e| panic!("{} bytes did not come: {e}: {wanted:x?}", wanted.len()));
        assert_eq!(bytes, wanted);
        let own = [IpAddr::from(pod.ipv4()), pod.ipv6().into()];
        assert!(own.contains(&from.ip()), "from {from}");
        self.socket.send_to(answer, 0, &sockaddr(from)).unwrap();
    }
}

/// Messages that are none of the mesh's business.
fn strange(t: &One) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let name = t.service.hostname();
    for opcode in 1..16u8 {
        let mut asked = question(3, &name, RecordType::A, None);
        asked[2] |= opcode << 3;
        all.push(asked);
    }
    for flags in [[0x80, 0], [2, 0], [1, 0x40], [1, 5]] {
        let mut asked = question(4, &name, RecordType::A, None);
        asked[2..4].copy_from_slice(&flags);
        all.push(asked);
    }
    for kind in [RecordType::TXT, RecordType::SRV, RecordType::HTTPS, RecordType::Unknown(65_280)] {
        all.push(question(5, &name, kind, Some(4096)));
    }
    // Class CHAOS; a question and a half; an EDNS version that nobody has; a record of another kind behind it.
    let plain = question(6, &name, RecordType::A, None);
    let length = plain.len();
    all.push([&plain[..length - 1], &[3][..]].concat());
    all.push([&plain[..], &[0, 0]].concat());
    let edns = question(6, &name, RecordType::A, Some(1232));
    let mut version = edns.clone();
    version[length + 6] = 9;
    all.push(version);
    let mut other = edns;
    other[length + 2] = 250;
    all.push(other);
    all.push(plain[..length - 3].to_vec());
    all.push(plain[..5].to_vec());
    all.push(vec![0]);
    all.push(vec![0xff; 512]);
    all.push((0..4000u32).map(|i| i as u8).collect());
    // A name with a dot in a label, and one with a byte that is no letter.
    for odd in [b'.', 0xe4] {
        let mut asked = question(7, &name, RecordType::A, None);
        asked[13] = odd;
        all.push(asked);
    }
    all
}

#[test]
fn everything_else_passes_byte_for_byte_to_the_server_and_back() {
    let t = one("dns-bytes");
    let server = Server::new(t.mesh.bed.fabric_puppet().unwrap(), FABRIC4);
    let client = asker(&t.pod, server.at);
    for (n, asked) in strange(&t).into_iter().enumerate() {
        // No answer that a resolver would make.
        let answer: Vec<u8> = asked.iter().rev().copied().chain([n as u8]).collect();
        client.send(&asked).unwrap();
        server.serves(&asked, &t.pod, &answer);
        assert_eq!(client.receive(65_535).unwrap(), answer, "number {n}");
    }
    let asked = question(9, "plain.example", RecordType::A, Some(4096));
    for length in [0, 1, 11, 512, 513, 1232, 4095, 4096, 4097, 9000, 60_000] {
        let answer: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        client.send(&asked).unwrap();
        server.serves(&asked, &t.pod, &answer);
        assert_eq!(client.receive(65_535).unwrap(), answer, "{length} bytes");
    }
}

/// What is framed over TCP is the same.
#[test]
fn everything_else_passes_byte_for_byte_over_tcp_too() {
    let t = one("dns-tcp-bytes");
    let at = SocketAddr::new(FABRIC4.into(), 53);
    let server = t.mesh.bed.fabric_puppet().unwrap().listen(at, Serve::Manual).unwrap();
    let client = connect(&t.pod, &at.to_string());
    let mut app: Option<Sock> = None;
    for (n, asked) in strange(&t).into_iter().enumerate() {
        let answer: Vec<u8> = asked.iter().rev().copied().chain([n as u8]).collect();
        client.write(&framed(&asked)).unwrap();
        let app = app.get_or_insert_with(|| server.accept(SOON).unwrap());
        assert_eq!(read_framed(app), asked, "number {n}");
        app.write(&framed(&answer)).unwrap();
        assert_eq!(read_framed(&client), answer, "number {n}");
    }
}

/// As SPECIFICATION.md has it: 512 wait, more hear SERVFAIL, and after ten seconds nobody waits.
#[test]
fn questions_that_nobody_answers_have_their_room_and_their_time() {
    let t = one("dns-room");
    let other = t.mesh.enrolled_pod(1, "other");
    let silent = Server::new(t.mesh.bed.fabric_puppet().unwrap(), FABRIC4);
    let [(of_mesh, mesh_ip), (plain, plain_ip)] = t.questions();
    let said = |asker: &RawSocket, asked: &[u8]| anyhow::Ok(parse(&ask(asker, asked)?));
    let puppet = t.pod.puppet().unwrap();
    let client = || {
        let client = puppet.udp_socket(silent.at).unwrap();
        client.connect(silent.at).unwrap();
        client
    };
    let clients: Vec<RawSocket> = (0..512).map(|_| client()).collect();
    let from_whom = || loop {
        let (asked, from) = silent.socket.receive_from(4096).unwrap();
        if asked == plain {
            break from;
        }
    };
    let all_ask = || -> Vec<SocketAddr> {
        let heard = clients.iter().map(|client| {
            client.send(&plain).unwrap();
            from_whom()
        });
        heard.collect()
    };
    // Not what the others ask: it arrives where it should not.
    let beyond = question(3, "plain.example", RecordType::A, None);
    let refused = |asker: &RawSocket| {
        let heard = said(asker, &beyond)?;
        anyhow::ensure!(heard.response_code() == ResponseCode::ServFail, "{heard}");
        Ok(())
    };
    // By whichever server, as it is the pod's room that is full. A slow machine may need another try:
    // the first of them wait no more when the last one asks.
    let (far, near) = (client(), asker(&t.pod, server_of(&t.pod)));
    let waiting = eventually(SOON, || {
        let waiting = all_ask();
        refused(&far)?;
        refused(&near)?;
        Ok(waiting)
    })
    .unwrap();
    // What the mesh knows takes no room, who waits may ask more, and other pods have room of their own.
    assert_eq!(addresses(&said(&near, &of_mesh).unwrap()), [mesh_ip]);
    let elsewhere = asker(&other, server_of(&other));
    assert_eq!(addresses(&said(&elsewhere, &plain).unwrap()), [plain_ip]);
    clients[0].send(&plain).unwrap();
    assert_eq!(from_whom(), waiting[0]);
    for (client, from) in clients.iter().zip(waiting) {
        silent.socket.send_to(b"late", 0, &sockaddr(from)).unwrap();
        assert_eq!(client.receive(100).unwrap(), b"late");
    }
    let has_room = || {
        let heard = said(&near, &plain)?;
        anyhow::ensure!(addresses(&heard) == [plain_ip], "{heard}");
        Ok(())
    };
    eventually(SOON, has_room).unwrap();
    // Nobody answers these: who asks when their time is over has room again.
    eventually(SOON, || {
        all_ask();
        refused(&near)
    })
    .unwrap();
    eventually(SOON, has_room).unwrap();
    drop(clients);
}

#[test]
fn a_server_on_a_link_local_address_of_the_node_is_a_server_like_others() {
    let t = one("dns-node-local");
    let node = &t.mesh.agent(1).node;
    let ip = Ipv4Addr::new(169, 254, 20, 10);
    let mut cmd = std::process::Command::new("ip");
    cmd.args(["addr", "add", "169.254.20.10/32", "dev", "lo"]);
    assert!(node.spawn(cmd).unwrap().wait(SOON).unwrap().success());
    let server = Server::new(node.puppet().unwrap(), ip);
    let asked = question(1, "plain.example", RecordType::A, None);
    let client = asker(&t.pod, server.at);
    client.send(&asked).unwrap();
    server.serves(&asked, &t.pod, b"an answer");
    assert_eq!(client.receive_from(100).unwrap(), (b"an answer".to_vec(), server.at));
    let of_mesh = question(2, &t.service.hostname(), RecordType::A, None);
    client.send(&of_mesh).unwrap();
    let (answer, from) = client.receive_from(4096).unwrap();
    assert_eq!(addresses(&parse(&answer)), [IpAddr::from(t.service.ipv4)]);
    assert_eq!(from, server.at);
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

fn read_framed(sock: &Sock) -> Vec<u8> {
    let length = sock.read_exact(2).unwrap();
    sock.read_exact(u16::from_be_bytes([length[0], length[1]]).into()).unwrap()
}

#[test]
fn over_tcp_several_questions_share_a_connection() {
    let t = one("dns-tcp");
    for server in t.servers() {
        let sock = connect(&t.pod, &server.to_string());
        let [(of_mesh, mesh_ip), (plain, plain_ip)] = t.questions();
        for _ in 0..3 {
            for (asked, wanted) in [(&of_mesh, mesh_ip), (&plain, plain_ip), (&of_mesh, mesh_ip)] {
                sock.write(&framed(asked)).unwrap();
                assert_eq!(addresses(&parse(&read_framed(&sock))), [wanted], "{server}");
            }
        }
        // All at once, a byte at a time, and then no more: the answers still come, and then an end.
        for byte in [framed(&of_mesh), framed(&plain), framed(&of_mesh)].concat() {
            sock.write(&[byte]).unwrap();
        }
        sock.shutdown_write().unwrap();
        let mut seen: Vec<Vec<IpAddr>> =
            (0..3).map(|_| addresses(&parse(&read_framed(&sock)))).collect();
        seen.sort();
        assert_eq!(seen, [vec![mesh_ip], vec![mesh_ip], vec![plain_ip]]);
        assert_eq!(sock.read_to_end().unwrap(), b"");
    }
}

#[test]
fn a_name_server_in_the_pod_is_the_pods_own_affair() {
    let t = one("dns-own");
    let local = Server::new(t.pod.puppet().unwrap(), Ipv4Addr::LOCALHOST);
    let client = asker(&t.pod, local.at);
    let of_mesh = question(1, &t.service.hostname(), RecordType::A, None);
    client.send(&of_mesh).unwrap();
    let (bytes, from) = local.socket.receive_from(4096).unwrap();
    assert_eq!((bytes, from.ip()), (of_mesh.clone(), Ipv4Addr::LOCALHOST.into()));
    local.socket.send_to(b"mine", 0, &sockaddr(from)).unwrap();
    assert_eq!(client.receive_from(100).unwrap(), (b"mine".to_vec(), local.at));

    // And one that serves others: questions arrive, and answers are not taken for questions.
    let resolver = t.mesh.enrolled_pod(2, "resolver");
    let server = Server::new(resolver.puppet().unwrap(), resolver.ipv4());
    let plain = question(2, "plain.example", RecordType::A, None);
    let client = asker(&t.pod, server.at);
    client.send(&plain).unwrap();
    server.serves(&plain, &t.pod, b"an answer");
    assert_eq!(client.receive_from(100).unwrap(), (b"an answer".to_vec(), server.at));
}

#[test]
fn without_an_agent_questions_fail_and_with_one_they_work_again() {
    let t = one("dns-killed");
    let [(of_mesh, mesh_ip), (plain, plain_ip)] = t.questions();
    let client = asker(&t.pod, server_of(&t.pod));
    let works = |client: &RawSocket| {
        assert_eq!(addresses(&parse(&ask(client, &of_mesh).unwrap())), [mesh_ip]);
        assert_eq!(addresses(&parse(&ask(client, &plain).unwrap())), [plain_ip]);
    };
    works(&client);
    t.mesh.agent(1).kill();
    for asked in [&of_mesh, &plain] {
        let e = ask(&asker(&t.pod, server_of(&t.pod)), asked).unwrap_err();
        assert!(["ECONNREFUSED", "EPERM"].contains(&e.kind()), "{e}");
    }
    // Refused, and not left to its patience.
    let e = ask(&client, &plain).unwrap_err();
    assert!(["ECONNREFUSED", "EPERM"].contains(&e.kind()), "{e}");
    t.mesh.agent(1).restart();
    eventually(SOON, || Ok(ask(&client, &of_mesh)?)).unwrap();
    works(&client);
    works(&asker(&t.pod, server_of(&t.pod)));
}

#[test]
fn a_pod_that_was_let_go_asks_as_before() {
    let t = one("dns-let-go");
    t.mesh.bed.dns(&t.service.hostname(), &[[192, 0, 2, 2].into()]);
    let name = t.service.hostname();
    let now = || addresses(&lookup(&t.pod, &name, RecordType::A).unwrap());
    assert_eq!(now(), [IpAddr::from(t.service.ipv4)]);
    t.mesh.unenroll(&t.pod);
    assert_eq!(now(), [IpAddr::from([192, 0, 2, 2])]);
    t.mesh.enroll(&t.pod);
    assert_eq!(now(), [IpAddr::from(t.service.ipv4)]);
    let free = t.pod.puppet().unwrap().udp_socket(server_of(&t.pod)).unwrap();
    t.mesh.unenroll(&t.pod);
    let asked = question(1, &name, RecordType::A, None);
    free.send_to(&asked, 0, &sockaddr(server_of(&t.pod))).unwrap();
    let (answer, from) = free.receive_from(4096).unwrap();
    assert_eq!(
        (addresses(&parse(&answer)), from),
        (vec![[192, 0, 2, 2].into()], server_of(&t.pod))
    );
}
