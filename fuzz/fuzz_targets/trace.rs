//! Headers that say which trace a request is part of, a line each: what goes on is one trace.

#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
        Some((name, HeaderValue::from_str(value.trim()).ok()?))
    };
    let headers: HeaderMap = text.lines().filter_map(header).collect();
    culvert_waypoint::fuzzing::trace(headers);
});
