//! What listeners do with their connections when nobody takes them by hand.

use std::io;
use std::net::SocketAddr;

use serde_json::json;
use sha2::{Digest, Sha256};
use testbed::pattern::hex;
use testbed::puppet::Serve;
use tokio::net::{TcpListener, TcpStream};

use crate::stream::{BLOCK, linger_zero, read_some, send_pattern, write_all};

/// A client that never ends its line is not to fill the memory.
const LONGEST_LINE: usize = 64 * 1024;

pub(crate) async fn accept_loop(listener: TcpListener, serve: Serve) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let serve = serve.clone();
                tokio::spawn(async move {
                    // A client that breaks off is its own affair; the test sees it at the client's end.
                    let _ = Box::pin(connection(stream, serve)).await;
                });
            }
            Err(e) => {
                eprintln!("accept: {e}");
                // Out of descriptors, most likely: some will come back.
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    }
}

async fn connection(tcp: TcpStream, serve: Serve) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    match serve {
        Serve::Manual | Serve::Echo => echo(&tcp, &[]).await,
        Serve::Sink => sink(&tcp, &[], "").await,
        Serve::Banner(text) => {
            send(&tcp, text.as_bytes()).await?;
            echo(&tcp, &[]).await
        }
        Serve::Script => script(tcp).await,
    }
}

async fn script(tcp: TcpStream) -> io::Result<()> {
    let (line, rest) = first_line(&tcp).await?;
    let words: Vec<&str> = line.split_whitespace().collect();
    match *words.as_slice() {
        ["echo"] => echo(&tcp, &rest).await,
        ["sink"] => sink(&tcp, &rest, "").await,
        ["reply-after-eof"] => sink(&tcp, &rest, "got ").await,
        ["source", n, seed] => {
            let parse = |w: &str| w.parse().map_err(io::Error::other);
            send_pattern(&tcp, parse(n)?, parse(seed)?, &mut 0).await?;
            finish(&tcp).await
        }
        ["whoami"] => {
            // A dual-stack listener sees IPv4 clients as ::ffff:a.b.c.d; the test asks about a.b.c.d.
            let canonical =
                |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port()).to_string();
            let who = json!({
                "peer": canonical(tcp.peer_addr()?),
                "local": canonical(tcp.local_addr()?),
            });
            send(&tcp, format!("{who}\n").as_bytes()).await?;
            echo(&tcp, &rest).await
        }
        ["stall"] => {
            let _open = tcp;
            std::future::pending().await
        }
        ["rst"] => linger_zero(&tcp),
        ["close-now"] => Ok(()),
        _ => send(&tcp, b"unknown command\n").await,
    }
}

/// Reads up to the first newline; gives the line and what came behind it.
async fn first_line(tcp: &TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut data = Vec::new();
    let mut block = [0; 4096];
    while data.len() < LONGEST_LINE {
        let n = read_some(tcp, &mut block).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        data.extend_from_slice(&block[..n]);
        if let Some(end) = data.iter().position(|&b| b == b'\n') {
            let rest = data.split_off(end + 1);
            return Ok((String::from_utf8_lossy(&data).trim().to_owned(), rest));
        }
    }
    Err(io::Error::other("the line does not end"))
}

async fn echo(tcp: &TcpStream, rest: &[u8]) -> io::Result<()> {
    send(tcp, rest).await?;
    // Small at first: ten thousand idle connections should not cost gigabytes.
    let mut block = vec![0; 4096];
    loop {
        let n = read_some(tcp, &mut block).await?;
        if n == 0 {
            return finish(tcp).await;
        }
        send(tcp, &block[..n]).await?;
        if n == block.len() && n < BLOCK {
            block.resize(n * 4, 0);
        }
    }
}

async fn sink(tcp: &TcpStream, rest: &[u8], prefix: &str) -> io::Result<()> {
    let mut digest = Sha256::new();
    digest.update(rest);
    let mut count = rest.len();
    let mut block = vec![0; BLOCK];
    loop {
        let n = read_some(tcp, &mut block).await?;
        if n == 0 {
            break;
        }
        digest.update(&block[..n]);
        count += n;
    }
    send(tcp, format!("{prefix}{count} {}\n", hex(&digest.finalize())).as_bytes()).await
}

/// Half-closes, then waits for the client's end, so that what it still sends does not turn the close into a reset.
async fn finish(tcp: &TcpStream) -> io::Result<()> {
    socket2::SockRef::from(tcp).shutdown(std::net::Shutdown::Write)?;
    let mut block = vec![0; 4096];
    while read_some(tcp, &mut block).await? > 0 {}
    Ok(())
}

async fn send(tcp: &TcpStream, data: &[u8]) -> io::Result<()> {
    write_all(tcp, data, &mut 0).await
}
