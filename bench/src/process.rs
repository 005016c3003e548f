//! What a process costs, and where it runs.

use crate::memory;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use std::fs;

/// Keeps all threads of a process on one processor.
pub fn pin(pid: i32, processor: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = thread?.file_name();
        sched_setaffinity(Pid::from_raw(name.to_string_lossy().parse()?), &set)?;
    }
    Ok(())
}

/// All processors, as taskset has it.
pub fn everywhere() -> String {
    format!("0-{}", std::thread::available_parallelism().map_or(0, |n| n.get() - 1))
}

/// Resident, in MB.
pub fn resident(pid: i32) -> anyhow::Result<f64> {
    Ok(memory::resident(&pid.to_string())?.0 / 1e6)
}

/// What these processes have had of the processors together, in seconds.
pub fn processor_seconds(pids: &[i32]) -> anyhow::Result<f64> {
    pids.iter().map(|pid| memory::processor_seconds_of(*pid)).sum()
}
