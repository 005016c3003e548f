//! What a program sees of a TCP connection, asked of a real one: plain, or spliced by `sk_msg`. Each answer is 1 for
//! what TCP does, 0 for anything else.
//!
//! What happens to spliced ones stands in Linux 6.18, `net/ipv4/tcp_bpf.c` and `net/core/skmsg.c`.

use crate::role::say;
use anyhow::{Context as _, bail, ensure};
use nix::{
    errno::Errno,
    fcntl::{SpliceFFlags, splice},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        pthread::{pthread_kill, pthread_self},
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
        socket::{MsgFlags, recv},
    },
    unistd::pipe,
};
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::mpsc,
    thread,
    time::Duration,
};

/// Until what was written has arrived, by whichever way.
const ARRIVED: Duration = Duration::from_millis(50);
const SOON: u16 = 500;
const LATE: Duration = Duration::from_secs(2);

/// Goes by `sk_msg`, and by TCP where that is asked for messages of an odd length.
const EVEN: usize = 64;
const ODD: usize = 65;

/// More than any socket's buffers hold.
const BOUND: usize = 64 << 20;

type Probe = fn(Ends) -> anyhow::Result<bool>;

const ALL: [(&str, Probe); 8] = [
    ("edge-triggered-reader-of-both-ways", edge_triggered),
    ("blocking-read-at-a-signal", blocking_read),
    ("msg-waitall", wait_for_all),
    ("splice", spliced_out),
    ("fionread", bytes_to_read),
    ("fionread-of-what-came-by-tcp", bytes_by_tcp_to_read),
    ("close-with-unread-data", closed_unread),
    ("memory-bounded-by-the-reader", bounded),
];

/// In the order in which they are asked.
pub fn names() -> [&'static str; ALL.len()] {
    ALL.map(|(name, _)| name)
}

struct Ends {
    writer: TcpStream,
    reader: TcpStream,
}

/// `<address of this pod>`
pub fn play(args: &[&str]) -> anyhow::Result<()> {
    let [own] = args else { bail!("wrong arguments: {args:?}") };
    let listener = TcpListener::bind((own.parse::<Ipv4Addr>()?, 0)).context("listening")?;
    for (name, probe) in ALL {
        let writer = TcpStream::connect(listener.local_addr()?).context("connecting")?;
        writer.set_nodelay(true)?;
        let (reader, _) = listener.accept()?;
        let as_tcp = probe(Ends { writer, reader }).with_context(|| name)?;
        say(name, f64::from(u8::from(as_tcp)));
    }
    Ok(())
}

/// One that takes a short read for the last, as epoll(7) allows it to, and waits for the next event.
fn edge_triggered(Ends { mut writer, mut reader }: Ends) -> anyhow::Result<bool> {
    reader.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    epoll.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?;
    writer.write_all(&[1; EVEN])?;
    writer.write_all(&[2; ODD])?;
    thread::sleep(ARRIVED);
    let (mut read, mut buffer, mut events) = (0, [0; 4096], [EpollEvent::empty()]);
    while read < EVEN + ODD {
        if epoll.wait(&mut events, EpollTimeout::from(SOON))? == 0 {
            return Ok(false);
        }
        read += reader.read(&mut buffer)?;
    }
    Ok(true)
}

/// The handler of which asks for system calls to go on.
fn blocking_read(Ends { mut writer, mut reader }: Ends) -> anyhow::Result<bool> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }?;
    let (tell, told) = mpsc::channel();
    let reading = thread::spawn(move || {
        let _ = tell.send(pthread_self());
        reader.read(&mut [0; EVEN])
    });
    let thread = told.recv()?;
    thread::sleep(ARRIVED);
    pthread_kill(thread, Signal::SIGUSR1)?;
    thread::sleep(ARRIVED);
    writer.write_all(&[1; EVEN])?;
    match reading.join().expect("the reader's thread") {
        Ok(n) => Ok(n == EVEN),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn wait_for_all(Ends { mut writer, reader }: Ends) -> anyhow::Result<bool> {
    // Nothing may wake it.
    reader.set_read_timeout(Some(LATE))?;
    let reading =
        thread::spawn(move || recv(reader.as_raw_fd(), &mut [0; 2 * EVEN], MsgFlags::MSG_WAITALL));
    writer.write_all(&[1; EVEN])?;
    thread::sleep(ARRIVED);
    writer.write_all(&[2; EVEN])?;
    Ok(reading.join().expect("the reader's thread")? == 2 * EVEN)
}

fn spliced_out(Ends { mut writer, reader }: Ends) -> anyhow::Result<bool> {
    writer.write_all(&[1; EVEN])?;
    ensure!(is_readable(&reader)?, "nothing arrives");
    reader.set_nonblocking(true)?;
    let (_out, into) = pipe()?;
    match splice(&reader, None, &into, None, EVEN, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Ok(n) => Ok(n == EVEN),
        Err(Errno::EAGAIN) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn bytes_to_read(ends: Ends) -> anyhow::Result<bool> {
    told_to_read(ends, &[1; EVEN])
}

fn bytes_by_tcp_to_read(ends: Ends) -> anyhow::Result<bool> {
    told_to_read(ends, &[1; ODD])
}

fn told_to_read(Ends { mut writer, reader }: Ends, message: &[u8]) -> anyhow::Result<bool> {
    writer.write_all(message)?;
    ensure!(is_readable(&reader)?, "nothing arrives");
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    let failed = unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    ensure!(failed == 0, "FIONREAD: {}", Errno::last());
    Ok(usize::try_from(bytes)? == message.len())
}

/// The other end hears that not all of it was read (RFC 2525, 2.17).
fn closed_unread(Ends { mut writer, reader }: Ends) -> anyhow::Result<bool> {
    writer.write_all(&[1; EVEN])?;
    ensure!(is_readable(&reader)?, "nothing arrives");
    drop(reader);
    match writer.read(&mut [0]) {
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(true),
        Err(e) => Err(e.into()),
        Ok(_) => Ok(false),
    }
}

/// Who writes to one that does not read is stopped.
fn bounded(Ends { mut writer, reader }: Ends) -> anyhow::Result<bool> {
    writer.set_nonblocking(true)?;
    let (piece, mut written) = (vec![1; 64 << 10], 0);
    while written < BOUND {
        match writer.write(&piece) {
            Ok(n) => written += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            // It is stopped by the node's memory, and not by its reader.
            Err(_) => return Ok(false),
        }
    }
    drop(reader);
    Ok(written < BOUND)
}

fn is_readable(reader: &TcpStream) -> anyhow::Result<bool> {
    let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::from(SOON))? == 1)
}
