//! How much memory this process has: what the kernel says, and what the allocator gave out.

use anyhow::Context as _;
use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    sync::atomic::{AtomicBool, AtomicIsize, Ordering},
};

/// The system's allocator, which counts while asked to. A role that measures time leaves it off:
/// an atomic addition per allocation would be part of what it measures.
pub struct Counting;

static ON: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicIsize = AtomicIsize::new(0);

/// What glibc takes for so many bytes: eight bytes of its own, in steps of 16, and 32 at least.
fn chunk(bytes: usize) -> isize {
    let whole = (bytes + 8).next_multiple_of(16).max(32);
    isize::try_from(whole).unwrap_or(isize::MAX)
}

fn count(by: isize) {
    if ON.load(Ordering::Relaxed) {
        LIVE.fetch_add(by, Ordering::Relaxed);
    }
}

// SAFETY: each call goes to the system's allocator with the arguments that it came with; beside
// it, only a number is changed.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(chunk(layout.size()));
        // SAFETY: the caller keeps the trait's contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-chunk(layout.size()));
        // SAFETY: the caller keeps the trait's contract, which is the same.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(chunk(size) - chunk(layout.size()));
        // SAFETY: the caller keeps the trait's contract, which is the same.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

/// Counts from here on.
pub fn start_counting() {
    ON.store(true, Ordering::Relaxed);
}

/// Bytes of the allocator's chunks that are in use, since [`start_counting`].
pub fn live() -> f64 {
    LIVE.load(Ordering::Relaxed) as f64
}

/// What the heap grows by while `f` makes its value.
pub fn heap_of<T>(f: impl FnOnce() -> T) -> (T, f64) {
    let before = live();
    let value = f();
    let grown = live() - before;
    (value, grown)
}

/// What this process has had of the processors, in seconds.
pub fn processor_seconds() -> anyhow::Result<f64> {
    let used = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    Ok(seconds(used.user_time()) + seconds(used.system_time()))
}

/// What all threads of a process have had of the processors so far, in seconds.
pub fn processor_seconds_of(pid: i32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may hold anything; user and system time are fields 14 and 15.
    let (_, rest) = stat.rsplit_once(')').context("no name in the process's stat")?;
    let ticks = |field: usize| -> anyhow::Result<f64> {
        let text = rest.split_whitespace().nth(field - 3).context("a stat too short")?;
        Ok(text.parse()?)
    };
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok((ticks(14)? + ticks(15)?) / per_second as f64)
}

/// What a process shares with nobody, in bytes: neither the text of its program, nor what it has of the kernel's.
pub fn private(pid: i32) -> anyhow::Result<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find_map(|l| l.strip_prefix("Anonymous:")).context("no Anonymous")?;
    let kib: f64 = line.split_whitespace().next().context("no number")?.parse()?;
    Ok(kib * 1024.0)
}

/// Resident memory of a process and its highest ever, in bytes.
pub fn resident(pid: &str) -> anyhow::Result<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse::<f64>().ok())
            .map(|kib| kib * 1024.0)
            .ok_or_else(|| anyhow::anyhow!("/proc/{pid}/status has no {name}"))
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}
