//! Two nodes with pods: who reaches whom, and how.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use testbed::{Bed, ConnectOpts, Node, Pod, Serve, eventually};

struct Two {
    // First, so that what the others hold is closed by their owner's end, as in a test that panics.
    bed: Bed,
    n1: Node,
    n2: Node,
    a: Pod,
    b: Pod,
    c: Pod,
}

/// Pods `a` and `b` on the first node, `c` on the second, each with a scripted server on 8080.
fn two(name: &str) -> Two {
    let bed = Bed::new(name).unwrap();
    let n1 = bed.node("n1").unwrap();
    let n2 = bed.node("n2").unwrap();
    let (a, b, c) = (n1.pod("a").unwrap(), n1.pod("b").unwrap(), n2.pod("c").unwrap());
    for pod in [&a, &b, &c] {
        pod.puppet().unwrap().listen(any(8080), Serve::Script).unwrap();
    }
    Two { bed, n1, n2, a, b, c }
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// What the server at `addr` sees as the client's address; proof that bytes went both ways.
fn whoami(from: &Pod, addr: impl Into<String>) -> IpAddr {
    let sock = from.puppet().unwrap().connect(addr, ConnectOpts::default()).unwrap();
    sock.write(b"whoami\n").unwrap();
    sock.shutdown_write().unwrap();
    let line: serde_json::Value = serde_json::from_slice(&sock.read_to_end().unwrap()).unwrap();
    let peer: SocketAddr = line["peer"].as_str().unwrap().parse().unwrap();
    peer.ip().to_canonical()
}

fn at(ip: impl Into<IpAddr>, port: u16) -> String {
    SocketAddr::new(ip.into(), port).to_string()
}

#[test]
fn pods_reach_each_other_and_see_true_addresses() {
    let t = two("reach");
    for (from, to) in [(&t.a, &t.b), (&t.a, &t.c), (&t.c, &t.a), (&t.a, &t.a)] {
        assert_eq!(whoami(from, at(to.ipv4(), 8080)), from.ipv4());
        assert_eq!(whoami(from, at(to.ipv6(), 8080)), from.ipv6());
    }
    t.bed.close().unwrap();
}

#[test]
fn nodes_and_the_outside_reach_pods() {
    let t = two("outside");
    let opts = ConnectOpts::default;
    for to in [&t.a, &t.c] {
        for ip in [IpAddr::from(to.ipv4()), to.ipv6().into()] {
            t.n1.puppet().unwrap().connect(at(ip, 8080), opts()).unwrap();
            t.bed.fabric_puppet().unwrap().connect(at(ip, 8080), opts()).unwrap();
        }
    }
}

#[test]
fn a_vip_reaches_backends_on_both_nodes_and_the_caller_itself() {
    let t = two("vip");
    let (vip4, vip6) = (Ipv4Addr::new(10, 96, 0, 10), "fd96::10".parse::<Ipv6Addr>().unwrap());
    let backend = |p: &Pod| (p.ipv4(), Some(p.ipv6()), 8080);
    for to in [&t.a, &t.b, &t.c] {
        t.bed.service(vip4, Some(vip6), 80, &[backend(to)]).unwrap();
        let (by4, by6) = (whoami(&t.a, at(vip4, 80)), whoami(&t.a, at(vip6, 80)));
        if to.node().name() == "n2" {
            assert_eq!((by4, by6), (t.a.ipv4().into(), t.a.ipv6().into()));
        } else {
            // The node stands between two of its own pods.
            assert_eq!((by4, by6), (t.n1.gateway4().into(), t.n1.gateway6().into()));
        }
    }
    // The node's own processes, and a node that came later.
    t.n1.puppet().unwrap().connect(at(vip4, 80), ConnectOpts::default()).unwrap();
    let late = t.bed.node("n3").unwrap().pod("late").unwrap();
    assert_eq!(whoami(&late, at(vip6, 80)), late.ipv6());
    t.bed.service(vip4, Some(vip6), 80, &[]).unwrap();
    let gone = t.a.puppet().unwrap().connect(at(vip4, 80), ConnectOpts::default()).unwrap_err();
    assert_eq!(gone.kind(), "ENETUNREACH", "{gone}");
}

#[test]
fn a_vip_is_spread_over_its_backends() {
    let t = two("spread");
    let vip = Ipv4Addr::new(10, 96, 0, 11);
    for pod in [&t.b, &t.c] {
        pod.puppet().unwrap().listen(any(9000), Serve::Banner(pod.name().to_owned())).unwrap();
    }
    t.bed.service(vip, None, 80, &[(t.b.ipv4(), None, 9000), (t.c.ipv4(), None, 9000)]).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    eventually(Duration::from_secs(20), || {
        let sock = t.a.puppet()?.connect(at(vip, 80), ConnectOpts::default())?;
        seen.insert(sock.read_exact(1)?);
        anyhow::ensure!(seen.len() == 2, "only {seen:?} so far");
        Ok(())
    })
    .unwrap();
}

#[test]
fn names_are_resolved_in_the_pod() {
    let t = two("dns");
    t.bed.dns("web.default.svc.cluster.local", &[t.c.ipv4().into(), t.c.ipv6().into()]);
    t.bed.dns("four.default.svc.cluster.local.", &[t.c.ipv4().into()]);
    let puppet = t.a.puppet().unwrap();
    let mut both = puppet.resolve("web").unwrap();
    both.sort();
    assert_eq!(both, [IpAddr::from(t.c.ipv4()), t.c.ipv6().into()]);
    assert_eq!(puppet.resolve("WEB.default").unwrap().len(), 2);
    assert_eq!(
        puppet.resolve("four.default.svc.cluster.local").unwrap(),
        [IpAddr::from(t.c.ipv4())]
    );
    assert_eq!(puppet.resolve("nobody").unwrap_err().kind(), "resolve");
    assert!(whoami(&t.a, "web:8080") == t.a.ipv6() || whoami(&t.a, "web:8080") == t.a.ipv4());
    // Another Kubernetes namespace has another search list.
    let stranger = t.n2.pod_in("other", "stranger").unwrap();
    assert_eq!(stranger.puppet().unwrap().resolve("web").unwrap_err().kind(), "resolve");
    assert_eq!(stranger.puppet().unwrap().resolve("web.default").unwrap().len(), 2);
}

#[test]
fn large_answers_come_by_tcp() {
    let t = two("dns-tcp");
    let many: Vec<IpAddr> = (1..=100).map(|i| Ipv4Addr::new(10, 99, 0, i).into()).collect();
    t.bed.dns("many.default.svc.cluster.local", &many);
    assert_eq!(t.a.puppet().unwrap().resolve("many").unwrap().len(), 100);
}

#[test]
fn a_deleted_pod_frees_its_name_and_address() {
    let t = two("delete");
    let (ip, name) = (t.b.ipv4(), t.b.netns_name());
    let b = t.b.clone();
    t.b.delete().unwrap();
    assert!(b.puppet().is_err() && !b.cgroup().exists());
    let list = Command::new("ip").args(["netns", "list"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&list.stdout).contains(&name));
    let refused = ConnectOpts { timeout: Duration::from_secs(10), ..ConnectOpts::default() };
    let puppet = t.a.puppet().unwrap();
    assert!(puppet.connect(at(ip, 8080), refused).is_err());
    let again = t.n1.pod_at("b", 3).unwrap();
    assert_eq!(again.ipv4(), ip);
    again.puppet().unwrap().listen(any(8080), Serve::Script).unwrap();
    assert_eq!(whoami(&t.a, at(ip, 8080)), t.a.ipv4());
}

#[test]
fn programs_run_where_they_should() {
    let t = two("spawn");
    let mut cmd = Command::new("sh");
    cmd.args(["-c", "cat /etc/resolv.conf; cat /proc/self/cgroup; ip -o addr; pwd; echo done >&2"]);
    cmd.current_dir("/tmp");
    let run = t.a.spawn(cmd).unwrap();
    assert!(run.wait(Duration::from_secs(20)).unwrap().success());
    let (out, ip) = (run.stdout(), t.a.ipv4().to_string());
    for part in
        ["nameserver 10.10.1.1", "/n1/pods/a", &ip, "\n/tmp\n", "search default.svc.cluster.local"]
    {
        assert!(out.contains(part), "{part} is not in {out}");
    }
    assert_eq!(run.stderr(), "done\n");

    let mut cmd = Command::new("sh");
    cmd.args(["-c", "cat /proc/self/cgroup; ip -o addr; ip route; sleep 1000"]);
    let run = t.n2.spawn(cmd).unwrap();
    run.wait_for_output("10.10.1.0/24 via 172.18.0.1", Duration::from_secs(20)).unwrap();
    assert!(run.stdout().contains("/n2/agent") && run.stdout().contains("172.18.0.2/24"));
    assert!(run.is_running());
    run.signal(testbed::Signal::SIGTERM).unwrap();
    assert!(!run.wait(Duration::from_secs(20)).unwrap().success());
}

#[test]
fn counters_and_settings_are_the_pods_own() {
    let t = two("stats");
    let before = t.a.netstat("Tcp.ActiveOpens").unwrap();
    whoami(&t.a, at(t.b.ipv4(), 8080));
    assert_eq!(t.a.netstat("Tcp.ActiveOpens").unwrap(), before + 1);
    t.a.netstat("TCPSynRetrans").unwrap();
    t.a.sysctl("net.ipv4.tcp_syncookies", "2").unwrap();
    let read = |pod: &Pod| {
        pod.inside(|| Ok(std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies")?))
    };
    assert_eq!(read(&t.a).unwrap().trim(), "2");
    assert_ne!(read(&t.b).unwrap().trim(), "2");
    let index = t.n1.inside(|| Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?)).unwrap();
    assert!(index.contains(&t.a.host_ifname()) && t.a.host_ifindex() > 0);
}
