//! System calls as a test wants them made, for what no well-behaved application does.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use testbed::pattern::{hex, unhex};
use testbed::puppet::protocol::{Arg, Returned};
use testbed::puppet::{PuppetError, sockaddr};
use tokio::net::TcpStream;

use crate::error;

/// On a thread of its own: it may block.
pub(crate) async fn syscall(number: i64, args: Vec<Arg>) -> Result<Returned, PuppetError> {
    let call = move || {
        let mut buffers = Vec::new();
        for arg in &args {
            if let Arg::Bytes(text) = arg {
                buffers.push(unhex(text).ok_or_else(|| PuppetError::new("other", "no hex"))?);
            }
        }
        let mut next = buffers.iter_mut();
        let mut words = [0i64; 6];
        for (word, arg) in words.iter_mut().zip(&args) {
            *word = match arg {
                Arg::Int(n) => *n,
                Arg::Bytes(_) => next.next().map_or(0, |b| b.as_mut_ptr() as i64),
            };
        }
        let [a, b, c, d, e, f] = words;
        // SAFETY: none but what the test is told to do: every pointer it can name is one of these buffers, and the
        // lengths beside them are the test's.
        let value = unsafe { libc::syscall(number, a, b, c, d, e, f) };
        if value < 0 {
            let e = io::Error::last_os_error();
            return Err(error::from_io(&format!("system call {number}"), &e));
        }
        Ok(Returned { value, buffers: buffers.iter().map(|b| hex(b)).collect() })
    };
    blocking(call).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PuppetError> + Send + 'static,
) -> Result<T, PuppetError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(PuppetError::new("other", e.to_string())))
}

/// Makes a connected socket one that the other commands know.
pub(crate) fn adopt(fd: RawFd) -> Result<TcpStream, PuppetError> {
    // SAFETY: the test gives up the descriptor that it had made.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    let stream = std::net::TcpStream::from(owned);
    let adopted = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
    adopted.map_err(|e| error::from_io("adopt", &e))
}

/// Connects by io_uring: one submission, one completion.
pub(crate) async fn ring_connect(fd: RawFd, to: SocketAddr) -> Result<Value, PuppetError> {
    let done = blocking(move || {
        let address = sockaddr(to);
        let result = ring_of_one(fd, &address).map_err(|e| error::from_io("io_uring", &e))?;
        if result < 0 {
            let e = io::Error::from_raw_os_error(-result);
            return Err(error::from_io("connect by io_uring", &e));
        }
        Ok(())
    });
    done.await.map(|()| json!({}))
}

// What `libc` has no names for; see linux/io_uring.h.
const OFF_SQ_RING: i64 = 0;
const OFF_CQ_RING: i64 = 0x800_0000;
const OFF_SQES: i64 = 0x1000_0000;
const OP_CONNECT: u8 = 16;
const ENTER_GETEVENTS: u32 = 1;
/// Of struct io_uring_params: where `sq_off` and `cq_off` begin, and their members.
const SQ_TAIL: usize = 40 + 4;
const SQ_ARRAY: usize = 40 + 24;
const CQ_HEAD: usize = 80;
const CQ_CQES: usize = 80 + 20;
const PAGE: usize = 4096;

fn ring_of_one(fd: RawFd, address: &[u8]) -> io::Result<i32> {
    let mut params = [0u8; 120];
    // SAFETY: `params` is a struct io_uring_params, which is 120 bytes.
    let ring = checked(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    let _owned = unsafe { OwnedFd::from_raw_fd(ring as RawFd) };
    let offset = |at: usize| {
        params[at..at + 4].try_into().map_or(0, |four| u32::from_ne_bytes(four) as usize)
    };
    let map = |at: i64| -> io::Result<*mut u8> {
        // SAFETY: a new mapping of the ring's; it is left to the end of the process, a page per use.
        let p = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(ptr::null_mut(), PAGE, access, libc::MAP_SHARED, ring as RawFd, at)
        };
        if p == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(p.cast()) }
    };
    let (sq, cq, sqe) = (map(OFF_SQ_RING)?, map(OFF_CQ_RING)?, map(OFF_SQES)?);
    // SAFETY: the offsets are the kernel's own, within rings of one entry, which fit a page; the entry's fields are
    // opcode at 0, fd at 4, the address's length at 8 (`off`) and the address at 16.
    unsafe {
        *sqe = OP_CONNECT;
        sqe.add(4).cast::<i32>().write(fd);
        sqe.add(8).cast::<u64>().write(address.len() as u64);
        sqe.add(16).cast::<u64>().write(address.as_ptr() as u64);
        sq.add(offset(SQ_ARRAY)).cast::<u32>().write(0);
        (*sq.add(offset(SQ_TAIL)).cast::<AtomicU32>()).store(1, Ordering::Release);
    }
    // SAFETY: takes no memory beside the rings.
    checked(unsafe {
        libc::syscall(libc::SYS_io_uring_enter, ring, 1, 1, ENTER_GETEVENTS, ptr::null::<u8>(), 0)
    })?;
    // SAFETY: one completion is there, at index 0; its result is at 8.
    unsafe {
        let result = cq.add(offset(CQ_CQES) + 8).cast::<i32>().read_volatile();
        (*cq.add(offset(CQ_HEAD)).cast::<AtomicU32>()).store(1, Ordering::Release);
        Ok(result)
    }
}

fn checked(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
