//! The `:authority` of a CONNECT.

#![no_main]

use hbone::Authority;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(authority) = text.parse::<Authority>() else { return };
    let shown = authority.to_string();
    assert_eq!(shown.parse(), Ok(authority), "{shown:?} was made of {text:?}");
});
