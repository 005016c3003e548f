//! A bare hop through user space: what comes on one connection goes out on another, and back. A thread for each
//! direction, nothing but reading and writing.

use anyhow::{Context as _, bail};
use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
};

/// As much at a time as the agent reads.
const CHUNK: usize = 64 * 1024;

/// `<port> <where to>`
pub fn play(args: &[&str]) -> anyhow::Result<()> {
    let [port, to] = args else { bail!("wrong arguments: {args:?}") };
    let (port, to): (u16, SocketAddr) = (port.parse()?, to.parse()?);
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("listening")?;
    println!("listens");
    loop {
        let (stream, _) = listener.accept()?;
        // Ends that break off are none of its business.
        thread::spawn(move || pass_on(stream, to));
    }
}

fn pass_on(near: TcpStream, to: SocketAddr) -> io::Result<()> {
    let far = TcpStream::connect(to)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let back = (far.try_clone()?, near.try_clone()?);
    thread::spawn(move || copy(back.0, back.1));
    copy(near, far)
}

fn copy(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer)? {
            0 => return to.shutdown(Shutdown::Write),
            n => to.write_all(&buffer[..n])?,
        }
    }
}
