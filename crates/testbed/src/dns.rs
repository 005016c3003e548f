//! The cluster's DNS: one resolver per node, on the pods' gateway addresses, all with the same names.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};

use crate::netns;
use crate::sys::readable;

/// Short, so that a name that moves is soon found.
const TTL: u32 = 5;
/// RFC 1035 section 4.2.1: what a client without EDNS takes by UDP.
const UDP_LIMIT: u16 = 512;

/// Names and their addresses, shared by the resolvers of a bed.
#[derive(Clone, Default)]
pub(crate) struct Names(Arc<Mutex<HashMap<String, Vec<IpAddr>>>>);

impl Names {
    pub fn set(&self, name: &str, addrs: &[IpAddr]) {
        let mut names = self.0.lock().unwrap();
        if addrs.is_empty() {
            names.remove(&canonical(name));
        } else {
            names.insert(canonical(name), addrs.to_vec());
        }
    }

    fn get(&self, name: &str) -> Option<Vec<IpAddr>> {
        self.0.lock().unwrap().get(&canonical(name)).cloned()
    }

    fn answer(&self, request: &[u8]) -> Option<Message> {
        let request = Message::from_vec(request).ok()?;
        if request.message_type() != MessageType::Query {
            return None;
        }
        let mut response = Message::new();
        response
            .set_id(request.id())
            .set_message_type(MessageType::Response)
            .set_op_code(request.op_code())
            .set_recursion_desired(request.recursion_desired())
            .set_recursion_available(true)
            .set_authoritative(true)
            .add_queries(request.queries().iter().cloned());
        let Some(query) = request.queries().first().filter(|_| request.op_code() == OpCode::Query)
        else {
            response.set_response_code(ResponseCode::NotImp);
            return Some(response);
        };
        let Some(addrs) = self.get(&query.name().to_ascii()) else {
            response.set_response_code(ResponseCode::NXDomain);
            return Some(response);
        };
        for addr in addrs {
            let data = match (addr, query.query_type()) {
                (IpAddr::V4(a), RecordType::A | RecordType::ANY) => RData::A(a.into()),
                (IpAddr::V6(a), RecordType::AAAA | RecordType::ANY) => RData::AAAA(a.into()),
                _ => continue,
            };
            response.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
        }
        Some(response)
    }
}

/// DNS names compare without regard to case (RFC 4343); the final dot is the caller's choice.
fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// A running resolver; it stops when dropped.
pub(crate) struct Resolver {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Resolver {
    pub fn start(netns: &Path, addresses: &[IpAddr], names: Names) -> Result<Self> {
        let sockets = netns::inside(netns, || {
            let mut udp = Vec::new();
            let mut tcp = Vec::new();
            for &ip in addresses {
                let addr = SocketAddr::new(ip, 53);
                udp.push(UdpSocket::bind(addr).with_context(|| format!("cannot bind {addr}/udp"))?);
                tcp.push(
                    TcpListener::bind(addr).with_context(|| format!("cannot bind {addr}/tcp"))?,
                );
            }
            for socket in &udp {
                socket.set_nonblocking(true)?;
            }
            for socket in &tcp {
                socket.set_nonblocking(true)?;
            }
            Ok((udp, tcp))
        })?;
        let (stop, stopped) = UnixStream::pair()?;
        let thread = std::thread::Builder::new()
            .name("bed dns".to_owned())
            .spawn(move || serve(&sockets.0, &sockets.1, &stopped, &names))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(udp: &[UdpSocket], tcp: &[TcpListener], stopped: &UnixStream, names: &Names) {
    let mut fds = vec![stopped.as_fd()];
    fds.extend(udp.iter().map(AsFd::as_fd));
    fds.extend(tcp.iter().map(AsFd::as_fd));
    loop {
        match readable(&fds, -1) {
            Ok(ready) if ready.first() != Some(&false) => return,
            Ok(_) => {}
            Err(e) => return eprintln!("bed dns: {e}"),
        }
        for socket in udp {
            // Errors: nothing there after all, or a client that is gone.
            while udp_exchange(socket, names).is_ok() {}
        }
        for listener in tcp {
            while let Ok((stream, _)) = listener.accept() {
                let names = names.clone();
                std::thread::spawn(move || tcp_exchanges(stream, &names));
            }
        }
    }
}

fn udp_exchange(socket: &UdpSocket, names: &Names) -> io::Result<()> {
    let mut buf = [0; 4096];
    let (n, from) = socket.recv_from(&mut buf)?;
    let request = buf.get(..n).unwrap_or_default();
    let Some(response) = names.answer(request) else { return Ok(()) };
    let limit = Message::from_vec(request).map_or(UDP_LIMIT, |m| m.max_payload());
    let Ok(mut bytes) = response.to_vec() else { return Ok(()) };
    if bytes.len() > usize::from(limit) {
        bytes = response.truncate().to_vec().unwrap_or_default();
    }
    socket.send_to(&bytes, from).map(drop)
}

/// Serves one client until it leaves, or says nothing for a while.
fn tcp_exchanges(mut stream: TcpStream, names: &Names) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut request = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut request)?;
        let Some(response) = names.answer(&request) else { return Ok(()) };
        let bytes = response.to_vec().map_err(io::Error::other)?;
        let mut framed =
            u16::try_from(bytes.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
        framed.extend(bytes);
        stream.write_all(&framed)?;
    }
}
