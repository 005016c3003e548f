//! What a program can ask its kernel about a connection past the agent is what it is told of one without a mesh.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::net::SocketAddr;

use culvert_tests::{Mesh, MeshPod, SOON, any, at, attempt};
use testbed::{RawSocket, Serve, eventually, libc};

const PORT: u16 = 8080;

/// What was asked, and what the kernel said.
type Answers = BTreeMap<String, String>;

struct Pair {
    mesh: Mesh,
    client: MeshPod,
    server: MeshPod,
}

/// Both ends of one connection.
struct Ends {
    client: RawSocket,
    server: RawSocket,
}

impl Pair {
    fn connected(&self, to: SocketAddr) -> Ends {
        let puppet = self.server.puppet().unwrap();
        let listener = puppet.tcp_socket(to).unwrap();
        listener.set_int(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
        listener.set_int(libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, 1).unwrap();
        listener.bind(to).unwrap();
        listener.listen(8).unwrap();
        let client = self.client.puppet().unwrap().tcp_socket(to).unwrap();
        client.connect(to).unwrap();
        let server = listener.accept().unwrap();
        Ends { client, server }
    }
}

/// Options that are read, with room for what they hold.
const READ: [(&str, i32, i32, usize); 42] = [
    ("SO_TYPE", libc::SOL_SOCKET, libc::SO_TYPE, 4),
    ("SO_DOMAIN", libc::SOL_SOCKET, libc::SO_DOMAIN, 4),
    ("SO_PROTOCOL", libc::SOL_SOCKET, libc::SO_PROTOCOL, 4),
    ("SO_ERROR", libc::SOL_SOCKET, libc::SO_ERROR, 4),
    ("SO_KEEPALIVE", libc::SOL_SOCKET, libc::SO_KEEPALIVE, 4),
    ("SO_LINGER", libc::SOL_SOCKET, libc::SO_LINGER, 8),
    ("SO_SNDBUF", libc::SOL_SOCKET, libc::SO_SNDBUF, 4),
    ("SO_MARK", libc::SOL_SOCKET, libc::SO_MARK, 4),
    ("SO_PRIORITY", libc::SOL_SOCKET, libc::SO_PRIORITY, 4),
    ("SO_REUSEADDR", libc::SOL_SOCKET, libc::SO_REUSEADDR, 4),
    ("SO_REUSEPORT", libc::SOL_SOCKET, libc::SO_REUSEPORT, 4),
    ("SO_BINDTODEVICE", libc::SOL_SOCKET, libc::SO_BINDTODEVICE, 16),
    ("SO_RCVLOWAT", libc::SOL_SOCKET, libc::SO_RCVLOWAT, 4),
    ("SO_TIMESTAMP", libc::SOL_SOCKET, libc::SO_TIMESTAMP, 4),
    ("SO_OOBINLINE", libc::SOL_SOCKET, libc::SO_OOBINLINE, 4),
    ("SO_ZEROCOPY", libc::SOL_SOCKET, libc::SO_ZEROCOPY, 4),
    ("SO_BUSY_POLL", libc::SOL_SOCKET, libc::SO_BUSY_POLL, 4),
    ("SO_MAX_PACING_RATE", libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, 8),
    ("SO_DONTROUTE", libc::SOL_SOCKET, libc::SO_DONTROUTE, 4),
    ("SO_ACCEPTCONN", libc::SOL_SOCKET, libc::SO_ACCEPTCONN, 4),
    ("SO_NETNS_COOKIE", libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, 8),
    ("TCP_MAXSEG", libc::IPPROTO_TCP, libc::TCP_MAXSEG, 4),
    ("TCP_CONGESTION", libc::IPPROTO_TCP, libc::TCP_CONGESTION, 16),
    ("TCP_NODELAY", libc::IPPROTO_TCP, libc::TCP_NODELAY, 4),
    ("TCP_CORK", libc::IPPROTO_TCP, libc::TCP_CORK, 4),
    ("TCP_KEEPIDLE", libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 4),
    ("TCP_KEEPINTVL", libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 4),
    ("TCP_KEEPCNT", libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 4),
    ("TCP_SYNCNT", libc::IPPROTO_TCP, libc::TCP_SYNCNT, 4),
    ("TCP_LINGER2", libc::IPPROTO_TCP, libc::TCP_LINGER2, 4),
    ("TCP_DEFER_ACCEPT", libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 4),
    ("TCP_USER_TIMEOUT", libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 4),
    ("TCP_FASTOPEN", libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 4),
    ("TCP_FASTOPEN_CONNECT", libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 4),
    ("TCP_ULP", libc::IPPROTO_TCP, libc::TCP_ULP, 16),
    ("TCP_REPAIR", libc::IPPROTO_TCP, libc::TCP_REPAIR, 4),
    ("IP_TOS", libc::IPPROTO_IP, libc::IP_TOS, 4),
    ("IP_TTL", libc::IPPROTO_IP, libc::IP_TTL, 4),
    ("IP_MTU", libc::IPPROTO_IP, libc::IP_MTU, 4),
    ("IP_MTU_DISCOVER", libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, 4),
    ("IP_TRANSPARENT", libc::IPPROTO_IP, libc::IP_TRANSPARENT, 4),
    ("IP_FREEBIND", libc::IPPROTO_IP, libc::IP_FREEBIND, 4),
];

/// Options that programs set, and what to.
const SET: [(&str, i32, i32, i32); 12] = [
    ("SO_KEEPALIVE", libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
    ("SO_SNDBUF", libc::SOL_SOCKET, libc::SO_SNDBUF, 100_000),
    ("SO_RCVBUF", libc::SOL_SOCKET, libc::SO_RCVBUF, 100_000),
    ("SO_RCVLOWAT", libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1),
    ("SO_ZEROCOPY", libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1),
    ("SO_PRIORITY", libc::SOL_SOCKET, libc::SO_PRIORITY, 4),
    ("TCP_NODELAY", libc::IPPROTO_TCP, libc::TCP_NODELAY, 1),
    ("TCP_KEEPIDLE", libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 17),
    ("TCP_KEEPCNT", libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3),
    ("TCP_USER_TIMEOUT", libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 9000),
    ("TCP_QUICKACK", libc::IPPROTO_TCP, libc::TCP_QUICKACK, 1),
    ("IP_TOS", libc::IPPROTO_IP, libc::IP_TOS, 0x10),
];

/// Of `struct tcp_info` (include/uapi/linux/tcp.h): what does not depend on how fast the two ends were. Name, offset,
/// bytes.
const INFO: [(&str, usize, usize); 21] = [
    ("state", 0, 1),
    ("ca_state", 1, 1),
    ("retransmits", 2, 1),
    ("probes", 3, 1),
    ("backoff", 4, 1),
    ("options", 5, 1),
    ("window scales", 6, 1),
    ("snd_mss", 16, 4),
    ("unacked", 24, 4),
    ("sacked", 28, 4),
    ("lost", 32, 4),
    ("retrans", 36, 4),
    ("pmtu", 60, 4),
    ("advmss", 84, 4),
    ("total_retrans", 100, 4),
    ("max_pacing_rate", 112, 8),
    ("bytes_acked", 120, 8),
    ("bytes_received", 128, 8),
    ("notsent_bytes", 144, 4),
    ("bytes_sent", 200, 8),
    ("bytes_retrans", 208, 8),
];

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b))
}

