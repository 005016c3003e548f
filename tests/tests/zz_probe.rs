#![allow(clippy::unwrap_used)]
use culvert_tests::dialogue::*;
use culvert_tests::*;
use std::time::Instant;
use testbed::*;
#[test]
fn probe() {
    let mesh = Mesh::new("probe");
    let (c, s, x) = (mesh.pod(1, "client"), mesh.pod(2, "server"), mesh.pod(2, "x"));
    serve(&s, 8080, Serve::Script);
    serve(&x, 8080, Serve::Script);
    let to = at(s.ipv4(), 8080);
    let run = |what: &str, to: &str| {
        let mut parts = [0u128; 5];
        let n = 50;
        for _ in 0..n {
            let t = Instant::now();
            let sock = c.puppet().unwrap().connect(to, ConnectOpts::default()).unwrap();
            parts[0] += t.elapsed().as_micros(); let t = Instant::now();
            sock.write(b"echo\n").unwrap();
            parts[1] += t.elapsed().as_micros(); let t = Instant::now();
            sock.write(&[7; 32]).unwrap();
            parts[2] += t.elapsed().as_micros(); let t = Instant::now();
            sock.read_exact(32).unwrap();
            parts[3] += t.elapsed().as_micros(); let t = Instant::now();
            sock.close().unwrap();
            parts[4] += t.elapsed().as_micros();
        }
        println!("{what}: connect,write,write,read,close us {:?}", parts.map(|p| p / n));
        let sock = echo_to(&c, to).unwrap();
        let t = Instant::now();
        for _ in 0..n { sock.write(b"12345678").unwrap(); sock.read_exact(8).unwrap(); }
        println!("{what}: ping-pong us {}", t.elapsed().as_micros() / n);
        let r = c.puppet().unwrap().short_connections(at(if what.contains("x") { x.ipv4() } else { s.ipv4() }, 8082), 2000, 1, SOON);
        println!("{what}: {r:?}");
    };
    serve(&s, 8082, Serve::Echo);
    serve(&x, 8082, Serve::Echo);
    run("plain", &to);
    mesh.enroll(&s); mesh.enroll(&c);
    run("mesh", &to);
    run("mesh to x", &at(x.ipv4(), 8080));
}
