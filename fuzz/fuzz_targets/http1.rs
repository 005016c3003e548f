//! What a client of a waypoint or gateway sends as HTTP/1: what an endpoint gets for each request is
//! one request, with the body that the client sent.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| culvert_waypoint::fuzzing::http1(data));
