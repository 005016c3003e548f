//! What figures are worth nothing without: the machine that they are of.

use std::{fs, thread};

/// Its processor, how many of its cores there are, and its kernel.
pub fn name() -> anyhow::Result<String> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let model = processors
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.trim_start().strip_prefix(':'))
        .map_or("unknown processor", str::trim);
    let cores = thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("{model}, {cores} cores, Linux {}", kernel.trim()))
}
