//! What applications see of their sockets: as without a mesh.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::{IpAddr, SocketAddr};

use culvert_tests::dialogue::{Seen, serve, whoami_with};
use culvert_tests::{Mesh, MeshPod, at};
use testbed::{ConnectOpts, Serve};

const PORT: u16 = 8080;

struct Pair {
    _mesh: Mesh,
    client: MeshPod,
    server: MeshPod,
}

fn pair(name: &str) -> Pair {
    let mesh = Mesh::new(name);
    let (client, server) = (mesh.pod(1, "client"), mesh.pod(2, "server"));
    serve(&server, PORT, Serve::Script);
    mesh.enroll_all(&[client.clone(), server.clone()]);
    Pair { _mesh: mesh, client, server }
}

impl Pair {
    fn ask(&self, to: impl Into<IpAddr>, opts: ConnectOpts) -> Seen {
        whoami_with(&self.client.puppet().unwrap(), &at(to, PORT), opts).unwrap()
    }
}

fn mapped(ip: std::net::Ipv4Addr) -> IpAddr {
    ip.to_ipv6_mapped().into()
}

#[test]
fn an_ipv4_socket_sees_ipv4_addresses() {
    let p = pair("v4");
    let seen = p.ask(p.server.ipv4(), ConnectOpts::default());
    assert_eq!(seen.client.peer, SocketAddr::new(p.server.ipv4().into(), PORT));
    assert_eq!(seen.client.local.ip(), p.client.ipv4());
    assert_eq!(seen.peer.ip(), p.client.ipv4());
    assert_eq!(seen.local, SocketAddr::new(p.server.ipv4().into(), PORT));
}

#[test]
fn an_ipv6_socket_sees_ipv6_addresses() {
    let p = pair("v6");
    for v6only in [None, Some(true)] {
        let seen = p.ask(p.server.ipv6(), ConnectOpts { v6only, ..ConnectOpts::default() });
        assert_eq!(seen.client.peer, SocketAddr::new(p.server.ipv6().into(), PORT));
        assert_eq!(seen.client.local.ip(), p.client.ipv6());
        assert_eq!(seen.peer.ip(), p.client.ipv6());
        assert_eq!(seen.local, SocketAddr::new(p.server.ipv6().into(), PORT));
    }
}

#[test]
fn a_mapped_socket_sees_mapped_addresses() {
    let p = pair("mapped");
    let seen = p.ask(p.server.ipv4(), ConnectOpts { mapped: true, ..ConnectOpts::default() });
    assert_eq!(seen.client.peer, SocketAddr::new(mapped(p.server.ipv4()), PORT));
    assert_eq!(seen.client.local.ip(), mapped(p.client.ipv4()));
    // The server's view, which the script gives unmapped.
    assert_eq!(seen.peer.ip(), p.client.ipv4());
}

#[test]
fn a_server_of_one_family_sees_the_client_as_well() {
    let p = pair("family");
    for own in [IpAddr::from(p.server.ipv4()), p.server.ipv6().into()] {
        // Bound to the one address, not to all.
        let listener = p.server.puppet().unwrap().listen((own, 0).into(), Serve::Script).unwrap();
        let to = at(own, listener.port());
        let seen = whoami_with(&p.client.puppet().unwrap(), &to, ConnectOpts::default()).unwrap();
        let client: IpAddr =
            if own.is_ipv4() { p.client.ipv4().into() } else { p.client.ipv6().into() };
        assert_eq!((seen.peer.ip(), seen.local.to_string()), (client, to));
    }
}

#[test]
fn a_socket_that_was_bound_beforehand_keeps_its_address_and_port() {
    let p = pair("bound");
    let bound: [(IpAddr, IpAddr); 2] = [
        (p.client.ipv4().into(), p.server.ipv4().into()),
        (p.client.ipv6().into(), p.server.ipv6().into()),
    ];
    for (own, to) in bound {
        let bind = SocketAddr::new(own, 41_000);
        let seen = p.ask(to, ConnectOpts { bind: Some(bind), ..ConnectOpts::default() });
        assert_eq!(seen.client.local, bind);
        assert_eq!(seen.client.peer, SocketAddr::new(to, PORT));
        assert_eq!(seen.peer.ip(), own);
    }
}

#[test]
fn a_mapped_socket_that_was_bound_beforehand_keeps_its_address_and_port() {
    let p = pair("bound-mapped");
    let bind = Some(SocketAddr::new(p.client.ipv4().into(), 41_000));
    let seen = p.ask(p.server.ipv4(), ConnectOpts { bind, mapped: true, ..ConnectOpts::default() });
    assert_eq!(seen.client.local, SocketAddr::new(mapped(p.client.ipv4()), 41_000));
    assert_eq!(seen.client.peer, SocketAddr::new(mapped(p.server.ipv4()), PORT));
    assert_eq!(seen.peer.ip(), p.client.ipv4());
}

#[test]
fn a_socket_bound_to_a_port_of_every_address_keeps_its_port() {
    let p = pair("bound-any");
    let any = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 41_001);
    let seen = p.ask(p.server.ipv4(), ConnectOpts { bind: Some(any), ..ConnectOpts::default() });
    assert_eq!(seen.client.local, SocketAddr::new(p.client.ipv4().into(), 41_001));
    assert_eq!(seen.peer.ip(), p.client.ipv4());
}

#[test]
fn a_socket_bound_to_a_device_is_captured_as_well() {
    let p = pair("device");
    for to in [IpAddr::from(p.server.ipv4()), p.server.ipv6().into()] {
        let bind_device = Some("eth0".to_owned());
        let seen = p.ask(to, ConnectOpts { bind_device, ..ConnectOpts::default() });
        assert_eq!(seen.client.peer, SocketAddr::new(to, PORT));
    }
}
