//! Questions at random: an enrolled pod hears of each what a pod beside it hears, which asks the
//! plain resolver. Each seed is one list of questions; a seed that fails is named, and runs again.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::net::IpAddr;

use culvert_tests::dialogue::connect;
use culvert_tests::names::{RecordType, addresses, ask, asker, parse, question, server_of};
use culvert_tests::{Mesh, MeshPod};
use rand::Rng as _;
use sim::{Run, simulate};
use testbed::RawSocket;

const QUESTIONS: usize = 12;
/// Its answer says that nothing will come for what was asked before it.
const LAST: u16 = 0xffff;

/// Hosts of the mesh, hosts that the resolver behind knows, and hosts of nobody; what a resolver
/// library makes of short names is among them.
const NAMES: [&str; 12] = [
    "web.default.svc.cluster.local",
    "web.default.svc.cluster.local",
    "WEB.Default.svc.cluster.LOCAL",
    "db.default.svc.cluster.local",
    "web",
    "web.default",
    "web.other.svc.cluster.local",
    "x.web.default.svc.cluster.local",
    "plain.example",
    "plain.example.default.svc.cluster.local",
    "_http._tcp.web.default.svc.cluster.local",
    "nobody.example",
];

const KINDS: [RecordType; 10] = [
    RecordType::A,
    RecordType::A,
    RecordType::A,
    RecordType::AAAA,
    RecordType::AAAA,
    RecordType::ANY,
    RecordType::TXT,
    RecordType::SRV,
    RecordType::HTTPS,
    RecordType::Unknown(65_280),
];

fn asked(run: &mut Run) -> Vec<u8> {
    // Not the last one's.
    let id = run.rng.random_range(0..LAST);
    let payload = run.pick(&[None, None, Some(0), Some(512), Some(1232), Some(4096), Some(65_535)]);
    let (name, kind) = (run.pick(&NAMES), run.pick(&KINDS));
    let mut bytes = question(id, name, kind, payload);
    if run.chance(0.1) {
        bytes[2] ^= run.pick(&[1, 2, 4, 8, 16, 64, 0x78]);
    }
    if run.chance(0.1) {
        bytes[3] ^= run.pick(&[0x10, 0x20, 0x40, 0x80, 5]);
    }
    if run.chance(0.2) {
        // Behind the id, which tells answers apart.
        let at = run.rng.random_range(2..bytes.len());
        bytes[at] = run.rng.random();
    }
    if run.chance(0.1) {
        bytes.truncate(run.rng.random_range(2..=bytes.len()));
    }
    if run.chance(0.1) {
        bytes.extend((0..run.rng.random_range(1..40)).map(|_| run.rng.random::<u8>()));
    }
    bytes
}

fn id_of(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[0], message[1]])
}

/// What comes back, if anything does.
fn heard(socket: &RawSocket, asked: &[u8]) -> Option<Vec<u8>> {
    socket.send(asked).unwrap();
    socket.send(&question(LAST, "plain.example", RecordType::A, None)).unwrap();
    let first = socket.receive(65_535).unwrap();
    if id_of(&first) == LAST {
        return None;
    }
    assert_eq!(id_of(&first), id_of(asked));
    assert_eq!(id_of(&socket.receive(65_535).unwrap()), LAST);
    Some(first)
}

fn heard_over_tcp(pod: &MeshPod, asked: &[u8]) -> Vec<u8> {
    let sock = connect(pod, &server_of(pod).to_string());
    let framed = [&u16::try_from(asked.len()).unwrap().to_be_bytes(), asked].concat();
    sock.write(&framed).unwrap();
    let length = sock.read_exact(2).unwrap();
    sock.read_exact(id_of(&length).into()).unwrap()
}

/// The resolver's bytes; or, where the mesh has answered, what says the same. How long an answer is
/// good for, in which order addresses stand and whose answer it is are the mesh's to say.
fn same(ours: &[u8], plain: &[u8]) {
    if ours == plain {
        return;
    }
    let (ours, plain) = (parse(ours), parse(plain));
    assert_eq!(ours.message_type(), plain.message_type());
    assert_eq!(ours.op_code(), plain.op_code());
    assert_eq!(ours.response_code(), plain.response_code());
    assert_eq!(ours.recursion_desired(), plain.recursion_desired());
    assert_eq!(ours.truncated(), plain.truncated());
    assert_eq!(ours.queries(), plain.queries());
    assert_eq!(addresses(&ours), addresses(&plain));
    assert_eq!(ours.answers().len(), addresses(&ours).len());
    assert_eq!(ours.name_servers(), []);
    assert_eq!(ours.additionals(), []);
}

#[test]
fn answers_are_those_of_the_plain_resolver() {
    let mesh = Mesh::new("dns-random");
    let (enrolled, plain) = (mesh.enrolled_pod(1, "web"), mesh.pod(1, "db"));
    mesh.service("web", 80, 8080, &[&enrolled]);
    mesh.service("db", 80, 8080, &[&plain]);
    mesh.bed.dns("plain.example", &[[192, 0, 2, 1].into(), IpAddr::from([0x20; 16])]);
    let known = question(1, "db.default.svc.cluster.local", RecordType::A, None);
    let through_agent = asker(&enrolled, server_of(&enrolled));
    testbed::eventually(culvert_tests::SOON, || {
        // The mesh's answers are its own: the resolver's are good for less long.
        let said = parse(&ask(&through_agent, &known)?);
        let life = said.answers().first().map(hickory_proto::rr::Record::ttl);
        anyhow::ensure!(life.is_some_and(|seconds| seconds > 5), "{said}");
        Ok(())
    })
    .unwrap();
    let direct = asker(&plain, server_of(&plain));
    let answered = || mesh.agent(1).metric("istio_dns_requests_total", &[]);
    let forwarded = || mesh.agent(1).metric("istio_dns_upstream_requests_total", &[]);
    let before = (answered(), forwarded());
    simulate(|run| {
        for _ in 0..QUESTIONS {
            let asked = asked(run);
            run.note(format!("{asked:02x?}"));
            let (ours, theirs) = (heard(&through_agent, &asked), heard(&direct, &asked));
            match (&ours, &theirs) {
                (Some(ours), Some(theirs)) => same(ours, theirs),
                (None, None) => {}
                _ => panic!("{ours:?} is not {theirs:?}"),
            }
            if ours.is_some() && run.chance(0.1) {
                same(&heard_over_tcp(&enrolled, &asked), &heard_over_tcp(&plain, &asked));
            }
        }
    });
    // Both kinds were among them, unless it was for one list of questions alone.
    if std::env::var_os("CULVERT_SIM_SEED").is_some() {
        return;
    }
    let (all, passed) = (answered() - before.0, forwarded() - before.1);
    assert!(passed > 500.0 && all - passed > 100.0, "{passed} of {all} were passed on");
}
