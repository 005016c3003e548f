//! Errors in the terms of the protocol.

use std::io;

use testbed::puppet::PuppetError;

/// Names an I/O error after its errno, which is what tests assert on.
pub(crate) fn from_io(doing: &str, e: &io::Error) -> PuppetError {
    let mut error = match e.raw_os_error() {
        Some(errno) => PuppetError::new(&format!("{:?}", nix::errno::Errno::from_raw(errno)), ""),
        None if e.kind() == io::ErrorKind::UnexpectedEof => PuppetError::new("eof", ""),
        None if e.kind() == io::ErrorKind::TimedOut => PuppetError::new("timeout", ""),
        None => PuppetError::new("other", ""),
    };
    error.errno = e.raw_os_error();
    error.msg = format!("{doing}: {e}");
    error
}

pub(crate) fn timeout(doing: &str) -> PuppetError {
    PuppetError::new("timeout", format!("{doing}: deadline passed"))
}

/// The call was cut short by a close of the same socket.
pub(crate) fn closed() -> PuppetError {
    PuppetError::new("closed", "the socket was closed")
}

pub(crate) fn no_such(what: &str, id: u64) -> PuppetError {
    PuppetError::new("closed", format!("no {what} {id}: closed or never opened"))
}
