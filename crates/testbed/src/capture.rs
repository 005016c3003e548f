//! Records an interface into a pcapng file.

use std::fs::File;
use std::io::BufWriter;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::netns;
use crate::pcapng::Writer;
use crate::sys::{self, Batch};

/// Longer than any packet but a BIG TCP one; a frame that is longer still counts as truncated.
const SNAPLEN: usize = 256 * 1024;
const BATCH: usize = 16;
/// Memory is only used for what is queued. At 10 Gbit/s this is a tenth of a second during which the disk may stall.
const RECEIVE_BUFFER: i32 = 256 << 20;

/// A running capture. Dropping it stops it, without a report.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<CaptureReport>>>,
}

/// What a capture recorded.
#[derive(Clone, Debug)]
pub struct CaptureReport {
    pub packets: u64,
    /// Packets that the kernel could not queue. A capture with drops proves nothing.
    pub drops: u64,
    pub path: PathBuf,
}

impl Capture {
    /// Starts to record both directions of an interface. When it returns, packets are being recorded.
    pub fn start(netns: &Path, ifname: &str, pcapng: &Path) -> Result<Self> {
        let socket = netns::inside(netns, || {
            let ifindex = nix::net::if_::if_nametoindex(ifname)?;
            Ok(sys::packet_socket(ifindex, RECEIVE_BUFFER)?)
        })
        .with_context(|| format!("cannot capture {ifname} in {}", netns.display()))?;
        let file =
            File::create(pcapng).with_context(|| format!("cannot create {}", pcapng.display()))?;
        let writer = Writer::new(BufWriter::with_capacity(1 << 20, file), SNAPLEN)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, path) = (stop.clone(), pcapng.to_owned());
        let thread = std::thread::Builder::new()
            .name(format!("capture {ifname}"))
            .spawn(move || record(&socket, writer, &stopped, path))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Records what has been sent so far, then ends.
    pub fn stop(mut self) -> Result<CaptureReport> {
        // What was sent just now may still be on its way through a softirq.
        std::thread::sleep(Duration::from_millis(50));
        self.finish()
    }

    fn finish(&mut self) -> Result<CaptureReport> {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().context("already stopped")?;
        thread.join().map_err(|_| anyhow!("the capture thread panicked"))?
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.thread.is_some() {
            let _ = self.finish();
        }
    }
}

fn record(
    socket: &OwnedFd,
    mut writer: Writer<BufWriter<File>>,
    stop: &AtomicBool,
    path: PathBuf,
) -> Result<CaptureReport> {
    let mut batch = Batch::new(BATCH, SNAPLEN);
    let mut packets = 0;
    loop {
        // Read before the queue is: what was queued when it was set is still written.
        let stopping = stop.load(Ordering::Acquire);
        let n = match batch.receive(socket.as_fd(), if stopping { 0 } else { 20 }) {
            Ok(n) => n,
            // The interface went, and will not come back under this index.
            Err(e) if e.raw_os_error() == Some(libc::ENETDOWN) => 0,
            Err(e) => return Err(e).context("cannot read packets"),
        };
        for (frame, length) in batch.packets() {
            writer.packet(std::time::SystemTime::now(), frame, length)?;
            packets += 1;
        }
        if n == 0 && stopping {
            break;
        }
    }
    writer.finish()?;
    let drops = sys::packet_statistics(socket.as_fd())?.drops;
    Ok(CaptureReport { packets, drops, path })
}