fn info(socket: &RawSocket) -> BTreeMap<&'static str, u64> {
    let all = socket.get(libc::IPPROTO_TCP, libc::TCP_INFO, 232).unwrap();
    INFO.iter().map(|(name, at, len)| (*name, number(&all[*at..at + len]))).collect()
}

impl Ends {
    fn each(&self) -> [(&'static str, &RawSocket); 2] {
        [("client", &self.client), ("server", &self.server)]
    }

    /// What was sent has been acknowledged, which the kernel may put off.
    fn settled(&self) {
        eventually(SOON, || {
            for (which, socket) in self.each() {
                let info = info(socket);
                anyhow::ensure!(info["unacked"] == 0, "{which}: {info:?}");
            }
            Ok(())
        })
        .unwrap();
    }

    fn tell(&self, when: &str, answers: &mut Answers) {
        for (which, socket) in self.each() {
            let mut add = |what: &str, said: String| {
                answers.insert(format!("{when}, {which}: {what}"), said);
            };
            for (name, level, option, room) in READ {
                let said = socket.get(level, option, room);
                add(name, said.map_or_else(|e| e.kind().to_owned(), |v| format!("{v:?}")));
            }
            for (name, value) in info(socket) {
                add(&format!("tcp_info {name}"), value.to_string());
            }
            add("SIOCINQ", socket.ioctl(SIOCINQ).unwrap().to_string());
            add("SIOCOUTQ", socket.ioctl(SIOCOUTQ).unwrap().to_string());
        }
    }
}

const SIOCINQ: u32 = 0x541b;
const SIOCOUTQ: u32 = 0x5411;

fn exactly(socket: &RawSocket, wanted: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < wanted {
        let part = socket.receive(wanted - all.len()).unwrap();
        assert!(!part.is_empty(), "the end after {} bytes of {wanted}", all.len());
        all.extend(part);
    }
    all
}

/// One connection from its beginning to its end.
fn seen(pair: &Pair, to: SocketAddr) -> Answers {
    let mut answers = Answers::new();
    let ends = pair.connected(to);
    let mut note = |what: &str, said: String| drop(answers.insert(what.to_owned(), said));
    note("the peer of the client", ends.client.peer().unwrap().to_string());
    note("the client's address", ends.client.local().unwrap().ip().to_string());
    note("the server's address", ends.server.local().unwrap().to_string());
    note(
        "the names agree",
        (ends.client.local().unwrap() == ends.server.peer().unwrap()).to_string(),
    );
    let syn = ends.server.get(libc::IPPROTO_TCP, libc::TCP_SAVED_SYN, 500).unwrap();
    note("the SYN's length", syn.len().to_string());
    ends.settled();
    ends.tell("connected", &mut answers);
    ends.client.send(&[1; 1000]).unwrap();
    eventually(SOON, || {
        anyhow::ensure!(ends.server.ioctl(SIOCINQ)? == 1000, "not all has come");
        Ok(())
    })
    .unwrap();
    ends.settled();
    ends.tell("with something unread", &mut answers);
    assert_eq!(exactly(&ends.server, 1000), [1; 1000]);
    ends.server.send(&[2; 3000]).unwrap();
    assert_eq!(exactly(&ends.client, 3000), [2; 3000]);
    ends.settled();
    ends.tell("after an answer", &mut answers);
    for (which, socket) in ends.each() {
        for (name, level, option, value) in SET {
            let done = socket.set_int(level, option, value).map_err(|e| e.kind().to_owned());
            let now = socket.get(level, option, 4).map_err(|e| e.kind().to_owned());
            answers.insert(format!("{which}: {name} set to {value}"), format!("{done:?}, {now:?}"));
        }
    }
    ends.server.set_int(libc::SOL_SOCKET, libc::SO_OOBINLINE, 1).unwrap();
    ends.client.send_to(b"!", libc::MSG_OOB, &[]).unwrap();
    let urgent = exactly(&ends.server, 1);
    answers.insert("urgent data".to_owned(), format!("{urgent:?}"));
    ends.client.shutdown(libc::SHUT_WR).unwrap();
    answers.insert("half-closed".to_owned(), format!("{:?}", ends.server.receive(1).unwrap()));
    ends.server.send(b"still").unwrap();
    answers.insert("the other half".to_owned(), format!("{:?}", exactly(&ends.client, 5)));
    ends.settled();
    ends.tell("half-closed", &mut answers);
    // The end with a reset.
    ends.server.set(libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    drop(ends.server);
    let end = ends.client.receive(1).map_err(|e| e.kind().to_owned());
    answers.insert("reset".to_owned(), format!("{end:?}"));
    answers
}

#[test]
fn a_connection_past_the_agent_is_told_of_as_one_without_a_mesh() {
    let mesh = Mesh::new("plain-tcp");
    let (client, server) = (mesh.pod(1, "client"), mesh.pod(1, "server"));
    for pod in [&client, &server] {
        // The mesh's choice within a node, and what hangs on it, as the send buffer.
        pod.sysctl("net.ipv4.tcp_congestion_control", "reno").unwrap();
    }
    let pair = Pair { mesh, client, server };
    let addresses: [SocketAddr; 2] =
        [at(pair.server.ipv4(), PORT), at(pair.server.ipv6(), PORT)].map(|a| a.parse().unwrap());
    let plain = addresses.map(|to| seen(&pair, to));
    pair.mesh.enroll_all(&[pair.client.clone(), pair.server.clone()]);
    let direct = || pair.mesh.agent_of(&pair.client).counter(&pair.client, "direct");
    // The first of a kind goes through the agent.
    let listener = pair.server.puppet().unwrap().listen(any(PORT), Serve::Script).unwrap();
    for to in addresses {
        let before = direct();
        eventually(SOON, || {
            attempt(&pair.client, &to.to_string())?;
            anyhow::ensure!(direct() > before, "no connection past the agent to {to}");
            Ok(())
        })
        .unwrap();
    }
    listener.close().unwrap();
    for (to, plain) in addresses.into_iter().zip(plain) {
        let before = direct();
        let meshed = seen(&pair, to);
        assert_eq!(direct(), before + 1, "{to}");
        assert!(plain.len() > 200, "{plain:?}");
        let other: Vec<String> = plain
            .iter()
            .filter(|(what, said)| meshed.get(*what) != Some(*said))
            .map(|(what, said)| {
                format!("{what}: {said} without, {:?} with a mesh", meshed.get(what))
            })
            .collect();
        assert!(other.is_empty(), "to {to}:\n{}", other.join("\n"));
        assert_eq!(plain.len(), meshed.len());
    }
}
