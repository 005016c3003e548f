//! `culvert-waypoint`, the program.

use std::process::ExitCode;

/// A request is a few dozen short allocations, of which some are large. Without huge pages, which cost
/// 10 MB here.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    culvert_waypoint::main()
}
