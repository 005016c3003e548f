//! Points at which a test may have the agent die, as if killed. Only builds with debug assertions
//! have them; `CULVERT_FAULT` names the one that is armed.

/// Dies here if this point is armed.
pub fn point(name: &str) {
    if cfg!(debug_assertions)
        && std::env::var_os("CULVERT_FAULT").is_some_and(|armed| armed == name)
    {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}
