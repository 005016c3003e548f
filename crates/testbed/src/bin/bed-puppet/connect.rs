//! Opens connections the way a test wants them opened.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, ToSocketAddrs};

use socket2::{Domain, Protocol, Socket, Type};
use testbed::puppet::{ConnectOpts, PuppetError};
use tokio::net::{TcpSocket, TcpStream};

use crate::error;

/// Connects to the first of the address's meanings that answers; the last error if none does.
pub(crate) async fn connect(addr: &str, opts: &ConnectOpts) -> Result<TcpStream, PuppetError> {
    let work = async {
        let mut last = PuppetError::new("resolve", format!("{addr} has no address that fits"));
        for to in meanings(addr).await?.into_iter().filter(|to| fits(to, opts)) {
            match open(to, opts).await {
                Ok(stream) => return Ok(stream),
                Err(e) => last = error::from_io(&format!("connect {to}"), &e),
            }
        }
        Err(last)
    };
    tokio::time::timeout(opts.timeout, work)
        .await
        .unwrap_or_else(|_| Err(error::timeout(&format!("connect {addr}"))))
}

/// getaddrinfo, as an application would call it.
pub(crate) async fn resolve(name: &str, port: u16) -> Result<Vec<SocketAddr>, PuppetError> {
    let owned = name.to_owned();
    let found = tokio::task::spawn_blocking(move || {
        (owned.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>)
    });
    match found.await {
        Ok(Ok(addrs)) => Ok(addrs),
        Ok(Err(e)) => Err(PuppetError::new("resolve", format!("resolve {name}: {e}"))),
        Err(e) => Err(PuppetError::new("other", e.to_string())),
    }
}

async fn meanings(addr: &str) -> Result<Vec<SocketAddr>, PuppetError> {
    if let Ok(addr) = addr.parse() {
        return Ok(vec![addr]);
    }
    let (name, port) = addr
        .rsplit_once(':')
        .and_then(|(name, port)| Some((name, port.parse().ok()?)))
        .ok_or_else(|| {
            PuppetError::new("other", format!("{addr:?} is neither ip:port nor name:port"))
        })?;
    resolve(name, port).await
}

fn fits(to: &SocketAddr, opts: &ConnectOpts) -> bool {
    let family = opts.bind.is_none_or(|bind| bind.is_ipv4() == to.is_ipv4() || opts.mapped);
    let mapped = !opts.mapped || to.is_ipv4();
    let v6only = opts.v6only != Some(true) || to.is_ipv6();
    family && mapped && v6only
}

async fn open(to: SocketAddr, opts: &ConnectOpts) -> io::Result<TcpStream> {
    let to = if opts.mapped { map(to) } else { to };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let (Some(only), SocketAddr::V6(_)) = (opts.v6only, to) {
        socket.set_only_v6(only)?;
    }
    if let Some(device) = &opts.bind_device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(bind) = opts.bind {
        socket.set_reuse_address(true)?;
        let bind = if opts.mapped { map(bind) } else { bind };
        socket.bind(&bind.into())?;
    }
    socket.set_nonblocking(true)?;
    let stream = TcpSocket::from_std_stream(socket.into()).connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn map(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) => SocketAddrV6::new(ip.to_ipv6_mapped(), addr.port(), 0, 0).into(),
        IpAddr::V6(_) => addr,
    }
}
