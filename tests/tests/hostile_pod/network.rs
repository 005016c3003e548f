//! The hostile pod turns its own network upside down. Its own connections may break; they do not leak, they are nobody
//! else's, and the neighbours notice nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use culvert_tests::MeshPod;
use testbed::{ConnectOpts, PuppetError, Token};

use crate::scene::{PORT, Scene};

/// A token there and back, or a failure soon.
fn try_to(from: &MeshPod, to: SocketAddr, token: &Token) -> Result<(), PuppetError> {
    let patience = Duration::from_secs(3);
    let opts = ConnectOpts { timeout: patience, ..ConnectOpts::default() };
    let sock = from.puppet().unwrap().connect(to.to_string(), opts)?.within(patience);
    sock.write(&[b"echo\n", token.bytes()].concat())?;
    assert_eq!(sock.read_exact(32)?, token.bytes());
    Ok(())
}

/// After each command: connections from and to the hostile pod, whatever becomes of them; where the node's
/// own traffic is encrypted, and where it goes past the agent.
fn upside_down(name: &str, commands: &[String]) {
    upside_down_in(&Scene::new(name), commands);
    upside_down_in(&Scene::past_the_agent(&format!("{name}-direct")), commands);
}

fn upside_down_in(scene: &Scene, commands: &[String]) {
    let token = Token::new();
    let watch = scene.watch();
    for command in commands {
        scene.run(command);
        let own = [IpAddr::from(scene.hostile.ipv4()), scene.hostile.ipv6().into()];
        let carried = std::thread::scope(|scope| {
            let mut tries = Vec::new();
            for to in scene.targets() {
                let token = &token;
                tries.push(scope.spawn(move || try_to(&scene.hostile, to, token)));
            }
            for from in [&scene.near, &scene.far] {
                for ip in own {
                    let token = &token;
                    let to = SocketAddr::new(ip, PORT);
                    tries.push(scope.spawn(move || try_to(from, to, token)));
                }
            }
            let all = tries.into_iter().map(|t| t.join().unwrap());
            all.filter(Result::is_ok).count()
        });
        println!("{carried} of 8 connections after {command}");
    }
    watch.ends_quietly(&[token]);
    // What has arrived has arrived as the hostile pod's.
    let addresses = [format!("{}:", scene.hostile.ipv4()), format!("[{}]:", scene.hostile.ipv6())];
    for agent in scene.mesh.agents() {
        for line in agent.access_log() {
            let source = line.split("src.workload").next().unwrap_or_default();
            if addresses.iter().any(|a| source.contains(&format!("src.addr=\"{a}"))) {
                assert!(line.contains(&scene.hostile.identity()), "{line}");
            }
        }
    }
}

fn commands<const N: usize>(all: [&str; N]) -> Vec<String> {
    all.map(str::to_owned).into()
}

#[test]
fn rules_and_routes() {
    upside_down(
        "routes",
        &commands([
            // The agent's mark leads out, and everything else to where nothing is.
            "ip rule add pref 1 fwmark 0x0c750001 lookup main",
            "ip rule add pref 1 fwmark 0 lookup 77; ip -6 rule add pref 1 lookup 77; ip rule del pref 1 fwmark 0",
            "ip -6 rule del pref 1 lookup 77",
            "ip rule del pref 100; ip -6 rule del pref 100",
            "ip route flush table 3189; ip -6 route flush table 3189",
            "ip route del local 127.0.0.0/8 table local; ip route add 127.0.0.0/8 via $(ip route show default | cut -d' ' -f3) onlink dev eth0 || true",
            "ip -6 route del local fd63:756c:7665:7274::/64 table local || true; ip -6 route add fd63:756c:7665:7274::/64 dev eth0",
            "ip route flush table local",
            "ip rule add pref 1 lookup main; ip rule del pref 0",
        ]),
    );
}

#[test]
fn default_routes_by_another_pod() {
    let lines = "for a in $(ip -4 -o neigh | cut -d' ' -f1) 10.10.1.3; do ip route replace default via $a; done";
    upside_down(
        "gateway",
        &commands([lines, "ip -6 route replace default via fd10:10:1::3", "ip neigh flush all"]),
    );
}

#[test]
fn sysctls() {
    let set = |path: &str, value: &str| format!("echo {value} > /proc/sys/net/{path}");
    let mut all = vec![
        set("ipv4/ip_nonlocal_bind", "1"),
        set("ipv6/ip_nonlocal_bind", "1"),
        set("ipv4/conf/all/route_localnet", "1"),
        set("ipv4/conf/all/accept_local", "1"),
        set("ipv4/ip_forward", "1"),
        set("ipv6/conf/all/forwarding", "1"),
        set("ipv4/conf/all/rp_filter", "1"),
        set("ipv4/conf/all/rp_filter", "2"),
        set("ipv4/tcp_syncookies", "2"),
        set("ipv4/tcp_syncookies", "0"),
        set("ipv4/tcp_l3mdev_accept", "1"),
    ];
    all.extend(commands([
        "echo 0 > /proc/sys/net/ipv4/tcp_fwmark_accept",
        "echo '1024 1030' > /proc/sys/net/ipv4/ip_local_port_range",
        "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
    ]));
    upside_down("sysctls", &all);
}

/// Its own address translation moves packets of announced connections elsewhere, and of others into the agent's place.
#[test]
fn address_translation() {
    let table = "add table ip n; add chain ip n o { type nat hook output priority -100; }; \
                 add chain ip n p { type nat hook postrouting priority 100; }";
    upside_down(
        "nat",
        &[
            format!("nft '{table}'"),
            // What is captured goes straight to the server.
            format!("nft add rule ip n o ip daddr 127.128.0.0/9 meta l4proto tcp dnat to 10.10.1.3:{PORT}"),
            format!("nft 'flush chain ip n o; add rule ip n o tcp dport 15008 dnat to 10.10.1.3:{PORT}'"),
            // And everything comes from the silent pod.
            "nft 'flush chain ip n o; add rule ip n p oif eth0 snat to 10.10.1.4'".to_owned(),
            "nft 'flush ruleset; add table ip f; add chain ip f i { type filter hook input priority 0; }; \
             add rule ip f i iif lo drop'"
                .to_owned(),
        ],
    );
}

/// With the pod's own CAP_NET_ADMIN any socket of its namespace can be ended, the agent's among them.
#[test]
fn the_agents_sockets_are_destroyed() {
    let scene = Scene::new("destroy");
    let watch = scene.watch();
    let token = Token::new();
    for to in scene.targets() {
        try_to(&scene.hostile, to, &token).unwrap();
    }
    let killed = scene.run("ss -K -a -t -n -H 2>&1 | wc -l");
    println!("{} sockets were destroyed", killed.trim());
    for to in scene.targets() {
        println!("{to}: {:?}", try_to(&scene.hostile, to, &token));
    }
    // However long it goes on, the log is not filled with it.
    let complaints = || {
        let log = scene.mesh.agent(1).log();
        log.lines().filter(|l| l.contains("accept")).count()
    };
    let bystander = culvert_tests::Traffic::start(
        &scene.client,
        &culvert_tests::at(scene.near.ipv4(), PORT),
        token,
    );
    bystander.succeeds(2000);
    assert_eq!(bystander.stop().failed, 0);
    watch.ends_quietly(&[token]);
    assert!(complaints() <= 12, "{} complaints", complaints());
}
