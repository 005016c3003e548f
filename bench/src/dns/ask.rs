//! A DNS client that costs little beside what it measures: a few sockets, many questions at once on
//! each, and one system call for many datagrams.

use crate::role::say;
use anyhow::{Context as _, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    ptr,
    time::{Duration, Instant},
};

const SOCKETS: usize = 8;
/// Questions of one socket that wait for an answer.
const DEPTH: usize = 16;
/// Of questions at a fixed rate, in a second.
const RATE: u32 = 2_000;
/// What is not answered by then is lost.
const PATIENCE: Duration = Duration::from_millis(500);

/// `<flood or pace> <server> <name> <questions>`
pub fn play(args: &[&str]) -> anyhow::Result<()> {
    let [how, server, name, questions] = args else { bail!("wrong arguments: {args:?}") };
    let (server, questions) = (server.parse()?, questions.parse()?);
    let mut clients = Vec::new();
    for _ in 0..SOCKETS {
        clients.push(Client::new(server, name)?);
    }
    match *how {
        "flood" => flood(&mut clients, questions),
        "pace" => pace(&mut clients, questions),
        _ => bail!("neither flood nor pace: {how}"),
    }
}

/// As many as are answered.
fn flood(clients: &mut [Client], questions: usize) -> anyhow::Result<()> {
    let (mut asked, mut answered, mut lost) = (0, 0, 0);
    let (begun, spent) = (Instant::now(), cpu_seconds()?);
    while answered + lost < questions {
        for client in &mut *clients {
            let more = (questions - asked).min(DEPTH - client.waiting);
            client.send(more)?;
            asked += more;
        }
        // While one socket is waited for, answers for the others gather.
        for client in clients.iter_mut().filter(|c| c.waiting > 0) {
            match client.receive()? {
                0 => lost += std::mem::take(&mut client.waiting),
                n => {
                    answered += n;
                    client.waiting = client.waiting.saturating_sub(n);
                }
            }
        }
    }
    ensure!(answered > 0, "no question was answered");
    let each = 100_000.0 / answered as f64;
    say("answers", answered as f64 / begun.elapsed().as_secs_f64());
    say("lost", lost as f64);
    say("CPU of the client for 100,000", (cpu_seconds()? - spent) * each);
    Ok(())
}

/// One after the other, at a fixed rate that nobody has trouble with.
fn pace(clients: &mut [Client], questions: usize) -> anyhow::Result<()> {
    let mut took = Vec::with_capacity(questions);
    let begun = Instant::now();
    for (n, turn) in (0..questions).zip((0..clients.len()).cycle()) {
        let due = Duration::from_secs(1) * u32::try_from(n)? / RATE;
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
        let client = clients.get_mut(turn).context("no socket")?;
        let sent = Instant::now();
        client.send(1)?;
        // A lost one counts as what was waited for it.
        client.receive()?;
        client.waiting = 0;
        took.push(sent.elapsed());
    }
    took.sort();
    for (name, percent) in [("p50 at 2,000/s", 50), ("p99 at 2,000/s", 99)] {
        let at = took.get((took.len() - 1) * percent / 100).context("nothing was asked")?;
        say(name, at.as_secs_f64() * 1e6);
    }
    Ok(())
}

/// Of this process so far.
fn cpu_seconds() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

struct Client {
    socket: UdpSocket,
    questions: Batch,
    answers: Batch,
    /// Questions without an answer so far.
    waiting: usize,
}

impl Client {
    fn new(server: SocketAddr, name: &str) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let questions = (0..DEPTH).map(|id| question(id as u16, name)).collect();
        let answers = (0..DEPTH).map(|_| vec![0; 512]).collect();
        let (questions, answers) = (Batch::new(questions), Batch::new(answers));
        Ok(Self { socket, questions, answers, waiting: 0 })
    }

    fn send(&mut self, count: usize) -> anyhow::Result<()> {
        let mut sent = 0;
        while sent < count {
            sent += self.questions.send(&self.socket, count - sent).context("asking")?;
        }
        self.waiting += count;
        Ok(())
    }

    /// How many answers have come, after waiting for the first; none if it stays away.
    fn receive(&mut self) -> anyhow::Result<usize> {
        let count = self.answers.receive(&self.socket).context("waiting for an answer")?;
        for answer in self.answers.buffers.iter().take(count) {
            // A response without an error, with one record at least.
            let fine = answer[2] & 0x80 != 0 && answer[3] & 0x0f == 0 && answer[6..8] != [0, 0];
            ensure!(fine, "not the answer that was wanted: {:02x?}", &answer[..12]);
        }
        Ok(count)
    }
}

/// A question for an IPv4 address.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    // Recursion desired, one question.
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// Datagrams that are sent or received with one system call.
struct Batch {
    headers: Vec<libc::mmsghdr>,
    // Headers point at parts, and those at buffers.
    _parts: Vec<libc::iovec>,
    buffers: Vec<Vec<u8>>,
}

impl Batch {
    fn new(mut buffers: Vec<Vec<u8>>) -> Self {
        let mut parts: Vec<libc::iovec> = buffers
            .iter_mut()
            .map(|b| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() })
            .collect();
        let headers = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: mmsghdr is plain data, for which all zeroes is a value.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = part;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        Self { headers, _parts: parts, buffers }
    }

    fn send(&mut self, socket: &UdpSocket, count: usize) -> io::Result<usize> {
        let count = count.min(self.headers.len()) as libc::c_uint;
        // SAFETY: there are so many headers, each points at one part, and each part at a buffer of
        // its stated length; none of them is moved or changed as long as this value lives.
        let sent =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), count, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Waits for the first, and takes what is there.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let count = self.headers.len() as libc::c_uint;
        // SAFETY: as in `send`; nothing else refers to the buffers during the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        match usize::try_from(received).map_err(|_| io::Error::last_os_error()) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            other => other,
        }
    }
}
